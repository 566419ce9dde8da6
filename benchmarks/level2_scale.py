"""Measures time and peak memory of the level-2 matrix up to the size of ISIC 2024, and compares with groupby.apply.

python benchmarks/level2_scale.py [--part matrix table groupby]

The data is generated: 1,042 patients with up to 9,000 rows, as in ISIC 2024's 401,059; three runs with 64 aligned
components each. Smaller sizes draw whole patients. Part `table` measures the features that compare each of 45 numeric
columns (1 % missing) and three runs with the patient's other rows. Each size, and the table, runs in its own process,
so that its peak is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from stack.level2.features import FoldFeatures
from stack.settings.level2 import Features
from tabular.group_features import prediction_aggregates
from tabular.outliers import GroupOutliers
from tabular.relative import cross_groups, ratio_to_mean, relative_features

ROWS, PATIENTS, LARGEST, RUNS, COMPONENTS = 401_059, 1_042, 9_000, 3, 64
TABLE_COLUMNS = 45
SITES = ["posterior torso", "lower extremity", "anterior torso", "upper extremity", "head/neck"]
NAMES = tuple(f"run{number}" for number in range(RUNS))
ALL_FEATURES = Features(
    logits=True, metadata=True, aggregates=True, cohort=True, neighbours=True, frozen_z=0, aligned_z=COMPONENTS,
    context_counts=True, shortcuts=False,
)  # fmt: skip


def group_sizes(rng: np.random.Generator) -> np.ndarray:
    """Draws log-normal group sizes, like the patients of ISIC 2024, cut at the largest and scaled to the total."""
    sizes = np.sort(rng.lognormal(5.2, 1.15, PATIENTS))
    for _ in range(50):
        sizes = np.clip(sizes * ROWS / sizes.sum(), 1, LARGEST)
    sizes = sizes.astype(int)
    sizes[-1] = LARGEST
    sizes[: ROWS - sizes.sum() if sizes.sum() < ROWS else 0] += 1
    return sizes


def write_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(PATIENTS), group_sizes(rng))
    n = len(group)
    np.save(folder / "group.npy", group)
    np.save(folder / "logits.npy", rng.normal(-4, 1.5, (n, RUNS)).astype(np.float32))
    for name in NAMES:
        np.save(folder / f"{name}.npy", rng.normal(size=(n, COMPONENTS)).astype(np.float32))


def measure(folder: Path, rows: int, queue: multiprocessing.Queue) -> None:
    group = np.load(folder / "group.npy")
    order = np.random.default_rng(1).permutation(PATIENTS)
    sizes = np.bincount(group)
    kept = order[: int(np.searchsorted(np.cumsum(sizes[order]), min(rows, len(group)))) + 1]
    mask = np.isin(group, kept)
    logits = np.load(folder / "logits.npy", mmap_mode="r")[mask]
    z = {name: np.load(folder / f"{name}.npy", mmap_mode="r")[mask] for name in NAMES}
    rng = np.random.default_rng(2)
    n = int(mask.sum())
    frame = pd.DataFrame({
        "group": pd.Series(group[mask]).astype("str"),
        "age": rng.integers(4, 17, n) * 5.0,
        "sex": rng.choice(["male", "female"], n),
        "site": rng.choice(SITES, n),
    })  # fmt: skip
    started = time.perf_counter()
    features = FoldFeatures(ALL_FEATURES, NAMES, seed=0).fit(frame, logits, z)
    matrix = features.transform(frame, logits, z)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put((n, matrix.shape[1], seconds, peak, int((np.bincount(group)[kept].astype(np.int64) ** 2).sum())))


def measure_table(folder: Path, queue: multiprocessing.Queue) -> None:
    rng = np.random.default_rng(3)
    group = np.load(folder / "group.npy")
    order = rng.permutation(len(group))  # a csv is not sorted by patient
    logits = np.load(folder / "logits.npy")[order]
    values = rng.normal(size=(len(group), TABLE_COLUMNS))
    values[rng.random(values.shape) < 0.01] = np.nan
    table = pd.DataFrame(values, columns=[f"measured_{number}" for number in range(TABLE_COLUMNS)])
    names = table.columns.tolist()
    patient = pd.Series(group[order]).astype("str")
    site = pd.Series(rng.choice(SITES, len(group)))
    blocks = {
        "relative to the patient": lambda: relative_features(patient, table, names),
        "relative to the patient's site": lambda: relative_features(
            cross_groups(patient, site), table, names, word="group_site"
        ),
        "neighbours and outlier factor": lambda: GroupOutliers().fit(table).transform(patient, table),
        "aggregates of runs": lambda: prediction_aggregates(patient, logits, NAMES),
        "p divided by the patient's mean": lambda: ratio_to_mean(patient, 1 / (1 + np.exp(-logits)), NAMES),
    }
    seconds, made = {}, []
    started, busy = time.perf_counter(), time.process_time()
    for block, compute in blocks.items():
        before = time.perf_counter()
        made.append(compute())
        seconds[block] = time.perf_counter() - before
    matrix = pd.concat(made, axis=1)
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put((matrix.shape, seconds, total, time.process_time() - busy, peak))


def print_table(context: multiprocessing.context.SpawnContext, folder: Path) -> None:
    queue = context.Queue()
    process = context.Process(target=measure_table, args=(folder, queue))
    load = os.getloadavg()[0]
    process.start()
    (rows, columns), seconds, total, busy, peak = queue.get()
    process.join()
    print(f"{TABLE_COLUMNS} numeric columns and {RUNS} runs, {rows:,} rows, {columns} features:")
    for block, spent in seconds.items():
        print(f"  {block:34}{spent:7.1f} s")
    print(f"  {'all, in one matrix':34}{total:7.1f} s ({busy:.1f} s of the processor), peak {peak:.2f} GB")
    print(f"  load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True)


def naive(frame: pd.DataFrame) -> pd.DataFrame:
    """Computes one run's aggregates as a user would write them."""

    def of_group(part: pd.DataFrame) -> pd.DataFrame:
        p = part["p"]
        others = (p.sum() - p) / max(len(p) - 1, 1)
        return pd.DataFrame({
            "mean": p.mean(), "max": p.max(), "min": p.min(), "std": p.std(ddof=0), "rank": p.rank(pct=True),
            "z": (p - p.mean()) / p.std(ddof=0), "others": others, "diff": p - others,
        }, index=part.index)  # fmt: skip

    return frame.groupby("group", group_keys=False)[["p"]].apply(of_group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[50_000, 100_000, 200_000, ROWS])
    parts = ("matrix", "table", "groupby")
    parser.add_argument("--part", choices=parts, nargs="*", default=parts)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        write_arrays(Path(name))
        if "matrix" in options.part:
            print_matrix(context, Path(name), options.rows)
        if "table" in options.part:
            print_table(context, Path(name))
    if "groupby" in options.part:
        print_groupby()


def print_matrix(context: multiprocessing.context.SpawnContext, folder: Path, sizes: list[int]) -> None:
    print(f"{'rows':>8}{'columns':>9}{'seconds':>9}{'µs a row':>10}{'peak GB':>9}{'sum of squared sizes':>22}")
    for rows in sizes:
        queue = context.Queue()
        process = context.Process(target=measure, args=(folder, rows, queue))
        process.start()
        n, columns, seconds, peak, squares = queue.get()
        process.join()
        print(f"{n:8,}{columns:9}{seconds:9.1f}{seconds / n * 1e6:10.1f}{peak:9.2f}{squares:22,}", flush=True)


def print_groupby() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2_056, 33_126)
    frame = pd.DataFrame({"group": group, "p": rng.random(33_126)})
    started = time.perf_counter()
    naive(frame)
    plain = time.perf_counter() - started
    started = time.perf_counter()
    prediction_aggregates(group, frame[["p"]].to_numpy(), ["p"])
    ours = time.perf_counter() - started
    print(f"8 aggregates of one run, 33,126 rows: {ours * 1e3:.0f} ms, groupby.apply {plain * 1e3:.0f} ms", end="")
    print(f": {plain / ours:.0f} ×")


if __name__ == "__main__":
    main()
