"""Hostile variants of a bundle by its GBDTs, of each library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from hostile_lightgbm import lightgbm_models
from hostile_variant import Change, Content, Variant
from hostile_xgboost import xgboost_models

from tabular.gbdt import fit_gbdt, read_gbdt, write_gbdt
from tabular.gbdt_libraries import LIBRARIES

MODEL = "stackers/gbdt/fold_0/model"


def gbdt_variants(kind: str, good: bytes) -> Iterator[Variant]:
    """Yields variants with a hostile model of ``kind`` in the first fold and a ``good`` one in the others."""
    hostile = {"lightgbm": lightgbm_models, "xgboost": xgboost_models, "catboost": _catboost_models}[kind]
    for name, content in hostile(good):
        yield f"{kind}: {name}", with_model(kind, good, content)


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


def with_model(kind: str, good: bytes, content: bytes) -> Change:
    """A bundle whose GBDTs are of ``kind``: ``content`` in the first fold, ``good`` in the others."""

    def change(folder: Path, manifest: Content) -> None:
        next(entry for entry in manifest["stackers"] if entry["name"] == "gbdt")["kind"] = kind
        for number, fold in enumerate(sorted((folder / "stackers" / "gbdt").iterdir())):
            for path in fold.iterdir():
                path.unlink()
            (fold / f"model{LIBRARIES[kind].suffix}").write_bytes(good if number else content)

    return change


def _catboost_models(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields hostile models with their names."""

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
    yield from made.items()
