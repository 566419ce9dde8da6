"""Pseudo-labels: rows without a target train the nets of fold k with labels of nets that never saw rows of fold k.

The labels of fold k come from the fold-k nets of other level-1 runs, so an out-of-fold prediction stays one of models
that never saw the row's target, also over several rounds. Labels of all folds together (of a blend, or of averaged test
predictions) would carry the targets of fold k into its own nets. So would those of a stacker: its features of other
folds' rows were made by nets that had trained on fold k. Test rows have these predictions already; rows of
`data.unlabelled` are predicted by the teachers' nets on disk (`stack.level1.unlabelled_labels`). A row that shows what
a row of fold k shows does not train fold k (`stack.tables.unlabelled`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import ConfigError, DataError
from stack.console import Out
from stack.experiment import Experiment
from stack.level1.unlabelled_labels import (
    label_files,
    predict_unlabelled,
    rows_input,
    shown,
    shown_by_test_rows,
    unlabelled_logits,
)
from stack.settings.image_models import ImageModel, PseudoLabels
from stack.store import Run, fingerprint, frame_fingerprint, read_run, row_positions
from stack.tables.net_columns import further_columns

if TYPE_CHECKING:
    from image_models.cache import ImageCache

PSEUDO_LABELS = "pseudo-labels"  # the name of this input of a run
SAME_LOGIT = 1e-4  # nets of two folds differ by more in half of the test rows
_NOT_MADE = "the teachers' predictions, which are not made yet"


@dataclass(frozen=True)
class PseudoRows:
    """Rows without a target that train the nets of one fold."""

    rows: NDArray[np.intp]  # (m,) positions in the frame of `rows_to_label`
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
    """Returns the names of the runs that label rows for the model."""
    return () if model.pseudo_labels is None else model.pseudo_labels.teachers


def labels_unlabelled(model: ImageModel) -> bool:
    """Whether rows of `data.unlabelled` train the model."""
    return model.pseudo_labels is not None and model.pseudo_labels.unlabelled


def rows_to_label(experiment: Experiment, model: ImageModel) -> pd.DataFrame:
    """Returns the rows that the model's teachers label: test rows, then unlabelled rows; none without teachers."""
    settings = model.pseudo_labels
    parts = [
        *([experiment.table.test] if settings is not None and settings.test else []),
        *([experiment.unlabelled] if settings is not None and settings.unlabelled else []),
    ]
    return pd.concat(parts, ignore_index=True) if parts else experiment.table.test.iloc[:0]


def check_teachers(experiment: Experiment, models: Sequence[ImageModel]) -> None:
    """Raises ConfigError where a teacher is neither an earlier one of ``models`` nor an imported run with fold nets.

    An imported run labels test rows only. Raises DataError where there are no rows to label.
    """
    known = set[str]()
    for model in models:
        for name in teachers_of(model):
            settings = model.pseudo_labels
            assert settings is not None
            if settings.test and not len(experiment.table.test):
                instead = ", set pseudo_labels.rows: unlabelled" if len(experiment.unlabelled) else ""
                raise DataError(
                    f"{model.name}: pseudo_labels needs test rows: name their csv in data.test{instead}, or remove it"
                )
            if settings.unlabelled and not len(experiment.unlabelled):
                raise DataError(
                    f"{model.name}: every row of data.unlabelled is dropped, as its image cannot be read (see "
                    "dropped.csv): restore the images, or set pseudo_labels.rows: test"
                )
            if name not in known:
                _check_imported(experiment, model, name, known)
        known.add(model.name)


def _check_imported(experiment: Experiment, model: ImageModel, name: str, earlier: set[str]) -> None:
    """Raises ConfigError unless the teacher ``name`` is an imported run with test predictions of each fold's model."""
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
    if labels_unlabelled(model):
        raise ConfigError(
            f"{what}, an imported run, whose nets are not here to predict the rows of data.unlabelled: name "
            "image models only, or set pseudo_labels.rows: test"
        )
    logits = run.frame("test").groupby("id")["logit"]
    if float((logits.max() - logits.min()).median()) < SAME_LOGIT:
        raise ConfigError(
            f"{what}, whose fold models have the same predictions of test rows: they are copies of one prediction, "
            "such as a blend's of all folds, which knows the targets of every fold; import it with the predictions of "
            "each fold model"
        )


def pseudo_label_inputs(experiment: Experiment, model: ImageModel) -> dict[str, str]:
    """Returns the inputs, by name, of a run whose model has pseudo-labels: teachers' predictions, unlabelled rows."""
    settings = model.pseudo_labels
    if settings is None:
        return {}
    rows = {}
    if settings.unlabelled:
        table = experiment.table.columns
        further = further_columns(model, experiment.config.data.columns, table)
        rows["unlabelled rows"] = rows_input(experiment, ["age", "sex", "site", *further] if model.metadata else [])
    if settings.test and (may_not := shown_by_test_rows(experiment)).any():
        rows["test rows that show training rows"] = frame_fingerprint(pd.DataFrame(may_not).add_prefix("fold "))
    runs = _complete_teachers(experiment, model)
    if runs is None:
        return {PSEUDO_LABELS: _NOT_MADE, **rows}
    files = {run.name: run.meta["files"]["test.parquet"] for run in runs if settings.test}
    for run in runs if settings.unlabelled else []:
        files |= label_files(experiment, run) or {}
    return {PSEUDO_LABELS: fingerprint(files), **rows}


def unlabelled_images(experiment: Experiment, model: ImageModel, cache: ImageCache) -> dict[str, str]:
    """Returns the input of a run that unlabelled images train: their checksum; {} for other models."""
    if not labels_unlabelled(model):
        return {}
    return {"unlabelled images": cache.checksum(list(experiment.unlabelled["id"]))}


def label_rows(experiment: Experiment, model: ImageModel, caches: Mapping[int, ImageCache], out: Out) -> None:
    """Predicts the unlabelled rows with the model's teachers, whose runs are complete; does nothing for other models.

    ``caches`` holds the images by size.
    """
    if labels_unlabelled(model):
        for run in _complete_teachers(experiment, model, labelled=False) or []:
            predict_unlabelled(experiment, run, caches[run.meta["settings"]["size"]], out)


def awaits_teachers(experiment: Experiment, model: ImageModel, rebuilt: Sequence[str] = ()) -> bool:
    """Whether a run that labels rows for the model is to be ``rebuilt``, is not complete or has not labelled them."""
    return _complete_teachers(experiment, model) is None or bool(set(teachers_of(model)) & set(rebuilt))


def _complete_teachers(experiment: Experiment, model: ImageModel, *, labelled: bool = True) -> list[Run] | None:
    """Returns the runs that label rows for the model; None unless they are complete and, if ``labelled``, did it."""
    found = [read_run(experiment.models / name) for name in teachers_of(model)]
    runs = [run for run in found if run is not None]
    if len(runs) < len(found):
        return None
    needs_labels = labelled and labels_unlabelled(model)
    return None if needs_labels and any(label_files(experiment, run) is None for run in runs) else runs


def pseudo_rows(experiment: Experiment, model: ImageModel, fold: int) -> PseudoRows | None:
    """Returns the rows that train the model's nets of ``fold``; None where the model has no pseudo-labels.

    Logits are averaged over the teachers. The teachers' runs must be complete (`rounds_of`) and have labelled the rows
    (`label_rows`). Raises DataError where no row is as certain as the settings ask for.
    """
    settings = model.pseudo_labels
    if settings is None:
        return None
    ids, logits = experiment.table.test["id"], []
    for name in settings.teachers:
        run = read_run(experiment.models / name)
        assert run is not None, f"{name} is made before the runs that it labels rows for"
        parts = []
        if settings.test:
            frame = run.frame("test")
            of_fold = frame[frame["fold"] == fold]
            known = row_positions(ids, of_fold["id"], f"fold {fold} of {name}")
            parts.append(of_fold["logit"].to_numpy()[known])
        if settings.unlabelled:
            parts.append(unlabelled_logits(experiment, run, fold))
        logits.append(np.concatenate(parts))
    p = expit(np.mean(np.asarray(logits, np.float64), axis=0))
    may_train = ~_may_not_train(experiment, settings)[:, fold]
    certain = np.where(may_train, np.maximum(p, 1 - p), 0)
    rows = np.flatnonzero(certain >= settings.confidence)
    if not may_train.any():
        instead = "" if settings.test else ", or set pseudo_labels.rows: test"
        raise DataError(
            f"{model.name}: no row to label may train fold {fold}, as each shows the image or the group of a "
            f"row that the fold holds out: remove pseudo_labels{instead}"
        )
    if not len(rows):
        raise DataError(
            f"{model.name}: no row reaches pseudo_labels.confidence {settings.confidence:g} in fold {fold}: the most "
            f"certain one has {certain.max():.3f}; lower it"
        )
    return PseudoRows(rows, _labels(p[rows], settings))


def _may_not_train(experiment: Experiment, settings: PseudoLabels) -> NDArray[np.bool_]:
    """Returns (m, k) whether each row of `rows_to_label` shows what a held-out row of each fold shows."""
    parts = [
        *([shown_by_test_rows(experiment)] if settings.test else []),
        *([shown(experiment)] if settings.unlabelled else []),
    ]
    return np.concatenate(parts)


def unlabelled_in_use(experiment: Experiment, model: ImageModel) -> NDArray[np.bool_] | None:
    """Returns (m, k) whether each unlabelled row trains the model's nets of each fold; None before they are labelled.

    Rows train no fold where the model takes none of them.
    """
    m, folds = len(experiment.unlabelled), range(experiment.folds.k)
    if not labels_unlabelled(model):
        return np.zeros((m, len(folds)), bool)
    if awaits_teachers(experiment, model):
        return None
    used = np.zeros((m, len(folds)), bool)
    first = len(rows_to_label(experiment, model)) - m  # test rows come before
    for fold in folds:
        made = pseudo_rows(experiment, model, fold)
        assert made is not None, "the model has pseudo-labels"
        used[made.rows[made.rows >= first] - first, fold] = True
    return used


def _labels(p: NDArray[np.float64], settings: PseudoLabels) -> NDArray[np.float32]:
    return (p > 0.5).astype(np.float32) if settings.labels == "hard" else p.astype(np.float32)
