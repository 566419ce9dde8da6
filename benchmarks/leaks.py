"""Every kind of leak planted into a generated data set and looked for, and the same finders on clean ones.

python benchmarks/leaks.py 20    # clean data sets
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from audits.audit import run_audit
from audits.finding import Finding
from audits.shuffled import shuffled, shuffled_findings
from image_models.head import fit_head
from stack.config import read_config
from stack.console import Out
from stack.demo_data import write_demo_data
from stack.errors import DermstackError
from stack.experiment import Experiment, open_experiment
from stack.fold_matrix import inner_rows
from stack.matrix import FoldFeatures
from stack.store import Run, prediction_frame, write_run

QUIET = Out(quiet=True)
SHUFFLES = 10
COLUMNS = {
    "id": "image_name", "group": "patient_id", "target": "target", "age": "age_approx", "sex": "sex",
    "site": "anatom_site_general_challenge", "diagnosis": "diagnosis",
}  # fmt: skip


@dataclass
class World:
    """One generated data set on disk, its config, and what is done to code rather than to files."""

    folder: Path
    settings: dict[str, Any]
    rng: np.random.Generator
    torn: bool = False  # folds are dealt by row, which no config can ask for
    telling: bool = False  # level 2 has a feature of the group's targets, which none of ours is

    def read(self, part: str) -> pd.DataFrame:
        """train or test, every cell as text."""
        return pd.read_csv(self.folder / f"{part}.csv", dtype=str, keep_default_na=False)

    def write(self, part: str, frame: pd.DataFrame) -> None:
        """In the place of what `read` gave."""
        frame.to_csv(self.folder / f"{part}.csv", index=False)

    def own_pictures(self) -> Path:
        """Copies of the pictures, to be changed."""
        shutil.copytree(self.settings["data"]["images"], self.folder / "pictures")
        self.settings["data"]["images"] = str(self.folder / "pictures")
        return self.folder / "pictures"

    def open(self) -> Experiment:
        """Raises what `dermstack` would."""
        path = self.folder / "world.yaml"
        path.write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        experiment = open_experiment(read_config(path), path, QUIET)
        if not self.torn:
            return experiment
        frame = experiment.folds.frame
        fold = self.rng.permutation(np.arange(len(frame)) % experiment.folds.k).astype(np.int8)
        return replace(experiment, folds=replace(experiment.folds, frame=frame.assign(fold=fold)))

    def frozen(self, experiment: Experiment) -> Run:
        """Features that see each picture's target through noise, and which group it is of; heads fitted out-of-fold."""
        y, test = experiment.target, experiment.table.test
        group = pd.factorize(experiment.table.train["group"])[0]
        own = self.rng.normal(size=(group.max() + 1, 63))[group]
        z = np.column_stack([1.5 * y + self.rng.normal(size=len(y)), own + 0.1 * self.rng.normal(size=own.shape)])
        logit = np.empty(len(y), np.float32)
        for _, train, held in experiment.folds.pairs():
            logit[held] = fit_head(z[train], y[train], inner_rows(experiment, train)).logit(z[held])
        k, nothing = experiment.folds.k, np.zeros(len(test))
        frames = {
            "oof": prediction_frame(experiment.table.train["id"], experiment.folds.frame["fold"].to_numpy(), logit),
            "test": pd.concat([prediction_frame(test["id"], net, nothing) for net in range(k)]),
        }
        meta = {"fingerprint": "", "level": 1, "kind": "frozen", "inputs": {}}
        arrays = {"oof_z": z, "test_z": np.zeros((len(test), 64))}
        return write_run(experiment.models / "frozen", meta, frames=frames, arrays=arrays)


def nothing(world: World) -> None:
    """The world as it was generated."""


Planting = Callable[[World], None]
Finder = Callable[[World], list[Finding]]


@dataclass(frozen=True)
class Plant:
    """A kind of leak. ``tells`` stands in what the finding says; ``honest`` makes the clean world comparable."""

    kind: str
    how: str
    plant: Planting
    finder: Finder
    tells: str
    honest: Planting = nothing

    def among(self, findings: list[Finding]) -> bool:
        """Whether one of the findings says so."""
        return any(self.tells in one.what for one in findings)


def main(clean: int) -> None:
    print("| kind | how planted | found by | caught | false alarms |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for plant in PLANTS:
            world = _world(Path(temporary), seed=0)
            plant.plant(world)
            says = "yes" if plant.among(plant.finder(world)) else "**no**"
            seeds = range(1, clean + 1)
            alarms = sum(plant.among(_of_clean(Path(temporary), plant.honest, plant.finder, seed)) for seed in seeds)
            row = (plant.kind, plant.how, plant.finder.__name__.replace("_", " "), says, f"{alarms} of {clean}")
            print(f"| {' | '.join(row)} |", flush=True)


@cache
def _of_clean(base: Path, honest: Planting, finder: Finder, seed: int) -> list[Finding]:
    world = _world(base, seed=seed)
    honest(world)
    return finder(world)


def _world(base: Path, *, seed: int) -> World:
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
    return World(folder, settings, np.random.default_rng(seed))


# finders


def refusal(world: World) -> list[Finding]:
    """What opening the experiment says."""
    try:
        world.open()
    except DermstackError as error:
        return [Finding("error", str(error), "", "")]
    return []


def pictures(world: World) -> list[Finding]:
    return run_audit(world.open(), QUIET).findings


def shuffles(world: World) -> list[Finding]:
    experiment = world.open()
    with patch.object(FoldFeatures, "transform", _telling) if world.telling else nullcontext():
        return shuffled_findings(shuffled(experiment, world.frozen(experiment), QUIET, shuffles=SHUFFLES))


_honest_transform = FoldFeatures.transform


def _telling(self: FoldFeatures, frame: pd.DataFrame, *parts: Any) -> pd.DataFrame:
    others = frame.groupby("group")["target"]
    mean = (others.transform("sum") - frame["target"]) / (others.transform("size") - 1)
    return _honest_transform(self, frame, *parts).assign(told=mean.to_numpy(np.float32))


# what is planted


def folds_by_row(world: World) -> None:
    rows = world.read("train")
    _own_folds(world, rows, world.rng.permutation(np.arange(len(rows)) % 3))


def folds_by_group(world: World) -> None:
    rows = world.read("train")
    _own_folds(world, rows, pd.factorize(rows["patient_id"])[0] % 3)


def _own_folds(world: World, rows: pd.DataFrame, fold: np.ndarray) -> None:
    world.write("train", rows.assign(fold=fold))
    world.settings["data"]["columns"]["fold"] = "fold"


def unknown_patients(world: World) -> None:
    rows = world.read("train")
    unknown = world.rng.random(len(rows)) < 0.2
    world.write("train", rows.assign(patient_id=rows["patient_id"].mask(unknown, "unknown")))


def conflicting_copies(world: World) -> None:
    rows, folder = world.read("train"), world.own_pictures()
    of = [rows.loc[rows["target"] == target, "image_name"].iloc[:5] for target in ("1", "0")]
    for positive, negative in zip(*of, strict=True):
        shutil.copy(folder / f"{positive}.png", folder / f"{negative}.png")


def copies_in_test(world: World) -> None:
    folder = world.own_pictures()
    pairs = zip(world.read("train")["image_name"].iloc[:5], world.read("test")["image_name"].iloc[:5], strict=True)
    for train, test in pairs:
        shutil.copy(folder / f"{train}.png", folder / f"{test}.png")


def larger_files(world: World) -> None:
    rows, folder = world.read("train"), world.own_pictures()
    for name in rows.loc[rows["target"] == "1", "image_name"]:
        with Image.open(folder / f"{name}.png") as picture:
            picture.save(folder / f"{name}.png", compress_level=1)


def whole_patients(world: World) -> None:
    """All pictures of a patient have one target, else a leak by group would tell little."""
    rows = world.read("train")
    patients = rows["patient_id"].unique()
    ill = world.rng.choice(patients, len(patients) // 5, replace=False)
    world.write("train", rows.assign(target=rows["patient_id"].isin(ill).astype(int), diagnosis=""))


def torn_by_code(world: World) -> None:
    whole_patients(world)
    world.torn = True


def telling_feature(world: World) -> None:
    whole_patients(world)
    world.telling = True


PLANTS = [
    Plant("groups in two folds", "a fold column of the csv, dealt by row", folds_by_row, refusal, "splits",
          honest=folds_by_group),
    Plant("a group that is none", "the patient of a fifth of the rows is 'unknown'", unknown_patients, refusal,
          "looks like a mark for 'unknown'"),
    Plant("duplicates with different targets", "five pictures copied over pictures of the other class",
          conflicting_copies, pictures, "with different targets"),
    Plant("duplicates in train and test", "five pictures copied over test pictures", copies_in_test, pictures,
          "across train and test"),
    Plant("size of the file", "positives saved with less compression", larger_files, pictures,
          "bytes of the file differs between the classes"),
    Plant("groups in two folds", "folds dealt by row in the code", torn_by_code, shuffles, "found again",
          honest=whole_patients),
    Plant("a feature of the group's targets", "mean target of the group's other rows, in the level-2 matrix",
          telling_feature, shuffles, "found again", honest=whole_patients),
]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(int(sys.argv[1]))
