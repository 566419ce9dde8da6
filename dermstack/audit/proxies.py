"""Columns of the training csv that give the target away: what alone separates it, what the test csv lacks."""

from __future__ import annotations

import pandas as pd

from dermstack.audit.finding import Finding, Severity
from dermstack.audit.single_column import ALARM, Alone, alone
from stack.experiment import Experiment
from stack.table import ACQUISITION, read_cells

SEPARATES = 0.98  # AUC from which a column says the same as the target
_LISTED = ("id", "group", "target", "source", *ACQUISITION)  # what they are, or looked at elsewhere


def proxy_findings(experiment: Experiment) -> list[Finding]:
    """Every column of the training csv, mapped or not, that separates the target above 0.98 or that is in train alone.

    Each is judged out of fold, whole groups held out, so that ids and names of groups tell nothing. An error is one
    that the models are given; the others are what must not become a feature.
    """
    config = experiment.config
    columns = {csv: name for name, csv in config.data.columns.model_dump(exclude_none=True).items()}
    cells = read_cells(config.data.train)
    rows = cells.set_index(config.data.columns.id).loc[experiment.table.train["id"]]
    in_test = set(read_cells(config.data.test).columns) if config.data.test else None
    y, fold, group = experiment.target, experiment.folds.frame["fold"], experiment.split_group
    looked: list[Alone] = []
    for csv in dict.fromkeys(rows.columns):
        if columns.get(csv) not in _LISTED and list(rows.columns).count(csv) == 1:
            values = numbers_or_words(rows[csv])
            if values.nunique(dropna=False) > 1:
                looked.append(alone(csv, values, y, fold, group))
    found, lacking = [], []
    for one in looked:
        if one.strength >= SEPARATES and one.p * len(looked) < ALARM:
            found.append(_proxy(one, columns.get(one.name), in_test))
        elif in_test is not None and one.name not in in_test and columns.get(one.name) != "fold":
            lacking.append(f"`{one.name}` {one}")
    if lacking:
        evidence = f"{len(lacking)}, alone each: {'; '.join(lacking)}"
        remedy = "no feature can be made of them: they were written when the target was known"
        found.append(Finding("note", "columns that the test csv lacks", evidence, remedy))
    return found


def numbers_or_words(cells: pd.Series) -> pd.Series:
    """A column of cells as numbers where all that is not empty is one, else as words; an empty cell is missing."""
    text = cells.str.strip().reset_index(drop=True)
    text = text.mask(text == "")
    numbers = pd.to_numeric(text, errors="coerce")
    return numbers.astype("float64") if (numbers.notna() == text.notna()).all() else text


def _proxy(one: Alone, mapped: str | None, in_test: set[str] | None) -> Finding:
    what = f"the column `{one.name}` separates the target"
    where = "" if in_test is None else ", in train and in test" if one.name in in_test else ", in train alone"
    evidence = f"{one} of it alone{where}; p = {one.p:.1g}"
    severity: Severity
    if mapped in ("age", "sex", "site"):
        severity, remedy = "error", f"models are given it as data.columns.{mapped}: map a column that is known before"
    elif mapped == "diagnosis":
        severity, remedy = "note", "it is learned as a target where a model says so, and is no feature"
    elif in_test is not None and one.name in in_test:
        severity, remedy = "warning", "the test csv gives the answers away; dermstack does not read it, keep it so"
    else:
        severity, remedy = "note", "dermstack does not read it; never make it a feature"
    return Finding(severity, what, evidence, remedy)
