"""Arguments with one value a row: what NumPy would drop or misread without a word is refused, in every function."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from dermstack import Blender, auc, average_precision, blend_nested, interval, paired_difference, pauc80
from dermstack.errors import ConfigError, DataError
from stack.metrics.calibration import recalibration
from stack.metrics.intervals import clustered_auc, proportion
from stack.metrics.row_values import row_values, varies
from stack.metrics.scores import auc_by_fold, brier, expected_calibration_error, log_loss

N = 60
RNG = np.random.default_rng(0)
Y = pd.Series(np.arange(N) % 3 == 0, name="y").astype(int)
P = pd.Series(np.clip(RNG.random(N) * 0.7 + 0.3 * Y, 0, 1), name="p")
GROUP = pd.Series(np.arange(N) // 2, name="group")
FOLD = pd.Series(np.arange(N) // 2 % 5, name="fold")
for values in (Y, P, GROUP, FOLD):
    values.index = pd.Index([f"row {number}" for number in range(N)])
RUNS = pd.DataFrame({"a": P, "b": RNG.random(N)})

SCORES: dict[str, Callable[[pd.Series, pd.Series], object]] = {
    "auc": auc,
    "pauc80": pauc80,
    "average precision": average_precision,
    "log loss": log_loss,
    "brier": brier,
    "calibration error": expected_calibration_error,
    "by fold": lambda y, p: auc_by_fold(y, p, FOLD.to_numpy()),
    "interval": lambda y, p: interval("auc", y, p, GROUP.to_numpy(), draws=20),
    "difference": lambda y, p: paired_difference("auc", y, p, np.asarray(p, float)[::-1], GROUP.to_numpy(), draws=20),
    "clustered": lambda y, p: clustered_auc(y, p, GROUP.to_numpy()).auc,
    "recalibration": lambda y, p: recalibration(y, p, GROUP.to_numpy()),
}
WITH_GROUPS: dict[str, Callable[[pd.Series, pd.Series, pd.Series], object]] = {
    "interval": lambda y, p, group: interval("auc", y, p, group, draws=20),
    "difference": lambda y, p, group: paired_difference("auc", y, p, p.to_numpy()[::-1], group, draws=20),
    "clustered": clustered_auc,
    "proportion": lambda y, p, group: proportion(y, group),
    "recalibration": recalibration,
    "nested": lambda y, p, group: blend_nested(
        RUNS.to_numpy(), y, nets=FOLD.to_numpy(), fold=FOLD.to_numpy(), split_group=group, methods=["mean"]
    ),
}


def turned(values: pd.Series) -> pd.Series:
    """The same rows in another order, each with its own label."""
    return values.iloc[::-1]


@pytest.mark.parametrize("name", SCORES)
def test_the_same_rows_in_another_order_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="label the same rows in another order"):
        SCORES[name](Y, turned(P))
    assert SCORES[name](Y, P) is not None


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_groups_in_another_order_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="label the same rows in another order"):
        WITH_GROUPS[name](Y, P, turned(GROUP))


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_a_missing_group_is_named(name: str) -> None:
    with pytest.raises(DataError, match=r"1 of 60 (split_)?groups are missing \(row 4"):
        WITH_GROUPS[name](Y, P, GROUP.where(np.arange(N) != 4).astype(object))


def test_a_blend_of_rows_in_another_order_is_refused() -> None:
    folds = {"nets": FOLD, "fold": FOLD, "split_group": GROUP, "methods": ["mean"]}
    for call in (
        lambda: Blender("logistic").fit(RUNS, turned(Y)),
        lambda: Blender("mean").fit(RUNS, Y, groups=turned(GROUP)),
        lambda: blend_nested(RUNS, turned(Y), **folds),
        lambda: blend_nested(RUNS, Y, **{**folds, "fold": turned(FOLD)}),
    ):
        with pytest.raises(DataError, match="label the same rows in another order"):
            call()
    assert np.array_equal(blend_nested(RUNS, Y, **folds).score, blend_nested(RUNS.to_numpy(), Y, **folds).score)


def test_other_labels_are_taken_by_position() -> None:
    renamed = P.set_axis([f"image {number}" for number in range(N)])
    assert auc(Y, renamed) == auc(Y, P) == pytest.approx(roc_auc_score(Y, P))
    assert auc(Y, P.set_axis([0] * N)) == auc(Y, P)  # labels that are not unique name no row


@pytest.mark.parametrize("name", SCORES)
def test_masked_values_are_refused_and_not_unmasked(name: str) -> None:
    masked = np.ma.masked_array(P.to_numpy(), mask=P.to_numpy() > 0.9)
    with pytest.raises(DataError, match="are masked"):
        SCORES[name](Y.to_numpy(), masked)  # type: ignore[arg-type]
    whole = np.ma.masked_array(P.to_numpy(), mask=False)
    assert auc(Y, whole) == auc(Y, P)


@pytest.mark.parametrize("name", SCORES)
def test_python_numbers_count_like_floats(name: str) -> None:
    """Databases return Decimals, and a column with None is of Python objects."""
    exact = pd.Series([Decimal(repr(value)) for value in P.tolist()])
    assert str(SCORES[name](Y, exact)) == str(SCORES[name](Y, P))
    with pytest.raises(DataError, match=r"NaN|missing"):
        SCORES[name](Y, pd.Series([None, *P.tolist()[1:]], dtype=object))


def test_text_is_no_number() -> None:
    with pytest.raises(DataError, match=r"60 of 60 scores are text \(first: '0\.\d+'\)"):
        auc(Y, P.astype(str).to_numpy(object))
    with pytest.raises(DataError, match="60 of 60 targets are text"):
        auc(Y.astype(str).to_numpy(), P)
    with pytest.raises(DataError, match="scores are not numbers"):
        row_values(np.array([0.5, [1]], dtype=object), "scores")


def test_decisions_are_probabilities_too() -> None:
    called = P > 0.5
    assert brier(Y, called) == pytest.approx(brier_score_loss(Y, called.astype(float)))
    assert expected_calibration_error(Y, called) == expected_calibration_error(Y, called.astype(float))


@pytest.mark.parametrize("seed", [-1, 1.0, True, None])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed!r}: give a whole number of at least 0"):
        interval("auc", Y, P, GROUP, draws=20, seed=seed)  # type: ignore[arg-type]


def test_targets_of_the_clustered_auc_are_checked() -> None:
    with pytest.raises(DataError, match="1 of 60 targets are not 0 or 1"):
        clustered_auc(np.where(np.arange(N) == 3, np.nan, Y), P, GROUP)


@pytest.mark.parametrize("value", [14.62, 0.1, 1e-9, 1 - 1e-9, 0.0])
def test_rounding_errors_are_no_variation(value: float) -> None:
    equal = np.full(1000, value)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    assert not varies(equal)
    assert not varies(np.where(np.arange(1000) % 2, (equal[:, None] * weights).sum(axis=1), equal))
    assert varies(np.append(equal, value * 1.001 + 1e-12))
