import numpy as np
import pytest

from stack.metrics.decisions import decision_curve, round_thresholds, sensible_thresholds


def rows(rng, n=3000):
    y = (rng.random(n) < 0.1).astype(int)
    return y, 1 / (1 + np.exp(3 - 2 * y - rng.normal(size=n))), rng.integers(0, n // 2, n)


def by_hand(y, p, t):
    """Vickers & Elkin's formula, counted row by row."""
    true = sum(1 for a, b in zip(y, p, strict=True) if b >= t and a == 1)
    false = sum(1 for a, b in zip(y, p, strict=True) if b >= t and a == 0)
    return true / len(y) - false / len(y) * t / (1 - t)


def test_net_benefit_is_that_of_the_formula(rng):
    y, p, group = rows(rng)
    at = [0.01, 0.05, 0.1, 0.3, 0.7]
    curve = decision_curve(y, p, group, thresholds=at, draws=20)
    assert curve["net_benefit"].tolist() == pytest.approx([by_hand(y, p, t) for t in at])
    assert curve["treat_all"].tolist() == pytest.approx([by_hand(y, np.ones(len(y)), t) for t in at])
    gain = curve["net_benefit"] - np.maximum(curve["treat_all"], 0)
    assert curve["gain"].tolist() == pytest.approx(gain.tolist())
    assert curve["sensitivity"].tolist() == pytest.approx([(p[y == 1] >= t).mean() for t in at])
    assert curve["called"].tolist() == pytest.approx([(p >= t).mean() for t in at])


def test_at_the_prevalence_acting_on_all_is_worth_as_much_as_on_nobody(rng):
    y, p, group = rows(rng)
    assert decision_curve(y, p, group, thresholds=[y.mean()], draws=5)["treat_all"][0] == pytest.approx(0)


def test_a_perfect_score_finds_the_prevalence_and_a_threshold_below_all_acts_on_all(rng):
    y, p, group = rows(rng)
    perfect = decision_curve(y, y.astype(float), group, thresholds=[0.2, 0.5], draws=5)
    assert perfect["net_benefit"].tolist() == pytest.approx([y.mean()] * 2)
    low = decision_curve(y, p, group, thresholds=[p.min() / 2], draws=5).iloc[0]
    assert low["net_benefit"] == pytest.approx(low["treat_all"])
    assert (low["gain_low"], low["gain_high"]) == pytest.approx((0, 0), abs=1e-12)


def test_the_interval_is_that_of_repeating_whole_groups(rng):
    y, p, group = rows(rng, n=400)
    curve = decision_curve(y, p, group, thresholds=[0.2], draws=4000)
    held = [np.flatnonzero(group == name) for name in np.unique(group)]
    with_positive = [members for members in held if y[members].any()]
    without = [members for members in held if not y[members].any()]
    drawn = []
    for _ in range(2000):
        some = [one[i] for one in (with_positive, without) for i in rng.integers(len(one), size=len(one))]
        members = np.concatenate(some)
        drawn.append(by_hand(y[members], p[members], 0.2))
    assert (curve["low"][0], curve["high"][0]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.003)


@pytest.mark.parametrize("prevalence", [0.001, 0.02, 0.3, 0.6])
def test_thresholds_span_the_prevalence(prevalence):
    positive = np.arange(10_000) < 10_000 * prevalence
    at = sensible_thresholds(positive)
    assert 0 < at[0] < prevalence < at[-1] < 1
    assert np.all(np.diff(at) > 0)
    few = round_thresholds(positive)
    assert len(few) >= 3
    assert at[0] <= few[0] < prevalence < few[-1] <= at[-1]
