"""Moves scores of models that were each fitted without a source to one share of positives, so that they compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stack.experiment import ONE_SHARE, Experiment
from stack.folds import Folds, inner_split
from stack.predictions.repeats import repeated
from stack.settings.level2 import source_names
from stack.store import Run

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def at_one_share(copy: Experiment) -> Experiment:
    """Returns a ``copy`` by source whose level 2 and blend get the scores of runs with `shift_to_one_share` added."""
    name = f"{copy.name}/{ONE_SHARE}"
    config = copy.config.model_copy(update={"experiment": name})
    return replace(copy, name=name, config=config, at_one_share=True)


def compares_images(objective: str) -> bool:
    """Whether an objective compares scores of images; a log loss, of each image by itself, is left as it is."""
    return objective != "logloss"


def refits_level2(copy: Experiment, *, moves_level1: bool) -> bool:
    """Whether stackers of the experiment at one share see runs whose scores are moved, and so are fitted again."""
    return moves_level1 or bool(source_names(copy.config.stackers))


def moves_scores(copy: Experiment, runs: Iterable[Run]) -> bool:
    """Whether `shift_to_one_share` differs between the rows of one of these runs."""
    shifts = (shift_to_one_share(copy, run) for run in runs)
    return any(shift is not None and _differs(shift[_used(copy)]) for shift in shifts)


def shares_differ(copy: Experiment) -> bool:
    """Whether the shares of positives differ between the rows on which the models of a ``copy`` by source are fitted.

    What `moves_scores` will answer of a stacker that is not fitted yet.
    """
    used = _used(copy)
    return _differs(_log_odds_without(copy.folds, copy.target == 1, used)[used])


def shift_to_one_share(copy: Experiment, run: Run) -> Floats | None:
    """Returns what is added to each row's logit (n,), so that all models of a run have the same share of positives.

    It is the log odds of all rows' share, one constant, less those of the share of the rows on which the model was
    fitted that scores the row: two models that learned the same of images, one from 1 % positives and one from 10 %,
    differ by this constant (King & Zeng 2001). Sampling and weights of classes do not count, as every model of ours is
    corrected to the share of its rows. Within a source, nothing changes.

    None for runs of other folds than those of the ``copy``, and for imported ones: what they were fitted on is not
    known.
    """
    inputs = run.meta.get("inputs", {})
    if run.meta["kind"] == "imported" or inputs.get("rows or folds") != copy.rows_fingerprint:
        return None
    positive, used = copy.target == 1, _used(copy)
    if run.meta["level"] == 1:
        external = copy.external["target"].to_numpy() == 1
        # Rows on which a net chose its epoch did not train it; other models are fitted again on such rows, too.
        inner = run.meta["kind"] == "image" and run.meta["settings"].get("select") == "best"
        fitted = _log_odds_without(copy.folds, positive, used, external, seed=copy.config.seed if inner else None)
    else:
        used &= copy.table.train["id"].isin(run.frame("oof")["id"]).to_numpy()
        repeats = range(int(run.meta["settings"].get("repeats", 1)))
        folds = [repeated(copy, number).folds for number in repeats]
        fitted = np.mean([_log_odds_without(one, positive, used) for one in folds], axis=0)
    return log_odds(positive[_used(copy)]) - fitted


def log_odds(positive: Bools) -> float:
    """Returns the log odds of the share of positives; of equal shares exactly the same number."""
    positives = np.count_nonzero(positive)
    return float(np.log(positives / (len(positive) - positives)))


def _log_odds_without(
    folds: Folds, positive: Bools, used: Bools, further: Bools | None = None, *, seed: int | None = None
) -> Floats:
    """Returns, for each row (n,), the log odds of positives among ``used`` rows of other folds and ``further`` ones.

    With a ``seed``, the part of them is left out on which a net chose its epoch.
    """
    made, fold = np.empty(len(positive)), folds.frame["fold"].to_numpy()
    for number in np.unique(fold):
        train = np.flatnonzero(used & (fold != number))
        if seed is not None:
            group = folds.frame["split_group"].to_numpy(object)
            train = train[~inner_split(positive[train], group[train], seed=seed)]
        rows = positive[train] if further is None else np.concatenate([positive[train], further])
        made[fold == number] = log_odds(rows)
    return made


def _used(copy: Experiment) -> Bools:
    return np.ones(len(copy.target), bool) if copy.left_out is None else ~copy.left_out


def _differs(values: Floats) -> bool:
    return bool(np.ptp(values) > 0)
