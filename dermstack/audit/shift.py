"""Whether test rows are other rows than those of training: a classifier between them, and what it lives on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from dermstack.audit.drift import drift
from dermstack.audit.finding import Finding, Severity
from dermstack.audit.single_column import ALARM, ordered_p
from stack.acquisition import with_acquisition
from stack.experiment import Experiment
from stack.metrics.intervals import Interval, interval
from stack.metrics.scores import auc
from stack.parallel import on_threads
from stack.table import ACQUISITION

DRIFTED = 0.55  # AUC between train and test from which it is worth a warning, where chance is out of question
FEWEST = 10  # groups on either side, with fewer of which nothing is said
HALVES = 9  # splits of the groups into a half to learn from and a half to test on
_PARTS = 5
_COMMON = 50  # levels of words that the classifier tells apart
_DRIVES = 0.1  # share of what the AUC has above 0.5 that a column must be worth to be named as what drives it

Floats = NDArray[np.float64]


def drift_findings(experiment: Experiment, *, seed: int = 0) -> list[Finding]:
    """Of what the models use (age, sex, site, and what the config adds), then of what they don't: one finding each.

    The AUC is of a gradient boosting that tells test rows from training rows out of fold, whole groups held out. Ids,
    and what is in train alone, take no part. Drift of what no model uses is a note.
    """
    parts = _parts(experiment)
    if not len(parts[1]):
        return []
    features = experiment.config.features
    used, unused = ["age", "sex", "site"], list[str]()
    (used if features.context_counts else unused).append("images of the group")
    (used if features.shortcuts else unused).extend(ACQUISITION)
    found = []
    for columns, is_used in ((used, True), (unused, False)):
        known = [name for name in columns if all(name in part and part[name].notna().any() for part in parts)]
        known = [name for name in known if pd.concat([part[name] for part in parts]).nunique(dropna=False) > 1]
        if known:
            found.append(on_threads(experiment.config.threads, _finding, parts, known, is_used, seed))
    return found


def _finding(parts: list[pd.DataFrame], columns: list[str], is_used: bool, seed: int) -> Finding:
    what = f"train and test differ in {'what models use' if is_used else 'what no model uses'}"
    groups = [part["group"].nunique() for part in parts]
    if min(groups) < FEWEST:
        evidence = f"{groups[0]} groups in train, {groups[1]} in test"
        return Finding("note", "too few groups to tell train from test", evidence, "none")
    both = pd.concat(parts, ignore_index=True)
    in_test = np.repeat([0, 1], [len(part) for part in parts])
    x, group = _matrix(both[columns]), both["group"].to_numpy(object)
    apart, worth = told_apart(x, in_test, group, seed=seed)
    p = told_apart_p(x, in_test, group, seed=seed)
    evidence = f"AUC {apart} between them, of {', '.join(columns)}; p = {min(1.0, 2 * p):.1g}"
    if 2 * p >= ALARM:  # what is used, what is not: two looks
        evidence += ": within chance"
        return Finding("note", what.replace("differ", "don't differ beyond chance"), evidence, "none")
    drivers = _drivers(parts, columns, worth, least=_DRIVES * max(apart.value - 0.5, 0.0), seed=seed)
    evidence += f"; driven by {drivers}" if drivers else "; by no column alone"
    if not is_used:
        return Finding("note", what, evidence, "harmless as long as no model is given these")
    severity: Severity = "warning" if apart.value > DRIFTED else "note"
    remedy = "the estimate is of rows like those of train; look at its subgroups, which say how it does on others"
    return Finding(severity, what, evidence, remedy)


def told_apart(
    x: Floats, in_test: NDArray[np.generic], group: NDArray[np.object_], *, seed: int
) -> tuple[Interval, Floats]:
    """AUC between train and test out of fold, and what it loses where a column (k,) is shuffled among held-out rows."""
    made = np.empty(len(x))
    shuffled = np.empty((x.shape[1], len(x)))
    rng = np.random.default_rng(seed)
    part = _dealt(in_test, group, _PARTS, rng)
    for k in range(_PARTS):
        held = np.flatnonzero(part == k)
        score = _fit(x[part != k], in_test[part != k])
        made[held] = score(x[held])
        for column in range(x.shape[1]):
            other = x[held].copy()
            other[:, column] = rng.permutation(other[:, column])
            shuffled[column, held] = score(other)
    found = interval("auc", in_test, made, group)
    return found, found.value - np.array([auc(in_test, s) for s in shuffled])


def told_apart_p(x: Floats, in_test: NDArray[np.generic], group: NDArray[np.object_], *, seed: int) -> float:
    """p-value of rows (n, k) not telling whether they are of test: learned on half of the groups, tested on the other.

    Twice the median over splits, which is valid however the splits depend (Meinshausen, Meier & Bühlmann 2009). The
    scores of all folds together would not do: folds that learn from each other's rows are not independent.
    """
    rng = np.random.default_rng(seed)
    p_values = []
    for _ in range(HALVES):
        held = _dealt(in_test, group, 2, rng) == 1
        p_values.append(ordered_p(in_test[held], _fit(x[~held], in_test[~held])(x[held]), group[held]))
    return min(1.0, 2 * float(np.median(p_values)))


def _dealt(
    in_test: NDArray[np.generic], group: NDArray[np.object_], k: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """A part 0..k-1 of each row (n,), whole groups, those of test and the others dealt apart."""
    codes, names = pd.factorize(group)
    holds = np.bincount(codes, in_test, len(names)) > 0
    order = rng.permutation(len(names))
    order = order[np.argsort(holds[order], kind="stable")]
    part = np.empty(len(names), np.intp)
    part[order] = np.arange(len(names)) % k
    dealt: NDArray[np.intp] = part[codes]
    return dealt


def _fit(x: Floats, y: NDArray[np.generic]) -> Callable[[Floats], Floats]:
    model = HistGradientBoostingClassifier(
        max_iter=50, max_leaf_nodes=8, min_samples_leaf=20, early_stopping=False, random_state=0
    ).fit(x, y)
    return lambda rows: np.asarray(model.decision_function(rows), np.float64)


def _matrix(rows: pd.DataFrame) -> Floats:
    """(n, k): numbers as they are, words as the number of their level; a missing one is a level, the rare share one."""
    columns = []
    for name in rows:
        if pd.api.types.is_numeric_dtype(rows[name]):
            columns.append(rows[name].to_numpy(np.float64, na_value=np.nan))
        else:
            words = rows[name].astype("object").where(rows[name].notna(), "")
            common = pd.Index(words.value_counts().index[:_COMMON].sort_values())
            columns.append(common.get_indexer(pd.Index(words)).astype(np.float64))
    return np.column_stack(columns)


def _parts(experiment: Experiment) -> list[pd.DataFrame]:
    known = with_acquisition(experiment) or experiment
    tables = [part.reset_index(drop=True) for part in (known.table.train, known.table.test)]
    return [part.assign(**{"images of the group": part.groupby("group")["id"].transform("size")}) for part in tables]


def _drivers(parts: list[pd.DataFrame], columns: list[str], worth: Floats, *, least: float, seed: int) -> str:
    """Columns by what they are worth, with how far apart the two sides are in each."""
    sides = [{name: part[name] for name in columns} for part in parts]
    distance = drift(sides[0], sides[1], parts[0]["group"], parts[1]["group"], seed=seed).set_index("column")
    order = [place for place in np.argsort(-worth, kind="stable") if worth[place] > least]
    return ", ".join(
        f"{columns[place]} (AUC −{worth[place]:.3f} without it, {distance.loc[columns[place], 'distance']:.0%} of rows "
        f"apart, {distance.loc[columns[place], 'chance']:.0%} by chance)"
        for place in order
    )
