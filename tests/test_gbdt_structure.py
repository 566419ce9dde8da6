"""Every model that the libraries fit is sound; a model whose trees or counts are not is refused before they read it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hostile_lightgbm import chain, in_first_tree, resized
from hostile_xgboost import ubjson

from tabular.gbdt import fit_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.gbdt_structure import MAX_TREE_DEPTH, check_structure
from tabular.ubjson import read_ubjson

SETTINGS = {
    "lightgbm": [
        {"rounds": 20},
        {"rounds": 5, "num_leaves": 200, "max_depth": -1, "min_data_in_leaf": 2, "min_sum_hessian_in_leaf": 1e-3},
        {"rounds": 3, "min_data_in_leaf": 590},  # no split: trees of one leaf
        {"rounds": 3, "lambda_l1": 1e6},
        {"rounds": 8, "path_smooth": 5.0, "extra_trees": False},
    ],
    "xgboost": [
        {"rounds": 20},
        {"rounds": 5, "max_depth": 0, "max_leaves": 200, "min_child_weight": 0.0},
        {"rounds": 5, "gamma": 2.0, "max_depth": 8},  # splits are made and taken back
        {"rounds": 3, "gamma": 1e9},
        {"rounds": 3, "reg_alpha": 1e6},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(600, 6)).astype(np.float32), columns=["p", "a b", "c[1]", "é", "none", "=,"])
    X.loc[::5, "a b"] = np.nan
    X["none"] = 0.0
    return X, (X["p"] + rng.normal(size=600) > 1).astype(int)


def content_of(kind: str, rows: tuple, params: dict, *, increasing: tuple[str, ...] = ()) -> bytes:
    model = fit_gbdt(kind, *rows, eval_set=None, params=params, seed=0, threads=1, increasing=increasing)
    return LIBRARIES[kind].dump(model.booster)


def fault(kind: str, content: bytes) -> str:
    """Returns why a model is refused; an empty text for a sound one."""
    try:
        check_structure(kind, content)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "params"), [(kind, params) for kind, many in SETTINGS.items() for params in many])
def test_whatever_the_libraries_fit_is_sound(kind: str, params: dict, rows: tuple) -> None:
    for increasing in ((), ("p", "é")):
        assert fault(kind, content_of(kind, rows, params, increasing=increasing)) == ""


def test_a_tree_may_be_as_deep_as_the_limit(rows: tuple) -> None:
    text = content_of("lightgbm", rows, {"rounds": 1}).decode()
    start, rest = text.split("Tree=0\n")[0], text.split("\nend of trees\n")[1]
    faults = [
        fault("lightgbm", resized(start + chain(depth) + "\nend of trees\n" + rest).encode())
        for depth in (MAX_TREE_DEPTH - 1, MAX_TREE_DEPTH)
    ]
    assert faults == ["", f"a tree has more than {MAX_TREE_DEPTH} levels"]


def test_every_wrong_child_of_a_lightgbm_tree_is_refused(rows: tuple) -> None:
    """All children of the first tree, each set to every other node: a tree has exactly one parent for each."""
    text = content_of("lightgbm", rows, {"rounds": 2}).decode()
    for side in ("left_child", "right_child"):
        count = len(next(line for line in text.splitlines() if line.startswith(side)).split("=")[1].split())
        for place in range(count):
            for other in range(-count - 3, count + 2):
                known: list[str] = []

                def changed(
                    children: list[str], place: int = place, other: int = other, known: list = known
                ) -> list[str]:
                    known.append(children[place])
                    return [*children[:place], str(other), *children[place + 1 :]]

                found = fault("lightgbm", resized(in_first_tree(text, side, changed)).encode())
                assert found == "" if known == [str(other)] else "tree" in found


def test_every_wrong_child_of_an_xgboost_tree_is_refused(rows: tuple) -> None:
    content = content_of("xgboost", rows, {"rounds": 1, "max_depth": 3})
    first = read_ubjson(content)["learner"]["gradient_booster"]["model"]["trees"][0]
    nodes = len(first["left_children"])
    for side in ("left_children", "right_children"):
        for place in range(nodes):
            for other in range(-2, nodes + 2):
                model = read_ubjson(content)
                tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
                tree[side] = tree[side].copy()
                same = tree[side][place] == other
                tree[side][place] = other
                found = fault("xgboost", ubjson(model))
                assert found == "" if same else "tree" in found


@pytest.fixture(scope="module")
def category_rows() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    code = rng.integers(0, 40, 600)
    X = pd.DataFrame({"n": rng.normal(size=600), "w": code}).astype(np.float32)
    return X, (np.random.default_rng(1).normal(size=40)[code] + X["n"] > 1).to_numpy(int)


def category_content(kind: str, rows: tuple, **params: float) -> bytes:
    settings = {"rounds": 3, "learning_rate": 0.3, **params}
    model = fit_gbdt(kind, *rows, eval_set=None, params=settings, seed=0, threads=1, categorical=["w"])
    return LIBRARIES[kind].dump(model.booster)


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
def test_models_with_native_categories_are_sound(kind: str, category_rows: tuple) -> None:
    content = category_content(kind, category_rows)
    assert (b"cat_threshold=" if kind == "lightgbm" else b"categories_nodes") in content
    assert fault(kind, content) == ""
    assert fault(kind, category_content(kind, category_rows, rounds=30)) == ""
    if kind == "lightgbm":
        assert fault(kind, category_content(kind, category_rows, min_data_in_leaf=590)) == ""


def test_every_wrong_set_of_categories_of_a_lightgbm_tree_is_refused(category_rows: tuple) -> None:
    text = category_content("lightgbm", category_rows, rounds=1).decode()
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    bounds, words = lines["cat_boundaries"].split(), lines["cat_threshold"].split()
    sets, kinds = int(lines["num_cat"]), lines["decision_type"].split()
    assert sets >= 1
    place = next(at for at, kind in enumerate(kinds) if int(kind) & 1)
    of_set = lines["threshold"].split()
    changes: dict[str, list[list[str]]] = {
        "num_cat": [["0"], [str(sets + 1)], ["-1"], ["999999999"]],
        "cat_boundaries": [["1", *bounds[1:]], bounds[:-1], [*bounds, "9"], [*bounds[:-1], "99999"], bounds[::-1]],
        "cat_threshold": [words[:-1], [*words, "1"], ["-1", *words[1:]], ["4294967296", *words[1:]], ["x"]],
        "threshold": [[*of_set[:place], bad, *of_set[place + 1 :]] for bad in (str(sets), "-1", "0.5", "1e9", "nan")],
        "decision_type": [[*kinds[:place], str(16 + int(kinds[place])), *kinds[place + 1 :]]],
    }
    for key, many in changes.items():
        for values in many:
            content = resized(in_first_tree(text, key, lambda _, values=values: values)).encode()
            assert content != text.encode()
            with pytest.raises(ValueError, match=r"tree|categor|integers|numbers"):
                check_structure("lightgbm", content)


def test_every_wrong_set_of_categories_of_an_xgboost_tree_is_refused(category_rows: tuple) -> None:
    model = read_ubjson(category_content("xgboost", category_rows, rounds=1, colsample_bytree=1.0))
    learner = model["learner"]
    tree = learner["gradient_booster"]["model"]["trees"][0]
    assert fault("xgboost", ubjson(model)) == ""
    keys = ("categories", "categories_nodes", "categories_segments", "categories_sizes", "split_type")
    assert len(tree["categories_nodes"])
    for key in keys:
        own = tree[key] = np.asarray(tree[key])
        for place in range(len(own)):
            for bad in (
                -1,
                -(1 << 31),
                1 << 30,
                *((0, 1, 2, len(own)) if key in ("split_type", "categories_nodes") else ()),
            ):
                if bad == own[place] or (key == "split_type" and abs(bad) > 100):
                    continue
                tree[key] = own.astype(np.int64)
                tree[key][place] = bad
                with pytest.raises(ValueError, match=r"tree|categor"):
                    check_structure("xgboost", ubjson(model))
        for changed in (own[:-1], np.append(own, own[-1:])):
            if key != "categories" or len(changed) < len(own):
                tree[key] = changed
                with pytest.raises(ValueError, match=r"tree|categor"):
                    check_structure("xgboost", ubjson(model))
        tree[key] = own
    learner["feature_types"] = ["float", "float"]
    with pytest.raises(ValueError, match="by categories"):
        check_structure("xgboost", ubjson(model))
    learner["feature_types"] = ["float"]
    with pytest.raises(ValueError, match="1 types for 2 features"):
        check_structure("xgboost", ubjson(model))
