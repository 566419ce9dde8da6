"""stack.blend.pooling: how the images of a unit become one prediction, and the nested choice of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit

from stack.blend.nested import NestedBlend, NestedSettings, blend_nested, left_out_sets
from stack.blend.pooling import (
    LEARNED_FROM,
    POOLINGS,
    blend_pooled,
    number_of_pooled_fits,
    pool_all,
    pool_logits,
    pool_predictions,
    pooling_and_method,
)
from stack.metrics.intervals import interval
from stack.metrics.scores import auc
from stack.predictions.joined import Predictions
from stack.predictions.ranks import AVERAGED

FOLDS = 4
METHODS = ("rank_mean", "logistic")
FREE = tuple(name for name in POOLINGS if name != "learned")

logits = st.floats(-30, 30, width=32)


def predictions(
    oof: NDArray[Any], fold: NDArray[np.int8], group: NDArray[np.object_], test: NDArray[Any] | None = None
) -> Predictions:
    runs = oof.shape[1]
    made = np.zeros((FOLDS, 0, runs)) if test is None else test
    return Predictions(
        tuple("abcdef"[:runs]), np.arange(len(oof)), oof.astype(np.float32), np.repeat(fold[:, None], runs, axis=1),
        made.astype(np.float32), np.repeat(np.arange(FOLDS, dtype=np.int8)[:, None], runs, axis=1), group,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), logits), min_size=1, max_size=12))
def test_each_pooling_is_what_a_loop_over_the_images_gives(images: list[tuple[int, float]]) -> None:
    names = sorted({unit for unit, _ in images})
    unit = np.array([names.index(name) for name, _ in images])
    values = np.array([[value] for _, value in images])
    for place, name in enumerate(names):
        own = [value for at, value in images if at == name]
        none = np.prod([1.0 - expit(np.longdouble(value)) for value in own])
        expected = {"mean": np.mean(own), "maximum": max(own)}
        for pooling, value in expected.items():
            assert pool_logits(values, unit, pooling)[place, 0] == pytest.approx(value, abs=1e-9)
        noisy = pool_logits(values, unit, "noisy_or")[place, 0]
        assert expit(-noisy) == pytest.approx(float(none), rel=1e-9), "the probability that no image is positive"
        assert noisy >= max(own) - 1e-9, "at least the risk of the image with the highest"


@given(st.lists(st.tuples(st.integers(0, 2), logits, logits), min_size=1, max_size=10), st.randoms())
def test_the_order_of_the_images_changes_no_bit(images: list[tuple[int, float, float]], chance: Any) -> None:
    names = sorted({image[0] for image in images})
    shuffled = chance.sample(images, len(images))
    made = [
        [
            pool_logits(
                np.array([image[1:] for image in rows]), np.array([names.index(image[0]) for image in rows]), how
            ).tobytes()
            for how in POOLINGS
        ]
        for rows in (images, shuffled)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("value", [-745.0, -60.0, 0.0, 40.0, 745.0])
def test_extreme_logits_stay_finite_and_keep_their_order(value: float) -> None:
    two = pool_logits(np.array([[value], [value], [value + 1], [value + 1]]), np.array([0, 0, 1, 1]), "noisy_or")[:, 0]
    assert np.isfinite(two).all()
    assert two[0] <= two[1]


def test_one_image_in_each_unit_is_the_image_itself_to_the_last_bit() -> None:
    world = World(seed=3, units=120, images=1)
    of_images = blend_nested(
        expit(world.predictions.oof.astype(np.float64)), world.y_image, nets=world.predictions.nets,
        fold=world.fold_image, split_group=world.group_image, methods=METHODS,
    )  # fmt: skip
    for pooling in FREE:
        found = world.blend(pooling)
        for method in METHODS:
            assert found.by_method[f"{pooling}/{method}"].tobytes() == of_images.by_method[method].tobytes()
        assert found.chosen == f"{pooling}/{of_images.chosen}"
        assert found.score.tobytes() == of_images.score.tobytes()
        assert found.final.weights_.tobytes() == of_images.final.weights_.tobytes()
    pooled = pool_predictions(world.predictions, world.unit, np.empty(0, int), "noisy_or")
    assert pooled.oof.tobytes() == world.predictions.oof.tobytes()
    assert (pooled.nets == world.predictions.nets).all()


def test_learned_pooling_weights_all_others_of_each_run() -> None:
    world = World(seed=1, units=60)
    pooled = pool_predictions(world.predictions, world.unit, np.empty(0, int), "learned")
    assert pooled.names == tuple(f"{run}/{how}" for how in LEARNED_FROM for run in "ab")
    for place, how in enumerate(LEARNED_FROM):
        alone = pool_predictions(world.predictions, world.unit, np.empty(0, int), how)
        assert pooled.oof[:, 2 * place : 2 * place + 2].tobytes() == alone.oof.tobytes()
    found = world.blend("learned")
    assert list(found.by_method) == ["learned/logistic"]
    assert len(found.final.weights_) == len(pooled.names)


def test_test_rows_are_pooled_as_training_rows_are_within_each_fold_net() -> None:
    world = World(seed=2, units=50)
    by_net = np.stack([world.predictions.oof + net for net in range(FOLDS)])
    both = predictions(world.predictions.oof, world.fold_image, world.group_image, by_net)
    for pooling in POOLINGS:
        made = pool_predictions(both, world.unit, world.unit, pooling)
        assert made.test[0].tobytes() == made.oof.tobytes()
        for net in range(FOLDS):
            expected = pool_logits(by_net[net].astype(np.float32), world.unit, pooling)
            np.testing.assert_array_equal(made.test[net], expected.astype(np.float32))


def test_images_that_a_run_leaves_out_are_not_pooled_and_units_without_any_are_no_rows() -> None:
    oof = np.array([[0.0], [2.0], [5.0]])
    partly = Predictions(
        ("a",), np.array([0, 2, 4]), oof.astype(np.float32), np.array([[0], [0], [1]], np.int8),
        np.zeros((2, 0, 1), np.float32), np.array([[AVERAGED]] * 2, np.int8), np.array(["x", "x", "z"], object),
    )  # fmt: skip
    of_train = np.array([0, 0, 0, 1, 2])  # unit 1 has one image, which no run predicts
    made = pool_predictions(partly, of_train, np.empty(0, int), "maximum")
    assert made.rows.tolist() == [0, 2]
    assert made.oof[:, 0].tolist() == [2.0, 5.0]
    assert made.nets[:, 0].tolist() == [0, 1]
    assert made.groups is not None
    assert made.groups.tolist() == ["x", "z"]


class World:
    """Units of one to five images. Of a positive unit, `shows` says which images show the finding."""

    def __init__(self, *, seed: int, units: int, images: int = 5, shows: str = "one", noise: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        group = rng.permutation(np.repeat(np.arange(units), 2)[:units])  # two units in a group
        self.y = (rng.random(units) < 0.35).astype(np.int8)
        self.group, self.fold = group.astype(str).astype(object), (group % FOLDS).astype(np.int8)
        self.unit = np.repeat(np.arange(units), rng.integers(1, images + 1, units))
        self.y_image, self.fold_image, self.group_image = (of[self.unit] for of in (self.y, self.fold, self.group))
        first = np.concatenate([[True], np.diff(self.unit) > 0])
        signal = 4.0 * self.y_image * (first if shows == "one" else 0.25)
        oof = signal[:, None] + rng.normal(0, noise, (len(self.unit), 2)) - 2
        self.predictions = predictions(oof, self.fold_image, self.group_image)

    def blend(self, *poolings: str, y: NDArray[Any] | None = None, methods: tuple[str, ...] = METHODS) -> NestedBlend:
        pooled = pool_all(self.predictions, self.unit, np.empty(0, int), poolings)
        y = self.y if y is None else y
        return blend_pooled(pooled, y, NestedSettings(methods), fold=self.fold, split_group=self.group)


@pytest.mark.parametrize(
    ("shows", "right", "wrong"), [("one", {"maximum", "noisy_or", "learned"}, "mean"), ("all", {"mean"}, "maximum")]
)
def test_the_planted_pooling_is_chosen_in_every_fold(shows: str, right: set[str], wrong: str) -> None:
    found = World(seed=5, units=500, shows=shows).blend(*POOLINGS)
    chosen = {pooling_and_method(name)[0] for name in [found.chosen, *found.chosen_by_fold.values()]}
    assert chosen <= right
    world = World(seed=5, units=500, shows=shows)
    best = auc(world.y, found.score)
    assert best > auc(world.y, found.comparable[f"{wrong}/rank_mean"]) + 0.01


def test_where_one_image_shows_it_the_maximum_beats_the_other_fixed_poolings() -> None:
    found = World(seed=6, units=800, noise=1.2).blend("mean", "maximum")
    assert {pooling_and_method(name)[0] for name in found.chosen_by_fold.values()} == {"maximum"}


def test_the_nested_value_of_units_agrees_with_that_of_fresh_units() -> None:
    errors = []
    for seed in range(6):
        world, fresh = World(seed=seed, units=300, noise=2.0), World(seed=1000 + seed, units=4000, noise=2.0)
        found = world.blend(*POOLINGS, methods=("rank_mean",))
        pooling, _ = pooling_and_method(found.chosen)
        new = pool_predictions(fresh.predictions, fresh.unit, np.empty(0, int), pooling)
        averaged = np.full(new.nets.shape, AVERAGED)
        true = auc(fresh.y, found.final.predict_proba(expit(new.oof.astype(np.float64)), nets=averaged)[:, 1])
        nested = interval("auc", world.y, found.score, world.group)
        errors.append((nested.value - true) / (nested.high - nested.low) * 3.92)
    assert abs(np.mean(errors)) < 1.96 / np.sqrt(len(errors)) * 1.2, "no bias beyond noise"
    assert max(map(abs, errors)) < 3.5


def test_no_choice_of_pooling_has_seen_the_targets_that_it_is_scored_on() -> None:
    world = World(seed=4, units=160)
    before = world.blend(*POOLINGS)
    for k in range(FOLDS):
        turned = np.where(world.fold == k, 1 - world.y, world.y)
        after = world.blend(*POOLINGS, y=turned)
        held = world.fold == k
        assert after.chosen_by_fold[k] == before.chosen_by_fold[k]
        assert after.score[held].tobytes() == before.score[held].tobytes()
        for name in before.by_method:
            assert after.by_method[name][held].tobytes() == before.by_method[name][held].tobytes()


def test_a_change_of_pooling_that_carries_nothing_leaves_the_simplest() -> None:
    """With noise alone, no pooling is better than another, and the first is kept in most folds."""
    kept = []
    for seed in range(8):
        world = World(seed=seed, units=120)
        y = np.random.default_rng(seed).permutation(world.y)
        found = world.blend(*POOLINGS, y=y, methods=("rank_mean",))
        kept += [name.startswith("mean/") for name in found.chosen_by_fold.values()]
    assert np.mean(kept) > 0.5


def test_fits_are_counted_for_the_progress() -> None:
    world, seen = World(seed=0, units=60), list[int]()
    pooled = pool_all(world.predictions, world.unit, np.empty(0, int), POOLINGS)
    settings = NestedSettings(METHODS, progress=seen.append)
    blend_pooled(pooled, world.y, settings, fold=world.fold, split_group=world.group)
    assert sum(seen) == number_of_pooled_fits(FOLDS, POOLINGS, METHODS)
    assert len(left_out_sets(range(FOLDS), ("mean",), candidates=2)) == 1 + 4 + 6


def test_a_logit_is_not_moved_by_the_pooling_of_equal_images() -> None:
    same = np.full((3, 1), logit(0.2))
    assert pool_logits(same, np.zeros(3, int), "mean")[0, 0] == pytest.approx(logit(0.2))
    assert expit(pool_logits(same, np.zeros(3, int), "noisy_or")[0, 0]) == pytest.approx(1 - 0.8**3)
