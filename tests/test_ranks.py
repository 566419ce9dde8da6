"""Empirical distributions: mid-ranks where rows were seen, strictly increasing everywhere."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from dermstack.errors import DataError
from stack.predictions import ranks as module
from stack.predictions.ranks import AVERAGED, Ecdf, NetRanks

COLUMNS = st.lists(st.floats(-1e100, 1e100) | st.integers(-5, 5).map(float), min_size=1, max_size=30)


@given(column=COLUMNS)
@settings(max_examples=200)
def test_training_values_get_their_mid_rank(column: list[float]) -> None:
    expected = (rankdata(column, method="average") - 0.5) / len(column)
    np.testing.assert_allclose(Ecdf().fit(column)(column), expected, rtol=0, atol=1e-15)


@given(column=COLUMNS, new=COLUMNS)
@settings(max_examples=200)
def test_no_higher_value_has_a_lower_rank(column: list[float], new: list[float]) -> None:
    values = np.unique([*column, *new])
    ranks = Ecdf().fit(column)(values)
    assert (np.diff(ranks) >= 0).all()
    assert ((ranks > 0) & (ranks < 1)).all()


@given(column=st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), step=st.floats(0.01, 5))
@settings(max_examples=200)
def test_ranks_increase_strictly_between_and_beyond_the_training_values(column: list[int], step: float) -> None:
    values = np.unique(np.concatenate([column, np.arange(-1500, 1500, step)[:20_000]]))
    assert (np.diff(Ecdf().fit(column)(values)) > 0).all()


def test_ten_thousand_new_scores_have_ten_thousand_ranks(rng: np.random.Generator) -> None:
    ecdf, new = Ecdf().fit(rng.normal(size=300)), 2 * rng.normal(size=10_982)
    assert len(np.unique(ecdf(new))) == len(new)
    np.testing.assert_array_equal(np.argsort(ecdf(new)), np.argsort(new))


def test_tails_go_on_to_0_and_1() -> None:
    ecdf = Ecdf().fit([1.0, 2.0, 3.0])
    far = ecdf([-1e12, -1e6, -10, 0, 1, 3, 4, 10, 1e6, 1e12])
    assert (np.diff(far) > 0).all()
    np.testing.assert_allclose(far[[0, -1]], [0, 1], atol=1e-11)


def test_a_constant_column_has_rank_one_half() -> None:
    ecdf = Ecdf().fit([7.0, 7.0, 7.0])
    below, at, above = ecdf([6.9, 7.0, 7.1])
    assert below < at == 0.5 < above


def test_a_tiny_gap_does_not_overflow() -> None:
    assert Ecdf().fit([0.0, 5e-324, 1.0])([0.0, 5e-324, 0.5]).tolist() == [1 / 6, 0.5, pytest.approx(2 / 3)]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_difference_or_distance_of_finite_numbers_overflows() -> None:
    far = Ecdf().fit([-1e308, 1e308])([-1.7e308, -1e308, 0.0, 1e308, 1.7e308])
    np.testing.assert_allclose(far, [0.25 / 1.35, 0.25, 0.5, 0.75, 1 - 0.25 / 1.35])
    near = Ecdf().fit([0.0, 5e-324])([-1.7e308, 0.0, 5e-324, 1.0])
    assert (near[1:3] == [0.25, 0.75]).all()
    assert 0 < near[0] < 1e-300
    assert near[3] == np.nextafter(1.0, 0.0)
    below, at, above = Ecdf().fit([-1e308])([-1.7e308, -1e308, 1.7e308])
    assert below < at == 0.5 < above


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"1 values are NaN or inf \(first in row 1\)"):
        Ecdf().fit([0.0, bad])
    with pytest.raises(DataError, match="NaN or inf"):
        Ecdf().fit([0.0, 1.0])([bad])
    with pytest.raises(DataError, match="no values"):
        Ecdf().fit([])


def test_ranks_are_taken_within_run_and_net(rng: np.random.Generator) -> None:
    P = rng.random((60, 3))
    nets = np.stack([np.arange(60) % 4, np.arange(60) % 3, np.zeros(60)], axis=1).astype(int)
    ranks = NetRanks().fit_transform(P, nets)
    for run in range(3):
        for net in np.unique(nets[:, run]):
            rows = nets[:, run] == net
            np.testing.assert_array_equal(ranks[rows, run], Ecdf().fit(P[rows, run])(P[rows, run]))


def test_a_net_of_another_scale_ranks_alike(rng: np.random.Generator) -> None:
    P, nets = rng.random((50, 1)), np.arange(50) % 2
    scaled = np.where(nets == 0, 100.0, 0.01)[:, None] * P
    np.testing.assert_allclose(NetRanks().fit_transform(scaled, nets), NetRanks().fit_transform(P, nets))


def test_averaged_predictions_rank_against_all_nets(rng: np.random.Generator) -> None:
    P, nets = rng.random((40, 2)), np.arange(40) % 5
    new = rng.random((3, 2))
    ranks = NetRanks().fit(P, nets).transform(new, [AVERAGED, AVERAGED, 2])
    for run in range(2):
        np.testing.assert_array_equal(ranks[:2, run], Ecdf().fit(P[:, run])(new[:2, run]))
        assert ranks[2, run] == Ecdf().fit(P[nets == 2, run])(new[2:, run])


def test_unknown_nets_and_shapes_are_refused_by_name(rng: np.random.Generator) -> None:
    P = rng.random((6, 2))
    ranks = NetRanks().fit(P, [0, 0, 0, 1, 1, 1])
    with pytest.raises(DataError, match=r"run 0: no ranks for net 7 \(known: -1, 0, 1\)"):
        ranks.transform(P, [0, 0, 0, 1, 1, 7])
    with pytest.raises(DataError, match="predictions are of 1 runs, but ranks were fitted on 2"):
        ranks.transform(P[:, :1], np.zeros(6))
    with pytest.raises(DataError, match="nets have shape"):
        ranks.transform(P, [0, 1])
    with pytest.raises(DataError, match="predictions have shape"):
        ranks.transform(P[:, 0], np.zeros(6))


def test_the_docstrings_example_runs() -> None:
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
