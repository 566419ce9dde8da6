"""Checks whether the predictions of runs are plausible: one row of facts a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import DataError
from stack.experiment import Experiment
from stack.metrics.intervals import Interval, clustered_auc
from stack.metrics.scores import auc
from stack.predictions.ranks import AVERAGED
from stack.predictions.run_views import Floats, RunView, Scores, TableRows
from stack.store import Run
from stack.tables.keys import contained

COPY_CORRELATION = 0.999  # rank correlation within folds; fold models of one real network had at most 0.96
SHIFT = 0.25  # distance between the distributions of out-of-fold and test; real nets on SIIM-ISIC 2020: 0.10 to 0.17
UNIFORM_DISTANCE = 0.02  # from a uniform distribution; ranks have 1 / rows
MIN_COPIED = 5  # positives with one highest prediction, which in a file without other ties are no chance
COPIED_BELOW = 4.6  # logit of 0.99: where other predictions are higher, a network may be saturated
MIN_ROWS = 50  # fewer rows show no distribution
UNCLIPPED_LOGIT = 34.0  # logits of exact 0 and 1 in runs imported before these were clipped at half the resolution
QUANTILES = (0.05, 0.5, 0.95)


def is_fresh(experiment: Experiment, run: Run) -> bool:
    """Whether the run was made for the current rows and folds of the experiment."""
    made_for = run.meta.get("inputs", {}).get("rows or folds")
    if made_for is not None:
        return bool(made_for == experiment.rows_fingerprint)
    return bool(contained(run.frame("oof")["id"], experiment.table.train["id"]).all())


@dataclass(frozen=True)
class Likeness:
    """The run whose out-of-fold predictions are most like those of another run; correlations are of ranks."""

    name: str
    oof: float  # within folds of the experiment
    test: float  # NaN without test rows
    largest_gap: float  # between the p of one out-of-fold row
    resolution: float  # of the coarser run
    kind: str = "imported"


@dataclass(frozen=True)
class RunFacts:
    """What the predictions of one run look like; `stack.predictions.doubts` judges it."""

    name: str
    kind: str
    rows: int
    distinct: int  # different out-of-fold logits
    resolution: float | None  # step of the decimal grid on which all p lie
    ties: float  # share of pairs of a positive and a negative with equal p
    auc: Interval | None  # None where a class is absent or in one group only
    prevalence: float
    oof_nets: tuple[int, ...]  # nets that made the out-of-fold predictions
    nets: pd.DataFrame  # one row a net of the test rows: see `_compared_nets`
    constant_nets: tuple[int, ...]  # whose out-of-fold predictions are all equal, among several nets
    test_rows: int  # predictions of all nets
    is_test_constant: bool
    is_uniform: bool  # out-of-fold p are evenly spread over 0 to 1, as ranks are
    is_test_uniform: bool
    copied: int  # rows whose predictions seem to be their labels, among others that are not
    unclipped: int  # predictions of exact 0 or 1 that an earlier version imported
    likest: Likeness | None
    test_copy_of: str  # a run with the same test predictions, but other out-of-fold ones; "" if there is none
    quantiles: tuple[float, ...]  # of all out-of-fold p: 5, 50 and 95 %


class Comparison:
    """Facts about runs that are added one after the other, each compared with all others in the end.

    O(n log n) a run. Of each run it keeps its logits, not its frames.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._table = TableRows(experiment)
        self._checked: list[tuple[RunView, RunFacts]] = []
        self._others: list[RunView] = []

    def add(self, scores: Scores) -> RunFacts:
        """Adds a run and returns the facts about it alone; raises StoreError where it has rows of no table."""
        view = RunView(self._table, scores)
        self._checked.append((view, _facts(view)))
        return self._checked[-1][1]

    def discard(self, name: str) -> None:
        """Removes an added run from the comparison."""
        self._checked = [(view, facts) for view, facts in self._checked if view.name != name]

    def add_other(self, scores: Scores) -> None:
        """Adds a run with which the others are compared, and which has no facts of its own."""
        self._others.append(RunView(self._table, scores))

    def facts(self) -> list[RunFacts]:
        """Returns the facts about the runs of `add`, compared with each other and with those of `add_other`."""
        views = [*(view for view, _ in self._checked), *self._others]
        likest = _likest(views, len(self._checked))
        return [
            replace(facts, likest=like, test_copy_of=_test_copy_of(view, views))
            for (view, facts), like in zip(self._checked, likest, strict=True)
        ]


def run_facts(experiment: Experiment, checked: Iterable[Scores], others: Iterable[Scores] = ()) -> list[RunFacts]:
    """Returns the facts of each of ``checked``, compared with each other and with ``others``."""
    comparison = Comparison(experiment)
    for scores in checked:
        comparison.add(scores)
    for scores in others:
        comparison.add_other(scores)
    return comparison.facts()


def facts_table(facts: Sequence[RunFacts]) -> pd.DataFrame:
    """Returns the facts as a table of texts and numbers for printing, one row a run."""
    return pd.DataFrame([
        {
            "run": one.name,
            "distinct": one.distinct,
            "resolution": "–" if one.resolution is None else f"{one.resolution:g}",
            "AUC": "–" if one.auc is None else str(one.auc),
            "oof p 5/50/95 %": quantile_text(one.quantiles, "/"),
            "test p": quantile_text(np.mean(one.nets["test"].tolist(), axis=0), "/") if len(one.nets) else "–",
            "distance": float(one.nets["distance"].max()) if len(one.nets) else np.nan,
            "most like": one.likest.name if one.likest else "–",
            "corr.": one.likest.oof if one.likest else np.nan,
            "on test": one.likest.test if one.likest else np.nan,
        }
        for one in facts
    ])  # fmt: skip


FACTS_TITLE = (
    "Predictions of each run: distance is the largest between the distributions of a fold net's out-of-fold and test "
    "predictions (0 to 1); rank correlations are with the most similar run"
)


def _facts(view: RunView) -> RunFacts:
    order = np.argsort(view.logit)  # once, as sorting is most of the cost
    logit, p = view.logit[order], view.p[order]
    tests = _by_net(view.test_logit, view.test_nets)
    oofs = _by_net(view.logit, view.nets)
    is_test_uniform = [_is_uniform(expit(values)) for values in tests.values()]
    return RunFacts(
        name=view.name,
        kind=view.kind,
        rows=len(logit),
        distinct=_distinct(logit),
        resolution=view.resolution,
        ties=_tied_pairs(view.y[order], logit),
        auc=_auc(view),
        prevalence=float(view.y.mean()) if len(view.y) else np.nan,
        oof_nets=tuple(oofs),
        nets=_compared_nets(oofs, tests, logit),
        constant_nets=tuple(net for net, values in oofs.items() if len(oofs) > 1 and values[0] == values[-1]),
        test_rows=len(view.test_nets),
        is_test_constant=bool(tests) and len({end for values in tests.values() for end in values[[0, -1]]}) == 1,
        is_uniform=_is_uniform(p),
        is_test_uniform=bool(is_test_uniform) and all(is_test_uniform),
        copied=_copied_labels(view.y[order], logit),
        unclipped=int((np.abs(logit) >= UNCLIPPED_LOGIT).sum()) if view.kind == "imported" else 0,
        likest=None,
        test_copy_of="",
        quantiles=tuple(np.quantile(p, QUANTILES)),
    )


def _by_net(values: Floats, nets: NDArray[np.integer]) -> dict[int, Floats]:
    """Returns the values of each net, sorted."""
    return {int(net): np.sort(values[nets == net]) for net in np.unique(nets)}


def _distinct(in_order: Floats) -> int:
    return int((in_order[1:] != in_order[:-1]).sum()) + bool(len(in_order))


def _auc(view: RunView) -> Interval | None:
    try:
        return clustered_auc(view.y, view.logit, view.split_group).interval()
    except DataError:
        if len(np.unique(view.y)) < 2:
            return None
        value = auc(view.y, view.logit)
        return Interval(value, np.nan, np.nan, np.nan)


def _tied_pairs(y: NDArray[np.int8], in_order: Floats) -> float:
    """Returns the share of pairs of a positive and a negative with equal logits; both sorted by the logit."""
    place = np.cumsum(np.concatenate([[0], in_order[1:] != in_order[:-1]])[: len(y)]).astype(np.intp)
    positives, negatives = np.bincount(place, y == 1), np.bincount(place, y == 0)
    pairs = positives.sum() * negatives.sum()
    return float(positives @ negatives / pairs) if pairs else 0.0


def _copied_labels(y: NDArray[np.int8], in_order: Floats) -> int:
    """Returns how many rows have their label as prediction, where the others' predictions hardly repeat.

    Rows with y (n,) are sorted by the logit. The labels of a part of the rows are one highest value, of positives only
    and apart from all others, and mostly one lowest value of negatives only. A saturated network has values close below
    the highest one, and rounded or isotonic predictions repeat elsewhere too.
    """
    distinct, first, counts = np.unique(in_order, return_index=True, return_counts=True)
    if len(distinct) < 3 or counts[-1] < MIN_COPIED or not y[first[-1] :].all() or distinct[-2] > COPIED_BELOW:
        return 0
    at_the_lowest = int(counts[0]) if counts[0] >= MIN_COPIED and not y[: counts[0]].any() else 0
    others = len(in_order) - counts[-1] - at_the_lowest
    others_distinct = len(distinct) - 1 - bool(at_the_lowest)
    return int(counts[-1]) + at_the_lowest if others_distinct > 0.9 * others else 0


def _is_uniform(in_order: Floats) -> bool:
    """Whether sorted p (n,) are spread over 0 to 1 more evenly than any but ranks."""
    if len(in_order) < MIN_ROWS:
        return False
    even = (np.arange(len(in_order)) + 0.5) / len(in_order)
    return bool(np.abs(in_order - even).max() <= UNIFORM_DISTANCE + 1 / len(in_order))


def _compared_nets(oofs: Mapping[int, Floats], tests: Mapping[int, Floats], all_oof: Floats) -> pd.DataFrame:
    """Compares each net's sorted test logits with its out-of-fold ones; averaged ones with those of all nets.

    Returns one row a net: net, oof and test (quantiles of p), distance (Kolmogorov-Smirnov), limit (the distance that
    is in doubt, larger where rows are few) and spread (ratio of the 5 to 95 % ranges of the logits).
    """
    rows = []
    for net, made in tests.items():
        own = oofs[net] if net != AVERAGED and net in oofs else all_oof
        oof, there = np.quantile(own, QUANTILES), np.quantile(made, QUANTILES)
        width = oof[-1] - oof[0]
        rows.append({
            "net": net,
            "oof": tuple(expit(oof)),
            "test": tuple(expit(there)),
            "distance": _distance(own, made),
            "limit": SHIFT + 1.63 * np.sqrt(1 / len(own) + 1 / len(made)),
            "spread": float((there[-1] - there[0]) / width) if width > 0 and len(made) >= MIN_ROWS else 1.0,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["net", "oof", "test", "distance", "limit", "spread"])


def _distance(a: Floats, b: Floats) -> float:
    """Returns the largest distance between the distributions of sorted ``a`` and ``b`` (Kolmogorov-Smirnov)."""
    everywhere = np.concatenate([a, b])
    below = [np.searchsorted(values, everywhere, "right") / len(values) for values in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def _likest(views: Sequence[RunView], checked: int) -> list[Likeness | None]:
    """Returns for each of the first ``checked`` runs the run with the highest rank correlation, in absolute value."""
    if len(views) < 2:
        return [None] * checked
    ranks = np.column_stack([view.ranks for view in views])
    oof = correlations(ranks[:, :checked], ranks)
    test_ranks = np.column_stack([view.test_ranks for view in views])
    test = correlations(test_ranks[:, :checked], test_ranks)
    np.fill_diagonal(oof, np.nan)
    found: list[Likeness | None] = []
    for number, row in enumerate(np.abs(oof)):
        if np.isnan(row).all():
            found.append(None)
            continue
        best = int(np.nanargmax(row))
        both = (views[number], views[best])
        gap = float(np.nanmax(np.abs(both[0].p_in_table - both[1].p_in_table)))
        step = max(view.resolution or 0.0 for view in both)
        like = Likeness(both[1].name, float(oof[number, best]), float(test[number, best]), gap, step, both[1].kind)
        found.append(like)
    return found


def correlations(A: Floats, B: Floats) -> Floats:
    """Returns Pearson's correlations (a, b) of the columns of A (n, a) and B (n, b), each on the rows that both have.

    NaN marks an absent value. A correlation is NaN where fewer than three rows are shown by both, or one has no spread.
    """
    of_a, of_b = (~np.isnan(M) for M in (A, B))
    if of_a.all() and of_b.all() and len(A) >= 3:
        return _correlations_of_all(A, B)
    in_a, in_b = of_a.astype(np.float64), of_b.astype(np.float64)
    A, B = np.where(of_a, A, 0.0), np.where(of_b, B, 0.0)
    n = in_a.T @ in_b
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_a, mean_b = A.T @ in_b / n, in_a.T @ B / n
        variance_a, variance_b = (A**2).T @ in_b / n - mean_a**2, in_a.T @ B**2 / n - mean_b**2
        found = (A.T @ B / n - mean_a * mean_b) / np.sqrt(variance_a * variance_b)
    shown: Floats = np.where((n >= 3) & (variance_a > 1e-12) & (variance_b > 1e-12), found, np.nan)
    return shown


def _correlations_of_all(A: Floats, B: Floats) -> Floats:
    A, B = A - A.mean(axis=0), B - B.mean(axis=0)
    variance_a, variance_b = np.mean(A**2, axis=0)[:, None], np.mean(B**2, axis=0)[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = A.T @ B / len(A) / np.sqrt(variance_a * variance_b)
    shown: Floats = np.where((variance_a > 1e-12) & (variance_b > 1e-12), found, np.nan)
    return shown


def _test_copy_of(view: RunView, views: Sequence[RunView]) -> str:
    """Returns another run with the same test predictions and other out-of-fold ones; "" if there is none."""
    for other in views if view.has_test_spread else ():
        if other is not view and other.test_key == view.test_key:
            correlation = correlations(view.ranks[:, None], other.ranks[:, None])[0, 0]
            if not abs(correlation) >= COPY_CORRELATION:
                return other.name
    return ""


def quantile_text(values: Sequence[float] | Floats, separator: str = " / ") -> str:
    """Returns numbers with two significant digits, as one text."""
    return separator.join(f"{value:.2g}" for value in values)
