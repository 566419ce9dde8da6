"""The recalibration of a bundle for other patients than those of training: as its manifest holds it, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dermstack.serve.bundle import Bundle
from stack.blend.calibration import Calibrator, Rescaled
from stack.metrics.expected_positives import CalibrationNoise
from stack.store import frame_fingerprint

LABELS, PREVALENCE = ("intercept", "slope"), "prevalence"  # kinds: from labels, and from a prevalence


def local_map(bundle: Bundle, calibrator: Calibrator) -> Rescaled | None:
    """Returns the line that the bundle's recalibration puts after the calibration of training; None without one.

    ``calibrator`` is the bundle's whole map, which ends with this line. Raises ValueError where it does not.
    """
    if (entry := _entry(bundle)) is None:
        return None
    if not isinstance(calibrator, Rescaled):
        raise ValueError("manifest.json names a recalibration, which blend/calibration.json lacks")
    return Rescaled(calibrator.of, float(entry["slope"]), float(entry["intercept"]))


def local_note(bundle: Bundle) -> str | None:
    """Returns a sentence on what the risks of a recalibrated bundle are made for; None for other bundles."""
    if (entry := _entry(bundle)) is None:
        return None
    sign = "+" if entry["intercept"] >= 0 else "-"
    line = (
        f"logit of the risk = {entry['slope']:.3f} · logit of the risk by bundle {entry['parent']} {sign} "
        f"{abs(entry['intercept']):.3f}"
    )
    if entry["kind"] == PREVALENCE:
        return (
            f"risks are recalibrated for a prevalence of {entry['prevalence']:.3g} without labels ({line}): they hold "
            f"if {bundle.unit}s of each class look as in training"
        )
    return (
        f"risks are recalibrated with {entry['rows']:,} labelled {bundle.unit}s of {entry['groups']:,} groups, "
        f"{entry['positives']:,} positive ({line}): they hold for patients like these"
    )


def local_noise(bundle: Bundle) -> CalibrationNoise | None:
    """Returns how exactly a recalibrated bundle's risks are known; None for other bundles."""
    if (entry := _entry(bundle)) is None:
        return None
    return CalibrationNoise(float(entry["se"]), float(entry["effect"]))


def is_fitted_on(bundle: Bundle, targets: pd.Series) -> bool:
    """Returns whether the bundle was recalibrated with exactly these labels (by id)."""
    entry = _entry(bundle)
    return entry is not None and entry.get("labels") == labels_fingerprint(targets)


def labels_fingerprint(targets: pd.Series) -> str:
    """Returns a fingerprint of labels by id, whatever their order. It names no id."""
    rows = pd.DataFrame({"id": targets.index.astype("str"), "target": targets.to_numpy(np.int64)})
    return frame_fingerprint(rows.sort_values("id", ignore_index=True))


def _entry(bundle: Bundle) -> Mapping[str, Any] | None:
    return bundle.manifest.get("recalibration")
