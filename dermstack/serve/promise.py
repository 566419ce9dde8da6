"""What training promises of new images: numbers of its out-of-fold rows and the thresholds that they fix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dermstack.serve.bundle import Bundle
from stack.errors import BundleError
from stack.experiment import Experiment
from stack.metrics.measures import plain
from stack.metrics.validation import Promise, make_promise, promise_of
from stack.store import Run

FILE = "promise.json"


def measure_promise(experiment: Experiment, blend: Run) -> Promise:
    """Of the nested scores and the nested calibrated p: each row's by what was chosen and fitted without its fold."""
    oof = blend.frame("oof")
    places = experiment.rows_of(oof["id"])
    return make_promise(
        experiment.config.objective,
        experiment.target[places],
        oof["score"].to_numpy(np.float64),
        oof["p_calibrated"].to_numpy(np.float64),
        experiment.split_group[places],
        experiment.table.train.iloc[places].reset_index(drop=True),
    )


def write_promise(promise: Promise, bundle: Path) -> None:
    """Into the folder of a bundle in the making."""
    (bundle / FILE).write_text(json.dumps(plain(promise), indent=1), encoding="utf-8")


def read_promise(bundle: Bundle) -> Promise:
    """Raises BundleError where the bundle is older than its promise."""
    if not (bundle.folder / FILE).is_file():
        raise BundleError(
            f"{bundle.folder} holds no {FILE}, an earlier dermstack made it: bundle the experiment again with "
            "`dermstack bundle`, so that there is something to compare with"
        )
    content = bundle.json(FILE)
    try:
        return promise_of(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{bundle.folder}: {FILE} can't be read ({error}): bundle again") from error
