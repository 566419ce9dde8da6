"""Review bands on the held-out calibrated p of a finished blend, and how they work on patients that were left out.

    python benchmarks/review_band_real.py BLEND_OOF.parquet TRAIN.csv ID GROUP TARGET [--splits 100]

For each promise: the band of all rows, and how often the promise holds on half of the patients for a band that was
chosen on the other half. The half that is scored has noise of its own, so that this may lie below the confidence.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from stack.metrics.review_band import choose_band, decide, measure_decisions

PROMISES = [("sensitivity", 0.9), ("sensitivity", 0.95), ("npv", 0.99), ("npv", 0.995)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("oof", "train", "id", "group", "target"):
        parser.add_argument(name)
    parser.add_argument("--splits", type=int, default=100)
    of = parser.parse_args()
    oof, train = pd.read_parquet(of.oof), pd.read_csv(of.train, dtype={of.id: str, of.group: str}).set_index(of.id)
    rows = train.loc[oof["id"]]
    y, p, group = rows[of.target].to_numpy(), oof["p_calibrated"].to_numpy(), rows[of.group].to_numpy()
    patient, names = pd.factorize(group)
    most = np.bincount(patient[y == 1]).max()
    print(f"{len(y):,} rows, {len(names):,} groups, {y.sum():,} positives, up to {most} each")
    print("| promise | test | threshold of p | decided as negative | sensitivity | npv | held on the other half |")
    print("|---|---|---|---|---|---|---|")
    for aim, level in PROMISES:
        for exact in (True, False):
            band = choose_band(y, p, group, (aim, level), exact=exact)
            both = [band.low, choose_band(y, p, group, ("npv" if aim == "sensitivity" else "sensitivity", 0.5)).low]
            found = measure_decisions(y, decide(p, band), group, both)
            values = {kept.aim: f"{kept.value.value:.3f}" for kept in found.kept}
            rng, held, bands = np.random.default_rng(0), 0, 0
            for _ in range(of.splits):
                half = rng.random(len(names))[patient] < 0.5
                chosen = choose_band(y[half], p[half], group[half], (aim, level), exact=exact)
                if chosen.below > 0:
                    kept = measure_decisions(y[~half], decide(p[~half], chosen), group[~half], [chosen.low]).kept[0]
                    bands += 1
                    held += not kept.value.value < level
            print(
                f"| {aim} {level} | {band.low.test} | {band.below:.4g} | {found.negative.value:.3f} | "
                f"{values['sensitivity']} | {values['npv']} | {held} of {bands} of {of.splits} |", flush=True
            )  # fmt: skip


if __name__ == "__main__":
    main()
