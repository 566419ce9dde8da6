"""What can be seen of leaks without a picture: listed duplicates, groups that are none, groups in two places."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dermstack.audit.finding import Finding, Severity, worst_first
from dermstack.audit.pictures import PAIR_KINDS, pair_kinds
from dermstack.audit.single_column import FALSE_ALARM_RATE, ColumnAssociation, column_association
from stack.experiment import Experiment, read_duplicate_pairs, train_pairs
from stack.table import ACQUISITION, SENTINELS, read_cells

LARGE_GROUP_RATIO = 5  # times the 99th percentile of the others: a group of so many rows is looked at
LARGE_GROUP_ROWS = 20  # and of no fewer rows

_LISTED_PAIR_FINDINGS: dict[str, tuple[Severity, str, str]] = {  # by kind of pair
    PAIR_KINDS[0]: (
        "error",
        "listed duplicates with different targets",
        "one target is wrong, or the pair is none: look",
    ),
    PAIR_KINDS[1]: (
        "warning",
        "listed duplicates across train and test",
        "a score on these test rows is not of unseen lesions; drop them where that counts",
    ),
    PAIR_KINDS[2]: ("note", "listed duplicates across groups", "their groups count as one split_group already"),
    PAIR_KINDS[3]: ("note", "listed duplicates within a group", "harmless: a group never sits in two folds"),
}


def row_findings(experiment: Experiment) -> list[Finding]:
    """All findings about duplicates and groups, the worst first."""
    return worst_first(
        [
            *listed_duplicate_findings(experiment),
            *group_findings(experiment),
            *fold_findings(experiment),
        ]
    )


def listed_duplicate_findings(experiment: Experiment) -> list[Finding]:
    """One finding for each kind of pair in `data.duplicates`, but for those that the pictures show as well."""
    listed = read_duplicate_pairs(experiment.config.data.duplicates)
    if listed is None:
        return []
    pairs = listed.set_axis(["id_1", "id_2"], axis=1).astype("str")
    of_pictures = experiment.curation.pairs[["id_1", "id_2"]].astype("str").to_numpy()
    seen = {frozenset(pair) for pair in of_pictures}
    also = np.array([frozenset(pair) in seen for pair in pairs.to_numpy()], bool)
    made = pair_kinds(pairs[~also].reset_index(drop=True), experiment.table)
    beside = f", and {int(also.sum())} that the pictures show as well" if also.any() else ""
    found = []
    for kind in PAIR_KINDS:
        some = made[made["kind"] == kind]
        if len(some):
            severity, what, remedy = _LISTED_PAIR_FINDINGS[kind]
            example = f"first {some['id_1'].iloc[0]} and {some['id_2'].iloc[0]}"
            found.append(Finding(severity, what, f"{len(some)} of {len(pairs)} pairs{beside}", remedy, example))
    if strangers := int((~also).sum()) - len(made):
        evidence = f"{strangers} of {len(pairs)} pairs"
        found.append(Finding("note", "listed duplicates with an id of neither csv", evidence, "they merge nothing"))
    return found


def group_findings(experiment: Experiment) -> list[Finding]:
    """Names that stand for 'unknown', groups far larger than the others, groups in train and test."""
    found = []
    for part, rows in (("train", experiment.table.train), ("test", experiment.table.test)):
        sizes = rows["group"].value_counts()
        is_sentinel = sizes.index.str.lower().isin(SENTINELS)
        for name, size in sizes[is_sentinel].items():
            if size > 1:
                evidence = f"{size} of {len(rows)} rows in {part} have the group {str(name)!r}"
                remedy = "give each of these rows a group of its own: unknown patients are not one patient"
                found.append(Finding("warning", "a group whose name says unknown", evidence, remedy))
        others = sizes[~is_sentinel]
        if len(others) > 1 and others.iloc[0] >= max(
            LARGE_GROUP_ROWS, LARGE_GROUP_RATIO * np.quantile(others.iloc[1:], 0.99)
        ):
            evidence = (
                f"{others.iloc[0]} of {len(rows)} rows in {part}; the next has {others.iloc[1]}, "
                f"99 % of the others at most {np.quantile(others.iloc[1:], 0.99):.0f}"
            )
            remedy = "look whether they are one patient: a mark for 'unknown' binds rows that have nothing in common"
            found.append(
                Finding("warning", "a group far larger than the others", evidence, remedy, f"group {others.index[0]!r}")
            )
    return found + _shared_findings(experiment)


def fold_findings(experiment: Experiment) -> list[Finding]:
    """That no group and no known duplicate sits in two folds; and what columns of other folds would tear apart."""
    frame = experiment.folds.frame
    fold_of = frame.set_index("id")["fold"]
    pairs = [train_pairs(experiment.curation, experiment.table.train)]
    listed = read_duplicate_pairs(experiment.config.data.duplicates)
    if listed is not None:
        listed = listed.set_axis(["id_1", "id_2"], axis=1).astype("str")
        pairs.append(listed[listed["id_1"].isin(fold_of.index) & listed["id_2"].isin(fold_of.index)])
    known = pd.concat(pairs).drop_duplicates()
    apart = (fold_of.loc[known["id_1"]].to_numpy() != fold_of.loc[known["id_2"]].to_numpy()).sum()
    torn = (frame.groupby("group")["fold"].nunique() > 1).sum()
    evidence = (
        f"{torn} of {frame['group'].nunique()} groups and {apart} of {len(known)} pairs of known duplicates "
        "sit in two folds"
    )
    if torn or apart:
        remedy = "leave data.columns.fold out and let folds be made"
        found = [Finding("error", "groups or duplicates in two folds", evidence, remedy)]
    else:
        found = [Finding("note", "folds hold groups and duplicates together", evidence, "none")]
    return found + _other_folds(experiment)


def _shared_findings(experiment: Experiment) -> list[Finding]:
    train, test = experiment.table.train, experiment.table.test
    shared = set(train["group"]) & set(test["group"])
    if not shared:
        return []
    rows = int(test["group"].isin(shared).sum())
    evidence = f"{len(shared)} of {test['group'].nunique()} groups in test, {rows} of {len(test)} test rows"
    remedy = "folds hold groups out, so the estimate is of unseen groups: scores on these rows may be better than it"
    return [Finding("warning", "groups in train and test", evidence, remedy, f"first group {min(shared)!r}")]


def _other_folds(experiment: Experiment) -> list[Finding]:
    """Columns of the training csv that are named as folds and that no config maps: of predictions made elsewhere."""
    config = experiment.config
    cells = read_cells(config.data.train)
    mapped = set(config.data.columns.model_dump(exclude_none=True).values())
    columns = [str(name) for name in cells]
    names = [name for name in columns if "fold" in name.lower() and name not in mapped and columns.count(name) == 1]
    rows = cells.set_index(config.data.columns.id).loc[experiment.table.train["id"]]
    found = []
    for name in names:
        values = rows[name].str.strip()
        values = values.mask((values == "") | values.str.startswith("-"))  # of no fold
        if 1 < values.nunique() <= 100:
            folds = values.groupby(experiment.split_group).nunique()
            evidence = f"{int((folds > 1).sum())} of {len(folds)} split_groups have rows in two of its folds"
            remedy = "out-of-fold predictions made with such folds have seen the groups that they are scored on"
            what = f"the column `{name}`, which no setting names, tears groups apart"
            if (folds > 1).any():
                found.append(Finding("warning", what, evidence, remedy))
    return found


PROXY_AUC = 0.98  # AUC from which a column says the same as the target
_CHECKED_ELSEWHERE = ("id", "group", "target", "source", *ACQUISITION)  # what they are, or looked at elsewhere


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
    associations: list[ColumnAssociation] = []
    for csv in dict.fromkeys(rows.columns):
        if columns.get(csv) not in _CHECKED_ELSEWHERE and list(rows.columns).count(csv) == 1:
            values = numbers_or_words(rows[csv])
            if values.nunique(dropna=False) > 1:
                associations.append(column_association(csv, values, y, fold, group))
    found, lacking = [], []
    for one in associations:
        if one.strength >= PROXY_AUC and one.p * len(associations) < FALSE_ALARM_RATE:
            found.append(_proxy_finding(one, columns.get(one.name), in_test))
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


def _proxy_finding(one: ColumnAssociation, mapped: str | None, in_test: set[str] | None) -> Finding:
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
