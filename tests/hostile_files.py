"""Hostile variants of a bundle by its arrays, its JSON and its weights."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile_variant import Variant, replaced
from safetensors.numpy import load, save


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
