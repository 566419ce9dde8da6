"""Train against test, column by column: how far apart they are, and how far chance alone would put them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from dermstack.audit.finding import Finding, Severity
from dermstack.audit.single_column import FALSE_ALARM_RATE, one_sided_rank_p
from stack.experiment import Experiment
from stack.images import with_acquisition
from stack.metrics.intervals import Interval, interval
from stack.metrics.scores import auc
from stack.parallel import run_with_threads
from stack.table import ACQUISITION, Table

_DRAWS = 200


def drift(
    train: Mapping[str, pd.Series],
    test: Mapping[str, pd.Series],
    train_group: pd.Series,
    test_group: pd.Series,
    *,
    seed: int,
) -> pd.DataFrame:
    """Compare each column of `train` (n values) with that of `test` (m values); groups (n,) and (m,).

    One row a column: column, kind, distance, chance, beyond, auc, missing_train, missing_test.

    `distance`, 0 to 1, is the largest difference between the shares of train and of test that one question can find:
    below which value (kind "number", the Kolmogorov–Smirnov statistic of the known values), or in which set of levels
    (kind "words", total variation; a missing value is a level). `chance`: 95 % of draws that deal whole groups to train
    and test at random lie below it; `beyond`: whether the distance is larger. `auc`, 0.5 to 1: of telling a test row
    from a train row by this column alone; by words, levels with more of the test rows first, as seen on these rows.
    NaN where one side has no known value.
    """
    rng = np.random.default_rng(seed)
    units, in_test = _units(train_group, test_group)
    shuffled = [rng.permutation(in_test) for _ in range(_DRAWS)]
    records = []
    for column in train:
        both = pd.concat([train[column], test[column]], ignore_index=True)
        numeric = pd.api.types.is_numeric_dtype(both)
        codes, levels = pd.factorize(both, sort=True, use_na_sentinel=numeric)
        known = np.flatnonzero(codes >= 0)
        counts = [_counts(codes[known], dealt[units[known]], len(levels)) for dealt in [in_test, *shuffled]]
        distances = [_distance(pair, numeric) for pair in counts]
        missing = [float(side[column].isna().mean()) for side in (train, test)]
        # A draw in which one side has no known value has no distance.
        chance = float(np.nanquantile(distances[1:], 0.95)) if np.isfinite(distances[1:]).any() else np.nan
        kind = "number" if numeric else "words"
        beyond = distances[0] > chance + 1e-9  # sums of the same shares in another order differ by rounding
        records.append([column, kind, distances[0], chance, beyond, _auc(counts[0], numeric), *missing])
    names = ["column", "kind", "distance", "chance", "beyond", "auc", "missing_train", "missing_test"]
    return pd.DataFrame(records, columns=names)


def _units(train_group: pd.Series, test_group: pd.Series) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """What is dealt whole: the unit of each row, and of each unit whether it is in test. A shared group is two."""
    first, groups = pd.factorize(train_group)
    second, others = pd.factorize(test_group)
    in_test = np.repeat([False, True], [len(groups), len(others)])
    return np.concatenate([first, second + len(groups)]), in_test


def _counts(codes: NDArray[np.intp], in_test: NDArray[np.bool_], levels: int) -> NDArray[np.float64]:
    """Rows of train and of test with each level: (2, levels)."""
    return np.bincount(codes + levels * in_test, minlength=2 * levels).reshape(2, levels).astype(np.float64)


def _distance(counts: NDArray[np.float64], numeric: bool) -> float:
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        return np.nan
    train, test = counts / totals
    if numeric:
        return float(np.max(np.abs(np.cumsum(train - test))))
    return float(np.sum(np.abs(train - test)) / 2)


def _auc(counts: NDArray[np.float64], numeric: bool) -> float:
    """That a test row's level stands above a train row's, ties half, turned to 0.5 or more."""
    if not counts.sum(axis=1).all():
        return np.nan
    if not numeric:
        counts = counts[:, np.argsort(counts[1] / counts.sum(axis=0), kind="stable")]
    train, test = counts
    below = np.cumsum(train) - train
    value = float(np.sum(test * (below + train / 2)) / (train.sum() * test.sum()))
    return max(value, 1 - value)


WARNING_AUC = 0.55  # AUC between train and test from which it is worth a warning, where chance is out of question
MIN_GROUPS = 10  # groups on either side, with fewer of which nothing is said
HALF_SPLITS = 9  # splits of the groups into a half to learn from and a half to test on
_FOLDS = 5
_CLASSIFIER_LEVELS = 50  # levels of words that the classifier tells apart
_MIN_DRIVER_SHARE = 0.1  # share of what the AUC has above 0.5 that a column must be worth to be named as what drives it

Floats = NDArray[np.float64]


def drift_findings(experiment: Experiment, *, seed: int = 0) -> list[Finding]:
    """Of what the models use (age, sex, site, and what the config adds), then of what they don't: one finding each.

    The AUC is of a gradient boosting that tells test rows from training rows out of fold, whole groups held out. Ids,
    and what is in train alone, take no part. Drift of what no model uses is a note.
    """
    parts = _train_and_test(experiment)
    if not len(parts[1]):
        return []
    features = experiment.config.features
    used, unused = ["age", "sex", "site"], list[str]()
    (used if features.context_counts else unused).append("images of the group")
    (used if features.shortcuts else unused).extend(ACQUISITION)
    found = []
    for columns, is_used in ((used, True), (unused, False)):
        known = [name for name in columns if all(name in part and part[name].notna().any() for part in parts)]
        known = [name for name in known if pd.concat([part[name] for part in parts]).nunique(dropna=False) > 1]
        if known:
            found.append(run_with_threads(experiment.config.threads, _drift_finding, parts, known, is_used, seed))
    return found


def _drift_finding(parts: list[pd.DataFrame], columns: list[str], is_used: bool, seed: int) -> Finding:
    what = f"train and test differ in {'what models use' if is_used else 'what no model uses'}"
    groups = [part["group"].nunique() for part in parts]
    if min(groups) < MIN_GROUPS:
        evidence = f"{groups[0]} groups in train, {groups[1]} in test"
        return Finding("note", "too few groups to tell train from test", evidence, "none")
    both = pd.concat(parts, ignore_index=True)
    in_test = np.repeat([0, 1], [len(part) for part in parts])
    x, group = _matrix(both[columns]), both["group"].to_numpy(object)
    separation, importances = adversarial_validation(x, in_test, group, seed=seed)
    p = adversarial_validation_p(x, in_test, group, seed=seed)
    evidence = f"AUC {separation} between them, of {', '.join(columns)}; p = {min(1.0, 2 * p):.1g}"
    if 2 * p >= FALSE_ALARM_RATE:  # what is used, what is not: two looks
        evidence += ": within chance"
        return Finding("note", what.replace("differ", "don't differ beyond chance"), evidence, "none")
    drivers = _drivers(
        parts, columns, importances, least=_MIN_DRIVER_SHARE * max(separation.value - 0.5, 0.0), seed=seed
    )
    evidence += f"; driven by {drivers}" if drivers else "; by no column alone"
    if not is_used:
        return Finding("note", what, evidence, "harmless as long as no model is given these")
    severity: Severity = "warning" if separation.value > WARNING_AUC else "note"
    remedy = "the estimate is of rows like those of train; look at its subgroups, which say how it does on others"
    return Finding(severity, what, evidence, remedy)


def adversarial_validation(
    x: Floats, in_test: NDArray[np.generic], group: NDArray[np.object_], *, seed: int
) -> tuple[Interval, Floats]:
    """AUC between train and test out of fold, and what it loses where a column (k,) is shuffled among held-out rows."""
    made = np.empty(len(x))
    shuffled = np.empty((x.shape[1], len(x)))
    rng = np.random.default_rng(seed)
    part = _random_group_parts(in_test, group, _FOLDS, rng)
    for k in range(_FOLDS):
        held = np.flatnonzero(part == k)
        score = _fit_classifier(x[part != k], in_test[part != k])
        made[held] = score(x[held])
        for column in range(x.shape[1]):
            other = x[held].copy()
            other[:, column] = rng.permutation(other[:, column])
            shuffled[column, held] = score(other)
    found = interval("auc", in_test, made, group)
    return found, found.value - np.array([auc(in_test, s) for s in shuffled])


def adversarial_validation_p(
    x: Floats, in_test: NDArray[np.generic], group: NDArray[np.object_], *, seed: int
) -> float:
    """p-value of rows (n, k) not telling whether they are of test: learned on half of the groups, tested on the other.

    Twice the median over splits, which is valid however the splits depend (Meinshausen, Meier & Bühlmann 2009). The
    scores of all folds together would not do: folds that learn from each other's rows are not independent.
    """
    rng = np.random.default_rng(seed)
    p_values = []
    for _ in range(HALF_SPLITS):
        held = _random_group_parts(in_test, group, 2, rng) == 1
        p_values.append(
            one_sided_rank_p(in_test[held], _fit_classifier(x[~held], in_test[~held])(x[held]), group[held])
        )
    return min(1.0, 2 * float(np.median(p_values)))


def _random_group_parts(
    in_test: NDArray[np.generic], group: NDArray[np.object_], k: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """A part 0..k-1 of each row (n,), whole groups, those of test and the others dealt apart."""
    codes, names = pd.factorize(group)
    holds = np.bincount(codes, in_test, len(names)) > 0
    order = rng.permutation(len(names))
    order = order[np.argsort(holds[order], kind="stable")]
    part = np.empty(len(names), np.intp)
    part[order] = np.arange(len(names)) % k
    dealt: NDArray[np.intp] = part[codes]
    return dealt


def _fit_classifier(x: Floats, y: NDArray[np.generic]) -> Callable[[Floats], Floats]:
    model = HistGradientBoostingClassifier(
        max_iter=50, max_leaf_nodes=8, min_samples_leaf=20, early_stopping=False, random_state=0
    ).fit(x, y)
    return lambda rows: np.asarray(model.decision_function(rows), np.float64)


def _matrix(rows: pd.DataFrame) -> Floats:
    """(n, k): numbers as they are, words as the number of their level; a missing one is a level, the rare share one."""
    columns = []
    for name in rows:
        if pd.api.types.is_numeric_dtype(rows[name]):
            columns.append(rows[name].to_numpy(np.float64, na_value=np.nan))
        else:
            words = rows[name].astype("object").where(rows[name].notna(), "")
            common = pd.Index(words.value_counts().index[:_CLASSIFIER_LEVELS].sort_values())
            columns.append(common.get_indexer(pd.Index(words)).astype(np.float64))
    return np.column_stack(columns)


def _train_and_test(experiment: Experiment) -> list[pd.DataFrame]:
    known = with_acquisition(experiment) or experiment
    tables = [part.reset_index(drop=True) for part in (known.table.train, known.table.test)]
    return [part.assign(**{"images of the group": part.groupby("group")["id"].transform("size")}) for part in tables]


def _drivers(parts: list[pd.DataFrame], columns: list[str], importances: Floats, *, least: float, seed: int) -> str:
    """Columns by what they are worth, with how far apart the two sides are in each."""
    sides = [{name: part[name] for name in columns} for part in parts]
    distance = drift(sides[0], sides[1], parts[0]["group"], parts[1]["group"], seed=seed).set_index("column")
    order = [place for place in np.argsort(-importances, kind="stable") if importances[place] > least]
    return ", ".join(
        f"{columns[place]} (AUC −{importances[place]:.3f} without it, "
        f"{distance.loc[columns[place], 'distance']:.0%} of rows "
        f"apart, {distance.loc[columns[place], 'chance']:.0%} by chance)"
        for place in order
    )


MISSING = "(missing)"
AGE_EDGES = np.arange(0, 105, 5)  # years: the lower edges of the bins; the last one, 100, is open above
SIZE_LABELS = {  # what the files say of the original pictures, and its words
    "source_width": "picture width",
    "source_height": "picture height",
    "source_bytes": "picture file size",
}
_TABLE_LEVELS = 14  # levels of a column that are told apart; the rarest share a line


def level_counts(train: pd.DataFrame, column: str, *, most: int = _TABLE_LEVELS) -> pd.DataFrame:
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


def age_histograms(train: pd.DataFrame, column: str, *, most: int = _TABLE_LEVELS) -> pd.DataFrame:
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
