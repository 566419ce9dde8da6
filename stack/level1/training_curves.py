"""Reads training curves: loss and, where it was measured, validation AUC of each net of a level-1 run by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from image_models.net_files import HISTORY
from stack.store import Run, read_run


@dataclass(frozen=True)
class TrainingCurve:
    """What one net's training recorded: one row of ``epochs`` for each epoch, in order."""

    run: str
    fold: int
    seed: int  # the net's own: the model's seed plus the experiment's
    epochs: pd.DataFrame  # epoch (from 1), loss (mean over the training images) and auc, NaN where it was not measured

    @property
    def chosen(self) -> int | None:
        """The epoch whose weights were kept because of its AUC; None where the last epoch was kept without a choice."""
        auc = self.epochs["auc"]
        return (
            None if auc.isna().all() else int(self.epochs["epoch"].iloc[int(auc.argmax())])
        )  # of equal AUCs the first


def training_curves(run: Run) -> list[TrainingCurve]:
    """Returns the curves of the run's nets, by fold and seed; none for a run whose nets have no recorded epochs.

    Imported runs and frozen backbones have none. ``auc`` was measured only with `select: best`, on the inner rows on
    which the epoch was chosen. Raises StoreError for a history that has changed or is missing.
    """
    if run.meta.get("kind") != "image":
        return []
    found = [curve for folder in run.folder.glob("fold_*") for curve in _of_fold(run.name, folder)]
    return sorted(found, key=lambda curve: (curve.fold, curve.seed))


def curve_table(curves: Sequence[TrainingCurve]) -> pd.DataFrame:
    """Returns one row a net: run, fold, seed, epochs, first_loss, last_loss, chosen_epoch and the auc of that epoch."""
    rows = []
    for curve in curves:
        loss, chosen = curve.epochs["loss"], curve.chosen
        rows.append({
            "run": curve.run, "fold": curve.fold, "seed": curve.seed, "epochs": len(curve.epochs),
            "first_loss": float(loss.iloc[0]), "last_loss": float(loss.iloc[-1]),
            "chosen_epoch": chosen or int(curve.epochs["epoch"].iloc[-1]),
            "auc": float(curve.epochs["auc"].max()) if chosen else np.nan,
        })  # fmt: skip
    columns = ["run", "fold", "seed", "epochs", "first_loss", "last_loss", "chosen_epoch", "auc"]
    return pd.DataFrame(rows, columns=columns)


def _of_fold(name: str, folder: Path) -> Iterator[TrainingCurve]:
    fold = int(folder.name.removeprefix("fold_"))
    for seed_folder in folder.glob("seed_*"):
        net = read_run(seed_folder)
        if net is not None and HISTORY in net.meta["files"]:
            history = pd.read_csv(net.verified_path(HISTORY))
            yield from _curve(name, fold, int(seed_folder.name.removeprefix("seed_")), history)
    of_fold = read_run(folder)  # dermstack 0.1 kept one history for all seeds of a fold
    if of_fold is not None and HISTORY in of_fold.meta["files"]:
        history = pd.read_csv(of_fold.verified_path(HISTORY))
        for seed in history["seed"].unique().tolist() if "seed" in history else []:
            yield from _curve(name, fold, int(seed), history[history["seed"] == seed])


def _curve(run: str, fold: int, seed: int, history: pd.DataFrame) -> Iterator[TrainingCurve]:
    """Yields the curve of a history; nothing where it has no epochs."""
    if {"epoch", "loss"} <= set(history) and len(history):
        epochs = history.reindex(columns=["epoch", "loss", "auc"]).sort_values("epoch", ignore_index=True)
        yield TrainingCurve(run, fold, seed, epochs.astype({"epoch": "int64", "loss": "float64", "auc": "float64"}))
