"""Builds the leaderboard page: runs ranked on the rows that all cover, their intervals, the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dermstack.report.figures import Drawing, Estimate, interval_figure
from dermstack.report.report import TEMPLATE_FOLDER, page_templates
from dermstack.report.tables import HtmlTable, rows_of, table
from stack.leaderboard import Leaderboard, choice_note
from stack.metrics.own_metric import is_own_metric
from stack.metrics.scores import objective_label

MAX_DRAWN = 30  # runs in the figure; the table has all


def leaderboard_html(boards: Sequence[Leaderboard], *, created: str | None = None) -> str:
    """Returns one page with all leaderboards; it holds names of runs and settings, and no row of the data."""
    template = page_templates().get_template("leaderboard.html.j2")
    return template.render(
        boards=[_board(number, board) for number, board in enumerate(boards, 1)],
        runs=sum(len(board.table) for board in boards),
        created=created or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8")),
    )


def _board(number: int, board: Leaderboard) -> dict[str, Any]:
    shown = board.table.head(MAX_DRAWN)
    return {
        "number": number,
        "label": objective_label(board.objective),
        "rows": board.rows,
        "positives": board.positives,
        "groups": board.groups,
        "runs": len(board.table),
        "best": board.names[0],
        "choice": _sentence(choice_note(board)),
        "remarks": [_sentence(remark) for remark in board.remarks],
        "scores": _scores(board),
        "drawn": len(shown),
        "scores_figure": _figure(f"scores{number}", board, shown, ["low", "high"], board.column),
        "differences_figure": _figure(
            f"differences{number}", board, shown.iloc[1:], ["difference_low", "difference_high"], "difference"
        ),
        "settings": _settings(board.settings),
    }


def _scores(board: Leaderboard) -> HtmlTable:
    frame, is_ranking = board.table, len(board.table) > 1
    differences = ["difference", "difference_low", "difference_high", "verdict"] if is_ranking else []
    shown = frame[["run", board.column, "low", "high", *differences, "rows"]].copy()
    if (frame["rows"] != board.rows).any():
        shown["all_rows"] = frame["all_rows"]
    shown["estimate"] = frame["estimate"] + frame["note"].map(lambda note: f", {note}" if note else "")
    if "other_sources" in frame:
        shown["other_sources"] = frame["other_sources"]
    intervals = {board.column: ("low", "high")}
    if is_ranking:
        shown.loc[0, differences[:3]] = np.nan  # the best from itself
        intervals["difference"] = ("difference_low", "difference_high")
    return table(
        shown,
        intervals=intervals,
        tags={board.names[0]: "best"} if is_ranking else {},
        heads={
            **({board.column: board.column} if is_own_metric(board.objective) else {}),
            "difference": "difference from the best",
            "other_sources": "AUC within a typical source, sources held out",
            "difference_low": "paired interval",
            "all_rows": f"{objective_label(board.objective)} on all its rows",
        },
        formats={"difference": "+.4f"},
    )


def _settings(settings: pd.DataFrame) -> HtmlTable | None:
    """Returns the settings with a row for each key, or for each run where there are fewer keys than runs."""
    if not len(settings):
        return None
    frame = settings if settings.shape[1] <= settings.shape[0] else settings.T.rename_axis("run")
    return table(frame.reset_index(), heads={str(name): str(name) for name in frame})


def _figure(name: str, board: Leaderboard, rows: pd.DataFrame, bounds: list[str], column: str) -> Drawing | None:
    if not len(rows):
        return None
    if column == "difference":
        estimates = [Estimate(*row) for row in rows_of(rows, "run", column, *bounds)]
        return interval_figure(name, estimates, axis="difference from the best", reference=0.0)
    estimates = [
        Estimate(*row)._replace(strong=row[0] == board.names[0]) for row in rows_of(rows, "run", column, *bounds)
    ]
    return interval_figure(name, estimates, axis=objective_label(board.objective))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
