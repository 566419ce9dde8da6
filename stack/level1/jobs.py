"""Runs level-1 tasks in this process, in several processes or on a Ray cluster, and assembles their folds into runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, ImageError
from image_models.net_files import ENCODER, HISTORY, STATE, WEIGHTS, net_folder
from image_models.processes import WorkerDied, crash_named, explain_death, run_parallel
from image_models.settings import Callbacks, Compute, DoneBefore
from stack.console import Out
from stack.experiment import Experiment
from stack.level1.folds import FoldTask, FrozenFold, TrainedFold, read_stored_features
from stack.parallel import count_gpus, reserve_device
from stack.settings.config import Config, Ray
from stack.store import LOCK_FILE, Run, atomic, locked, prediction_frame, read_run, row_positions, write_run

if TYPE_CHECKING:  # torch is an optional dependency, imported only when a command needs it
    from image_models.predict import NetOutput

LOCK_TIMEOUT_S = 10.0


def run_tasks(tasks: list[FoldTask], config: Config, out: Out) -> Iterator[FoldTask]:
    """Runs the tasks on the config's backend; yields each, in order, when its fold is complete on disk."""
    if config.backend == "ray":
        yield from _on_ray(tasks, config, out)
        return
    n_jobs = count_gpus(config.device) or config.n_jobs
    if n_jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            with crash_named(_crash_in_this_process(task)), out.bar(task.label, task.images) as progress:
                run_task(task, config.device, progress, out.say)
            yield task
        return
    jobs = run_parallel((partial(_run_in_worker, task, config.device, quiet=out.quiet) for task in tasks), n_jobs)
    try:
        for task, _ in zip(tasks, jobs, strict=True):
            yield task
    except WorkerDied as error:
        raise ImageError(_worker_death(str(error), tasks, n_jobs)) from error


def _crash_in_this_process(task: FoldTask) -> str:
    return (
        f"{task.label} ({task.backbone}) crashed in compiled code ({{crash}}), which is a library's fault and no lack "
        f"of memory: {_crash_advice([task.backbone])}. The same command, run again, resumes"
    )


def _crash_advice(backbones: Sequence[str]) -> str:
    return f"update torch and timm, or change the backbone {' or '.join(backbones)}, its `size` or `device`"


def _worker_death(message: str, tasks: Sequence[FoldTask], n_jobs: int) -> str:
    """Says how a worker ended and with which networks; the tasks that were running are the first unfinished ones."""
    running = [task for task in tasks if not is_complete(task)][:n_jobs]
    backbones = sorted({task.backbone for task in running})
    names = ", ".join(f"{task.label} ({task.backbone})" for task in running)
    said = explain_death(
        message,
        memory_advice="lower `n_jobs`, or `batch_size` or `size` of the model",
        crash_advice=_crash_advice(backbones),
    )
    return f"{said}. Running were {names}; the same command, run again, resumes"


def run_task(task: FoldTask, device: str, progress: Callable[[int], object], say: Callable[[str], object]) -> None:
    """Fits the fold, then writes its parts, then its run.json; a kill in between loses at most one epoch of this fold.

    The fold is locked meanwhile. Waits up to `LOCK_TIMEOUT_S` for the lock, as the worker of a killed process may hold
    it for a moment.
    """
    with locked(task.folder, wait=LOCK_TIMEOUT_S):
        if isinstance(task.fit, TrainedFold):
            _train_and_write(task, task.fit, device, progress, lambda line: say(f"{task.label}: {line}"))
        else:
            _fit_head_and_write(task, task.fit, progress)


def _train_and_write(
    task: FoldTask,
    fit: TrainedFold,
    device: str,
    progress: Callable[[int], object],
    say: Callable[[str], object],
) -> None:
    """Trains the nets that are not complete yet, then predicts with all of them."""
    from image_models.fit import predict_fold

    _remove_other_nets(task.folder, fit)
    compute = Compute(device, fit.threads, fit.workers)
    seconds = sum(_complete_net(task.folder, fit, seed, compute, progress, say) for seed in fit.nets)
    started = time.monotonic()
    made = predict_fold(
        task.folder, task.meta["settings"], fit.cache, fit.sets, fit.metadata, positive=fit.data.positive,
        compute=compute, progress=progress,
    )  # fmt: skip
    predictions = dict(made.predictions)
    if task.anchors_of_test is not None:
        predictions["anchor"] = predictions["test"].take(task.anchors_of_test)
    seed_logits = made.seed_logits["oof"]
    if seed_logits.shape[1] > 1:
        columns = [f"logit_{number}" for number in range(seed_logits.shape[1])]
        spread = {"oof_seeds": pd.DataFrame(seed_logits, columns=columns).assign(id=task.ids["oof"].to_numpy())}
    else:
        spread = {}
    arrays = {f"{name}_z": predictions[name].z for name in task.ids}
    _write_parts(task, predictions, spread, arrays)
    files = []
    if fit.encoder is not None:
        files.append(task.folder / ENCODER)
        with atomic(files[0]) as temporary:
            temporary.write_text(fit.encoder, encoding="utf-8")
    seconds += time.monotonic() - started
    write_run(task.folder, task.meta | {"seconds": seconds}, frames={}, existing_files=files)


def _complete_net(
    fold: Path,
    fit: TrainedFold,
    seed: int,
    compute: Compute,
    progress: Callable[[int], object],
    say: Callable[[str], object],
) -> float:
    """Trains one net unless it is complete; returns its training time in seconds."""
    from image_models.fit import train_fold_net

    folder, meta = net_folder(fold, seed), fit.nets[seed]
    if (net := read_run(folder)) is not None:
        for file in (WEIGHTS, HISTORY):
            net.verified_path(file)
        progress(DoneBefore(fit.training.epochs * fit.data.learned))
        say(f"seed {seed} is trained already")
        return float(net.meta["seconds"])
    folder.mkdir(exist_ok=True)
    seconds = train_fold_net(
        fit.cache, fit.data, fit.network, fit.training, seed=seed, folder=folder, compute=compute,
        identity=meta["fingerprint"], callbacks=Callbacks(progress=progress, say=say),
    )  # fmt: skip
    write_run(folder, meta | {"seconds": seconds}, frames={}, existing_files=[folder / HISTORY, folder / WEIGHTS])
    (folder / STATE).unlink(missing_ok=True)
    return seconds


def _remove_other_nets(fold: Path, fit: TrainedFold) -> None:
    """Removes nets of other seeds or settings from an unfinished fold, because predictions use every net in it."""
    required = {net_folder(fold, seed): meta["fingerprint"] for seed, meta in fit.nets.items()}
    for folder in fold.glob("seed_*"):
        net = read_run(folder)
        if folder not in required or (net is not None and net.meta["fingerprint"] != required[folder]):
            shutil.rmtree(folder)


def _fit_head_and_write(task: FoldTask, fit: FrozenFold, progress: Callable[[int], object]) -> None:
    from image_models.fit import fit_frozen_fold

    started = time.monotonic()
    made = fit_frozen_fold(
        fit.z, fit.target, fit.inner, fit.sets, folder=task.folder, threads=fit.threads, progress=progress
    )
    _write_parts(task, made.predictions, {}, {})
    files = [task.folder / HISTORY, task.folder / WEIGHTS]
    write_run(task.folder, task.meta | {"seconds": time.monotonic() - started}, frames={}, existing_files=files)


def _write_parts(
    task: FoldTask,
    predictions: Mapping[str, NetOutput],
    further: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, NDArray[np.float16]],
) -> None:
    """Writes the fold's predictions, from which the run is assembled; ``further`` are additional frames."""
    frames = {name: prediction_frame(ids, task.fold, predictions[name].logit) for name, ids in task.ids.items()}
    frames |= further
    write_run(task.folder / "parts", task.meta | {"sets": list(frames)}, frames=frames, arrays=arrays)


def is_complete(task: FoldTask) -> bool:
    """Whether the fold and its parts, which are removed when the run is complete, are on disk."""
    return None not in (read_run(task.folder), read_run(task.folder / "parts"))


def assemble_run(experiment: Experiment, task: FoldTask) -> Run:
    """Assembles the run from its complete folds, with rows in table order, then removes the intermediate files."""
    folder = task.folder.parent
    folds = [fold for k in range(experiment.folds.k) if (fold := read_run(folder / f"fold_{k}"))]
    parts = [part for k in range(experiment.folds.k) if (part := read_run(folder / f"fold_{k}" / "parts"))]
    assert len(folds) == len(parts) == experiment.folds.k, f"{folder} is assembled before its folds are complete"

    frames = {
        name: pd.concat([part.frame(name) for part in parts], ignore_index=True) for name in parts[0].meta["sets"]
    }
    order = row_positions(experiment.table.train["id"], frames["oof"]["id"], f"the rows of {folder}")
    for name in ("oof", "oof_seeds"):
        if name in frames:
            frames[name] = frames[name].iloc[order]
    if isinstance(task.fit, TrainedFold):
        arrays = {f"{name}_z": np.concatenate([part.array(f"{name}_z") for part in parts]) for name in task.ids}
        arrays["oof_z"] = arrays["oof_z"][order]
    else:
        arrays = {
            f"{name}_z": read_stored_features(folder, part).array("z")
            for name, part in (("oof", "train"), ("test", "test"))
        }
    features = (
        [] if isinstance(task.fit, TrainedFold) else [read_stored_features(folder, part) for part in ("train", "test")]
    )
    seconds = round(sum(part.meta["seconds"] for part in (*folds, *features)), 1)
    backbone = sorted(folder.glob("*.safetensors"))  # weights of a frozen backbone, beside the folds
    run = write_run(folder, task.meta | {"seconds": seconds}, frames=frames, arrays=arrays, existing_files=backbone)
    remove_intermediates(folder)
    return run


def remove_intermediates(folder: Path) -> None:
    """Removes what a complete run no longer needs: parts, features, training states, locks and temporary files."""
    for part in (folder / "features", *folder.glob("fold_*/parts")):
        shutil.rmtree(part, ignore_errors=True)
    for pattern in ("fold_*/seed_*/state.pt", f"fold_*/{LOCK_FILE}", ".*.tmp", "fold_*/.*.tmp", "fold_*/seed_*/.*.tmp"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def _run_in_worker(task: FoldTask, device: str, *, quiet: bool) -> None:
    out = Out(quiet=quiet)
    with reserve_device(device) as mine, out.plain_bar(task.label, task.images) as progress:
        run_task(task, mine, progress, out.say)


def _on_ray(tasks: Sequence[FoldTask], config: Config, out: Out) -> Iterator[FoldTask]:
    """Runs every task as a Ray task with reserved resources; if its worker or node is lost, it resumes elsewhere."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "`backend: ray` needs Ray: pip install 'dermstack[ray]', or set `backend: processes`"
        ) from error
    started = not ray.is_initialized()
    if started:
        _connect(config.ray)
    device = config.device if config.ray.gpus else "cpu"  # Ray does not hide GPUs from tasks that reserved none
    try:
        _check_resources(config.ray, out)
        remote = ray.remote(_run_in_worker).options(
            num_cpus=config.ray.cpus, num_gpus=config.ray.gpus, max_retries=config.ray.retries
        )
        waiting = [remote.remote(task, device, quiet=out.quiet) for task in tasks]
        for task, reference in zip(tasks, waiting, strict=True):
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # the task itself raised its cause
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise ConfigError(
                    f"{task.label} ({task.backbone}) was lost with its worker {config.ray.retries + 1} times "
                    f"({' '.join(str(error).split())[:200]}): run the same command again to resume it"
                ) from error
            yield task
    finally:
        if started:
            ray.shutdown()


def _connect(settings: Ray) -> None:
    import ray

    try:
        ray.init(
            address=settings.address,
            log_to_driver=True,
            include_dashboard=False,
            # A worker looks into the driver's folder for modules: see dermstack/own_packages.py.
            runtime_env={"worker_process_setup_hook": "dermstack.own_packages.find_own_packages"},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address {settings.address}: no Ray cluster answers ({' '.join(str(error).split())[:200]}): start one "
            "with `ray start --head`, or remove the key to use a temporary cluster on this machine"
        ) from error


def _check_resources(settings: Ray, out: Out) -> None:
    """Checks that some node has the resources of a task; without one tasks wait, on a cluster of our own for ever.

    Raises ConfigError on a cluster that this command started; warns on another one, which more nodes may join.
    """
    import ray

    required = {"CPU": settings.cpus, "GPU": settings.gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(kind, 0) >= number for kind, number in required.items()) for node in nodes):
        return
    has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    said = f"a task reserves ray.cpus {settings.cpus:g} and ray.gpus {settings.gpus:g}, but no node has as many ({has})"
    if settings.address is None:
        raise ConfigError(f"{said}: lower them, or name a larger cluster in ray.address")
    out.warn(f"{said}: tasks wait until such a node joins")
