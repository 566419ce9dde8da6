"""Rows given from Python: labels in another order, groups of two types and repeated ids are refused, not misread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from dermstack import Blender, auc, average_precision, blend_nested, interval, make_folds, paired_difference, pauc80
from dermstack.errors import DataError

N = 60
IDS = [f"i{number}" for number in range(N)]
RNG = np.random.default_rng(0)
Y = pd.Series(np.tile([0, 0, 1], N // 3), index=IDS)
P = pd.DataFrame({"a": 0.3 + 0.3 * Y + RNG.normal(0, 0.1, N), "b": RNG.random(N)}, index=IDS).clip(0.01, 0.99)
GROUP = pd.Series(np.repeat(np.arange(N // 3), 3), index=IDS)
FOLD = GROUP % 4
OTHER = RNG.permutation(IDS)

CALLS: dict[str, Callable[[pd.Series, pd.DataFrame, pd.Series], object]] = {
    "auc": lambda y, p, group: auc(y, p["a"]),
    "pauc80": lambda y, p, group: pauc80(y, p["a"]),
    "average_precision": lambda y, p, group: average_precision(y, p["a"]),
    "interval": lambda y, p, group: interval("auc", y, p["a"], group, draws=5),
    "paired_difference": lambda y, p, group: paired_difference("auc", y, p["a"], p["b"], group, draws=5),
    "blend_nested": lambda y, p, group: blend_nested(p, y, nets=FOLD, fold=FOLD, split_group=group, methods=["mean"]),
    "Blender": lambda y, p, group: Blender("mean").fit(p, y, groups=group),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_rows_with_the_same_labels_in_another_order_are_refused(name: str) -> None:
    """By position, each row would get the score of another: an AUC of about 0.5, without a sign."""
    CALLS[name](Y, P, GROUP)
    CALLS[name](Y, P.set_axis(range(N)), GROUP)  # numbered by pandas: nothing is known of the order
    with pytest.raises(DataError, match="label the same rows in another order"):
        CALLS[name](Y.loc[OTHER], P, GROUP)
    if name not in ("auc", "pauc80", "average_precision"):
        with pytest.raises(DataError, match="label the same rows in another order"):
            CALLS[name](Y, P, GROUP.loc[OTHER])


def table(**changes: object) -> pd.DataFrame:
    return pd.DataFrame({"id": IDS, "group": GROUP.astype(str).to_numpy(), "target": Y.to_numpy()} | changes)


def test_a_column_that_pandas_read_in_parts_splits_no_group() -> None:
    """`read_csv` with low_memory gives 7 in one part of a column and "7" in another (DtypeWarning)."""
    mixed = [int(group) if row % 2 else str(group) for row, group in enumerate(GROUP)]
    folds = make_folds(table(group=mixed), k=4, seed=0).frame
    assert folds.groupby(GROUP.to_numpy())["fold"].nunique().max() == 1
    assert folds["fold"].tolist() == make_folds(table(), k=4, seed=0).frame["fold"].tolist()
    groups = pd.Series(mixed, dtype=object)
    with pytest.raises(DataError, match=r"'0' \(str\) and 0 \(int\)|0 \(int\) and '0' \(str\)"):
        interval("auc", Y, P["a"], groups, draws=5)
    with pytest.raises(DataError, match="which would count as two groups"):
        blend_nested(P, Y, nets=FOLD, fold=np.arange(N) % 4, split_group=groups, methods=["mean"])


@pytest.mark.filterwarnings("ignore:duplicates merge")
@pytest.mark.parametrize("kind", [int, float])
def test_pairs_of_duplicates_merge_groups_whatever_the_type_of_the_ids(kind: type) -> None:
    rows = table(id=np.arange(N))
    pairs = pd.DataFrame({"one": np.array([0, 9], kind), "other": np.array([30, 40], kind)})
    folds = make_folds(rows, k=4, seed=0, duplicates=pairs)
    assert folds.unknown_pairs == 0
    split_group = folds.frame["split_group"]
    assert (split_group[[0, 9]].to_numpy() == split_group[[30, 40]].to_numpy()).all()
    with pytest.raises(DataError, match="duplicates: id '0' is not in the rows, which has '000'"):
        make_folds(table(id=[f"{n:03}" for n in range(N)]), k=4, seed=0, duplicates=pairs.astype(int))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": ["x", *IDS[1:-1], "x"]}, "1 row repeats an id, first 'x'"),
        ({"id": [None, *IDS[1:]]}, "1 row has no id"),
        ({"group": [None, *GROUP.astype(str)[1:]]}, "1 rows have no group"),
        ({"target": Y.to_numpy() + 1}, "20 targets are not 0 or 1, first 2"),
        ({"target": Y.astype(str).to_numpy()}, "60 targets are not 0 or 1, first '0'"),
        ({"target": np.where(np.arange(N) == 3, np.nan, Y)}, "1 targets are not 0 or 1, first nan"),
    ],
)
def test_rows_that_no_table_has_get_no_folds(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_folds(table(**changes), k=4, seed=0)


@pytest.mark.parametrize("absent", ["id", "group", "target"])
def test_a_column_that_folds_need_and_that_is_absent_is_named(absent: str) -> None:
    with pytest.raises(DataError, match=rf"the rows have no column {absent} \(they have "):
        make_folds(table().drop(columns=absent), k=4, seed=0)


def test_a_fold_column_in_another_order_than_the_rows_is_refused() -> None:
    rows = table().set_index("id", drop=False)
    assert make_folds(rows, k=4, seed=0, own=FOLD).k == 4
    with pytest.raises(DataError, match="own and train label the same rows in another order"):
        make_folds(rows, k=4, seed=0, own=FOLD.loc[OTHER])


def test_a_column_of_ids_and_targets_as_a_matrix_are_named() -> None:
    options = {"nets": FOLD, "fold": FOLD, "split_group": GROUP, "methods": ["mean"]}
    with pytest.raises(DataError, match="P has the column 'id', which holds 'i0'"):
        blend_nested(P.assign(id=IDS), Y, **options)
    with pytest.raises(DataError, match=r"y has shape \(60, 1\)"):
        blend_nested(P, Y.to_numpy()[:, None], **options)
