"""Feature importance of level 2: contributions of features to the logits of held-out rows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermstack.errors import StoreError
from stack.console import Out
from stack.experiment import Experiment
from stack.features import METADATA_BLOCK, NATIVE_BLOCK, fold_matrix
from stack.images import require_acquisition
from stack.parallel import run_folds, run_with_threads
from stack.predictions import Embedding, Predictions, predictions_of, read_embeddings, standardised
from stack.store import Run, fingerprint, read_run, write_run
from stack.views import with_all_features
from tabular.models import read_bag

MAX_ROWS = 2_000  # number of held-out rows that are explained, of all folds together
_VERSION = 1  # increase it when this module's results change


def importance(experiment: Experiment, stackers: list[Run], sources: list[Run], out: Out) -> pd.DataFrame | None:
    """Computes the mean absolute contribution of each feature and block of features; None where there is no stacker.

    Columns: stacker, of ("feature" or "block"), name, block, size (mean over rows of |contribution|, in logits) and
    trend, the rank correlation of contribution and value, NaN where a feature has several columns or is a native
    category. Contributions are
    exact: TreeSHAP for GBDTs, terms for logistic regressions. Fold k's model explains rows of fold k. Contributions of
    a block, or of the columns of one metadata field, are summed before the absolute value is taken.

    This takes minutes for many rows; the result is kept in ``report/importance`` until a stacker changes.
    Classifiers of scikit-learn have no exact contributions and are left out.
    """
    stackers = [run for run in stackers if run.meta["kind"] != "sklearn"]
    if not stackers:
        return None
    folder = experiment.folder / "report" / "importance"
    inputs = {
        "version": _VERSION,
        "rows": MAX_ROWS,
        "stackers": {run.name: run.meta["fingerprint"] for run in stackers},
    }
    inputs_fingerprint = fingerprint(inputs)
    kept = read_run(folder)
    if kept is not None and kept.meta["fingerprint"] == inputs_fingerprint:
        return kept.frame("importance")
    if experiment.config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    shutil.rmtree(folder, ignore_errors=True)  # stale; it can be computed again, so it is not set aside
    frame = run_with_threads(experiment.config.threads, _importance, experiment, stackers, sources, out)
    write_run(folder, {"fingerprint": inputs_fingerprint, **inputs}, frames={"importance": frame})
    return frame


def _importance(experiment: Experiment, stackers: list[Run], sources: list[Run], out: Out) -> pd.DataFrame:
    predictions = standardised(predictions_of(experiment, sources))
    embeddings = read_embeddings(experiment, sources)
    folds = range(experiment.folds.k)
    tasks = [partial(_fold_contributions, experiment, stackers, embeddings, predictions, fold) for fold in folds]
    made = run_folds(tasks, "feature importance", experiment.config, out)
    values = pd.concat([fold.rows for fold in made], ignore_index=True)
    blocks = {column: block for fold in made for column, block in fold.block_of.items()}
    tables = []
    for run in stackers:
        # A category that is absent from the training rows of a fold has no column there: its contribution is 0.
        contributions = pd.concat([fold.contributions[run.name] for fold in made], ignore_index=True).fillna(0.0)
        tables += [_features(run.name, contributions, values, blocks), _blocks(run.name, contributions, blocks)]
    return pd.concat(tables, ignore_index=True)


class _Explained(NamedTuple):
    """Contributions for a random sample of one fold's held-out rows."""

    rows: pd.DataFrame  # features of the rows
    contributions: dict[str, pd.DataFrame]  # contributions (rows, features) to the logit, by stacker
    block_of: dict[str, str]  # the block of each feature


def _fold_contributions(
    experiment: Experiment,
    stackers: list[Run],
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
) -> _Explained:
    matrix = fold_matrix(with_all_features(experiment), embeddings, predictions, fold)
    rng = np.random.default_rng((experiment.config.seed, fold))
    most = -(-MAX_ROWS // experiment.folds.k)
    rows = matrix.held.iloc[np.sort(rng.permutation(len(matrix.held))[:most])].reset_index(drop=True)
    contributions = {}
    for run in stackers:
        place = run.folder / f"fold_{fold}"
        kept = read_run(place)
        if kept is None:
            raise StoreError(f"{place} has no run.json: remove {run.folder} and run `dermstack stack` again")
        bag = read_bag(str(run.meta["kind"]), place, shift=float(kept.meta["shift"]))
        seen = rows[list(bag.columns)]
        contributions[run.name] = bag.contributions(seen, threads=experiment.config.threads)[0]
    return _Explained(rows, contributions, matrix.features.block_of_)


def _features(run: str, contributions: pd.DataFrame, values: pd.DataFrame, blocks: Mapping[str, str]) -> pd.DataFrame:
    records = []
    fields = pd.Series({column: _field(str(column), blocks[str(column)]) for column in contributions})
    for field, columns in fields.groupby(fields, sort=False).groups.items():
        together = contributions[list(columns)].sum(axis=1).to_numpy()
        ordered = len(columns) == 1 and blocks[columns[0]] != NATIVE_BLOCK  # codes of words have no order
        trend = _trend(values[columns[0]].to_numpy(np.float64), together) if ordered else np.nan
        records.append([run, "feature", str(field), blocks[columns[0]], float(np.abs(together).mean()), trend])
    return _sorted(records)


def _blocks(run: str, contributions: pd.DataFrame, blocks: Mapping[str, str]) -> pd.DataFrame:
    sums = contributions.T.groupby([blocks[str(column)] for column in contributions], sort=False).sum().T
    return _sorted([[run, "block", name, name, float(sums[name].abs().mean()), np.nan] for name in map(str, sums)])


def _sorted(records: list[list[object]]) -> pd.DataFrame:
    frame = pd.DataFrame(records, columns=["stacker", "of", "name", "block", "size", "trend"])
    return frame.sort_values("size", ascending=False, kind="stable", ignore_index=True)


def _field(column: str, block: str) -> str:
    """Returns the table column of a metadata feature: `site` for `site=torso` and for `site_missing`."""
    return column.partition("=")[0].removesuffix("_missing") if block == METADATA_BLOCK else column


def _trend(value: NDArray[np.float64], contributions: NDArray[np.float64]) -> float:
    known = np.isfinite(value)
    if known.sum() < 3 or np.ptp(value[known]) == 0 or np.ptp(contributions[known]) == 0:
        return np.nan
    return float(np.corrcoef(rankdata(value[known]), rankdata(contributions[known]))[0, 1])
