"""Pseudo-labels: test rows train the nets of fold k with labels of nets that never saw the rows of fold k.

The labels of fold k come from the fold-k nets of other level-1 runs, so an out-of-fold prediction stays one of models
that never saw the row's target, also over several rounds. Labels of all folds together (of a blend, or of averaged test
predictions) would carry the targets of fold k into its own nets. So would those of a stacker: its features of other
folds' rows were made by nets that had trained on fold k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import ConfigError, DataError
from stack.experiment import Experiment
from stack.image_config import ImageModel, PseudoLabels
from stack.store import Run, fingerprint, read_run, row_positions

PSEUDO_LABELS = "pseudo-labels"  # the name of this input of a run
SAME_LOGIT = 1e-4  # nets of two folds differ by more in half of the test rows
_NOT_MADE = "the teachers' predictions, which are not made yet"


@dataclass(frozen=True)
class PseudoRows:
    """Test rows that train the nets of one fold."""

    rows: NDArray[np.intp]  # (m,) positions in the table of test rows
    p: NDArray[np.float32]  # (m,) their probabilities of target 1


def rounds_of(models: Sequence[ImageModel]) -> list[list[ImageModel]]:
    """Divides models into rounds: a model comes later than those of ``models`` that label rows for it."""
    rounds: list[list[ImageModel]] = []
    round_of: dict[str, int] = {}
    for model in models:  # teachers stand before their models (`check_teachers`)
        taught = [round_of[name] for name in teachers_of(model) if name in round_of]
        round_of[model.name] = max(taught, default=-1) + 1
        if round_of[model.name] == len(rounds):
            rounds.append([])
        rounds[round_of[model.name]].append(model)
    return rounds


def teachers_of(model: ImageModel) -> tuple[str, ...]:
    """Returns the names of the runs that label test rows for the model."""
    return () if model.pseudo_labels is None else model.pseudo_labels.teachers


def check_teachers(experiment: Experiment, models: Sequence[ImageModel]) -> None:
    """Raises ConfigError where a teacher is neither an earlier one of ``models`` nor an imported run with fold nets.

    Raises DataError where there are no test rows to label.
    """
    known = set[str]()
    for model in models:
        for name in teachers_of(model):
            if not len(experiment.table.test):
                raise DataError(
                    f"{model.name}: pseudo_labels needs test rows: name their csv in data.test, or remove it"
                )
            if name not in known:
                _check_imported(experiment, model, name, known)
        known.add(model.name)


def _check_imported(experiment: Experiment, model: ImageModel, name: str, earlier: set[str]) -> None:
    what = f"{model.name}: pseudo_labels.teachers names {name}"
    if name in experiment.config.model_names:
        stackers = {stacker.name for stacker in experiment.config.stackers}
        why = (
            "a stacker, whose features were made by nets that had seen the rows of the fold"
            if name in stackers
            else "no enabled image model that stands before it"
        )
        raise ConfigError(f"{what}, {why}: name an image model that is listed earlier, or an imported run")
    run = read_run(experiment.models / name)
    if run is None or run.meta["kind"] != "imported":
        raise ConfigError(
            f"{what}, which is no run: name an image model listed earlier ({', '.join(sorted(earlier)) or 'none'}), or "
            "import the run first with `dermstack import-oof`"
        )
    if run.meta.get("foreign_folds") or run.meta.get("test_averaged") or not run.has("test"):
        why = (
            "whose folds are not those of the experiment"
            if run.meta.get("foreign_folds")
            else "whose test predictions are averaged over all folds"
            if run.has("test")
            else "which has no test predictions"
        )
        raise ConfigError(
            f"{what}, {why}; labels for fold k must come from models that never saw the rows of fold k: import it "
            "with the test predictions of each fold model"
        )
    logits = run.frame("test").groupby("id")["logit"]
    if float((logits.max() - logits.min()).median()) < SAME_LOGIT:
        raise ConfigError(
            f"{what}, whose fold models have the same predictions of test rows: they are copies of one prediction, "
            "such as a blend's of all folds, which knows the targets of every fold; import it with the predictions of "
            "each fold model"
        )


def pseudo_label_inputs(experiment: Experiment, model: ImageModel) -> dict[str, str]:
    """Returns the input of a run whose model has pseudo-labels, by name: the teachers' test predictions."""
    if not teachers_of(model):
        return {}
    runs = _complete_teachers(experiment, model)
    if runs is None:
        return {PSEUDO_LABELS: _NOT_MADE}
    return {PSEUDO_LABELS: fingerprint({run.name: run.meta["files"]["test.parquet"] for run in runs})}


def awaits_teachers(experiment: Experiment, model: ImageModel, rebuilt: Sequence[str] = ()) -> bool:
    """Whether a run that labels rows for the model is not complete, or is among those to be ``rebuilt``."""
    return _complete_teachers(experiment, model) is None or bool(set(teachers_of(model)) & set(rebuilt))


def _complete_teachers(experiment: Experiment, model: ImageModel) -> list[Run] | None:
    found = [read_run(experiment.models / name) for name in teachers_of(model)]
    runs = [run for run in found if run is not None]
    return runs if len(runs) == len(found) else None


def pseudo_rows(experiment: Experiment, model: ImageModel, fold: int) -> PseudoRows | None:
    """Returns the test rows that train the model's nets of ``fold``; None where the model has no pseudo-labels.

    Logits are averaged over the teachers. The teachers' runs must be complete (`rounds_of`). Raises DataError where no
    row is as certain as the settings ask for.
    """
    settings = model.pseudo_labels
    if settings is None:
        return None
    ids, logits = experiment.table.test["id"], []
    for name in settings.teachers:
        run = read_run(experiment.models / name)
        assert run is not None, f"{name} is made before the runs that it labels rows for"
        frame = run.frame("test")
        of_fold = frame[frame["fold"] == fold]
        logits.append(of_fold["logit"].to_numpy()[row_positions(ids, of_fold["id"], f"fold {fold} of {name}")])
    p = expit(np.mean(np.asarray(logits, np.float64), axis=0))
    rows = np.flatnonzero(np.maximum(p, 1 - p) >= settings.confidence)
    if not len(rows):
        raise DataError(
            f"{model.name}: no test row reaches pseudo_labels.confidence {settings.confidence:g} in fold {fold}: the "
            f"most certain one has {np.maximum(p, 1 - p).max():.3f}; lower it"
        )
    return PseudoRows(rows, _labels(p[rows], settings))


def _labels(p: NDArray[np.float64], settings: PseudoLabels) -> NDArray[np.float32]:
    return (p > 0.5).astype(np.float32) if settings.labels == "hard" else p.astype(np.float32)
