"""Output of a running command: Rich progress bars on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as BarTask
from rich.table import Table
from rich.text import Text

from dermstack.listing import counted
from image_models.settings import DoneBefore

if TYPE_CHECKING:  # slow to import, and a command with nothing to do prints lines alone
    import pandas as pd

PLAIN_INTERVAL_S = 15.0
FILE_WIDTH, MAX_TABLE_WIDTH = 160, 10_000


class Out:
    """Prints the lines, tables and progress of one command to stdout: bars on a terminal, plain lines elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console = Console(quiet=quiet, highlight=False, soft_wrap=True, width=FILE_WIDTH)

    def say(self, text: str) -> None:
        """Prints one plain line; square brackets and colons are printed as they are, not as Rich markup."""
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """Prints one line that begins with "warning:", in yellow on a terminal."""
        self._print(Text(f"warning: {text}", style="yellow"))

    def table(self, frame: pd.DataFrame, title: str, *, shares: Collection[str] = ()) -> None:
        """Prints a table, or each row as several lines where the terminal is too narrow.

        Floats get four decimals, from 100 on one; columns in ``shares`` are percentages, and those of whole numbers
        such as ages or seconds have no decimals.
        """
        if self.quiet:
            return
        from pandas.api.types import is_numeric_dtype

        table = Table(title=Text(title), title_justify="left")
        for name, dtype in frame.dtypes.items():
            table.add_column(Text(str(name)), justify="right" if is_numeric_dtype(dtype) else "left")
        columns = [_texts(frame.iloc[:, place].tolist(), name in shares) for place, name in enumerate(frame)]
        rows = [[Text(text) for text in row] for row in zip(*columns, strict=True)]
        for row in rows:
            table.add_row(*row)
        needed = Measurement.get(self._console, self._console.options.update(width=MAX_TABLE_WIDTH), table).maximum
        if needed <= self._console.width:
            self._console.print(table)
            return
        self.say(title)
        for row in rows:
            lines = Table.grid(padding=(0, 2))
            for name, cell in zip(frame.columns, row, strict=True):
                lines.add_row(Text(f"  {name}"), cell)
            self._console.print(lines, "")

    def _print(self, text: Text) -> None:
        if not self.quiet:  # Rich would lay the text out and then throw it away
            self._console.print(text)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Shows progress over ``total`` units; yields a function to call with the number of units just finished.

        Units that an earlier process finished are told as `DoneBefore`: they count as done, but not in the speed and
        the time left.
        """
        if self._console.is_terminal and not self.quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _Speed(unit),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console) as progress:
                yield partial(_advance, progress, progress.add_task(label, total=total))
        else:
            with self.plain_bar(label, total, unit) as progress:
                yield progress

    @contextmanager
    def plain_bar(self, label: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Shows progress as plain lines also on a terminal, for processes that share one."""
        bar = _PlainBar(label, total, unit, self.say)
        yield bar
        bar.end()


def _advance(bars: Progress, task: TaskID, done: int) -> None:
    """Advances a bar of Rich, which takes its speed from what `Progress.advance` was told of the last seconds."""
    if isinstance(done, DoneBefore):
        bars.tasks[0].completed += done
        done = 0
    bars.advance(task, done)


class _PlainBar:
    """Prints a progress line every `PLAIN_INTERVAL_S` seconds and one at the end.

    The speed is that of the units done since the bar began, in the time that was not spent on finding `DoneBefore`.
    """

    def __init__(self, label: str, total: int, unit: str, say: Callable[[str], None]) -> None:
        self._label, self._total, self._unit, self._say = label, total, unit, say
        self._done, self._before = 0, 0  # units: all that are done, and those of them that were done before
        self._started = self._last = time.monotonic()
        self._finding = 0.0  # seconds spent on units done before
        self._next = self._started + PLAIN_INTERVAL_S

    def __call__(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if isinstance(done, DoneBefore):
            self._before += done
            self._finding += now - self._last
        self._last = now
        if now >= self._next:
            self._next = now + PLAIN_INTERVAL_S
            said = f"{self._label}: {self._done:,}/{counted(self._total, self._unit)}"
            if self._done > self._before:
                left = (self._total - self._done) / self._speed(now)
                said += f", {_rate(self._speed(now))} {self._unit}/s, {left:,.0f} s left"
            self._say(said)

    def end(self) -> None:
        now = time.monotonic()
        said = f"{self._label}: {counted(self._done, self._unit)} in {now - self._started:,.0f} s"
        if self._before:
            said += f", {self._before:,} done before"
        if self._done > self._before or not self._before:
            said += f", {_rate(self._speed(now))} {self._unit}/s"
        self._say(said)

    def _speed(self, now: float) -> float:
        return (self._done - self._before) / max(now - self._started - self._finding, 1e-3)


class _Speed(ProgressColumn):
    """A Rich column that shows the speed in units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: BarTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_rate(speed)} {self._unit}/s" if speed else "")


def _rate(speed: float) -> str:
    """Formats a speed: whole numbers from ten on, two significant digits below, as one fold may take an hour."""
    if speed >= 10 or speed == 0:
        return f"{speed:,.0f}"
    import numpy as np

    return np.format_float_positional(speed, precision=2, fractional=False, trim="-")


def _texts(values: Sequence[Any], are_shares: bool) -> list[str]:
    """Returns the cells of a column as they are printed."""
    shown = _share if are_shares else _whole if _are_whole(values) else _cell
    return [shown(value) for value in values]


def _are_whole(values: Sequence[object]) -> bool:
    """Says whether these are floats without decimals, some of them beyond 1: scores of 0 and 1 keep their decimals."""
    known = [value for value in values if isinstance(value, float) and value == value]
    return any(abs(value) > 1 for value in known) and all(value.is_integer() for value in known)


def _share(value: float) -> str:
    return "–" if value != value else f"{value:.2%}" if 0 < value < 0.01 else f"{value:.1%}"


def _whole(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) and value == value else _cell(value)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:,.1f}" if abs(value) >= 100 else f"{value:z.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
