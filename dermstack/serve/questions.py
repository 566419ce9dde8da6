"""Questions of the app: columns of the table without a role that may be given for a patient's images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dermstack.errors import BundleError, DataError
from dermstack.serve.bundle import Bundle
from dermstack.serve.expectations import read_costs, takes_age
from stack.experiment import Experiment
from stack.tables.columns import empty_values, read_values


class Question(NamedTuple):
    """A column of the table without a role that may be given for a patient's images."""

    name: str  # among missing columns
    csv: str  # in the csv of training
    words: list[str] | None  # those of training; None for a number
    low: float | None = None  # 98 % of the training rows lie from here
    high: float | None = None  # to here


def questions_of(bundle: Bundle, words: Mapping[str, list[str]]) -> list[Question]:
    """Returns the columns that the ensemble needs, those that it uses most first, without those that no model uses."""
    costs, ranges, categorical = read_costs(bundle), read_ranges(bundle), bundle.table_columns.categorical
    inputs = bundle.table_inputs
    order = [name for name in costs.order if name in inputs and name not in costs.unused]
    order = order if costs.by_columns else list(inputs)
    return [
        Question(name, inputs[name], words[name] if name in categorical else None, *ranges.get(name, (None, None)))
        for name in order
    ]


def range_notes(questions: Sequence[Question], given: Mapping[str, str]) -> list[str]:
    """Returns a note on each number far from those of training, such as one in another unit."""
    return [
        f"the value {given[question.csv]} of {question.csv} lies outside {short_number(question.low)} to "
        f"{short_number(question.high)}, where 98 % of the values of training lie: check its unit"
        for question in questions
        if question.low is not None
        and question.high is not None
        and question.csv in given
        and not question.low <= float(given[question.csv]) <= question.high
    ]


def short_number(value: float) -> str:
    """Returns a number with three digits, or whole and with thousands separated: 0.00119, 61.6, 1,640."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.3g}"


def rows_out_of_range(bundle: Bundle, frame: pd.DataFrame) -> list[str]:
    """Returns a note on age and each column of numbers if most of its values are far from those of training.

    Values in another unit look like this, such as an age in months or a diameter in cm. Columns that no model uses are
    left out.
    """
    notes, unused = [], read_costs(bundle).unused
    inputs = {"age": bundle.columns.get("age") if takes_age(bundle) else None, **bundle.table_inputs}
    for name, (low, high) in read_ranges(bundle).items():
        if name not in frame or name in unused or not inputs.get(name):
            continue
        values = frame[name].dropna().to_numpy(np.float64)
        outside = values[(values < low) | (values > high)]
        if len(outside) > len(values) / 2:
            notes.append(
                f"{len(outside):,} of {len(values):,} values of {inputs[name]} lie outside {short_number(low)} to "
                f"{short_number(high)}, where 98 % of the values of training lie (the median here is "
                f"{short_number(float(np.median(values)))}): check the unit"
            )
    return notes


def answered(
    bundle: Bundle, questions: Sequence[Question], rows: pd.DataFrame, given: Mapping[str, str]
) -> pd.DataFrame:
    """Returns the columns without a role, computed from the ``given`` text as from the cells of a csv.

    Raises DataError for a column that is not asked for, a number that is none and a word that training does not have.
    """
    asked = {question.csv: question for question in questions}
    if strange := [csv for csv in given if csv not in asked]:
        raise DataError(f"{strange[0]!r} is no column that this ensemble uses: leave it out")
    for csv, text in given.items():
        words = asked[csv].words
        if words is None and not _is_number(text):
            raise DataError(f"{csv} {text!r} is not a number: give a number, or leave it empty")
        if words is not None and text not in words:
            raise DataError(f"{csv} {text!r} does not occur in training: choose a word of training, or leave it empty")
    if not given:
        return empty_values(bundle.table_columns, len(rows))
    cells = pd.DataFrame({csv: pd.Series([text] * len(rows), dtype="str") for csv, text in given.items()})
    if "age" in bundle.columns:  # a derived column may use it
        cells[bundle.columns["age"]] = rows["age"].map(lambda age: "" if np.isnan(age) else f"{age:g}").astype("str")
    faults: list[str] = []
    missing = bundle.column_rules.missing
    made = read_values(cells, bundle.table_columns, missing, Path("form"), faults, may_lack=True)
    if faults:
        raise DataError("\n".join(faults))
    return made


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(np.float32(text)))
    except ValueError:
        return False


RANGES_FILE = "ranges.json"


def write_ranges(experiment: Experiment, bundle: Path) -> None:
    """Writes the 1 % and 99 % quantiles of age and of each column of numbers, by its name in the table."""
    numbers = ["age", *experiment.table.columns.numeric]
    known = {name: experiment.table.train[name].dropna().to_numpy(np.float64) for name in numbers}
    ranges = {name: np.quantile(values, [0.01, 0.99]).tolist() for name, values in known.items() if len(values)}
    if not ranges:
        return
    (bundle / RANGES_FILE).write_text(json.dumps(ranges, ensure_ascii=False, indent=1), encoding="utf-8")


def read_ranges(bundle: Bundle) -> dict[str, tuple[float, float]]:
    """Reads what `write_ranges` wrote; {} for a bundle without it. Raises BundleError where it cannot be read."""
    if RANGES_FILE not in bundle:
        return {}
    try:
        return {str(name): (float(low), float(high)) for name, (low, high) in bundle.json(RANGES_FILE).items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{bundle.place}: {RANGES_FILE} cannot be read ({error}): bundle again") from error
