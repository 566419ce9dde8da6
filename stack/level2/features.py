"""Builds the level-2 matrix of predictions, embeddings and metadata, with transforms fitted on each fold's rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.decomposition import PCA

from dermstack.errors import ConfigError
from stack.experiment import Experiment
from stack.folds import assign_folds, count_groups, inner_split
from stack.predictions.joined import Embedding, Predictions
from stack.settings.config import Config
from stack.settings.level2 import Features, Stacker
from stack.tables.columns import NO_COLUMNS, TableColumns
from stack.tables.net_columns import net_columns, roles_of
from stack.tables.table import ACQUISITION
from stack.views import sees_run
from tabular.categories import CategoryCodes
from tabular.cohort import CohortScore
from tabular.encode import MAX_LEVELS, MetadataEncoder
from tabular.group_features import (
    context_counts,
    embedding_aggregates,
    metadata_aggregates,
    prediction_aggregates,
)
from tabular.outliers import GroupOutliers
from tabular.relative import cross_groups, ratio_to_mean, relative_features
from tabular.target_encoding import INNER

NUMERIC, CATEGORICAL = ("age",), ("sex", "site")
IMAGE_BLOCK, METADATA_BLOCK = "image models", "metadata"  # names of blocks of columns in `block_of_`
SOURCE_BLOCK = "models of the table"  # in place of "image models", of columns that come from a stacker
TABLE_BLOCK = "table columns"
NATIVE_BLOCK = "table columns, native categories"
_ENCODING_PARTS = 5
FROZEN_COMPONENTS = 32  # components of a frozen embedding that is only used for distances within the group


def metadata_of_models(config: Config, columns: TableColumns = NO_COLUMNS) -> set[str]:
    """Returns which of age, sex, site and the further ``columns`` of the table an image model or level 2 uses.

    Columns are named as in the table, derived ones too; `csv_of_models` names what they are read from.
    """
    models = [model for model in config.image_models if model.enabled]
    named = config.data.columns
    used = {
        name
        for model in models
        for name in (net_columns(model, named, columns) if columns.names else roles_of(model, named))
    }
    features = config.all_features
    if features.metadata or features.cohort:
        used |= {*NUMERIC, *CATEGORICAL}
    if features.aggregates:
        used.add("age")
    if features.context_counts:
        used |= {"age", "site"}
    if features.columns:
        used |= set(columns.names)
    numbers = set(columns.numbers)
    if features.relative or features.relative_site or features.outliers or features.cohort_columns:
        used |= numbers
    if numbers and features.relative_site:
        used.add("site")
    if numbers and features.cohort_columns:
        used |= {*NUMERIC, *CATEGORICAL}
    return used


def csv_of_models(config: Config, columns: TableColumns = NO_COLUMNS) -> set[str]:
    """Returns the csv's names of the columns that a model uses, with those that a used derived column is made of."""
    used = metadata_of_models(config, columns)
    roles = {name: csv for name, csv in config.data.columns.roles.items() if name in (*NUMERIC, *CATEGORICAL)}
    named = {csv for name, csv in roles.items() if name in used}
    return named | {csv for name, parts in columns.made_of.items() if name in used for csv in parts}


class FoldFeatures:
    """Level-2 features of one fold: fitted on its training rows, applied to held-out, test and new rows."""

    def __init__(
        self,
        settings: Features,
        names: tuple[str, ...],
        *,
        frozen: Collection[str] = (),
        stackers: Collection[str] = (),
        seed: int,
        columns: TableColumns = NO_COLUMNS,
    ) -> None:
        """Takes the ``names`` of the runs; embeddings z of those in ``frozen`` are reduced here (PCA).

        The z of the other runs are aligned components already. Runs in ``stackers`` are models of the table.
        ``columns`` are those of the table without a role.
        """
        self.settings = settings
        self.names = names
        self.frozen = frozen
        self.stackers = stackers
        self.seed = seed
        self.columns = columns

    def fit(
        self, frame: pd.DataFrame, logits: NDArray[np.float32], z: Mapping[str, NDArray[np.floating]]
    ) -> FoldFeatures:
        """Fits the encodings on ``frame``, ``logits`` (n, runs) and ``z`` (n, d) by run, of the fold's training rows.

        Uses no targets.
        """
        self.encoder_ = MetadataEncoder(numeric=NUMERIC, categorical=CATEGORICAL).fit(frame)
        self.table_ = self._table_encoder().fit(frame) if self._takes_columns else None
        self.codes_ = self._category_codes().fit(frame)
        self.axes_ = {name: self._fit_axes(values) for name, values in z.items() if name in self.frozen}
        numbers = self.columns.numbers
        self.outliers_ = GroupOutliers().fit(frame[numbers]) if numbers and self.settings.outliers else None
        on_columns = numbers and self.settings.cohort_columns
        self.column_cohort_ = CohortScore().fit(frame, frame[numbers].to_numpy()) if on_columns else None
        self.cohort_ = CohortScore().fit(frame, logits) if self.settings.cohort else None
        return self

    def transform(
        self, frame: pd.DataFrame, logits: NDArray[np.float32], z: Mapping[str, NDArray[np.floating]]
    ) -> pd.DataFrame:
        """Returns features (n, columns), float32; ``frame`` must hold all rows of each of its groups.

        ``logits`` (n, runs) and ``z`` are one fold net's. Sets ``block_of_``, the name of the block of each
        column, ``source_``, its key of `features` and its run (None: it comes from the table), and ``field_``, the
        column of the table for those that are made of one alone.
        Raises ConfigError where the settings leave no column.
        """
        blocks: list[Block] = []
        if self.settings.logits:
            made = pd.DataFrame(logits, columns=list(self.names))
            blocks.append(Block(IMAGE_BLOCK, "logits", made, list(self.names)))
        if self.settings.metadata:
            blocks.append(Block(METADATA_BLOCK, "metadata", self.encoder_.transform(frame)))
        if self.table_ is not None:
            blocks.append(Block(TABLE_BLOCK, "columns", self.table_.transform(frame)))
        if self.categories:
            blocks.append(Block(NATIVE_BLOCK, "native_categories", self.codes_.transform(frame)))
        blocks += self._column_blocks(frame)
        if self.settings.aggregates:
            blocks.append(Block("ages of the group", "aggregates", metadata_aggregates(frame[["group", "age"]])))
            made = prediction_aggregates(frame["group"], logits, self.names)
            blocks.append(Block("image models, within the group", "aggregates", made, _each(self.names, made)))
        if self.cohort_ is not None:
            made = self.cohort_.transform(frame, logits, self.names)
            blocks.append(Block("image models, within age, sex and site", "cohort", made, _each(self.names, made)))
        if self.settings.probability_ratio:
            made = ratio_to_mean(frame["group"], expit(logits.astype(np.float64)), self.names)
            blocks.append(Block("image models, within the group", "probability_ratio", made, list(self.names)))
        for name, values in z.items():
            components = self.components(name, values)
            kept = self.settings.frozen_z if name in self.axes_ else self.settings.aligned_z
            if kept:
                columns = [f"{name}_z{i}" for i in range(min(kept, components.shape[1]))]
                made = pd.DataFrame(components[:, : len(columns)], columns=columns)
                key = "frozen_z" if name in self.axes_ else "aligned_z"
                blocks.append(Block("embeddings", key, made, [name] * len(columns)))
            if self.settings.neighbours:
                made = embedding_aggregates(frame["group"], components, name)
                blocks.append(Block("embeddings, within the group", "neighbours", made, [name] * made.shape[1]))
        if self.settings.context_counts:
            made = context_counts(frame[["group", "site", "age"]])
            blocks.append(Block("counts of the group", "context_counts", made))
        if self.settings.shortcuts:
            blocks.append(Block("image acquisition", "shortcuts", frame[list(ACQUISITION)]))
        if not any(block.frame.shape[1] for block in blocks):
            raise ConfigError(
                "the level-2 matrix has no column: every block of `features` that these runs have is off; switch "
                "one on, such as features.logits, or remove the stackers"
            )
        _check_names(blocks)
        self.source_ = {
            str(column): (block.key, run)
            for block in blocks
            for column, run in zip(block.frame, block.runs or repeat(None, block.frame.shape[1]), strict=True)
        }
        self.block_of_ = {str(column): block.name for block in blocks for column in block.frame}
        for column, (_, run) in self.source_.items():
            if run in self.stackers:
                self.block_of_[column] = self.block_of_[column].replace(IMAGE_BLOCK, SOURCE_BLOCK)
        self.field_ = self._fields([str(column) for column in self.block_of_])
        return pd.concat([block.frame.reset_index(drop=True) for block in blocks], axis=1).astype(np.float32)

    def _fields(self, made: Sequence[str]) -> dict[str, str]:
        """Returns the column of the table that each feature among ``made`` comes from, where it is one column alone."""
        encoders = [self.encoder_] if self.settings.metadata else []
        encoders += [] if self.table_ is None else [self.table_]
        known = {name: field for one in encoders for name, field in zip(one.columns_, one.sources_, strict=True)}
        known |= {name: name for name in self.categories}
        ending = [f"group_{statistic}" for statistic in self.settings.relative]
        ending += [f"group_site_{statistic}" for statistic in self.settings.relative_site]
        ending += ["cohort_z"] if self.settings.cohort_columns else []
        known |= {f"{name}_{end}": name for name in self.columns.numbers for end in ending}
        ages = {name for name in made if self.source_[name] == ("aggregates", None)}
        return {name: "age" if name in ages else known[name] for name in made if name in known or name in ages}

    def _column_blocks(self, frame: pd.DataFrame) -> list[Block]:
        """Returns the blocks of the numeric columns relative to the group, to its site and to the cohort."""
        numbers, settings, blocks = self.columns.numbers, self.settings, list[Block]()
        if not numbers:
            return blocks
        values = frame[numbers]
        if settings.relative:
            made = relative_features(frame["group"], values, numbers, statistics=settings.relative)
            blocks.append(Block("table columns, within the group", "relative", made))
        if settings.relative_site:
            places = cross_groups(frame["group"], frame["site"])
            made = relative_features(places, values, numbers, word="group_site", statistics=settings.relative_site)
            blocks.append(Block("table columns, within the group and site", "relative_site", made))
        if self.outliers_ is not None:
            made = self.outliers_.transform(frame["group"], values)
            blocks.append(Block("table columns, distances within the group", "outliers", made))
        if self.column_cohort_ is not None:
            made = self.column_cohort_.transform(frame, values.to_numpy(), tuple(numbers))
            blocks.append(Block("table columns, within age, sex and site", "cohort_columns", made))
        return blocks

    def components(self, name: str, z: NDArray[np.floating]) -> NDArray[np.floating]:
        """Returns the centred components (n, r) of a run's embeddings ``z``, as `transform` uses them."""
        if name not in self.axes_:
            return z
        mean, turn = self.axes_[name]
        return (z.astype(np.float32) - mean) @ turn

    def to_json(self) -> str:
        """Returns the fitted encodings and cohorts as JSON; `arrays` returns the fitted components."""
        cohort = None if self.cohort_ is None else json.loads(self.cohort_.to_json())
        state = {"metadata": json.loads(self.encoder_.to_json()), "cohort": cohort}
        if self.table_ is not None:
            state["table"] = json.loads(self.table_.to_json())
        if self.categories:
            state["codes"] = json.loads(self.codes_.to_json())
        if self.outliers_ is not None:
            state["outliers"] = json.loads(self.outliers_.to_json())
        if self.column_cohort_ is not None:
            state["column_cohort"] = json.loads(self.column_cohort_.to_json())
        return json.dumps(state, ensure_ascii=False)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Returns mean (d,) and turn (d, r) of each frozen run, which reduce its z: (z - mean) @ turn."""
        return {
            f"{name}_{part}": values
            for name, axes in self.axes_.items()
            for part, values in zip(("mean", "turn"), axes, strict=True)
        }

    def restore(self, text: str, arrays: Mapping[str, NDArray[np.float32]]) -> FoldFeatures:
        """Restores what `to_json` and `arrays` returned; returns self.

        Raises TabularError for an invalid encoder or cohort, ValueError for text that is not JSON and KeyError for
        missing parts.
        """
        state = json.loads(text)
        self.encoder_ = MetadataEncoder.from_json(json.dumps(state["metadata"]))
        self.table_ = MetadataEncoder.from_json(json.dumps(state["table"])) if self._takes_columns else None
        coded = json.dumps(state.get("codes", {"words": {}}))  # absent: written before there were native categories
        self.codes_ = CategoryCodes.from_json(coded)
        numbers = self.columns.numbers
        has_outliers, has_cohort = numbers and self.settings.outliers, numbers and self.settings.cohort_columns
        self.outliers_ = GroupOutliers.from_json(json.dumps(state["outliers"])) if has_outliers else None
        self.column_cohort_ = CohortScore.from_json(json.dumps(state["column_cohort"])) if has_cohort else None
        self.axes_ = {name: (arrays[f"{name}_mean"], arrays[f"{name}_turn"]) for name in self.frozen}
        self.cohort_ = CohortScore.from_json(json.dumps(state["cohort"])) if self.settings.cohort else None
        return self

    @property
    def categories(self) -> list[str]:
        """Columns of the matrix that hold codes of categories, for GBDTs and for target encoding."""
        return list(self.codes_.words_)

    @property
    def indicators(self) -> set[str]:
        """Columns of the matrix that indicate the words of a column in `categories`, for other stackers."""
        return set() if self.table_ is None else {name for one in self.categories for name in self.table_.made_of(one)}

    @property
    def unseen(self) -> dict[str, dict[str, int]]:
        """Rows of the last transform with a category that no fitted row has, by column and category."""
        return self.encoder_.unseen_ | ({} if self.table_ is None else self.table_.unseen_)

    @property
    def _takes_columns(self) -> bool:
        return self.settings.columns and bool(self.columns.names)

    def _table_encoder(self) -> MetadataEncoder:
        return MetadataEncoder(self.columns.numbers, list(self.columns.categorical), max_levels=MAX_LEVELS, sparse=True)

    def _category_codes(self) -> CategoryCodes:
        coded = self._takes_columns and (self.settings.native_categories or self.settings.target_encoding)
        names = list(self.columns.categorical) if coded else []
        return CategoryCodes(names, more_than=MAX_LEVELS, min_rows=self.settings.category_min_rows)

    def _fit_axes(self, z: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        components = min(self.settings.frozen_z or FROZEN_COMPONENTS, *z.shape)
        pca = PCA(components, random_state=self.seed).fit(z.astype(np.float32))
        return pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_.T, np.float32)


class Block(NamedTuple):
    """Columns of the level-2 matrix: their name on pages, their key of `features`, and the run of each, if any."""

    name: str
    key: str
    frame: pd.DataFrame
    runs: list[str] | None = None


def _each(names: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Returns the run of each column of a frame that has the same number of columns for each run, one after another."""
    return [name for name in names for _ in range(frame.shape[1] // len(names))]


def _check_names(blocks: list[Block]) -> None:
    """Raises ConfigError where two blocks have a column of the same name."""
    block_of: dict[str, str] = {}
    for block in blocks:
        for column in map(str, block.frame.columns):
            if column in block_of:
                raise ConfigError(
                    f"two features of level 2 are named {column!r}, in the blocks {block_of[column]!r} and "
                    f"{block.name!r}: rename the csv column or the run"
                )
            block_of[column] = block.name


@dataclass(frozen=True)
class FoldMatrix:
    """One fold's fitted transforms, the features of its training and held-out rows, and the table rows of both."""

    features: FoldFeatures
    train: pd.DataFrame
    held: pd.DataFrame
    held_ungrouped: pd.DataFrame | None  # features of the held-out rows, each without the other rows of its group
    train_rows: NDArray[np.intp]
    held_rows: NDArray[np.intp]


def fold_matrix(
    experiment: Experiment,
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
    *,
    without: int | None = None,
    ungrouped: bool = False,
    stored: tuple[str, Mapping[str, NDArray[np.float32]]] | None = None,
    train_too: bool = True,
) -> FoldMatrix:
    """Fits the transforms of ``fold`` on its training rows and applies them to these and to its held-out rows.

    Rows of fold ``without`` are left out of both sides, for a study that must not see them. With ``ungrouped`` the
    held-out rows are also transformed each without the other rows of its group. Transforms that are ``stored``, as
    `FoldFeatures.restore` takes them, are not fitted again. Without ``train_too`` the matrix has no training row.
    """
    train = experiment.table.train
    fold_of = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    parts = [np.flatnonzero((fold_of != fold) & (fold_of != without)), np.flatnonzero(fold_of == fold)]
    rows = [predictions.rows[part] for part in parts]
    frames = [train.iloc[positions] for positions in rows]
    z = [{name: embedding.oof[positions] for name, embedding in embeddings.items()} for positions in rows]
    frozen = {name for name, embedding in embeddings.items() if embedding.alignment is None}
    features = FoldFeatures(
        experiment.config.features, predictions.names, frozen=frozen,
        stackers={stacker.name for stacker in experiment.config.stackers}, seed=experiment.config.seed,
        columns=experiment.table.columns,
    )  # fmt: skip
    if stored is None:
        features.fit(frames[0], predictions.oof[parts[0]], z[0])
    else:
        features.restore(*stored)
    x_held = features.transform(frames[1], predictions.oof[parts[1]], z[1])
    x_train = features.transform(frames[0], predictions.oof[parts[0]], z[0]) if train_too else x_held[:0]
    x_ungrouped = None
    if ungrouped:
        alone = predictions.oof if predictions.alone is None else predictions.alone
        x_ungrouped = features.transform(frames[1].assign(group=frames[1]["id"]), alone[parts[1]], z[1])
    return FoldMatrix(features, x_train, x_held, x_ungrouped, rows[0], rows[1])


def early_stopping_rows(experiment: Experiment, positions: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Marks the early-stopping rows (n,) among these training rows: whole split groups."""
    return inner_split(
        experiment.target[positions],
        experiment.split_group[positions],
        seed=experiment.config.seed,
    )


def encoding_parts(experiment: Experiment, positions: NDArray[np.intp], inner: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Returns the part (n,) of each of these training rows for target encoding: whole split groups, `INNER` if inner.

    Raises DataError where the rows that are not ``inner`` have fewer than two groups of each class.
    """
    target, groups = experiment.target[positions][~inner], experiment.split_group[positions][~inner]
    counts = count_groups(target, groups)
    rows, positives = counts.counts[:, 0], counts.counts[:, 1]
    k = min(_ENCODING_PARTS, int((positives > 0).sum()), int((positives < rows).sum()))
    parts = np.full(len(positions), INNER, np.intp)
    parts[~inner] = assign_folds(counts, k=max(k, 2), seed=experiment.config.seed)[counts.codes]
    return parts


def view_columns(config: Config, stacker: Stacker, features: FoldFeatures) -> list[str]:
    """Returns the stacker's columns of a matrix that ``features`` made, in the order of the matrix.

    Raises ConfigError where no column is left.
    """
    own = stacker.features_with(config.features)
    sees_codes = own.columns and (own.target_encoding or (own.native_categories and stacker.is_gbdt))
    hidden = features.indicators if sees_codes else set(features.categories)
    seen: set[str | None] = {None, *(run for run in features.names if sees_run(config, stacker, run))}
    columns = [
        column
        for column, (key, run) in features.source_.items()
        if run in seen and _is_on(own, key, column) and column not in hidden
    ]
    if not columns:
        raise ConfigError(
            f"stacker {stacker.name} has no feature: every block of `features` that its runs and the table have is "
            "off; switch one on, let it see a run, or name columns in data.columns"
        )
    return columns


def _is_on(own: Features, key: str, column: str) -> bool:
    if key == "native_categories":
        return own.columns
    setting = getattr(own, key)
    if key in ("frozen_z", "aligned_z"):
        return int(column.rpartition("_z")[2]) < int(setting)
    if key in ("relative", "relative_site"):
        word = "group" if key == "relative" else "group_site"
        return any(column.endswith(f"_{word}_{statistic}") for statistic in setting)
    return bool(setting)
