"""Trained nets as artefacts: each has a fingerprint of its own, so that a changed run takes over the nets it shares.

A run's fingerprint covers all its settings. A net's covers only what its training saw: not the other seeds, not the
test-time augmentation and no label. A run that is made again with more seeds or other views therefore trains only the
nets that are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from image_models.files import apply_umask, atomic_write
from stack.errors import StoreError
from stack.store import Run, fingerprint, read_run, set_aside, write_run

_NON_NET_INPUTS = {"settings", "selection"}  # inputs of a run; of its settings a net's fingerprint holds those it needs
_NON_TRAINING_SETTINGS = {"name", "seeds", "tta"}


@dataclass(frozen=True)
class StoredNet:
    """A trained net on disk: its two files, checked against their hashes."""

    weights: Path
    history: pd.DataFrame  # one row an epoch, as text
    seconds: float


def net_meta(inputs: Mapping[str, str], settings: Mapping[str, Any], *, fold: int, seed: int) -> dict[str, Any]:
    """What the run.json of a net says, given the run's ``inputs`` and ``settings``.

    ``seed`` is the net's own: the model's plus the experiment's.
    """
    training = {name: value for name, value in settings.items() if name not in _NON_TRAINING_SETTINGS}
    made_of = {name: value for name, value in inputs.items() if name not in _NON_NET_INPUTS}
    made_of |= {"training": fingerprint(training), "fold": str(fold), "net seed": str(seed)}
    return {"fingerprint": fingerprint(made_of), "level": 1, "kind": "net", "inputs": made_of}


def complete_net(folder: Path, fingerprint: str) -> Run | None:
    """The net in its folder, if it is complete and of this fingerprint."""
    run = read_run(folder)
    return run if run is not None and run.meta["fingerprint"] == fingerprint else None


def stored_nets(fold_folder: Path, fold: int) -> dict[str, StoredNet]:
    """The complete nets of one fold, by fingerprint. Raises StoreError for a file that has changed since.

    In runs made by dermstack 0.1 the nets lie side by side in the fold's folder and have no run.json of their own.
    """
    try:
        found = [read_run(folder) for folder in sorted(fold_folder.glob("seed_*"))]
        of_fold = read_run(fold_folder)
    except StoreError:  # damaged, and perhaps set aside for it
        return {}
    nets = {
        run.meta["fingerprint"]: StoredNet(
            run.verified_path("weights.safetensors"), _read_history(run), run.meta["seconds"]
        )
        for run in found
        if run is not None
    }
    if of_fold is None or "weights.safetensors" not in of_fold.meta["files"] or of_fold.meta["kind"] != "image":
        return nets
    inputs, settings = of_fold.meta["inputs"], of_fold.meta["settings"]
    history = _read_history(of_fold)
    for number, seed in enumerate(settings["seeds"]):
        own = seed + int(inputs.get("seed", 0))
        meta = net_meta(inputs, settings, fold=fold, seed=own)
        weights = of_fold.verified_path("weights.safetensors" if number == 0 else f"weights_{own}.safetensors")
        seconds = of_fold.meta["seconds"] / len(settings["seeds"])
        nets[meta["fingerprint"]] = StoredNet(
            weights, history[history["seed"] == str(own)].drop(columns="seed"), seconds
        )
    return nets


def set_aside_for(
    folder: Path, old: Path, inputs: Mapping[str, str], wanted: Mapping[tuple[int, int], Mapping[str, Any]]
) -> tuple[Path, int] | None:
    """Move the run in ``folder`` to ``old``, and give its successor the nets that it shares with runs set aside.

    ``inputs`` are those of the successor, ``wanted`` what the run.json of each of its nets will say, by fold and seed.
    A run that was already made of ``inputs``, or that can't be read, is to be made anew: its successor gets no net.
    Returns where the old run is kept and how many nets were taken over; None where nothing was moved, since the run is
    incomplete and all there is of it was made of ``inputs``: it was interrupted, and goes on.
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
    """Do the last step of a `set_aside_for` that was killed after it had moved the old run."""
    if not folder.exists() and (successor := _successor(folder)).is_dir():
        successor.rename(folder)


def _successor(folder: Path) -> Path:
    """Where the new run is prepared, before it takes the place of the old one."""
    return folder.with_name(f".{folder.name}.successor")


def _take_over(successor: Path, sources: list[Path], wanted: Mapping[tuple[int, int], Mapping[str, Any]]) -> int:
    """Link the wanted nets that ``sources`` hold into the folder of a run that is to be made; how many there were."""
    taken = 0
    for fold in sorted({fold for fold, _ in wanted}):
        stored = {key: net for source in sources for key, net in stored_nets(source / f"fold_{fold}", fold).items()}
        for (of_fold, seed), meta in wanted.items():
            net = stored.get(meta["fingerprint"]) if of_fold == fold else None
            if net is None:
                continue
            folder = successor / f"fold_{fold}" / f"seed_{seed}"
            folder.mkdir(parents=True)
            weights, history = folder / "weights.safetensors", folder / "history.csv"
            _link(net.weights, weights)
            with atomic_write(history) as partial:
                net.history.to_csv(partial, index=False)
                apply_umask(partial)
            write_run(folder, {**meta, "seconds": net.seconds}, frames={}, existing_files=[history, weights])
            taken += 1
    return taken


def _read_history(run: Run) -> pd.DataFrame:
    return pd.read_csv(
        run.verified_path("history.csv"), dtype=str
    )  # text, so that it is written again with the same digits


def _link(source: Path, target: Path) -> None:
    """The same file under another name, as finished files are never edited; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
