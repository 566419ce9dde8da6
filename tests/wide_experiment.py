"""A finished experiment whose table has hundreds of columns, some with names that break careless code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from conftest import run_cli, small_config

ODD = [
    'wi"dth [mm]', "<b>bold</b>", '{"json": [1, 2]}', "a=b", "it's, a list", "größe µm²", "c&d;", "tail\\end",
    "<script>alert(1)</script>",
]  # fmt: skip
TELLING = "diameter <mm>"
WORDS = "scanner “A/B”"
PART = "only in an [expression]"


def write_wide_data(small_data: Path, folder: Path, *, numbers: int = 300) -> None:
    """Writes the small data set's tables with further columns of numbers and words; images stay where they are."""
    rng = np.random.default_rng(5)
    names = [*ODD, TELLING, PART, *(f"measure {k:03}" for k in range(numbers - len(ODD) - 2))]
    for part in ("train", "test"):
        frame = pd.read_csv(small_data / f"{part}.csv", dtype=str, keep_default_na=False)
        made = pd.DataFrame(rng.normal(10, 2, (len(frame), len(names))).round(3), columns=names)
        if part == "train":
            made[TELLING] += 5 * frame["target"].astype(float)
        made = made.astype(str)
        made.loc[:5, ODD[0]] = ""
        made[WORDS] = rng.choice(['one "1"', "<two>", "three"], len(frame))
        made["ward"] = rng.choice([f"ward {k}" for k in range(30)], len(frame))
        pd.concat([frame, made], axis=1).to_csv(folder / f"{part}.csv", index=False)


def write_wide_experiment(small_data: Path, folder: Path, *, numbers: int = 300) -> Path:
    """Makes the experiment, up to its bundle, and returns the config."""
    write_wide_data(small_data, folder, numbers=numbers)
    models = [{"backbone": "test_resnet", "pretrained": False, "size": 32, "name": "still", "frozen": True}]
    stackers = [
        {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 30, "patience": 5}, "bags": 1},
        {"name": "line", "kind": "logistic"},
    ]
    # With eight rows a word, a native category would fit noise and hide the column that tells the target.
    features = {"relative": ["z"], "outliers": False, "derived": {"twice <it>": f"2 * `{PART}`"}}
    features |= {"category_min_rows": 20}
    config = small_config(small_data, folder, image_models=models, features=features, stackers=stackers)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"] |= {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    columns = [TELLING, *(name.replace("[", "[[]") for name in ODD), "measure*"]
    settings["data"]["columns"] |= {"numeric": columns, "categorical": [WORDS, "ward"]}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    return config
