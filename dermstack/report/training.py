"""Shows how the models were trained: curves of every network by epoch, and the rounds that each GBDT stopped at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dermstack.report.figures import (
    ACCENT,
    MUTED,
    WIDTH,
    Drawing,
    Swatch,
    blank_figure,
    drawing,
    line_grid,
    page_style,
)
from dermstack.report.report_data import Training
from dermstack.report.tables import HtmlTable, table
from dermstack.report.ticks import round_ticks
from stack.level1.training_curves import TrainingCurve, curve_table, training_curves
from stack.store import Run
from tabular.gbdt_libraries import DEFAULTS, gbdt_settings

MAX_RUNS = 4  # with more runs, the figures of the others are folded away
_REASONS = {
    "frozen": "with a frozen backbone only a logistic head is fitted, which has no epochs",
    "imported": "the training of imported runs is not known here",
    "image": "none were kept when the networks were trained",
}


def training_of(runs: Sequence[Run], tuned: Mapping[str, object]) -> Training | None:
    """Collects what is known of the training of these runs; None where no run was trained here.

    ``tuned`` names the GBDTs whose parameters come from a study; their limit of rounds is not shown.
    """
    level1 = [run for run in runs if run.meta["level"] == 1]
    curves = {run.name: training_curves(run) for run in level1}
    rounds = _rounds([run for run in runs if run.meta["kind"] in DEFAULTS], tuned)
    if rounds is None and not any(run.meta["kind"] == "image" for run in level1):
        return None
    without = {run.name: _REASONS[run.meta["kind"]] for run in level1 if not curves[run.name]}
    return Training([curve for found in curves.values() for curve in found], without, rounds)


def training_figures(training: Training) -> list[tuple[str, bool, Drawing]]:
    """Draws each run with more than one epoch: its name, whether a validation AUC is shown, and the drawing."""
    drawn = []
    for number, (run, curves) in enumerate(_by_run(training.curves).items()):
        if max(len(curve.epochs) for curve in curves) > 1:
            has_auc = any(curve.chosen for curve in curves)
            drawn.append((run, has_auc, training_figure(f"training{number}", curves)))
    return drawn


def training_figure(name: str, curves: Sequence[TrainingCurve]) -> Drawing:
    """Draws the loss of one run's nets by epoch and, below it where it was measured, their validation AUC.

    A thin line is one net, the bold line the mean of all; a dot marks the epoch that was chosen by its AUC.
    """
    panels = ["loss", *(["auc"] if any(curve.chosen for curve in curves) else [])]
    with page_style():
        figure = blank_figure(height=(0.65 if len(panels) == 1 else 1.15) * WIDTH)
        columns = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, column in zip(columns, panels, strict=True):
            _draw_panel(axes, curves, column)
        round_ticks(columns[-1].xaxis, integer=True)
        columns[-1].set_xlabel("epoch")
        columns[0].set_ylabel("training loss")
        if len(panels) > 1:
            columns[1].set_ylabel("validation AUC")
        lines = "; ".join(map(_alt_text, curves))
        legend = [("one net (fold and seed)", Swatch(MUTED, width=0.9))]
        if len(curves) > 1:
            legend.append(("mean of the nets", Swatch(ACCENT, width=2.4)))
        what = "Training loss and validation AUC" if len(panels) > 1 else "Training loss"
        return drawing(figure, name, f"{what} by epoch. {lines}.", legend)


def missing_curves(training: Training) -> list[tuple[list[str], str]]:
    """Returns the runs of level 1 without curves, together where the reason is the same."""
    found: dict[str, list[str]] = {}
    for run, reason in training.without.items():
        found.setdefault(reason, []).append(run)
    return [(runs, reason) for reason, runs in found.items()]


def training_tables(training: Training) -> dict[str, HtmlTable]:
    """Makes the tables: `training`, one row a net, and `rounds`, one row a GBDT."""
    made = {}
    if training.curves:
        nets = curve_table(training.curves)
        if nets["auc"].isna().all():
            nets = nets.drop(columns="auc")
        heads = {
            "first_loss": "loss, first epoch",
            "last_loss": "loss, last epoch",
            "chosen_epoch": "epoch kept",
            "auc": "its validation AUC",
        }
        made["training"] = table(nets, heads=heads)
    if training.rounds is not None:
        made["rounds"] = _rounds_table(training.rounds)
    return made


def at_the_limit(training: Training) -> list[str]:
    """Returns the GBDTs of which a model used all rounds that it was allowed, so that nothing stopped it early."""
    if (rounds := training.rounds) is None:
        return []
    return list(dict.fromkeys(rounds.loc[rounds["rounds"] >= rounds["limit"], "stacker"]))


def _draw_panel(axes: Axes, curves: Sequence[TrainingCurve], column: str) -> None:
    for curve in curves:
        at, values = curve.epochs["epoch"], curve.epochs[column]
        axes.plot(at, values, color=MUTED, linewidth=0.9, alpha=0.8, marker="o" if len(at) == 1 else None)
        if column == "auc" and curve.chosen is not None:
            best = curve.epochs[at == curve.chosen]
            axes.plot(best["epoch"], best["auc"], "o", markersize=4.5, color=MUTED, markeredgewidth=0)
    if len(curves) > 1:
        mean = pd.concat([curve.epochs for curve in curves]).groupby("epoch")[column].mean()
        axes.plot(mean.index, mean, color=ACCENT, linewidth=2.4)
    line_grid(axes)


def _alt_text(curve: TrainingCurve) -> str:
    loss = curve.epochs["loss"]
    text = f"fold {curve.fold}, seed {curve.seed}: loss {loss.iloc[0]:.3f} to {loss.iloc[-1]:.3f}"
    return text + (f", AUC {curve.epochs['auc'].max():.3f} in epoch {curve.chosen}" if curve.chosen else "")


def _by_run(curves: Sequence[TrainingCurve]) -> dict[str, list[TrainingCurve]]:
    found: dict[str, list[TrainingCurve]] = {}
    for curve in curves:
        found.setdefault(curve.run, []).append(curve)
    return found


def _rounds(runs: Sequence[Run], tuned: Mapping[str, object]) -> pd.DataFrame | None:
    """Returns one row for each model of a GBDT: stacker, fold, rounds, and the limit (NaN where a study sets it)."""
    rows = []
    for run in runs:
        limit = np.nan
        if run.name not in tuned:
            limit = float(gbdt_settings(run.meta["kind"], run.meta["settings"]["params"])["rounds"])
        rows += [
            (run.name, fold, int(rounds), limit) for fold, chosen in enumerate(run.meta["chosen"]) for rounds in chosen
        ]
    return pd.DataFrame(rows, columns=["stacker", "fold", "rounds", "limit"]) if rows else None


def _rounds_table(rounds: pd.DataFrame) -> HtmlTable:
    """Formats the rounds as one row a stacker, the models of a bag beside each other."""
    texts = rounds.assign(text=[f"{number:,}" for number in rounds["rounds"]])
    cells = texts.groupby(["stacker", "fold"], sort=False)["text"].agg(", ".join).unstack().add_prefix("fold ")
    limits = rounds.groupby("stacker", sort=False)["limit"].first().reindex(cells.index)
    cells.insert(0, "at most", [f"{limit:,.0f}" if np.isfinite(limit) else "tuned" for limit in limits])
    return table(cells.reset_index())._replace(frame=rounds)
