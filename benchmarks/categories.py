"""Compares native categories with indicators of the 20 most frequent words, on simulated tables.

    python benchmarks/categories.py --kinds lightgbm xgboost catboost
    python benchmarks/categories.py --min-rows   # what `features.category_min_rows` brings, by the effect of the words

Words have an effect N(0, 1.2) on the log odds, beside one true number of five. AUC on as many new rows, mean of draws.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from tabular.categories import CategoryCodes
from tabular.encode import MetadataEncoder
from tabular.fit_bag import BagSettings, ColumnRoles, fit_bag

NUMBERS = list("abcde")
SIZES = ((2500, 60), (2500, 300), (6000, 100), (6000, 1000))  # rows and words
PARAMS = {"rounds": 600, "patience": 50}
MANY = 500  # from so many words on their frequencies follow Zipf's law; fewer are drawn evenly


def table(rows: int, words: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns a table of ``rows`` rows and its targets."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(0, 1.2, words)
    word = rng.zipf(1.3, rows) % words if words > MANY else rng.integers(0, words, rows)
    numbers = rng.normal(size=(rows, 5))
    y = (rng.random(rows) < expit(effect[word] + numbers[:, 0] - 2.5)).astype(int)
    return pd.DataFrame(numbers, columns=NUMBERS).astype(np.float32).assign(w=[f"w{one}" for one in word]), y


def compare(kind: str, rows: int, words: int, draws: int) -> dict[str, float]:
    """Returns the mean AUC without the column, with indicators, and with the native category."""
    found: dict[str, list[float]] = {}
    for seed in range(draws):
        frame, y = table(2 * rows, words, seed)
        train, inner = frame[:rows], np.arange(rows) % 5 == 0
        indicators = MetadataEncoder(NUMBERS, ["w"], max_levels=20, sparse=True).fit(train).transform(frame)
        native = frame[NUMBERS].join(CategoryCodes(["w"]).fit(train).transform(frame))
        for name, x in (("without", frame[NUMBERS]), ("20 most frequent words", indicators), ("native", native)):
            bag = fit_bag(
                BagSettings(kind, PARAMS, columns=ColumnRoles(categorical=["w"])),
                x[:rows],
                y[:rows],
                inner,
                seed=0,
                threads=1,
            )
            found.setdefault(name, []).append(roc_auc_score(y[rows:], bag.logit(x[rows:])))
    return {name: float(np.mean(values)) for name, values in found.items()}


RARE = (  # rows, words (0: Zipf's law) and the standard deviation of their effect
    (240, 30, 0.0), (240, 30, 1.2), (600, 60, 0.0), (600, 60, 1.2), (2000, 250, 0.0), (2000, 250, 0.6),
    (2000, 100, 0.0), (2000, 100, 0.6), (3000, 0, 0.0), (3000, 0, 1.0),
)  # fmt: skip
LEAST = (1, 5, 10, 20, 40, 10**6)  # values of category_min_rows; the last leaves one code


def compare_least(kind: str, rows: int, words: int, spread: float, draws: int) -> list[float]:
    """Returns the mean AUC on 4,000 new rows for each value of `LEAST`."""
    found = []
    for seed in range(draws):
        rng = np.random.default_rng((seed, rows, int(spread * 10)))
        word = rng.integers(0, words, rows + 4000) if words else rng.zipf(1.4, rows + 4000) % 400
        effect = rng.normal(0, spread, words or 400)
        numbers = rng.normal(size=(rows + 4000, 5))
        y = (rng.random(rows + 4000) < expit(effect[word] + numbers[:, 0] - 1.5)).astype(int)
        frame = pd.DataFrame(numbers, columns=NUMBERS).astype(np.float32).assign(w=[f"w{one}" for one in word])
        inner, made = np.arange(rows) % 5 == 0, list[float]()
        for least in LEAST:
            codes = CategoryCodes(["w"], min_rows=least).fit(frame[:rows])
            x = frame[NUMBERS].join(codes.transform(frame))
            bag = fit_bag(
                BagSettings(kind, {"rounds": 300, "patience": 30}, columns=ColumnRoles(categorical=["w"])),
                x[:rows],
                y[:rows],
                inner,
                seed=0,
                threads=1,
            )
            made.append(float(roc_auc_score(y[rows:], bag.logit(x[rows:]))))
        found.append(made)
    return [float(mean) for mean in np.mean(found, axis=0)]


def main() -> None:
    """Prints one row of a table for each size and kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["lightgbm", "xgboost", "catboost"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--min-rows", action="store_true")
    options = parser.parse_args()
    if options.min_rows:
        for rows, words, spread in RARE:
            for kind in options.kinds:
                cells = " | ".join(f"{value:.4f}" for value in compare_least(kind, rows, words, spread, options.draws))
                name = f"{words:,} words" if words else "Zipf"
                print(f"| {rows:,} rows, {name}, effect {spread} | {kind} | {cells} |", flush=True)
        return
    for rows, words in SIZES:
        for kind in options.kinds:
            made = compare(kind, rows, words, options.draws)
            cells = " | ".join(f"{name} {value:.4f}" for name, value in made.items())
            print(f"| {rows:,} rows, {words:,} words | {kind} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
