"""Folds that are inferred from the order of rows or from scales, and those that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forensic_world import World, make_world, words
from scipy.special import expit

from dermstack.audit.forensics import extended_folds
from stack.forensics.folds import folds_of_blocks, matching_folds, scale_differences_p


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "files")


def partition(labels: np.ndarray) -> np.ndarray:
    """Numbers of the parts by first appearance, so that equal partitions are equal arrays."""
    return pd.factorize(labels)[0]


@pytest.mark.parametrize("by", ["table", "id"])
def test_files_written_fold_by_fold_show_their_folds(world: World, by: str) -> None:
    frame = world.oof()
    table = pd.Series(range(len(world.labels)), index=world.labels["image"])
    order = frame["image"].map(table) if by == "table" else frame["image"]
    frame = frame.assign(order=order.to_numpy()).sort_values(["fold", "order"], ignore_index=True)
    world.write(a_oof=frame.drop(columns=["fold", "order"]), b_oof=world.oof())
    found = world.examine()
    (run,) = [one.run for one in found.examined if one.run.name == "a"]
    truth = frame.set_index("image")["fold"].loc[run.oof["id"]].to_numpy()
    assert np.array_equal(partition(run.oof["fold"].to_numpy()), partition(truth))
    assert words(found) == ["note: a: its 5 folds are inferred from the order of its rows"]
    assert found.reference == "the folds of a, b"


@pytest.mark.parametrize("seed", range(5))
def test_rows_in_another_order_show_no_folds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, group = 600, np.arange(600) // 3
    assert folds_of_blocks(rng.permutation(n), group) is None
    assert folds_of_blocks(np.arange(n), group) is None
    parts = np.split(np.arange(n), 4)
    assert folds_of_blocks(np.concatenate(parts[::-1]), group) is None  # parts of the table, not folds
    torn = np.argsort(
        np.arange(n) % 4, kind="stable"
    )  # blocks that reach over the table, but rows of one group in each
    assert folds_of_blocks(torn, group[torn]) is None


def test_scales_that_differ_between_the_folds_of_another_file_show_them(world: World) -> None:
    shifted = world.oof(world.logits() + 0.9 * world.fold)
    world.write(a_oof=shifted.drop(columns="fold"), b_oof=world.oof(), c_oof=world.oof())
    found = world.examine()
    (run,) = [one.run for one in found.examined if one.run.name == "a"]
    truth = shifted.set_index("image")["fold"].loc[run.oof["id"]].to_numpy()
    assert np.array_equal(partition(run.oof["fold"].to_numpy()), partition(truth))
    assert "note: a: its 5 folds are inferred" in words(found)
    assert "warning: a: its fold models have different scales" in words(found)


@pytest.mark.parametrize("seed", range(6))
def test_without_differences_in_scale_no_folds_are_inferred(tmp_path: Path, seed: int) -> None:
    world = make_world(tmp_path / "files", seed)
    world.write(a_oof=world.oof().drop(columns="fold"), b_oof=world.oof())
    found = world.examine()
    assert words(found) == ["note: a: its folds cannot be inferred"]
    assert found.reference == "the folds of b"


def test_without_any_folds_grouped_ones_are_made(world: World) -> None:
    world.write(a_oof=world.oof().drop(columns="fold"), b_oof=world.oof().drop(columns="fold"))
    found = world.examine()
    assert "note: labels: the blend is estimated on grouped folds that were made here" in words(found)
    assert found.claim is not None
    assert found.reference == "grouped folds that were made here"


def test_one_file_a_fold_shows_the_folds(world: World) -> None:
    frame = world.oof()
    world.write(**{f"a_oof_fold{k}": frame[frame["fold"] == k].drop(columns="fold") for k in range(5)})
    found = world.examine()
    assert found.examined[0].folds_from == "file names"
    assert words(found) == []


def test_folds_whose_targets_differ_are_no_nets(rng: np.random.Generator) -> None:
    """Where the rows of known folds differ, as those of hospitals do, any model's predictions differ between them."""
    group = np.arange(900) // 3
    hospital = (group % 5).astype(np.intp)
    y = (rng.random(900) < 0.1 + 0.12 * hospital).astype(np.int8)
    values = 2.0 * y + rng.normal(0, 1, 900)
    assert matching_folds(values, y, group, {"hospitals": hospital}).fold is None
    other = (rng.permutation(300) % 5)[group].astype(np.intp)
    assert matching_folds(values + other, y, group, {"nets": other}).of == "nets"


def test_the_test_of_scales_has_the_rate_that_it_states() -> None:
    """Few groups of many rows: the variance between groups is large, and p-values must allow for it."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(60), rng.integers(1, 20, 60))
        fold = (rng.permutation(60) % 5)[group]
        values = rng.normal(0, 1, 60)[group] + rng.normal(0, 1, len(group))
        found.append(scale_differences_p(values, np.zeros(len(group), np.int8), group, fold))
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.09  # 0.05 within two standard errors, on 200 data sets
    shifted = values + 2 * fold
    assert scale_differences_p(shifted, np.zeros(len(group), np.int8), group, fold) < 0.001


def test_rows_without_a_fold_get_that_of_their_group() -> None:
    fold = np.array([0, -1, 1, 1, 1, -1, -1])
    group = np.array([0, 0, 1, 1, 1, 2, 2])
    assert extended_folds(fold, group).tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_a_logit_is_a_probability_again(world: World) -> None:
    logits = world.logits()
    world.write(
        a_oof=world.oof(logits), b_oof=world.oof(logits).assign(pred=lambda f: np.log(f["pred"] / (1 - f["pred"])))
    )
    a, b = (one.run.oof.set_index("id")["p"] for one in world.examine().examined)
    assert np.allclose(a, b.loc[a.index], atol=1e-6)
    assert np.allclose(a, expit(pd.Series(logits, world.labels["image"]).loc[a.index]), atol=1e-6)
