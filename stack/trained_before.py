"""Nets in runs that were set aside, which a run with more seeds or other views would only train once more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stack.errors import StoreError
from stack.experiment import Experiment
from stack.image_config import ImageModel
from stack.store import Run, read_run, set_aside

if TYPE_CHECKING:  # the image half is an extra, imported when a command needs it
    from image_models.fit import TrainedNet

_ANY = {"seeds", "tta", "name"}  # settings that say nothing of how one net is trained
_NOT_OF_TRAINING = {"settings", "selection"}  # inputs: what settings are is looked at one by one
ANEW = ".anew"  # in the folder of a run that shall take nothing over, until it is complete


def trained_before(
    experiment: Experiment, model: ImageModel, inputs: Mapping[str, str], settings: Mapping[str, Any], fold: int
) -> dict[int, TrainedNet]:
    """Nets of this fold in set-aside runs of the model, by seed, which training would make again byte by byte.

    Of runs that differ from the one to be made, of ``inputs`` and ``settings``, in seeds or views alone; none for a run
    that is wanted anew. Raises StoreError for a file that has changed since.
    """
    from image_models.fit import TrainedNet

    found: dict[int, TrainedNet] = {}
    if (experiment.models / model.name / ANEW).exists():
        return found
    for folder in sorted(experiment.old.glob(f"{model.name}-*")):
        run = _fold_of(folder, fold)
        if run is None or _of_training(run.meta["inputs"], run.meta["settings"]) != _of_training(inputs, settings):
            continue
        history = pd.read_csv(run.checked("history.csv"))
        for number, seed in enumerate(run.meta["settings"]["seeds"]):
            if seed in model.seeds:
                drawn = seed + experiment.config.seed
                weights = run.checked("weights.safetensors" if number == 0 else f"weights_{drawn}.safetensors")
                found[drawn] = TrainedNet(weights, history[history["seed"] == drawn])
    return found


def set_aside_for(folder: Path, old: Path, inputs: Mapping[str, str]) -> Path | None:
    """Move a run aside to be made of ``inputs``. Where it was made of these, nothing is taken over: it is wanted anew.

    So is a run that can't be read. Returns where it is kept; None where it isn't complete and all there is of it was
    made of these inputs: then its making was interrupted, and goes on.
    """
    try:
        made_of = [run.meta["inputs"] for part in (folder, *folder.glob("fold_*")) if (run := read_run(part))]
        if read_run(folder) is None and all(part == inputs for part in made_of):
            return None
        anew = inputs in made_of
    except StoreError:
        anew = True
    aside = set_aside(folder, old)
    if anew:
        folder.mkdir()
        (folder / ANEW).touch()
    return aside


def _fold_of(folder: Path, fold: int) -> Run | None:
    """That fold of a run set aside; None where it isn't complete, or is why the run was set aside: damaged."""
    try:
        return read_run(folder / f"fold_{fold}")
    except StoreError:
        return None


def _of_training(inputs: Mapping[str, str], settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    return (
        {name: value for name, value in inputs.items() if name not in _NOT_OF_TRAINING},
        {name: value for name, value in settings.items() if name not in _ANY},
    )
