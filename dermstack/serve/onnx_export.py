"""The networks of a bundle in the making as ONNX beside their weights, each shown to agree with torch."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from dermstack.serve.bundle import Bundle
from dermstack.serve.level1 import encoded_metadata, fold_folder
from image_models.dataset import CachedImages
from image_models.errors import ImageError
from image_models.onnx_export import OPSET, check_onnx, write_onnx
from image_models.saved import read_fold_nets
from stack.console import Out
from stack.errors import BundleError
from stack.experiment import Experiment
from stack.images import with_images

FOLDER = "onnx"
PICTURES = 32  # of the experiment's training images, evenly over its rows


def add_onnx(experiment: Experiment, bundle: Bundle, out: Out) -> dict[str, Any]:
    """Write ``onnx/<run>/fold_<k>.onnx`` for each fold net, ``fold_<k>_<seed>.onnx`` for those of further seeds.

    Returns what the manifest says of them: opset and, by file, how far ONNX and torch were apart on the pictures. A
    frozen run's files each hold its backbone. Raises BundleError naming the net that can't be exported or disagrees.
    """
    experiment, caches = with_images(experiment, bundle.sizes, out)
    train = experiment.table.train
    rows = np.unique(np.linspace(0, len(train) - 1, PICTURES).astype(np.intp))
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
                    fold_folder(bundle, run, fold), run.settings, positive=run.positive, metadata=metadata.shape[1]
                )
                for place, net in enumerate(made):
                    name = f"{FOLDER}/{run.name}/fold_{fold}{f'_{seeds[place]}' if place else ''}.onnx"
                    path = bundle.folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        write_onnx(net, path, size=size, metadata=metadata.shape[1])
                        agreement = check_onnx(path, net, images)
                    except ImageError as error:
                        raise BundleError(f"{run.name}, fold {fold}, {run.settings['backbone']}: {error}") from error
                    nets[name] = {key: value for key, value in asdict(agreement).items() if key != "images"}
                progress(1)
    return {"opset": OPSET, "torch": version("torch"), "pictures": len(rows), "differences": nets}
