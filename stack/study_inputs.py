"""Names everything that a tuning study depends on, so that a study is stored under it and a stale result is refused.

Readable values, such as a kind or a number, stand as they are; contents of files, tables and settings are fingerprints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dermstack.listing import first_of
from image_models.settings import is_own_backbone
from stack.experiment import Experiment
from stack.net_metadata import metadata_inputs
from stack.settings.config import BLEND_VERSION
from stack.settings.image_models import ImageModel
from stack.settings.level2 import Stacker, source_names
from stack.store import Run, fingerprint, frame_fingerprint, sha256
from stack.tables.table import ACQUISITION
from stack.views import blended_runs, blends_run, seen_runs
from tabular.gbdt_params import FIT_VERSION

Inputs = Mapping[str, str]

GBDT_TUNED = {  # what a study of each kind chooses; stack/tune/run.py has the ranges
    "lightgbm": ("num_leaves", "min_data_in_leaf", "lambda_l2", "bagging_fraction", "feature_fraction"),
    "xgboost": ("max_depth", "min_child_weight", "reg_lambda", "subsample", "colsample_bytree"),
    "catboost": ("depth", "l2_leaf_reg", "random_strength", "subsample", "rsm"),
}
IMAGE_TUNED = ("lr", "weight_decay", "layer_decay", "label_smoothing", "augment", "balance", "ema")

_FIRST_TRIAL = "first trial"  # a model's own values of what is tuned: other ones are another study, not a stale result
# What level 2 cannot check, as it reads no such file.
FILE_INPUTS = ("images", "unlabelled images", "pretrained weights", "backbone code")
_FINGERPRINT = re.compile(r"[0-9a-f]{12}([0-9a-f]{52})?")
_PREDICTIONS = "predictions of "
# Inputs that the first studies to note theirs lack, with the value they had.
NOTED_LATER = {"blend.preselect": "false", "version of GBDT fits": "1", "version of blend methods": "1"}


def blend_study_inputs(experiment: Experiment, runs: Sequence[Run], *, awaited: Sequence[str] = ()) -> dict[str, str]:
    """Returns what a study of blend weights depends on: the out-of-fold predictions, the rows and the settings.

    ``awaited`` names runs that are fitted later than ``runs``: their names count, their predictions are not known yet.
    """
    config, runs = experiment.config, blended_runs(experiment.config, runs)
    names = [*(run.name for run in runs), *(name for name in awaited if blends_run(config, name))]
    return {
        **_common(experiment),
        "runs": ", ".join(names),
        **{f"{_PREDICTIONS}{run.name}": run.meta["files"]["oof.parquet"] for run in runs},
        "blend.power": str(config.blend.power).lower(),
        "blend.replacement": str(config.blend.replacement).lower(),
        "blend.bags": str(config.blend.bags),
        "blend.preselect": str(config.blend.preselect).lower(),
        "version of blend methods": str(BLEND_VERSION),
    }


def gbdt_study_inputs(experiment: Experiment, stacker: Stacker, sources: Sequence[Run]) -> dict[str, str]:
    """Returns what a study of a stacker depends on: its level-2 matrix, and its settings that are not tuned.

    The number of bags is left out, as a trial fits one model. With ``features.shortcuts``, the tables must have the
    columns of `stack.images.with_acquisition`.
    """
    config = experiment.config
    tuned = GBDT_TUNED.get(stacker.kind, ())
    params = {name: value for name, value in stacker.params.items() if name not in tuned}
    settings = {"params": params} | stacker.model_dump(include={"negatives", "positive_weight", "monotone"})
    # Left out at their defaults, as studies of dermstack 0.2 have no such settings.
    settings |= stacker.model_dump(include={"positives", "select"}, exclude_defaults=True)
    shortcuts, seen = {}, seen_runs(config, stacker, sources)
    if config.all_features.shortcuts:
        parts = (experiment.table.train[list(ACQUISITION)], experiment.table.test[list(ACQUISITION)])
        shortcuts["acquisition"] = fingerprint({"parts": [frame_fingerprint(part) for part in parts]})
    return {
        **_common(experiment),
        "kind": stacker.kind,
        **({"version of GBDT fits": str(FIT_VERSION)} if stacker.is_gbdt else {}),
        "settings": fingerprint(settings),
        "features": fingerprint(stacker.features_with(config.features).inputs()),
        "metadata": experiment.metadata_fingerprint,
        **cohort_inputs(experiment, stacker),
        **shortcuts,
        "runs": ", ".join(run.name for run in seen),
        **{f"{_PREDICTIONS}{run.name}": fingerprint(_out_of_fold_files(run)) for run in seen},
    }


def cohort_inputs(experiment: Experiment, stacker: Stacker) -> dict[str, str]:
    """Returns an input of stackers that see `features.cohort_columns` of a table that lacks values, else nothing.

    Earlier versions chose the cohorts of all columns by the first one, which differs only where a value is missing.
    """
    if not stacker.features_with(experiment.config.features).cohort_columns:
        return {}
    lacks = experiment.table.train[experiment.table.columns.numbers].isna().to_numpy().any()
    return {"cohorts": "of each column"} if lacks else {}


def image_study_inputs(experiment: Experiment, model: ImageModel) -> dict[str, str]:
    """Returns what a study of an image model depends on, apart from its files (`image_file_inputs`)."""
    own = {name: getattr(model, name) for name in IMAGE_TUNED}
    unused = {"name", "enabled", "selected", "tta", "pretrained", "seeds", "pseudo_labels", *IMAGE_TUNED}
    diagnoses = (
        {"diagnoses": frame_fingerprint(experiment.table.train[["diagnosis"]])} if model.target == "diagnosis" else {}
    )
    return {
        "rows or folds": experiment.rows_fingerprint,
        "seed": f"{experiment.config.seed} + {model.seeds[0]}",
        "settings": fingerprint(model.settings(without=unused)),
        _FIRST_TRIAL: fingerprint(own),
        **diagnoses,
        **metadata_inputs(experiment, model),
    }


def image_file_inputs(model: ImageModel, images: str) -> dict[str, str]:
    """Returns the `FILE_INPUTS` of an image study or run; ``images`` is the cache's checksum of the rows' images.

    Only a backbone of the user's own has code that is fingerprinted.
    """
    weights = model.pretrained
    files = {"images": images, "pretrained weights": sha256(weights) if isinstance(weights, Path) else str(weights)}
    if is_own_backbone(model.backbone):
        from image_models.own_backbone import code_fingerprint  # torch is an optional dependency

        files["backbone code"] = code_fingerprint(model.backbone)
    return files


def current_study_inputs(experiment: Experiment, runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Returns the inputs of now of each study that an experiment may have, by the first part of the study's name.

    ``runs`` are those of the blend. ``experiment`` is as for `gbdt_study_inputs`.
    """
    config = experiment.config
    tables = source_names(config.stackers)
    seen = [run for run in runs if run.meta["level"] == 1 or run.name in tables]
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    models = [model for model in config.image_models if model.enabled]
    return {
        "blend": blend_study_inputs(experiment, runs),
        **{f"gbdt-{stacker.name}": gbdt_study_inputs(experiment, stacker, seen) for stacker in stackers},
        **{f"image-{model.name}": image_study_inputs(experiment, model) for model in models},
    }


def changed_inputs(noted: Inputs, now: Inputs) -> list[str]:
    """Returns in words what differs between the inputs that a study noted and those of now; [] for a fresh study.

    Files count only where both name them, and a model's own values of what is tuned do not count.
    """
    noted = {name: value for name, value in NOTED_LATER.items() if name in now} | dict(noted)
    passed_over = {_FIRST_TRIAL, *(name for name in FILE_INPUTS if name not in now or name not in noted)}
    names = [name for name in {**noted, **now} if noted.get(name) != now.get(name) and name not in passed_over]
    common = set(noted) & set(now)
    words = [_in_words(name, noted.get(name, ""), now.get(name, "")) for name in names if name in common]
    words += [name for name in names if name not in common and not name.startswith(_PREDICTIONS)]
    if runs := [word.removeprefix(_PREDICTIONS) for word in words if word.startswith(_PREDICTIONS)]:
        words = [word for word in words if not word.startswith(_PREDICTIONS)]
        words.append(_PREDICTIONS + first_of(runs))
    return words


def _common(experiment: Experiment) -> dict[str, str]:
    return {
        "objective": experiment.config.objective,
        "rows or folds": experiment.rows_fingerprint,
        "seed": str(experiment.config.seed),
    }


def _out_of_fold_files(run: Run) -> dict[str, str]:
    """Returns the hashes of a run's files without its test predictions and embeddings, which no study reads."""
    return {file: digest for file, digest in run.meta["files"].items() if not file.startswith("test")}


def _in_words(name: str, noted: str, now: str) -> str:
    if name == "runs":
        before, after = noted.split(", "), now.split(", ")
        added, lost = [run for run in after if run not in before], [run for run in before if run not in after]
        told = [f"{what} {first_of(found)}" for what, found in (("without", added), ("with", lost)) if found]
        return f"runs ({'; '.join(told) or 'in another order'})"
    if _FINGERPRINT.fullmatch(noted) or _FINGERPRINT.fullmatch(now):
        return name
    return f"{name} ({noted}, now {now})"
