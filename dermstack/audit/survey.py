"""A first survey of a data set: the frames of numbers behind the figures of `dermstack eda`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stack.metrics.intervals import interval
from stack.metrics.scores import auc
from stack.table import Table

MISSING = "(missing)"
AGE_EDGES = np.arange(0, 105, 5)  # years: the lower edges of the bins; the last one, 100, is open above
PICTURE_FACTS = {  # what the files say of the original pictures, and its words
    "source_width": "picture width",
    "source_height": "picture height",
    "source_bytes": "picture file size",
}
_MOST = 14  # levels of a column that are told apart; the rarest share a line
_DRAWS = 200


def level_counts(train: pd.DataFrame, column: str, *, most: int = _MOST) -> pd.DataFrame:
    """What `column` holds against the target, most frequent first: level, rows, negatives, positives, prevalence.

    What is missing is a level of its own, the last one; beyond `most` the rarest are one line, "other (9 kinds)".
    """
    levels, other = _levels(train[column], most)
    by_level = train["target"].groupby(levels)
    frame = by_level.agg(rows="size", positives="sum").rename_axis("level").reset_index()
    frame.insert(2, "negatives", frame["rows"] - frame["positives"])
    frame["prevalence"] = frame["positives"] / frame["rows"]
    place = frame["level"].map({MISSING: 2, other: 1}).fillna(0)  # after all that have a name
    frame = frame.assign(place=place).sort_values(["place", "rows", "level"], ascending=[True, False, True])
    return frame.drop(columns="place").reset_index(drop=True)


def age_histograms(train: pd.DataFrame, column: str, *, most: int = _MOST) -> pd.DataFrame:
    """Ages within each level of `column`: level, of ("all" or "positive"), images, known, median, then the bins.

    The bins are named 0, 5, … 100 (years, the last one open above) and hold shares of the images of known age: they
    sum to 1, or are 0 where none is known. Levels come in the order of `level_counts`, each twice.
    """
    levels, _ = _levels(train[column], most)
    order = level_counts(train, column, most=most)["level"]
    records = []
    for level in order:
        here = levels == level
        for of, rows in (("all", here), ("positive", here & (train["target"].to_numpy() == 1))):
            ages = train.loc[rows, "age"]
            records.append([level, of, int(rows.sum()), int(ages.count()), float(ages.median()), *age_shares(ages)])
    return pd.DataFrame(records, columns=["level", "of", "images", "known", "median", *AGE_EDGES.tolist()])


def age_shares(ages: pd.Series) -> NDArray[np.float64]:
    """Shares of the known among `ages` (n,) in each bin of AGE_EDGES; zeros where none is known."""
    known = ages.dropna().to_numpy(np.float64)
    bins = np.clip(np.searchsorted(AGE_EDGES, known, side="right") - 1, 0, len(AGE_EDGES) - 1)
    return np.bincount(bins, minlength=len(AGE_EDGES)) / max(len(known), 1)


def age_rates(train: pd.DataFrame) -> pd.DataFrame:
    """The share of positives by decades of age: ages ("40–49"; "90 and over"), images, positives, prevalence.

    From the youngest to the oldest decade that is there, those between without an image with a prevalence of NaN.
    """
    known = train.loc[train["age"].notna(), ["age", "target"]]
    decade = (known["age"] // 10).clip(upper=9).astype(int)
    decades = range(int(decade.min()), int(decade.max()) + 1)
    counts = known["target"].groupby(decade).agg(images="size", positives="sum")
    frame = pd.DataFrame(counts.reindex(decades, fill_value=0))
    names = [f"{10 * number}–{10 * number + 9}" if number < 9 else "90 and over" for number in frame.index]
    frame = frame.assign(prevalence=frame["positives"] / frame["images"])
    frame.insert(0, "ages", names)
    return frame.reset_index(drop=True)


def group_sizes(train: pd.DataFrame) -> pd.DataFrame:
    """Groups by their number of images: images ("1", "2", "3–4" …), groups, with_positive, rows, positives, prevalence.

    Each size is a line where no group is larger than 12; else the lines double in width. Sizes that no group has are
    left out.
    """
    groups = train.groupby("group")["target"].agg(rows="size", positives="sum")
    groups["with_positive"] = groups["positives"] > 0
    largest = int(groups["rows"].max())
    edges = np.arange(1, largest + 1) if largest <= 12 else 2 ** np.arange(int(np.log2(largest)) + 1)
    bins = np.searchsorted(edges, groups["rows"], side="right") - 1
    frame = groups.groupby(bins).sum()[["with_positive", "rows", "positives"]]
    frame.insert(0, "groups", np.bincount(bins)[frame.index])
    ends = [*(edges[1:] - 1), largest]
    names = [str(low) if low == high else f"{low}–{high}" for low, high in zip(edges, ends, strict=True)]
    frame.insert(0, "images", [names[number] for number in frame.index])
    frame["prevalence"] = frame["positives"] / frame["rows"]
    return pd.DataFrame(frame.reset_index(drop=True))


def missing_values(table: Table) -> pd.DataFrame:
    """For each column that may be empty: column, rows (of train), train, negatives, positives, test (shares missing).

    `test` is NaN where there are no test rows, or the column is of train alone.
    """
    train, test = table.train, table.test
    positive = train["target"] == 1
    records = []
    for column in ("age", "sex", "site", "diagnosis"):
        if column in train:
            empty = train[column].isna()
            in_test = test[column].isna().mean() if len(test) and column in test else np.nan
            shares = [empty.mean(), empty[~positive].mean(), empty[positive].mean(), in_test]
            records.append([column, int(empty.sum()), *map(float, shares)])
    return pd.DataFrame(records, columns=["column", "rows", "train", "negatives", "positives", "test"])


def picture_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Sizes of the original pictures of `rows` (source_width, source_height, target), most frequent first.

    Columns width, height, rows, negatives, positives, prevalence.
    """
    by_size = rows.groupby(["source_width", "source_height"])["target"].agg(rows="size", positives="sum").reset_index()
    frame = by_size.rename(columns={"source_width": "width", "source_height": "height"})
    frame.insert(3, "negatives", frame["rows"] - frame["positives"])
    frame["prevalence"] = frame["positives"] / frame["rows"]
    return frame.sort_values(["rows", "width", "height"], ascending=[False, True, True], ignore_index=True)


def shortcuts(train: pd.DataFrame, facts: dict[str, ArrayLike]) -> pd.DataFrame:
    """How well each of `facts` (n,) alone, which says nothing of the skin, ranks positives before negatives.

    Columns fact, negatives, positives (medians), direction (positives are "larger", "smaller", "neither"), auc (turned
    that way, so 0.5 or more), low, high: 95 % over groups, NaN where fewer than two groups hold a positive.
    """
    y, group = train["target"].to_numpy(), train["group"].to_numpy()
    enough = train.loc[train["target"] == 1, "group"].nunique() > 1
    records = []
    for fact, given in facts.items():
        values = np.asarray(given, np.float64)
        sign = 1 if auc(y, values) >= 0.5 else -1
        found = interval("auc", y, sign * values, group, draws=_DRAWS) if enough else None
        value, low, high = (found.value, found.low, found.high) if found else (auc(y, sign * values), np.nan, np.nan)
        medians = [float(np.median(values[y == label])) for label in (0, 1)]
        direction = "neither" if value == 0.5 else "larger" if sign > 0 else "smaller"
        records.append([fact, *medians, direction, value, low, high])
    return pd.DataFrame(records, columns=["fact", "negatives", "positives", "direction", "auc", "low", "high"])


def _levels(values: pd.Series, most: int) -> tuple[NDArray[np.object_], str]:
    """Each row's level, what is missing and rare under names of their own, and that of the rare."""
    counts = values.value_counts()
    rare = counts.index[most - 1 :] if len(counts) > most else counts.index[:0]
    other = f"other ({len(rare)} kinds)"
    levels = values.astype("object").where(values.notna(), MISSING).mask(values.isin(rare), other)
    return levels.to_numpy(), other
