from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.folds import (
    CANDIDATE_ASSIGNMENTS,
    SPREAD_TOLERANCE,
    GroupCounts,
    assign_balanced_folds,
    assign_folds,
    count_groups,
    make_folds,
    prevalence_spread,
)
from stack.tables.table import read_table


def table(seed: int, n: int = 900, groups: int = 160) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, n)
    frame = pd.DataFrame({"id": [f"i{i}" for i in range(n)], "group": [f"g{value}" for value in group]})
    return frame.assign(target=(rng.random(n) < 0.1).astype(np.int8))


def with_ages(seed: int) -> pd.DataFrame:
    """Groups of many sizes, whose age goes with their size."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, rng.lognormal(1.5, 1.0, 200).astype(int))
    group = np.repeat(np.arange(200), sizes)
    age = np.clip(30 + 8 * np.log(sizes[group]) + rng.normal(0, 12, len(group)), 1, 90)
    return pd.DataFrame({
        "id": [f"i{i}" for i in range(len(group))],
        "group": [f"g{value}" for value in group],
        "target": (rng.random(len(group)) < 0.1).astype(np.int8),
        "age": np.where(rng.random(len(group)) < 0.05, np.nan, age),
    })  # fmt: skip


def uneven(fold: np.ndarray, band: np.ndarray) -> float:
    """The mean over bands of how far the folds' shares of it lie apart."""
    shares = pd.crosstab(fold, band, normalize="index")
    return float((shares.max() - shares.min()).mean())


@pytest.mark.parametrize(
    ("seed", "digest"), [(0, "f6b27b8e8afe2543"), (1, "ee3ddeae867007f6"), (2, "2cffbea0ea412f73")]
)
def test_folds_once_dealt_are_dealt_so_for_ever(seed: int, digest: str) -> None:
    """Finished runs depend on them."""
    fold = make_folds(table(seed), k=5, seed=seed).frame["fold"].to_numpy()
    assert hashlib.sha256(fold.tobytes()).hexdigest()[:16] == digest


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6), groups=st.integers(40, 200))
def test_prevalence_is_as_even_as_the_best_of_twenty_draws(seed: int, k: int, groups: int) -> None:
    frame = table(seed, 600, groups)
    group_counts = count_groups(frame["target"], frame["group"])
    fold = assign_balanced_folds(group_counts, k=k, seed=seed)
    rates = frame["target"].groupby(fold).mean()
    best = min(
        prevalence_spread(group_counts, assign_folds(group_counts, k=k, seed=seed + 1 + draw))
        for draw in range(CANDIDATE_ASSIGNMENTS)
    )
    assert rates.max() - rates.min() <= SPREAD_TOLERANCE * best + 1 / np.bincount(fold).min() + 1e-12


def test_an_uneven_draw_gives_way_to_the_best_of_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(0)
    group_counts = count_groups(frame["target"], frame["group"])
    rates = frame["target"].groupby(group_counts.codes).mean()
    lopsided = (rates > rates.median()).to_numpy().astype(np.intp)

    def draw(group_counts: GroupCounts, *, k: int, seed: int) -> np.ndarray:
        return lopsided if seed == 7 else assign_folds(group_counts, k=k, seed=seed)

    monkeypatch.setattr("stack.folds.assign_folds", draw)
    fold = assign_balanced_folds(group_counts, k=2, seed=7)
    best = min(
        prevalence_spread(group_counts, assign_folds(group_counts, k=2, seed=8 + number))
        for number in range(CANDIDATE_ASSIGNMENTS)
    )
    assert np.ptp(frame["target"].groupby(fold).mean()) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_group_sizes_and_ages_are_evener_where_asked(seed: int) -> None:
    frame = with_ages(seed)
    size = np.log2(frame.groupby("group")["id"].transform("size")).astype(int)
    band = frame["age"].fillna(-1) // 20
    plain, by_size, by_age, both = (
        make_folds(frame, k=4, seed=0, stratify=stratify).frame["fold"].to_numpy()
        for stratify in ((), ("group_size",), ("age",), ("group_size", "age"))
    )
    assert uneven(by_age, band) < uneven(plain, band)
    assert uneven(both, band) < uneven(plain, band)
    first = frame.drop_duplicates("group").index
    assert uneven(by_size[first], size[first]) <= uneven(plain[first], size[first])
    for fold in (by_size, by_age, both):
        assert frame["target"].groupby(fold).mean().max() < 2 * frame["target"].groupby(fold).mean().min()
        assert (frame.groupby("group")["id"].size() > 0).all()
        assert pd.Series(fold).groupby(frame["group"]).nunique().eq(1).all()


def test_on_the_full_siim_table_ages_are_even_and_melanomas_too(shared_data: Path) -> None:
    columns = {"id": "image_name", "group": "patient_id", "target": "target", "age": "age_approx"}
    train = read_table(shared_data / "siim2020" / "train.csv", None, columns=columns).train
    plain, even = (make_folds(train, k=5, seed=0, stratify=stratify) for stratify in ((), ("age",)))
    band = train["age"].fillna(-1) // 20
    assert uneven(even.frame["fold"].to_numpy(), band) < uneven(plain.frame["fold"].to_numpy(), band) / 5
    assert np.ptp(even.summary(train["target"])["positives"]) <= 3


def test_the_table_of_folds_shows_ages_and_sites() -> None:
    frame = with_ages(0).assign(site=np.where(np.arange(len(with_ages(0))) % 3 == 0, "torso", "head"))
    folds = make_folds(frame, k=3, seed=0)
    shown = folds.summary(frame["target"], frame)
    fold = folds.frame["fold"]
    assert np.allclose(shown["torso"], (frame["site"] == "torso").groupby(fold).mean())
    assert np.allclose(shown["median age"], frame["age"].groupby(fold).median())
    assert np.allclose(shown["no age"], frame["age"].isna().groupby(fold).mean())
    assert "median age" not in folds.summary(frame["target"], frame.assign(age=np.nan))
