"""Findings about runs: implausible predictions, rows that fold models did not hold out, scales that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.audit.finding import Finding, worst_first
from dermstack.audit.folds import RENUMBERED_FOLDS, UNKNOWN_FOLDS, HeldOutVerdict, held_out_verdict
from dermstack.errors import DataError
from stack.experiment import Experiment
from stack.level2.features import CATEGORICAL, NUMERIC
from stack.metrics.intervals import Interval, auc_components, clustered_auc, normal_interval
from stack.predictions.doubts import doubts
from stack.predictions.plausibility import is_fresh, run_facts
from stack.predictions.ranks import net_moments
from stack.predictions.run_views import Scores
from stack.store import Run
from stack.views import blends_run
from tabular.encode import MetadataEncoder
from tabular.logistic import fit_logistic

MIN_SCALE_SHIFT = 0.005  # difference between the AUC of ranks within nets and the pooled AUC; less is not reported
MIN_EXCESS = 0.02  # gain in AUC over metadata and all other runs; less is not reported


def run_findings(experiment: Experiment, runs: Sequence[Run]) -> list[Finding]:
    """Returns the findings about all runs, the worst first.

    Runs imported with the predictions of every net for every row (``--all-rows``) are tested for whether their nets
    held out the rows they claim; other imported runs get a hint at most. The predictions of every run are checked for
    plausibility and for nets on different scales. Runs made for other rows or folds get a note and are not audited.
    """
    fresh = [run for run in runs if is_fresh(experiment, run)]
    found = [_stale_finding(run) for run in runs if run not in fresh]
    facts = run_facts(experiment, (Scores.of(run) for run in fresh))
    judged = doubts(facts, is_blended=partial(blends_run, experiment.config))
    found += [Finding(doubt.severity, doubt.title, doubt.evidence, doubt.remedy) for doubt in judged]
    of_level1 = {run.name: run.frame("oof") for run in fresh if run.meta["level"] == 1}
    for run in fresh:
        oof = run.frame("oof")
        if run.has("all_rows"):
            found += held_out_findings(experiment, run.name, oof, run.frame("all_rows"), _foreign_folds(run, fresh))
        elif run.meta["kind"] == "imported":
            found += excess_findings(experiment, run.name, oof, of_level1)
        found += scale_findings(experiment, run.name, oof)
    return worst_first(found)


def run_held_out_verdict(experiment: Experiment, run: Run, runs: Sequence[Run] = ()) -> HeldOutVerdict:
    """Tests the claimed folds of a run imported with ``--all-rows`` against those of the experiment and other ``runs``.

    Raises DataError if a fold has too few groups of either class.
    """
    return _held_out_verdict(experiment, run.frame("oof"), run.frame("all_rows"), _foreign_folds(run, runs))


def _foreign_folds(run: Run, runs: Sequence[Run]) -> dict[str, pd.Series[int]]:
    """Returns the folds of the other runs that have folds of their own, by name; the index is the id."""
    return {
        f"the folds of {other.name}": other.frame("oof").set_index("id")["fold"]
        for other in runs
        if other.name != run.name and other.meta.get("foreign_folds")
    }


def _held_out_verdict(
    experiment: Experiment, oof: pd.DataFrame, all_rows: pd.DataFrame, other_folds: Mapping[str, pd.Series[int]]
) -> HeldOutVerdict:
    scores = all_rows.pivot(index="id", columns="fold", values="logit").loc[oof["id"]]
    rows = experiment.rows_of(oof["id"])
    fold = oof["fold"].to_numpy()
    known = {"the experiment's folds": experiment.folds.frame.set_index("id")["fold"], **other_folds}
    others: dict[str, NDArray[np.generic]] = {}
    for name, series in known.items():
        other_fold = series.reindex(oof["id"]).to_numpy()
        same = any(_same_partition(other_fold, seen) for seen in (fold, *others.values()))
        if not np.isnan(other_fold).any() and len(np.unique(other_fold)) > 1 and not same:
            others[name] = other_fold
    target, split_group = experiment.target[rows], experiment.split_group[rows]
    return held_out_verdict(scores.to_numpy(), fold, target, split_group, other_folds=others)


def held_out_findings(
    experiment: Experiment,
    name: str,
    oof: pd.DataFrame,
    all_rows: pd.DataFrame,
    other_folds: Mapping[str, pd.Series[int]],
) -> list[Finding]:
    """Returns what the predictions of every net for every row say of the folds that the run ``name`` claims.

    ``oof`` and ``all_rows`` have id, fold and logit; ``other_folds`` are further folds by name, whose index is the id.
    """
    try:
        found = _held_out_verdict(experiment, oof, all_rows, other_folds)
    except DataError as error:
        remedy = "this needs more groups of both classes in each fold"
        return [Finding("note", f"{name}: not tested which rows its fold models saw", str(error), remedy)]
    means = found.by_fold[["auc", "siblings"]].mean()
    evidence = (
        f"AUC of each fold model on the fold that it claims to have held out {means['auc']:.4f}, of the others on the "
        f"same rows {means['siblings']:.4f}, difference {found.gap} (98 % interval by group)"
    )
    if found.better_explanation:
        fits = ""
        if found.better_explanation == RENUMBERED_FOLDS:
            fits = f"; folds 0, 1, … fit models {', '.join(map(str, found.best_numbering))}"
        evidence += (
            f"; better explained by {found.better_explanation}, p {found.p_values[found.better_explanation]:.2g}{fits}"
        )
        if found.better_explanation == UNKNOWN_FOLDS:  # a model that is weak on some patients looks the same
            remedy = "check how its folds were made; models that are weak on different patients look the same"
            return [Finding("warning", f"{name}: its models may have held out other rows", evidence, remedy)]
        remedy = "leave it out of the stack until each row is predicted by the model that has not seen it"
        return [Finding("error", f"{name}: its models held out other rows than it claims", evidence, remedy)]
    if found.verdict == "cannot tell":
        remedy = (
            "check how its folds were made; a model that hardly overfits shows no difference either, so only new rows "
            "can confirm the estimate"
        )
        evidence += f"; if they held it out, they overfit by less than {max(-found.gap.low, 0):.4f}"
        what = f"{name}: cannot tell whether its models held out the rows that it claims"
        return [Finding("warning", what, evidence, remedy)]
    made = [Finding("note", f"{name}: its models held out the rows that it claims", evidence, "none")]
    for row in found.by_fold[found.by_fold["unlike"]].itertuples():
        evidence = f"its difference {row.gap:+.4f} [{row.low:+.4f}, {row.high:+.4f}], the mean of all {found.gap}"
        what = f"{name}: the other models held out their folds, but model {row.fold} shows no sign of it"
        made.append(Finding("warning", what, evidence, "check which rows this model was trained on"))
    return made


def excess_findings(
    experiment: Experiment, name: str, oof: pd.DataFrame, runs: Mapping[str, pd.DataFrame]
) -> list[Finding]:
    """Returns a hint if the run's AUC is far above that of a logistic regression on metadata and all other runs.

    The regression is fitted without the fold that it scores. All scores are standardised within the net that made
    them, so that differences in scale between nets do not count. ``runs`` are the out-of-fold frames by name.
    """
    others = {other: frame for other, frame in runs.items() if other != name}
    if not others or experiment.folds.k < 3:
        return []
    excess = _excess(experiment, oof, others)
    if excess is None or excess.low <= MIN_EXCESS:
        return []
    evidence = (
        f"AUC {excess.value:.4f} [{excess.low:.4f}, {excess.high:.4f}] (95 % interval by group) above that of metadata "
        f"and {len(others)} other runs together"
    )
    remedy = "only a hint: a better model looks the same; import it with --all-rows to have it tested"
    return [Finding("note", f"{name}: a hint that it is not out-of-fold", evidence, remedy)]


def _excess(experiment: Experiment, oof: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Interval | None:
    scores = pd.concat(
        [
            _standardised_by_net(oof).rename(0),
            *(_standardised_by_net(one).rename(name) for name, one in others.items()),
        ],
        axis=1,
        join="inner",
    )
    places = experiment.rows_of(scores.index)
    frame, fold = experiment.table.train.iloc[places], experiment.folds.frame["fold"].to_numpy()[places]
    y, k = experiment.target[places], experiment.folds.k
    explained = np.empty(len(y))
    for held in range(k):
        stop = (held + 1) % k
        fitted = (fold != held) & (fold != stop)
        if any(len(np.unique(y[rows])) < 2 for rows in (fitted, fold == stop)):
            return None
        encoder = MetadataEncoder(numeric=NUMERIC, categorical=CATEGORICAL).fit(frame[fitted])
        known = [encoder.transform(frame).reset_index(drop=True), scores.drop(columns=0).reset_index(drop=True)]
        X = pd.concat(known, axis=1)
        model = fit_logistic(X[fitted], y[fitted], eval_set=(X[fold == stop], y[fold == stop]))
        explained[fold == held] = model.logit(X[fold == held])
    moments = net_moments(explained, fold)
    means, spreads = (np.array([moments[int(number)][part] for number in fold]) for part in (0, 1))
    both = np.column_stack([scores[0], (explained - means) / spreads])
    try:
        return clustered_auc(y, both, experiment.split_group[places]).difference()[0]
    except DataError:
        return None


@dataclass(frozen=True)
class ScaleShift:
    """AUC of the ranks within each fold net, the pooled AUC of the scores, and the first minus the second.

    ``excess`` is the pooled AUC minus the AUC of pairs of rows of one fold, which no scale of a net can change.
    """

    within: Interval
    pooled: Interval
    difference: Interval
    excess: Interval


def scale_shift(experiment: Experiment, oof: pd.DataFrame) -> ScaleShift | None:
    """Compares the AUC of ranks within nets with the pooled AUC of a run's ``oof`` (id, fold, logit).

    None for a run of one net, and where a class is in fewer than two groups.
    """
    if oof["fold"].nunique() < 2:
        return None
    rows = experiment.rows_of(oof["id"])
    ranked = oof.groupby("fold")["logit"].rank(pct=True)
    try:
        found = clustered_auc(
            experiment.target[rows], np.column_stack([ranked, oof["logit"]]), experiment.split_group[rows]
        )
    except DataError:
        return None
    excess = _excess_over_folds(experiment.target[rows] == 1, oof, experiment.split_group[rows])
    return ScaleShift(found.interval(0), found.interval(1), found.difference()[0], excess)


def _excess_over_folds(positive: NDArray[np.bool_], oof: pd.DataFrame, group: NDArray[np.generic]) -> Interval:
    """Returns the pooled AUC minus that of pairs of rows of one fold, with its interval by group.

    Both are means over pairs of rows, so that the error is that of a sum over rows (as in `clustered_auc`).
    """
    logit, fold = oof["logit"].to_numpy(np.float64), oof["fold"].to_numpy()
    auc, influence = _auc_influence(logit, positive)
    masks = [fold == k for k in np.unique(fold)]
    pairs = np.array([positive[rows].sum() * (~positive[rows]).sum() for rows in masks], np.float64)
    for rows, weight in zip(masks, pairs / max(pairs.sum(), 1), strict=True):
        if weight:
            of_fold, its_influence = _auc_influence(logit[rows], positive[rows])
            auc -= weight * of_fold
            influence[rows] -= weight * its_influence
    sums = np.bincount(np.unique(group, return_inverse=True)[1], influence)
    return normal_interval(auc, float(sums @ sums) * len(sums) / max(len(sums) - 1, 1))


def _auc_influence(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """Returns the AUC of scores (n,) with rows of both classes, and the influence (n,) of each row on it."""
    above, below = auc_components(score, positive)
    auc, influence = float(above.mean()), np.empty(len(score))
    influence[positive] = (above - auc) / len(above)
    influence[~positive] = (below - auc) / len(below)
    return auc, influence


def scale_findings(experiment: Experiment, name: str, oof: pd.DataFrame) -> list[Finding]:
    """Warns if the nets of the run ``name`` differ in scale, so that its pooled AUC is not that within nets.

    Ranks within nets also lose the real difference between a fold with many positives and one with few. So they show
    that scales raise the pooled AUC only where the AUC of pairs within folds is lower too.
    """
    found = scale_shift(experiment, oof)
    if found is None:
        return []
    shift = found.difference
    if abs(shift.value) < MIN_SCALE_SHIFT or shift.low <= 0 <= shift.high:
        return []
    evidence = (
        f"AUC of ranks within nets {found.within.value:.4f}, pooled {found.pooled.value:.4f}, difference "
        f"{shift.value:+.4f} [{shift.low:+.4f}, {shift.high:+.4f}] (95 % interval by group)"
    )
    if shift.value > 0:
        what = f"{name}: its fold models have different scales"
        remedy = "blend ranks, or logits standardised by net; its pooled AUC is too low"
    elif found.excess.value < MIN_SCALE_SHIFT or found.excess.low <= 0:
        return []
    else:
        evidence += (
            f"; pooled minus the AUC of pairs within folds {found.excess.value:+.4f} "
            f"[{found.excess.low:+.4f}, {found.excess.high:+.4f}]"
        )
        what = f"{name}: the scales of its fold models differ between folds and raise its pooled AUC"
        remedy = "use the AUC within folds: the pooled AUC is too high, as folds with more positives have higher scores"
    return [Finding("warning", what, evidence, remedy)]


def _standardised_by_net(oof: pd.DataFrame) -> pd.Series[float]:
    """Standardises logits within the net that made them; the index is the id."""
    by_net = oof.groupby("fold")["logit"]
    spread = by_net.transform("std").clip(lower=1e-6)
    return ((oof["logit"] - by_net.transform("mean")) / spread).set_axis(oof["id"])


def _same_partition(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    """Whether two columns of labels divide the rows into the same parts, whatever the labels."""
    pairs = pd.DataFrame({"a": a, "b": b}).drop_duplicates()
    return len(pairs) == pairs["a"].nunique() == pairs["b"].nunique()


def _stale_finding(run: Run) -> Finding:
    evidence = "it was made for other rows or folds than the experiment has now"
    return Finding("note", f"{run.name}: not audited", evidence, "make or import it again")
