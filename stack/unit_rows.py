"""Shows an experiment and its runs with one row for each unit, where predictions are made for units (`predict_per`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError
from stack.blend.pooling import first_of_units, pool_logits
from stack.experiment import Experiment
from stack.metrics.intervals import interval
from stack.store import Run, frame_fingerprint, prediction_frame
from stack.tables.units import mixed_units, unit_columns

Ints = NDArray[np.intp]

_NOT_OF_UNITS = {"id", "group", "target", "fold"}  # columns that are no property to compare within a unit


@dataclass(frozen=True)
class UnitRows:
    """Units of an experiment and the unit of each of its images.

    ``experiment`` has one row for each unit, whose id is the unit: its target, group, split group, fold, and the
    columns that are the same in all images of every unit. Its ``as_read`` are the images.
    """

    experiment: Experiment
    of_train: Ints  # (training images,) row of the unit
    of_test: Ints  # (test images,)
    varying: tuple[str, ...]  # columns that differ between images of a unit: no unit has a value of these
    mixed: int  # units with images of both targets, which count as positive

    def images(self, rows: Ints | None = None) -> Ints:
        """Returns the number of training images of each unit (units,), of the image ``rows`` alone where given."""
        of = self.of_train if rows is None else self.of_train[rows]
        return np.bincount(of, minlength=len(self.experiment.target))

    def incomplete(self, rows: Ints) -> int:
        """Returns the number of units that have some of their training images among the ``rows``, and some not."""
        count = self.images(rows)
        return int(((count > 0) & (count < self.images())).sum())


def unit_rows(experiment: Experiment) -> UnitRows:
    """Returns the units of an experiment whose config has `predict_per`; units are in the order of their first image.

    A unit is positive if one of its images is, also if that image is left out because it cannot be read.
    """
    table, units = experiment.table, experiment.table.units
    assert units is not None
    as_read = experiment.as_read.train
    positive = set(units.loc[as_read["id"][as_read["target"] == 1]])
    of_train, names = pd.factorize(units.loc[table.train["id"]])
    of_test, test_names = pd.factorize(units.loc[table.test["id"]])
    columns = [str(name) for name in table.train if name not in _NOT_OF_UNITS]
    varying = [
        name
        for name in columns
        if _varies(table.train[name], of_train) or (name in table.test and _varies(table.test[name], of_test))
    ]
    train = _one_row_each(table.train, of_train, names, varying)
    train["target"] = np.array([name in positive for name in names], np.int8)
    if len(np.unique(train["target"])) < 2:
        raise DataError(
            f"predict_per: all {len(train):,} units are {'positive' if train['target'].iloc[0] else 'negative'}, as a "
            "unit is positive if one of its images is: name columns whose units are smaller"
        )
    folds = experiment.folds.frame.iloc[first_of_units(of_train)].reset_index(drop=True)
    made = replace(
        experiment,
        table=replace(table, train=train, test=_one_row_each(table.test, of_test, test_names, varying), units=None),
        folds=replace(experiment.folds, frame=folds.assign(id=train["id"])),
    )
    mixed = mixed_units(units.loc[as_read["id"]], as_read["target"])
    return UnitRows(made, of_train, of_test, tuple(varying), len(set(mixed) & set(names)))


def pooled_run(experiment: Experiment, units: UnitRows, run: Run, pooling: str) -> Run:
    """Returns a run whose out-of-fold predictions are of units, pooled from those of their images, and not on disk.

    ``pooling`` is one that needs no fit: not "learned".
    """
    oof = run.frame("oof")
    unit, code = np.unique(units.of_train[experiment.rows_of(oof["id"])], return_inverse=True)
    first = first_of_units(code)
    logits = pool_logits(oof[["logit"]].to_numpy(), code, pooling)[:, 0]
    ids = units.experiment.table.train["id"].iloc[unit].reset_index(drop=True)
    frame = prediction_frame(ids, oof["fold"].to_numpy()[first], logits.astype(np.float32))
    return Run(run.folder, {**run.meta, "files": {}}, held={"oof": frame})


def scored_experiment(experiment: Experiment) -> Experiment:
    """Returns the experiment with one row for each prediction: its units, or the images where it has none."""
    return experiment if experiment.config.predict_per is None else unit_rows(experiment).experiment


def rows_of_units(frame: pd.DataFrame, unit: pd.Series) -> pd.DataFrame:
    """Returns one row for each value of ``unit`` (rows of ``frame``), whose id it is, in the order of its first image.

    A column that differs between the images of a unit has no values, apart from the group: the first image's.
    """
    code, names = pd.factorize(unit)
    varying = [str(name) for name in frame if name not in _NOT_OF_UNITS and _varies(frame[name], code)]
    return _one_row_each(frame, code, names, varying)


def units_fingerprint(experiment: Experiment) -> str:
    """Fingerprint of the unit of each training and test image."""
    units = experiment.table.units
    assert units is not None
    ids = pd.concat([experiment.table.train["id"], experiment.table.test["id"]], ignore_index=True)
    return frame_fingerprint(pd.DataFrame({"id": ids, "unit": units.loc[ids].to_numpy()}))


def units_record(
    experiment: Experiment, units: UnitRows, covered: Ints, y: NDArray[np.int8], split_group: NDArray[np.object_]
) -> dict[str, Any]:
    """Returns what a blend's run.json says of its units: what names them, how many they are, and of how many images.

    ``covered`` are the training images that every run predicts; ``y`` and ``split_group`` those of the units with one.
    `size` is the AUC of the number of images of a unit, which maximum, noisy-or and learned pooling rise with.
    """
    per = experiment.config.predict_per
    assert per is not None
    count = units.images(covered)
    count = count[count > 0]
    varies = count.min() < count.max()
    return {
        "columns": list(unit_columns(per.columns, experiment.config.data.columns.roles)),
        "units": len(count),
        "images": len(covered),
        "of one image": int((count == 1).sum()),
        "incomplete": units.incomplete(covered),
        "mixed": units.mixed,
        "varying": list(units.varying),
        "size": asdict(interval("auc", y, count.astype(np.float64), split_group)) if varies else None,
    }


def units_text(experiment: Experiment, units: UnitRows, covered: Ints) -> str:
    """Says what the units of a blend are, and what of them a reader would not expect."""
    per, count = experiment.config.predict_per, units.images(covered)
    assert per is not None
    columns = " and ".join(unit_columns(per.columns, experiment.config.data.columns.roles))
    text = f"one prediction for each {columns}: {int((count > 0).sum()):,} units of {len(covered):,} training images"
    if units.mixed:
        text += f", {units.mixed:,} of them with images of both targets, which count as positive"
    if incomplete := units.incomplete(covered):
        text += f"; of {incomplete:,} units, a run leaves out some images, and the others are pooled"
    return text


def _one_row_each(frame: pd.DataFrame, code: Ints, names: pd.Index, varying: list[str]) -> pd.DataFrame:
    """Returns one row for each unit: the first known value of each column, and none of those that vary."""
    if not len(frame):
        return frame
    known = frame.groupby(code, sort=True).first().reset_index(drop=True)
    for name in frame:
        if name in varying:
            known[name] = known[name].where(pd.Series(False, index=known.index))
    return known.astype(frame.dtypes.to_dict()).assign(id=pd.Series(names, dtype="str"))[list(frame)]


def _varies(column: pd.Series, code: Ints) -> bool:
    """Whether two images of one unit have different known values."""
    pairs: Any = pd.DataFrame({"code": code, "value": column.to_numpy()}).dropna().drop_duplicates()
    return bool(pairs["code"].duplicated().any())
