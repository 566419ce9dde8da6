"""Computes how many labels a recalibration needs, from the risks of the images that would be labelled.

The information in a label depends on the risk of its image (Riley et al., "Minimum sample size for external validation
of a clinical prediction model with a binary outcome", Statistics in Medicine 40, 2021), so no rule such as "100
positive images" holds everywhere. Precisions are those of Fisher's information, powers those of the likelihood ratio
test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from stack.metrics.calibration import EDGE
from stack.metrics.intervals import Z95
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.metrics.row_values import varies
from stack.metrics.scores import Floats

_NONCENTRALITY = 9.635  # of chi-square with 2 degrees of freedom that exceeds its 95 % quantile in 80 of 100 samples
_RATIO, _SLOPE_ERROR = 1.2, 0.2  # precisions asked for: of observed / expected positives, and of the slope
_STEPS = 60  # halvings in the search for a level


@dataclass(frozen=True)
class LabelsNeeded:
    """A purpose, the number of labelled images that it needs, and how many of them would be positive."""

    purpose: str
    images: int
    positives: int


def labels_needed(p: ArrayLike, *, design_effect: float = 1.0) -> list[LabelsNeeded]:
    """Returns numbers of labels for images with risks like ``p`` (n,), if these are about right.

    ``design_effect`` says how much more images are needed because they come in groups. Purposes that need a slope are
    left out where all risks are equal.
    """
    x = clipped_logit(p, clip_limits(p, EDGE))
    risks: Floats = expit(x)
    weight, prevalence = risks * (1 - risks), float(risks.mean())
    needed = {
        f"observed / expected positives within a factor of {_RATIO} (95 % interval)": float(weight.mean())
        / prevalence**2
        / (np.log(_RATIO) / Z95) ** 2,
        "the test finds that odds are twice too high (80 % power)": _for_test(risks, expit(x - np.log(2))),
        "the test finds that odds are 1.5 times too high (80 % power)": _for_test(risks, expit(x - np.log(1.5))),
    }
    if varies(risks):
        centre = float(weight @ x / weight.sum())
        of_slope = float((weight * (x - centre) ** 2).mean())  # information on the slope beside the level, per image
        needed |= {
            "the test finds that risks are too extreme, slope 0.7 (80 % power)": _for_test(risks, flatter(x, 0.7)),
            f"the slope within ± {_SLOPE_ERROR} (95 % interval)": (Z95 / _SLOPE_ERROR) ** 2 / of_slope,
        }
    return [
        LabelsNeeded(purpose, int(np.ceil(images * design_effect)), int(np.ceil(images * design_effect * prevalence)))
        for purpose, images in needed.items()
    ]


def _for_test(told: Floats, true: Floats) -> float:
    """Returns how many images the test of level and slope needs to reject ``told`` where ``true`` are the risks."""
    per_image = 2 * np.mean(true * np.log(true / told) + (1 - true) * np.log((1 - true) / (1 - told)))
    return _NONCENTRALITY / float(per_image)


def flatter(x: Floats, slope: float) -> Floats:
    """Returns risks with this slope on the logits ``x`` and the same mean."""
    wanted, low, high = float(expit(x).mean()), -50.0, 50.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(slope * x + middle).mean() < wanted else (low, middle)
    made: Floats = expit(slope * x + low)
    return made
