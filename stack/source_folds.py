"""Folds that hold out whole sources (hospitals, cameras, years): sources that share patients are held out together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dermstack.errors import DataError
from dermstack.listing import first_of
from stack.folds import Folds, Stratum, assign_balanced_folds, count_groups, read_column_by_id
from stack.settings.config import Folds as FoldSettings
from stack.tables.keys import MISSING_KEYS, unified_words

NAMES_JOINED = " + "


@dataclass(frozen=True)
class SourceUnits:
    """What can be held out as a whole: a source, or sources that share split groups, whose names are joined."""

    unit: NDArray[np.object_]  # (n,) name of each row's unit
    joined: tuple[str, ...]  # names of the units of more than one source
    shared_groups: int  # split groups with rows in more than one source

    @property
    def names(self) -> list[str]:
        """The units, sorted by name."""
        return sorted(set(self.unit))


def source_units(source: ArrayLike, split_group: ArrayLike) -> SourceUnits:
    """Returns the unit of each row; ``source`` and ``split_group`` are (n,).

    A patient with images in two hospitals is in one fold, and so are both hospitals then. Raises DataError where a row
    has no source: it may come from the source that is held out, and the fold would then not hold it out.
    """
    _check_known(source)
    names = pd.Series(np.asarray(source, dtype=object))
    codes, words = pd.factorize(names.astype(str), sort=True)
    groups, kinds = pd.factorize(np.asarray(split_group, dtype=object))
    pairs = np.unique(np.column_stack([codes, groups]), axis=0)
    size = len(words) + len(kinds)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], len(words) + pairs[:, 1])), shape=(size, size))
    component = connected_components(graph, directed=False)[1][: len(words)]
    made = {part: NAMES_JOINED.join(words[component == part]) for part in np.unique(component)}
    joined = tuple(made[part] for part in made if (component == part).sum() > 1)
    unit = np.array([made[part] for part in component], dtype=object)[codes]
    return SourceUnits(unit, joined, int((np.bincount(pairs[:, 1], minlength=len(kinds)) > 1).sum()))


@dataclass(frozen=True)
class MainSources:
    """The main source of each split group, and the rows of other sources, which neither train nor score it."""

    unit: NDArray[np.object_]  # (n,) main source of each row's split group
    left_out: NDArray[np.bool_]  # (n,) rows of another source than their group's main one
    groups: int  # split groups with rows in more than one source


def main_sources(source: ArrayLike, split_group: ArrayLike) -> MainSources:
    """Returns the source of most rows of each split group; ``source`` and ``split_group`` are (n,).

    Where patients have images of several sources, whole sources and whole patients can both be held out only if the
    patients' rows of other sources are left out. Of equally frequent sources the first by name is the main one. Raises
    DataError as `source_units` does.
    """
    _check_known(source)
    frame = pd.DataFrame({"source": np.asarray(source, dtype=object), "group": np.asarray(split_group, dtype=object)})
    counts = frame.astype({"source": str}).groupby(["group", "source"], sort=True).size().reset_index(name="rows")
    counts = counts.sort_values(["group", "rows", "source"], ascending=[True, False, True], kind="stable")
    main = counts.drop_duplicates("group").set_index("group")["source"]
    unit = frame["group"].map(main).to_numpy(object)
    several = counts["group"].duplicated(keep=False)
    return MainSources(unit, unit != frame["source"].astype(str).to_numpy(object), counts["group"][several].nunique())


def _check_known(source: ArrayLike) -> None:
    names = pd.Series(np.asarray(source, dtype=object))
    if (unknown := names.isna()).any():
        raise DataError(
            f"{int(unknown.sum()):,} of {len(names):,} training rows have no source, so they may come from the one "
            "that is held out: fill in the source (data.columns.source or data.sources), or leave these rows out"
        )


def folds_of_config(folds: Folds, train: pd.DataFrame, settings: FoldSettings) -> tuple[Folds, pd.DataFrame]:
    """Returns the folds of whole sources that the config asks for, and the rows that they are of.

    With `shared_groups: drop` rows of a group outside its main source are left out, which a warning counts.
    """
    if settings.shared_groups == "drop" and "source" in train:
        main = main_sources(train["source"], folds.frame["split_group"])
        if main.left_out.any():
            warnings.warn(
                f"{int(main.left_out.sum()):,} training rows are left out: they are of another source than most rows "
                f"of their split group; {main.groups:,} groups have several (folds.shared_groups: drop)",
                stacklevel=2,
            )
        kept = ~main.left_out
        folds = Folds(folds.frame[kept].reset_index(drop=True), folds.unknown_pairs)
        train = train[kept].reset_index(drop=True)
    made = folds_by_source(folds, train, k=settings.k, seed=settings.seed, stratify=settings.stratify)
    return made, train


def folds_by_source(
    folds: Folds, train: pd.DataFrame, *, k: int, seed: int, stratify: tuple[Stratum, ...] = ()
) -> Folds:
    """Returns ``folds`` of the rows ``train`` (target, source) with other folds, each of which holds out whole sources.

    There are ``k`` folds, or as many as there are units of sources (`source_units`) with each class; several small
    sources then share a fold. Folds are as uneven as the sources are. Warns of fewer than k folds and of joined
    sources. Raises DataError for rows without a source and for fewer than two units.
    """
    if "source" not in train:
        raise DataError("the rows have no source: name it in data.columns.source or data.sources")
    units, target = source_units(train["source"], folds.frame["split_group"]), train["target"].to_numpy()
    if units.joined:
        warnings.warn(
            f"{units.shared_groups:,} split groups have images of more than one source, so these sources are held out "
            f"together: {first_of(units.joined, separator='; ')}",
            stacklevel=2,
        )
    holding = {word: len(set(units.unit[target == label])) for word, label in (("positives", 1), ("negatives", 0))}
    most = min(holding.values())
    if most < 2:
        few = min(holding, key=lambda word: holding[word])
        shared = f", after those that share {units.shared_groups:,} split groups were joined" if units.joined else ""
        raise DataError(
            f"{holding[few]} of {len(units.names)} sources has {few}{shared}: folds of whole sources need two with "
            "each class; name the sources otherwise, set folds.shared_groups: drop, or folds.by: group"
        )
    if most < k:
        warnings.warn(
            f"{most} folds instead of {k}: {len(units.names)} sources are held out as a whole, and {most} of them have "
            f"{min(holding, key=lambda word: holding[word])}",
            stacklevel=2,
        )
    age = train["age"].to_numpy() if "age" in stratify else None
    counts = count_groups(target, units.unit, stratify=stratify, age=age)
    fold = assign_balanced_folds(counts, k=min(k, most), seed=seed)
    return Folds(folds.frame.assign(fold=fold), folds.unknown_pairs)


def read_sources(path: Path, id_column: str, ids: pd.Series) -> pd.Series:
    """Returns the source (n,) of the training ``ids`` from a file with the columns ``id_column`` and `source`.

    As in a column of the table, an empty cell and words such as `NA` are missing sources, and `1` and `1.0` are one.
    Raises DataError as `stack.folds.read_folds` does.
    """
    found = read_column_by_id(path, id_column, "source", ids, key="data.sources")
    return unified_words(found.mask(found.str.lower().isin(MISSING_KEYS)))


def torn_units(unit: ArrayLike, fold: ArrayLike) -> list[str]:
    """Returns the units (n,) that are in more than one ``fold`` (n,), sorted by name."""
    places = pd.DataFrame({"unit": np.asarray(unit, dtype=object), "fold": np.asarray(fold)}).drop_duplicates()
    return sorted(places["unit"][places["unit"].duplicated()].unique())
