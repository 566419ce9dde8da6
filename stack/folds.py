"""Assigns groups to folds, stratified by target; groups that share duplicates are merged into split groups first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dermstack.errors import ConfigError, DataError
from dermstack.listing import counted
from stack.metrics.row_values import checked_seed
from stack.metrics.scores import check_same_order
from stack.tables.cells import as_cells, as_text, read_columns
from stack.tables.keys import check_exact, fold_labels, is_missing_fold, keys_as_in, unified_keys

Stratum = Literal["group_size", "age"]

CANDIDATE_ASSIGNMENTS = 20
SPREAD_TOLERANCE = 1.10  # allowed prevalence spread, as a multiple of the best candidate's
AGE_BAND_YEARS = 20
AGE_BANDS = 5  # the last has no upper limit; missing ages are one more band

Ints = NDArray[np.int64]


class TooFewGroupsError(DataError):
    """Fewer groups hold a class than there are folds, so that another number of folds may do."""


@dataclass(frozen=True)
class GroupCounts:
    """The groups to assign to folds: ``codes`` (n,) is the group of each row, ``counts`` (groups, c) its quantities.

    The columns of ``counts`` are rows, positives, then 0/1 for each band of group sizes and rows in each age band.
    """

    codes: NDArray[np.intp]
    counts: Ints


def count_groups(
    target: ArrayLike, split_group: ArrayLike, *, stratify: tuple[Stratum, ...] = (), age: ArrayLike | None = None
) -> GroupCounts:
    """Counts the rows of each group by ``target`` 0/1 and the strata; all arrays are (n,).

    ``age`` is in years, NaN where unknown, and needed only to stratify by age.
    """
    codes, names = pd.factorize(np.asarray(split_group, dtype=object), sort=True)

    def tally(rows: NDArray[np.bool_]) -> Ints:
        return np.bincount(codes[rows], minlength=len(names)).astype(np.int64)

    rows = tally(np.ones(len(codes), bool))
    columns = [rows, tally(np.asarray(target) == 1)]
    if "group_size" in stratify:
        band = np.log2(rows).astype(int)  # 1, 2–3, 4–7, 8–15, … rows
        columns += [(band == value).astype(np.int64) for value in np.unique(band)]
    if "age" in stratify:
        known = np.asarray(age, dtype=np.float64)
        band = np.where(np.isnan(known), AGE_BANDS, np.clip(np.nan_to_num(known) // AGE_BAND_YEARS, 0, AGE_BANDS - 1))
        columns += [tally(band == value) for value in np.unique(band)]
    return GroupCounts(codes, np.stack(columns, axis=1))


def assign_balanced_folds(group_counts: GroupCounts, *, k: int, seed: int) -> NDArray[np.int8]:
    """Returns the fold (n,) of each row: the assignment of ``seed`` or, where its prevalence is uneven, a better one.

    Where the spread of prevalence over folds exceeds one positive in the smallest fold, 20 further assignments are
    drawn; the best replaces the first if the first exceeds 1.1 times the best spread plus one positive. Raises
    TooFewGroupsError where fewer than k groups hold a class.
    """
    fold = assign_folds(group_counts, k=k, seed=seed)
    own, one_positive = prevalence_spread(group_counts, fold), 1 / np.bincount(fold[group_counts.codes]).min()
    if own > one_positive:  # a spread of one positive can rarely be improved
        others = [assign_folds(group_counts, k=k, seed=seed + 1 + draw) for draw in range(CANDIDATE_ASSIGNMENTS)]
        spreads = [prevalence_spread(group_counts, other) for other in others]
        best = int(np.argmin(spreads))
        if own > SPREAD_TOLERANCE * spreads[best] + one_positive:
            fold = others[best]
    return fold[group_counts.codes].astype(np.int8)


def prevalence_spread(group_counts: GroupCounts, fold: NDArray[np.intp]) -> float:
    """Returns the largest minus the smallest prevalence of a fold; ``fold`` (groups,)."""
    rows, positives = (np.bincount(fold, group_counts.counts[:, column]) for column in (0, 1))
    return float(np.ptp(positives / rows))


def assign_folds(group_counts: GroupCounts, *, k: int, seed: int) -> NDArray[np.intp]:
    """Returns the fold (groups,) of each group: equal shares of identical groups, the rest greedily, largest first.

    Of m groups with identical counts every fold gets m // k, which is an exact balance without a loop over groups. The
    remaining groups (fewer than k of each kind) go, largest first, to the fold whose squared load grows least.
    """
    counts = group_counts.counts
    rows, positives = counts[:, 0], counts[:, 1]
    _check_enough(rows, positives, k)
    share = counts * (k / counts.sum(axis=0, dtype=np.float64))  # (groups, c): 1.0 is the mean load of a fold

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(counts))  # groups are sorted by name, so the order of the rows has no effect
    stratum_columns = tuple(counts[order, column] for column in range(2, counts.shape[1]))
    order = order[
        np.lexsort((*stratum_columns, -rows[order], -positives[order], -share[order, :2].max(axis=1)))
    ]  # largest first
    fold = np.full(len(counts), -1, dtype=np.int64)
    load = np.zeros((k, counts.shape[1]))

    for number, groups in enumerate(_both_classes(order, rows, positives, k)):
        fold[groups] = number
        load[number] += share[groups].sum(axis=0)

    left = order[fold[order] < 0]
    changes = (np.diff(counts[left], axis=0) != 0).any(axis=1)
    remainder: list[int] = []
    for kind in np.split(left, np.flatnonzero(changes) + 1):
        n_equal = len(kind) // k * k
        fold[kind[:n_equal]] = np.arange(n_equal) % k
        load += share[kind[:n_equal]].sum(axis=0) / k
        remainder.extend(kind[n_equal:])
    for group in remainder:
        # load² grows by 2·load·share + share²: the fold with the least load·share grows least
        best = int(np.argmin(load @ share[group]))
        fold[group] = best
        load[best] += share[group]
    return rng.permutation(k)[fold]


def _both_classes(order: NDArray[np.intp], rows: Ints, positives: Ints, k: int) -> list[list[int]]:
    """Chooses for each fold the smallest groups that give it both classes, so that no fold has only one class.

    One mixed group is enough for a fold; each other fold gets one pure group of each class. Enough groups exist, as at
    least k groups hold positives and at least k hold negatives.
    """
    easiest = order[::-1]
    mixed = easiest[(positives[easiest] > 0) & (positives[easiest] < rows[easiest])][:k]
    others = k - len(mixed)
    positive = easiest[positives[easiest] == rows[easiest]][:others]
    negative = easiest[positives[easiest] == 0][:others]
    return [[int(g)] for g in mixed] + [[int(p), int(n)] for p, n in zip(positive, negative, strict=True)]


def _check_enough(rows: Ints, positives: Ints, k: int) -> None:
    for word, holding in (("positives", positives > 0), ("negatives", positives < rows)):
        if holding.sum() < k:
            n = int(holding.sum())
            step = f"set fewer folds (folds.k: {n})" if n >= 2 else "add rows of other groups, as two folds need two"
            raise TooFewGroupsError(
                f"{_groups_holding(n, word)}, fewer than the {k} folds: {step}, "
                "or check columns.group and the duplicates"
            )


def _groups_holding(n: int, word: str) -> str:
    return f"{n} {'group holds' if n == 1 else 'groups hold'} {word}"


LARGE_COMPONENT = 0.05  # share of the rows above which a merged group causes a warning
_MAX_LISTED = 5
NO_SHARES = ("fold", "rows", "groups", "positives", "median age")  # columns of a summary; the others are shares
_MAX_SITES = 4  # number of sites shown in the table of folds


@dataclass(frozen=True)
class Folds:
    """The fold that holds out each row: `frame` has id, group, split_group (str), fold (int8), in table order.

    `unknown_pairs` is the number of duplicate pairs with an id outside the training table; these merge no groups.
    """

    frame: pd.DataFrame
    unknown_pairs: int = 0

    @property
    def k(self) -> int:
        """Number of folds."""
        return int(self.frame["fold"].max()) + 1

    def pairs(self) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
        """Yields (fold, training rows, held-out rows), as row numbers in table order."""
        fold = self.frame["fold"].to_numpy()
        for number in range(self.k):
            yield number, np.flatnonzero(fold != number), np.flatnonzero(fold == number)

    def summary(self, target: ArrayLike, train: pd.DataFrame | None = None) -> pd.DataFrame:
        """Returns one row a fold: fold, rows, groups (split_groups), positives and prevalence of `target` (n,).

        With the table `train` also the median age, the share of missing ages and the shares of the most common sites.
        """
        by_fold = self.frame.assign(target=np.asarray(target, dtype=np.int64)).groupby("fold")
        table = by_fold.agg(
            rows=("id", "size"),
            groups=("split_group", "nunique"),
            positives=("target", "sum"),
            prevalence=("target", "mean"),
        )
        if train is not None:
            fold = self.frame["fold"].to_numpy()
            if train["age"].notna().any():
                table["median age"] = train["age"].groupby(fold).median()
                table["no age"] = train["age"].isna().groupby(fold).mean()
            for site in train["site"].value_counts().index[:_MAX_SITES]:
                table[str(site)] = (train["site"] == site).groupby(fold).mean()
        return table.reset_index()


def make_folds(
    train: pd.DataFrame,
    *,
    k: int,
    seed: int,
    duplicates: pd.DataFrame | None = None,
    own: pd.Series | None = None,
    stratify: tuple[Stratum, ...] = (),
) -> Folds:
    """Assigns the split_groups of `train` (id, group, target) to k folds, balanced in rows and in positives.

    `stratify` also balances the sizes of the split_groups or, with a column `age`, age bands of 20 years.

    `duplicates` has two columns of ids (str); a pair merges two groups into one split_group, also along chains.
    `own` (n,), in the order of the rows, is a fold column to use instead; its sorted values become 0..k-1.
    The fold of a group depends on the groups, their targets, the strata and the seed, not on the order of the rows.
    Groups of several types, such as 7 and "7" in a column that pandas read in parts, are compared as text.

    Raises ConfigError for k outside 2 to 127, DataError for repeated ids, missing groups, targets other than 0 and 1
    and pairs whose ids may be another spelling of a row's, and where `own` has gaps or its rows in another order,
    splits a split_group or leaves a fold with one class; TooFewGroupsError, a DataError, where fewer than k
    split_groups hold positives (or negatives). Warns where duplicates merge more than 5 % of the rows into one
    split_group.
    """
    if not isinstance(k, int | np.integer) or not 2 <= k <= 127:
        raise ConfigError(f"k is {k!r}: set the number of folds to 2 to 127")
    checked_seed(seed)
    train = _checked_rows(train)
    check_same_order(train=train, own=own)
    split_group, unknown = _split_groups(train, duplicates)
    target = train["target"].to_numpy()
    if own is None:
        age = train["age"].to_numpy() if "age" in stratify else None
        fold = assign_balanced_folds(count_groups(target, split_group, stratify=stratify, age=age), k=k, seed=seed)
    else:
        fold = _folds_from_column(own, k)
        _check_fold_column(fold, target, split_group)
    frame = train[["id", "group"]].reset_index(drop=True)
    frame = frame.assign(split_group=split_group.to_numpy(), fold=fold).astype({"split_group": "str"})
    return Folds(frame, unknown)


def read_folds(path: Path, id_column: str, ids: pd.Series) -> pd.Series:
    """Returns the folds (n,) of the training ``ids``, as text, from the columns ``id_column`` and `fold` of a file.

    Raises DataError for absent columns, repeated ids and training ids without a fold.
    """
    return read_column_by_id(path, id_column, "fold", ids, key="folds.file")


def read_column_by_id(path: Path, id_column: str, column: str, ids: pd.Series, *, key: str) -> pd.Series:
    """Returns the cells (n,) of ``column`` for the training ``ids``, as text, from a file that also has ``id_column``.

    ``key`` of the config names the file in messages. Raises DataError as `read_folds` does.
    """
    read = read_columns(path)
    for name in (id_column, column):
        if (number := list(read.columns).count(name)) != 1:
            has = f"has no column {name!r}, it has" if not number else f"has {number} columns named {name!r}, of"
            raise DataError(
                f"{key} {path} {has} {', '.join(map(repr, read.columns))}: rename the columns that hold the ids and "
                f"the {column}s"
            )
    check_exact(read[id_column], f"{key} {path}: the ids in {id_column!r}")
    cells = as_cells(read)
    names = keys_as_in(cells[id_column].str.strip(), ids, f"{path}: id", of="the training table")
    if (doubled := names.duplicated()).any():
        raise DataError(f"{key} {path} has {names[doubled].iloc[0]!r} in more than one row: keep one row of each id")
    found = pd.Series(cells[column].str.strip().to_numpy(), index=pd.Index(names), dtype="str").reindex(ids)
    if found.isna().any():
        raise DataError(
            f"{key} {path} lacks {int(found.isna().sum()):,} of {len(ids):,} training ids, first "
            f"{ids[found.isna().to_numpy()].iloc[0]!r}: add them, or remove {key}"
        )
    return found.reset_index(drop=True)


def inner_split(target: ArrayLike, split_group: ArrayLike, *, seed: int, parts: int = 5) -> NDArray[np.bool_]:
    """Marks about n/parts rows for early stopping (n,), as whole split_groups that hold both classes.

    `target`, `split_group` (n,). Where fewer than `parts` split_groups hold a class the part is larger, up to a half;
    raises DataError where fewer than two do.
    """
    if parts < 2:
        raise ConfigError(f"parts is {parts}: set it to 2 or more")
    target, groups = np.asarray(target), pd.Series(np.asarray(split_group, dtype=object))
    holding = {word: groups[target == label].nunique() for word, label in (("positives", 1), ("negatives", 0))}
    for word, n in holding.items():
        if n < 2:
            raise DataError(
                f"{_groups_holding(n, word)} of the training rows: early stopping sets groups of both classes aside "
                "and needs two of each; give more rows, or make more folds so that fewer rows are held out"
            )
    group_counts = count_groups(target, groups)
    part = assign_folds(group_counts, k=min(parts, *holding.values()), seed=seed)[group_counts.codes]
    return np.equal(part, 0)


def _checked_rows(train: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with one type of groups; raises DataError for rows that no table read by dermstack has."""
    if absent := [column for column in ("id", "group", "target") if column not in train]:
        raise DataError(
            f"the rows have no column {', '.join(absent)} (they have {', '.join(map(str, train.columns))}): give id, "
            "group and target, as `read_table` names them"
        )
    if (nameless := train["id"].isna()).any():
        raise DataError(f"{counted(int(nameless.sum()), 'rows', 'have')} no id: fill it in, or drop these rows")
    if (doubled := train["id"].duplicated()).any():
        raise DataError(
            f"{counted(int(doubled.sum()), 'rows', 'repeat')} an id, first {train['id'][doubled].iloc[0]!r}: keep "
            "one each"
        )
    target = train["target"].to_numpy()
    if len(odd := target[~np.isin(target, (0, 1))]):
        raise DataError(f"{len(odd)} targets are not 0 or 1, first {odd[:1].tolist()[0]!r}: correct or drop these rows")
    if (lost := train["group"].isna()).any():
        raise DataError(f"{int(lost.sum())} rows have no group: fill it in, or give each row a group of its own")
    group = train["group"]
    if pd.api.types.infer_dtype(group).startswith("mixed"):
        group = unified_keys(as_text(group), "groups")
    return train.assign(group=group)


def read_duplicate_pairs(path: Path | None, ids: pd.Series | None = None) -> pd.DataFrame | None:
    """Reads pairs of duplicates (id_1, id_2) in the spelling that known ``ids`` have; None where the config names none.

    Raises DataError for a file that cannot be read or has other than two columns, and where an id may be another
    spelling of a known one: the pair would have no effect.
    """
    if path is None:
        return None
    if not path.is_file():
        raise DataError(f"data.duplicates {path} does not exist: name a csv with two id columns, or remove the key")
    read = read_columns(path, may_be_empty=True)
    for side in range(read.shape[1]):
        check_exact(read.iloc[:, side], f"data.duplicates {path}: the ids in {read.columns[side]!r}")
    pairs = as_cells(read)
    if pairs.shape[1] != 2:
        columns = ", ".join(map(str, pairs.columns))
        raise DataError(f"data.duplicates {path} has the columns {columns}: keep the two that hold the ids of a pair")
    header, known = list(map(str, pairs.columns)), pd.Series([], dtype="str") if ids is None else ids
    if set(header) <= set(known):
        raise DataError(
            f"data.duplicates {path} has no header: its first row, {' and '.join(header)}, is a pair of ids that would "
            "be lost; add a row with two names above it"
        )
    sides = [keys_as_in(pairs.iloc[:, side], known, f"data.duplicates {path}: id", of="the tables") for side in (0, 1)]
    return pd.DataFrame({"id_1": sides[0], "id_2": sides[1]})


def _split_groups(train: pd.DataFrame, duplicates: pd.DataFrame | None) -> tuple[pd.Series, int]:
    """Merges groups connected by duplicates; returns the split_group of each row and the number of unknown pairs."""
    if duplicates is None or duplicates.empty:
        return train["group"], 0
    if duplicates.shape[1] != 2:
        columns = ", ".join(map(str, duplicates.columns))
        raise DataError(f"the duplicates have the columns {columns}: keep the two that hold the ids of a pair")
    codes, names = pd.factorize(train["group"].to_numpy(), sort=True)
    ids = as_text(train["id"])
    group_of = pd.Series(codes, index=ids.to_numpy())
    sides = [as_text(duplicates.iloc[:, side]) for side in (0, 1)]
    ends = [keys_as_in(side, ids, "duplicates: id", of="the rows").map(group_of) for side in sides]
    known = (ends[0].notna() & ends[1].notna()).to_numpy()
    a, b = (end[known].to_numpy(np.intp) for end in ends)
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)  # names are sorted: the first is the component's name
    _warn_of_large(component, codes, names[first])
    return pd.Series(names[first][component[codes]]), int((~known).sum())


def _warn_of_large(component: NDArray[np.int32], codes: NDArray[np.intp], names: NDArray[np.object_]) -> None:
    groups = np.bincount(component)
    rows = np.bincount(component[codes], minlength=len(groups))
    for number in np.flatnonzero((groups > 1) & (rows > LARGE_COMPONENT * len(codes))):
        warnings.warn(
            f"duplicates merge {groups[number]} groups into one, {names[number]!r}, with {rows[number]} rows "
            f"({rows[number] / len(codes):.1%} of the table): folds will be uneven; check the pairs",
            stacklevel=4,
        )


def _folds_from_column(own: pd.Series, k: int) -> NDArray[np.int8]:
    values = pd.Series(own.to_numpy())
    missing = is_missing_fold(values) | (pd.to_numeric(values, errors="coerce") < 0).to_numpy(bool)
    if missing.any():
        shown = ", ".join(str(row + 2) for row in np.flatnonzero(missing)[:_MAX_LISTED])
        count = int(missing.sum())
        raise DataError(
            f"the fold column is empty or negative in {count} rows (row {shown}{_more(count)}): give every row a fold"
        )
    codes, found = pd.factorize(fold_labels(values, "folds").to_numpy(), sort=True)
    if len(found) != k:
        raise DataError(f"the fold column has {len(found)} folds, but k is {k}: set k to {len(found)}")
    return codes.astype(np.int8)


def _check_fold_column(fold: NDArray[np.int8], target: NDArray[np.generic], split_group: pd.Series) -> None:
    if len(fold) != len(split_group):
        raise DataError(f"the fold column has {len(fold)} values for {len(split_group)} rows: give one a row")
    pairs = pd.DataFrame({"group": split_group.to_numpy(), "fold": fold}).drop_duplicates()
    pairs = pairs[pairs["group"].duplicated(keep=False)]
    if len(pairs):
        torn = pairs.groupby("group")["fold"].unique()
        shown = "; ".join(
            f"{name!r} in folds {', '.join(map(str, sorted(f)))}" for name, f in torn[:_MAX_LISTED].items()
        )
        raise DataError(
            f"the fold column splits {len(torn)} groups ({shown}{_more(len(torn))}): "
            "put each group and its duplicates into one fold, or remove columns.fold so that new folds are made"
        )
    for number in range(int(fold.max()) + 1):
        if len(np.unique(target[fold == number])) == 1:
            raise DataError(f"fold {number} of the fold column holds only one class: give every fold rows of both")


def _more(count: int) -> str:
    return ", …" if count > _MAX_LISTED else ""
