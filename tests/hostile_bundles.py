"""Bundles made to do harm whose hashes are right: a generator of some 250 variants of one good bundle.

Each variant changes one thing. A variant is a name and a function that is given the bundle's folder and the content of
its manifest, and changes them; `sealed` writes the manifest anew, so that every hash is right.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load, save

from dermstack.serve.bundle import MANIFEST, write_manifest
from stack.store import with_digest
from tabular.gbdt import fit_gbdt, read_gbdt, write_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.ubjson import read_ubjson

Content = dict[str, Any]
Variant = tuple[str, Callable[[Path, Content], None]]
MODEL = "stackers/gbdt/fold_0/model"


def sealed(folder: Path, change: Callable[[Path, Content], None]) -> None:
    """Changes the bundle in ``folder`` and writes a manifest with the right hashes."""
    manifest = json.loads((folder / MANIFEST).read_text())
    content = {key: value for key, value in manifest.items() if key not in {"files", "format", "digest"}}
    change(folder, content)
    raw = content.pop("raw", None)
    write_manifest(folder, content)
    if raw is not None:  # a change of the finished manifest, or its bytes
        written = json.loads((folder / MANIFEST).read_text())
        written.pop("digest")
        made = raw(written)
        (folder / MANIFEST).write_bytes(made if isinstance(made, bytes) else json.dumps(with_digest(made)).encode())


def replaced(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path, Content], None]:
    """A change of one file's bytes."""

    def change(folder: Path, _: Content) -> None:
        path = folder / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return change


# ------------------------------------------------------------------------------------------------ GBDT models


def richer_models(folder: Path) -> dict[str, bytes]:
    """Models of each library with the columns of the bundle's, which its own few rows leave without many splits."""
    columns = read_gbdt(folder / f"{MODEL}.txt").columns
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(400, len(columns))), columns=list(columns))
    y = (X.iloc[:, 0] + X.iloc[:, 1] * X.iloc[:, 2] > 0).astype(int)
    made = {}
    for kind in LIBRARIES:
        small = {"min_data_in_leaf": 5} if kind == "lightgbm" else {}
        model = fit_gbdt(kind, X, y, eval_set=None, params={"rounds": 3, **small}, seed=0, threads=1)
        path = folder.parent / f"model{LIBRARIES[kind].suffix}"
        write_gbdt(model, path)
        made[kind] = path.read_bytes()
    return made


def with_model(kind: str, good: bytes, content: bytes) -> Callable[[Path, Content], None]:
    """A bundle whose GBDTs are of ``kind``: ``content`` in the first fold, ``good`` in the others."""

    def change(folder: Path, manifest: Content) -> None:
        next(entry for entry in manifest["stackers"] if entry["name"] == "gbdt")["kind"] = kind
        for number, fold in enumerate(sorted((folder / "stackers" / "gbdt").iterdir())):
            for path in fold.iterdir():
                path.unlink()
            (fold / f"model{LIBRARIES[kind].suffix}").write_bytes(good if number else content)

    return change


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


def lightgbm_variants(good: bytes) -> Iterator[Variant]:
    text = good.decode()
    first: Callable[..., str] = lambda key, value: resized(in_first_tree(text, key, value))  # noqa: E731
    header: Callable[[str, str], str] = lambda key, value: re.sub(  # noqa: E731
        rf"^{key}=.*$", f"{key}={value}", text, count=1, flags=re.MULTILINE
    )
    start, rest = text.split("Tree=0\n")[0], text.split("\nend of trees\n")[1]
    billion = "1000000000"
    made = {
        "a cycle to the root": first("left_child", lambda c: [*c[:-1], "0"]),
        "a cycle of two": first("right_child", lambda c: ["1", "1", *c[2:]]),
        "a split that is its own child": first("left_child", lambda c: ["0", *c[1:]]),
        "a leaf twice": first("left_child", lambda c: ["-1" if int(n) < 0 else n for n in c]),
        "a child beyond": first("left_child", lambda c: [billion, *c[1:]]),
        "a child before": first("right_child", lambda c: ["-" + billion, *c[1:]]),
        "too few children": first("left_child", lambda c: c[:-1]),
        "children of one byte": first("left_child", "0"),
        "no children": first("left_child", ""),
        "children that are text": first("left_child", lambda c: ["x", *c[1:]]),
        "children with an underscore": first("left_child", lambda c: ["0_1", *c[1:]]),
        "a feature beyond": first("split_feature", lambda c: [billion, *c[1:]]),
        "a feature below 0": first("split_feature", lambda c: ["-1", *c[1:]]),
        "a billion leaves": first("num_leaves", billion),
        "leaves beyond int32": first("num_leaves", "4294967297"),
        "no leaf": first("num_leaves", "0"),
        "fewer leaves": first("num_leaves", "2"),
        "negative leaves": first("num_leaves", "-5"),
        "a number of 5,000 digits": first("num_leaves", "9" * 5000),
        "categorical splits": first("num_cat", "5"),
        "a billion categories": first("num_cat", billion),
        "a categorical decision": first("decision_type", lambda c: ["1", *c[1:]]),
        "linear leaves": first("is_linear", "1"),
        "a leaf of nan": first("leaf_value", lambda c: ["nan", *c[1:]]),
        "a leaf of inf": first("leaf_value", lambda c: ["inf", *c[1:]]),
        "a leaf of 1e999": first("leaf_value", lambda c: ["1e999", *c[1:]]),
        "too few leaf values": first("leaf_value", lambda c: c[1:]),
        "no thresholds": first("threshold", ""),
        "a key twice": resized(text.replace("num_cat=", "num_leaves=3\nnum_cat=", 1)),
        "a line without key": resized(text.replace("num_cat=", "average_output\nnum_cat=", 1)),
        "a random forest": text.replace("label_index", "average_output\nlabel_index", 1),
        "a billion classes": header("num_class", billion),
        "two classes": header("num_class", "2"),
        "a billion trees an iteration": header("num_tree_per_iteration", billion),
        "both billions": re.sub("(num_class|num_tree_per_iteration)=1", rf"\g<1>={billion}", text),
        "a billion features": header("max_feature_idx", billion),
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
        "a tree twice": text.replace("Tree=1\n", "Tree=0\n"),
        "a hidden tree": text.replace("end of trees\n", "Tree=9\nend of trees\n", 1),
        "a deep chain": resized(start + chain(20_000) + "\nend of trees\n" + rest),
        "zero bytes": text.replace("leaf_value=", "leaf_value=\0", 1),
        "no trees": start + "\nend of trees\n" + rest,
        "only the ends": "tree\npandas_categorical:null\n",
        "empty": "",
    }  # fmt: skip
    for name, changed in made.items():
        yield f"lightgbm: {name}", with_model("lightgbm", good, changed.encode())
    for share in (0.1, 0.4, 0.7):
        cut = good[: int(share * len(good))]
        yield f"lightgbm: cut at {share}", with_model("lightgbm", good, cut)
        yield f"lightgbm: cut at {share}, ended", with_model("lightgbm", good, cut + b"\npandas_categorical:null\n")
    yield "lightgbm: no text", with_model("lightgbm", good, b"tree\n\xff\xfe\npandas_categorical:null\n")
    yield (
        "lightgbm: of other columns",
        with_model("lightgbm", good, good.replace(b"feature_names=", b"feature_names=x", 1)),
    )


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


def xgboost_variants(good: bytes) -> Iterator[Variant]:
    assert ubjson(read_ubjson(good))  # what follows is written by this

    def changed(change: Callable[[Any, Any, Any], None]) -> bytes:
        model = read_ubjson(good)
        learner = model["learner"]
        change(learner, learner["gradient_booster"]["model"], learner["gradient_booster"]["model"]["trees"][0])
        return ubjson(model)

    def edit(key: str, place: int, value: float) -> Callable[[Any, Any, Any], None]:
        def change(_: Any, __: Any, tree: Any) -> None:
            tree[key] = tree[key].copy()
            tree[key][place] = value

        return change

    def set_in(*path: str | int, value: Any) -> Callable[[Any, Any, Any], None]:
        def change(learner: Any, model: Any, tree: Any) -> None:
            at = {"learner": learner, "model": model, "tree": tree}[str(path[0])]
            for key in path[1:-1]:
                at = at[key]
            at[path[-1]] = value

        return change

    def deep(_: Any, __: Any, tree: Any) -> None:
        n = 20_001
        left = np.array([*(k + 1 if k % 2 == 0 and k + 2 < n else -1 for k in range(n))], "i4")
        right = np.array([*(k + 2 if k % 2 == 0 and k + 2 < n else -1 for k in range(n))], "i4")
        parents = np.array([2**31 - 1, *((k - 1) // 2 * 2 for k in range(1, n))], "i4")
        for key in tree:
            if isinstance(tree[key], np.ndarray) and len(tree[key]):
                tree[key] = np.zeros(n, tree[key].dtype)
        tree.update(left_children=left, right_children=right, parents=parents)
        tree["tree_param"]["num_nodes"] = str(n)

    billion = "1000000000"
    made = {
        "a cycle to the root": edit("left_children", 1, 0),
        "a node that is its own child": edit("left_children", 0, 0),
        "a child beyond": edit("left_children", 0, 10**9),
        "a child below -1": edit("right_children", 0, -7),
        "a split with one child": edit("right_children", 0, -1),
        "a node of two parents": edit("left_children", 0, 2),
        "parents that are others": edit("parents", 1, 3),
        "a feature beyond": edit("split_indices", 0, 10**9),
        "a feature below 0": edit("split_indices", 0, -1),
        "a categorical split": edit("split_type", 0, 1),
        "a leaf of nan": edit("split_conditions", -1, np.nan),
        "a leaf of inf": edit("split_conditions", -1, np.inf),
        "a billion nodes": set_in("tree", "tree_param", "num_nodes", value=billion),
        "no nodes": set_in("tree", "tree_param", "num_nodes", value="0"),
        "leaves that are vectors": set_in("tree", "tree_param", "size_leaf_vector", value=billion),
        "a tree of a billion features": set_in("tree", "tree_param", "num_feature", value=billion),
        "a column less": set_in("tree", "left_children", value=np.zeros(1, "i4")),
        "a column that is text": set_in("tree", "left_children", value="x"),
        "a billion trees": set_in("model", "gbtree_model_param", "num_trees", value=billion),
        "a billion parallel trees": set_in("model", "gbtree_model_param", "num_parallel_tree", value=billion),
        "trees of another class": set_in("model", "tree_info", value=[7, 7, 7]),
        "rounds that overflow": set_in("model", "iteration_indptr", value=[0, 2**40, 2, 3]),
        "no trees key": lambda learner, model, tree: model.pop("trees"),
        "a billion classes": set_in("learner", "learner_model_param", "num_class", value=billion),
        "a billion targets": set_in("learner", "learner_model_param", "num_target", value=billion),
        "a billion features": set_in("learner", "learner_model_param", "num_feature", value=billion),
        "a base score of nan": set_in("learner", "learner_model_param", "base_score", value="nan"),
        "a base score of text": set_in("learner", "learner_model_param", "base_score", value="x" * 999),
        "fewer names": set_in("learner", "feature_names", value=["a"]),
        "names of numbers": set_in("learner", "feature_names", value=[1] * 49),
        "another booster": set_in("learner", "gradient_booster", "name", value="gblinear"),
        "dart": set_in("learner", "gradient_booster", "name", value="dart"),
        "another objective": set_in("learner", "objective", "name", value="multi:softprob"),
        "a part of another type": set_in("learner", "gradient_booster", "model", value=5),
        "a deep chain": deep,
    }  # fmt: skip
    for name, change in made.items():
        yield f"xgboost: {name}", with_model("xgboost", good, changed(change))
    length = struct.pack(">q", 2**62)
    raw = {
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
    for name, content in raw.items():
        yield f"xgboost: {name}", with_model("xgboost", good, content)


def catboost_variants(good: bytes) -> Iterator[Variant]:
    def core(content: bytes) -> bytes:
        return b"CBM1" + len(content).to_bytes(4, "little") + content

    inside = good[8:]
    made = {
        "half": core(inside[: len(inside) // 2]),
        "empty": core(b""),
        "zeros": core(bytes(len(inside))),
        "ones": core(b"\xff" * len(inside)),
        "an offset beyond": core(b"\xf0\xff\xff\x7f" + inside[4:]),
        "noise": core(np.random.default_rng(0).bytes(len(inside))),
        "a length that lies": good[:4] + (2**32 - 1).to_bytes(4, "little") + inside,
        "cut": good[: len(good) // 2],
        "another format": b"tree\npandas_categorical:null\n",
        "no bytes": b"",
    }
    for name, content in made.items():
        yield f"catboost: {name}", with_model("catboost", good, content)


# ------------------------------------------------------------------------------------------------ arrays and JSON


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with this header."""
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) % 65536) + text + data


def array_variants(folder: Path) -> Iterator[Variant]:
    def saved(values: Any) -> bytes:
        file = io.BytesIO()
        np.save(file, values, allow_pickle=True)
        return file.getvalue()

    floats = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}"
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.npy") if not re.search(r"fold_[12]", str(path))
    )
    for name in names:
        values = np.load(folder / name, allow_pickle=False)
        holed = values.copy()
        holed.flat[0] = np.nan
        made = {
            "a shape that is too large": npy(floats.format(f"({10**12},)"), bytes(99)),
            "another number of axes": saved(values[None]),
            "fewer values": saved(values.reshape(-1)[: max(0, values.size // 2)]),
            "no values": saved(values[:0]),
            "nan": saved(holed),
            "text": saved(np.full(values.shape, "x")),
        }  # fmt: skip
        for what, content in made.items():
            yield f"{name}: {what}", replaced(name, content)
    whole = {
        "a shape that overflows": npy(floats.format(f"({2**62}, 8)"), bytes(99)),
        "a negative shape": npy(floats.format("(-4, -4)"), bytes(64)),
        "a shape of text": npy(floats.format("('4',)"), bytes(16)),
        "a nested header": npy("(" * 9000 + ")" * 9000),
        "no header": npy(""),
        "a header of a call": npy(floats.format("(int(4),)"), bytes(16)),
        "objects": saved(np.array([{"a": 1}], object)),
        "records": saved(np.zeros(3, [("a", "f4"), ("b", "O")])),
        "an unknown version": npy("{}", version=b"\x09\x00"),
        "a subarray type": npy(floats.replace("'<f4'", "('<f4', (99999999, 9999))").format("(1,)"), bytes(64)),
        "no bytes": b"",
        "a zip of arrays": b"PK\x03\x04" + bytes(99),
    }  # fmt: skip
    for what, content in whole.items():
        yield f"alignment: {what}", replaced("alignment/tiny_turn.npy", content)


JSON_FILES = (
    "blend/blend.json", "blend/calibration.json", "features/fold_0/features.json",
    "image_models/tiny/fold_0/metadata.json", "stackers/line/fold_0/model.json", "novelty/novelty.json",
    "novelty/fold_0/noise.json", "costs.json", "promise.json",
)  # fmt: skip


def json_variants(folder: Path) -> Iterator[Variant]:
    for name in JSON_FILES:
        good = json.loads((folder / name).read_text())
        made = {
            "a hundred thousand levels": b"[" * 100_000,
            "nine hundred levels": b'{"a":' * 900 + b"1" + b"}" * 900,
            "no object": b"5",
            "an empty object": b"{}",
            "no utf-8": b"\xff\xfe\xff",
            "no bytes": b"",
            "a number of 5,000 digits": b"9" * 5000,
            "text for numbers": _leaves(good, "x"),
            "nan for numbers": _leaves(good, float("nan")),
            "infinity for numbers": _leaves(good, 1e999),
        }
        for what, content in made.items():
            if name == "promise.json" and what.startswith("nan"):
                continue  # an estimate that could not be measured is stored as null, which is read as NaN
            yield f"{name}: {what}", replaced(name, content)
    categories = json.loads((folder / "features/fold_0/features.json").read_text())
    categories["metadata"]["categories"]["site"] = [str(number) for number in range(300_000)]
    yield (
        "features.json: 300,000 categories",
        replaced("features/fold_0/features.json", json.dumps(categories).encode()),
    )
    blend = json.loads((folder / "blend/blend.json").read_text())
    for key, value in (
        ("inside", [True] * 99), ("distributions", [["total", 10**12]]), ("distributions", [["0 0", -1]]),
        ("moments", []), ("slope", "1"), ("slope", None), ("classes", {"a": 1}), ("method", 5), ("weighting", {}),
    ):  # fmt: skip
        yield (
            f"blend.json: {key} {str(value)[:20]}",
            replaced("blend/blend.json", json.dumps({**blend, key: value}).encode()),
        )


def _leaves(value: Any, other: Any) -> bytes:
    def changed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: changed(of) for key, of in part.items()}
        if isinstance(part, list):
            return [changed(of) for of in part]
        return other if isinstance(part, int | float) and not isinstance(part, bool) else part

    return json.dumps(changed(value)).encode()


# ------------------------------------------------------------------------------------------------ networks


def weights_variants(folder: Path) -> Iterator[Variant]:
    def file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + data

    def tensor(shape: list[int], offsets: list[int], kind: str = "F32") -> bytes:
        return json.dumps({"head.weight": {"dtype": kind, "shape": shape, "data_offsets": offsets}}).encode()

    for name in (
        "image_models/tiny/fold_0/weights.safetensors", "image_models/still/backbone.safetensors",
        "image_models/still/fold_0/weights.safetensors",
    ):  # fmt: skip
        good = load((folder / name).read_bytes())
        key = max(good, key=lambda key: good[key].size)
        rest = {other: values for other, values in good.items() if other != key}
        raw = (folder / name).read_bytes()
        made = {
            "no bytes": b"",
            "cut": raw[: len(raw) // 2],
            "a header of 2^63 bytes": file(b"", length=2**63),
            "a header of 90 MB": file(b"{", length=90_000_000),
            "a nested header": file(b'{"a":' * 50_000),
            "a shape that overflows": file(tensor([2**40, 2**40], [0, 4]), bytes(4)),
            "a shape beyond its data": file(tensor([1000], [0, 4]), bytes(4)),
            "offsets beyond the file": file(tensor([1], [0, 2**50]), bytes(4)),
            "offsets in reverse": file(tensor([1], [4, 0]), bytes(4)),
            "an unknown type": file(tensor([1], [0, 4], "F99"), bytes(4)),
            "a tensor less": save(rest),
            "a tensor more": save({**good, "more": np.zeros(3, np.float32)}),
            "a tensor of another shape": save({**rest, key: good[key][None].copy()}),
            "a tensor of integers": save({**rest, key: good[key].astype(np.int64)}),
            "nan": save({**rest, key: np.full_like(good[key], np.nan)}),
        }
        for what, content in made.items():
            yield f"{name.split('/', 1)[1]}: {what}", replaced(name, content)


def settings_variants() -> Iterator[Variant]:
    def run(name: str, **settings: Any) -> Callable[[Path, Content], None]:
        def change(_: Path, content: Content) -> None:
            next(entry for entry in content["image_runs"] if entry["name"] == name)["settings"].update(settings)

        return change

    nested: Any = 1
    for _ in range(60):
        nested = [nested]
    made = {
        "1e8 layers": run("tiny", timm_args={"layers": [100_000_000]}),
        "1e8 layers, frozen": run("still", timm_args={"layers": [100_000_000]}),
        "65,536 layers": run("tiny", timm_args={"layers": [65_536, 1, 1, 1]}),
        "900,000 layers": run("tiny", timm_args={"layers": [900_000, 1, 1, 1]}),
        "a float of layers": run("tiny", timm_args={"layers": [1e300]}),
        "nan layers": run("tiny", timm_args={"layers": [float("nan")]}),
        "7 billion parameters": run("tiny", backbone="vit_7b_patch16_dinov3"),
        "7 billion parameters, frozen": run("still", backbone="vit_7b_patch16_dinov3"),
        "a giant": run("tiny", backbone="eva_giant_patch14_224"),
        "a million channels": run("tiny", timm_args={"channels": [900_000, 8, 8, 8]}),
        "65,536 input channels": run("tiny", timm_args={"in_chans": 65_536}),
        "a wide stem": run("tiny", timm_args={"stem_width": 500_000}),
        "an image of 2,048 px in a transformer": run("tiny", backbone="vit_giant_patch14_224", size=2048),
        "deep arguments": run("tiny", timm_args={"layers": nested}),
        "many arguments": run("tiny", timm_args={f"a{n}": n for n in range(5_000)}),
        "a long argument": run("tiny", timm_args={"act_layer": "x" * 100_000}),
        "an unknown layer": run("tiny", timm_args={"act_layer": "no_such_layer"}),
        "an argument of text": run("tiny", timm_args={"layers": "9"}),
        "an unknown argument": run("tiny", timm_args={"nothing": 1}),
        "feature maps": run("tiny", timm_args={"features_only": True}),
        "a file of weights": run("tiny", timm_args={"checkpoint_path": "/etc/passwd"}),
        "a backbone from the hub": run("tiny", backbone="hf-hub:someone/model"),
        "no backbone": run("tiny", backbone="x" * 10_000),
        "another backbone": run("tiny", backbone="resnet18"),
        "a size of 0": run("tiny", size=0),
        "a size of a billion": run("tiny", size=10**9),
        "a batch of 10^15": run("tiny", batch_size=10**15),
        "a hundred thousand seeds": run("tiny", seeds=list(range(100_000))),
        "a negative batch": run("tiny", batch_size=-1),
    }
    for name, change in made.items():
        yield f"settings: {name}", change


def manifest_variants() -> Iterator[Variant]:
    def set_in(*path: str | int, value: Any) -> Callable[[Path, Content], None]:
        def change(_: Path, content: Content) -> None:
            at: Any = content
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value

        return change

    def raw(change: Callable[[Content], Content | bytes]) -> Callable[[Path, Content], None]:
        return lambda _, content: content.update(raw=change)

    def named(name: str, n_bytes: int = 0) -> Callable[[Path, Content], None]:
        entry = {"sha256": "0" * 64, "bytes": n_bytes}
        return raw(lambda content: {**content, "files": {**content["files"], name: entry}})

    def without(name: str) -> Callable[[Path, Content], None]:
        return lambda folder, _: (folder / name).unlink()

    made = {
        "a name of 300 characters": named("x" * 300),
        "a name of 300 bytes": named("é" * 150),
        "a path of 5,000 characters": named("/".join(["x"] * 2_500)),
        "a name with a null": named("a\0b"),
        "a name that is no text": named("a\ud800b"),
        "a file inside a file": named("costs.json/x"),
        "a folder named as a file": named("blend"),
        "a name outside": named("../x"),
        "10^15 bytes": named("a", 10**15),
        "a hundred levels": raw(lambda content: b'{"a":' * 100_000),
        "a number of 5,000 digits": raw(lambda content: b'{"format": ' + b"9" * 5_000 + b"}"),
        "no object": raw(lambda content: b"[]"),
        "not utf-8": raw(lambda content: b"\xff\xfe{}"),
        "a hundred folds": set_in("folds", value=100),
        "two folds": set_in("folds", value=2),
        "10^9 folds": set_in("folds", value=10**9),
        "a million threads": set_in("threads", value=10**6),
        "no image runs": set_in("image_runs", value=[]),
        "a class less": set_in("image_runs", 0, "positive", value=[True]),
        "10,000 classes": set_in("image_runs", 0, "positive", value=[True] * 10_000),
        "another kind of run": set_in("image_runs", 0, "kind", value="frozen"),
        "another kind of stacker": set_in("stackers", 0, "kind", value="xgboost"),
        "an unknown kind": set_in("stackers", 0, "kind", value="pickle"),
        "a shift of nan": set_in("stackers", 0, "shifts", value=[float("nan")] * 3),
        "no scales": set_in("scales", value={}),
        "a scale of nan": set_in("scales", "tiny", value={"-1": [0.0, float("nan")], "0": [0.0, 1.0]}),
        "a scale of 0": set_in("scales", "tiny", value={"-1": [0.0, 0.0]}),
        "a scale of one number": set_in("scales", "tiny", value={"-1": [0.0]}),
        "a scale of no net": set_in("scales", "tiny", value={"x": [0.0, 1.0]}),
        "an unknown feature": set_in("features", "nothing", value=True),
        "a feature less": set_in("features", "metadata", value=False),
        "another embedding": set_in("embeddings", value={"tiny": "frozen", "still": "aligned"}),
        "no embeddings": set_in("embeddings", value={}),
        "no columns": set_in("columns", value={}),
        "another objective": set_in("objective", value="x"),
        "a long text": set_in("chosen", value="x" * 1_000_000),
        "no model": without("stackers/gbdt/fold_0/model.txt"),
        "no weights": without("image_models/tiny/fold_0/weights.safetensors"),
        "no second seed": without("image_models/tiny/fold_1/weights_0.safetensors"),
        "no backbone": without("image_models/still/backbone.safetensors"),
        "no blend": without("blend/blend.json"),
        "no ranks": without("blend/ranks.npy"),
        "no features": without("features/fold_1/features.json"),
        "no alignment": without("alignment/tiny_mean.npy"),
        "no density": without("novelty/fold_0/mean.npy"),
    }  # fmt: skip
    for name, change in made.items():
        yield f"manifest: {name}", change


def variants(folder: Path) -> dict[str, list[Variant]]:
    """All variants of the bundle in ``folder``, by group."""
    good = richer_models(folder)
    return {
        "lightgbm": list(lightgbm_variants(good["lightgbm"])),
        "xgboost": list(xgboost_variants(good["xgboost"])),
        "catboost": list(catboost_variants(good["catboost"])),
        "arrays": list(array_variants(folder)),
        "json": list(json_variants(folder)),
        "weights": list(weights_variants(folder)),
        "settings": list(settings_variants()),
        "manifest": list(manifest_variants()),
    }


def good_variants(folder: Path) -> list[Variant]:
    """Bundles that are as they should be: the one in ``folder``, and with models of each library."""
    good = richer_models(folder)
    return [("as it is", lambda *_: None), *((f"{kind}", with_model(kind, good[kind], good[kind])) for kind in good)]
