"""Derives errors and warnings from the facts about runs' predictions: labels, inverted, ranks, scales, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dermstack.listing import counted
from stack.metrics.intervals import Interval
from stack.predictions.plausibility import COPY_CORRELATION, UNCLIPPED_LOGIT, Likeness, RunFacts, quantile_text
from stack.predictions.ranks import AVERAGED

NEAR_PERFECT_AUC = 0.99
SPREAD_RATIO = 3.0  # between the 5 to 95 % ranges of the logits of out-of-fold and test
TIES_MATTER = 0.001  # half of the share of pairs of a positive and a negative with equal p: what the AUC may lack
MIN_CONSTANT = 10  # equal test predictions that are no chance
_LEVEL1 = ("imported", "image", "frozen")  # kinds of runs; all others are stackers
_FEW_VALUES = "this stacker tells few rows apart: give it more features, other runs, or more trees or leaves"
_TRAIN_AGAIN = "train the model again with other settings"
_OTHER_ROWS = "compare images and columns of train and test, also their units: `dermstack audit` shows what differs"
UNRELATED = 0.3  # share of the out-of-fold correlation of two runs below which their test rows do not match


@dataclass(frozen=True)
class Doubt:
    """A reason not to believe the predictions of one run, or of two that are compared; its evidence and what to do."""

    runs: tuple[str, ...]
    severity: Literal["error", "warning"]
    what: str
    evidence: str
    remedy: str

    @property
    def title(self) -> str:
        """What is doubtful, after the names of the runs."""
        return f"{' and '.join(self.runs)}: {self.what}"


def doubts(facts: Iterable[RunFacts], *, is_blended: Callable[[str], bool] = lambda run: True) -> list[Doubt]:
    """Returns the errors and warnings that follow from the facts, errors first.

    ``is_blended`` says whether the blend takes the run of a name; no mean counts the others.
    """
    found: list[Doubt] = []
    pairs: set[frozenset[str]] = set()
    for one in facts:
        found += _doubts_of_values(one) or _doubts_of_order(one, is_blended(one.name))
        found += _doubts_of_test(one)
        if one.likest and (pair := frozenset((one.name, one.likest.name))) not in pairs:
            pairs.add(pair)
            found += _doubts_of_pair(one, one.likest, is_blended)
    return sorted(found, key=lambda doubt: doubt.severity != "error")


def _next_step(one: RunFacts, imported: str, stacker: str | None = None, *, own: str = _TRAIN_AGAIN) -> str:
    """Returns what to do: of an imported run the file is wrong, of a model that was trained here its settings."""
    if one.kind == "imported":
        return imported
    return own if one.kind in _LEVEL1 or stacker is None else stacker


def _doubts_of_values(one: RunFacts) -> list[Doubt]:
    """Returns what makes all other checks of a run meaningless: labels, or one value only."""
    remedy = _next_step(one, "name the column of predictions with --p-column")
    if one.distinct <= 1:
        what, evidence = "all out-of-fold predictions are equal", f"one value in {one.rows:,} rows"
        return [Doubt((one.name,), "error", what, evidence, remedy)]
    value = one.auc.value if one.auc else 0.5
    if one.distinct == 2 and (value >= NEAR_PERFECT_AUC or value <= 1 - NEAR_PERFECT_AUC):
        what = "its predictions are the labels"
        evidence = f"only two values, which separate the classes with AUC {value:.4f}"
        return [Doubt((one.name,), "error", what, evidence, remedy)]
    return []


def _doubts_of_order(one: RunFacts, is_blended: bool) -> list[Doubt]:
    """Returns what is doubtful about the order and the spacing of a run's out-of-fold predictions."""
    found = []
    if one.copied:
        what = f"the labels are copied into its predictions in {counted(one.copied, 'rows')}"
        evidence = f"these have the highest or lowest value, without an error, in a file of {one.rows:,} rows"
        remedy = "predict these rows by a model that has not seen them"
        found.append(Doubt((one.name,), "error", what, evidence, _next_step(one, remedy)))
    if one.auc and one.auc.value >= NEAR_PERFECT_AUC:
        remedy = "check that each row was predicted by a model that had not seen it, and that no input holds the label"
        found.append(Doubt((one.name,), "warning", "its AUC is nearly perfect", f"AUC {_interval(one.auc)}", remedy))
    if one.auc and one.auc.high < 0.5:
        what = "its predictions are inverted"
        evidence = f"AUC {_interval(one.auc)}, wholly below 0.5"
        own = "it ranks worse than chance: change its features, runs or settings, or disable it"
        remedy = _next_step(one, "give the probability of class 1 (1 - p?)", own)
        remedy += "; means and rank means count such a run against the others" if is_blended else ""
        found.append(Doubt((one.name,), "warning", what, evidence, remedy))
    if one.distinct == 2:
        evidence = f"AUC at most {one.ties / 2:.3f} higher or lower if ties were broken"
        remedy = _next_step(one, "give probabilities; a decision by a threshold loses their order", _FEW_VALUES)
        found.append(Doubt((one.name,), "warning", "it has only two different predictions", evidence, remedy))
    elif one.ties / 2 >= TIES_MATTER:
        step = "" if one.resolution is None else f", resolution {one.resolution:g}"
        what = "many of its predictions are equal"
        evidence = (
            f"{one.distinct:,} distinct values in {one.rows:,} rows{step}; "
            f"its AUC would be up to {one.ties / 2:.4f} higher or lower if ties were broken"
        )
        remedy = _next_step(one, "write predictions with all their digits", _FEW_VALUES)
        found.append(Doubt((one.name,), "warning", what, evidence, remedy))
    for net in one.constant_nets:
        what = f"all out-of-fold predictions of net {net} are equal"
        remedy = "train this net again, or leave the run out"
        found.append(Doubt((one.name,), "warning", what, "the other nets' are not", remedy))
    if one.is_uniform and abs(one.prevalence - 0.5) > 0.1:
        what = "its predictions are ranks, not probabilities"
        evidence = f"p are evenly spread over 0 to 1, but {one.prevalence:.1%} of the rows are positive"
        remedy = "give probabilities; a mean of p with other runs is meaningless"
        found.append(Doubt((one.name,), "warning", what, evidence, _next_step(one, remedy)))
    if one.unclipped:
        what = "predictions of 0 or 1 count as certain"
        evidence = f"{one.unclipped:,} rows have logits of {UNCLIPPED_LOGIT:g} or more, from an earlier version"
        remedy = "import it again with --replace: 0 and 1 then lie half a step of the file's resolution inside"
        found.append(Doubt((one.name,), "warning", what, evidence, remedy))
    return found


def _doubts_of_test(one: RunFacts) -> list[Doubt]:
    """Returns what is doubtful about a run's test predictions beside its out-of-fold ones."""
    if not len(one.nets) or one.distinct <= 1:
        return []
    if one.is_test_constant and one.test_rows >= MIN_CONSTANT:
        what, evidence = "all test predictions are equal", f"one value in {one.test_rows:,} predictions"
        remedy = _next_step(one, "give the file of test predictions, not the sample")
        return [Doubt((one.name,), "error", what, evidence, remedy)]
    found = []
    shifted = one.nets[(one.nets["distance"] > one.nets["limit"])]
    stretched = one.nets[(one.nets["spread"] > SPREAD_RATIO) | (one.nets["spread"] < 1 / SPREAD_RATIO)]
    if one.is_test_uniform and not one.is_uniform and (len(shifted) or abs(one.prevalence - 0.5) > 0.1):
        what = "its test predictions are ranks, its out-of-fold predictions are not"
    elif len(shifted) or len(stretched):
        what = "its test predictions have another distribution than its out-of-fold predictions"
    else:
        what = ""
    if what:
        named = shifted if len(shifted) else stretched if len(stretched) else one.nets
        worst = named.iloc[int(np.argmax(named["distance"]))]
        net = "" if worst["net"] == AVERAGED else f" of net {worst['net']}"
        oof, test = quantile_text(worst["oof"]), quantile_text(worst["test"])
        evidence = (
            f"p{net} at 5 / 50 / 95 %: out-of-fold {oof}, test {test}; distance {worst['distance']:.2f}, range of "
            f"logits × {worst['spread']:.2g}"
        )
        remedy = _next_step(one, "give test predictions on the scale of the out-of-fold ones", own=_OTHER_ROWS)
        remedy += "; the calibrated risks are wrong otherwise"
        found.append(Doubt((one.name,), "warning", what, evidence, remedy))
    if one.test_copy_of:
        what = f"its test predictions are those of {one.test_copy_of}"
        evidence = "equal in every test row, while the out-of-fold predictions differ"
        found.append(Doubt((one.name,), "warning", what, evidence, _next_step(one, "give each run its own test file")))
    return found


def _doubts_of_pair(one: RunFacts, like: Likeness, is_blended: Callable[[str], bool]) -> list[Doubt]:
    """Returns that one run is a copy of the other, and that their test predictions do not go together."""
    names, found = (one.name, like.name), []
    is_rounded_copy = like.largest_gap <= like.resolution / 2 + 1e-7 and like.resolution <= 0.1 and like.oof > 0.5
    if abs(like.oof) >= COPY_CORRELATION or is_rounded_copy:
        if like.oof < 0:
            what = "the predictions of one are the inverse of the other's"
        else:
            alike = "equal" if like.largest_gap < 1e-6 else "nearly equal"
            what = f"their out-of-fold predictions are {alike}"
        evidence = f"rank correlation {like.oof:.4f}, p differ by at most {like.largest_gap:.2g}"
        stackers = [run.name for run in (one, like) if run.kind not in _LEVEL1]
        if len(stackers) == 2:
            remedy = "their settings, features or runs make no difference: change those of one, or disable it"
        elif stackers:
            remedy = f"{stackers[0]} adds nothing to the other: change its settings, features or runs, or disable it"
        else:
            remedy = "remove one of the two"
        if is_blended(one.name) and is_blended(like.name):
            remedy += f"{'; ' if stackers else ': '}means and rank means count it twice"
        found.append(Doubt(names, "warning", what, evidence, remedy))
    if not np.isnan(like.test) and like.oof >= 0.4 and like.test < UNRELATED * like.oof:
        what = "their test predictions do not go together as the out-of-fold ones do"
        evidence = f"rank correlation {like.oof:.2f} out-of-fold, {like.test:.2f} on the test rows"
        imported = [run.name for run in (one, like) if run.kind == "imported"]
        remedy = f"check the test files of {' and '.join(imported)}: each prediction stands beside its id"
        found.append(Doubt(names, "warning", what, evidence, remedy if imported else _OTHER_ROWS))
    return found


def _interval(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}] (95 % interval by group)"
