"""The matrix of a fold by the transforms that a stacker keeps is, to the last bit, the one that it was fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dermstack.pipeline import open_config
from stack.console import Out
from stack.level2.features import fold_matrix
from stack.level2.stored_features import in_order, stored_matrix, transforms_fingerprint
from stack.predictions.joined import predictions_of, read_embeddings, standardised, stored_scales
from stack.store import read_run


def test_the_stored_transforms_make_the_matrix_of_the_fit(bundled_experiment: Path) -> None:
    """With a frozen and a trained run: components, aligned embeddings, neighbours and cohorts are among the columns."""
    experiment = open_config(bundled_experiment / "small.yaml", Out(quiet=True))
    config = experiment.config
    runs = [run for name in ("gbdt", "line") if (run := read_run(experiment.models / name)) is not None]
    sources = [run for name in runs[0].meta["scales"] if (run := read_run(experiment.models / name)) is not None]
    embeddings = read_embeddings(experiment, sources)
    predictions = standardised(predictions_of(experiment, sources), stored_scales(runs[0]))
    fitted = fold_matrix(experiment, embeddings, predictions, 1, ungrouped=True)
    # As where the models of the config were put into another order since: the stacker stays complete.
    predictions = in_order(predictions, predictions.names[::-1])
    stored = stored_matrix(experiment, config.features, runs[0], embeddings, predictions, 1, ungrouped=True)
    assert fitted.held_ungrouped is not None
    assert stored.held_ungrouped is not None
    assert {"still_z0", "tiny_z0"} <= set(stored.held)
    for one, other in zip(
        (fitted.train, fitted.held, fitted.held_ungrouped), (stored.train, stored.held, stored.held_ungrouped),
        strict=True,
    ):  # fmt: skip
        assert list(one) == list(other)
        np.testing.assert_array_equal(one.to_numpy(), other.to_numpy())
    assert stored.features.block_of_ == fitted.features.block_of_

    without = config.features.model_copy(update={"frozen_z": 0, "neighbours": False})  # no column of the frozen run
    fewer = stored_matrix(experiment, without, runs[0], embeddings, predictions, 1, train_too=False)
    assert len(fewer.train) == 0 < len(fewer.held)
    assert not any(column.startswith("still_z") for column in fewer.held)
    np.testing.assert_array_equal(fewer.held.to_numpy(), stored.held[list(fewer.held)].to_numpy())

    keys = [transforms_fingerprint(config.stackers[0], config.features, run, 1) for run in runs]
    assert keys[0] == keys[1] != transforms_fingerprint(config.stackers[0], without, runs[0], 1)
