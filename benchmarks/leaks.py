"""Plants each kind of leak into a generated data set, searches for it, and runs the same finders on clean ones.

python benchmarks/leaks.py 20    # clean data sets
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import planted
from planted import LeakDataSet

from dermstack.audit.acquisition import acquisition_findings
from dermstack.audit.drift import drift_findings
from dermstack.audit.finding import Finding
from dermstack.audit.labels import doubtful_labels
from dermstack.audit.pseudo_labels import pseudo_label_findings
from dermstack.audit.rows import proxy_findings, row_findings
from dermstack.audit.run import run_audit
from dermstack.audit.runs import run_findings
from dermstack.audit.shuffled import shuffled_findings, shuffled_target_aucs
from dermstack.errors import DermstackError
from stack.console import Out
from stack.level2.features import FoldFeatures
from stack.store import read_runs

QUIET = Out(quiet=True)
SHUFFLES = 10

Planting = Callable[[LeakDataSet], None]
Finder = Callable[[LeakDataSet], list[Finding]]


@dataclass(frozen=True)
class PlantedLeak:
    """A kind of leak. ``tells`` is part of the text of its finding; ``honest`` makes a clean data set comparable."""

    kind: str
    how: str
    plant: Planting
    finder: Finder
    tells: str
    honest: Planting = planted.nothing

    def among(self, findings: list[Finding]) -> bool:
        """Returns whether one of the findings reports this leak."""
        return any(self.tells in one.what for one in findings)


def main(clean: int) -> None:
    print("| kind | how planted | found by | caught | false alarms |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for plant in PLANTED_LEAKS:
            world = planted.make_data_set(Path(temporary), seed=0)
            plant.plant(world)
            says = "yes" if plant.among(plant.finder(world)) else "**no**"
            seeds = range(1, clean + 1)
            alarms = sum(plant.among(_of_clean(Path(temporary), plant.honest, plant.finder, seed)) for seed in seeds)
            row = (plant.kind, plant.how, plant.finder.__name__.replace("_", " "), says, f"{alarms} of {clean}")
            print(f"| {' | '.join(row)} |", flush=True)


@cache
def _of_clean(base: Path, honest: Planting, finder: Finder, seed: int) -> list[Finding]:
    world = planted.make_data_set(base, seed=seed)
    honest(world)
    return finder(world)


# finders


def refusal(world: LeakDataSet) -> list[Finding]:
    """Returns the error that opening the experiment raises."""
    try:
        world.open()
    except DermstackError as error:
        return [Finding("error", str(error), "", "")]
    return []


def pictures(world: LeakDataSet) -> list[Finding]:
    return run_audit(world.open(), QUIET).findings


def rows(world: LeakDataSet) -> list[Finding]:
    return row_findings(world.open())


def columns(world: LeakDataSet) -> list[Finding]:
    return proxy_findings(world.open())


def collection(world: LeakDataSet) -> list[Finding]:
    return acquisition_findings(world.open())


def train_and_test(world: LeakDataSet) -> list[Finding]:
    return drift_findings(world.open())


def runs(world: LeakDataSet) -> list[Finding]:
    experiment = world.open()
    return run_findings(experiment, read_runs(experiment.models))


def second_rounds(world: LeakDataSet) -> list[Finding]:
    experiment = world.open()
    return pseudo_label_findings(experiment, read_runs(experiment.models))


def second_looks(world: LeakDataSet) -> list[Finding]:
    """Reports if at least half of the flipped labels are listed, or, on clean data, more than 1 % of the rows."""
    experiment = world.open()
    listed = doubtful_labels(experiment, [world.frozen(experiment, tells=5, own=0.1)])["id"]
    hits, most = listed.isin(world.flipped).sum(), len(experiment.target) / 100
    told = hits >= len(world.flipped) / 2 if world.flipped else len(listed) > most
    evidence = f"{hits} of {len(world.flipped)} flipped, {len(listed)} listed"
    return [Finding("note", "labels worth a second look", evidence, "")] if told else []


def shuffles(world: LeakDataSet) -> list[Finding]:
    experiment = world.open()
    with patch.object(FoldFeatures, "transform", _telling) if world.leaking_feature else nullcontext():
        return shuffled_findings(shuffled_target_aucs(experiment, world.frozen(experiment), QUIET, shuffles=SHUFFLES))


_honest_transform = FoldFeatures.transform


def _telling(self: FoldFeatures, frame: pd.DataFrame, *parts: Any) -> pd.DataFrame:
    others = frame.groupby("group")["target"]
    mean = (others.transform("sum") - frame["target"]) / (others.transform("size") - 1)
    return _honest_transform(self, frame, *parts).assign(told=mean.to_numpy(np.float32))


PLANTED_LEAKS = [
    PlantedLeak("groups in two folds", "a fold column of the csv, assigned by row", planted.folds_by_row, refusal,
        "splits", honest=planted.folds_by_group),
    PlantedLeak("a group that is none", "the patient of a fifth of the rows is 'unknown'", planted.unknown_patients,
        refusal, "looks like a placeholder for 'unknown'"),
    PlantedLeak("duplicates with different targets", "five images copied over images of the other class",
        planted.conflicting_copies, pictures, "with different targets"),
    PlantedLeak("duplicates in train and test", "five images copied over test images", planted.copies_in_test, pictures,
        "across train and test"),
    PlantedLeak("size of the file", "positives saved with less compression", planted.larger_files, pictures,
        "the target can be predicted from file size", honest=planted.equal_files),
    PlantedLeak("a group that is none", "the patient of one row in thirty is 'unknown'", planted.few_unknown_patients,
        rows, "name means unknown"),
    PlantedLeak("groups in two folds", "a column of other folds in the csv, assigned by row", planted.folds_elsewhere,
        rows, "splits groups between folds", honest=planted.honest_folds_elsewhere),
    PlantedLeak("duplicates with different targets", "five listed pairs of both classes", planted.listed_conflicts,
        rows, "listed duplicates with different targets"),
    PlantedLeak("duplicates in train and test", "five listed pairs", planted.listed_in_test, rows,
        "listed duplicates across train and test"),
    PlantedLeak("a proxy of the target", "a column of words in train and test", planted.proxy, columns,
        "`referral` separates the target", honest=planted.harmless_columns),
    PlantedLeak("a proxy of the target, in train alone", "a column of numbers with noise", planted.proxy_in_train,
        columns, "`thickness` separates the target", honest=planted.harmless_columns),
    PlantedLeak("a proxy of the target among the features", "the site of positives is 'excised'", planted.proxy_as_site,
        columns, "`anatom_site_general_challenge` separates the target", honest=planted.harmless_columns),
    PlantedLeak("order of rows", "train.csv sorted by target", planted.sorted_rows, collection, "row order"),
    PlantedLeak("number in the id", "positives numbered later, by half of the range", planted.later_ids, collection,
        "number in the id", honest=planted.honest_ids),
    PlantedLeak("source", "hospital A has 60 % of positives, 20 % of the others", planted.sources, collection,
        "the target can be predicted from source", honest=planted.honest_sources),
    PlantedLeak("drift", "test patients twenty years older", planted.older_in_test, train_and_test,
        "train and test differ in columns that models use"),
    PlantedLeak("predictions that are not out-of-fold", "each net claims the fold of another",
        planted.other_rows_held_out, runs, "held out other rows than it claims", honest=planted.honest_nets),
    PlantedLeak("predictions that are not out-of-fold", "every net has seen all rows", planted.nothing_held_out, runs,
        "cannot tell", honest=planted.honest_nets),
    PlantedLeak("scales of fold models", "logits of one net two higher than those of the next", planted.scales_differ,
        runs, "scales", honest=planted.honest_nets),
    PlantedLeak("pseudo-labels of all folds", "a net trained on the mean of all fold models' predictions for test rows",
        planted.labels_of_all_folds, second_rounds, "may know the targets", honest=planted.labels_of_each_fold),
    PlantedLeak("flipped labels", "six negatives called positive", planted.flipped_labels, second_looks, "second look"),
    PlantedLeak("groups in two folds", "folds assigned by row in the code", planted.torn_by_code, shuffles,
        "models predict shuffled", honest=planted.whole_patients),
    PlantedLeak("a feature of the group's targets", "mean target of the group's other rows, in the level-2 matrix",
        planted.telling_feature, shuffles, "models predict shuffled", honest=planted.whole_patients),
]  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        raise SystemExit(__doc__)
    main(int(sys.argv[1]))
