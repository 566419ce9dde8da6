"""Gives the report the rows that are scored: the images, or units with pooled runs where predictions are for units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dermstack.errors import StoreError
from stack.blend.pooling import pooling_and_method
from stack.experiment import Experiment
from stack.metrics.intervals import Interval
from stack.store import Run
from stack.unit_rows import UnitRows, pooled_run, unit_rows

SIMPLEST = "mean/"  # what names a candidate of the simplest pooling begins with


@dataclass(frozen=True)
class Scored:
    """The rows that a blend scores, and its runs on these rows."""

    experiment: Experiment  # with one row for each scored row
    runs: Sequence[Run]
    unit: str = "image"  # what a row is
    notes: Sequence[str] = ()  # on how units were made and pooled
    prefix: str = ""  # of the names of the simplest candidates: "" or "mean/"
    units: UnitRows | None = None

    def image_of(self, images: Experiment, run: Run, ids: Sequence[str]) -> dict[str, str]:
        """Returns the image to show of each row: of a unit, the one with the highest risk by a run of ``images``."""
        if self.units is None:
            return {name: name for name in ids}
        oof = run.frame("oof")[["id", "logit"]]
        unit = self.experiment.table.train["id"].to_numpy()[self.units.of_train[images.rows_of(oof["id"])]]
        highest = oof.assign(unit=unit).sort_values(["logit", "id"]).drop_duplicates("unit", keep="last")
        found: pd.Series = highest.set_index("unit")["id"].reindex(list(ids))
        return dict(zip(ids, found, strict=True))


def scored_rows(experiment: Experiment, blend: Run, runs: Sequence[Run]) -> Scored:
    """Returns the images, or the units of a blend whose predictions are for units, with its runs pooled.

    Raises StoreError where the blend was made for units and the config names none.
    """
    if (record := blend.meta.get("units")) is None:
        return Scored(experiment, runs)
    if experiment.table.units is None:
        raise StoreError(
            f"{blend.folder} has predictions for units ({', '.join(record['columns'])}), but the config has no "
            f"`predict_per`: run `{experiment.command('stack')}`"
        )
    units, (pooling, _) = unit_rows(experiment), pooling_and_method(blend.meta["chosen"])
    single = _of_single_runs(blend) if pooling == "learned" else pooling
    pooled = [pooled_run(experiment, units, run, single) for run in runs]
    return Scored(units.experiment, pooled, "unit", _notes(blend, single), SIMPLEST, units)


def _of_single_runs(blend: Run) -> str:
    """Returns the pooling without a fit that blends best, for runs alone: as good a comparison as the rows allow."""
    tried = [(line["nested"], pooling_and_method(line["method"])[0]) for line in blend.meta["methods"]]
    return max(((nested, pooling) for nested, pooling in tried if pooling != "learned"), default=(0.0, "mean"))[1]


def run_weights(blend: Run) -> dict[str, float]:
    """Returns the weight of each run in a blend; learned pooling has one for each pooling of a run, which are added."""
    weights: dict[str, float] = {}
    for name, share in blend.meta["weights"].items():
        run = name.partition("/")[0]
        weights[run] = weights.get(run, 0.0) + share
    return weights


def _notes(blend: Run, single: str) -> list[str]:
    record = blend.meta["units"]
    columns = " and ".join(f"`{name}`" for name in record["columns"])
    chosen = [str(pooling_and_method(name)[0]) for name in blend.meta["chosen_by_fold"].values()]
    counted = ", ".join(f"{pooling} in {chosen.count(pooling)}" for pooling in dict.fromkeys(chosen))
    notes = [
        f"There is one prediction for each {columns}, called a unit: {record['units']:,} units of {record['images']:,} "
        f"images; {record['of one image']:,} units have one image. All scores, curves, intervals and subgroups are of "
        "units, apart from what is said to be of images. A unit is positive if one of its images is"
        + (f"; {record['mixed']:,} units have images of both targets." if record["mixed"] else "."),
        f"How a unit's images are pooled was chosen together with the blend method, without the fold that is scored: "
        f"{counted} of {len(chosen)} folds. In the tables and figures of single runs, each run is pooled by {single}.",
    ]
    if record["size"] is not None:
        size = Interval(**record["size"])
        apart = size.low > 0.5 or size.high < 0.5
        notes.append(
            f"The number of images of a unit alone has AUC {size.value:.4f} [{size.low:.4f}, {size.high:.4f}]. "
            + (
                "Maximum, noisy-or and learned pooling rise with this number: if more images are taken where a finding "
                "is suspected, part of the result comes from the suspicion, and is lost where that differs. "
                "`predict_per.pooling: [mean]` does not rise with it."
                if apart
                else "The interval includes 0.5, so this number carries nothing beyond noise."
            )
        )
    if record["incomplete"]:
        notes.append(f"Of {record['incomplete']:,} units, a run leaves out some images: the others are pooled.")
    if record["varying"]:
        notes.append(
            f"{', '.join(record['varying'])}: the values differ between images of a unit, so these columns have no "
            "subgroups of units."
        )
    return notes
