"""Finds how finely probabilities are written, and clips exact 0 and 1 at half of that before they become logits.

A 0 in a file of three digits means "below 0.0005". As a logit of -27 (clipped at 1e-12) one such row outweighs all
others: on two real networks with 48 % such rows, a logistic blend has a nested AUC of 0.912 instead of 0.921.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from stack.metrics.scores import Bools, Floats

# Distance within which a value is a decimal number: up to six digits also after a way through float32 logits.
_TOLERANCES = {digits: 4e-8 if digits <= 6 else 1e-15 for digits in range(1, 13)}
_FIRST_LOOK = 256  # values that are looked at first, since most files are refuted by them

Limits = tuple[float, float]  # lowest and highest probability that is used


def resolution(p: ArrayLike) -> float | None:
    """Returns the step of the coarsest decimal grid that holds all of ``p`` (n,), such as 0.001; None where none does.

    Grids have one to twelve digits. A value other than 0 and 1 lies on no grid that would make it 0 or 1.
    """
    values: Floats = np.asarray(p, np.float64)
    for digits, tolerance in _TOLERANCES.items():
        if _on_grid(values[:_FIRST_LOOK], digits, tolerance).all() and _on_grid(values, digits, tolerance).all():
            return float(10.0**-digits)
    return None


def clip_limits(p: ArrayLike, finest: float) -> Limits:
    """Returns the limits at which probabilities like ``p`` (n,) are clipped, at least ``finest`` from 0 and 1.

    On a decimal grid, half a step. Elsewhere an exact 0 (or 1) lies halfway between 0 (or 1) and the value nearest to
    it, so that the order is kept, and a side without them is clipped at ``finest``.
    """
    values: Floats = np.asarray(p, np.float64)
    if (step := resolution(values)) is not None:
        edge = max(step / 2, finest)
        return edge, 1 - edge
    low, high = finest, 1 - finest
    inside = values[(values > 0) & (values < 1)]
    if inside.size and (values == 0).any():
        low = max(low, float(inside.min()) / 2)
    if inside.size and (values == 1).any():
        high = min(high, (1 + float(inside.max())) / 2)
    return low, high


def checked_limits(low: float, high: float) -> Limits:
    """Returns stored limits as floats; raises ValueError unless 0 < low < high < 1, so that logits are finite."""
    if not 0 < float(low) < float(high) < 1:
        raise ValueError(f"limits {low} and {high} of probabilities: they must lie inside (0, 1), the lower one first")
    return float(low), float(high)


def clipped_logit(p: ArrayLike, limits: Limits) -> Floats:
    """Returns the logits (n,) of probabilities (n,) after clipping them to ``limits``."""
    values: Floats = logit(np.clip(np.asarray(p, np.float64), *limits))
    return values


def _on_grid(values: NDArray[np.float64], digits: int, tolerance: float) -> Bools:
    steps = 10**digits
    scaled = values * steps
    nearest = np.rint(scaled)
    is_inside = ((nearest >= 1) | (values == 0)) & ((nearest <= steps - 1) | (values == 1))
    found: Bools = is_inside & (np.abs(scaled - nearest) <= tolerance * steps)
    return found
