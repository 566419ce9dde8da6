"""Generates data sets and plants leaks into them, for `benchmarks/leaks.py`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from pseudo_labels import FEATURES, INFORMATIVE, DataSet, first_round, second_rounds
from scipy.special import expit

from dermstack.cli.demo_data import write_demo_data
from image_models.frozen_head import fit_head
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.imported.prediction_files import ImportedColumns, Part
from stack.imported.run import ImportOptions, Source, import_source
from stack.level2.features import early_stopping_rows
from stack.settings.config import read_config
from stack.store import Run, prediction_frame, write_run

QUIET = Out(quiet=True)
COLUMNS = {
    "id": "image_name", "group": "patient_id", "target": "target", "age": "age_approx", "sex": "sex",
    "site": "anatom_site_general_challenge", "diagnosis": "diagnosis",
}  # fmt: skip


@dataclass
class LeakDataSet:
    """A generated data set on disk, its config, and the leaks that change code instead of files."""

    folder: Path
    settings: dict[str, Any]
    rng: np.random.Generator
    folds_by_row_in_code: bool = False  # folds are assigned by row, which no config can request
    flipped: tuple[str, ...] = ()  # ids whose target was flipped
    leaking_feature: bool = False  # level 2 has a feature made of the group's targets, unlike all real ones

    def read(self, part: str) -> pd.DataFrame:
        """Reads train or test, every cell as text."""
        return pd.read_csv(self.folder / f"{part}.csv", dtype=str, keep_default_na=False)

    def write(self, part: str, frame: pd.DataFrame) -> None:
        """Replaces the file that `read` reads."""
        frame.to_csv(self.folder / f"{part}.csv", index=False)

    def change(self, part: str, **columns: Any) -> None:
        """Adds or replaces columns of train or test."""
        self.write(part, self.read(part).assign(**columns))

    def own_pictures(self) -> Path:
        """Copies the images, so that they can be changed, and returns their folder."""
        shutil.copytree(self.settings["data"]["images"], self.folder / "pictures")
        self.settings["data"]["images"] = str(self.folder / "pictures")
        return self.folder / "pictures"

    def open(self) -> Experiment:
        """Opens the experiment; raises the errors that `dermstack` would raise."""
        path = self.folder / "world.yaml"
        path.write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        experiment = open_experiment(read_config(path), path, QUIET)
        if not self.folds_by_row_in_code:
            return experiment
        frame = experiment.folds.frame
        fold = self.rng.permutation(np.arange(len(frame)) % experiment.folds.k).astype(np.int8)
        return replace(experiment, folds=replace(experiment.folds, frame=frame.assign(fold=fold)))

    def frozen(self, experiment: Experiment, *, tells: float = 1.5, own: float = 1.0) -> Run:
        """Writes a frozen run with features made of true target, group and noise, and with out-of-fold logits."""
        y, test = experiment.target, experiment.table.test
        true = np.where(experiment.table.train["id"].isin(self.flipped), 1 - y, y)
        group = pd.factorize(experiment.table.train["group"])[0]
        of_group = own * self.rng.normal(size=(group.max() + 1, 63))[group]
        noise = self.rng.normal(size=(len(y), 64)) * np.array([1.0] + [0.1] * 63)
        z = np.column_stack([tells * true, of_group]) + noise
        logit = np.empty(len(y), np.float32)
        for _, train, held in experiment.folds.pairs():
            logit[held] = fit_head(z[train], y[train], early_stopping_rows(experiment, train)).logit(z[held])
        k, nothing = experiment.folds.k, np.zeros(len(test))
        frames = {
            "oof": prediction_frame(experiment.table.train["id"], experiment.folds.frame["fold"].to_numpy(), logit),
            "test": pd.concat([prediction_frame(test["id"], net, nothing) for net in range(k)]),
        }
        meta = {"fingerprint": "", "level": 1, "kind": "frozen", "inputs": {}}
        arrays = {"oof_z": z, "test_z": np.zeros((len(test), 64))}
        return write_run(experiment.models / "frozen", meta, frames=frames, arrays=arrays)


def make_data_set(base: Path, *, seed: int) -> LeakDataSet:
    data = base / f"data{seed}"
    write_demo_data(data, n_train=600, n_test=200, size=32, seed=seed)
    folder = Path(tempfile.mkdtemp(dir=base))
    for part in ("train", "test"):
        shutil.copy(data / f"{part}.csv", folder)
    settings = {
        "experiment": "world", "runs": "runs", "cache": str(data / "cache"), "threads": 1, "folds": {"k": 3},
        "data": {"name": f"world{seed}", "train": "train.csv", "test": "test.csv", "images": str(data / "images"),
                 "columns": dict(COLUMNS)},
        "features": {"frozen_z": 4},
    }  # fmt: skip
    return LeakDataSet(folder, settings, np.random.default_rng(seed))


def nothing(world: LeakDataSet) -> None:
    """Leaves the data set as it was generated."""


def folds_by_row(world: LeakDataSet) -> None:
    rows = world.read("train")
    _own_folds(world, rows, world.rng.permutation(np.arange(len(rows)) % 3))


def folds_by_group(world: LeakDataSet) -> None:
    rows = world.read("train")
    _own_folds(world, rows, pd.factorize(rows["patient_id"])[0] % 3)


def _own_folds(world: LeakDataSet, rows: pd.DataFrame, fold: np.ndarray) -> None:
    world.write("train", rows.assign(fold=fold))
    world.settings["data"]["columns"]["fold"] = "fold"


def unknown_patients(world: LeakDataSet) -> None:
    rows = world.read("train")
    unknown = world.rng.random(len(rows)) < 0.2
    world.write("train", rows.assign(patient_id=rows["patient_id"].mask(unknown, "unknown")))


def few_unknown_patients(world: LeakDataSet) -> None:
    names = world.read("train")["patient_id"]
    world.change("train", patient_id=names.mask(np.arange(len(names)) % 30 == 0, "unknown"))


def folds_elsewhere(world: LeakDataSet) -> None:
    world.change("train", their_fold=world.rng.integers(0, 5, 600))


def honest_folds_elsewhere(world: LeakDataSet) -> None:
    world.change("train", their_fold=pd.factorize(world.read("train")["patient_id"])[0] % 5)


def _write_listed_pairs(world: LeakDataSet, other: pd.Series[str]) -> None:
    """Lists the first five positives as duplicates of other rows, in a file of pairs."""
    train = world.read("train")
    positive = train.loc[train["target"] == "1", "image_name"].iloc[:5].to_numpy()
    pairs = pd.DataFrame({"one": positive, "other": other.iloc[:5].to_numpy()})
    pairs.to_csv(world.folder / "pairs.csv", index=False)
    world.settings["data"]["duplicates"] = "pairs.csv"


def listed_conflicts(world: LeakDataSet) -> None:
    train = world.read("train")
    _write_listed_pairs(world, train.loc[train["target"] == "0", "image_name"])


def listed_in_test(world: LeakDataSet) -> None:
    _write_listed_pairs(world, world.read("test")["image_name"])


def proxy(world: LeakDataSet) -> None:
    """Adds a column to both csv files that gives the target away in train."""
    train, test = world.read("train"), world.read("test")
    world.write("train", train.assign(referral=np.where(train["target"] == "1", "urgent", "routine")))
    world.write("test", test.assign(referral="routine"))


def proxy_in_train(world: LeakDataSet) -> None:
    target = world.read("train")["target"].astype(int)
    world.change("train", thickness=target * 0.8 + world.rng.normal(0, 0.05, len(target)))


def proxy_as_site(world: LeakDataSet) -> None:
    target = world.read("train")["target"]
    world.change("train", anatom_site_general_challenge=np.where(target == "1", "excised", "torso"))


def harmless_columns(world: LeakDataSet) -> None:
    drawn = world.rng.normal(size=600)
    world.change("train", referral=np.where(drawn > 0, "urgent", "routine"), thickness=drawn)


def sorted_rows(world: LeakDataSet) -> None:
    world.write("train", world.read("train").sort_values("target", ascending=False, kind="stable"))


def later_ids(world: LeakDataSet) -> None:
    train = world.read("train")
    late = (world.rng.random(600) + (train["target"] == "1") * 0.5).rank().astype(int)
    world.write("train", train.assign(image_name="ISIC_" + late.astype(str)))


def honest_ids(world: LeakDataSet) -> None:
    world.change("train", image_name=[f"ISIC_{number}" for number in world.rng.permutation(600)])


def sources(world: LeakDataSet, *, tell: float = 0.4) -> None:
    target = world.read("train")["target"] == "1"
    world.change("train", hospital=np.where(world.rng.random(600) < 0.2 + tell * target, "A", "B"))
    world.settings["data"]["columns"]["source"] = "hospital"


def honest_sources(world: LeakDataSet) -> None:
    sources(world, tell=0)


def older_in_test(world: LeakDataSet) -> None:
    age = pd.to_numeric(world.read("test")["age_approx"])
    world.change("test", age_approx=(age + 20).fillna(""))


def _import_nets(world: LeakDataSet, seen: Callable[[np.ndarray, int], np.ndarray], *, scale: float = 0.0) -> None:
    """Imports three nets that predict the target better where ``seen`` (fold, net) says that they trained on it."""
    experiment = world.open()
    y, fold, ids = experiment.target, experiment.folds.frame["fold"].to_numpy(), experiment.table.train["id"]
    every = []
    for net in range(3):
        logit = 1.2 * y + world.rng.normal(size=len(y)) + 1.5 * y * seen(fold, net) - 2 + scale * net
        every.append(pd.DataFrame({"id": ids, "p": 1 / (1 + np.exp(-logit)), "fold": net, "claimed": fold}))
    rows = pd.concat(every)
    rows.drop(columns="claimed").to_csv(world.folder / "all.csv", index=False)
    rows[rows["fold"] == rows["claimed"]].drop(columns="claimed").to_csv(world.folder / "oof.csv", index=False)
    tests = []
    for net in range(3):
        n = len(experiment.table.test)
        logit = 1.2 * (world.rng.random(n) < y.mean()) + world.rng.normal(size=n) - 2 + scale * net
        tests.append(pd.DataFrame({"id": experiment.table.test["id"], "p": 1 / (1 + np.exp(-logit)), "fold": net}))
    test = pd.concat(tests)
    test.to_csv(world.folder / "test-p.csv", index=False)
    _import(world, experiment, "elsewhere", all_rows=world.folder / "all.csv")


def _import(world: LeakDataSet, experiment: Experiment, name: str, *, all_rows: Path | None = None) -> None:
    """Imports oof.csv and test-p.csv of the folder as a run."""
    columns = ImportedColumns("id", "p", "fold")
    oof, test = (Part(world.folder / file) for file in ("oof.csv", "test-p.csv"))
    source = Source(name, (oof,), (test,), ImportOptions(columns, columns), all_rows)
    import_source(experiment, source, QUIET, replace=False)


def other_rows_held_out(world: LeakDataSet) -> None:
    _import_nets(world, lambda fold, net: (fold + 1) % 3 != net)


def nothing_held_out(world: LeakDataSet) -> None:
    _import_nets(world, lambda fold, net: fold >= 0)


def honest_nets(world: LeakDataSet) -> None:
    _import_nets(world, lambda fold, net: fold != net)


def scales_differ(world: LeakDataSet) -> None:
    _import_nets(world, lambda fold, net: fold != net, scale=2.0)


def _import_second_round(world: LeakDataSet, labels: str) -> None:
    """Imports two first-round models and a net that learned test rows with ``labels``, as in `pseudo_labels.LABELS`."""
    experiment, rng = world.open(), world.rng
    train, test = experiment.table.train["id"], experiment.table.test["id"]

    def rows(y: np.ndarray) -> np.ndarray:
        return rng.normal(size=(len(y), FEATURES)) + 0.3 * y[:, None] * (np.arange(FEATURES) < INFORMATIVE)

    y, unknown = experiment.target, (rng.random(len(test)) < experiment.target.mean()).astype(np.int8)
    fold = experiment.folds.frame["fold"].to_numpy().astype(np.intp)
    data = DataSet(rows(y), y, fold, rows(unknown), rows(unknown), unknown)
    teachers = first_round(data)
    for name, made in (teachers | {"student": second_rounds(data, teachers)[labels]}).items():
        pd.DataFrame({"id": train, "p": expit(made.nets.oof), "fold": fold}).to_csv(
            world.folder / "oof.csv", index=False
        )
        tests = [pd.DataFrame({"id": test, "p": expit(net), "fold": k}) for k, net in enumerate(made.nets.test)]
        pd.concat(tests).to_csv(world.folder / "test-p.csv", index=False)
        _import(world, experiment, name)


def labels_of_all_folds(world: LeakDataSet) -> None:
    _import_second_round(world, "all folds")


def labels_of_each_fold(world: LeakDataSet) -> None:
    _import_second_round(world, "own fold")


def flipped_labels(world: LeakDataSet) -> None:
    train = world.read("train")
    taken = world.rng.choice(np.flatnonzero(train["target"] == "0"), 6, replace=False)
    world.flipped = tuple(train["image_name"].iloc[taken])
    world.change("train", target=np.where(train["image_name"].isin(world.flipped), "1", train["target"]))


def conflicting_copies(world: LeakDataSet) -> None:
    rows, folder = world.read("train"), world.own_pictures()
    of = [rows.loc[rows["target"] == target, "image_name"].iloc[:5] for target in ("1", "0")]
    for positive, negative in zip(*of, strict=True):
        shutil.copy(folder / f"{positive}.png", folder / f"{negative}.png")


def copies_in_test(world: LeakDataSet) -> None:
    folder = world.own_pictures()
    pairs = zip(world.read("train")["image_name"].iloc[:5], world.read("test")["image_name"].iloc[:5], strict=True)
    for train, test in pairs:
        shutil.copy(folder / f"{train}.png", folder / f"{test}.png")


def larger_files(world: LeakDataSet) -> None:
    rows, folder = world.read("train"), world.own_pictures()
    for name in rows.loc[rows["target"] == "1", "image_name"]:
        with Image.open(folder / f"{name}.png") as picture:
            picture.save(folder / f"{name}.png", compress_level=1)


def equal_files(world: LeakDataSet) -> None:
    """Saves all images as files of equal size; as generated, positives have larger files, because they show more."""
    folder = world.own_pictures()
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".bmp"))
        path.unlink()


def whole_patients(world: LeakDataSet) -> None:
    """Gives all images of a patient the same target; otherwise a leak by group would reveal little."""
    rows = world.read("train")
    patients = rows["patient_id"].unique()
    ill = world.rng.choice(patients, len(patients) // 5, replace=False)
    world.write("train", rows.assign(target=rows["patient_id"].isin(ill).astype(int), diagnosis=""))


def torn_by_code(world: LeakDataSet) -> None:
    whole_patients(world)
    world.folds_by_row_in_code = True


def telling_feature(world: LeakDataSet) -> None:
    whole_patients(world)
    world.leaking_feature = True
