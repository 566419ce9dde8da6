"""Checks, before anything is trained, that the folds leave enough groups of both classes for what is fitted on them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import ConfigError, DataError
from stack.console import Out
from stack.experiment import Experiment
from stack.folds import assign_balanced_folds, count_groups
from stack.settings.config import BlendMethod
from stack.settings.data import Pooling
from stack.settings.image_models import ImageModel
from stack.tuned import enabled_models

NEEDED = 2  # groups of each class in the training rows of a fold: one to learn from and one for early stopping
MIN_FOLDS = 3  # for a choice that is nested twice: without the fold that is scored, and without another
MAX_SUGGESTED_FOLDS = 20


def check_fold_needs(experiment: Experiment, rows: NDArray[np.intp] | None = None) -> None:
    """Raises DataError where models of the config cannot be fitted on the experiment's folds.

    Frozen models, image models with `select: best` and stackers set whole groups of each fold's training rows aside
    (`stack.folds.inner_split`), for which they need two groups of each class there. The message names the number of
    folds that works, or else what can be switched off. ``rows`` are the training rows that all runs cover, by default
    all that are not left out.
    """
    config, models = experiment.config, enabled_models(experiment)
    users = [f"image model {m.name} ({'frozen' if m.frozen else '`select: best`'})" for m in models if _sets_aside(m)]
    users += [f"stacker {stacker.name}" for stacker in config.stackers if stacker.enabled]
    if users:
        them = "it" if len(users) == 1 else "them"
        _check_training_parts(
            experiment,
            rows,
            left_out=1,
            users=", ".join(users),
            otherwise=f"disable {them} (`enabled: false`)"
            + (", with `select: last` for image models" if any(m.select == "best" for m in models) else ""),
        )


def blend_methods(experiment: Experiment) -> tuple[str, ...]:
    """Returns the methods among which the blend chooses: those of the config, and "optuna" for weights of a study.

    With two folds, which allow no nested choice, it is only the simplest; for "logloss" the simplest whose score is a
    probability, if there is one.
    """
    listed = _listed_methods(experiment)
    if experiment.folds.k >= MIN_FOLDS or len(listed) == 1:
        return listed
    order = sorted(listed, key=get_args(BlendMethod).index)
    suited = [name for name in order if name != "rank_mean"] if experiment.config.objective == "logloss" else order
    return (suited[0],)


def _listed_methods(experiment: Experiment) -> tuple[str, ...]:
    listed, is_tuned = experiment.config.blend.methods, experiment.config.tuned.blend is not None
    return (*listed, "optuna") if is_tuned and "optuna" not in listed else listed


def unit_poolings(experiment: Experiment) -> tuple[str, ...]:
    """Returns the poolings among which a blend of units chooses, simplest first: with two folds only the simplest."""
    per = experiment.config.predict_per
    assert per is not None
    listed = tuple(name for name in get_args(Pooling) if name in per.pooling)
    return listed if experiment.folds.k >= MIN_FOLDS else listed[:1]


def warn_of_two_folds(experiment: Experiment, out: Out) -> None:
    """Warns where two folds leave no choice among the blend methods of the config."""
    listed, used = _listed_methods(experiment), blend_methods(experiment)
    if len(used) < len(listed):
        out.warn(
            f"there are {experiment.folds.k} folds, but the choice among {len(listed)} blend methods needs {MIN_FOLDS} "
            f"to be nested: `stack` uses {used[0]} alone (more folds: folds.k, or another method: blend.methods)"
        )
    if (per := experiment.config.predict_per) is not None and len(per.pooling) > len(unit_poolings(experiment)):
        out.warn(
            f"there are {experiment.folds.k} folds, but the choice among {len(per.pooling)} poolings needs {MIN_FOLDS} "
            f"to be nested: `stack` uses {unit_poolings(experiment)[0]} alone (predict_per.pooling names another)"
        )


def check_study_needs(experiment: Experiment, study: str) -> None:
    """Raises DataError where the folds are too few, or leave too few groups, for a study of `gbdt` or `blend`.

    Raises ConfigError for a study of `blend` where predictions are made for units.
    """
    if study == "blend" and experiment.config.predict_per is not None:
        raise ConfigError(
            "`tune blend` tunes weights for single images, but the config has `predict_per`: use `blend.methods: "
            "[optuna]`, which searches weights for units inside `stack`, or remove `predict_per`"
        )
    if experiment.folds.k < MIN_FOLDS:
        raise DataError(
            f"`tune {study}` needs {MIN_FOLDS} folds, but there are {experiment.folds.k}: "
            + _remedy(experiment, np.arange(len(experiment.target)), 1, "leave out this study")
        )
    if study == "gbdt":
        _check_training_parts(
            experiment,
            None,
            left_out=2,
            users="`tune gbdt`, which leaves out two folds at a time",
            otherwise="leave out this study",
        )


def check_blend_needs(
    target: ArrayLike, split_group: ArrayLike, fold: ArrayLike, *, candidates: int, of_units: bool
) -> None:
    """Raises DataError where weights would be fitted to one class: without a fold or, for a choice, without two.

    All arrays are (n,), of the rows that are blended, which are units with ``of_units``.
    """
    left_out = 1 if candidates == 1 else 2
    found = groups_left(target, split_group, fold, left_out=left_out)
    if (short := found[found["left"] < 1]).empty:
        return
    word, groups = ("positive" if short["label"].iloc[0] else "negative"), int(short["groups"].iloc[0])
    what, step = ("unit", "name columns whose units are smaller") if of_units else ("row", "set more folds (folds.k)")
    raise DataError(
        f"{'predict_per: ' * of_units}only {groups} groups have a {word} {what}, and all may be in {left_out} folds, "
        f"without which the blend is fitted too: {step}, or add groups with a {word} {what}"
    )


def groups_left(target: ArrayLike, split_group: ArrayLike, fold: ArrayLike, *, left_out: int = 1) -> pd.DataFrame:
    """Returns the least number of groups of a class in the training rows, with ``left_out`` folds left out.

    One row for each class: ``label``, ``groups`` in all rows, and ``left`` without the folds that hold most of them.
    All arrays are (n,).
    """
    frame = pd.DataFrame({"target": np.asarray(target), "group": np.asarray(split_group), "fold": np.asarray(fold)})
    made = []
    for label in (1, 0):
        by_fold = frame[frame["target"] == label].groupby("fold")["group"].nunique().sort_values(ascending=False)
        made.append({"label": label, "groups": int(by_fold.sum()), "left": int(by_fold.iloc[left_out:].sum())})
    return pd.DataFrame(made)


def _sets_aside(model: ImageModel) -> bool:
    return model.frozen or model.select == "best"


def _check_training_parts(
    experiment: Experiment, rows: NDArray[np.intp] | None, *, left_out: int, users: str, otherwise: str
) -> None:
    if rows is None:
        every = np.arange(len(experiment.target))
        rows = every if experiment.left_out is None else every[~experiment.left_out]
    fold = experiment.folds.frame["fold"].to_numpy()
    found = _groups_left(experiment, rows, fold, left_out)
    if (short := found[found["left"] < NEEDED]).empty:
        return
    word, groups, left = ("positives" if short["label"].iloc[0] else "negatives"), *short.iloc[0][["groups", "left"]]
    raise DataError(
        f"{groups} groups hold {word}, of which only {left} may be left in the training rows of a fold "
        f"(k: {experiment.folds.k}), but {NEEDED} are needed there, one of them to set aside for early stopping or the "
        f"choice of a regularisation, by {users}: {_remedy(experiment, rows, left_out, otherwise)}"
    )


def _remedy(experiment: Experiment, rows: NDArray[np.intp], left_out: int, otherwise: str) -> str:
    """Returns a number of folds that works, which is found by making the folds, and what else the user can do."""
    if experiment.config.data.columns.fold:
        return f"make more folds in the column of data.columns.fold, or {otherwise}"
    if experiment.copy_of is not None:
        return f"join small sources, or {otherwise}"
    if experiment.config.folds.by == "source":
        return f"set folds.by: group, or {otherwise}"
    settings, target, group = experiment.config.folds, experiment.target, experiment.split_group
    age = experiment.table.train["age"].to_numpy() if "age" in settings.stratify else None
    group_counts = count_groups(target, group, stratify=settings.stratify, age=age)
    most = min(len(np.unique(group[target == label])) for label in (0, 1))
    for k in range(max(MIN_FOLDS, experiment.folds.k + 1), min(most, MAX_SUGGESTED_FOLDS) + 1):
        fold = assign_balanced_folds(group_counts, k=k, seed=settings.seed)
        if (_groups_left(experiment, rows, fold, left_out)["left"] >= NEEDED).all():
            return f"set folds.k: {k}, or {otherwise}"
    return f"no number of folds leaves enough, so add rows of other groups, or {otherwise}"


def _groups_left(experiment: Experiment, rows: NDArray[np.intp], fold: NDArray[np.int8], left_out: int) -> pd.DataFrame:
    return groups_left(experiment.target[rows], experiment.split_group[rows], fold[rows], left_out=left_out)
