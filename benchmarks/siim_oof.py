"""Sets up an experiment from two real CNNs' predictions on all of SIIM-ISIC 2020: it has net_a's folds, net_b others.

python benchmarks/siim_oof.py ../shared/data/siim2020 /tmp/siim
dermstack stack -c /tmp/siim/siim.yaml
dermstack stack -c /tmp/siim/siim.yaml --set features.context_counts=true
python benchmarks/level2.py /tmp/siim/siim.yaml
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml


def write_experiment(source: Path, folder: Path) -> tuple[Path, list[list[str]]]:
    """Writes the table and config into the folder; returns the config and the arguments of the imports."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"dtype": str, "keep_default_na": False}
    a, b = (pd.read_csv(source / "oof" / f"net_{name}_oof.csv", **text) for name in "ab")
    sizes = pd.read_csv(source / "published_folds_and_sizes.csv", **text)[["image_name", "width", "height"]]
    train = pd.read_csv(source / "train.csv", **text).merge(a[["image_name", "fold"]], on="image_name")
    train.merge(sizes, on="image_name", how="left").fillna("").to_csv(folder / "train.csv", index=False)
    b[b["image_name"].isin(train["image_name"])].to_csv(folder / "net_b_oof.csv", index=False)
    columns = {
        "id": "image_name", "group": "patient_id", "target": "target", "age": "age_approx", "sex": "sex",
        "site": "anatom_site_general_challenge", "fold": "fold", "width": "width", "height": "height",
    }  # fmt: skip
    settings = {
        "experiment": "siim2020-oof", "runs": "runs", "threads": 1, "n_jobs": 2,
        "data": {
            "name": "siim2020", "train": "train.csv", "test": str(source / "test.csv"), "columns": columns,
        },
        "stackers": [{"name": kind, "kind": kind} for kind in ("lightgbm", "xgboost", "logistic")],
    }  # fmt: skip
    config = folder / "siim.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    oof = source / "oof"
    options = ["--test-averaged", "--foreign-folds"]
    return config, [
        ["import-oof", "-c", str(config), "--replace", *arguments]
        for arguments in (
            ["net_a", "--oof", str(oof / "net_a_oof.csv"), "--test", str(oof / "net_a_test.csv")],
            ["net_b", "--oof", str(folder / "net_b_oof.csv"), "--test", str(oof / "net_b_test.csv"), *options],
        )
    ]


def main() -> None:
    _, imports = write_experiment(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
    for arguments in imports:
        subprocess.run([str(Path(sys.executable).with_name("dermstack")), *arguments], check=True)


if __name__ == "__main__":
    main()
