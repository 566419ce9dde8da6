"""Reads the results of tuning studies: the YAML files that `dermstack tune` wrote and the config names in `tuned:`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dermstack.errors import ConfigError, StoreError
from image_models.settings import Training
from stack.blend.columns import LeftOutFolds, Weighting
from stack.experiment import Experiment
from stack.settings.image_models import ImageModel
from stack.settings.level2 import Stacker, is_second_stage
from stack.settings.yaml_text import parse_yaml
from stack.store import Run, sha256
from stack.study_inputs import (
    NOTED_LATER,
    Inputs,
    blend_study_inputs,
    changed_inputs,
    gbdt_study_inputs,
    image_file_inputs,
    image_study_inputs,
)

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


def check_tuned_gbdt(experiment: Experiment, stacker: Stacker, sources: Sequence[Run], *, complete: bool) -> None:
    """Raises StoreError where the study that the config names for a stacker is stale, naming what has changed.

    ``complete`` says that the stacker's run is complete and stays: then a study that noted no inputs is accepted.
    """
    if (path := experiment.config.tuned.gbdt.get(stacker.name)) is not None:
        now = gbdt_study_inputs(experiment, stacker, sources)
        _check_inputs(experiment, path, f"tuned.gbdt.{stacker.name}", now, may_lack=complete)


def check_tuned_blend(experiment: Experiment, runs: Sequence[Run], *, complete: bool) -> None:
    """Raises StoreError where the study that the config names for the blend is stale; ``complete`` is of the blend."""
    if (path := experiment.config.tuned.blend) is not None:
        _check_inputs(experiment, path, "tuned.blend", blend_study_inputs(experiment, runs), may_lack=complete)


def check_tuned_before_level2(experiment: Experiment, level1: Sequence[Run]) -> None:
    """Raises StoreError where a study of the blend or of a stacker is stale whatever level 2 will predict.

    `stack` calls it before the audit and the fits, which may take hours. Not known yet are the predictions of stackers,
    the sizes of images (`features.shortcuts`), and whether runs are complete, for which studies that noted less are
    accepted: so `check_tuned_gbdt` and `check_tuned_blend` follow. Raises ConfigError for a missing file.
    """
    config = experiment.config
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    if (path := config.tuned.blend) is not None:
        now = blend_study_inputs(experiment, level1, awaited=[stacker.name for stacker in stackers])
        _check_inputs(experiment, path, "tuned.blend", now, may_lack=True)
    for stacker in stackers:
        if not is_second_stage(stacker, stackers) and not config.all_features.shortcuts:
            check_tuned_gbdt(experiment, stacker, level1, complete=True)


def check_tuned_files(experiment: Experiment, model: ImageModel, images: str) -> None:
    """Raises StoreError where an image model's study saw other images or weights; ``images`` is their checksum now."""
    if (path := experiment.config.tuned.image.get(model.name)) is not None:
        now = image_study_inputs(experiment, _own_model(experiment, model)) | image_file_inputs(model, images)
        _check_inputs(experiment, path, f"tuned.image.{model.name}", now, may_lack=True)


def enabled_models(experiment: Experiment) -> list[ImageModel]:
    """Returns the enabled image models, with tuned settings where the config names a study.

    Raises as `tuned_params` does.
    """
    models = [model for model in experiment.config.image_models if model.enabled]
    return [_with_tuned_settings(experiment, model) for model in models]


def _with_tuned_settings(experiment: Experiment, model: ImageModel) -> ImageModel:
    """Returns the model with the settings that its study chose, or as it is where the config names no study."""
    path = experiment.config.tuned.image.get(model.name)
    if path is None:
        return model
    key = f"tuned.image.{model.name}"
    study = _read(experiment, path, key)
    if "inputs" in study:  # one that noted none is accepted: nets may have been trained by it
        _refuse_stale(experiment, path, key, study, image_study_inputs(experiment, model), may_lack=True)
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


def config_line(experiment: Experiment, study: str, paths: dict[str, Path]) -> str:
    """Returns how to use results of ``study`` (image, gbdt or blend): the one line `tuned` for the config.

    ``paths`` holds the results by model, or by "blend". YAML takes a key once only, so the line also has the results
    that the config names already, without those of later studies, which were tuned with other settings of these models.
    """
    config, order = experiment.config, ("image", "gbdt", "blend")
    now = config.tuned.model_dump(exclude_none=True)
    now[study] = paths["blend"] if study == "blend" else now[study] | paths
    later = order[order.index(study) + 1 :]
    line = {name: str(now[name]) if name == "blend" else {model: str(path) for model, path in now[name].items()}
            for name in order if now.get(name) and name not in later}  # fmt: skip
    text = yaml.safe_dump(line, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20).strip()
    instead = " in place of its key `tuned`" if config.tuned.model_fields_set else ""
    left_out = ", ".join(f"tuned.{name}" for name in later if now.get(name))
    again = (
        f"; left out is what was tuned with other settings: with this line, tune {left_out} again" if left_out else ""
    )
    return f"to use it, write into {experiment.config_path}{instead}: `tuned: {text}`{again}"


def noted_inputs(path: Path) -> dict[str, str] | None:
    """Returns the inputs that a study noted in its result file; None where there is no such file or it noted none."""
    try:
        noted = parse_yaml(path.read_text(encoding="utf-8"))["inputs"]
        return {str(name): str(value) for name, value in noted.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return None


def tuned_fingerprint(path: Path | None) -> str | None:
    """Returns the SHA-256 of a study's result file; None where there is none."""
    return sha256(path) if path is not None and path.is_file() else None


def digest_line(text: str) -> str:
    """Returns a YAML comment with the hash of ``text``, which is written above the text to detect changes."""
    return f"{_DIGEST_PREFIX}{hashlib.sha256(text.encode()).hexdigest()}"


def _check_inputs(experiment: Experiment, path: Path, key: str, now: Inputs, *, may_lack: bool) -> None:
    _refuse_stale(experiment, path, key, _read(experiment, path, key), now, may_lack=may_lack)


def _own_model(experiment: Experiment, model: ImageModel) -> ImageModel:
    """Returns the model as the config has it, without tuned settings."""
    return next(own for own in experiment.config.image_models if own.name == model.name)


def _refuse_stale(
    experiment: Experiment, path: Path, key: str, study: dict[str, Any], now: Inputs, *, may_lack: bool
) -> None:
    """Raises StoreError where the study noted other inputs than ``now`` or, unless it ``may_lack`` them, none.

    A study that ``may_lack`` inputs may also lack those in `NOTED_LATER` alone.
    """
    command = experiment.command(f"tune {key.split('.')[1]}")
    if (noted := study.get("inputs")) is None and may_lack:
        return
    if not isinstance(noted, dict):
        raise StoreError(
            f"{key}: {path} does not say which predictions and settings it was tuned on, as dermstack before 0.3 wrote "
            f"it: run `{command}` again"
        )
    if may_lack:
        now = {name: value for name, value in now.items() if name in noted or name not in NOTED_LATER}
    if changed := changed_inputs({str(name): str(value) for name, value in noted.items()}, now):
        raise StoreError(
            f"{key}: {path} is stale, it was tuned with other {'; '.join(changed)}: run `{command}` again, which "
            f"begins a new study, or remove the key {key}"
        )


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
