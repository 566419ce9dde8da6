"""Writes small data sets in layouts that no config of this repository has, with images that tell the classes apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def write_image(path: Path, rng: np.random.Generator, *, positive: bool, side: int = 48) -> None:
    """Writes an image of noise around a random disc, darker for a positive row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side]
    cy, cx = rng.uniform(0.35, 0.65, 2) * side
    disc = (y - cy) ** 2 + (x - cx) ** 2 < (rng.uniform(0.15, 0.35) * side) ** 2
    base = rng.uniform(150, 220, 3) - disc[..., None] * rng.uniform(40, 80) * (1.6 if positive else 1.0)
    Image.fromarray(np.clip(base + rng.normal(0, 25, (side, side, 3)), 0, 255).astype(np.uint8)).save(path)


def write_png_folders(folder: Path, *, n: int = 400, n_test: int = 100, seed: int = 0) -> pd.DataFrame:
    """Writes ``n`` PNG files in sub-folders, and train.csv and test.csv with ID, Age, label and two numeric columns.

    With ``n_test`` 0 all rows are in train.csv. Returns all rows.
    """
    rng = np.random.default_rng(seed)
    malignant = rng.random(n) < 0.3
    frame = pd.DataFrame(
        {
            "ID": [f"case{number:04d}" for number in range(n)],
            "Age": rng.integers(20, 90, n),
            "label": np.where(malignant, "malignant", "benign"),
            "diameter_mm": np.round(rng.gamma(3, 1.5, n) + 2 * malignant, 2),
            "asymmetry": np.round(rng.normal(0, 1, n) + 0.6 * malignant, 3),
        }
    )
    for number, (name, positive) in enumerate(zip(frame["ID"], malignant, strict=True)):
        write_image(folder / f"batch_{number % 4}" / f"{name}.png", rng, positive=bool(positive))
    train = frame.iloc[: n - n_test]
    train.to_csv(folder / "train.csv", index=False)
    if n_test:
        frame.iloc[n - n_test :].drop(columns="label").to_csv(folder / "test.csv", index=False)
    return frame


def write_clinic(folder: Path, *, n: int = 240, seed: int = 1) -> pd.DataFrame:
    """Writes a layout of its own: parquet tables, ids with suffixes, classes in `dx`, ages of -1, unknown sizes.

    Patients are `PatientID`; files are upper case in `pictures/2023` and `pictures/2024`. Returns all rows.
    """
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, n // 3, n)
    dx = rng.choice(["mel", "nv", "bcc", "bkl"], n, p=[0.3, 0.4, 0.15, 0.15])
    age = np.where(rng.random(n) < 0.05, -1, rng.integers(18, 90, n))
    frame = pd.DataFrame(
        {
            "filename": [f"img_{number:03d}.jpg" for number in range(n)],
            "PatientID": [f"P{number}" for number in patient],
            "dx": dx,
            "dx_type": rng.choice(["histo", "follow_up"], n),
            "Gender": rng.choice(["F", "M", "unknown"], n, p=[0.45, 0.45, 0.1]),
            "patient_age": age,
            "localization": rng.choice(["back", "face", "leg"], n),
            "size_mm": [f"{value:.1f}" for value in rng.gamma(3, 1, n) + 2 * (dx == "mel")],
        }
    )
    frame.loc[frame.index[::17], "size_mm"] = "unknown"
    for number, (name, label) in enumerate(zip(frame["filename"], dx, strict=True)):
        place = folder / "pictures" / str(2023 + number % 2)
        write_image(place / name.replace(".jpg", ".JPG").upper(), rng, positive=label == "mel")
    is_test = frame["PatientID"].isin([f"P{number}" for number in range(n // 15)])
    frame[~is_test].reset_index(drop=True).to_parquet(folder / "labelled.parquet", index=False)
    test = frame[is_test].drop(columns=["dx", "dx_type"]).reset_index(drop=True)
    test.to_parquet(folder / "to_predict_test.parquet", index=False)
    pd.DataFrame({"filename": test["filename"], "p": 0.5}).to_csv(folder / "submission_format.csv", index=False)
    return frame


def written_bytes(folders: Iterable[Path]) -> dict[str, bytes]:
    """Returns the content of every file below the folders, by path."""
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
