"""The answer to one question of a checklist, where its evidence stands, and the words that answers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dermstack.report.pack.run_evidence import Evidence, Model
from dermstack.report.report import count
from dermstack.report.tables import number as formatted
from stack.metrics.intervals import Interval
from stack.settings.image_models import ImageModel


@dataclass(frozen=True)
class Answer:
    """What a run says to a question, the sections and tables of the report (their ids) that show it, what is open."""

    text: str
    places: tuple[str, ...] = ()
    author: tuple[str, ...] = ()  # what the run cannot know of it


class Fact(NamedTuple):
    """A kind of evidence: a function that returns its answer, or None where the run has none, and what then lacks.

    A function that always has an answer needs no ``lacking``.
    """

    answer: Callable[[Evidence], Answer | None]
    lacking: str = ""  # what is left to the author then, and why


def share(value: float) -> str:
    """Formats a share in percent, small ones with two digits."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"


def number(value: float, digits: int = 3) -> str:
    """Formats a number as the page does, with its minus sign; missing ones are a dash."""
    return formatted(float(value), f".{digits}f")


def with_interval(of: Interval, digits: int = 3) -> str:
    """Formats a value with its 95 % interval."""
    bounds = f"{number(of.low, digits)} to {number(of.high, digits)}"
    return f"{number(of.value, digits)} (95 % interval {bounds})"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Joins words: a, b and c."""
    words = list(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def plural(number: int, word: str) -> str:
    """Returns a count with its noun: 1 fold, 2 folds."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def of_kind(evidence: Evidence, *kinds: str) -> list[Model]:
    """Returns the runs of level 1 of these kinds."""
    return [run for run in evidence.runs if run.level == 1 and run.kind in kinds]


def nets_with_settings(evidence: Evidence) -> list[tuple[Model, ImageModel]]:
    """Returns the image runs of the blend with their settings; a run without an entry in the config is left out."""
    settings = {model.name: model for model in evidence.config.image_models}
    return [(run, settings[run.name]) for run in of_kind(evidence, "image", "frozen") if run.name in settings]


def stackers(evidence: Evidence) -> list[Model]:
    """Returns the runs of level 2."""
    return [run for run in evidence.runs if run.level == 2]


def chosen_inside(evidence: Evidence) -> list[Model]:
    """Returns the runs of level 2 that choose rounds, epochs or ridge strength on an inner part of their rows."""
    return [run for run in stackers(evidence) if run.kind != "sklearn"]


def names(runs: Sequence[Model]) -> str:
    """Lists the names of runs."""
    return listed([run.name for run in runs])


def unknown(evidence: Evidence, what: str) -> tuple[str, ...]:
    """Returns what is left to the author because runs were imported: ``what``, said of their names."""
    imported = of_kind(evidence, "imported")
    return (f"{what} (imported: {names(imported)})",) if imported else ()


def scored(evidence: Evidence) -> tuple[int, int]:
    """Returns the number of rows that are scored, and of the positives among them."""
    y = evidence.data.y
    return len(y), int(y.sum())


def group_words(evidence: Evidence) -> str:
    """Returns what a group is called: the column that names it, or that there is none."""
    column = evidence.config.data.columns.group
    return f"groups (`{column}`)" if evidence.groups_known and column else "groups"
