from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from dermstack.errors import DataError
from stack.metrics.intervals import clustered_auc, interval, midranks, paired_difference


def brute_force(y: np.ndarray, scores: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Obuchowski (1997), equations 3 to 6, pair by pair and group by group."""
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    m, n, names = len(positives), len(negatives), np.unique(group)
    auc, v10, v01 = [], [], []
    for s in scores.T:
        kernel = np.array(
            [[1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0 for j in negatives] for i in positives]
        )
        auc.append(kernel.mean())
        v10.append(dict(zip(positives, kernel.mean(axis=1), strict=True)))
        v01.append(dict(zip(negatives, kernel.mean(axis=0), strict=True)))
    with_positives = [g for g in names if ((group == g) & (y == 1)).any()]
    with_negatives = [g for g in names if ((group == g) & (y == 0)).any()]
    covariance = np.zeros((scores.shape[1], scores.shape[1]))
    for a in range(scores.shape[1]):
        for b in range(scores.shape[1]):

            def off(values: list[dict[int, float]], k: int, g: object, label: int) -> float:
                return sum(values[k][i] - auc[k] for i in np.flatnonzero((group == g) & (y == label)))

            i10, i01, i = len(with_positives), len(with_negatives), len(names)
            s10 = i10 / ((i10 - 1) * m) * sum(off(v10, a, g, 1) * off(v10, b, g, 1) for g in with_positives)
            s01 = i01 / ((i01 - 1) * n) * sum(off(v01, a, g, 0) * off(v01, b, g, 0) for g in with_negatives)
            s11 = i / (i - 1) * sum(off(v10, a, g, 1) * off(v01, b, g, 0) for g in names)
            s11_other = i / (i - 1) * sum(off(v10, b, g, 1) * off(v01, a, g, 0) for g in names)
            covariance[a, b] = s10 / m + s01 / n + (s11 + s11_other) / (m * n)
    return np.array(auc), covariance


@pytest.mark.parametrize("seed", range(6))
def test_it_is_obuchowskis_formula_with_ties_and_mixed_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 12, 60)
    y = (rng.random(60) < 0.4).astype(int)
    scores = np.round(rng.normal(0, 1, (60, 3)) + y[:, None] + rng.normal(0, 1, 12)[group][:, None], 1)
    made = clustered_auc(y, scores, group)
    auc, covariance = brute_force(y, scores, group)
    assert np.allclose(made.auc, auc)
    assert np.allclose(made.auc, [roc_auc_score(y, s) for s in scores.T])
    assert np.allclose(made.covariance, covariance, atol=1e-12)


def test_a_group_a_row_is_plain_delong(rng: np.random.Generator) -> None:
    y = (rng.random(300) < 0.3).astype(int)
    s = rng.normal(0, 1, 300) + y
    kernel = (s[y == 1][:, None] > s[y == 0]).astype(float)
    plain = kernel.mean(axis=1).var(ddof=1) / (y == 1).sum() + kernel.mean(axis=0).var(ddof=1) / (y == 0).sum()
    # A lone row has one class: the term between the classes vanishes.
    assert clustered_auc(y, s, np.arange(300)).covariance[0, 0] == pytest.approx(plain, rel=1e-9)


def test_it_agrees_with_the_bootstrap_over_groups(rng: np.random.Generator) -> None:
    group = np.repeat(np.arange(250), 6)
    patient = rng.normal(0, 1, 250)[group]
    y = (rng.random(1500) < 0.15).astype(int)
    a, b = (1.2 * y + patient + rng.normal(0, 1, 1500) for _ in range(2))
    made = clustered_auc(y, np.column_stack([a, b]), group)
    drawn = interval("auc", y, a, group)
    assert made.interval(0).high - made.interval(0).low == pytest.approx(drawn.high - drawn.low, rel=0.2)
    difference, _ = made.difference()
    drawn = paired_difference("auc", y, a, b, group)
    assert difference.value == pytest.approx(drawn.value)
    assert difference.high - difference.low == pytest.approx(drawn.high - drawn.low, rel=0.2)


def test_under_no_difference_p_is_uniform_although_rows_of_a_group_agree() -> None:
    """A test that took rows for independent would reject far too often."""
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(60), 10)
        y = np.repeat(rng.random(60) < 0.3, 10).astype(int)
        truth = 0.8 * y + rng.normal(0, 1, 60)[group]
        a, b = (truth + rng.normal(0, 0.8, 60)[group] + rng.normal(0, 0.2, 600) for _ in range(2))
        rejected += clustered_auc(y, np.column_stack([a, b]), group).difference()[1] < 0.05
    assert 2 <= rejected <= 22, "5 % of 200, with room for chance"


def test_the_same_order_differs_by_nothing(rng: np.random.Generator) -> None:
    y = np.tile([0, 1], 20)
    s = rng.random(40)
    difference, p = clustered_auc(y, np.column_stack([s, np.exp(s)]), np.arange(40)).difference()
    assert (difference.value, difference.low, difference.high, difference.se, p) == (0, 0, 0, 0, 1)


def test_too_few_groups_and_bad_scores_are_named() -> None:
    with pytest.raises(DataError, match="1 groups hold positives"):
        clustered_auc([1, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], ["a", "b", "c", "a"])
    with pytest.raises(DataError, match="1 rows have a score that is NaN or inf"):
        clustered_auc([1, 0, 0, 1], [np.nan, 0.2, 0.3, 0.4], ["a", "b", "c", "d"])


@pytest.mark.parametrize("rows", [0, 1, 2, 40])
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_midranks_are_scipys(rng: np.random.Generator, rows: int, values: int) -> None:
    x = rng.integers(0, values, rows).astype(float)
    assert midranks(x).tolist() == rankdata(x).tolist()
