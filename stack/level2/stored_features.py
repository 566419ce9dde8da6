"""Writes the models and transforms of a fold, and makes its matrix with these again instead of fitting them.

Probes and importances describe a stacker that is complete: they see the features with which its models were fitted.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.level2.features import FoldFeatures, FoldMatrix, fold_matrix
from stack.predictions.joined import Embedding, Predictions
from stack.settings.level2 import Features, Stacker
from stack.store import Run, atomic, error_with_path, fingerprint, read_run, write_run
from tabular.models import Bag, write_bag

FEATURES_FILE = "features.json"


def write_fold(folder: Path, bag: Bag | None, features: FoldFeatures, meta: Mapping[str, Any]) -> None:
    """Writes one fold's models, if it has any, and the features' fitted transforms to ``folder``, as a run."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    folder.mkdir(parents=True)
    try:
        files = [] if bag is None else write_bag(bag, folder)
    except OSError as error:
        raise error_with_path(error, folder / "model") from error
    files.append(folder / FEATURES_FILE)
    with atomic(files[-1]) as temporary:
        temporary.write_text(features.to_json(), encoding="utf-8")
    write_run(folder, meta, frames={}, arrays=features.arrays(), existing_files=files)


def stored_fold(run: Run, fold: int) -> Run:
    """Returns what a complete stacker keeps of a fold; StoreError that names the next step where it is missing."""
    place = run.folder / f"fold_{fold}"
    kept = read_run(place)
    if kept is None:
        raise StoreError(f"{place} has no run.json: remove {run.folder} and run `dermstack stack` again")
    return kept


def stored_matrix(
    experiment: Experiment,
    features: Features,
    run: Run,
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
    *,
    ungrouped: bool = False,
    train_too: bool = True,
) -> FoldMatrix:
    """Returns the matrix of a fold with the columns that ``features`` name, by the transforms that ``run`` keeps of it.

    ``features`` may name no fitted block but those of the stacker itself, whose transforms alone are kept for certain.
    The other arguments are those of `fold_matrix`. Where the level-1 runs are no longer those of the fit, which is
    possible for runs that the stacker does not see, the transforms are fitted again.
    """
    seen = {name: one for name, one in embeddings.items() if _uses(features, one)}
    config = experiment.config.model_copy(update={"features": features})
    order = list(run.meta["scales"])  # the runs in the order of the fit; the config may have another one since
    is_same = set(order) == set(predictions.names)
    return fold_matrix(
        replace(experiment, config=config), seen, in_order(predictions, order) if is_same else predictions, fold,
        ungrouped=ungrouped, train_too=train_too, stored=_stored(stored_fold(run, fold)) if is_same else None,
    )  # fmt: skip


def in_order(predictions: Predictions, names: Sequence[str]) -> Predictions:
    """Returns the predictions with their runs in the order of ``names``, which has all of them."""
    place = [predictions.names.index(name) for name in names]
    return replace(
        predictions, names=tuple(names), oof=predictions.oof[:, place], nets=predictions.nets[:, place],
        test=predictions.test[:, :, place], test_nets=predictions.test_nets[:, place],
        alone=None if predictions.alone is None else predictions.alone[:, place],
    )  # fmt: skip


def transforms_fingerprint(stacker: Stacker, common: Features, run: Run, fold: int) -> str:
    """Returns a fingerprint of the features that `stored_matrix` makes for a stacker; equal ones have equal columns."""
    kept = stored_fold(run, fold)
    files = {name: kept.meta["files"][name] for name in (FEATURES_FILE, *_arrays(kept))}
    return fingerprint({"files": files, "features": stacker.features_with(common).model_dump(mode="json")})


def _uses(features: Features, embedding: Embedding) -> bool:
    return bool(features.neighbours or (features.aligned_z if embedding.alignment else features.frozen_z))


def _stored(kept: Run) -> tuple[str, Mapping[str, NDArray[np.float32]]]:
    """Returns the state of the transforms, as `FoldFeatures.restore` takes it."""
    text = kept.verified_path(FEATURES_FILE).read_text(encoding="utf-8")
    arrays = {name.removesuffix(".npy"): kept.array(name.removesuffix(".npy")) for name in _arrays(kept)}
    return text, {name: np.array(values, np.float32) for name, values in arrays.items()}


def _arrays(kept: Run) -> list[str]:
    return sorted(name for name in kept.meta["files"] if name.endswith(".npy"))
