"""Checks the structure of LightGBM and XGBoost model files before a library parses them.

The libraries trust a model file: trees that form a cycle never end, and counts in the file are allocated as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tabular.ubjson import read_ubjson

MAX_CODES = 1 << 24  # codes of a category: whole numbers that float32 holds exactly
MAX_TREE_DEPTH = 1000  # SHAP values take memory with the square of the depth; fitted trees have a depth of some tens
_INTEGERS = re.compile(rb"(?:-?\d{1,10}(?: -?\d{1,10})*)?")
_NUMBER = rb"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d{1,5})?|inf|nan)"
_NUMBERS = re.compile(rb"(?:%b(?: %b)*)?" % (_NUMBER, _NUMBER))
_KEY_LINE = re.compile(rb"([a-z_]+)=([^\r\0]*)")
# Arrays of a LightGBM tree: one value for each leaf; for each split. The first 1 and 5 are always written.
_OF_LEAF = (b"leaf_value", b"leaf_weight", b"leaf_count")
_OF_SPLIT = (
    b"left_child", b"right_child", b"split_feature", b"decision_type", b"threshold", b"split_gain", b"internal_value",
    b"internal_weight", b"internal_count",
)  # fmt: skip
_OF_NODE = (  # arrays of an XGBoost tree
    "left_children", "right_children", "parents", "split_indices", "split_conditions", "default_left", "base_weights",
    "loss_changes", "sum_hessian", "split_type",
)  # fmt: skip

Integers = NDArray[np.int64]


def check_structure(kind: str, content: bytes) -> None:
    """Raises ValueError, with the reason, for a model whose trees or counts are unsound.

    The numbers of classes, features, trees and nodes must agree with what the file holds, every tree must be a tree,
    and every leaf's value a finite number. CatBoost verifies its files itself: `tabular.gbdt_trial` limits it.
    """
    if check := _CHECKS.get(kind):
        check(content)


def _check_lightgbm(content: bytes) -> None:
    ends = content.find(b"\nend of trees\n")
    start = content.find(b"\nTree=")
    if not 0 <= start < ends:
        raise ValueError("it holds no trees")
    if b"\nparameters:\n" not in content[ends:] or b"\nend of parameters\n" not in content[ends:]:
        raise ValueError("its end is missing")
    header = _key_values(content[: start + 1].split(b"\n")[1:])
    for key, expected in ((b"num_class", 1), (b"num_tree_per_iteration", 1)):
        if (found := _integer(header, key)) != expected:
            raise ValueError(f"{key.decode()} is {found}, not {expected}")
    if not header.get(b"objective", b"").startswith(b"binary"):
        raise ValueError(f"its objective is {header.get(b'objective', b'')[:40]!r}, not binary")
    features = _integer(header, b"max_feature_idx") + 1
    for key in (b"feature_names", b"feature_infos"):
        if (names := len(header.get(key, b"").split(b" "))) != features:
            raise ValueError(f"{names} {key.decode()} for {features} features")
    trees = []
    at = start + 1
    for number, size in enumerate(sizes := _integers(header.get(b"tree_sizes", b""), "tree_sizes").tolist()):
        first_line = b"Tree=%d\n" % number
        if size <= len(first_line) or at + size > ends + 1 or not content.startswith(first_line, at):
            raise ValueError(f"tree {number} is not where tree_sizes says")
        trees.append(_key_values(content[at + len(first_line) : at + size].split(b"\n")))
        at += size
    if content[at : ends + 1].strip(b"\n") or content.count(b"\nTree=") != len(sizes):
        raise ValueError(f"it holds more than the {len(sizes)} trees of tree_sizes")
    _check_lightgbm_trees(trees, features)


def _check_lightgbm_trees(trees: list[dict[bytes, bytes]], features: int) -> None:
    for number, tree in enumerate(trees):
        if tree.get(b"is_linear", b"0") != b"0":
            raise ValueError(f"tree {number} has linear leaves, which dermstack never fits")
        _check_lightgbm_categories(tree, number)
        leaves = _integer(tree, b"num_leaves")
        for keys, expected, optional in ((_OF_LEAF, leaves, 1), (_OF_SPLIT, leaves - 1, 5)):
            for place, key in enumerate(keys):
                found = len(tree.get(key, b"").split())
                # Some versions write no weights and counts for a tree of one leaf.
                if found != expected and not (found == 0 and place >= optional and (leaves == 1 or key not in tree)):
                    raise ValueError(f"tree {number} has {found} values of {key.decode()} for {leaves} leaves")
    joined = {key: b" ".join(filter(None, (tree.get(key) for tree in trees))) for key in (*_OF_LEAF, *_OF_SPLIT)}
    for key in (b"leaf_value", b"threshold", b"leaf_weight", b"leaf_count", b"internal_count"):
        _check_numbers(joined[key], key.decode(), finite=key == b"leaf_value")
    _check_numbers(b" ".join(tree.get(b"shrinkage", b"1") for tree in trees), "shrinkage", finite=True)
    left, right, split, decision = (_integers(joined[key], key.decode()) for key in _OF_SPLIT[:4])
    if (split < 0).any() or (split >= features).any():
        raise ValueError(f"a tree splits a feature beyond the {features}")
    if (decision < 0).any() or (decision > 15).any():
        raise ValueError("a tree has an unknown kind of split")
    # All trees in one list of nodes, each tree's splits before its leaves. A child ≥ 0 is a split, c < 0 the leaf ~c.
    leaves_of = np.array([len(tree[b"leaf_value"].split()) for tree in trees])
    roots = np.concatenate([[0], np.cumsum(2 * leaves_of - 1)])[:-1]
    tree_of = np.repeat(np.arange(len(trees)), leaves_of - 1)
    splits_of, first = leaves_of[tree_of] - 1, roots[tree_of]
    starts = np.concatenate([[0], np.cumsum(leaves_of - 1)])[:-1]
    node = first + np.arange(len(left)) - starts[tree_of]
    nodes = int((2 * leaves_of - 1).sum())
    children = []
    for child in (left, right):
        if (child < -splits_of - 1).any() or (child >= splits_of).any():
            raise ValueError("a tree has a child that it does not hold")
        children.append(np.full(nodes, -1))
        children[-1][node] = first + np.where(child >= 0, child, splits_of + ~child)
    if not _reached(children[0], children[1], roots).all():
        raise ValueError("a tree has nodes that its root does not lead to")


def _check_lightgbm_categories(tree: Mapping[bytes, bytes], number: int) -> None:
    """Checks a tree's categorical splits: each threshold is the number of a set of categories, which the tree holds.

    The sets are bits in ``cat_threshold``, 32 in a word; set i has the words from ``cat_boundaries[i]`` on.
    """
    sets = _integer(tree, b"num_cat")
    bounds, words = (_integers(tree.get(key, b""), key.decode()) for key in (b"cat_boundaries", b"cat_threshold"))
    if sets < 0 or len(bounds) != (sets + 1 if sets else 0):
        raise ValueError(f"tree {number} has {len(bounds)} bounds of {sets} sets of categories")
    if sets and (bounds[0] != 0 or (np.diff(bounds) < 1).any()):
        raise ValueError(f"tree {number} has sets of categories that overlap")
    if len(words) != (bounds[-1] if sets else 0) or (words < 0).any() or (words >= 1 << 32).any():
        raise ValueError(f"tree {number} has {len(words)} words of categories, or one beyond 32 bits")
    decision, threshold = tree.get(b"decision_type", b"").split(), tree.get(b"threshold", b"").split()
    for kind, of_set in zip(decision, threshold, strict=False):  # their numbers are checked later
        if int(_integers(kind, "decision_type")[0]) & 1 and not (of_set.isdigit() and int(of_set) < sets):
            raise ValueError(f"tree {number} has no set {of_set[:20]!r} of categories")


def _check_xgboost(content: bytes) -> None:
    model = read_ubjson(content)
    try:
        learner = model["learner"]
        booster, parameters = learner["gradient_booster"], learner["learner_model_param"]
        if booster["name"] != "gbtree" or learner["objective"]["name"] != "binary:logistic":
            raise ValueError(f"it is a {str(booster['name'])[:40]} of {str(learner['objective']['name'])[:40]}")
        if int(parameters["num_class"]) != 0 or int(parameters.get("num_target", 1)) > 1:
            raise ValueError(f"it claims {parameters['num_class']} classes and {parameters.get('num_target')} targets")
        features, names = int(parameters["num_feature"]), learner["feature_names"]
        if len(names) != features or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names for {features} features")
        base = float(str(parameters["base_score"]).strip("[]"))
        if not 0 < base < 1:
            raise ValueError(f"its base score is {base}")
        types = list(learner.get("feature_types", ())) or ["float"] * features
        if len(types) != features:
            raise ValueError(f"{len(types)} types for {features} features")
        _check_xgboost_trees(booster["model"], np.array([kind == "c" for kind in types], bool))
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"it lacks a part or has one of another type: {str(error)[:80]}") from error


def _check_xgboost_trees(model: Mapping[str, Any], is_category: NDArray[np.bool_]) -> None:
    features = len(is_category)
    trees, about = model["trees"], model["gbtree_model_param"]
    if int(about["num_trees"]) != len(trees) or int(about.get("num_parallel_tree", 1)) != 1:
        raise ValueError(f"it claims {about['num_trees']} trees and holds {len(trees)}")
    if np.asarray(model["tree_info"]).tolist() != [0] * len(trees):
        raise ValueError("tree_info names another class, or another number of trees")
    indptr = np.asarray(model.get("iteration_indptr", range(len(trees) + 1))).tolist()
    if indptr != list(range(len(trees) + 1)):
        raise ValueError("iteration_indptr does not give each tree a round")
    columns: dict[str, list[NDArray[Any]]] = {key: [] for key in _OF_NODE}
    for number, tree in enumerate(trees):
        about = tree["tree_param"]
        nodes = int(about["num_nodes"])
        for key, column in columns.items():
            column.append(np.asarray(tree[key]))
            if nodes < 1 or column[-1].shape != (nodes,) or column[-1].dtype.kind not in "iufb":
                raise ValueError(f"tree {number} has {column[-1].shape} values of {key} for {nodes} nodes")
        if int(about["num_feature"]) != features or int(about.get("size_leaf_vector", 1)) > 1:
            raise ValueError(f"tree {number} is of {about['num_feature']} features, not {features}")
        _check_xgboost_categories(tree, number)
    if not trees:
        return
    whole = {key: np.concatenate(column) for key, column in columns.items()}
    if not np.isfinite(whole["split_conditions"].astype(np.float64)[whole["split_type"] == 0]).all():
        raise ValueError("a tree has a value that is not finite")
    nodes_of = np.array([len(column) for column in columns["left_children"]])
    roots = np.concatenate([[0], np.cumsum(nodes_of)])[:-1]
    first, size = np.repeat(roots, nodes_of), np.repeat(nodes_of, nodes_of)
    left, right, parents, split = (
        whole[key].astype(np.int64) for key in ("left_children", "right_children", "parents", "split_indices")
    )
    for child in (left, right):
        if (child < -1).any() or (child >= size).any() or ((child == -1) != (left == -1)).any():
            raise ValueError("a tree has a child that it does not hold")
    left, right = (np.where(child < 0, -1, first + child) for child in (left, right))
    inner = _reached(left, right, roots) & (left >= 0)
    if (split[inner] < 0).any() or (split[inner] >= features).any():
        raise ValueError(f"a tree splits a feature beyond the {features}")
    if (is_category[split[inner]] != (whole["split_type"][inner] == 1)).any() or whole["split_type"][left < 0].any():
        raise ValueError("a tree splits a number by categories, or a category by a number")
    own = np.flatnonzero(inner)
    if any((parents[child[inner]] + first[inner] != own).any() for child in (left, right)):
        raise ValueError("a tree has parents that are not those of its children")


def _check_xgboost_categories(tree: Mapping[str, Any], number: int) -> None:
    """Checks a tree's categorical splits: each has a set of codes, within what the tree holds."""
    codes, nodes, starts, sizes = (
        np.asarray(tree.get(key, ())).astype(np.int64)
        for key in ("categories", "categories_nodes", "categories_segments", "categories_sizes")
    )
    kind = np.asarray(tree["split_type"])
    if ((kind != 0) & (kind != 1)).any() or not np.array_equal(nodes, np.flatnonzero(kind == 1)):
        raise ValueError(f"tree {number} has an unknown kind of split, or categories at other nodes than it says")
    if not len(nodes) == len(starts) == len(sizes) or (starts < 0).any() or (sizes < 1).any():
        raise ValueError(f"tree {number} has a set of categories of no size or place")
    if (starts > len(codes) - sizes).any():  # a difference, as the sum of both could overflow
        raise ValueError(f"tree {number} has a set of categories beyond those that it holds")
    if (codes < 0).any() or (codes >= MAX_CODES).any():  # a set takes a bit for each code up to its largest
        raise ValueError(f"tree {number} has a category that is not between 0 and {MAX_CODES - 1:,}")


def _reached(left: Integers, right: Integers, roots: Integers) -> NDArray[np.bool_]:
    """Returns which nodes (n,) of all trees their ``roots`` lead to; children are -1 at a leaf.

    Raises ValueError for a node of two parents or a root with one, as in a cycle, and for more than `MAX_TREE_DEPTH`
    levels. Where every node has one parent at most and the root none, a cycle cannot be entered.
    """
    parents = np.bincount(np.concatenate([left[left >= 0], right[right >= 0]]), minlength=len(left))
    if (parents > 1).any() or parents[roots].any():
        raise ValueError("a tree leads twice to the same node, as in a cycle")
    reached = np.zeros(len(left), bool)
    level = roots
    for _ in range(MAX_TREE_DEPTH):
        reached[level] = True
        inner = level[left[level] >= 0]
        if not len(inner):
            return reached
        level = np.concatenate([left[inner], right[inner]])
    raise ValueError(f"a tree has more than {MAX_TREE_DEPTH} levels")


def _key_values(lines: list[bytes]) -> dict[bytes, bytes]:
    """Returns the values of ``key=value`` lines. Raises ValueError for other lines and for a key that occurs twice."""
    found: dict[bytes, bytes] = {}
    for line in filter(None, lines):
        if not (match := _KEY_LINE.fullmatch(line)) or match[1] in found:
            raise ValueError(f"the line {line[:40]!r} is no key=value, or its key occurs twice")
        found[match[1]] = match[2]
    return found


def _integer(values: Mapping[bytes, bytes], key: bytes) -> int:
    found = _integers(values.get(key, b""), key.decode())
    if len(found) != 1:
        raise ValueError(f"{key.decode()} is missing or not one integer")
    return int(found[0])


def _integers(text: bytes, name: str) -> Integers:
    if not _INTEGERS.fullmatch(text):  # what NumPy and LightGBM could read differently
        raise ValueError(f"{name} holds something other than integers")
    return np.array(text.split(), np.int64)


def _check_numbers(text: bytes, name: str, *, finite: bool) -> None:
    if not _NUMBERS.fullmatch(text) or (finite and re.search(rb"[nN]", text)):
        raise ValueError(f"{name} holds something other than {'finite ' if finite else ''}numbers")
    if finite and not np.isfinite(np.array(text.split(), np.float64)).all():
        raise ValueError(f"{name} holds a number that is not finite")


_CHECKS: Mapping[str, Callable[[bytes], None]] = {"lightgbm": _check_lightgbm, "xgboost": _check_xgboost}
