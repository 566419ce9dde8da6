"""Trained nets as artefacts with their own fingerprints, so that a changed run reuses the nets that are still valid.

A run's fingerprint covers all its settings. A net's fingerprint covers only the inputs of its training: not the other
seeds, the test-time augmentation or whether the settings were selected on these rows. A run that is rebuilt with more
seeds or other views therefore trains only the missing nets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermstack.errors import StoreError
from dermstack.files import apply_umask, atomic_write
from image_models.net_files import HISTORY, WEIGHTS, net_folder, weights_beside
from stack.store import Run, fingerprint, read_run, set_aside, write_run

_NON_NET_INPUTS = {"settings", "selection"}  # inputs of a run only; a net has the input "training" instead
_NON_TRAINING_SETTINGS = {"name", "seeds", "tta"}


@dataclass(frozen=True)
class StoredNet:
    """A trained net on disk, whose two files were checked against their hashes."""

    weights: Path
    history: pd.DataFrame  # one row an epoch, values as text
    seconds: float  # training time


def net_meta(inputs: Mapping[str, str], settings: Mapping[str, Any], *, fold: int, seed: int) -> dict[str, Any]:
    """Returns the run.json of a net (without files and seconds), given the run's ``inputs`` and ``settings``.

    ``seed`` is the net's own seed: the model's plus the experiment's.
    """
    training = {name: value for name, value in settings.items() if name not in _NON_TRAINING_SETTINGS}
    made_of = {name: value for name, value in inputs.items() if name not in _NON_NET_INPUTS}
    made_of |= {"training": fingerprint(training), "fold": str(fold), "net seed": str(seed)}
    return {"fingerprint": fingerprint(made_of), "level": 1, "kind": "net", "inputs": made_of}


def stored_nets(fold_folder: Path, fold: int) -> dict[str, StoredNet]:
    """Returns the complete nets of one fold, by fingerprint; none where a run.json is damaged.

    In runs of dermstack 0.1 the nets lie together in the fold's folder and have no run.json of their own. Raises
    StoreError for a weights or history file that has changed.
    """
    try:
        found = [read_run(folder) for folder in sorted(fold_folder.glob("seed_*"))]
        of_fold = read_run(fold_folder)
    except StoreError:  # a damaged run may have been set aside
        return {}
    nets = {
        run.meta["fingerprint"]: StoredNet(run.verified_path(WEIGHTS), _read_history(run), run.meta["seconds"])
        for run in found
        if run is not None
    }
    if of_fold is None or WEIGHTS not in of_fold.meta["files"] or of_fold.meta["kind"] != "image":
        return nets
    inputs, settings = of_fold.meta["inputs"], of_fold.meta["settings"]
    history = _read_history(of_fold)
    for number, seed in enumerate(settings["seeds"]):
        own = seed + int(inputs.get("seed", 0))
        meta = net_meta(inputs, settings, fold=fold, seed=own)
        weights = of_fold.verified_path(weights_beside(number, own))
        seconds = of_fold.meta["seconds"] / len(settings["seeds"])
        nets[meta["fingerprint"]] = StoredNet(
            weights, history[history["seed"] == str(own)].drop(columns="seed"), seconds
        )
    return nets


def set_aside_for(
    folder: Path, old: Path, inputs: Mapping[str, str], wanted: Mapping[tuple[int, int], Mapping[str, Any]]
) -> tuple[Path, int] | None:
    """Moves the run in ``folder`` to ``old`` and links the nets that its successor can reuse into a new ``folder``.

    Nets of this run and of runs set aside before are reused. ``inputs`` are those of the successor; ``wanted`` is the
    run.json of each of its nets, by fold and seed. A run that was made from the same ``inputs``, or that cannot be
    read, is to be trained again: its successor gets no net. Returns the new place of the old run and the number of
    reused nets; None where nothing was moved, because the run is an incomplete one from ``inputs``, which continues.
    """
    try:
        made_of = [run.meta["inputs"] for part in (folder, *folder.glob("fold_*")) if (run := read_run(part))]
        if read_run(folder) is None and all(part == inputs for part in made_of):
            return None
        retrain = inputs in made_of
    except StoreError:
        retrain = True
    successor = _successor(folder)
    shutil.rmtree(successor, ignore_errors=True)
    successor.mkdir()
    taken = 0 if retrain else _take_over(successor, [folder, *sorted(old.glob(f"{folder.name}-*"))], wanted)
    kept = set_aside(folder, old)
    assert kept is not None, "the folder exists"
    successor.rename(folder)
    return kept, taken


def finish_set_aside(folder: Path) -> None:
    """Does the last step of a `set_aside_for` that was killed after it had moved the old run."""
    if not folder.exists() and (successor := _successor(folder)).is_dir():
        successor.rename(folder)


def _successor(folder: Path) -> Path:
    """Returns the folder in which the new run is prepared before it replaces the old one."""
    return folder.with_name(f".{folder.name}.successor")


def _take_over(successor: Path, sources: list[Path], wanted: Mapping[tuple[int, int], Mapping[str, Any]]) -> int:
    """Links the wanted nets found in ``sources`` into the folder ``successor``; returns their number."""
    taken = 0
    for fold in sorted({fold for fold, _ in wanted}):
        stored = {key: net for source in sources for key, net in stored_nets(source / f"fold_{fold}", fold).items()}
        for (of_fold, seed), meta in wanted.items():
            net = stored.get(meta["fingerprint"]) if of_fold == fold else None
            if net is None:
                continue
            folder = net_folder(successor / f"fold_{fold}", seed)
            folder.mkdir(parents=True)
            weights, history = folder / WEIGHTS, folder / HISTORY
            _link(net.weights, weights)
            with atomic_write(history) as partial:
                net.history.to_csv(partial, index=False)
                apply_umask(partial)
            write_run(folder, {**meta, "seconds": net.seconds}, frames={}, existing_files=[history, weights])
            taken += 1
    return taken


def _read_history(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.verified_path(HISTORY), dtype=str)  # as text, so that a copy has the same digits


def _link(source: Path, target: Path) -> None:
    """Makes a hard link, which is safe as finished files are never edited; a copy where the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
