"""Pools the predictions of a unit's images into one, and blends units with the pooling chosen inside the nest.

The runs are pooled before they are blended, so that weights are fitted to units. Each pooling with each blend method is
a candidate of one nested choice (`choose_nested`): the headline of fold k uses the pooling and the method that the
other folds choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stack.blend.nested import BlendRows, NestedBlend, NestedSettings, choose_nested, fit_methods, number_of_fits
from stack.predictions.joined import Predictions

POOLINGS = ("mean", "maximum", "noisy_or", "learned")  # simplest first
LEARNED_FROM = ("mean", "maximum", "noisy_or")  # what the regression of "learned" weights, of each run
LEARNED_BY = ("logistic",)  # the method of "learned"; the others would search the same columns without need

_LEAST = 1e-300  # of a risk that a float64 can hold, so that its logarithm is finite


def pool_logits(logits: ArrayLike, unit: ArrayLike, pooling: str) -> NDArray[np.float64]:
    """Returns the logits (units, runs) of units from those of their images (n, runs); ``unit`` (n,) is 0, 1, 2, …

    "mean" is the mean logit and "maximum" the largest; "noisy_or" is the logit of 1 − ∏ (1 − p), the risk that at least
    one image is positive if they are independent. "learned" returns all three, (units, 3 · runs), one after the other:
    what a logistic regression then weights. The order of the images has no effect, to the last bit, and a unit of one
    image keeps its logits as they are. Every unit needs an image.
    """
    values, codes = np.asarray(logits, np.float64) + 0.0, np.asarray(unit)  # −0 becomes 0: it has no order
    if pooling == "learned":
        return np.hstack([pool_logits(values, codes, how) for how in LEARNED_FROM])
    count = np.bincount(codes)
    assert count.all(), "a unit without an image"
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    pooled = np.empty((len(count), values.shape[1]))
    for run in range(values.shape[1]):
        column = values[:, run]
        ordered = column[np.lexsort((column, codes))]  # sums depend on the order of what is summed
        last = ordered[starts + count - 1]
        if pooling == "maximum":
            pooled[:, run] = last
        elif pooling == "mean":
            pooled[:, run] = np.where(count == 1, last, np.add.reduceat(ordered, starts) / count)
        else:
            none = np.maximum(np.add.reduceat(np.logaddexp(0.0, ordered), starts), _LEAST)  # −log ∏ (1 − p)
            pooled[:, run] = np.where(count == 1, last, none + np.log(-np.expm1(-none)))
    return pooled


def pool_predictions(
    predictions: Predictions, of_train: NDArray[np.intp], of_test: NDArray[np.intp], pooling: str
) -> Predictions:
    """Returns the predictions of units from those of images.

    ``of_train`` and ``of_test`` have the unit of each row of the two tables. The units that have a predicted image, in
    ascending order, are ``rows`` of the result, and their images that no run leaves out are pooled.
    """
    units, code = np.unique(of_train[predictions.rows], return_inverse=True)
    return replace(
        pool_unseen(predictions, of_test, pooling),
        rows=units,
        oof=pool_logits(predictions.oof, code, pooling).astype(np.float32),
        nets=nets_of_units(predictions.nets, code, pooling),
        groups=None if predictions.groups is None else predictions.groups[first_of_units(code)],
        alone=None,
    )


def pool_unseen(predictions: Predictions, of_test: NDArray[np.intp], pooling: str) -> Predictions:
    """Returns the predictions with units instead of images as their test rows, of which ``of_test`` has the unit.

    What they hold of training rows stays as it is: that is for callers who have such rows (`pool_predictions`).
    """
    times, names = columns_of(pooling), predictions.names
    if pooling == "learned":
        names = tuple(f"{name}/{how}" for how in LEARNED_FROM for name in predictions.names)
    tests = np.empty((len(predictions.test), 0, times * len(predictions.names)), np.float32)
    if predictions.test.shape[1]:
        tests = np.stack([pool_logits(of_fold, of_test, pooling) for of_fold in predictions.test]).astype(np.float32)
    return replace(predictions, names=names, test=tests, test_nets=np.tile(predictions.test_nets, (1, times)))


def columns_of(pooling: str) -> int:
    """Returns how many columns a run has after pooling."""
    return len(LEARNED_FROM) if pooling == "learned" else 1


def pool_all(
    predictions: Predictions, of_train: NDArray[np.intp], of_test: NDArray[np.intp], poolings: Sequence[str]
) -> dict[str, Predictions]:
    """Returns the predictions of units (`pool_predictions`) by each pooling, simplest first."""
    return {pooling: pool_predictions(predictions, of_train, of_test, pooling) for pooling in poolings}


def blend_pooled(
    pooled: Mapping[str, Predictions],
    y: ArrayLike,
    settings: NestedSettings,
    *,
    fold: ArrayLike,
    split_group: ArrayLike,
) -> NestedBlend:
    """Blends units, of which ``pooled`` has the predictions by pooling, simplest first, with a nested estimate.

    As `blend_nested`, but the candidates are named "pooling/method" (`maximum/logistic`): for fold k, pooling, method
    and weights come from the other folds alone. ``y``, ``fold`` and ``split_group`` are those of units. Raises as
    `blend_nested` does.
    """
    tried = {pooling: methods_of(pooling, settings.methods) for pooling in pooled}
    candidates, keep_in = sum(map(len, tried.values())), settings.keep_in
    families = {}
    for pooling, found in pooled.items():
        of_pooling = replace(settings, methods=tried[pooling], keep_in=None if keep_in is None else keep_in / pooling)
        rows = BlendRows(found.p, y, found.nets, fold, split_group)
        families[pooling] = fit_methods(rows, of_pooling, candidates=candidates)
    return choose_nested(families)


def methods_of(pooling: str, methods: Iterable[str]) -> tuple[str, ...]:
    """Returns the blend methods that are tried on a pooling."""
    return LEARNED_BY if pooling == "learned" else tuple(methods)


def number_of_pooled_fits(folds: int, poolings: Sequence[str], methods: Sequence[str]) -> int:
    """Returns how many fits `blend_pooled` makes."""
    tried = {pooling: methods_of(pooling, methods) for pooling in poolings}
    candidates = sum(map(len, tried.values()))
    return sum(number_of_fits(folds, of_pooling, candidates=candidates) for of_pooling in tried.values())


def pooling_and_method(candidate: str) -> tuple[str, str]:
    """Returns the pooling and the blend method of a candidate's name."""
    pooling, _, method = candidate.partition("/")
    return pooling, method


def first_of_units(code: NDArray[np.intp]) -> NDArray[np.intp]:
    """Returns the first row of each unit, of which ``code`` (n,) is the number."""
    return np.unique(code, return_index=True)[1]


def nets_of_units(nets: NDArray[np.int8], code: NDArray[np.intp], pooling: str) -> NDArray[np.int8]:
    """Returns the net that predicted each unit, (units, pooled columns): one a run, as a unit lies in one fold.

    ``code`` (n,) is the unit 0, 1, … of each row. Only an imported run whose folds are not the experiment's may have
    several nets for a unit of merged groups; the lowest then stands for all.
    """
    lowest = np.full((code.max() + 1, nets.shape[1]), np.iinfo(nets.dtype).max, nets.dtype)
    np.minimum.at(lowest, code, nets)
    return np.tile(lowest, (1, columns_of(pooling)))
