"""Training curves are read from what the runs keep, in every layout, and checked against their hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import StoreError
from stack.level1.training_curves import curve_table, training_curves
from stack.store import Run, read_run, write_run


def write_history(folder: Path, history: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    history.to_csv(folder / "history.csv", index=False)
    return folder / "history.csv"


def history(losses: list[float], aucs: list[float] | None = None) -> pd.DataFrame:
    frame = pd.DataFrame({"epoch": range(1, len(losses) + 1), "loss": losses, "lr": 0.1, "images_per_s": 5.0})
    return frame if aucs is None else frame.assign(auc=aucs)


def finished(folder: Path, kind: str = "image") -> Run:
    for fold in folder.glob("fold_*"):
        if read_run(fold) is None:
            write_run(fold, {"kind": kind}, frames={})
    return write_run(folder, {"kind": kind, "level": 1}, frames={})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two folds of two seeds; the nets of seed 10 chose their epoch."""
    folder = tmp_path / "net"
    for fold in (0, 1):
        for seed, aucs in ((3, None), (10, [0.7, 0.9, 0.9])):
            net = folder / f"fold_{fold}" / f"seed_{seed}"
            losses = [0.6 - 0.1 * fold, 0.5, 0.4 + 0.01 * seed]
            write_run(net, {"kind": "net"}, frames={}, existing_files=[write_history(net, history(losses, aucs))])
    return finished(folder)


def test_every_net_has_its_curve_by_fold_and_seed(run: Run) -> None:
    curves = training_curves(run)
    assert [(curve.run, curve.fold, curve.seed) for curve in curves] == [
        ("net", 0, 3), ("net", 0, 10), ("net", 1, 3), ("net", 1, 10),
    ]  # fmt: skip
    assert curves[2].epochs["loss"].tolist() == pytest.approx([0.5, 0.5, 0.43])
    assert curves[2].epochs["auc"].isna().all()
    assert curves[3].epochs["auc"].tolist() == [0.7, 0.9, 0.9]


def test_the_epoch_that_was_kept_is_the_first_of_the_best(run: Run) -> None:
    """As `image_models.train` keeps it: a later epoch must be better."""
    assert [curve.chosen for curve in training_curves(run)] == [None, 2, None, 2]
    table = curve_table(training_curves(run))
    assert table["chosen_epoch"].tolist() == [3, 2, 3, 2]
    assert table["auc"].tolist() == pytest.approx([np.nan, 0.9, np.nan, 0.9], nan_ok=True)
    assert table["last_loss"].tolist() == pytest.approx([0.43, 0.5, 0.43, 0.5])


def test_runs_of_0_1_kept_the_curves_of_all_seeds_in_one_file(tmp_path: Path) -> None:
    fold = tmp_path / "net" / "fold_0"
    both = pd.concat([history([0.5, 0.4]).assign(seed=7), history([0.6, 0.3]).assign(seed=2)])
    write_run(fold, {"kind": "image"}, frames={}, existing_files=[write_history(fold, both)])
    curves = training_curves(finished(tmp_path / "net"))
    assert [(curve.fold, curve.seed) for curve in curves] == [(0, 2), (0, 7)]
    assert curves[0].epochs["loss"].tolist() == [0.6, 0.3]


@pytest.mark.parametrize("kind", ["imported", "frozen"])
def test_a_run_without_epochs_has_none(tmp_path: Path, kind: str) -> None:
    fold = tmp_path / "net" / "fold_0"
    strength = write_history(fold, pd.DataFrame({"strength": [0.1]}))
    write_run(fold, {"kind": kind}, frames={}, existing_files=[strength])
    assert training_curves(finished(tmp_path / "net", kind)) == []


def test_an_image_run_without_histories_has_none(tmp_path: Path) -> None:
    (tmp_path / "net" / "fold_0" / "seed_0").mkdir(parents=True)
    write_run(tmp_path / "net" / "fold_0" / "seed_0", {"kind": "net"}, frames={})
    assert training_curves(finished(tmp_path / "net")) == []
    assert curve_table([]).empty


def test_a_history_that_changed_is_named(run: Run) -> None:
    path = run.folder / "fold_1" / "seed_3" / "history.csv"
    path.write_text(path.read_text().replace("0.43", "0.03"), encoding="utf-8")
    with pytest.raises(StoreError, match=r"seed_3/history\.csv is damaged"):
        training_curves(run)
