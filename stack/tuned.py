"""What studies have chosen: read from the yaml that `dermstack tune` wrote and the config names under `tuned:`."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from image_models.settings import Training
from stack.blend.columns import LeftOutFolds, Weighting
from stack.config import parse_yaml
from stack.errors import ConfigError, StoreError
from stack.experiment import Experiment
from stack.image_config import ImageModel
from stack.store import sha256

_DIGEST_PREFIX = "# sha256 of what follows: "


def tuned_params(experiment: Experiment, stacker: str, fold: int | None) -> dict[str, Any]:
    """GBDT parameters chosen without the rows that ``fold`` holds out, or on all rows; {} where nothing is tuned."""
    path = experiment.config.tuned.gbdt.get(stacker)
    if path is None:
        return {}
    study = _read(experiment, path, f"tuned.gbdt.{stacker}")
    try:
        return dict(study["all"] if fold is None else study["folds"][fold])
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(
            f"tuned.gbdt.{stacker}: {path} lacks the study {'on all rows' if fold is None else f'without fold {fold}'}"
            ": run `dermstack tune gbdt` again, it continues"
        ) from error


def tuned_weights(experiment: Experiment, runs: tuple[str, ...]) -> dict[LeftOutFolds, Weighting] | None:
    """How to blend for each set of folds left out, in the order of ``runs``; None where nothing is tuned."""
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
            f"tuned.blend: {path} weighs the runs {', '.join(tuned_runs)}, the experiment has {', '.join(runs)}: "
            "run `dermstack tune blend` again"
        )
    return found


def enabled_models(experiment: Experiment) -> list[ImageModel]:
    """The enabled image models, each with the settings that its study selected, where the config names one."""
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
            raise ValueError(f"{', '.join(sorted(map(str, odd)))} is nothing that a study chooses")
        # A file may have been written by anyone: its values pass the same door as the config's.
        return ImageModel.model_validate(
            model.model_dump() | settings | {"selected": True}, context={"folder": path.parent}
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # pydantic's is a ValueError
        raise StoreError(
            f"{key}: {path} is no study of an image model ({error}): run `dermstack tune image` again"
        ) from error


def tuned_fingerprint(path: Path | None) -> str | None:
    """Of a study's result, None where there is none."""
    return sha256(path) if path is not None and path.is_file() else None


def digest_line(text: str) -> str:
    """A comment that tells whether the yaml below it is as it was written."""
    return f"{_DIGEST_PREFIX}{hashlib.sha256(text.encode()).hexdigest()}"


def _read(experiment: Experiment, path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not there: run `dermstack tune`, or drop the key")
    try:
        text = path.read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        if first.startswith(_DIGEST_PREFIX) and first != digest_line(rest):
            raise ValueError("it isn't what its first line says; drop that line where you have changed the file")
        study = parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise StoreError(f"{key}: {path} is damaged ({error}): remove {path} and run `dermstack tune` again") from error
    if not isinstance(study, dict):
        raise StoreError(f"{key}: {path} holds no study: remove {path} and run `dermstack tune` again")
    if study.get("rows_or_folds") != experiment.rows_fingerprint:
        raise StoreError(f"{key}: {path} was tuned on other rows or folds: run `dermstack tune` again")
    return study
