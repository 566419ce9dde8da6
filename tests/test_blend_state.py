from __future__ import annotations

import json

import numpy as np
import pytest

from dermstack.errors import StoreError
from stack.blend.blender import Blender
from stack.blend.state import blender_from_state, blender_state
from stack.blend.weights import METHODS
from stack.predictions.ranks import AVERAGED


def simulated_rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = rng.random(300) < 0.3
    P = 1 / (1 + np.exp(-(rng.normal(size=(300, 3)) + y[:, None])))
    P[:, 2] = 5 * P[:, 2] - 1  # beyond [0, 1]: it enters by its rank
    return P, y.astype(int), rng.integers(0, 3, size=P.shape)


@pytest.mark.parametrize("objective", ["auc", "logloss"])
@pytest.mark.parametrize("method", METHODS)
def test_a_blend_read_back_scores_new_rows_to_the_last_bit(
    method: str, objective: str, rng: np.random.Generator
) -> None:
    P, y, nets = simulated_rows(rng)
    blender = Blender(method, objective, trials=8, power=True).fit(P, y, nets=nets)
    settings, arrays = blender_state(blender)
    again = blender_from_state(json.loads(json.dumps(settings)), arrays)
    new = np.vstack([P[:50], 1 / (1 + np.exp(-rng.normal(scale=4, size=(50, 3))))])
    for made_by in (np.zeros(len(new), int), rng.integers(0, 3, size=new.shape), np.full(len(new), AVERAGED)):
        expected = blender.predict_proba(new, nets=made_by)
        np.testing.assert_array_equal(again.predict_proba(new, nets=made_by), expected)


def test_a_cut_or_foreign_state_is_refused_by_name(rng: np.random.Generator) -> None:
    P, y, nets = simulated_rows(rng)
    settings, arrays = blender_state(Blender("mean").fit(P, y, nets=nets))
    with pytest.raises(StoreError, match="expected"):
        blender_from_state(settings, {name: array[:-1] for name, array in arrays.items()})
    with pytest.raises(StoreError, match="KeyError: 'moments'"):
        blender_from_state({name: value for name, value in settings.items() if name != "moments"}, arrays)
    with pytest.raises(StoreError):
        blender_from_state({**settings, "weighting": {**settings["weighting"], "weights": [1.0]}}, arrays)
