"""Makes the level-2 matrix of every fold once, in files that every stacker's fits read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from stack.console import Out
from stack.experiment import Experiment
from stack.level2.features import FoldMatrix, fold_matrix
from stack.parallel import run_folds
from stack.predictions.joined import Embedding, Predictions
from stack.predictions.repeats import repeated
from stack.views import with_all_features

MATRICES_FOLDER = "level2_matrices"  # in the experiment's folder


@dataclass(frozen=True)
class FiledMatrix:
    """A fold's matrix whose features lie in files: those of its training, held-out and test rows."""

    folder: Path
    columns: list[str]
    matrix: FoldMatrix  # without rows

    def read(self) -> tuple[FoldMatrix, pd.DataFrame]:
        """Returns the matrix of training and held-out rows and the features of the test rows, mapped from the files."""
        train, held, test = (
            pd.DataFrame(np.load(self.folder / f"{part}.npy", mmap_mode="r", allow_pickle=False), columns=self.columns)
            for part in ("train", "held", "test")
        )
        return replace(self.matrix, train=train, held=held), test


@contextmanager
def filed_matrices(
    experiment: Experiment,
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    out: Out,
    *,
    repeats: int,
) -> Iterator[Sequence[Sequence[FiledMatrix]]]:
    """Yields the matrix of each repeat and fold, with the columns of all stackers; the files are then removed.

    Stackers are fitted one after another in several processes, and each process would make what another one has again.
    """
    k = experiment.folds.k
    places = [(repeat, fold) for repeat in range(repeats) for fold in range(k)]
    tasks = [partial(_file_matrix, experiment, embeddings, predictions, repeat, fold) for repeat, fold in places]
    try:
        made = run_folds(tasks, "features of level 2", experiment.config, out)
        yield [made[start : start + k] for start in range(0, len(made), k)]
    finally:
        remove_matrices(experiment)


def remove_matrices(experiment: Experiment) -> None:
    """Removes the files of `filed_matrices`, which are left where the command was killed."""
    shutil.rmtree(experiment.folder / MATRICES_FOLDER, ignore_errors=True)


def _file_matrix(
    experiment: Experiment, embeddings: Mapping[str, Embedding], predictions: Predictions, repeat: int, fold: int
) -> FiledMatrix:
    own = with_all_features(repeated(experiment, repeat))
    matrix = fold_matrix(own, embeddings, predictions, fold)
    test_z = {name: embedding.test_of(fold) for name, embedding in embeddings.items()}
    test = matrix.features.transform(own.table.test, predictions.test[fold], test_z)
    folder = experiment.folder / MATRICES_FOLDER / f"repeat_{repeat}" / f"fold_{fold}"
    folder.mkdir(parents=True)
    columns = list(map(str, test))
    for part, frame in (("train", matrix.train), ("held", matrix.held), ("test", test)):
        assert list(frame) == columns
        np.save(folder / f"{part}.npy", frame.to_numpy(), allow_pickle=False)
    nothing = matrix.train[:0]
    return FiledMatrix(folder, columns, replace(matrix, train=nothing, held=nothing))
