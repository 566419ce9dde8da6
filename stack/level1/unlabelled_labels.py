"""Predicts rows without a target with the fold nets of finished runs, and keeps the predictions beside each run.

They lie in ``models/<name>/unlabelled/fold_<k>/`` and are no part of the run: a table of `data.unlabelled` that is
added or changed makes no trained net stale. Each fold is kept as soon as it is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from image_models.settings import Compute
from stack.console import Out
from stack.experiment import Experiment
from stack.net_metadata import encoded_columns
from stack.store import (
    RUN_FILE,
    Run,
    fingerprint,
    frame_fingerprint,
    locked,
    prediction_frame,
    read_run,
    row_positions,
    write_run,
)
from stack.tables.unlabelled import shown_folds

if TYPE_CHECKING:
    from image_models.cache import ImageCache
    from image_models.predict import NetOutput

_SET = "unlabelled"  # name of the folder and of the file
_WAIT_S = 60.0  # for another process to end its work on the run


def shown(experiment: Experiment) -> NDArray[np.bool_]:
    """Returns (m, k) whether each unlabelled row shows what a held-out row of each fold shows; see `shown_folds`."""
    return _shown(experiment, experiment.unlabelled)


def shown_by_test_rows(experiment: Experiment) -> NDArray[np.bool_]:
    """Returns (t, k) whether each test row shows what a held-out row of each fold shows; see `shown_folds`."""
    test = experiment.table.test[["id", "group"]]
    if not experiment.table.test_groups_known:  # the ids, of which one may be a group's name
        test = test.assign(group="test:" + test["id"])
    return _shown(experiment, test)


def _shown(experiment: Experiment, rows: pd.DataFrame) -> NDArray[np.bool_]:
    listed = experiment.listed_duplicates
    pairs = [experiment.curation.pairs[["id_1", "id_2"]], *([] if listed is None else [listed])]
    folds = experiment.folds
    return shown_folds(
        rows, experiment.table.train, folds.frame["fold"].to_numpy(), folds.k, pd.concat(pairs, ignore_index=True)
    )


def rows_input(experiment: Experiment, columns: Sequence[str]) -> str:
    """Returns a fingerprint of the unlabelled rows, these ``columns`` of them, and the folds that each may train."""
    frame = experiment.unlabelled[["id", *columns]]
    may_not = pd.DataFrame(shown(experiment)).add_prefix("fold ")
    return frame_fingerprint(pd.concat([frame, may_not], axis=1))


def label_files(experiment: Experiment, run: Run) -> dict[str, str] | None:
    """Returns the hash of the run's predictions of unlabelled rows by fold; None where some are missing or stale."""
    stored = [_stored(experiment, run, fold) for fold in range(experiment.folds.k)]
    found = [one for one in stored if one is not None]
    if len(found) < len(stored):
        return None
    return {f"{run.name} fold {fold}": one.meta["files"][f"{_SET}.parquet"] for fold, one in enumerate(found)}


def unlabelled_logits(experiment: Experiment, run: Run, fold: int) -> NDArray[np.float32]:
    """Returns the logits (m,) of the unlabelled rows by the nets of ``fold``, which `predict_unlabelled` has made."""
    stored = _stored(experiment, run, fold)
    assert stored is not None, f"{run.folder}/{_SET} is written before it is read"
    frame = stored.frame(_SET)
    positions = row_positions(experiment.unlabelled["id"], frame["id"], f"the unlabelled rows of {run.name}")
    return frame["logit"].to_numpy(np.float32)[positions]


def predict_unlabelled(experiment: Experiment, run: Run, cache: ImageCache, out: Out) -> None:
    """Predicts the unlabelled rows with the nets of each fold of the run, where that is not done yet.

    ``cache`` holds the images at the size of the run's nets. Raises ImageError for weights that are missing or damaged.
    """
    from image_models.predict import passes_per_image

    images = cache.checksum(list(experiment.unlabelled["id"]))
    folds = range(experiment.folds.k)
    with locked(run.folder, wait=_WAIT_S):
        missing = [
            fold
            for fold in folds
            if (stored := _stored(experiment, run, fold)) is None or stored.meta["inputs"]["images"] != images
        ]
        if not missing:
            return
        inputs = _inputs(experiment, run) | {"images": images}
        settings = run.meta["settings"]
        passes = passes_per_image(
            settings["tta"], frozen=settings["frozen"], folds=len(missing), seeds=len(settings["seeds"])
        )
        with out.bar(
            f"{run.name} labels rows without a target",
            passes * len(experiment.unlabelled),
        ) as progress:
            made = _predictions(experiment, run, missing, cache, progress)
            for fold, output in zip(missing, made, strict=True):
                frame = prediction_frame(experiment.unlabelled["id"], fold, output.logit)
                meta = {"fingerprint": fingerprint(inputs), "level": 1, "kind": "labels", "inputs": inputs}
                (_folder(run, fold) / RUN_FILE).unlink(missing_ok=True)
                write_run(_folder(run, fold), meta, frames={_SET: frame})


def _predictions(
    experiment: Experiment, run: Run, folds: Sequence[int], cache: ImageCache, progress: Callable[[int], object]
) -> Iterator[NetOutput]:
    from image_models.saved import NetCache, predict_frozen, predict_trained

    config, settings, rows = experiment.config, run.meta["settings"], cache.rows_for(experiment.unlabelled["id"])
    folders = [run.folder / f"fold_{fold}" for fold in folds]
    store, compute = NetCache(0), Compute(config.device, config.threads, config.workers)
    if settings["frozen"]:
        yield from predict_frozen(folders, settings, cache, rows, store=store, compute=compute, progress=progress)
        return
    for folder in folders:
        yield predict_trained(
            folder, settings, cache, rows, encoded_columns(folder, settings, experiment.unlabelled),
            positive=run.meta.get("positive", (False, True)), store=store, compute=compute, progress=progress,
        )  # fmt: skip


def _folder(run: Run, fold: int) -> Path:
    return run.folder / _SET / f"fold_{fold}"


def _stored(experiment: Experiment, run: Run, fold: int) -> Run | None:
    """Returns the kept predictions of a fold if they were made by these nets for these rows."""
    stored = read_run(_folder(run, fold))
    if stored is None or any(stored.meta["inputs"][key] != now for key, now in _inputs(experiment, run).items()):
        return None
    return stored


def _inputs(experiment: Experiment, run: Run) -> dict[str, str]:
    rows = experiment.unlabelled
    taken = rows.drop(columns=["source", "group"]) if run.meta["settings"]["metadata"] else rows[["id"]]
    nets = {"inputs": run.meta["inputs"], "made": run.meta["files"]["oof.parquet"]}
    return {"nets": fingerprint(nets), "rows": frame_fingerprint(taken)}
