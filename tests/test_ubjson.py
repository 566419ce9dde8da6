"""What is read equals XGBoost's own JSON of the same model; anything else is a ValueError in bounded memory."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import xgboost
from fuzzing import mutated

from tabular.ubjson import MAX_DEPTH, read_ubjson


@pytest.fixture(scope="module")
def booster() -> xgboost.Booster:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    data = xgboost.DMatrix(x, (x[:, 0] > 0).astype(int), feature_names=["a", "é", "c%20d", "e"])
    return xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 3}, data, 4)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(of) for key, of in value.items()}
    if isinstance(value, list | np.ndarray):
        return [plain(of) for of in value]
    return value.item() if isinstance(value, np.generic) else value


def test_a_model_is_what_xgboosts_own_json_says(booster: xgboost.Booster) -> None:
    found = plain(read_ubjson(bytes(booster.save_raw("ubj"))))
    expected = json.loads(bytes(booster.save_raw("json")))
    trees, own = (of["learner"]["gradient_booster"]["model"].pop("trees") for of in (expected, found))
    assert found == expected
    for tree, mine in zip(trees, own, strict=True):
        assert tree.keys() == mine.keys()
        for key, values in tree.items():
            if isinstance(values, list):
                np.testing.assert_allclose(mine[key], values, rtol=1e-6)
            else:
                assert mine[key] == values


def test_every_type_of_the_format(booster: xgboost.Booster) -> None:
    content = (
        b"{i\x01ai\xffi\x01bU\xffi\x01cI\xff\xfei\x01dl" + struct.pack(">i", -70_000)
        + b"i\x01eL" + struct.pack(">q", 2**40)
        + b"i\x01fd" + struct.pack(">f", 0.5) + b"i\x01gD" + struct.pack(">d", 0.1) + b"i\x01hSi\x02\xc3\xa9i\x01iCx"
        + b"i\x01jTi\x01kFi\x01lZi\x01m[i\x01i\x02]i\x01n[#i\x02TFi\x01o[$U#i\x03\x01\x02\x03}"
    )  # fmt: skip
    assert plain(read_ubjson(content)) == {
        "a": -1, "b": 255, "c": -2, "d": -70_000, "e": 2**40, "f": 0.5, "g": 0.1, "h": "é", "i": "x", "j": True,
        "k": False, "l": None, "m": [1, 2], "n": [True, False], "o": [1, 2, 3],
    }  # fmt: skip


def test_levels_have_a_limit() -> None:
    assert read_ubjson(b"[" * MAX_DEPTH + b"T" + b"]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="levels"):
        read_ubjson(b"[" * (MAX_DEPTH + 2) + b"T" + b"]" * (MAX_DEPTH + 2))


def test_a_spoiled_model_is_read_or_is_a_value_error(booster: xgboost.Booster) -> None:
    content, rng = bytes(booster.save_raw("ubj")), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        try:
            read_ubjson(mutated(content, rng, [content]))
        except ValueError:
            refused += 1
    assert refused > 100
