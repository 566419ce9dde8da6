"""Generated labels and out-of-fold files, as another pipeline would write them, for the tests of forensics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from dermstack.audit.forensics import ClaimedBlend, Forensics, run_forensics
from stack.console import Out
from stack.forensics.files import NamedColumns
from stack.imported.files import found_sources
from stack.imported.prediction_files import ImportedColumns, Part
from stack.imported.run import ImportOptions, Source

COLUMNS = ImportedColumns("id", "p", "fold")
OPTIONS = ImportOptions(COLUMNS, COLUMNS)


@dataclass
class World:
    """Patients, their images, and the signal that all models share: (n,) each, and the same of test rows."""

    folder: Path
    rng: np.random.Generator
    labels: pd.DataFrame
    fold: np.ndarray
    signal: np.ndarray
    test_ids: list[str]
    test_signal: np.ndarray

    @property
    def path(self) -> Path:
        return self.folder / "labels.csv"

    def logits(self, noise: float = 0.8) -> np.ndarray:
        """Logits of one model for every row."""
        return self.signal + self.rng.normal(0, noise, len(self.signal)) - 2.5

    def oof(self, logits: np.ndarray | None = None, *, fold: np.ndarray | None = None) -> pd.DataFrame:
        """An out-of-fold file in an order of its own."""
        p = expit(self.logits() if logits is None else logits)
        frame = pd.DataFrame({"image": self.labels["image"], "pred": p, "fold": self.fold if fold is None else fold})
        return frame.sample(frac=1, random_state=int(self.rng.integers(1 << 30)), ignore_index=True)

    def test(self, *, shift: float = 0.0) -> pd.DataFrame:
        """Its test file: the predictions of every net."""
        nets = [
            pd.DataFrame({"image": self.test_ids, "pred": expit(self.test_signal + noise + shift - 2.5), "fold": net})
            for net, noise in enumerate(self.rng.normal(0, 0.8, (5, len(self.test_ids))))
        ]
        return pd.concat(nets, ignore_index=True)

    def write(self, **frames: pd.DataFrame) -> None:
        for name, frame in frames.items():
            frame.to_csv(self.folder / f"{name}.csv", index=False)

    def examine(
        self, *, blend: str | None = None, claimed: str | None = None, weights: str | None = None,
        weights_of: str = "p", named: NamedColumns | None = None, options: ImportOptions = OPTIONS,
        group: str | None = None,
    ) -> Forensics:  # fmt: skip
        """Examines every file of the folder but the labels and the blend."""
        known = [self.path, None if blend is None else self.folder / f"{blend}.csv"]
        sources, _ = found_sources([str(self.folder)], options, known=known)
        given = None if blend is None else Source("blend", (Part(self.folder / f"{blend}.csv"),), (), options)
        return run_forensics(
            self.path, sources, Out(quiet=True), named=named or NamedColumns(), group=group,
            blend=ClaimedBlend(given, weights, weights_of, claimed),
        )  # fmt: skip


def make_world(folder: Path, seed: int = 0, *, patients: int = 150, k: int = 5) -> World:
    """A world of ``patients`` with 1 to 6 images each, a fifth of them positive, folds by patient."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 7, patients))
    n = len(patient)
    style = rng.normal(0, 0.3, patients)[patient]
    y = (rng.random(n) < 0.2).astype(int)
    labels = pd.DataFrame({"image": [f"im{row:05}" for row in rng.permutation(n)], "patient_id": patient, "target": y})
    labels["patient_id"] = "P" + labels["patient_id"].astype(str)
    test = 1.8 * (rng.random(250) < 0.2) + rng.normal(0, 0.7, 250)
    folder.mkdir(parents=True, exist_ok=True)
    labels.to_csv(folder / "labels.csv", index=False)
    fold = (rng.permutation(patients) % k)[patient]
    signal = 1.8 * y + style + rng.normal(0, 0.6, n)
    return World(folder, rng, labels, fold, signal, [f"te{row:04}" for row in range(250)], test)


def words(found: Forensics, severity: str = "") -> list[str]:
    """The statements of the findings, with their severity."""
    findings = [one.finding for one in found.findings]
    return [f"{one.severity}: {one.what}" for one in findings if severity in ("", one.severity)]
