"""Readers of what runs and bundles hold, with small files that they read: somebody may have written these as well."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from fuzzing import Reader
from safetensors.numpy import save

COSTS = b'[{"without": ["age"], "cost": -0.01, "low": -0.02, "high": 0.0}]'


def _parquet_seeds() -> list[bytes]:
    frame = pd.DataFrame({"id": ["a", "b", "c"], "fold": np.int8([0, 1, 2]), "logit": np.float32([1, -1, 0.5])})
    return [frame.to_parquet(compression=packed) for packed in ("snappy", "gzip", "zstd", None)]


def _npy_seeds() -> list[bytes]:
    made = []
    for array in (np.arange(12, dtype=np.float16).reshape(3, 4), np.asfortranarray(np.eye(3)), np.array(["a", "bc"])):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        made.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return [*made, buffer.getvalue()]


def _read_stored(path: Path) -> object:
    """Behind a checksum that is right."""
    from stack.store import Run

    run = Run(path.parent, {"files": {path.name: sha256(path.read_bytes()).hexdigest()}})
    return run.frame("oof") if path.suffix == ".parquet" else np.asarray(run.array("oof_z"))


def _index_seeds() -> list[bytes]:
    from image_models.cache import INDEX_COLUMNS

    row = {"id": ["a"], "offset": [0], "length": [192], "height": [8], "width": [8], "crc": [zlib.crc32(bytes(192))]}
    frame = pd.DataFrame({name: row.get(name, [1]) for name in INDEX_COLUMNS}).astype(INDEX_COLUMNS)
    return [frame.to_parquet()]


def _read_index(path: Path) -> object:
    from image_models.cache import PIXELS_FILE, SETTINGS_FILE, open_cache
    from image_models.io.decode import DECODER_VERSION

    settings = {"size": 8, "resize": "square", "format": "raw", "decoder": DECODER_VERSION}
    (path.parent / SETTINGS_FILE).write_text(json.dumps(settings))
    (path.parent / PIXELS_FILE).write_bytes(bytes(192))
    cache = open_cache(path.parent, size=8, resize="square", format="raw")
    return cache.indexed_end, cache.take(cache.rows_for(["a"])), cache.image(0)


def _run_seeds() -> list[bytes]:
    return [json.dumps({"fingerprint": "0" * 12, "kind": "image", "files": {"oof.parquet": "0" * 64}}).encode()]


def _read_run(path: Path) -> object:
    from stack.store import read_run

    run = read_run(path.parent)
    return run is not None and run.has("oof")


def _weights_seeds() -> list[bytes]:
    return [save({"head.weight": np.ones((1, 4), np.float32), "head.bias": np.zeros(1, np.float32)})]


def _read_weights(path: Path) -> object:
    from torch import nn

    from image_models.net import _read_pretrained, read_weights

    read_weights(nn.ModuleDict({"head": nn.Linear(4, 1)}), path)
    return _read_pretrained(path)


def _bundle_files() -> dict[str, bytes]:
    return {"blend/values.npy": _npy_seeds()[0], "novelty/novelty.json": b'{"run": "net"}', "costs.json": COSTS}


def manifest(files: dict[str, bytes]) -> bytes:
    """What a bundle of these files would say of them."""
    content = {
        "format": 1, "dermstack": "0.1.0", "experiment": "small", "objective": "auc", "chosen": "mean", "selected": [],
        "headline": {"value": 0.9, "low": 0.8, "high": 1.0}, "folds": 2, "threads": 1, "resize": "square",
        "cache_format": "raw", "columns": {"id": "image", "target": "y"}, "features": {"logits": True, "frozen_z": 0},
        "embeddings": {"net": "frozen"}, "scales": {"net": {"0": [0.0, 1.0]}}, "training": {"rows": 9, "positives": 3},
        "image_runs": [
            {"name": "net", "kind": "image", "settings": {"name": "net", "backbone": "test_resnet", "size": 32},
             "positive": [False, True]},
        ],
        "stackers": [{"name": "gbdt", "kind": "lightgbm", "shifts": [0.0, 0.0]}],
        "files": {name: {"sha256": sha256(of).hexdigest(), "bytes": len(of)} for name, of in files.items()},
    }  # fmt: skip
    return json.dumps(content).encode()


def zipped(members: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, packed)
    return buffer.getvalue()


def _bundle_seeds() -> list[bytes]:
    members = {"manifest.json": manifest(_bundle_files()), **_bundle_files()}
    return [zipped(members, packed) for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)]


def _read_bundle(path: Path) -> object:
    from dermstack.serve.bundle import read_bundle
    from dermstack.serve.expectations import cost_notes

    bundle = read_bundle(path)
    said = bundle.image_runs, bundle.sizes, bundle.columns, bundle.folds, bundle.selection_note, bundle.fingerprint
    return said, bundle.arrays("blend"), bundle.json("novelty/novelty.json"), cost_notes(bundle, ["age"])


def _read_manifest(path: Path) -> object:
    """Beside the files of a whole bundle."""
    for name, content in _bundle_files().items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content)
    return _read_bundle(path.parent)


def _gbdt_seeds(kind: str) -> list[bytes]:
    from tabular.gbdt import fit_gbdt
    from tabular.gbdt_libraries import LIBRARIES

    X = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=["a", "b", "c"])
    params = {"rounds": 2, **({"min_data_in_leaf": 5} if kind == "lightgbm" else {"max_depth": 2})}
    model = fit_gbdt(kind, X, (X["a"] > 0).astype(int), eval_set=None, params=params, seed=0, threads=1)
    return [LIBRARIES[kind].dump(model.booster)]


def _check_gbdt(path: Path) -> None:
    """The structure alone: what the libraries do with a spoiled model is the child process's affair."""
    from tabular.gbdt import check_gbdt

    check_gbdt({".txt": "lightgbm", ".ubj": "xgboost"}[path.suffix], path.read_bytes(), path.name)


READERS = {
    "parquet": Reader("oof.parquet", _parquet_seeds, _read_stored),
    "npy": Reader("oof_z.npy", _npy_seeds, _read_stored),
    "cache": Reader("index.parquet", _index_seeds, _read_index),
    "bundle": Reader("bundle.zip", _bundle_seeds, _read_bundle),
    "manifest": Reader("manifest.json", lambda: [manifest(_bundle_files())], _read_manifest),
    "run": Reader("run.json", _run_seeds, _read_run),
    "weights": Reader("weights.safetensors", _weights_seeds, _read_weights),
    "lightgbm": Reader("model.txt", lambda: _gbdt_seeds("lightgbm"), _check_gbdt),
    "xgboost": Reader("model.ubj", lambda: _gbdt_seeds("xgboost"), _check_gbdt),
}
