"""Plain lines where there is no terminal, silence with --quiet, names printed as they are."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from image_models.settings import DoneBefore
from stack.console import PLAIN_INTERVAL_S, Out, _rate

ODD = ["[red]x[/red]", "[/]", "[bold]", "a [link=x]b", ":warning: :x:", "c:\\temp\\", "100 %", "{task.total}", "[1, 2]"]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests are run in."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, told by hand."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def speak(out: Out, text: str = "text") -> None:
    """Everything that an Out can say, with ``text`` wherever text goes."""
    out.say(text)
    out.warn(text)
    out.table(pd.DataFrame({text: [text]}), text)
    for bar in (out.bar, out.plain_bar):
        with bar(text, 3, "folds") as progress:
            progress(3)


def test_a_file_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    speak(Out())
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out, "no colour, no cursor movements"
    assert "\r" not in shown.out
    assert shown.out.splitlines()[:2] == ["text", "warning: text"]
    assert shown.out.count("text: 3 folds in 0 s") == 2
    assert shown.err == ""


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    speak(Out(quiet=True))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_printed_as_they_are(
    text: str, terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
    speak(Out(), text)
    shown = capsys.readouterr().out
    assert ("\x1b" in shown) == terminal
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    lines = [line.strip() for line in plain.splitlines()]
    assert lines.count(text) >= 2, "what was said, and the title"
    assert f"warning: {text}" in lines
    assert plain.count(text) >= 7, "and the header, the cell, both bars"


def test_a_long_line_is_not_broken_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(["a long folder name"] * 30)
    Out().say(f"report: {path}")
    assert capsys.readouterr().out == f"report: {path}\n"


def test_a_table_shows_numbers_as_one_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({
        "rows": [33126, 7],
        "auc": [0.91234567, np.nan],
        "p": np.array([0.5, np.nan], np.float32),
        "on": [True, False],
        "run": ["a", "b"],
    })  # fmt: skip
    Out().table(frame, "Runs")
    lines = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert ["rows", "auc", "p", "on", "run"] in lines
    assert ["33,126", "0.9123", "0.5000", "True", "a"] in lines
    assert ["7", "–", "–", "False", "b"] in lines


def test_a_wide_table_loses_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 64
    Out().table(pd.DataFrame({"run": [name], "kind": ["k" * 30], "note": ["foreign folds, 435 rows excluded"]}), "Runs")
    shown = capsys.readouterr().out
    assert name in shown
    assert "435 rows excluded" in shown


def test_progress_is_a_line_now_and_then_and_one_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Out().bar("net", 1000) as progress:
        for _ in range(100):
            clock[0] += 1
            progress(10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == int(100 // PLAIN_INTERVAL_S) + 1
    assert lines[0] == "net: 150/1,000 images, 10 images/s, 85 s left"
    assert lines[-1] == "net: 1,000 images in 100 s, 10 images/s"


def test_progress_over_one_unit_is_said_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    with Out().bar("bootstrap", 1, unit="runs") as progress:
        progress(1)
    assert capsys.readouterr().out.startswith("bootstrap: 1 run in 0 s, ")


@pytest.mark.parametrize("found_at_once", [True, False])
def test_units_done_before_count_as_done_but_not_in_speed_and_time_left(
    found_at_once: bool, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another 1,000 units are left, of which 10 are done in a second, after 30 seconds of finding what is there."""
    with Out().bar("net", 51_000) as progress:
        for _ in range(1 if found_at_once else 10):
            clock[0] += 30 if found_at_once else 3
            progress(DoneBefore(50_000 if found_at_once else 5_000))
        for _ in range(100):
            clock[0] += 1
            progress(10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"net: {50_000 if found_at_once else 25_000:,}/51,000 images", "no speed without work"
    speeds = [line for line in lines if "left" in line]
    assert speeds
    for line in speeds:
        done = int(line.split()[1].split("/")[0].replace(",", ""))
        assert line == f"net: {done:,}/51,000 images, 10 images/s, {(51_000 - done) / 10:,.0f} s left"
    assert lines[-1] == "net: 51,000 images in 130 s, 50,000 done before, 10 images/s"


def test_what_was_complete_before_has_no_speed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Out().bar("cache", 7) as progress:
        clock[0] = 2
        progress(DoneBefore(7))
    assert capsys.readouterr().out == "cache: 7 images in 2 s, 7 done before\n"


def test_a_terminal_s_bar_has_the_speed_of_new_units(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = [0.0], io.StringIO()
    monkeypatch.setattr(
        "stack.console.Console",
        lambda **options: Console(
            **options, file=shown, force_terminal=True, get_time=lambda: now[0], color_system=None
        ),
    )
    with Out().bar("net", 51_000) as progress:
        for units in (10, 10, DoneBefore(50_000), *[10] * 20):
            now[0] += 1
            progress(units)
    assert "50220/51000" in shown.getvalue()
    assert re.findall(r"([\d.,]+) images/s", shown.getvalue())[-1] == "9.5", "210 units in 22 s"


def test_slow_work_has_a_speed_too(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Out().bar("level 2", 5, "folds") as progress:
        clock[0] = 4000
        progress(5)
    assert capsys.readouterr().out.splitlines()[-1] == "level 2: 5 folds in 4,000 s, 0.0013 folds/s"


def test_a_bar_whose_work_failed_does_not_say_that_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with Out().bar("net", 3) as progress:
            progress(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert capsys.readouterr().out == ""


@given(st.floats(1e-7, 1e7))
def test_a_shown_speed_is_near_the_true_one(speed: float) -> None:
    shown = _rate(speed)
    assert abs(float(shown.replace(",", "")) / speed - 1) < 0.051
    assert "e" not in shown


@pytest.mark.parametrize("width", [40, 100])
def test_a_table_loses_no_digit_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    frame = pd.DataFrame(
        {"run": ["mobilenet", "lightgbm"], "interval": ["0.9108 – 0.9310"] * 2, "seconds": [2656.7, 5.0]}
    )
    Out().table(frame, "what it is")
    said = capsys.readouterr().out
    for part in ("what it is", "mobilenet", "lightgbm", "0.9108 – 0.9310", "interval", "2,656.7", "5.0000"):
        assert part in said
    assert "…" not in said
    assert said.count("interval") == (1 if width == 100 else 2)
