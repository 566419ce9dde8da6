"""Laws of the training of a set transformer: what an epoch shows, what it learns, and what its bytes depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from dermstack.errors import ImageError
from image_models import set_training
from image_models.set_training import batches, fit_set_net
from image_models.settings import SetTransformerSettings

SMALL = SetTransformerSettings(width=8, heads=2, epochs=3, patience=3)
COLUMNS = ("a", "b", "c")


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_each_epoch_has_every_row_once_and_parts_stay_inside_groups(seed: int, sizes: list[int]) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    seen = list(batches(group, SMALL, np.random.default_rng(seed)))
    rows, parts = np.concatenate([rows for rows, _ in seen]), np.concatenate([part for _, part in seen])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(group)))
    for _, of_batch in seen:
        assert (np.diff(of_batch) >= 0).all(), "the rows of a part stand together"
    assert len(np.unique(parts)) == len(np.unique(np.column_stack([parts, group[rows]]), axis=0))
    of_batch = np.repeat(np.arange(len(seen)), [len(rows) for rows, _ in seen])
    assert len(np.unique(parts)) == len(np.unique(np.column_stack([parts, of_batch]), axis=0)), "no part is divided"


@pytest.mark.parametrize(("alone", "subsets", "expected"), [(0.0, 0.0, [1, 1]), (1.0, 0.0, [1, 9]), (0.0, 1.0, [2, 9])])
def test_groups_are_seen_as_a_whole_in_parts_or_as_single_rows(
    alone: float, subsets: float, expected: list[int]
) -> None:
    group = np.repeat(np.arange(50), 9)
    chosen = SetTransformerSettings(alone=alone, subsets=subsets)
    count = np.zeros(50, int)
    for rows, parts in batches(group, chosen, np.random.default_rng(0)):
        for part in np.unique(parts):
            count[group[rows[parts == part][0]]] += 1
    low, high = expected
    assert count.min() >= (1 if subsets else low if not alone else 9)
    assert count.max() <= high
    if subsets:
        assert len(np.unique(count)) > 3, "of any number of parts"


def made_sets(seed: int, groups: int) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.intp]]:
    """Rows whose risk is the distance from their group's median row: only the group says which row stands out."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rng.integers(3, 8, groups))
    level = rng.normal(scale=3, size=groups)[group]
    own = rng.normal(size=len(group))
    x = np.column_stack([level + own, rng.normal(size=(len(group), 2))]).astype(np.float32)
    return x, (rng.random(len(group)) < expit(4 * own - 2)).astype(np.int8), group


@pytest.mark.slow
def test_it_learns_what_only_the_group_tells_and_stays_right_for_a_row_alone() -> None:
    x, y, group = made_sets(0, 400)
    new, target, its = made_sets(1, 400)
    net = fit_set_net(x, y, group, group % 5 == 0, columns=COLUMNS, settings=SMALL, seed=0)
    together, alone = net.logit(new, its), net.logit(new, np.arange(len(new)))
    row_alone = roc_auc_score(target, new[:, 0])
    assert roc_auc_score(target, together) > row_alone + 0.15
    assert roc_auc_score(target, alone) > row_alone - 0.05
    assert abs(expit(together).mean() - target.mean()) < 0.05
    assert abs(expit(alone).mean() - target.mean()) < 0.05


def test_rows_of_a_group_held_for_early_stopping_do_not_change_the_fit_before_it() -> None:
    """The inner rows choose the epochs; a fit of the other rows has no part in the second fit."""
    x, y, group = made_sets(2, 60)
    inner = group % 5 == 0
    first = fit_set_net(x, y, group, inner, columns=COLUMNS, settings=SMALL, seed=1)
    again = fit_set_net(x, y, group, inner, columns=COLUMNS, settings=SMALL, seed=1, epochs=first.epochs)
    assert first.to_bytes() == again.to_bytes()
    assert first.to_bytes() != fit_set_net(x, y, group, inner, columns=COLUMNS, settings=SMALL, seed=2).to_bytes()


def test_the_number_of_threads_and_torchs_generator_change_no_byte() -> None:
    x, y, group = made_sets(2, 40)
    made, state, threads = [], torch.get_rng_state(), torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            torch.manual_seed(number)
            before = torch.get_rng_state()
            made.append(fit_set_net(x, y, group, group % 5 == 0, columns=COLUMNS, settings=SMALL, seed=0).to_bytes())
            assert torch.get_num_threads() == number
            assert torch.equal(torch.get_rng_state(), before), "draws of others go on as they would have"
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert made[0] == made[1]


def test_a_loss_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, group = made_sets(2, 40)
    monkeypatch.setattr(set_training, "_loss", lambda *_: float("nan"))
    with pytest.raises(ImageError, match=r"lower `params\.lr`"):
        fit_set_net(x, y, group, group % 5 == 0, columns=COLUMNS, settings=SMALL, seed=0)
