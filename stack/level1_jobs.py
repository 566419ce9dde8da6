"""Level-1 tasks run here, in several processes or on a Ray cluster, and their folds put together into one run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from image_models.processes import in_processes
from stack.config import Config, Ray
from stack.console import Out
from stack.errors import ConfigError
from stack.experiment import Experiment
from stack.level1_folds import ANEW, FoldTask, stored_features
from stack.parallel import count_gpus, own_device
from stack.store import LOCK, Run, atomic, locked, places, prediction_frame, read_run, write_run

LET_GO_S = 10.0


def run_tasks(tasks: list[FoldTask], config: Config, out: Out) -> Iterator[FoldTask]:
    """Run the tasks as ``config`` says; each is yielded, in order, when its fold is complete on disk."""
    if config.backend == "ray":
        yield from _on_ray(tasks, config, out)
        return
    n_jobs = count_gpus(config.device) or config.n_jobs
    if n_jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            with out.bar(task.label, task.work) as progress:
                run_task(task, config.device, progress, out.say)
            yield task
        return
    jobs = in_processes((partial(_run_beside_others, task, config.device, quiet=out.quiet) for task in tasks), n_jobs)
    for task, _ in zip(tasks, jobs, strict=True):
        yield task


def run_task(task: FoldTask, device: str, progress: Callable[[int], object], say: Callable[[str], object]) -> None:
    """Fit, then write the parts, then the fold's run.json: a kill in between costs an epoch of this fold alone.

    The fold is locked meanwhile: a worker of a killed process may need a moment to notice and let go of it.
    """
    with locked(task.folder, wait=LET_GO_S):
        _fit_and_write(task, device, progress, say)


def _fit_and_write(
    task: FoldTask, device: str, progress: Callable[[int], object], say: Callable[[str], object]
) -> None:
    started = time.monotonic()
    for stale in task.folder.glob("*.safetensors"):  # of other seeds, in a fold that was never finished
        stale.unlink()
    settings: dict[str, Any] = {}
    if task.trains:
        settings = {"device": device, "say": lambda line: say(f"{task.label}: {line}")}
    made = task.fit(weights=task.folder, progress=progress, **settings)
    predictions = dict(made.predictions)
    if task.anchors_of_test is not None:
        predictions["anchor"] = predictions["test"].take(task.anchors_of_test)
    frames = {name: prediction_frame(ids, task.fold, predictions[name].logit) for name, ids in task.ids.items()}
    if made.seed_logits["oof"].shape[1] > 1:
        columns = [f"logit_{number}" for number in range(made.seed_logits["oof"].shape[1])]
        frames["oof_seeds"] = pd.DataFrame(made.seed_logits["oof"], columns=columns).assign(
            id=task.ids["oof"].to_numpy()
        )
    arrays = {f"{name}_z": predictions[name].z for name in task.ids} if task.trains else {}
    write_run(task.folder / "parts", task.meta | {"sets": list(frames)}, frames=frames, arrays=arrays)
    with atomic(task.folder / "history.csv") as temporary:
        made.history.to_csv(temporary, index=False)
    files = [*task.folder.glob("*.safetensors"), task.folder / "history.csv"]
    if task.encoder is not None:
        with atomic(task.folder / "metadata.json") as temporary:
            temporary.write_text(task.encoder, encoding="utf-8")
        files.append(task.folder / "metadata.json")
    seconds = time.monotonic() - started + made.seconds_before
    write_run(task.folder, task.meta | {"seconds": seconds}, frames={}, beside=sorted(files))
    for state in task.folder.glob("state_*.pt"):
        state.unlink()


def is_complete(task: FoldTask) -> bool:
    """Whether the fold is on disk with what its run is put together from; that goes when the run is complete."""
    return None not in (read_run(task.folder), read_run(task.folder / "parts"))


def put_together(experiment: Experiment, task: FoldTask) -> Run:
    """One run out of its complete folds: rows in table order, then run.json, then what only unfinished folds need."""
    folder = task.folder.parent
    folds = [fold for k in range(experiment.folds.k) if (fold := read_run(folder / f"fold_{k}"))]
    parts = [part for k in range(experiment.folds.k) if (part := read_run(folder / f"fold_{k}" / "parts"))]
    assert len(folds) == len(parts) == experiment.folds.k, f"{folder} is put together before its folds are complete"

    frames = {
        name: pd.concat([part.frame(name) for part in parts], ignore_index=True) for name in parts[0].meta["sets"]
    }
    order = places(experiment.table.train["id"], frames["oof"]["id"], f"the rows of {folder}")
    for name in ("oof", "oof_seeds"):
        if name in frames:
            frames[name] = frames[name].iloc[order]
    if task.trains:
        arrays = {f"{name}_z": np.concatenate([part.array(f"{name}_z") for part in parts]) for name in task.ids}
        arrays["oof_z"] = arrays["oof_z"][order]
    else:
        arrays = {
            f"{name}_z": stored_features(folder, part).array("z") for name, part in (("oof", "train"), ("test", "test"))
        }
    features = [] if task.trains else [stored_features(folder, part) for part in ("train", "test")]
    seconds = round(sum(part.meta["seconds"] for part in (*folds, *features)), 1)
    backbone = sorted(folder.glob("*.safetensors"))  # a frozen run's, beside its folds
    run = write_run(folder, task.meta | {"seconds": seconds}, frames=frames, arrays=arrays, beside=backbone)
    drop_unfinished(folder)
    return run


def drop_unfinished(folder: Path) -> None:
    """What a complete run has no more use for: parts, features, states of its training, what a kill left of a write."""
    for part in (folder / "features", *folder.glob("fold_*/parts")):
        shutil.rmtree(part, ignore_errors=True)
    for pattern in ("fold_*/state_*.pt", f"fold_*/{LOCK}", ".*.tmp", "fold_*/.*.tmp", ANEW):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def _run_beside_others(task: FoldTask, device: str, *, quiet: bool) -> None:
    out = Out(quiet=quiet)
    with own_device(device) as mine, out.plain_bar(task.label, task.work) as progress:
        run_task(task, mine, progress, out.say)


def _on_ray(tasks: Sequence[FoldTask], config: Config, out: Out) -> Iterator[FoldTask]:
    """Every task a Ray task with its resources; one whose worker or node is lost runs again, from its last epoch."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "`backend: ray` needs Ray: pip install 'dermstack[ray]', or set `backend: processes`"
        ) from error
    started = not ray.is_initialized()
    if started:
        _connect(config.ray)
    device = config.device if config.ray.gpus else "cpu"  # Ray hides no GPU from tasks that reserved none
    try:
        _check_resources(config.ray, out)
        remote = ray.remote(_run_beside_others).options(
            num_cpus=config.ray.cpus, num_gpus=config.ray.gpus, max_retries=config.ray.retries
        )
        waiting = [remote.remote(task, device, quiet=out.quiet) for task in tasks]
        for task, reference in zip(tasks, waiting, strict=True):
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # what the task itself raised
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise ConfigError(
                    f"{task.label} was lost with its worker {config.ray.retries + 1} times "
                    f"({' '.join(str(error).split())[:200]}): the same command resumes it"
                ) from error
            yield task
    finally:
        if started:
            ray.shutdown()


def _connect(settings: Ray) -> None:
    import ray

    try:
        ray.init(address=settings.address, log_to_driver=True, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address {settings.address}: no Ray cluster answers ({' '.join(str(error).split())[:200]}): start one "
            "with `ray start --head`, or drop the key for one on this machine"
        ) from error


def _check_resources(settings: Ray, out: Out) -> None:
    """A task that fits no node waits for one; on a cluster that this command started for itself, for ever."""
    import ray

    wanted = {"CPU": settings.cpus, "GPU": settings.gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes):
        return
    has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    said = f"a task reserves ray.cpus {settings.cpus:g} and ray.gpus {settings.gpus:g}, and no node has as many ({has})"
    if settings.address is None:
        raise ConfigError(f"{said}: lower them, or name a larger cluster in ray.address")
    out.warn(f"{said}: tasks wait until one joins")
