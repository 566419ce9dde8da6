"""A guaranteed threshold: the same as by brute force, valid at the edge of its promise, and none where none is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from dermstack.errors import DataError
from stack.metrics.risk_control import LOWER_AIMS, UPPER_AIMS, Guarantee, guaranteed_threshold

AIMS = (*LOWER_AIMS, *UPPER_AIMS)


def drawn(seed: int, patients: int, most: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, calibrated p with ties, and patients of up to ``most`` images."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    p = rng.beta(0.6, 1.5, len(group)).round(2)
    return rng.random(len(group)) < p, p, group


def passes(
    wrong: np.ndarray, decided: np.ndarray, group: np.ndarray, aim: str, level: float, confidence: float, exact: bool
) -> bool:
    """The test of one threshold, written down from the papers."""
    alpha, of_decided = 1 - level, aim in ("npv", "ppv")
    counted = decided if of_decided else wrong
    errors = wrong & decided
    if not counted.any():
        return False
    sizes = np.unique(group if of_decided else group[wrong], return_counts=True)[1]
    if sizes.max() == 1:
        return bool(binom.cdf(errors.sum(), counted.sum(), alpha) <= 1 - confidence)
    names = np.unique(group)
    e = np.array([errors[group == name].sum() for name in names])
    c = np.array([counted[group == name].sum() for name in names])
    if not exact:
        share, n, g = e.sum() / c.sum(), c.sum(), (c > 0).sum()
        effective = float(g)
        if 0 < share < 1:
            variance = g / (g - 1) * ((e - share * c) ** 2).sum() / n**2
            effective = n / max(1, variance / (share * (1 - share) / (n - 1)))
        upper = beta.ppf(confidence, share * effective + 1, effective * (1 - share)) if share < 1 else 1.0
        return bool(upper <= alpha)
    most = max(int(np.bincount(group[wrong]).max()) if wrong.any() else 0, 1)
    groups = len(names) if of_decided else len(np.unique(group[wrong]))
    rows = groups * (np.bincount(group).max() if of_decided else most**2)
    best = math.sqrt(2 * math.log(1 / (1 - confidence)) / (alpha * rows)) * most
    low, high = min(best, 0.99), 0.99 if of_decided else min(best * most, 0.99)
    parts = np.geomspace(low, high, 1 + math.ceil(math.log2(high / low)))
    wealth = [float(np.prod(1 - part / ((1 - alpha) * most) * (e - alpha * c))) for part in parts]
    return float(np.mean(wealth)) >= 1 / (1 - confidence)


def by_brute_force(
    y: np.ndarray, p: np.ndarray, group: np.ndarray, aim: str, level: float, confidence: float, exact: bool
) -> int | None:
    """How many rows are decided by the last threshold before the first that fails; None where the first one fails."""
    upper = aim in UPPER_AIMS
    wrong = ~y if upper else y
    starts = {"npv": 1 - level, "ppv": level}
    tried = np.unique(p)[::-1] if upper else np.append(np.unique(p), np.inf)
    if aim in starts:
        tried = [starts[aim], *(t for t in tried if (t < level if upper else t > 1 - level))]
    elif upper:
        tried = [np.inf, *tried]
    found = None
    for t in tried:
        decided = p >= t if upper else p < t
        if not passes(wrong, decided, group, aim, level, confidence, exact):
            break
        found = int(decided.sum())
    return found


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("aim", AIMS)
@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6), patients=st.integers(30, 120), level=st.sampled_from([0.5, 0.6, 0.8]),
    confidence=st.sampled_from([0.6, 0.9]),
)  # fmt: skip
def test_the_threshold_is_that_of_a_search_by_brute_force(
    seed: int, patients: int, most: int, aim: str, level: float, confidence: float, exact: bool
) -> None:
    y, p, group = drawn(seed, patients, most)
    if y.all() or not y.any():
        return
    found = guaranteed_threshold(y, p, group, aim, level, confidence, exact=exact)
    expected = by_brute_force(y, p, group, aim, level, confidence, exact)
    assert (found.threshold is None) == (expected is None)
    if found.threshold is not None and expected is not None:
        decided = int((p >= found.threshold).sum() if aim in UPPER_AIMS else (p < found.threshold).sum())
        assert 0.99 * expected <= decided <= expected, "a round threshold may decide one in a hundred less"
        wrong = ~y if aim in UPPER_AIMS else y
        side = p >= found.threshold if aim in UPPER_AIMS else p < found.threshold
        assert found.errors == (wrong & side).sum()


@pytest.mark.parametrize(("aim", "mirrored"), [("sensitivity", "specificity"), ("npv", "ppv")])
def test_the_upper_end_is_the_lower_end_of_the_other_class(aim: str, mirrored: str) -> None:
    y, p, group = drawn(3, 300, 3)
    p = np.round(p * 64) / 64  # whose 1 - p is exact
    low = guaranteed_threshold(y, p, group, aim, 0.75, 0.9)
    high = guaranteed_threshold(~y, 1 - p, group, mirrored, 0.75, 0.9)
    assert low.threshold is not None
    assert high.threshold is not None
    assert low.most == high.most
    decided = (p < low.threshold).sum(), (1 - p >= high.threshold).sum()
    assert min(decided) >= 0.98 * max(decided), "each may leave out one in a hundred for a round threshold"


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("most", [1, 5])
def test_at_the_edge_of_the_promise_a_threshold_passes_too_rarely_to_matter(most: int, exact: bool) -> None:
    """Every positive has the same p, so that deciding these rows misses half of them: at level 0.5 the null is true."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(300):
        group = np.repeat(np.arange(60), rng.integers(1, most + 1, 60))
        missed = rng.random(len(group)) < rng.beta(2, 2, 60)[group] if most > 1 else rng.random(len(group)) < 0.5
        p = np.where(missed, 0.2, 0.8)
        found = guaranteed_threshold(np.ones(len(p), int), p, group, "sensitivity", 0.5, 0.9, exact=exact)
        passed += found.threshold is not None and found.threshold > 0.2
    assert passed <= binom.ppf(0.999, 300, 0.1)
    assert passed > 0 or exact, "a test that never rejects would pass as well"


@pytest.mark.parametrize(("most", "exact"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("aim", ["sensitivity", "npv"])
def test_as_many_patients_as_it_asks_for_are_enough_and_one_fewer_is_not(aim: str, most: int, exact: bool) -> None:
    def of(patients: int) -> Guarantee:
        """All patients alike; of the decided rows none is positive, and half of the rows are positives far above."""
        group = np.repeat(np.arange(patients), 2 * most)
        y = np.tile([0, 1], patients * most)
        if aim == "npv" and most == 1:  # one image each
            group = np.arange(len(y))
        return guaranteed_threshold(y, np.where(y, 0.9, 0.01), group, aim, 0.8, 0.9, exact=exact)

    few = of(2)
    assert few.threshold is None
    assert few.needed is not None
    assert of(few.needed - 1).threshold is None
    assert of(few.needed).threshold is not None


def test_a_patient_with_many_positives_counts_once_in_the_number_of_patients() -> None:
    y, p = np.ones(40, int), np.full(40, 0.9)
    found = guaranteed_threshold(
        np.append(y, 0), np.append(p, 0.1), np.append(np.zeros(40, int), 1), "sensitivity", 0.9, 0.9
    )
    assert (found.threshold, found.groups, found.rows, found.most) == (None, 1, 40, 40)


def test_rows_without_the_class_have_no_threshold() -> None:
    none = guaranteed_threshold([0, 0, 0], [0.1, 0.2, 0.3], ["a", "b", "b"], "sensitivity", 0.9, 0.9)
    assert (none.threshold, none.rows, none.needed) == (None, 0, 22)
    assert guaranteed_threshold([0, 0], [0.5, 0.6], ["a", "b"], "npv", 0.9, 0.9).threshold is None, "no p below 0.1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"aim": "recall"}, "recall of 0.9"),
        ({"level": 1.0}, "between 0 and 1"),
        ({"group": ["a", None, "b"]}, "groups are missing"),
        ({"group": ["a", "b"]}, "groups have shape"),
        ({"p": [0.1, np.nan, 0.2]}, "scores are NaN"),
    ],
)
def test_what_cannot_be_tested_is_refused_by_name(change: dict[str, object], words: str) -> None:
    given = {"y": [0, 1, 1], "p": [0.1, 0.2, 0.3], "group": ["a", "b", "c"], "aim": "npv", "level": 0.9} | change
    with pytest.raises(DataError, match=words):
        guaranteed_threshold(*given.values(), 0.9)  # type: ignore[arg-type]
