"""Breasts of one to four views, of which one shows the finding: a table, its config and imported predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from imported_experiment import import_frames, opened_experiment
from scipy.special import expit
from test_docs import TEXTS, blocks

from stack.experiment import Experiment

UNIT = ["patient_id", "laterality"]


def documented_config() -> dict[str, Any]:
    """The config of docs/blend.md that names `predict_per`."""
    shown = [yaml.safe_load(code) for path in TEXTS for code in blocks(path, "yaml") if "predict_per" in code]
    (config,) = (one for one in shown if "experiment" in one)
    assert isinstance(config, dict)
    return config


def write_breasts(folder: Path, *, women: int = 90, images: int = 4, **changes: object) -> Path:
    """train.csv, test.csv, sample_submission.csv, and rsna.yaml, whose path is returned: the documented config."""
    rng = np.random.default_rng(7)
    train, test = _women(women, "1", images, rng), _women(20, "9", images, rng)
    train.to_csv(folder / "train.csv", index=False)
    test.drop(columns="cancer").to_csv(folder / "test.csv", index=False)
    ids = units_of(test).drop_duplicates().sample(frac=1, random_state=0)
    pd.DataFrame({"prediction_id": ids, "cancer": 0.1}).to_csv(folder / "sample_submission.csv", index=False)
    settings = {
        **documented_config(), "runs": "runs", "cache": "cache", "threads": 1, "folds": {"k": 3},
        "blend": {"methods": ["rank_mean", "logistic"]}, "stackers": [], **changes,
    }  # fmt: skip
    path = folder / "rsna.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return path


def units_of(frame: pd.DataFrame) -> pd.Series:
    return frame["patient_id"].astype(str) + "_" + frame["laterality"]


def import_readers(config: Path, *overrides: str, number: int = 2) -> Experiment:
    """Imports the predictions of readers who see the finding in the image that shows it."""
    experiment = opened_experiment(config, *overrides)
    shows = pd.concat([pd.read_csv(config.parent / f"{part}.csv", dtype=str) for part in ("train", "test")])
    shows = shows.set_index("image_id")["shows"].astype(int)
    for name in "abc"[:number]:
        rng = np.random.default_rng(ord(name))

        def reads(ids: pd.Series, rng: np.random.Generator = rng) -> np.ndarray:
            return expit(4.0 * shows.loc[ids].to_numpy() - 3 + rng.normal(0, 1.2, len(ids)))

        train, test = experiment.table.train["id"], experiment.table.test["id"]
        oof = pd.DataFrame({"isic": train, "p": reads(train), "fold": experiment.folds.frame["fold"]})
        by_net = [pd.DataFrame({"isic": test, "p": reads(test), "fold": k}) for k in range(experiment.folds.k)]
        import_frames(experiment, name, oof, pd.concat(by_net, ignore_index=True))
    return experiment


def _women(number: int, prefix: str, images: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for woman in range(number):
        for side in "LR":
            cancer = int(rng.random() < 0.3)
            views = int(rng.integers(1, images + 1))
            showing = rng.integers(views)
            for view in range(views):
                rows.append({
                    "image_id": f"{prefix}{woman:03}{side}{view}", "patient_id": f"{prefix}{woman:03}",
                    "laterality": side, "age": 40 + woman % 40, "view": ["CC", "MLO"][view % 2], "cancer": cancer,
                    "shows": cancer * int(view == showing),
                })  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=1).reset_index(drop=True)
