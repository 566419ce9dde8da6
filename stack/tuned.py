"""Reads the results of tuning studies: the YAML files that `dermstack tune` wrote and the config names in `tuned:`."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dermstack.errors import ConfigError, StoreError
from image_models.settings import Training
from stack.blend.columns import LeftOutFolds, Weighting
from stack.config import parse_yaml
from stack.experiment import Experiment
from stack.image_config import ImageModel
from stack.store import sha256

_DIGEST_PREFIX = "# sha256 of what follows: "


def tuned_params(experiment: Experiment, stacker: str, fold: int | None) -> dict[str, Any]:
    """Returns the GBDT parameters that were tuned without ``fold``'s held-out rows, or on all rows if it is None.

    Returns {} where the config names no study. Raises ConfigError for a missing file and StoreError for a damaged,
    incomplete or stale one.
    """
    path = experiment.config.tuned.gbdt.get(stacker)
    if path is None:
        return {}
    study = _read(experiment, path, f"tuned.gbdt.{stacker}")
    try:
        return dict(study["all"] if fold is None else study["folds"][fold])
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(
            f"tuned.gbdt.{stacker}: {path} lacks the study {'on all rows' if fold is None else f'without fold {fold}'}"
            ": run `dermstack tune gbdt` again to continue it"
        ) from error


def tuned_weights(experiment: Experiment, runs: tuple[str, ...]) -> dict[LeftOutFolds, Weighting] | None:
    """Returns the tuned blend for each set of left-out folds, with weights in the order of ``runs``.

    Returns None where the config names no study. Raises as `tuned_params` does, and for other runs than ``runs``.
    """
    path = experiment.config.tuned.blend
    if path is None:
        return None
    study = _read(experiment, path, "tuned.blend")
    try:
        tuned_runs = tuple(map(str, study["runs"]))
        found = {frozenset(entry["without"]): Weighting.from_dict(entry) for entry in study["weights"]}
    except (LookupError, TypeError) as error:
        raise StoreError(f"tuned.blend: {path} lacks {error}: run `dermstack tune blend` again") from error
    if tuned_runs != runs:
        raise StoreError(
            f"tuned.blend: {path} weights the runs {', '.join(tuned_runs)}, but the experiment has {', '.join(runs)}: "
            "run `dermstack tune blend` again"
        )
    return found


def enabled_models(experiment: Experiment) -> list[ImageModel]:
    """Returns the enabled image models, with tuned settings where the config names a study.

    Raises as `tuned_params` does.
    """
    models = [model for model in experiment.config.image_models if model.enabled]
    return [_with_tuned_settings(experiment, model) for model in models]


def _with_tuned_settings(experiment: Experiment, model: ImageModel) -> ImageModel:
    path = experiment.config.tuned.image.get(model.name)
    if path is None:
        return model
    key = f"tuned.image.{model.name}"
    study = _read(experiment, path, key)
    try:
        settings = {**study["settings"], "augment": tuple(study["settings"]["augment"].split("+"))}
        if odd := set(settings) - {"augment", *(field.name for field in fields(Training))}:
            raise ValueError(f"it sets {', '.join(sorted(map(str, odd)))}, which an image study never tunes")
        # The file may come from anyone, so its values are validated as those of the config are.
        return ImageModel.model_validate(
            model.model_dump() | settings | {"selected": True}, context={"folder": path.parent}
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise StoreError(
            f"{key}: {path} is not a study of an image model ({error}): run `dermstack tune image` again"
        ) from error


def tuned_fingerprint(path: Path | None) -> str | None:
    """Returns the SHA-256 of a study's result file; None where there is none."""
    return sha256(path) if path is not None and path.is_file() else None


def digest_line(text: str) -> str:
    """Returns a YAML comment with the hash of ``text``, which is written above the text to detect changes."""
    return f"{_DIGEST_PREFIX}{hashlib.sha256(text.encode()).hexdigest()}"


def _read(experiment: Experiment, path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{key}: {path} does not exist: run `dermstack tune`, or remove the key")
    try:
        text = path.read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        if first.startswith(_DIGEST_PREFIX) and first != digest_line(rest):
            raise ValueError(
                "its content does not match the hash in its first line; if you changed it on purpose, delete that line"
            )
        study = parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise StoreError(f"{key}: {path} is damaged ({error}): remove {path} and run `dermstack tune` again") from error
    if not isinstance(study, dict):
        raise StoreError(f"{key}: {path} is not a study: remove {path} and run `dermstack tune` again")
    if study.get("rows_or_folds") != experiment.rows_fingerprint:
        raise StoreError(f"{key}: {path} was tuned on other rows or folds: run `dermstack tune` again")
    return study
