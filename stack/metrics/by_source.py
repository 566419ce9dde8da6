"""AUC within each source (hospital, camera), the AUC of a typical source, and where that of the next one may lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from stack.metrics.intervals import Z95, clustered_auc
from stack.metrics.random_effects import RandomEffects, random_effects
from stack.metrics.scores import Bools, check_same_order, checked
from stack.metrics.subgroups import MIN_GROUPS


@dataclass(frozen=True)
class OverSources:
    """The AUC within a typical source, as a summary of several sources.

    ``sources`` has one row a source: source, rows, groups, positives, prevalence, auc, low, high (95 %, clustered
    DeLong on the logit scale) and note, which says why a source has no AUC. ``mean`` is the AUC whose logit is the mean
    logit over sources; ``low`` and ``high`` are its 95 % interval, ``next_low`` and ``next_high`` the 95 % prediction
    interval for the AUC of a further source, NaN where sources are too few.
    """

    sources: pd.DataFrame
    mean: float
    low: float
    high: float
    next_low: float
    next_high: float
    between: float  # standard deviation of the logit of the AUC between sources
    p_same: float  # p-value of the test that all sources have one AUC

    @property
    def used(self) -> int:
        """Number of sources with an AUC."""
        return int(self.sources["auc"].notna().sum())


def auc_over_sources(y: ArrayLike, s: ArrayLike, split_group: ArrayLike, source: ArrayLike) -> OverSources:
    """Returns the AUC of scores ``s`` (n,) for targets ``y`` (n,) within each ``source`` (n,), and their summary.

    A source needs `MIN_GROUPS` groups of each class; the others are listed with the reason. Only rows of one source are
    compared, so that shifts of the scores between sources do not count. AUCs are combined on the logit scale by
    `random_effects`, with variances by `clustered_auc`; where the scores of a source separate the classes, that
    variance would be 0, and the one of Hanley and McNeil (1982) replaces it, with half a pair of rows counted as wrong.
    All values of the summary are NaN for fewer than two sources with an AUC.
    """
    check_same_order(targets=y, scores=s, split_groups=split_group, sources=source)
    positive, scores = checked(y, s)
    names, group = np.asarray(source, dtype=object), np.asarray(split_group, dtype=object)
    records, logits, variances = [], [], []
    for name in sorted(pd.unique(names), key=str):
        rows = names == name
        record: dict[str, object] = {
            "source": str(name), "rows": int(rows.sum()), "groups": len(pd.unique(group[rows])),
            "positives": int(positive[rows].sum()), "prevalence": float(positive[rows].mean()),
            "note": too_few(positive[rows], group[rows]),
        }  # fmt: skip
        if not record["note"]:
            value, variance = logit_auc(positive[rows], np.asarray(scores, np.float64)[rows], group[rows])
            half = Z95 * np.sqrt(variance)
            record |= {
                "auc": float(expit(value)),
                "low": float(expit(value - half)),
                "high": float(expit(value + half)),
            }
            logits.append(value)
            variances.append(variance)
        records.append(record)
    columns = ["source", "rows", "groups", "positives", "prevalence", "auc", "low", "high", "note"]
    table = pd.DataFrame(records).reindex(columns=columns)
    if len(logits) < 2:
        nan = float("nan")
        return OverSources(table, nan, nan, nan, nan, nan, nan, nan)
    found = random_effects(logits, variances)
    mean, low, high = (float(expit(value)) for value in (found.mean, found.low, found.high))
    next_low, next_high = float(expit(found.next_low)), float(expit(found.next_high))
    return OverSources(table, mean, low, high, next_low, next_high, found.between, found.p_same)


def difference_over_sources(
    y: ArrayLike, a: ArrayLike, b: ArrayLike, split_group: ArrayLike, source: ArrayLike
) -> RandomEffects | None:
    """Returns the AUC of ``a`` minus that of ``b`` within a typical source, paired on the same rows (n,).

    The differences of the sources, on the scale of the AUC, are combined by `random_effects`, with the variance of
    their paired difference by `clustered_auc`. None for fewer than two sources that have one: a source needs
    `MIN_GROUPS` groups of each class and scores that order its rows differently.
    """
    check_same_order(targets=y, a=a, b=b, split_groups=split_group, sources=source)
    positive, scores = checked(y, a)
    both = np.column_stack([scores, checked(y, b)[1]])
    names, group = np.asarray(source, dtype=object), np.asarray(split_group, dtype=object)
    values, variances = [], []
    for name in sorted(pd.unique(names), key=str):
        rows = names == name
        if too_few(positive[rows], group[rows]):
            continue
        difference, _ = clustered_auc(positive[rows], both[rows], group[rows]).difference()
        if difference.se > 0:
            values.append(difference.value)
            variances.append(difference.se**2)
    return random_effects(values, variances) if len(values) > 1 else None


def too_few(positive: Bools, group: ArrayLike) -> str:
    """Returns why these rows are too few for an AUC of their own; "" where they are enough."""
    codes = np.asarray(group, dtype=object)
    for word, rows in (("positive", positive), ("negative", ~positive)):
        if (n := len(pd.unique(codes[rows]))) < MIN_GROUPS:
            holds = "no group holds" if n == 0 else "1 group holds" if n == 1 else f"{n} groups hold"
            return f"too few to say: {holds} a {word}, {MIN_GROUPS} are needed"
    return ""


def logit_auc(positive: Bools, s: ArrayLike, group: ArrayLike) -> tuple[float, float]:
    """Returns the logit of the AUC and its variance, both finite: half a pair of rows counts as wrong at AUC 1."""
    found = clustered_auc(positive, s, group)
    m, n = int(positive.sum()), int((~positive).sum())
    value = (float(found.auc[0]) * m * n + 0.5) / (m * n + 1)
    variance = float(found.covariance[0, 0])
    if variance <= 1e-12:  # all groups alike
        first, second = value / (2 - value), 2 * value**2 / (1 + value)
        variance = value * (1 - value) + (m - 1) * (first - value**2) + (n - 1) * (second - value**2)
        variance /= m * n
    return float(logit(value)), variance / (value * (1 - value)) ** 2
