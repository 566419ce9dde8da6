"""Finds runs that are near copies of others, and measures what leaving the copies out would change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from stack.blend.nested import BlendRows, NestedBlend, NestedSettings, blend_rows
from stack.metrics.intervals import Interval, paired_difference
from stack.metrics.scores import Bools, Floats, objective_label
from stack.predictions.ranks import NetRanks

NEAR_COPY = 0.98  # rank correlation; fold models of one real network had at most 0.96
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class NearCopies:
    """Groups of runs of which each two have a rank correlation of at least `NEAR_COPY`."""

    groups: tuple[tuple[int, ...], ...]  # columns, each group in the order of the runs
    kept: tuple[int, ...]  # of each group the run that is most like the others of it
    correlation: Floats  # (runs, runs)

    def use(self) -> Bools:
        """Returns which runs (runs,) are left when one of each group is kept."""
        left: Bools = np.ones(len(self.correlation), np.bool_)
        for group, kept in zip(self.groups, self.kept, strict=True):
            left[[run for run in group if run != kept]] = False
        return left


def near_copies(P: Floats, nets: NDArray[Any], groups: ArrayLike | None = None) -> NearCopies:
    """Finds near copies among predictions `P` (n, runs) made by `nets` (n,) or (n, runs) of rows in `groups` (n,).

    Ranks are those of the blend, within each net where a run's nets differ in scale. Clusters are of complete linkage,
    so that no chain of small differences joins runs that differ. No targets are used, so that the choice of the run
    that is kept favours none.
    """
    correlation = _correlation(NetRanks().fit(P, nets, groups).transform(P, nets))
    runs = len(correlation)
    if runs < 2:
        return NearCopies((), (), correlation)
    tree = linkage(squareform(1 - correlation, checks=False), "complete")
    cluster = fcluster(tree, 1 - NEAR_COPY + 1e-9, "distance")
    found = sorted(tuple(np.flatnonzero(cluster == c).tolist()) for c in np.unique(cluster))
    groups_found = tuple(group for group in found if len(group) > 1)
    kept = tuple(group[int(np.argmax(correlation[np.ix_(group, group)].sum(axis=1)))] for group in groups_found)
    return NearCopies(groups_found, kept, correlation)


def change_without_copies(
    copies: NearCopies,
    nested: NestedBlend,
    rows: BlendRows,
    settings: NestedSettings,
    *,
    method: str | None = None,
) -> Interval:
    """Returns the nested objective of the chosen method without the copies less that with all runs, with interval.

    Both are fitted without the fold that is scored, to the same ``rows`` with the same ``settings``. ``method`` is the
    blend method, where the chosen candidate is not called by it. `P` of the rows may hold several columns of each run,
    those of all runs one after the other.
    """
    P, nets, chosen = np.asarray(rows.P), np.asarray(rows.nets), nested.chosen
    use = np.tile(copies.use(), P.shape[1] // len(copies.correlation))
    by_run = np.broadcast_to(nets.reshape(len(P), -1), P.shape)[:, use]
    method = method or chosen
    fewer = blend_rows(replace(rows, P=P[:, use], nets=by_run), replace(settings, methods=(method,)))
    return paired_difference(
        nested.final.objective, rows.y, fewer.comparable[method], nested.comparable[chosen], rows.split_group
    )


def copies_record(copies: NearCopies, names: Sequence[str], method: str, change: Interval | None) -> dict[str, Any]:
    """Returns the groups by name, with the correlation of their least alike pair, and the change, for run.json."""
    groups = [
        {
            "runs": [names[run] for run in group],
            "kept": names[kept],
            "least correlation": float(copies.correlation[np.ix_(group, group)].min()),
        }
        for group, kept in zip(copies.groups, copies.kept, strict=True)
    ]
    return {"groups": groups, "method": method, "change": None if change is None else asdict(change)}


def copies_text(record: Mapping[str, Any], objective: str) -> str:
    """Says in words what `copies_record` returned."""
    groups = "; ".join(f"{', '.join(group['runs'])} (≥ {group['least correlation']:.3f})" for group in record["groups"])
    kept = ", ".join(group["kept"] for group in record["groups"])
    text = f"near copies by rank correlation: {groups}"
    if (change := record["change"]) is None:
        return f"{text}. What leaving them out would change is not measured for the weights of a study"
    measure = objective_label(objective)
    return (
        f"{text}. With only {kept} of these, {record['method']} has a nested {measure} that differs "
        f"by {change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
    )


def _correlation(ranks: Floats) -> Floats:
    """Returns the correlation (runs, runs) of ranks (n, runs), rounded to 9 digits; that of constant runs is 0."""
    centred = ranks - ranks.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    product = np.zeros((ranks.shape[1],) * 2)
    for start in range(0, len(ranks), _BLOCK_ROWS):
        block = centred[start : start + _BLOCK_ROWS]
        product += block.T @ block
    scale = np.outer(spread, spread)
    ratio = np.round(np.divide(product, scale, out=np.zeros_like(product), where=scale > 1e-12), 9)
    correlation: Floats = np.clip((ratio + ratio.T) / 2, -1, 1)
    np.fill_diagonal(correlation, 1)
    return correlation
