from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import TabularError
from tabular.cohort import CohortScore


@pytest.fixture
def frame(rng: np.random.Generator) -> pd.DataFrame:
    n = 2000
    return pd.DataFrame({
        "age": np.where(rng.random(n) < 0.1, np.nan, rng.integers(2, 18, n) * 5.0),
        "sex": pd.Series(rng.choice(["male", "female"], n)).mask(rng.random(n) < 0.05),
        "site": pd.Series(rng.choice(["torso", "leg", "head", "hand"], n, p=[0.6, 0.2, 0.15, 0.05])),
    })  # fmt: skip


def test_it_is_the_z_score_within_the_first_cohort_with_enough_rows(
    frame: pd.DataFrame, rng: np.random.Generator
) -> None:
    logits = rng.normal(size=(len(frame), 2))
    made = CohortScore(min_rows=30).fit(frame, logits).transform(frame, logits, ("a", "b"))
    assert made.columns.tolist() == ["a_cohort_z", "b_cohort_z"]
    for column in (0, 1):
        np.testing.assert_allclose(made.iloc[::37, column], by_hand(frame, logits[:, column])[::37], atol=1e-5)


def by_hand(frame: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """Every 37th row's z-score in its first cohort with 30 rows that have a value."""
    band = (frame["age"] // 10).fillna(-1)
    sex, site = frame["sex"].fillna("?"), frame["site"].fillna("?")
    z = np.full(len(frame), np.nan)
    for i in range(0, len(frame), 37):
        for cohort in (
            (band == band[i]) & (sex == sex[i]) & (site == site[i]),
            (band == band[i]) & (sex == sex[i]),
            band == band[i],
            band == band,
        ):
            rows = values[cohort.to_numpy() & ~np.isnan(values)]
            if len(rows) >= 30:
                break
        z[i] = (values[i] - rows.mean()) / rows.std()
    return z


def test_each_column_takes_the_first_cohort_with_enough_values_of_its_own(
    frame: pd.DataFrame, rng: np.random.Generator
) -> None:
    values = rng.normal(size=(len(frame), 3)) + frame["site"].eq("torso").to_numpy()[:, None]
    values[frame["site"].eq("torso") & (rng.random(len(frame)) < 0.95), 0] = np.nan  # the first: few values there
    values[frame["age"] < 40, 1] = np.nan  # none there, but rows to be scored may have some
    score = CohortScore(min_rows=30).fit(frame, values)
    again = CohortScore.from_json(score.to_json())
    new = np.where(np.isnan(values), 0.5, values)
    for fitted in (score, again):
        made = fitted.transform(frame, values, ("a", "b", "c"))
        for column in range(3):
            expected = by_hand(frame, values[:, column])[::37]
            np.testing.assert_allclose(made.iloc[::37, column], expected, atol=1e-5)
        assert np.isfinite(fitted.transform(frame, new, ("a", "b", "c")).to_numpy()).all()
    other = CohortScore(min_rows=30).fit(frame, values[:, ::-1]).transform(frame, values[:, ::-1], ("c", "b", "a"))
    pd.testing.assert_frame_equal(other[list(made)], made)


def test_cohorts_stored_before_are_those_of_the_first_column() -> None:
    """What was trained on such features gets the same ones."""
    nan = float("nan")
    cells = {
        "band+sex+site": {"4\x1fmale\x1fleg": [[nan, 5.0], [nan, 1.0]], "5\x1fmale\x1fleg": [[1.0, nan], [2.0, nan]]},
        "band+sex": {},
        "band": {},
        "": {"all": [[0.0, 2.0], [1.0, 2.0]]},
    }
    rows = pd.DataFrame({"age": [45.0, 55.0], "sex": "male", "site": "leg"})
    values = np.array([[3.0, 8.0], [3.0, 8.0]])
    old = CohortScore.from_json(json.dumps({"runs": 2, "cells": cells}))
    np.testing.assert_array_equal(old.transform(rows, values, ("a", "b")), [[3.0, 3.0], [1.0, nan]])
    assert json.loads(old.to_json()).keys() == {"runs", "cells"}
    new = CohortScore.from_json(json.dumps({"runs": 2, "column_cells": cells}))
    np.testing.assert_array_equal(new.transform(rows, values, ("a", "b")), [[3.0, 3.0], [1.0, 3.0]])


def test_without_missing_values_the_stored_text_is_that_of_before(
    frame: pd.DataFrame, rng: np.random.Generator
) -> None:
    """Their stackers stay fresh."""
    logits = rng.normal(size=(len(frame), 2))
    state = json.loads(CohortScore().fit(frame, logits).to_json())
    assert state.keys() == {"runs", "cells"}
    leg = frame["site"].eq("leg") & frame["sex"].eq("male") & frame["age"].between(40, 49)
    assert leg.sum() < 50
    assert "4\x1fmale\x1fleg" not in state["cells"]["band+sex+site"]
    band = frame["age"].between(40, 49).to_numpy()
    np.testing.assert_allclose(state["cells"]["band"]["4"], [logits[band].mean(axis=0), logits[band].std(axis=0)])


def test_new_rows_are_measured_by_the_fitted_ones(frame: pd.DataFrame, rng: np.random.Generator) -> None:
    logits = rng.normal(size=(len(frame), 1))
    score = CohortScore().fit(frame[:1500], logits[:1500])
    before = score.transform(frame[1500:1600], logits[1500:1600], ("a",))
    alone = pd.concat([score.transform(frame[i : i + 1], logits[i : i + 1], ("a",)) for i in range(1500, 1600)])
    pd.testing.assert_frame_equal(before, alone)
    stranger = frame[:3].assign(site="moon", sex="other", age=150.0)
    assert np.isfinite(score.transform(stranger, logits[:3], ("a",)).to_numpy()).all()


def test_what_is_written_scores_as_before(frame: pd.DataFrame, rng: np.random.Generator) -> None:
    logits = rng.normal(size=(len(frame), 2))
    score = CohortScore().fit(frame, logits)
    again = CohortScore.from_json(score.to_json())
    pd.testing.assert_frame_equal(
        again.transform(frame, logits, ("a", "b")), score.transform(frame, logits, ("a", "b"))
    )
    with pytest.raises(TabularError, match="not cohort statistics"):
        CohortScore.from_json('{"runs": 1}')
