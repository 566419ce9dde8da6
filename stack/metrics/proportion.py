"""A share of rows with its interval, where rows come in groups and may all be alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stack.metrics.intervals import Interval

Z95 = 1.959963984540054


def proportion(hit: ArrayLike, group: ArrayLike) -> Interval:
    """The share of rows (n,) that are hit, with a 95 % interval that counts rows of a group (n,) together.

    Wilson's interval (1927) on the effective number of rows: n by the design effect of the groups (Rao & Scott 1992),
    which is never taken as below 1. Where all rows are hit, or none, the effect can't be seen and each group counts
    once. Unlike a bootstrap's it doesn't shrink to a point there: 20 of 20 found is 0.84 to 1. ``se`` is half the
    interval over 1.96. NaN for no row.
    """
    hit = np.asarray(hit, np.float64)
    if not hit.size:
        return Interval(np.nan, np.nan, np.nan, np.nan)
    share, rows = float(hit.mean()), _effective_rows(hit, group)
    centre = (share + Z95**2 / (2 * rows)) / (1 + Z95**2 / rows)
    half = Z95 / (1 + Z95**2 / rows) * np.sqrt(share * (1 - share) / rows + Z95**2 / (4 * rows**2))
    low, high = min(float(centre - half), share), max(float(centre + half), share)  # of 0 and 1, but for rounding
    return Interval(share, max(low, 0.0), min(high, 1.0), float(half / Z95))


def _effective_rows(hit: np.ndarray, group: ArrayLike) -> float:
    codes, _ = pd.factorize(np.asarray(group, dtype=object))
    n, share = hit.size, hit.mean()
    groups = int(codes.max()) + 1
    if share in (0, 1) or groups == 1:
        return float(groups)
    together = np.bincount(codes, hit - share)
    variance = groups / (groups - 1) * float(together @ together) / n**2
    alone = share * (1 - share) / (n - 1)  # the same variance of rows that are each a group
    return float(n / max(1.0, variance / alone))
