"""Tests of the scales of fold nets, on simulated nets that predict rows of other groups."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dermstack.errors import DataError
from stack.blend.blender import Blender
from stack.blend.state import blender_from_state, blender_state
from stack.metrics.scores import auc
from stack.predictions.net_scale import nets_differ
from stack.predictions.ranks import NetRanks, net_moments

Rows = tuple[NDArray[np.float64], NDArray[np.int_], NDArray[np.int_], NDArray[np.int_]]


def simulated_rows(seed: int, *, rows: int = 2500, groups: int = 400, offset: float = 0.0, spread: float = 0.0) -> Rows:
    """Returns logits of five nets, their targets, nets and groups: groups differ in risk, nets in offset and spread."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=rows)
    fold_of_group = rng.permutation(groups) % 5
    nets = fold_of_group[group]
    risk = -3 + rng.normal(size=groups)[group]
    y = (rng.random(rows) < 1 / (1 + np.exp(-risk))).astype(int)
    x = risk + 2 * y + rng.normal(size=rows)
    x = x * np.exp(spread * rng.normal(size=5))[nets] + (offset * rng.normal(size=5))[nets]
    return x, y, nets, group


def scaled(x: NDArray[np.float64], nets: NDArray[np.int_], group: NDArray[np.int_] | None) -> NDArray[np.float64]:
    moments = net_moments(x, nets, group)
    mean, spread = np.array([moments[int(net)] for net in nets]).T
    return (x - mean) / spread


def test_nets_of_one_scale_keep_the_differences_of_their_rows() -> None:
    """Ranks and scales within each net, as without groups, lose the differences in risk between the folds."""
    lost = {"own scale": [], "own rank": [], "scale": [], "rank": []}
    for seed in range(30):
        x, y, nets, group = simulated_rows(seed, groups=80)
        best = auc(y, x)
        lost["own scale"].append(best - auc(y, scaled(x, nets, None)))
        lost["own rank"].append(best - auc(y, NetRanks().fit_transform(x[:, None], nets)[:, 0]))
        lost["scale"].append(best - auc(y, scaled(x, nets, group)))
        lost["rank"].append(best - auc(y, NetRanks().fit(x[:, None], nets, group).transform(x[:, None], nets)[:, 0]))
    mean = {name: np.mean(values) for name, values in lost.items()}
    assert mean["own scale"] > 0.002
    assert mean["own rank"] > 0.002
    assert mean["scale"] < mean["own scale"] / 2
    assert mean["rank"] < mean["own rank"] / 2


@pytest.mark.parametrize(("offset", "spread"), [(2.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_nets_of_other_scales_are_scaled_as_without_groups(offset: float, spread: float) -> None:
    for seed in range(10):
        x, y, nets, group = simulated_rows(seed, offset=offset, spread=spread)
        ranks = NetRanks().fit(x[:, None], nets, group).transform(x[:, None], nets)[:, 0]
        assert auc(y, scaled(x, nets, group)) > auc(y, scaled(x, nets, None)) - 0.002
        assert auc(y, ranks) > auc(y, NetRanks().fit_transform(x[:, None], nets)[:, 0]) - 0.002


def test_the_answer_is_right_for_nets_of_one_scale_and_of_others() -> None:
    found: dict[str, list[bool]] = {"same": [], "offset": [], "spread": []}
    for seed in range(60):
        for name, settings in (("same", {}), ("offset", {"offset": 2.0}), ("spread", {"spread": 0.7})):
            x, _, nets, group = simulated_rows(seed, **settings)
            found[name].append(nets_differ(x, nets, group))
    assert np.mean(found["same"]) < 0.15  # in theory 4 %, as 60 groups a net are few
    assert np.mean(found["offset"]) > 0.9
    assert np.mean(found["spread"]) > 0.9


def test_rows_of_a_group_are_no_independent_evidence() -> None:
    with_groups, alone = [], []
    for seed in range(20):
        x, _, nets, group = simulated_rows(seed, groups=60)
        with_groups.append(nets_differ(x, nets, group))
        alone.append(nets_differ(x, nets, np.arange(len(x))))
    assert np.mean(alone) > 0.8
    assert np.mean(with_groups) < 0.3


def test_each_net_has_its_own_scale_where_nothing_can_be_compared() -> None:
    x = np.random.default_rng(0).normal(size=20)
    assert nets_differ(x, np.zeros(20, int), np.arange(20))
    assert nets_differ(x, np.arange(20) % 2, np.arange(20) % 2)  # a group for each net


def test_constant_and_tied_values_are_compared() -> None:
    nets, group = np.arange(30) % 3, np.arange(30)
    assert not nets_differ(np.zeros(30), nets, group)
    assert nets_differ(np.where(nets == 0, 1.0, 0.0), nets, group)
    assert not nets_differ(np.arange(30.0), np.where(nets == 0, 7, nets), np.where(nets == 0, 0, group))


def test_the_order_of_rows_and_an_increasing_transform_change_nothing() -> None:
    for seed in range(5):
        x, _, nets, group = simulated_rows(seed, offset=0.1)
        order = np.random.default_rng(1).permutation(len(x))
        expected = nets_differ(x, nets, group)
        assert nets_differ(x[order], nets[order], group[order]) == expected
        assert nets_differ(1 / (1 + np.exp(-x)), nets, group) == expected


def test_a_blend_of_nets_of_one_scale_is_the_same_after_it_is_stored() -> None:
    x, y, nets, group = simulated_rows(2)
    P = np.column_stack([1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-x - 3 * (nets == 1)))])
    blender = Blender("rank_mean").fit(P, y, nets=nets, groups=group)
    one, other = blender.scaler_.ranks_.ecdfs_
    assert one[0] is one[1] is one[-1]
    assert other[0] is not other[1]
    restored = blender_from_state(*blender_state(blender))
    np.testing.assert_array_equal(restored.predict_proba(P, nets=nets), blender.predict_proba(P, nets=nets))
    with pytest.raises(DataError, match="no ranks for net 7"):
        restored.predict_proba(P, nets=np.full(len(P), 7))
