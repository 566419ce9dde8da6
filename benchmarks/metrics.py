"""Times AUC against scikit-learn, and patient-level aggregates against groupby.apply: `make bench`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from stack.metrics.scores import auc
from tabular.group_features import prediction_aggregates


def best_of(times: int, work: Callable[[], object]) -> float:
    """Returns the seconds of the fastest of several runs."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def naive(group: np.ndarray, logit: np.ndarray) -> pd.DataFrame:
    """Computes the same eight features by groupby.apply, as a user would write them."""

    def features(x: pd.Series) -> pd.DataFrame:
        n, others = len(x), max(len(x) - 1, 1)
        return pd.DataFrame({
            "mean": x.mean(), "max": x.max(), "min": x.min(), "std": x.std(ddof=0),
            "rank": (x.rank() - 1) / max(n - 1, 1), "z": (x - x.mean()) / (x.std(ddof=0) or 1),
            "others_mean": (x.sum() - x) / others, "others_diff": x - (x.sum() - x) / others,
        })  # fmt: skip

    return pd.Series(logit).groupby(group, group_keys=False).apply(features)


def main() -> None:
    rng = np.random.default_rng(0)
    print("| what | dermstack | against | ratio |\n|---|---|---|---|")
    for n in (33_126, 401_059):
        y, s = (rng.random(n) < 0.0176).astype(int), rng.normal(size=n)
        ours, theirs = best_of(7, lambda: auc(y, s)), best_of(7, lambda: roc_auc_score(y, s))  # noqa: B023
        print(f"| AUC, {n:,} rows | {ours * 1e3:.2f} ms | scikit-learn {theirs * 1e3:.1f} ms | {theirs / ours:.0f} × |")
    group, logit = rng.integers(0, 2056, 33_126), rng.normal(size=33_126)
    ours = best_of(3, lambda: prediction_aggregates(group, logit[:, None], ["net"]))
    theirs = best_of(1, lambda: naive(group, logit))
    ratio = theirs / ours
    print(f"| 8 aggregates, 33,126 rows | {ours * 1e3:.0f} ms | groupby.apply {theirs * 1e3:.0f} ms | {ratio:.0f} × |")


if __name__ == "__main__":
    main()
