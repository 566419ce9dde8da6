"""Finds leaks in the tables: listed duplicates, wrong groups, groups in two folds, proxies of the target."""

from __future__ import annotations

from collections import Counter
from typing import cast

import numpy as np
import pandas as pd

from dermstack.audit.finding import Finding, Severity, worst_first
from dermstack.audit.pictures import PAIR_KINDS, pair_kinds
from dermstack.audit.single_column import FALSE_ALARM_RATE, ColumnAssociation, column_association
from dermstack.errors import DataError
from dermstack.listing import first_of
from stack.experiment import Experiment, train_pairs
from stack.level2.features import csv_of_models, metadata_of_models
from stack.tables.cells import read_cells
from stack.tables.checks import SENTINELS
from stack.tables.column_choice import PROXY_AUC
from stack.tables.columns import fits, known_cells
from stack.tables.keys import fold_labels, is_missing_fold
from stack.tables.missing_codes import MissingCode, declared, listed_codes, missing_codes
from stack.tables.table import ACQUISITION
from tabular.relative import LARGEST

LARGE_GROUP_RATIO = 5  # a group with this many times the 99th percentile of the other sizes is reported
LARGE_GROUP_ROWS = 20  # and only if it has at least this many rows
_MAX_LISTED = 12  # columns that a finding lists

_LISTED_PAIR_FINDINGS: dict[str, tuple[Severity, str, str]] = {  # severity, what, remedy by kind of pair
    PAIR_KINDS[0]: (
        "error",
        "listed duplicates with different targets",
        "check both: one target is wrong, or they are not duplicates",
    ),
    PAIR_KINDS[1]: (
        "warning",
        "listed duplicates across train and test",
        "the model has seen these lesions, so a test score is optimistic",
    ),
    PAIR_KINDS[2]: ("note", "listed duplicates across groups", "their groups count as one split_group already"),
    PAIR_KINDS[3]: ("note", "listed duplicates within a group", "harmless: all rows of a group are in one fold"),
}


def row_findings(experiment: Experiment) -> list[Finding]:
    """Returns all findings about listed duplicates, groups, folds and missing-value codes, the worst first."""
    return worst_first(
        [
            *listed_duplicate_findings(experiment),
            *group_findings(experiment),
            *fold_findings(experiment),
            *missing_code_findings(experiment),
            *empty_column_findings(experiment),
        ]
    )


def listed_duplicate_findings(experiment: Experiment) -> list[Finding]:
    """Returns one finding for each kind of pair in `data.duplicates`, without pairs that were also found by image."""
    pairs = experiment.listed_duplicates
    if pairs is None:
        return []
    of_pictures = experiment.curation.pairs[["id_1", "id_2"]].astype("str").to_numpy()
    seen = {frozenset(pair) for pair in of_pictures}
    also = np.array([frozenset(pair) in seen for pair in pairs.to_numpy()], bool)
    made = pair_kinds(pairs[~also].reset_index(drop=True), experiment.table)
    beside = f", and {int(also.sum())} that are also found by image" if also.any() else ""
    found = []
    for kind in PAIR_KINDS:
        some = made[made["kind"] == kind]
        if len(some):
            severity, what, remedy = _LISTED_PAIR_FINDINGS[kind]
            example = f"first {some['id_1'].iloc[0]} and {some['id_2'].iloc[0]}"
            found.append(Finding(severity, what, f"{len(some)} of {len(pairs)} pairs{beside}", remedy, example))
    # These have effects of their own: see `stack.tables.unlabelled` and `stack.tables.external`.
    further = {*experiment.unlabelled["id"], *experiment.listed_copies["id"]}
    if strangers := int((~also).sum() - pairs[~also].isin(further).any(axis=1).sum()) - len(made):
        evidence = f"{strangers} of {len(pairs)} pairs"
        found.append(Finding("note", "listed duplicates with an id in neither csv", evidence, "they have no effect"))
    return found


def group_findings(experiment: Experiment) -> list[Finding]:
    """Reports group names that mean 'unknown', groups far larger than the others, and groups in both train and test."""
    found = []
    for part, rows in (("train", experiment.table.train), ("test", experiment.table.test)):
        sizes = rows["group"].value_counts()
        is_sentinel = sizes.index.str.lower().isin(SENTINELS)
        for name, size in sizes[is_sentinel].items():
            if size > 1:
                evidence = f"{size} of {len(rows)} rows in {part} have the group {str(name)!r}"
                remedy = "give each of these rows a group of its own: unknown patients are not one patient"
                found.append(Finding("warning", "a group whose name means unknown", evidence, remedy))
        others = sizes[~is_sentinel]
        if len(others) > 1 and others.iloc[0] >= max(
            LARGE_GROUP_ROWS, LARGE_GROUP_RATIO * np.quantile(others.iloc[1:], 0.99)
        ):
            evidence = (
                f"{others.iloc[0]} of {len(rows)} rows in {part}; the next has {others.iloc[1]}, "
                f"99 % of the others at most {np.quantile(others.iloc[1:], 0.99):.0f}"
            )
            remedy = "check that they are one patient: a code for 'unknown' joins unrelated rows into one group"
            found.append(
                Finding("warning", "a group far larger than the others", evidence, remedy, f"group {others.index[0]!r}")
            )
    return found + _shared_findings(experiment)


def fold_findings(experiment: Experiment) -> list[Finding]:
    """Checks that no group and no known duplicates are in two folds, and reports csv fold columns that split groups."""
    frame = experiment.folds.frame
    fold_of = frame.set_index("id")["fold"]
    pairs = [train_pairs(experiment.curation, experiment.table.train)]
    if (listed := experiment.listed_duplicates) is not None:
        pairs.append(listed[listed["id_1"].isin(fold_of.index) & listed["id_2"].isin(fold_of.index)])
    known = pd.concat(pairs).drop_duplicates()
    apart = (fold_of.loc[known["id_1"]].to_numpy() != fold_of.loc[known["id_2"]].to_numpy()).sum()
    torn = (frame.groupby("group")["fold"].nunique() > 1).sum()
    evidence = (
        f"{torn} of {frame['group'].nunique()} groups and {apart} of {len(known)} pairs of known duplicates "
        "are in two folds"
    )
    if torn or apart:
        remedy = "remove data.columns.fold from the config, so that dermstack makes the folds"
        found = [Finding("error", "groups or duplicates in two folds", evidence, remedy)]
    else:
        found = [Finding("note", "no group and no duplicates in two folds", evidence, "none")]
    return found + _other_folds(experiment)


def empty_column_findings(experiment: Experiment) -> list[Finding]:
    """Warns of columns that models use and that have no value in any training row, such as a derived one of 0 / 0."""
    table, used = experiment.table, metadata_of_models(experiment.config, experiment.table.columns)
    roles = experiment.config.data.columns.roles
    shown: dict[str, str] = {name: name for name in ("age", "sex", "site") if name in roles}
    shown |= table.columns.shown
    empty = [name for name in shown if name in used and table.train[name].isna().all()]
    if not empty:
        return []
    evidence = f"{first_of([shown[name] for name in empty], _MAX_LISTED)}; {len(table.train):,} training rows"
    remedy = (
        "check the train csv, data.missing and features.derived, or take them out of the config: nothing is learned "
        "from them"
    )
    return [Finding("warning", "columns that models use have no value in any training row", evidence, remedy)]


def missing_code_findings(experiment: Experiment) -> list[Finding]:
    """Reports numbers (a warning) and words (a note) that look like a code for "unknown" instead of an empty cell.

    A code of further columns is one finding for all columns that have it.
    """
    found = []
    for part, rows in (("train", experiment.table.train), ("test", experiment.table.test)):
        codes = missing_codes(rows, columns=experiment.table.columns) if len(rows) else []
        of_columns: dict[str, list[MissingCode]] = {}
        for code in codes:
            if code.is_further:
                of_columns.setdefault(code.value, []).append(code)
                continue
            evidence = f"{code} of {part}"
            if code.is_number:
                what, severity = "an age that looks like a code for 'unknown'", "warning"
                remedy = f"if it means 'unknown', declare it, {declared([code])}: models take it as a number of years"
            else:
                what, severity = f"a {code.column} whose name means unknown", "note"
                remedy = (
                    f"it counts as a category of its own; declare it to have it counted as missing: {declared([code])}"
                )
            found.append(Finding(cast("Severity", severity), what, evidence, remedy))
        for value, same in of_columns.items():
            evidence = f"{listed_codes(same)} of {part}"
            if same[0].is_number:
                what = f"{value} in columns of numbers looks like a code for 'unknown'"
                remedy = f"if it means 'unknown', declare it, such as {declared(same)}: models take it as a quantity"
                found.append(Finding("warning", what, evidence, remedy))
            else:
                what = f"{value} in columns of words means unknown"
                remedy = (
                    f"it counts as a category of its own; declare it to have it counted as missing: {declared(same)}"
                )
                found.append(Finding("note", what, evidence, remedy))
    return found


def _shared_findings(experiment: Experiment) -> list[Finding]:
    train, test = experiment.table.train, experiment.table.test
    if not experiment.table.test_groups_known:
        what, evidence = (
            "groups of the test rows are unknown",
            f"the test csv has no column {_group_column(experiment)!r}",
        )
        remedy = "add the column where it exists: nothing checks whether groups are in both train and test"
        return [Finding("note", what, evidence, remedy)]
    shared = set(train["group"]) & set(test["group"])
    if not shared:
        return []
    rows = int(test["group"].isin(shared).sum())
    evidence = f"{len(shared)} of {test['group'].nunique()} groups in test, {rows} of {len(test)} test rows"
    remedy = "the estimate holds for unseen groups: the score on these rows may be higher"
    return [Finding("warning", "groups in train and test", evidence, remedy, f"first group {min(shared)!r}")]


def _group_column(experiment: Experiment) -> str:
    return experiment.config.data.columns.group or ""


def _other_folds(experiment: Experiment) -> list[Finding]:
    """Reports fold columns of the training csv that the config does not use and that split groups."""
    config = experiment.config
    cells = read_cells(config.data.train)
    mapped = set(config.data.columns.roles.values())
    columns = [str(name) for name in cells]
    names = [name for name in columns if "fold" in name.lower() and name not in mapped and columns.count(name) == 1]
    rows = cells.set_index(config.data.columns.id).loc[experiment.table.train["id"]]
    found = []
    for name in names:
        text = rows[name].str.strip()
        has_fold = ~(is_missing_fold(text) | text.str.startswith("-").to_numpy(bool))
        try:
            values = fold_labels(text[has_fold], f"column `{name}`: folds")
        except DataError:
            continue  # it holds no folds for certain, and nothing uses it
        if 1 < values.nunique() <= 100:
            folds = values.groupby(experiment.split_group[has_fold]).nunique()
            evidence = f"{int((folds > 1).sum())} of {len(folds)} split_groups have rows in two or more of its folds"
            remedy = "do not import predictions made with these folds: their models have seen the groups they predict"
            what = f"the column `{name}`, which no setting uses, splits groups between folds"
            if (folds > 1).any():
                found.append(Finding("warning", what, evidence, remedy))
    return found


_MAX_LISTED = 20  # columns that a finding lists
_CHECKED_ELSEWHERE = ("id", "group", "target", "source", *ACQUISITION)  # keys, or checked by another part of the audit


def proxy_findings(experiment: Experiment) -> list[Finding]:
    """Reports columns of the training csv, mapped or not, that separate the target with AUC 0.98, or that test lacks.

    Each column is scored out of fold with whole groups held out, so that ids and names of groups do not count as
    predictive. A column that models use is an error; the others are warnings or notes: they must not become features.
    """
    config = experiment.config
    columns = {csv: name for name, csv in config.data.columns.roles.items()}
    cells = read_cells(config.data.train)
    rows = cells.set_index(config.data.columns.id).loc[experiment.table.train["id"]]
    in_test = set(read_cells(config.data.test).columns) if config.data.test else None
    y, fold, group = experiment.target, experiment.folds.frame["fold"], experiment.split_group
    associations: list[ColumnAssociation] = []
    missing = config.data.column_rules.missing
    for csv, times in Counter(map(str, rows.columns)).items():
        if columns.get(csv) not in _CHECKED_ELSEWHERE and times == 1:
            has_codes = any(fits(csv, name) for name in missing)
            values = numbers_or_words(known_cells(rows[csv], csv, missing).fillna("") if has_codes else rows[csv])
            if values.nunique(dropna=False) > 1:
                associations.append(column_association(csv, values, y, fold, group))
    found, lacking = list[Finding](), list[ColumnAssociation]()
    used = csv_of_models(config, experiment.table.columns)
    further = set(experiment.table.columns.csv.values())
    for one in associations:
        if one.strength >= PROXY_AUC and one.p * len(associations) < FALSE_ALARM_RATE:
            found.append(_proxy_finding(one, columns.get(one.name), in_test, used, further))
        elif in_test is not None and one.name not in in_test and columns.get(one.name) != "fold":
            lacking.append(one)
    if lacking:
        strongest = sorted(lacking, key=lambda one: -one.strength) if len(lacking) > _MAX_LISTED else lacking
        listed = "; ".join(f"`{one.name}` {one}" for one in strongest[:_MAX_LISTED])
        more = f"; and {len(lacking) - _MAX_LISTED:,} that tell less" if len(lacking) > _MAX_LISTED else ""
        evidence = f"{len(lacking)}, each with its own AUC: {listed}{more}"
        remedy = "do not use them as features: new rows do not have them"
        found.append(Finding("note", "columns that the test csv lacks", evidence, remedy))
    return found


def numbers_or_words(cells: pd.Series) -> pd.Series:
    """Returns cells as numbers if every non-empty cell is a number, else as words; empty cells are missing.

    As in the table that models use, numbers that are infinite or beyond 1e38 are missing values.
    """
    text = cells.str.strip().reset_index(drop=True)
    text = text.mask(text == "")
    numbers = pd.to_numeric(text, errors="coerce")
    if not (numbers.notna() == text.notna()).all():
        return text
    return numbers.astype("float64").mask(numbers.abs() > LARGEST)


def _proxy_finding(
    one: ColumnAssociation, mapped: str | None, in_test: set[str] | None, used: set[str], further: set[str]
) -> Finding:
    what = f"the column `{one.name}` separates the target"
    where = "" if in_test is None else ", in train and test" if one.name in in_test else ", only in train"
    evidence = f"{one} by this column alone{where}; p = {one.p:.1g}"
    severity: Severity
    if one.name in used and mapped is not None:
        severity, remedy = "error", f"models use it as data.columns.{mapped}: map another column"
    elif one.name in used:
        where_named = "data.columns" if one.name in further else "features.derived"
        severity, remedy = "error", f"models use it as a feature: remove it from {where_named}"
    elif one.name in further:
        severity, remedy = "warning", "no model uses it with these features: remove it from data.columns"
    elif mapped in ("age", "sex", "site"):
        severity, remedy = "warning", f"no model uses it with these features: map another data.columns.{mapped} first"
    elif mapped == "diagnosis":
        severity, remedy = "note", "it is only learned as a target, by models that ask for it; it is no feature"
    elif in_test is not None and one.name in in_test:
        severity, remedy = "warning", "the test csv reveals the target; dermstack does not read it, do not map it"
    else:
        severity, remedy = "note", "dermstack does not read it; do not use it as a feature"
    return Finding(severity, what, evidence, remedy)
