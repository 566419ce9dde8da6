"""Writes the bundle of a finished experiment: fitted models are copied and checked, never fitted again."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dermstack.errors import BundleError, ImageError
from dermstack.serve.bundle import MANIFEST, Bundle, read_manifest_of, write_manifest, zip_bundle
from dermstack.serve.distilled import distilled
from dermstack.serve.expectations import COSTS_FILE, measure_costs, measure_promise, write_promise
from dermstack.serve.image_runs import encoded_metadata, fold_folder
from dermstack.serve.manifest_content import manifest_of
from dermstack.serve.novelty import fit_novelty, write_novelty
from dermstack.serve.questions import write_ranges
from dermstack.serve.review import review_entry
from dermstack.serve.stages import FEATURES, SECOND_FEATURES
from image_models.dataset import CachedImages
from image_models.net_files import BACKBONE, WEIGHTS, net_folder, weights_beside
from image_models.saved import read_fold_nets
from image_models.settings import is_own_backbone
from stack.console import Out
from stack.experiment import Experiment
from stack.fallback import FOLDER, fallback_inputs, write_state
from stack.images import with_images
from stack.level1.image_runs import level1_runs
from stack.level2.inputs import stacker_inputs, with_source_stackers
from stack.level2.stored_features import FEATURES_FILE
from stack.predictions.repeats import fold_name
from stack.settings.level2 import is_second_stage
from stack.store import LOCK_FILE, Run, error_with_path, locked, read_run, write_json
from stack.submission import blend_inputs

ONNX_FOLDER = "onnx"
CHECK_IMAGES = 32  # training images for the check of ONNX, evenly spaced over the rows


def add_onnx(experiment: Experiment, bundle: Bundle, out: Out) -> dict[str, Any]:
    """Writes ``onnx/<run>/fold_<k>.onnx`` for each fold network, ``fold_<k>_<seed>.onnx`` for those of further seeds.

    Returns the manifest's entry: opset and, by file, the differences between ONNX and torch on the images. Each file of
    a frozen run contains the backbone. Raises BundleError naming a network that cannot be exported or disagrees.
    """
    from image_models.onnx_export import OPSET, check_onnx, write_onnx  # an extra of its own

    experiment, caches = with_images(experiment, bundle.sizes, out)
    train = experiment.table.train
    rows = np.unique(np.linspace(0, len(train) - 1, CHECK_IMAGES).astype(np.intp))
    frame = train.iloc[rows].reset_index(drop=True)
    nets: dict[str, dict[str, float]] = {}
    with out.bar("onnx", len(bundle.image_runs) * bundle.folds, "folds") as progress:
        for run in bundle.image_runs:
            size, seeds = int(run.settings["size"]), run.settings["seeds"]
            cache = caches[size]
            for fold in range(bundle.folds):
                metadata = encoded_metadata(bundle, run, fold, frame)
                images = CachedImages(cache, cache.rows_for(frame["id"]), metadata=metadata)
                made = read_fold_nets(
                    fold_folder(bundle, run, fold), run.settings, positive=run.positive, metadata=metadata.shape[1],
                    read=bundle.read_path,
                )  # fmt: skip
                for place, net in enumerate(made):
                    name = f"{ONNX_FOLDER}/{run.name}/fold_{fold}{f'_{seeds[place]}' if place else ''}.onnx"
                    path = bundle.folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        write_onnx(net, path, size=size, metadata=metadata.shape[1])
                        differences = check_onnx(path, net, images)
                    except ImageError as error:
                        raise BundleError(f"{run.name}, fold {fold}, {run.settings['backbone']}: {error}") from error
                    nets[name] = {key: value for key, value in asdict(differences).items() if key != "images"}
                progress(1)
    return {"opset": OPSET, "torch": version("torch"), "pictures": len(rows), "differences": nets}


_PRIVATE_KEYS = {"runs", "cache", "storage", "tuned", "tracking"}  # paths and databases of the machine that trained


def write_bundle(
    experiment: Experiment,
    target: Path,
    out: Out,
    *,
    replace: bool = False,
    onnx: bool = False,
    only: str | None = None,
) -> Bundle:
    """Writes the bundle to ``target``, a folder or, if the name ends in .zip, a zip; complete or not at all.

    It holds weights as safetensors, GBDTs in their libraries' formats, the rest mostly as JSON and npy, and no row ids;
    with ``onnx`` the networks as ONNX too. ``only`` names an image model that is bundled alone, calibrated by itself
    (`dermstack.serve.distilled`). Raises BundleError if runs are missing or stale, if ``target`` exists
    already, and if ONNX and torch disagree.
    """
    if target.exists() and not replace:
        raise BundleError(f"{target} exists already: choose another name, or overwrite it with `--replace`")
    _check_replaceable(target)
    target = Path(os.path.realpath(target)) if target.is_symlink() else target
    whole, small = experiment, None
    if only is None:
        level1, stackers, blend = _finished_runs(experiment)
        image_runs = [run for run in level1 if run.meta["kind"] != "imported"]
        if onnx and not image_runs:
            raise BundleError(f"--onnx: {experiment.config_path} has no image model to export: leave out --onnx")
    else:
        _refuse_own_features(experiment)
        small = distilled(experiment, only, out)
        experiment, image_runs, stackers, blend = small.experiment, [small.run], [], small.blend
        level1 = image_runs
        out.say(small.described())
    config = experiment.config
    with staging_folder(target) as staging:
        folder = staging / "bundle"
        folder.mkdir()
        second = {one.name for one in config.stackers if is_second_stage(one, config.stackers)}
        with out.bar("bundle", len(image_runs) + len(stackers) + 1, "runs") as progress:
            for run in image_runs:
                _copy_image_run(run, experiment.folds.k, folder / "image_models" / run.name)
                progress(1)
            shifts = {}
            for run in stackers:
                shared = FEATURES if run.name not in second else SECOND_FEATURES
                shifts[run.name] = _copy_stacker(run, experiment.folds.k, folder, shared)
                progress(1)
            _copy_blend(blend, folder / "blend", [run.name for run in (*level1, *stackers)])
            progress(1)
        fallback = bool(image_runs) and _copy_fallback(whole, folder / FOLDER)
        _write_settings(experiment, folder / "config.yaml")
        if small is None and (card := experiment.folder / "model_card.md").is_file():  # the card is that of the blend
            _copy(card, folder)
        fitting = "fitting the novelty model and " if image_runs else ""
        out.say(f"bundle: {fitting}measuring the cost of missing columns …")
        if novelty := fit_novelty(experiment, image_runs):
            write_novelty(novelty, folder)
        write_promise(measure_promise(experiment, blend), folder)
        write_ranges(experiment, folder)
        manifest = manifest_of(experiment, level1, stackers, blend, shifts) | ({"fallback": True} if fallback else {})
        if small is not None:
            manifest["distilled"] = small.to_json()
        manifest |= review_entry(experiment, blend)
        if onnx:
            manifest["onnx"] = add_onnx(experiment, write_manifest(folder, manifest), out)
        costs = measure_costs(experiment, write_manifest(folder, manifest), level1, out)
        (folder / COSTS_FILE).write_text(json.dumps(costs, indent=1), encoding="utf-8")
        bundle = write_manifest(folder, manifest)
        read_manifest_of(folder)  # no bundle is written that its readers would refuse
        finished = folder
        if target.suffix == ".zip":
            finished = staging / target.name
            zip_bundle(bundle, finished)
        if target.is_dir():
            target.replace(staging / "replaced")
        finished.replace(target)
    return Bundle(target, bundle.manifest)


def _check_replaceable(target: Path) -> None:
    """Raises BundleError where ``target`` exists and is neither a bundle nor an empty folder."""
    if target.is_dir():
        is_bundle = (target / MANIFEST).is_file() or not any(target.iterdir())
    elif target.is_file():
        is_bundle = zipfile.is_zipfile(target) and target.suffix == ".zip"
        if is_bundle:
            with zipfile.ZipFile(target) as archive:
                is_bundle = any(Path(name).name == MANIFEST for name in archive.namelist())
    else:
        is_bundle = not target.exists()
    if not is_bundle:
        raise BundleError(
            f"{target} is not a bundle, so it is not replaced: choose another name, or remove {target} if it is not "
            "needed"
        )


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``target``; files that a killed process left there are removed first."""
    folder = target.with_name(f".{target.name}.making")
    with locked(folder):
        try:
            for left in folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != LOCK_FILE:
                    left.unlink()
            yield folder
        except OSError as error:
            raise error_with_path(error, target) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _finished_runs(experiment: Experiment) -> tuple[list[Run], list[Run], Run]:
    """Returns level 1, stackers and blend of the current config. Raises BundleError naming the command to run."""
    _refuse_own_features(experiment)
    again = f"run `{experiment.command('stack')}` first"
    level1 = level1_runs(experiment)
    image_runs = [run for run in level1 if run.meta["kind"] != "imported"]
    if not image_runs and experiment.config.all_features.shortcuts:
        raise BundleError(
            f"{experiment.config_path} has no image model, so its bundle reads no images, but features.shortcuts needs "
            "their width, height and bytes: remove the key, stack again and bundle then"
        )
    if own := [run for run in image_runs if is_own_backbone(run.meta["settings"]["backbone"])]:
        raise BundleError(
            f"{own[0].name}: its backbone {own[0].meta['settings']['backbone']} is your own code, which a bundle does "
            "not contain, because opening a bundle must run no code: set `enabled: false` for this model, stack again "
            "and bundle then"
        )
    stackers, sources = [], with_source_stackers(experiment, level1)
    for stacker in experiment.config.stackers:
        if stacker.enabled:
            if stacker.kind == "sklearn":
                raise BundleError(
                    f"{stacker.name}: {stacker.estimator} cannot be bundled, as scikit-learn writes its models as "
                    f"pickles, which run code when they are read: set `enabled: false` for {stacker.name} and run "
                    f"`{experiment.command('stack')}`, which blends without it"
                )
            run = read_run(experiment.models / stacker.name)
            if run is None or run.meta["inputs"] != stacker_inputs(experiment, stacker, sources):
                raise BundleError(f"{stacker.name} is {'stale' if run else 'missing'}: {again}")
            stackers.append(run)
    blend = read_run(experiment.folder / "blend")
    if blend is None or blend.meta["inputs"] != blend_inputs(experiment, [*level1, *stackers]):
        raise BundleError(f"the blend is {'stale' if blend else 'missing'}: {again}")
    if "blender" not in blend.meta:
        raise BundleError(f"{blend.folder} was made by an earlier dermstack: remove it and {again}")
    return level1, stackers, blend


def _refuse_own_features(experiment: Experiment) -> None:
    """Raises BundleError where features are the user's own code."""
    if experiment.config.features.python is not None:
        raise BundleError(
            f"features.python {experiment.config.features.python.name} is your own code, which a bundle does not "
            "contain, because opening a bundle must run no code: write the features as expressions in "
            "features.derived, or remove the key, stack again and bundle then"
        )


def _copy_image_run(run: Run, folds: int, folder: Path) -> None:
    """Copies weights and encoders of every fold network, and the backbone of a frozen run once."""
    if run.meta["kind"] == "frozen":
        # An earlier dermstack did not list the backbone among the files.
        _copy(run.verified_path(BACKBONE) if BACKBONE in run.meta["files"] else run.folder / BACKBONE, folder)
    for fold in range(folds):
        fold_run = read_run(run.folder / f"fold_{fold}")
        if fold_run is None:
            raise BundleError(f"{run.folder}/fold_{fold} is missing: run `dermstack oof --rebuild {run.name}`")
        for name in fold_run.meta["files"]:
            if name.endswith((".safetensors", ".json")):
                _copy(fold_run.verified_path(name), folder / f"fold_{fold}")
        for number, seed in enumerate(run.meta["settings"]["seeds"] if run.meta["kind"] == "image" else []):
            own = seed + int(run.meta["inputs"].get("seed", 0))
            place = net_folder(fold_run.folder, own)
            net = read_run(place)
            if net is None and place.exists():
                raise BundleError(f"{place}/run.json is missing: run `dermstack oof --rebuild {run.name}`")
            if net is not None:  # None: dermstack 0.1, copied above
                target = folder / f"fold_{fold}" / weights_beside(number, own)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(net.verified_path(WEIGHTS), target)


def _copy_stacker(run: Run, folds: int, bundle: Path, features: str) -> list[float]:
    """Copies the models of every fold, and what stackers share: alignment and, into the folder ``features``, features.

    Returns the logit shifts, those of the first repeat first.
    """
    shifts = []
    for name in run.meta["files"]:
        if name.endswith(".npy"):
            _copy_shared(run.verified_path(name), bundle / "alignment", run.name)
    for repeat, fold in product(range(run.meta["settings"].get("repeats", 1)), range(folds)):
        place = fold_name(repeat, fold)
        fold_run = read_run(run.folder / place)
        if fold_run is None:  # an earlier dermstack kept the models of the first repeat alone
            raise BundleError(f"{run.folder / place} is missing: remove {run.folder} and run `dermstack stack`")
        for name in fold_run.meta["files"]:
            if name == FEATURES_FILE or name.endswith(".npy"):
                _copy_shared(fold_run.verified_path(name), bundle / features / place, run.name)
            else:
                _copy(fold_run.verified_path(name), bundle / "stackers" / run.name / place)
        shifts.append(float(fold_run.meta["shift"]))
    return shifts


def _copy_blend(blend: Run, folder: Path, names: list[str]) -> None:
    """Copies the blend, with the runs that it weights where these are not all runs (`blend.runs`)."""
    for name in ("values", "ranks"):
        _copy(blend.verified_path(f"{name}.npy"), folder)
    of_some = {} if blend.meta["runs"] == names else {"runs": blend.meta["runs"]}
    write_json(folder / "blend.json", {**blend.meta["blender"], **of_some})
    write_json(folder / "calibration.json", blend.meta["calibrator"])


def _copy_fallback(experiment: Experiment, folder: Path) -> bool:
    """Copies the models of the fallback where the config declares one; returns whether it does."""
    if experiment.config.data.on_unreadable_test != "table":
        return False
    run = read_run(experiment.folder / FOLDER)
    if run is None or run.meta["inputs"] != fallback_inputs(experiment):
        raise BundleError(f"the fallback is {'stale' if run else 'missing'}: run `{experiment.command('stack')}` first")
    for fold in range(experiment.folds.k):
        fold_run = read_run(run.folder / f"fold_{fold}")
        if fold_run is None:
            raise BundleError(f"{run.folder}/fold_{fold} is missing: remove {run.folder} and run `dermstack stack`")
        for name in fold_run.meta["files"]:
            _copy(fold_run.verified_path(name), folder / f"fold_{fold}")
    write_state(folder, run)
    return True


def _write_settings(experiment: Experiment, path: Path) -> None:
    """Writes the config for people to read, without the paths of this machine."""
    settings = experiment.config.model_dump(mode="json", exclude=_PRIVATE_KEYS)
    settings["data"] = {key: value for key, value in settings["data"].items() if key in {"name", "columns", "resize"}}
    for model in settings["image_models"]:
        if isinstance(model["pretrained"], str):
            model["pretrained"] = Path(model["pretrained"]).name
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / source.name)


def _copy_shared(source: Path, folder: Path, stacker: str) -> None:
    """Copies a file that all stackers share. Raises BundleError if a stacker's file differs from the first one's."""
    there = folder / source.name
    if there.exists():
        if there.read_bytes() != source.read_bytes():
            raise BundleError(
                f"{stacker} was fitted on other features than the stackers before it: run `dermstack stack` again"
            )
        return
    _copy(source, folder)
