"""Compares what the author of a blend claims with the nested estimate of a blend of the same files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from dermstack.errors import ConfigError, DataError
from stack.blend.copies import change_without_copies, copies_record, near_copies
from stack.blend.nested import BlendRows, NestedBlend, NestedSettings, blend_rows, number_of_fits
from stack.blend.weights import DEFAULT_METHODS, Settings
from stack.metrics.intervals import Interval, clustered_auc
from stack.metrics.scores import Floats
from stack.predictions.ranks import mid_ranks

Ints = NDArray[np.intp]

WEIGHTED = {  # what weights multiply, by the name in --weights-of
    "p": lambda p: p,
    "logits": logit,
    "ranks": mid_ranks,
}  # fmt: skip


@dataclass(frozen=True)
class BlendClaim:
    """The blend of files, nested, beside what was claimed of it. All AUCs are on the rows that all files cover.

    ``given`` is the AUC of the blend as its author made it, from its file or weights; its weights were chosen on these
    rows. ``explained`` is the share of its variance that the files explain.
    """

    rows: int
    positives: int
    groups: int
    methods: pd.DataFrame  # as `NestedBlend.summary` returns
    chosen: str
    nested: Interval  # method and weights chosen without the fold that is scored
    best_file: str  # the file with the highest AUC on these rows
    best: Interval
    nested_gain: Interval  # nested minus the best file
    equal_gain: Interval  # nested minus the mean of ranks, which chooses nothing
    claimed: float | None = None
    given: Interval | None = None
    given_gain: Interval | None = None  # given minus the best file
    optimism: Interval | None = None  # given minus nested
    explained: float | None = None
    copies: dict[str, Any] | None = None  # as `copies_record` returns


def measure_claim(
    P: Floats,
    y: NDArray[np.int8],
    names: Sequence[str],
    *,
    nets: Ints,
    fold: Ints,
    group: Ints,
    given: Floats | None = None,
    claimed: float | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> BlendClaim:
    """Blends probabilities `P` (n, files) with a nested estimate, and compares the ``given`` blend (n,) with it.

    ``nets`` (n, files) are the fold nets of each file and ``fold`` (n,) the folds of the estimate. Raises DataError as
    `blend_nested` does, and where fewer than two groups hold a class.
    """
    rows = BlendRows(pd.DataFrame(P, columns=list(names)), y, nets, fold, group)
    settings = NestedSettings(DEFAULT_METHODS, Settings(seed=seed), progress=progress)
    nested = blend_rows(rows, settings)
    copies, record = near_copies(P, nets, group), None
    if copies.groups:
        change = change_without_copies(copies, nested, rows, replace(settings, progress=None))
        record = copies_record(copies, names, nested.chosen, change)
    best = int(np.argmax(clustered_auc(y, P, group).auc))
    columns = [nested.score, P[:, best], nested.comparable["rank_mean"], *([] if given is None else [given])]
    found = clustered_auc(y, np.column_stack(columns), group)
    made = BlendClaim(
        rows=len(y),
        positives=int(y.sum()),
        groups=len(np.unique(group)),
        methods=_methods(nested, y, group),
        chosen=nested.chosen,
        nested=found.interval(0),
        best_file=str(names[best]),
        best=found.interval(1),
        nested_gain=found.difference(0, 1)[0],
        equal_gain=found.difference(0, 2)[0],
        claimed=claimed,
        copies=record,
    )
    if given is None:
        return made
    return replace(
        made,
        given=found.interval(3),
        given_gain=found.difference(3, 1)[0],
        optimism=found.difference(3, 0)[0],
        explained=_explained(given, P),
    )


def number_of_claim_fits(fold: Ints) -> int:
    """Returns how many fits `measure_claim` makes, for a progress bar."""
    return number_of_fits(len(np.unique(fold)), DEFAULT_METHODS)


def _methods(nested: NestedBlend, y: NDArray[np.int8], group: Ints) -> pd.DataFrame:
    """Returns the nested and the in-sample AUC of each method with the interval by `clustered_auc`."""
    rows = []
    for method, scores in nested.comparable.items():
        found = clustered_auc(y, np.column_stack([scores, nested.tuned[method]]), group)
        value, tuned = found.interval(0), found.interval(1)
        rows.append({
            "method": method, "nested": value.value, "low": value.low, "high": value.high, "tuned": tuned.value,
            "gap": tuned.value - value.value, "chosen": method == nested.chosen,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _explained(given: Floats, P: Floats) -> float:
    """Returns the share of the blend's variance that a linear function of the files' p, logits and ranks explains.

    The blend is taken as it is, as probability and as rank, whichever is explained best: its author may have added any
    of the three.
    """
    X = np.column_stack([np.ones(len(P)), *(mid_ranks(column) for column in P.T), P, logit(P)])
    shares = []
    for target in (given, expit(given), mid_ranks(given)):
        left = target - X @ np.linalg.lstsq(X, target, rcond=None)[0]
        spread = float(((target - target.mean()) ** 2).sum())
        shares.append(1.0 if spread == 0 else float(1 - (left**2).sum() / spread))
    return max(shares)


def parsed_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Returns the weight of each file from a text such as `net_a=0.6,net_b=0.4`; a file that is not named weighs 0.

    Raises ConfigError for what is no such list, for unknown and repeated names, and where no weight differs from 0.
    """
    found: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, number = part.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = np.nan
        if not np.isfinite(weight):
            raise ConfigError(f"--weights {part!r}: give a name and a number, such as {names[0]}=0.5")
        if name.strip() not in names:
            raise ConfigError(f"--weights {part!r}: no file is the run {name.strip()!r}; they are {', '.join(names)}")
        if name.strip() in found:
            raise ConfigError(f"--weights: {name.strip()} is given twice: give one weight for each file")
        found[name.strip()] = weight
    if not any(found.values()):
        raise ConfigError("--weights: no weight differs from 0: give the weights of the blend")
    return found


def weighted_blend(P: Floats, names: Sequence[str], weights: Mapping[str, float], of: str) -> Floats:
    """Returns the weighted sum (n,) of probabilities `P` (n, files), or of their logits or ranks, as ``of`` says."""
    if of not in WEIGHTED:
        raise ConfigError(f"--weights-of {of}: choose from {', '.join(WEIGHTED)}")
    total = np.zeros(len(P))
    for number, name in enumerate(names):
        if weight := weights.get(name, 0.0):
            total += weight * np.asarray(WEIGHTED[of](P[:, number]), np.float64)
    return total


def given_scores(oof: pd.DataFrame, ids: pd.Series, path: Path) -> Floats:
    """Returns the blend's scores (n,) of the rows ``ids`` from its file; raises DataError where one lacks."""
    scores = pd.Series(oof["logit"].to_numpy(np.float64), index=oof["id"].to_numpy()).reindex(ids)
    if (lacking := scores.isna()).any():
        raise DataError(
            f"{path}: the blend lacks {int(lacking.sum()):,} of {len(ids):,} rows that all files cover, first "
            f"{ids[lacking.to_numpy()].iloc[0]!r}: give the blend's prediction of each row"
        )
    return np.asarray(scores, np.float64)


def as_probabilities(logits: Floats) -> Floats:
    """Returns logits as probabilities."""
    return np.asarray(expit(logits.astype(np.float64)), np.float64)
