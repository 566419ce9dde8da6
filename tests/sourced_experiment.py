"""An experiment with rows of four hospitals, and a column that helps within a hospital and misleads elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

HOSPITALS = ("Barcelona", "Basel", "Sydney", "Vienna")


def write_sourced(
    folder: Path, *, patients: int = 40, source_column: str | None = "hospital", **changes: object
) -> Path:
    """train.csv of four hospitals and sourced.yaml, whose path is returned.

    ``true`` predicts the target everywhere. ``local`` predicts it in each hospital, but with another sign in every
    second one, and ``code`` tells the hospital: a tree that has seen the hospital knows the sign.
    """
    rng = np.random.default_rng(3)
    parts = []
    for number, name in enumerate(HOSPITALS):
        group = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
        y = rng.random(len(group)) < 0.3
        parts.append(pd.DataFrame({
            "image": [f"{name}_{row}" for row in range(len(group))],
            "patient": [f"{name}-{one}" for one in group],
            "target": y.astype(int),
            "age": rng.integers(20, 80, len(group)),
            "true": rng.normal(size=len(group)) + y,
            "local": rng.normal(size=len(group)) + (-1) ** number * 3.0 * y,
            "code": number + rng.normal(size=len(group)) / 100,
            "hospital": name,
        }))  # fmt: skip
    train = pd.concat(parts, ignore_index=True)
    train.to_csv(folder / "train.csv", index=False)
    columns = {
        "id": "image",
        "group": "patient",
        "target": "target",
        "age": "age",
        "numeric": ["true", "local", "code"],
    }
    settings = {
        "experiment": "sourced", "runs": "runs", "cache": "cache", "threads": 1,
        "data": {
            "name": "sourced", "train": "train.csv",
            "columns": columns | ({"source": source_column} if source_column else {}),
        },
        "folds": {"k": 4},
        "features": {"relative": [], "outliers": False},
        "stackers": [
            {"name": "trees", "kind": "lightgbm", "runs": [], "params": {"rounds": 40, "patience": 10}},
            {"name": "line", "kind": "logistic", "runs": []},
        ],
        "blend": {"methods": ["rank_mean", "mean"], "trials": 2},
    }  # fmt: skip
    settings.update(changes)
    path = folder / "sourced.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
