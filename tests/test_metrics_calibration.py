import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss

from stack.metrics.calibration import calibration_scores, reliability


def promised(rng, n=5000, prevalence=0.05):
    p = expit(rng.normal(logit(prevalence), 1.2, n))
    return (rng.random(n) < p).astype(int), p


def test_bins_hold_every_row_once_in_order_and_promise_as_many_positives(rng):
    y, p = promised(rng)
    table = reliability(y, p, np.arange(len(y)))
    assert table["rows"].sum() == len(y)
    assert table["positives"].sum() == y.sum()
    assert table["p"].is_monotonic_increasing
    assert len(table) == 10
    told = table["p"] * table["rows"]
    assert told.to_numpy() == pytest.approx(p.sum() / 10, rel=0.06)
    assert table["share"].to_numpy() == pytest.approx((table["positives"] / table["rows"]).to_numpy())


def test_rows_of_their_own_have_wilsons_interval(rng):
    y, p = promised(rng)
    for line in reliability(y, p, np.arange(len(y))).to_dict("records"):
        oracle = binomtest(line["positives"], line["rows"]).proportion_ci(method="wilson")
        assert (line["low"], line["high"]) == pytest.approx((oracle.low, oracle.high), abs=1e-3)


def test_copies_of_a_row_in_its_group_add_nothing(rng):
    y, p = promised(rng)
    group = np.arange(len(y))
    alone = reliability(y, p, group)
    repeated = reliability(*(np.repeat(values, 5) for values in (y, p, group)))
    assert repeated[["low", "high"]].to_numpy() == pytest.approx(alone[["low", "high"]].to_numpy(), abs=1e-3)


def test_a_bin_without_positives_still_has_an_interval():
    table = reliability([0] * 50 + [1] * 50, [0.1] * 50 + [0.9] * 50, np.arange(100), bins=2)
    first = table.iloc[0]
    assert (first["share"], first["low"]) == (0, 0)
    assert first["high"] == pytest.approx(binomtest(0, 50).proportion_ci(method="wilson").high)


def test_equal_values_stay_together():
    table = reliability([0, 1] * 50, [0.5] * 100, np.arange(100))
    assert table[["rows", "share"]].to_numpy().tolist() == [[100, 0.5]]
    assert reliability([0, 1], [0.0, 0.0], [0, 1])["p"].tolist() == [0]


def test_intervals_of_a_true_probability_hold_it(rng):
    held = []
    for _ in range(40):
        y, p = promised(rng, n=2000)
        table = reliability(y, p, np.arange(len(y)))
        held += ((table["low"] <= table["p"]) & (table["p"] <= table["high"])).tolist()
    assert np.mean(held) > 0.92


def test_scores_are_those_of_scikit_learn_and_a_true_probability_has_slope_one(rng):
    y, p = promised(rng, n=200_000)
    scores = calibration_scores(y, p)
    assert scores["brier"] == pytest.approx(brier_score_loss(y, p))
    assert scores["log loss"] == pytest.approx(log_loss(y, p))
    assert scores["mean p"] == pytest.approx(p.mean())
    assert scores["slope"] == pytest.approx(1, abs=0.03)
    assert scores["ece"] < 0.003


def test_a_probability_that_is_too_sure_has_a_slope_below_one(rng):
    y, p = promised(rng, n=50_000)
    assert calibration_scores(y, expit(2 * logit(p)))["slope"] == pytest.approx(0.5, abs=0.03)
