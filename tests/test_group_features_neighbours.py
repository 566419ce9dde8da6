from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from sklearn.neighbors import LocalOutlierFactor

from dermstack.errors import TabularError
from tabular import group_features as neighbours
from tabular.group_features import embedding_aggregates


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=14), st.integers(0, 2**31))
def test_distances_equal_a_loop_over_rows(group: list[str], seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(len(group), 5)).astype(np.float16)
    found = embedding_aggregates(group, z, "net")
    assert found.columns.tolist() == ["net_group_centroid", "net_group_nearest", "net_group_outlier"]
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    for i, own in enumerate(group):
        others = [j for j, other in enumerate(group) if other == own and j != i]
        expected = [0.0, 0.0]
        if others:
            expected = [cosine(unit[others].sum(axis=0), unit[i]), min(cosine(unit[j], unit[i]) for j in others)]
        np.testing.assert_allclose(found.iloc[i, :2], expected, atol=1e-5)
    assert (found["net_group_outlier"] == 1).all()


@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_the_outlier_factor_is_scikit_learns(
    rows_at_once: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHUNK_ROWS", rows_at_once)
    group = np.repeat(["small", "large", "larger"], [20, 21, 60])
    z = rng.normal(size=(101, 6)).astype(np.float32)
    z[30] *= -1
    order = rng.permutation(101)
    found = embedding_aggregates(group[order], z[order], "net")["net_group_outlier"].to_numpy()
    for name in ("large", "larger"):
        members = group[order] == name
        oracle = LocalOutlierFactor(n_neighbors=10, metric="cosine").fit(z[order][members])
        np.testing.assert_allclose(found[members], -oracle.negative_outlier_factor_, rtol=1e-3)
    assert (found[group[order] == "small"] == 1).all()


def test_copies_of_one_picture_stay_finite() -> None:
    made = embedding_aggregates(["a"] * 30, np.ones((30, 4), np.float16), "net")
    np.testing.assert_allclose(made.to_numpy(), np.tile([0, 0, 1], (30, 1)), atol=1e-5)
    still = embedding_aggregates(["a", "a"], np.zeros((2, 4), np.float16), "net")
    assert np.isfinite(still.to_numpy()).all()


def test_other_groups_change_nothing(rng: np.random.Generator) -> None:
    z = rng.normal(size=(40, 6)).astype(np.float32)
    group = pd.Series(["a", "b"] * 20, index=range(100, 140))
    before = embedding_aggregates(group, z, "net")
    assert before.index.tolist() == list(range(100, 140))
    z[1::2] = rng.normal(size=(20, 6)) * 9
    pd.testing.assert_frame_equal(embedding_aggregates(group, z, "net")[::2], before[::2])


def test_embeddings_that_are_no_numbers_or_too_few_are_refused() -> None:
    with pytest.raises(TabularError, match="embeddings of 1 rows are not finite"):
        embedding_aggregates(["a", "a"], np.array([[1.0], [np.nan]]), "net")
    with pytest.raises(TabularError, match=r"shape \(1, 2\) for 2 rows"):
        embedding_aggregates(["a", "a"], np.ones((1, 2)), "net")
