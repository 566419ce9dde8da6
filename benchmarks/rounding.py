"""Measures what rounded predictions cost a logistic blend, by how an exact 0 becomes a logit: two real CNNs' files.

python benchmarks/rounding.py ../shared/data/siim2020
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from stack.blend.blender import Blender
from stack.metrics.scores import Floats, auc


def main() -> None:
    source = Path(sys.argv[1])
    rows = pd.read_csv(source / "train.csv")[["image_name", "target"]]
    for name in "ab":
        rows = rows.merge(pd.read_csv(source / "oof" / f"net_{name}_oof.csv").add_suffix(f"_{name}").rename(
            columns={f"image_name_{name}": "image_name"}
        ), on="image_name")  # fmt: skip
    full = rows[["p_a", "p_b"]].to_numpy()
    print("| digits | rows of net b that are 0 | AUC, 0 as 1e-12 | AUC, 0 as half a step |\n|---|---|---|---|")
    for digits in (None, 4, 3, 2):
        p = full if digits is None else full.round(digits)
        before, now = nested_auc(rows, np.clip(p, 1e-12, 1 - 1e-12)), nested_auc(rows, p)
        print(f"| {digits or 'all'} | {(p[:, 1] == 0).mean():.0%} | {before:.4f} | {now:.4f} |")


def nested_auc(rows: pd.DataFrame, p: Floats) -> float:
    """Returns the AUC of a logistic blend of `p` (n, 2), fitted without the fold of net a that it scores."""
    y, fold, nets = rows["target"].to_numpy(), rows["fold_a"].to_numpy(), rows[["fold_a", "fold_b"]].to_numpy()
    score = np.empty(len(y))
    for held in np.unique(fold):
        fitted = fold != held
        blend = Blender("logistic").fit(p[fitted], y[fitted], nets=nets[fitted])
        score[~fitted] = blend.predict_proba(p[~fitted], nets=nets[~fitted])[:, 1]
    return auc(y, score)


if __name__ == "__main__":
    main()
