from __future__ import annotations

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
    band = (frame["age"] // 10).fillna(-1)
    sex, site = frame["sex"].fillna("?"), frame["site"].fillna("?")
    for i in range(0, len(frame), 37):
        for cohort in (
            (band == band[i]) & (sex == sex[i]) & (site == site[i]),
            (band == band[i]) & (sex == sex[i]),
            band == band[i],
            band == band,
        ):
            if cohort.sum() >= 30:
                break
        rows = logits[cohort.to_numpy()]
        np.testing.assert_allclose(made.iloc[i], (logits[i] - rows.mean(axis=0)) / rows.std(axis=0), atol=1e-5)


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
