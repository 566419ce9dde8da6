from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import TabularError
from tabular.encode import DenseMetadata


@pytest.fixture
def frame(rng: np.random.Generator) -> pd.DataFrame:
    age = np.where(rng.random(60) < 0.2, np.nan, rng.integers(20, 80, 60).astype(float))
    sex = pd.Series(rng.choice(["male", "female"], 60)).mask(rng.random(60) < 0.1)
    return pd.DataFrame({"age": age, "sex": sex, "site": rng.choice(["torso", "head", "leg"], 60)})


def test_columns_of_the_fitted_rows_have_mean_zero_and_spread_one(frame: pd.DataFrame) -> None:
    dense = DenseMetadata().fit(frame).transform(frame)
    assert dense.dtype == np.float32
    assert np.isfinite(dense).all()
    np.testing.assert_allclose(dense.mean(axis=0), 0, atol=1e-6)
    spread = dense.std(axis=0)[1:]  # age has its missing rows at the mean
    np.testing.assert_allclose(spread[spread > 0], 1, atol=1e-5)  # no site is missing: that indicator never moves
    known = frame["age"].notna().to_numpy()
    np.testing.assert_allclose(dense[known, 0].std(), 1, atol=1e-5)
    assert (dense[~known, 0] == 0).all()


def test_a_missing_value_has_an_indicator_of_its_own(frame: pd.DataFrame) -> None:
    encoder = DenseMetadata().fit(frame)
    dense = encoder.transform(frame)
    place = encoder.encoders_[0].columns_.index("age_missing")
    missing = frame["age"].isna().to_numpy()
    assert dense[missing, place].min() > dense[~missing, place].max()


def test_statistics_come_from_the_fitted_rows_alone(frame: pd.DataFrame) -> None:
    encoder = DenseMetadata().fit(frame[:40])
    held = encoder.transform(frame[40:])
    stranger = frame[40:].assign(age=frame["age"][40:] + 1000, site="moon")
    moved = encoder.transform(stranger)
    assert (encoder.transform(frame[40:]) == held).all()
    assert np.nanmax(np.abs(moved)) > 10
    assert encoder.width == held.shape[1] == moved.shape[1]


def test_a_column_that_never_moves_stays_finite(frame: pd.DataFrame) -> None:
    still = frame.assign(age=50.0, sex="male")
    assert np.isfinite(DenseMetadata().fit(still).transform(still)).all()
    nothing = frame.assign(age=np.nan)
    assert (DenseMetadata(["age"]).fit(nothing).transform(nothing)[:, 0] == 0).all()


def test_what_is_written_encodes_as_before(frame: pd.DataFrame) -> None:
    encoder = DenseMetadata(["age", "site"]).fit(frame)
    again = DenseMetadata.from_json(encoder.to_json())
    assert (again.transform(frame) == encoder.transform(frame)).all()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"columns": ["age"], "mean": ["x"], "scale": [1], "encoder": {}}'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(TabularError, match="not a metadata encoder"):
        DenseMetadata.from_json(text)
