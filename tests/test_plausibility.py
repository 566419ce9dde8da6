"""Facts about the predictions of runs, against independent implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plausible_runs import files, patients, scores
from scipy.special import logit
from scipy.stats import ks_2samp, spearmanr
from sklearn.metrics import roc_auc_score

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.predictions.doubts import doubts
from stack.predictions.plausibility import Comparison, _distance, correlations, facts_table, run_facts


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return patients(tmp_path)


def test_facts_agree_with_independent_implementations(experiment: Experiment) -> None:
    a, b = files(experiment, 1), files(experiment, 2)
    facts = run_facts(experiment, [scores("a", a), scores("b", b)])[0]
    oof, test = a
    assert facts.auc is not None
    assert facts.auc.value == pytest.approx(roc_auc_score(experiment.target, oof["p"]))
    assert (facts.rows, facts.distinct, facts.resolution, facts.ties) == (900, 900, None, 0)
    for net in facts.nets.itertuples():
        own, there = oof["p"][oof["fold"] == net.net], test["p"][test["fold"] == net.net]
        assert net.distance == pytest.approx(ks_2samp(own, there).statistic)
        assert net.oof == pytest.approx(np.quantile(own, [0.05, 0.5, 0.95]), rel=0.05)
        assert net.test == pytest.approx(np.quantile(there, [0.05, 0.5, 0.95]), rel=0.05)
    assert facts.likest is not None
    assert facts.likest.name == "b"
    within = [spearmanr(oof["p"][rows], b[0]["p"][rows]).statistic for rows in (oof["fold"] == k for k in range(3))]
    assert facts.likest.oof == pytest.approx(np.mean(within), abs=0.02)
    means = [frame.assign(logit=logit(frame["p"])).groupby("isic")["logit"].mean() for frame in (test, b[1])]
    assert facts.likest.test == pytest.approx(spearmanr(*means).statistic)
    assert facts.likest.largest_gap == pytest.approx((oof["p"] - b[0]["p"]).abs().max())


def test_ties_are_counted_as_by_brute_force(experiment: Experiment) -> None:
    oof, test = files(experiment)
    oof["p"] = oof["p"].round(1).clip(0.05, 0.95)
    y, p = experiment.target, oof["p"].to_numpy()
    ties = np.mean([np.mean(p[y == 0] == value) for value in p[y == 1]])
    facts = run_facts(experiment, [scores("a", (oof, test))])[0]
    assert facts.ties == pytest.approx(ties)
    assert facts.resolution == 0.1


def test_correlations_use_the_rows_that_both_have() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.random((50, 3)), rng.random((50, 4))
    A[rng.random(A.shape) < 0.2], B[rng.random(B.shape) < 0.2] = np.nan, np.nan
    B[:, 3] = 0.5
    expected = pd.concat([pd.DataFrame(A), pd.DataFrame(B)], axis=1, keys=["a", "b"]).corr().loc["a", "b"].to_numpy()
    found = correlations(A, B)
    assert found[:, :3] == pytest.approx(expected[:, :3])
    assert np.isnan(found[:, 3]).all()


def test_correlations_of_complete_columns_are_numpys() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.random((50, 3)), np.column_stack([rng.random((50, 2)), np.full(50, 0.3)])
    found = correlations(A, B)
    assert found[:, :2] == pytest.approx(np.corrcoef(A.T, B.T)[:3, 3:5])
    assert np.isnan(found[:, 2]).all()


def test_runs_added_one_by_one_have_the_facts_of_all_at_once(experiment: Experiment) -> None:
    made = [scores(name, files(experiment, seed)) for seed, name in enumerate("abcd")]
    comparison = Comparison(experiment)
    for one in (made[0], made[3], made[1]):
        comparison.add(one)
    comparison.discard("d")
    comparison.add_other(made[2])
    for found, expected in zip(comparison.facts(), run_facts(experiment, made[:2], made[2:3]), strict=True):
        assert found.likest == expected.likest
        assert found.auc == expected.auc
        assert found.likest is not None
        assert found.likest.name != "d"


def test_the_table_has_one_row_a_run_whatever_is_absent(experiment: Experiment) -> None:
    oof, test = files(experiment)
    alone = run_facts(experiment, [scores("a", (oof, test.iloc[:0]))])
    assert facts_table(alone)["test p"].tolist() == ["–"]
    assert doubts(alone) == []
    half = run_facts(experiment, [scores("a", (oof, test)), scores("b", (oof.iloc[100:], test))])
    assert facts_table(half)["most like"].tolist() == ["b", "a"]


def test_a_run_of_other_rows_is_refused(experiment: Experiment) -> None:
    oof, test = files(experiment)
    with pytest.raises(StoreError, match="1 ids of a are not among the training rows"):
        run_facts(experiment, [scores("a", (oof.replace({"isic": {"tr0000": "stranger"}}), test))])


@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning:scipy")  # of ks_2samp's p, not used here
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.lists(st.integers(-5, 5), min_size=1, max_size=40))
def test_the_distance_of_two_distributions_is_kolmogorovs(a: list[int], b: list[int]) -> None:
    assert _distance(np.sort(np.array(a, float)), np.sort(np.array(b, float))) == pytest.approx(
        ks_2samp(a, b, method="asymp").statistic, abs=1e-12
    )
