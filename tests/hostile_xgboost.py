"""XGBoost models that are no sound models: changes of a good one's parts, and spoiled UBJSON."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tabular.ubjson import read_ubjson

BILLION = "1000000000"
ChangeParts = Callable[[Any, Any, Any], None]  # of the learner, of its model and of its first tree


def ubjson(value: Any) -> bytes:
    """The value as XGBoost writes it."""
    if isinstance(value, dict):
        return b"{" + b"".join(ubjson(key)[1:] + ubjson(of) for key, of in value.items()) + b"}"
    if isinstance(value, np.ndarray):
        kind = {"f4": b"d", "f8": b"D", "i4": b"l", "i8": b"L", "u1": b"U", "i1": b"i"}[value.dtype.str[1:]]
        return (
            b"[$" + kind + b"#L" + struct.pack(">q", len(value)) + value.astype(value.dtype.newbyteorder(">")).tobytes()
        )
    if isinstance(value, list):
        return b"[#L" + struct.pack(">q", len(value)) + b"".join(map(ubjson, value))
    if isinstance(value, str):
        return b"SL" + struct.pack(">q", len(value.encode())) + value.encode()
    assert isinstance(value, int), value
    return b"L" + struct.pack(">q", value)


def xgboost_models(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields hostile models with their names."""
    assert read_ubjson(ubjson(read_ubjson(good))).keys() == read_ubjson(good).keys()
    for name, change in (_trees() | _learners()).items():
        model = read_ubjson(good)
        learner = model["learner"]
        change(learner, learner["gradient_booster"]["model"], learner["gradient_booster"]["model"]["trees"][0])
        yield name, ubjson(model)
    yield from _spoiled(good).items()


def _edit(key: str, place: int, value: float) -> ChangeParts:
    """Sets one value of an array of the first tree."""

    def change(_: Any, __: Any, tree: Any) -> None:
        tree[key] = tree[key].copy()
        tree[key][place] = value

    return change


def _set_in(*path: str | int, value: Any) -> ChangeParts:
    """Sets the part at ``path``, which begins with `learner`, `model` or `tree`."""

    def change(learner: Any, model: Any, tree: Any) -> None:
        at = {"learner": learner, "model": model, "tree": tree}[str(path[0])]
        for key in path[1:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def _deep(_: Any, __: Any, tree: Any) -> None:
    """Makes the first tree a chain of 10,000 splits."""
    n = 20_001
    left = np.array([*(k + 1 if k % 2 == 0 and k + 2 < n else -1 for k in range(n))], "i4")
    right = np.array([*(k + 2 if k % 2 == 0 and k + 2 < n else -1 for k in range(n))], "i4")
    parents = np.array([2**31 - 1, *((k - 1) // 2 * 2 for k in range(1, n))], "i4")
    for key in tree:
        if isinstance(tree[key], np.ndarray) and len(tree[key]):
            tree[key] = np.zeros(n, tree[key].dtype)
    tree.update(left_children=left, right_children=right, parents=parents)
    tree["tree_param"]["num_nodes"] = str(n)


def _trees() -> dict[str, ChangeParts]:
    """Changes of the first tree."""
    return {
        "a cycle to the root": _edit("left_children", 1, 0),
        "a node that is its own child": _edit("left_children", 0, 0),
        "a child beyond": _edit("left_children", 0, 10**9),
        "a child below -1": _edit("right_children", 0, -7),
        "a split with one child": _edit("right_children", 0, -1),
        "a node of two parents": _edit("left_children", 0, 2),
        "parents that are others": _edit("parents", 1, 3),
        "a feature beyond": _edit("split_indices", 0, 10**9),
        "a feature below 0": _edit("split_indices", 0, -1),
        "a categorical split": _edit("split_type", 0, 1),
        "a leaf of nan": _edit("split_conditions", -1, np.nan),
        "a leaf of inf": _edit("split_conditions", -1, np.inf),
        "a billion nodes": _set_in("tree", "tree_param", "num_nodes", value=BILLION),
        "no nodes": _set_in("tree", "tree_param", "num_nodes", value="0"),
        "leaves that are vectors": _set_in("tree", "tree_param", "size_leaf_vector", value=BILLION),
        "a tree of a billion features": _set_in("tree", "tree_param", "num_feature", value=BILLION),
        "a column less": _set_in("tree", "left_children", value=np.zeros(1, "i4")),
        "a column that is text": _set_in("tree", "left_children", value="x"),
        "a deep chain": _deep,
    }


def _learners() -> dict[str, ChangeParts]:
    """Changes of what is said of all trees."""
    return {
        "a billion trees": _set_in("model", "gbtree_model_param", "num_trees", value=BILLION),
        "a billion parallel trees": _set_in("model", "gbtree_model_param", "num_parallel_tree", value=BILLION),
        "trees of another class": _set_in("model", "tree_info", value=[7, 7, 7]),
        "rounds that overflow": _set_in("model", "iteration_indptr", value=[0, 2**40, 2, 3]),
        "no trees key": lambda learner, model, tree: model.pop("trees"),
        "a billion classes": _set_in("learner", "learner_model_param", "num_class", value=BILLION),
        "a billion targets": _set_in("learner", "learner_model_param", "num_target", value=BILLION),
        "a billion features": _set_in("learner", "learner_model_param", "num_feature", value=BILLION),
        "a base score of nan": _set_in("learner", "learner_model_param", "base_score", value="nan"),
        "a base score of text": _set_in("learner", "learner_model_param", "base_score", value="x" * 999),
        "fewer names": _set_in("learner", "feature_names", value=["a"]),
        "names of numbers": _set_in("learner", "feature_names", value=[1] * 49),
        "another booster": _set_in("learner", "gradient_booster", "name", value="gblinear"),
        "dart": _set_in("learner", "gradient_booster", "name", value="dart"),
        "another objective": _set_in("learner", "objective", "name", value="multi:softprob"),
        "a part of another type": _set_in("learner", "gradient_booster", "model", value=5),
    }


def _spoiled(good: bytes) -> dict[str, bytes]:
    """Contents that are no UBJSON of a model."""
    length = struct.pack(">q", 2**62)
    return {
        "an array of 2^62": b"{L" + struct.pack(">q", 1) + b"a[$d#L" + length + b"}",
        "values of 2^62": b"{L" + struct.pack(">q", 1) + b"a[#L" + length + b"}",
        "a negative length": b"{L" + struct.pack(">q", -1) + b"}",
        "a key of 2^62": b"{L" + length + b"}",
        "a hundred thousand arrays deep": b"{i\x01a" + b"[" * 100_000 + b"}",
        "a hundred thousand objects deep": b"{i\x01a{" * 100_000 + b"}",
        "bytes after the end": good + b"}",
        "a key twice": b"{i\x01aTi\x01aT}",
        "no content": b"{}",
        "json": b'{"learner": {}}',
        "empty": b"",
        **{f"cut at {share}": good[: int(share * len(good))] + b"}" for share in (0.1, 0.4, 0.7, 0.95)},
    }
