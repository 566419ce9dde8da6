"""Tells test rows from training rows by a classifier (adversarial validation): its AUC, p-value and columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from dermstack.audit.single_column import one_sided_rank_p
from stack.metrics.intervals import Interval, interval
from stack.metrics.scores import Floats, auc

HALF_SPLITS = 9  # random splits of the groups into a training half and a test half
_FOLDS = 5
_CLASSIFIER_LEVELS = 50  # most frequent levels of a text column that the classifier distinguishes


def adversarial_validation(
    x: Floats, in_test: NDArray[np.generic], group: NDArray[np.object_], *, seed: int, shuffle: bool = True
) -> tuple[Interval, Floats]:
    """Returns the out-of-fold AUC between train and test, and its loss when each column is shuffled (k,).

    A column is shuffled among the held-out rows of a fold, without refitting. Only columns that the fold's trees split
    are scored again; the others lose nothing. Without ``shuffle`` no loss is returned (0,).
    """
    made = np.empty(len(x))
    columns = x.shape[1] if shuffle else 0
    shuffled = np.empty((columns, len(x)))
    rng = np.random.default_rng(seed)
    part = _random_group_parts(in_test, group, _FOLDS, rng)
    for k in range(_FOLDS):
        held = np.flatnonzero(part == k)
        model = _fit_classifier(x[part != k], in_test[part != k])
        rows = x[held]
        made[held] = shuffled[:, held] = model.decision_function(rows)
        splits = _split_columns(model) if columns else set()
        for column in range(columns):
            drawn = rng.permutation(rows[:, column])
            if column in splits:  # no other column can change a score; of thousands, few are split
                kept, rows[:, column] = rows[:, column].copy(), drawn
                shuffled[column, held] = model.decision_function(rows)
                rows[:, column] = kept
    found = interval("auc", in_test, made, group)
    return found, found.value - np.array([auc(in_test, s) for s in shuffled])


def adversarial_validation_p(
    x: Floats, in_test: NDArray[np.generic], group: NDArray[np.object_], *, seed: int
) -> float:
    """Returns the p-value of the null hypothesis that rows (n, k) of train and test have the same distribution.

    A classifier is fitted on half of the groups and tested on the other half. The p-value is twice the median over
    splits, which is valid for dependent splits (Meinshausen, Meier & Bühlmann 2009). The pooled scores of a
    cross-validation would not give a valid test: its folds are trained on each other's rows and so are not independent.
    """
    rng = np.random.default_rng(seed)
    p_values = []
    for _ in range(HALF_SPLITS):
        held = _random_group_parts(in_test, group, 2, rng) == 1
        model = _fit_classifier(x[~held], in_test[~held])
        p_values.append(one_sided_rank_p(in_test[held], model.decision_function(x[held]), group[held]))
    return min(1.0, 2 * float(np.median(p_values)))


def _random_group_parts(
    in_test: NDArray[np.generic], group: NDArray[np.object_], k: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Assigns each row (n,) to a part 0..k-1 by whole groups, those with test rows separately from the others."""
    codes, names = pd.factorize(group)
    holds = np.bincount(codes, in_test, len(names)) > 0
    order = rng.permutation(len(names))
    order = order[np.argsort(holds[order], kind="stable")]
    part = np.empty(len(names), np.intp)
    part[order] = np.arange(len(names)) % k
    assigned: NDArray[np.intp] = part[codes]
    return assigned


def _fit_classifier(x: Floats, y: NDArray[np.generic]) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=50, max_leaf_nodes=8, min_samples_leaf=20, early_stopping=False, random_state=0
    ).fit(x, y)


def _split_columns(model: HistGradientBoostingClassifier) -> set[int]:
    """Returns the places of the columns that the trees split."""
    trees = [tree.nodes for of_round in model._predictors for tree in of_round]
    return {int(place) for nodes in trees for place in nodes["feature_idx"][nodes["is_leaf"] == 0]}


def classifier_matrix(rows: pd.DataFrame) -> Floats:
    """Returns a matrix (n, k): numbers unchanged, words as level codes; missing is a level, rare words share one."""
    columns = []
    for name in rows:
        if pd.api.types.is_numeric_dtype(rows[name]):
            columns.append(rows[name].to_numpy(np.float64, na_value=np.nan))
        else:
            words = rows[name].astype("object").where(rows[name].notna(), "")
            common = pd.Index(words.value_counts().index[:_CLASSIFIER_LEVELS].sort_values())
            columns.append(common.get_indexer(pd.Index(words)).astype(np.float64))
    return np.column_stack(columns)
