"""Data sets for audits: clean ones, in which nothing but chance ties anything to the target or to test, and faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config

Change = Callable[[pd.DataFrame, pd.DataFrame], None]
COLUMNS = {
    "id": "image", "group": "patient", "target": "target", "age": "age", "sex": "sex", "site": "site",
    "source": "source", "width": "width", "height": "height", "bytes": "bytes",
}  # fmt: skip


def clean_rows(groups: int, rng: np.random.Generator, *, prevalence: float = 0.1) -> pd.DataFrame:
    """Rows of patients of 1 to about 15 images, which share age, sex, camera and part of their risk."""
    sizes = rng.geometric(0.3, groups)
    patient = np.repeat(np.arange(groups), sizes)
    n = len(patient)
    risk = rng.beta(0.5 * prevalence * 4, 0.5 * (1 - prevalence) * 4, groups)[patient]
    width = rng.choice([600, 1024, 1872, 4000, 6000], groups)[patient]
    names = rng.choice(10**6, groups, replace=False)
    frame = pd.DataFrame({
        "image": [f"ISIC_{number:07d}" for number in rng.choice(10**7, n, replace=False)],
        "patient": [f"IP_{number:06d}" for number in names[patient]],
        "age": (5 * rng.integers(3, 18, groups)[patient]).astype(float),
        "sex": rng.choice(["male", "female", ""], groups, p=[0.5, 0.45, 0.05])[patient],
        "site": rng.choice(["torso", "head/neck", "lower extremity", "upper extremity", ""], n),
        "source": rng.choice(["vienna", "barcelona", "sydney"], groups)[patient],
        "width": width,
        "height": (width * 0.75).astype(int),
        "bytes": (width * rng.lognormal(6, 0.4, n)).astype(int),
        "note": rng.choice(["a", "b", "c", ""], n),
        "target": (rng.random(n) < risk).astype(int),
    })  # fmt: skip
    return frame.iloc[rng.permutation(n)].reset_index(drop=True)


def audited_experiment(
    folder: Path,
    change: Change | None = None,
    *,
    groups: int = 200,
    test_groups: int = 80,
    seed: int = 0,
    data: dict[str, object] | None = None,
    **settings: object,
) -> Experiment:
    """The opened experiment of a clean data set after ``change``, which may write into both frames."""
    rng = np.random.default_rng(seed)
    train, test = clean_rows(groups, rng), clean_rows(test_groups, rng)
    known = test["image"].isin(train["image"]) | test["patient"].isin(train["patient"])
    test = test[~known].drop(columns=["target", "source"]).reset_index(drop=True)
    if change:
        change(train, test)
    folder.mkdir(parents=True, exist_ok=True)
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    rows = {"name": "generated", "train": "train.csv", "test": "test.csv", "columns": COLUMNS, **(data or {})}
    config = {"experiment": "audited", "runs": "runs", "cache": "cache", "threads": 1, "data": rows, "folds": {"k": 5}}
    path = folder / "audited.yaml"
    path.write_text(yaml.safe_dump({**config, **settings}), encoding="utf-8")
    return open_experiment(read_config(path), path, Out(quiet=True))
