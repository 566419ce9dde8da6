"""Report section on gaps between subgroups: which differ, how large others can be, and where there are too few rows."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from dermstack.report.report import TEMPLATE_FOLDER, Section, render_template
from dermstack.report.tables import HtmlTable, number, table
from stack.metrics.gaps import AUC, BOUNDED, DIFFERS, MARGINS, RATIO, SENSITIVITY, SPECIFICITY, TOO_FEW, Gaps


def gaps_section(found: Gaps, *, thresholds: str, source: str, unit: str = "image") -> Section | None:
    """Returns the section for these gaps; None without subgroups.

    ``thresholds`` says where the thresholds were chosen ("were chosen in training"), ``source`` names the file that has
    the same numbers, and ``unit`` what has a score.
    """
    if not len(found.table):
        return None
    lines = found.table.to_dict("records")
    worse, better = _differing(lines)
    measures = found.table[["measure", "aim", "threshold"]].drop_duplicates().to_dict("records")
    markup = render_template(
        "gaps.html.j2",
        sentences=[_sentence(line, unit) for line in worse],
        better=[_sentence(line, unit) for line in better],
        counts={verdict: sum(line["verdict"] == verdict for line in lines) for verdict in (DIFFERS, BOUNDED, TOO_FEW)},
        found=found,
        overview=(overview := _overview(found.table)),
        tables=[(_name(of), _caption(of, unit), _table(_lines_of(found.table, of), unit)) for of in measures],
        margins={kind: margin_text(kind) for kind in MARGINS},
        thresholds=thresholds,
        source=source,
        unit=unit,
    )
    style = (TEMPLATE_FOLDER / "gaps.css").read_text(encoding="utf-8")
    return Section(markup, style, tables={"gaps-overview": overview.frame, "gaps": found.table})


def verdict_text(line: dict[Any, Any]) -> str:
    """Returns the verdict on one gap in words."""
    if line["verdict"] != BOUNDED:
        return str(line["verdict"])
    if line["measure"] == RATIO:
        return f"no gap beyond a factor of {_rounded_up(max(line['high'], 1 / line['low']), 2):.2f} is compatible"
    return f"no gap larger than {_largest(line)} is compatible"


def margin_text(kind: str) -> str:
    """Returns the size of a gap that a subgroup must be large enough to show, in words."""
    return f"a factor of {MARGINS[kind]:g}" if kind == RATIO else f"{MARGINS[kind]:.2f}"


_SHARES = (SENSITIVITY, SPECIFICITY)  # their gaps are in percentage points
_ORDER = (SENSITIVITY, RATIO, AUC, SPECIFICITY)  # missed positives first


def _differing(lines: list[dict[Any, Any]]) -> tuple[list[dict[Any, Any]], list[dict[Any, Any]]]:
    """Returns the gaps that differ: those where the subgroup has the lower value, and those where it has the higher.

    Expected / observed is wrong in both directions, so that both are among the first. Of a column with two subgroups,
    whose gaps say the same, only the lower value is named.
    """
    columns = pd.Series([line["by"] for line in lines])
    halves = {by for by in columns if len({line["subgroup"] for line in lines if line["by"] == by}) == 2}
    differing = [
        (line["gap"] < (1 if line["measure"] == RATIO else 0), line) for line in lines if line["verdict"] == DIFFERS
    ]
    differing.sort(key=lambda one: _ORDER.index(one[1]["measure"]))  # stable
    shown = [(is_lower, line) for is_lower, line in differing if is_lower or line["by"] not in halves]
    worse = [line for is_lower, line in shown if is_lower or line["measure"] == RATIO]
    return worse, [line for is_lower, line in shown if not is_lower and line["measure"] != RATIO]


def _sentence(line: dict[Any, Any], unit: str) -> str:
    who = f"{line['by']} {line['subgroup']}: "
    low, high = sorted(abs(line[bound]) for bound in ("low", "high"))
    if line["measure"] == RATIO:
        gap, low, high = ((1 / of if line["gap"] < 1 else of) for of in (line["gap"], line["low"], line["high"]))
        low, high = sorted((low, high))
        word = "lower" if line["gap"] < 1 else "higher"
        meaning = "risks are too low" if line["gap"] < 1 else "risks are too high"
        return (
            f"{who}the risks predict {line['value']:.2f} positives for each that is found, against {line['rest']:.2f} "
            f"in all other {unit}s: {word} by a factor of {gap:.2f} ({low:.2f} to {high:.2f}). Compared with these, "
            f"its {meaning}"
        )
    word = "lower" if line["gap"] < 0 else "higher"
    if line["measure"] == AUC:
        of, form = "AUC", ".3f"
        words = f"{abs(line['gap']):.3f} {word} ({low:.3f} to {high:.3f})"
    else:
        of, form = str(line["measure"]), ".1%"
        words = f"{100 * abs(line['gap']):.1f} percentage points {word} ({100 * low:.1f} to {100 * high:.1f})"
    at = f", at the threshold that gives {line['aim']} over all {unit}s" if line["aim"] else ""
    meaning = {
        (SENSITIVITY, "lower"): ". More of its positives are missed",
        (SENSITIVITY, "higher"): ". Fewer of its positives are missed",
        (SPECIFICITY, "lower"): ". More of its negatives are false alarms",
        (SPECIFICITY, "higher"): ". Fewer of its negatives are false alarms",
    }.get((str(line["measure"]), word), "")
    values = (number(float(line[name]), form) for name in ("value", "rest"))
    return f"{who}{of} {' against '.join(values)} in all other {unit}s, {words}{at}{meaning}"


def _overview(gaps: pd.DataFrame) -> HtmlTable:
    """Makes one line for each subgroup, with the verdicts on its measures in few words."""
    named = gaps["by"] + ": " + gaps["subgroup"]
    columns = {}
    for of in gaps[["measure", "aim", "threshold"]].drop_duplicates().to_dict("records"):
        lines = _lines_of(gaps, of)
        columns[_name(of)] = [_short(line) for line in lines.to_dict("records")]
    return table(pd.DataFrame({"subgroup": list(dict.fromkeys(named)), **columns}))


def _short(line: dict[Any, Any]) -> str:
    if line["verdict"] == TOO_FEW:
        return TOO_FEW
    is_ratio = line["measure"] == RATIO
    gap = f"× {line['gap']:.2f}" if is_ratio else f"{line['gap']:+.3f}".replace("-", "−")
    if line["measure"] in _SHARES:
        gap = f"{100 * line['gap']:+.1f} points".replace("-", "−")
    if line["verdict"] == DIFFERS:
        return f"differs: {gap}"
    if is_ratio:
        return f"within × {_rounded_up(max(line['high'], 1 / line['low']), 2):.2f}"
    return f"within ±{_largest(line)}"


def _largest(line: dict[Any, Any]) -> str:
    """Returns the largest gap in the interval: of shares in percentage points."""
    largest = _rounded_up(max(abs(line["low"]), abs(line["high"])), 3)
    return f"{100 * largest:.1f} points" if line["measure"] in _SHARES else f"{largest:.3f}"


def _table(lines: pd.DataFrame, unit: str) -> HtmlTable:
    kind = str(lines["measure"].iloc[0])
    named = lines["by"] + ": " + lines["subgroup"]
    frame = pd.DataFrame({
        "subgroup": named, "rows": lines["rows"], "groups": lines["groups"],
        "value": lines["value"], "rest": lines["rest"], "gap": lines["gap"], "low": lines["low"], "high": lines["high"],
        "seen": lines["seen"] if kind == RATIO else -lines["seen"],
        "verdict": [verdict_text(line) for line in lines.to_dict("records")],
    })  # fmt: skip
    counted = "negatives" if kind == SPECIFICITY else "positives"
    form, sign, points = (".2f", ".2f", "") if kind == RATIO else (".3f", "+.3f", "")
    if kind in _SHARES:
        frame[["gap", "low", "high", "seen"]] *= 100
        form, sign, points = ".1%", "+.1f", " in percentage points"
    return table(
        frame,
        intervals={"gap": ("low", "high")},
        tags=dict.fromkeys(named[lines["verdict"] == DIFFERS], DIFFERS),
        heads={
            "rows": counted, "groups": f"groups with {counted}", "value": kind, "rest": f"all other {unit}s",
            "gap": "ratio" if kind == RATIO else f"gap{points}", "low": "simultaneous interval",
            "seen": "smallest ratio seen" if kind == RATIO else f"smallest gap seen{points}",
        },
        formats={"value": form, "rest": form, "gap": sign, "seen": sign},
    )  # fmt: skip


def _name(of: dict[Any, Any]) -> str:
    return f"{of['measure']} at the threshold for {of['aim']}" if of["aim"] else str(of["measure"])


def _caption(of: dict[Any, Any], unit: str) -> str:
    if of["measure"] == RATIO:
        return "Sum of the calibrated p divided by the number of positives. 1 is right; below 1 the risks are too low"
    if of["measure"] == AUC:
        return f"AUC among the {unit}s of the subgroup and among all other {unit}s"
    positives = "positive" if of["measure"] == SENSITIVITY else "negative"
    of_them = f"Share of the {positives} {unit}s that are called {positives}"
    return (
        f"{of_them}, at one threshold for all subgroups: p_calibrated from {number(float(of['threshold']), '.3g')} on"
    )


def _lines_of(gaps: pd.DataFrame, of: dict[Any, Any]) -> pd.DataFrame:
    lines: pd.DataFrame = gaps[(gaps["measure"] == of["measure"]) & (gaps["aim"] == of["aim"])]
    return lines


def _rounded_up(value: float, digits: int) -> float:
    """Rounds up, so that no gap of the interval is larger than what the page says."""
    scale = 10.0**digits
    return math.ceil(round(value * scale, 6)) / scale
