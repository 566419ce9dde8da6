"""LightGBM models that are no sound models: changes of a good one's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

BILLION = "1000000000"


def resized(text: str) -> str:
    """The LightGBM model with tree_sizes that agree with its trees."""
    trees = re.split(r"(?=^Tree=)", text.split("\nend of trees\n")[0] + "\n", flags=re.MULTILINE)[1:]
    return re.sub(r"tree_sizes=.*", f"tree_sizes={' '.join(str(len(tree.encode())) for tree in trees)}", text, count=1)


def in_first_tree(text: str, key: str, value: str | Callable[[list[str]], list[str]]) -> str:
    """The model with another value of a key in its first tree."""

    def new(match: re.Match[str]) -> str:
        return f"{key}={value if isinstance(value, str) else ' '.join(value(match[1].split()))}"

    return re.sub(rf"^{key}=(.*)$", new, text, count=1, flags=re.MULTILINE)


def chain(depth: int) -> str:
    """A tree of LightGBM whose every split has a leaf and the next split."""
    inner = " ".join
    values = {
        "num_leaves": depth + 1, "num_cat": 0, "split_feature": inner(["0"] * depth),
        "split_gain": inner(["1"] * depth), "threshold": inner(["0.5"] * depth), "decision_type": inner(["2"] * depth),
        "left_child": inner([*(str(n + 1) for n in range(depth - 1)), str(-depth - 1)]),
        "right_child": inner(str(-n - 1) for n in range(depth)), "leaf_value": inner(["0.1"] * (depth + 1)),
        "leaf_weight": inner(["1"] * (depth + 1)), "leaf_count": inner(["1"] * (depth + 1)),
        "internal_value": inner(["0"] * depth), "internal_weight": inner(["1"] * depth),
        "internal_count": inner(["1"] * depth), "is_linear": 0, "shrinkage": 1,
    }  # fmt: skip
    return "Tree=0\n" + "".join(f"{key}={value}\n" for key, value in values.items()) + "\n\n"


def lightgbm_models(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields hostile models with their names."""
    text = good.decode()
    for name, changed in (_trees(text) | _headers(text) | _files(text)).items():
        yield name, changed.encode()
    for share in (0.1, 0.4, 0.7):
        cut = good[: int(share * len(good))]
        yield f"cut at {share}", cut
        yield f"cut at {share}, ended", cut + b"\npandas_categorical:null\n"
    yield "no text", b"tree\n\xff\xfe\npandas_categorical:null\n"
    yield "of other columns", good.replace(b"feature_names=", b"feature_names=x", 1)


def _trees(text: str) -> dict[str, str]:
    """Models with a wrong value in their first tree."""

    def first(key: str, value: str | Callable[[list[str]], list[str]]) -> str:
        return resized(in_first_tree(text, key, value))

    return {
        "a cycle to the root": first("left_child", lambda c: [*c[:-1], "0"]),
        "a cycle of two": first("right_child", lambda c: ["1", "1", *c[2:]]),
        "a split that is its own child": first("left_child", lambda c: ["0", *c[1:]]),
        "a leaf twice": first("left_child", lambda c: ["-1" if int(n) < 0 else n for n in c]),
        "a child beyond": first("left_child", lambda c: [BILLION, *c[1:]]),
        "a child before": first("right_child", lambda c: ["-" + BILLION, *c[1:]]),
        "too few children": first("left_child", lambda c: c[:-1]),
        "children of one byte": first("left_child", "0"),
        "no children": first("left_child", ""),
        "children that are text": first("left_child", lambda c: ["x", *c[1:]]),
        "children with an underscore": first("left_child", lambda c: ["0_1", *c[1:]]),
        "a feature beyond": first("split_feature", lambda c: [BILLION, *c[1:]]),
        "a feature below 0": first("split_feature", lambda c: ["-1", *c[1:]]),
        "a billion leaves": first("num_leaves", BILLION),
        "leaves beyond int32": first("num_leaves", "4294967297"),
        "no leaf": first("num_leaves", "0"),
        "fewer leaves": first("num_leaves", "2"),
        "negative leaves": first("num_leaves", "-5"),
        "a number of 5,000 digits": first("num_leaves", "9" * 5000),
        "categorical splits": first("num_cat", "5"),
        "a billion categories": first("num_cat", BILLION),
        "a categorical decision": first("decision_type", lambda c: ["1", *c[1:]]),
        "linear leaves": first("is_linear", "1"),
        "a leaf of nan": first("leaf_value", lambda c: ["nan", *c[1:]]),
        "a leaf of inf": first("leaf_value", lambda c: ["inf", *c[1:]]),
        "a leaf of 1e999": first("leaf_value", lambda c: ["1e999", *c[1:]]),
        "too few leaf values": first("leaf_value", lambda c: c[1:]),
        "no thresholds": first("threshold", ""),
        "a key twice": resized(text.replace("num_cat=", "num_leaves=3\nnum_cat=", 1)),
        "a line without key": resized(text.replace("num_cat=", "average_output\nnum_cat=", 1)),
    }


def _headers(text: str) -> dict[str, str]:
    """Models with a wrong value in front of the trees."""

    def header(key: str, value: str) -> str:
        return re.sub(rf"^{key}=.*$", f"{key}={value}", text, count=1, flags=re.MULTILINE)

    return {
        "a billion classes": header("num_class", BILLION),
        "two classes": header("num_class", "2"),
        "a billion trees an iteration": header("num_tree_per_iteration", BILLION),
        "both billions": re.sub("(num_class|num_tree_per_iteration)=1", rf"\g<1>={BILLION}", text),
        "a billion features": header("max_feature_idx", BILLION),
        "a feature less": header("max_feature_idx", "3"),
        "no features": header("max_feature_idx", "-1"),
        "fewer names": header("feature_names", "a b"),
        "another objective": header("objective", "multiclass num_class:1000000000"),
        "no objective": header("objective", ""),
        "sizes too large": header("tree_sizes", "1000000000 5 5"),
        "sizes that overflow": header("tree_sizes", "9223372036854775807 1 1"),
        "negative sizes": header("tree_sizes", "-5 -5 -5"),
        "a size less": header("tree_sizes", "5"),
        "no sizes": header("tree_sizes", ""),
        "a hundred thousand sizes": header("tree_sizes", " ".join(["1"] * 100_000)),
    }


def _files(text: str) -> dict[str, str]:
    """Models whose trees are missing, too many, too deep or hidden."""
    start, rest = text.split("Tree=0\n")[0], text.split("\nend of trees\n")[1]
    return {
        "a random forest": text.replace("label_index", "average_output\nlabel_index", 1),
        "a tree twice": text.replace("Tree=1\n", "Tree=0\n"),
        "a hidden tree": text.replace("end of trees\n", "Tree=9\nend of trees\n", 1),
        "a deep chain": resized(start + chain(20_000) + "\nend of trees\n" + rest),
        "zero bytes": text.replace("leaf_value=", "leaf_value=\0", 1),
        "no trees": start + "\nend of trees\n" + rest,
        "only the ends": "tree\npandas_categorical:null\n",
        "empty": "",
    }
