"""Feature importance of level 2: contributions of features to the logits of held-out rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from stack.console import Out
from stack.experiment import Experiment
from stack.images import require_acquisition
from stack.level2.features import METADATA_BLOCK, NATIVE_BLOCK, TABLE_BLOCK, FoldMatrix
from stack.level2.stored_features import stored_fold, stored_matrix, transforms_fingerprint
from stack.parallel import Pending, ready, run_with_threads, start_together
from stack.predictions.joined import (
    Embedding,
    Predictions,
    predictions_of,
    read_embeddings,
    standardised,
    stored_scales,
)
from stack.settings.level2 import UNEXPLAINED, is_second_stage, source_names
from stack.store import Run, fingerprint, read_run, write_run
from tabular.models import read_bag

MAX_ROWS = 2_000  # number of held-out rows that are explained, of all folds together
TOP_COLUMNS = 20  # columns of the table that are shown one by one; the others share a row
_VERSION = 1  # increase it when this module's results change
_COLUMNS_VERSION = 1  # the same, of the rows on columns of the table


def importance(experiment: Experiment, stackers: list[Run], sources: list[Run], out: Out) -> pd.DataFrame | None:
    """Computes the mean absolute contribution of each feature and block of features; None where there is no stacker.

    Columns: stacker, of ("feature", "block", "column" or "rest"), name, block, size (mean over rows of |contribution|,
    in logits) and trend, the rank correlation of contribution and value, NaN where a feature has several columns
    or is a native category. Contributions are exact: TreeSHAP for GBDTs, terms for logistic regressions. Fold k's model
    explains rows of fold k. Contributions of a block, or of the features of one field, are summed before the absolute
    value is taken.

    A table with columns without a role also has a row for each column of the csv ("column"): all features that are made
    of it alone, such as its value, its rank within the group and the indicators of its words. "rest" is the sum of all
    but the largest `TOP_COLUMNS` of these.

    This takes minutes for many rows; the result is kept in ``report/importance`` until a stacker changes.
    Set transformers and classifiers of scikit-learn have no exact contributions and are left out.
    """
    return start_importance(experiment, stackers, sources).shown("feature importance", out)


def start_importance(experiment: Experiment, stackers: list[Run], sources: list[Run]) -> Pending[pd.DataFrame | None]:
    """Starts what `importance` computes."""
    names = source_names(experiment.config.stackers)
    tables = [run for name in names if (run := read_run(experiment.models / name)) is not None]
    stackers = [run for run in stackers if run.meta["kind"] not in UNEXPLAINED]
    if not stackers:
        return ready(None)
    folder = experiment.folder / "report" / "importance"
    inputs = {
        "version": _VERSION,
        "rows": MAX_ROWS,
        **({"columns": _COLUMNS_VERSION} if experiment.table.columns.names else {}),
        "stackers": {run.name: run.meta["fingerprint"] for run in stackers},
    }
    meta = {"fingerprint": fingerprint(inputs), **inputs}
    kept = read_run(folder)
    if kept is not None and kept.meta["fingerprint"] == meta["fingerprint"]:
        return ready(kept.frame("importance"))
    if experiment.config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    stages = run_with_threads(experiment.config.threads, _start_stages, experiment, stackers, sources, tables)

    def finish(progress: Callable[[int], object]) -> pd.DataFrame:
        frame = pd.concat([stage.finish(progress) for stage in stages], ignore_index=True)
        order = {run.name: place for place, run in enumerate(stackers)}
        frame = frame.sort_values("stacker", key=lambda names: names.map(order), kind="stable", ignore_index=True)
        shutil.rmtree(folder, ignore_errors=True)  # stale; it can be computed again, so it is not set aside
        write_run(folder, meta, frames={"importance": frame})
        return frame

    return Pending(sum(stage.tasks for stage in stages), finish)


def _start_stages(
    experiment: Experiment, stackers: list[Run], sources: list[Run], tables: list[Run]
) -> list[Pending[pd.DataFrame]]:
    """Starts to explain the stackers; those that see models of the ``tables`` have a matrix of their own."""
    config = experiment.config
    second = {one.name for one in config.stackers if is_second_stage(one, config.stackers)}
    return [
        _start_stage(experiment, stage, seen)
        for later, seen in ((False, sources), (True, [*sources, *tables]))
        if (stage := [run for run in stackers if (run.name in second) is later])
    ]


def _start_stage(experiment: Experiment, stackers: list[Run], sources: list[Run]) -> Pending[pd.DataFrame]:
    predictions = standardised(predictions_of(experiment, sources), stored_scales(stackers[0]))
    embeddings = read_embeddings(experiment, sources)
    folds = range(experiment.folds.k)
    tasks = [partial(_fold_contributions, experiment, stackers, embeddings, predictions, fold) for fold in folds]
    return start_together(tasks, experiment.config, partial(_tables, experiment, stackers))


def _tables(experiment: Experiment, stackers: list[Run], made: list[_Explained]) -> pd.DataFrame:
    """Returns the rows of `importance` for these stackers, from the contributions of each fold."""
    blocks = {column: block for fold in made for column, block in fold.block_of.items()}
    shown = experiment.table.columns.shown
    fields = {column: shown.get(field, field) for fold in made for column, field in fold.field_of.items()}
    tables = []
    for run in stackers:
        # A category that is absent from the training rows of a fold has no column there: its contribution is 0.
        contributions = pd.concat([fold.contributions[run.name] for fold in made], ignore_index=True).fillna(0.0)
        values = pd.concat([fold.rows[run.name] for fold in made], ignore_index=True)
        tables += [_features(run.name, contributions, values, blocks, fields)]
        tables += [_blocks(run.name, contributions, blocks)]
        tables += [_columns(run.name, contributions, fields)] if shown else []
    return pd.concat(tables, ignore_index=True)


class _Explained(NamedTuple):
    """Contributions for a random sample of one fold's held-out rows."""

    rows: dict[str, pd.DataFrame]  # features of the rows, by stacker
    contributions: dict[str, pd.DataFrame]  # contributions (rows, features) to the logit, by stacker
    block_of: dict[str, str]  # the block of each feature
    field_of: dict[str, str]  # the column of the table that a feature is made of, where it is one alone


def _fold_contributions(
    experiment: Experiment,
    stackers: list[Run],
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
) -> _Explained:
    config, most = experiment.config, -(-MAX_ROWS // experiment.folds.k)
    by_name = {stacker.name: stacker for stacker in config.stackers}
    made = dict[str, FoldMatrix]()  # by what makes its columns, in which most stackers are alike
    explained = _Explained({}, {}, {}, {})
    for run in stackers:
        stacker = by_name[run.name]
        key = transforms_fingerprint(stacker, config.features, run, fold)
        if key not in made:
            own = stacker.features_with(config.features)
            made[key] = stored_matrix(experiment, own, run, embeddings, predictions, fold, train_too=False)
        matrix, kept = made[key], stored_fold(run, fold)
        order = np.random.default_rng((config.seed, fold)).permutation(len(matrix.held))  # the same for all stackers
        bag = read_bag(str(run.meta["kind"]), kept.folder, shift=float(kept.meta["shift"]))
        seen = matrix.held.iloc[np.sort(order[:most])].reset_index(drop=True)[list(bag.columns)]
        explained.rows[run.name] = seen
        explained.contributions[run.name] = bag.contributions(seen, threads=config.threads)[0]
        explained.block_of.update(matrix.features.block_of_)
        explained.field_of.update(matrix.features.field_)
    return explained


def _features(
    run: str,
    contributions: pd.DataFrame,
    values: pd.DataFrame,
    blocks: Mapping[str, str],
    field_of: Mapping[str, str],
) -> pd.DataFrame:
    """Returns a row for each feature; the value, the indicators and the missing flag of one field are one."""
    records = []
    names = [
        field_of.get(column, column) if blocks[column] in (METADATA_BLOCK, TABLE_BLOCK) else column
        for column in map(str, contributions)
    ]
    fields = pd.Series(names, index=list(contributions))
    for field, columns in fields.groupby(fields, sort=False).groups.items():
        together = contributions[list(columns)].sum(axis=1).to_numpy()
        ordered = len(columns) == 1 and blocks[columns[0]] != NATIVE_BLOCK  # codes of words have no order
        trend = _trend(values[columns[0]].to_numpy(np.float64), together) if ordered else np.nan
        records.append([run, "feature", str(field), blocks[columns[0]], float(np.abs(together).mean()), trend])
    return _sorted(records)


def _blocks(run: str, contributions: pd.DataFrame, blocks: Mapping[str, str]) -> pd.DataFrame:
    sums = contributions.T.groupby([blocks[str(column)] for column in contributions], sort=False).sum().T
    return _sorted([[run, "block", name, name, float(sums[name].abs().mean()), np.nan] for name in map(str, sums)])


def _columns(run: str, contributions: pd.DataFrame, field_of: Mapping[str, str]) -> pd.DataFrame:
    known = [column for column in map(str, contributions) if column in field_of]
    sums = contributions[known].T.groupby([field_of[column] for column in known], sort=False).sum().T
    frame = _sorted([[run, "column", str(name), "", float(sums[name].abs().mean()), np.nan] for name in sums])
    others = frame["name"].iloc[TOP_COLUMNS:]
    if others.empty:
        return frame
    size = float(sums[list(others)].sum(axis=1).abs().mean())
    return pd.concat([frame, _sorted([[run, "rest", f"{len(others):,} other columns", "", size, np.nan]])])


def _sorted(records: list[list[object]]) -> pd.DataFrame:
    frame = pd.DataFrame(records, columns=["stacker", "of", "name", "block", "size", "trend"])
    return frame.sort_values("size", ascending=False, kind="stable", ignore_index=True)


def _trend(value: NDArray[np.float64], contributions: NDArray[np.float64]) -> float:
    known = np.isfinite(value)
    if known.sum() < 3 or np.ptp(value[known]) == 0 or np.ptp(contributions[known]) == 0:
        return np.nan
    return float(np.corrcoef(rankdata(value[known]), rankdata(contributions[known]))[0, 1])
