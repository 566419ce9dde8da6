"""An experiment without images, and made-up runs for it whose predictions are plausible until a test changes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from imported_experiment import COLUMNS, Files, opened_experiment, write_experiment
from scipy.special import expit, logit

from stack.experiment import Experiment
from stack.predictions.doubts import Doubt, doubts
from stack.predictions.plausibility import run_facts
from stack.predictions.run_views import Scores


def patients(tmp_path: Path) -> Experiment:
    """An experiment of 900 rows of 300 patients, 20 % positive, 300 test rows."""
    rng = np.random.default_rng(0)
    config = write_experiment(tmp_path)
    for name, rows in (("train", 900), ("test", 300)):
        frame = pd.DataFrame(dict.fromkeys(COLUMNS.values(), ""), index=range(rows))
        frame["isic"], frame["years"] = [f"{name[:2]}{row:04}" for row in range(rows)], 50
        frame["sex"], frame["site"] = rng.choice(["male", "female"], rows), rng.choice(["torso", "head/neck"], rows)
        frame["patient"] = [f"{name}{row // 3}" for row in range(rows)]
        frame["malignant"] = (rng.random(rows) < 0.2).astype(int)
        (frame if name == "train" else frame.drop(columns="malignant")).to_csv(tmp_path / f"{name}.csv", index=False)
    pd.DataFrame({"isic": [f"te{row:04}" for row in range(300)], "malignant": 0}).to_csv(
        tmp_path / "sample.csv", index=False
    )
    return opened_experiment(config)


def files(experiment: Experiment, seed: int = 1, *, skill: float = 1.5) -> Files:
    """A model's out-of-fold and test predictions; models of other seeds share half of their errors with it."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    n, ids = len(experiment.target), experiment.table.test["id"]
    common = skill * experiment.target + shared.normal(0, 0.7, n) - 2.2
    oof = pd.DataFrame({
        "isic": experiment.table.train["id"],
        "p": expit(common + own.normal(0, 0.7, n)),
        "fold": experiment.folds.frame["fold"],
    })  # fmt: skip
    hidden = skill * (shared.random(len(ids)) < 0.2) + shared.normal(0, 0.7, len(ids)) - 2.2
    nets = [pd.DataFrame({"isic": ids, "p": expit(hidden + own.normal(0, 0.7, len(ids))), "fold": k}) for k in range(3)]
    return oof, pd.concat(nets, ignore_index=True)


def scores(name: str, made: Files, kind: str = "imported") -> Scores:
    oof, test = (frame.rename(columns={"isic": "id"}).assign(logit=logit(frame["p"])) for frame in made)
    return Scores(name, kind, oof, test)


def doubts_of(experiment: Experiment, *named: tuple[str, Files]) -> list[Doubt]:
    return doubts(run_facts(experiment, [scores(name, made) for name, made in named]))


def changed(made: Files, *, oof: Callable | None = None, test: Callable | None = None) -> Files:
    first, second = (frame.copy() for frame in made)
    if oof:
        first["p"] = oof(first["p"])
    if test:
        second["p"] = test(second["p"])
    return first, second
