"""The (model, fold) tasks of level 1: made, run one or several at a time, and put together into one run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.config import ImageModel
from stack.console import Out
from stack.experiment import Experiment
from stack.folds import inner_split
from stack.store import Run, fingerprint, prediction_frame, read_run, write_run

if TYPE_CHECKING:  # the image half is an extra, imported when a command needs it
    from image_models.cache import ImageCache
    from image_models.fit import FoldFit

MAX_ANCHORS = 2_000
MIN_TEST_ANCHORS = 500  # alignment keeps a fifth of the anchors as dimensions: fewer test rows say too little


@dataclass(frozen=True)
class FoldTask:
    """One fold of one model, small enough to be sent to a process."""

    folder: Path  # …/models/<name>/fold_<k>
    fold: int
    fit: Callable[..., FoldFit]  # called with weights=folder, progress=…
    work: int  # images that go through the network
    ids: dict[str, pd.Series[str]]  # of each predicted set: oof, test, anchor
    anchors_of_test: NDArray[np.intp] | None  # which test rows are the anchors, where they are test rows
    keep_z: bool
    meta: dict[str, Any]

    @property
    def label(self) -> str:
        """As progress names it."""
        return f"{self.folder.parent.name} fold {self.fold}"


def trained_tasks(
    experiment: Experiment, model: ImageModel, cache: ImageCache, inputs: dict[str, str], out: Out
) -> list[FoldTask]:
    """Tasks that fine-tune a net each."""
    from image_models.fit import fit_fold

    config, target = experiment.config, experiment.target
    train_ids, test_ids = experiment.table.train["id"], experiment.table.test["id"]
    rows, test_rows = cache.rows_for(train_ids), cache.rows_for(test_ids)
    external, external_target = cache.rows_for(experiment.external["id"]), _external_target(experiment)
    part, anchors = _anchors(len(train_ids), len(test_ids), seed=config.seed)
    tasks = []
    for fold, train, held in experiment.folds.pairs():
        sets = {"oof": rows[held], "test": test_rows}
        ids = {"oof": train_ids.iloc[held], "test": test_ids}
        if part == "train":
            sets["anchor"] = rows[anchors]
        ids["anchor"] = (train_ids if part == "train" else test_ids).iloc[anchors]
        fit = partial(
            fit_fold,
            cache,
            np.concatenate([rows[train], external]),
            np.concatenate([target[train], external_target]),
            sets,
            augment=model.augment,
            epochs=model.epochs,
            lr=model.lr,
            weight_decay=model.weight_decay,
            seeds=[seed + config.seed for seed in model.seeds],
            **_network_settings(experiment, model),
        )
        tasks.append(
            FoldTask(
                folder=experiment.models / model.name / f"fold_{fold}",
                fold=fold,
                fit=fit,
                work=len(model.seeds) * (model.epochs * (len(train) + len(external)) + sum(map(len, sets.values()))),
                ids=ids,
                anchors_of_test=anchors if part == "test" else None,
                keep_z=True,
                meta=_meta(model, inputs) | {"anchors": part},
            )
        )
    return tasks


def frozen_tasks(
    experiment: Experiment, model: ImageModel, cache: ImageCache, inputs: dict[str, str], out: Out
) -> list[FoldTask]:
    """Tasks that fit a logistic head each, on features that are made once, here, before the first of them."""
    from image_models.fit import fit_frozen_fold

    train_z, test_z = (_features(experiment, model, cache, part, inputs, out) for part in ("train", "test"))
    target, external_target = experiment.target, _external_target(experiment)
    external_z = train_z[:0]
    if len(external_target):
        external_z = _features(experiment, model, cache, "external", inputs, out)
    tasks = []
    for fold, train, held in experiment.folds.pairs():
        inner = inner_split(target[train], experiment.split_group[train], seed=experiment.config.seed)
        sets = {"oof": train_z[held], "test": test_z}
        tasks.append(
            FoldTask(
                folder=experiment.models / model.name / f"fold_{fold}",
                fold=fold,
                fit=partial(
                    fit_frozen_fold,
                    np.concatenate([train_z[train], external_z]),
                    np.concatenate([target[train], external_target]),
                    np.concatenate([inner, np.zeros(len(external_target), bool)]),  # chosen on rows like those scored
                    sets,
                    threads=experiment.config.threads,
                ),
                work=len(train) + len(external_target),
                ids={"oof": experiment.table.train["id"].iloc[held], "test": experiment.table.test["id"]},
                anchors_of_test=None,
                keep_z=False,
                meta=_meta(model, inputs),
            )
        )
    return tasks


def run_tasks(tasks: list[FoldTask], *, n_jobs: int, out: Out) -> Iterator[FoldTask]:
    """Run the tasks, ``n_jobs`` at a time; each is yielded, in order, when its fold is complete on disk."""
    if n_jobs == 1:
        for task in tasks:
            with out.bar(task.label, task.work) as progress:
                _run_task(task, progress)
            yield task
        return
    jobs = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(
        joblib.delayed(_run_beside_others)(task, quiet=out.quiet) for task in tasks
    )
    for task, _ in zip(tasks, jobs, strict=True):
        yield task


def put_together(experiment: Experiment, task: FoldTask) -> Run:
    """One run out of its complete folds: rows in table order, then run.json, then the fold's parts are dropped."""
    folder = task.folder.parent
    folds = [fold for k in range(experiment.folds.k) if (fold := read_run(folder / f"fold_{k}"))]
    parts = [part for k in range(experiment.folds.k) if (part := read_run(folder / f"fold_{k}" / "parts"))]
    assert len(folds) == len(parts) == experiment.folds.k, f"{folder} is put together before its folds are complete"

    frames = {
        name: pd.concat([part.frame(name) for part in parts], ignore_index=True) for name in parts[0].meta["sets"]
    }
    order = pd.Index(frames["oof"]["id"]).get_indexer(pd.Index(experiment.table.train["id"]))
    for name in ("oof", "oof_seeds"):
        if name in frames:
            frames[name] = frames[name].iloc[order]
    if task.keep_z:
        arrays = {f"{name}_z": np.concatenate([part.array(f"{name}_z") for part in parts]) for name in task.ids}
        arrays["oof_z"] = arrays["oof_z"][order]
    else:
        arrays = {
            f"{name}_z": _stored_features(folder, part).array("z")
            for name, part in (("oof", "train"), ("test", "test"))
        }
    features = [] if task.keep_z else [_stored_features(folder, part) for part in ("train", "test")]
    seconds = round(sum(part.meta["seconds"] for part in (*folds, *features)), 1)
    run = write_run(folder, task.meta | {"seconds": seconds}, frames=frames, arrays=arrays)
    for k in range(experiment.folds.k):
        shutil.rmtree(folder / f"fold_{k}" / "parts")
    shutil.rmtree(folder / "features", ignore_errors=True)
    return run


def _run_beside_others(task: FoldTask, *, quiet: bool) -> None:
    with Out(quiet=quiet).plain_bar(task.label, task.work) as progress:
        _run_task(task, progress)


def _run_task(task: FoldTask, progress: Callable[[int], object]) -> None:
    """Fit, then write the parts, then the fold's run.json: a kill in between costs this fold alone."""
    started = time.monotonic()
    task.folder.mkdir(parents=True, exist_ok=True)
    made = task.fit(weights=task.folder, progress=progress)
    predictions = dict(made.predictions)
    if task.anchors_of_test is not None:
        predictions["anchor"] = predictions["test"].take(task.anchors_of_test)
    frames = {name: prediction_frame(ids, task.fold, predictions[name].logit) for name, ids in task.ids.items()}
    if made.seed_logits["oof"].shape[1] > 1:
        columns = [f"logit_{number}" for number in range(made.seed_logits["oof"].shape[1])]
        frames["oof_seeds"] = pd.DataFrame(made.seed_logits["oof"], columns=columns).assign(
            id=task.ids["oof"].to_numpy()
        )
    arrays = {f"{name}_z": predictions[name].z for name in task.ids} if task.keep_z else {}
    write_run(task.folder / "parts", task.meta | {"sets": list(frames)}, frames=frames, arrays=arrays)
    made.history.to_csv(task.folder / "history.csv", index=False)
    files = [*task.folder.glob("*.safetensors"), task.folder / "history.csv"]
    write_run(task.folder, task.meta | {"seconds": time.monotonic() - started}, frames={}, beside=sorted(files))


def _features(
    experiment: Experiment, model: ImageModel, cache: ImageCache, part: str, inputs: dict[str, str], out: Out
) -> NDArray[np.float16]:
    """A frozen backbone's features of the train or test rows, made once and read back."""
    folder = experiment.models / model.name
    stored = read_run(folder / "features" / part)
    if stored is None or stored.meta["inputs"] != inputs:
        from image_models.fit import embed

        frame = {"train": experiment.table.train, "test": experiment.table.test, "external": experiment.external}[part]
        rows = cache.rows_for(frame["id"])
        started = time.monotonic()
        with out.bar(f"{model.name} features of the {part} rows", len(rows)) as progress:
            z = embed(
                cache, rows, seed=model.seeds[0] + experiment.config.seed, weights=folder, progress=progress,
                **_network_settings(experiment, model),
            )  # fmt: skip
        meta = _meta(model, inputs) | {"seconds": time.monotonic() - started}
        write_run(folder / "features" / part, meta, frames={}, arrays={"z": z})
    return _stored_features(folder, part).array("z")


def _external_target(experiment: Experiment) -> NDArray[np.int8]:
    return experiment.external["target"].to_numpy(np.int8)


def _stored_features(folder: Path, part: str) -> Run:
    stored = read_run(folder / "features" / part)
    assert stored is not None, f"{folder}/features/{part} is written before it is read"
    return stored


def _network_settings(experiment: Experiment, model: ImageModel) -> dict[str, Any]:
    config, normalise = experiment.config, model.normalise
    return {
        "backbone": model.backbone,
        "pretrained": model.pretrained,
        "timm_args": model.timm_args,
        "mean": normalise.mean if normalise else None,
        "std": normalise.std if normalise else None,
        "batch_size": model.batch_size,
        "device": config.device,
        "threads": config.threads,
        "workers": config.workers,
    }


def _meta(model: ImageModel, inputs: dict[str, str]) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint(inputs),
        "level": 1,
        "kind": "frozen" if model.frozen else "image",
        "inputs": inputs,
        "settings": model.model_dump(mode="json", exclude={"pretrained", "enabled"}),
    }


def _anchors(train: int, test: int, *, seed: int) -> tuple[str, NDArray[np.intp]]:
    """The fixed sample that every fold net embeds: test rows, which no net was trained on, where there are enough."""
    part, n = ("test", test) if test >= MIN_TEST_ANCHORS else ("train", train)
    chosen = np.random.default_rng(seed).choice(n, size=min(n, MAX_ANCHORS), replace=False)
    return part, np.sort(chosen)
