"""Runs that carry nothing are left out, all others are kept."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from stack.blend.preselection import informative_runs
from stack.metrics.scores import auc


def simulated(strengths: list[float], *, rows: int = 1000, seed: int = 0) -> tuple[NDArray, NDArray, NDArray]:
    """Ranks (rows, runs), targets of which a tenth is 1, and each row its own group."""
    rng = np.random.default_rng(seed)
    y = (np.arange(rows) % 10 == 0).astype(int)
    V = np.outer(y, strengths) + rng.normal(size=(rows, len(strengths)))
    return rankdata(V, axis=0) / (rows + 1), y, np.arange(rows)


@pytest.mark.parametrize("strengths", [[1.5, 1.5, 0], [0, 1.5, 1.5, 0, 1.2], [1.2, -1.2, 1.2]])
def test_runs_without_information_and_inverted_runs_are_left_out(strengths: list[float]) -> None:
    ranks, y, group = simulated(strengths, seed=1)
    used = informative_runs(ranks, y, group)
    assert used.tolist() == [strength > 0 for strength in strengths]
    assert auc(y, ranks[:, used].mean(axis=1)) > auc(y, ranks.mean(axis=1))


def test_runs_that_carry_something_are_all_used() -> None:
    assert informative_runs(*simulated([1.5, 0.5, 1.0])).all()  # one is much weaker: its weight is the methods' concern


def test_where_the_mean_is_better_with_all_runs_all_are_used() -> None:
    """A run that shows nothing by itself stays if the mean gains by it: its noise cancels that of another run."""
    rng = np.random.default_rng(0)
    y = (np.arange(2000) % 10 == 0).astype(int)
    noise = rng.normal(size=2000)
    ranks = rankdata(np.column_stack([y + noise + 0.1 * rng.normal(size=2000), -noise]), axis=0) / 2001
    assert auc(y, ranks[:, 1]) < 0.55
    assert informative_runs(ranks, y, np.arange(2000)).all()


def test_of_runs_that_all_show_nothing_all_are_used() -> None:
    ranks, y, group = simulated([-1.0, -1.0])
    assert informative_runs(ranks, y, group).all()


def test_rows_of_one_group_count_together() -> None:
    """Forty copies of each row are no more evidence than one."""
    ranks, y, group = simulated([2.0, 0.25], rows=100, seed=3)
    alone = informative_runs(ranks, y, group)
    copied = informative_runs(np.tile(ranks, (40, 1)), np.tile(y, 40), np.tile(group, 40))
    as_rows = informative_runs(np.tile(ranks, (40, 1)), np.tile(y, 40), np.arange(4000))
    assert alone.tolist() == copied.tolist() == [True, False]
    assert as_rows.tolist() == [True, True]


def test_a_single_run_and_too_few_groups_leave_nothing_to_select() -> None:
    ranks, y, group = simulated([0.0, 0.0, 2.0])
    assert informative_runs(ranks[:, :1], y, group).all()
    assert informative_runs(ranks, y, np.zeros(len(y))).all()
    assert informative_runs(ranks, np.zeros(len(y)), group).all()
