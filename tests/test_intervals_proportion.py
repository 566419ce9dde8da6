import numpy as np
import pytest
from scipy.stats import binomtest

from stack.metrics.intervals import proportion


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 12), (7, 40), (40, 40), (999, 1000)])
def test_rows_on_their_own_have_the_interval_that_scipy_calls_wilson(hits: int, n: int) -> None:
    made = proportion(np.arange(n) < hits, np.arange(n))
    wanted = binomtest(hits, n).proportion_ci(method="wilson")
    assert (made.value, made.low, made.high) == pytest.approx((hits / n, wanted.low, wanted.high), abs=1e-9)
    assert made.se == pytest.approx((wanted.high - wanted.low) / 2 / 1.96, rel=0.05)


def test_rows_that_a_group_repeats_count_once(rng: np.random.Generator) -> None:
    hit = rng.random(300) < 0.3
    alone, fourfold = proportion(hit, np.arange(300)), proportion(np.repeat(hit, 4), np.repeat(np.arange(300), 4))
    assert (fourfold.low, fourfold.high) == pytest.approx((alone.low, alone.high), abs=1e-3)


def test_where_all_are_hit_each_group_counts_once() -> None:
    made = proportion(np.ones(50, bool), np.repeat(np.arange(5), 10))
    assert (made.low, made.high) == pytest.approx((binomtest(5, 5).proportion_ci(method="wilson").low, 1.0))


def test_the_interval_holds_the_truth_19_times_of_20_where_groups_are_alike() -> None:
    rng, held = np.random.default_rng(2), 0
    for _ in range(600):
        group = rng.integers(0, 120, 500)
        risk = rng.beta(1.2, 4.8, 120)  # 0.2 on average, far apart between groups
        made = proportion(rng.random(500) < risk[group], group)
        held += made.low <= 0.2 <= made.high
    assert 0.92 < held / 600 < 0.98


def test_no_row_has_no_share() -> None:
    assert np.isnan(proportion([], []).value)
