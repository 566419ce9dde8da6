"""Measures drift between train and test, by column and by classifier, and counts what the EDA page shows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.audit.adversarial_validation import adversarial_validation, adversarial_validation_p, classifier_matrix
from dermstack.audit.finding import Finding, Severity
from dermstack.audit.single_column import FALSE_ALARM_RATE, column_auc, mirrored
from stack.experiment import Experiment
from stack.images import with_acquisition
from stack.level2.features import metadata_of_models
from stack.metrics.scores import Floats
from stack.parallel import run_with_threads
from stack.tables.table import ACQUISITION, Table

_DRAWS = 200


def drift(
    train: Mapping[str, pd.Series],
    test: Mapping[str, pd.Series],
    train_group: pd.Series,
    test_group: pd.Series,
    *,
    seed: int,
) -> pd.DataFrame:
    """Compares each column of `train` (n values) with the same column of `test` (m values); groups (n,) and (m,).

    Returns one row per column: column, kind, distance, chance, beyond, auc, missing_train, missing_test.

    `distance`, 0 to 1: for kind "number" the Kolmogorov–Smirnov statistic of the known values, for kind "words" the
    total variation distance, with missing values as a level. `chance`: the 95 % quantile of the distance when whole
    groups are assigned to train and test at random, 200 times; `beyond`: whether the distance is larger. `auc`, 0.5 to
    1: how well this column alone separates test rows from train rows; for words, levels are ordered by their share of
    test rows on these same rows, which is optimistic. NaN where one side has no known value.
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
        counts = [_counts(codes[known], assigned[units[known]], len(levels)) for assigned in [in_test, *shuffled]]
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
    """Returns the unit that each row belongs to, and for each unit whether it is in test.

    A unit is a group within train or within test: a group in both parts is two units.
    """
    first, groups = pd.factorize(train_group)
    second, others = pd.factorize(test_group)
    in_test = np.repeat([False, True], [len(groups), len(others)])
    return np.concatenate([first, second + len(groups)]), in_test


def _counts(codes: NDArray[np.intp], in_test: NDArray[np.bool_], levels: int) -> NDArray[np.float64]:
    """Counts the rows of train and of test with each level: (2, levels)."""
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
    """Returns the AUC of the level between test and train rows, ties counted half; the larger of AUC and 1 − AUC."""
    if not counts.sum(axis=1).all():
        return np.nan
    if not numeric:
        counts = counts[:, np.argsort(counts[1] / counts.sum(axis=0), kind="stable")]
    train, test = counts
    below = np.cumsum(train) - train
    value = float(np.sum(test * (below + train / 2)) / (train.sum() * test.sum()))
    return max(value, 1 - value)


WARNING_AUC = 0.55  # significant drift with an AUC above this is a warning, else a note
MIN_GROUPS = 10  # with fewer groups in train or in test, drift is not judged
_MAX_LISTED, _MAX_DRIVERS = 12, 8  # columns that a finding lists, and those of them with numbers
_MIN_DRIVER_SHARE = 0.1  # a column is named as a driver if shuffling it costs more than this share of AUC − 0.5


def drift_findings(experiment: Experiment, *, seed: int = 0) -> list[Finding]:
    """Reports drift in the columns that models use (`metadata_of_models`, config additions), then in the others.

    One finding each. The AUC is that of a gradient boosting classifier of test against training rows, out of fold with
    whole groups held out. Ids and columns that only train has are left out. Drift in unused columns is a note.
    """
    parts = _train_and_test(experiment)
    if not len(parts[1]):
        return []
    features, further = experiment.config.all_features, experiment.table.columns
    of_models = metadata_of_models(experiment.config, further)
    used, unused, names = list[str](), list[str](), further.shown
    for column in ("age", "sex", "site", *further.names):
        (used if column in of_models else unused).append(column)
    (used if features.context_counts else unused).append("images in the group")
    (used if features.shortcuts else unused).extend(ACQUISITION)
    found = _empty_in_test(parts, {name: names.get(name, name) for name in used})
    for columns, is_used in ((used, True), (unused, False)):
        known = [name for name in columns if all(name in part and part[name].notna().any() for part in parts)]
        known = [name for name in known if pd.concat([part[name] for part in parts]).nunique(dropna=False) > 1]
        if known:
            shown = [names.get(name, name) for name in known]
            task = (parts, known, shown, is_used, seed)
            found.append(run_with_threads(experiment.config.threads, _drift_finding, *task))
    return found


def _empty_in_test(parts: list[pd.DataFrame], shown: Mapping[str, str]) -> list[Finding]:
    """Warns of columns that models use, named as ``shown``, that have no value in any test row, beyond chance.

    The classifier leaves them out. By chance, none of the test groups has a value where few of the training groups do.
    """
    train, test = parts
    emptied = []
    for name in shown:
        if name in train and name in test and test[name].isna().all():
            has_value = train[name].notna().groupby(train["group"]).any().mean()
            if (1 - has_value) ** test["group"].nunique() < FALSE_ALARM_RATE:
                emptied.append(name)
    if not emptied:
        return []
    known = ", ".join(
        f"{shown[name]} (known in {train[name].notna().mean():.0%} of train)" for name in emptied[:_MAX_LISTED]
    )
    more = f", … {len(emptied):,} in all" if len(emptied) > _MAX_LISTED else ""
    remedy = (
        "check the test csv; if new rows lack them too, leave them out of data.columns, as models learned from them"
    )
    what = "columns that models use have no value in any test row"
    return [Finding("warning", what, f"{known}{more}; {len(test):,} test rows", remedy)]


def _drift_finding(
    parts: list[pd.DataFrame], columns: list[str], shown: list[str], is_used: bool, seed: int
) -> Finding:
    """Compares ``columns`` of train and test, which the evidence calls by the names ``shown``."""
    what = f"train and test differ in columns that {'models use' if is_used else 'no model uses'}"
    groups = [part["group"].nunique() for part in parts]
    if min(groups) < MIN_GROUPS:
        evidence = f"{groups[0]} groups in train, {groups[1]} in test"
        return Finding("note", "too few groups to compare train and test", evidence, "none")
    both = pd.concat(parts, ignore_index=True)
    in_test = np.repeat([0, 1], [len(part) for part in parts])
    x, group = classifier_matrix(both[columns]), both["group"].to_numpy(object)
    p = adversarial_validation_p(x, in_test, group, seed=seed)
    is_significant = 2 * p < FALSE_ALARM_RATE  # corrected for two tests: used and unused columns
    separation, importances = adversarial_validation(x, in_test, group, seed=seed, shuffle=is_significant)
    more = f", … {len(shown):,} columns in all" if len(shown) > _MAX_LISTED else ""
    evidence = f"AUC {separation} of a classifier by {', '.join(shown[:_MAX_LISTED])}{more}; p = {min(1.0, 2 * p):.1g}"
    if not is_significant:
        evidence += ": not significant"
        return Finding("note", what.replace("differ", "do not differ significantly"), evidence, "none")
    drivers = _drivers(
        parts,
        dict(zip(columns, shown, strict=True)),
        importances,
        least=_MIN_DRIVER_SHARE * max(separation.value - 0.5, 0.0),
        seed=seed,
    )
    evidence += f"; driven by {drivers}" if drivers else "; no single column drives it"
    if not is_used:
        return Finding("note", what, evidence, "harmless as long as no model uses these columns")
    severity: Severity = "warning" if separation.value > WARNING_AUC else "note"
    remedy = "the estimate holds for rows like those in train; check the subgroup results for rows like those in test"
    return Finding(severity, what, evidence, remedy)


def _train_and_test(experiment: Experiment) -> list[pd.DataFrame]:
    known = with_acquisition(experiment) or experiment
    tables = [part.reset_index(drop=True) for part in (known.table.train, known.table.test)]
    return [part.assign(**{"images in the group": part.groupby("group")["id"].transform("size")}) for part in tables]


def _drivers(
    parts: list[pd.DataFrame], shown: Mapping[str, str], importances: Floats, *, least: float, seed: int
) -> str:
    """Names the columns that drive the AUC, most important first, with the distance between train and test in each.

    ``shown`` has the name in the evidence by that of the column.
    """
    columns = list(shown)
    order = [place for place in np.argsort(-importances, kind="stable") if importances[place] > least]
    named = [columns[place] for place in order[:_MAX_DRIVERS]]
    if not named:
        return ""
    sides = [{name: part[name] for name in named} for part in parts]
    distance = drift(sides[0], sides[1], parts[0]["group"], parts[1]["group"], seed=seed).set_index("column")
    listed = ", ".join(
        f"{shown[name]} (AUC −{importances[place]:.3f} when it is shuffled, "
        f"distance {distance.loc[name, 'distance']:.0%}, {distance.loc[name, 'chance']:.0%} by chance)"
        for name, place in zip(named, order, strict=False)
    )
    return listed + (f", and {len(order) - len(named)} more" if len(order) > len(named) else "")


MISSING = "(missing)"
AGE_EDGES = np.arange(0, 105, 5)  # years: the lower edges of the bins; the last one, 100, is open above
SIZE_LABELS = {  # columns on the original image files, and their labels on the page
    "source_width": "image width",
    "source_height": "image height",
    "source_bytes": "image file size",
}
_TABLE_LEVELS = 14  # levels of a column that a table shows; the rarest share one line


def level_counts(train: pd.DataFrame, column: str, *, most: int = _TABLE_LEVELS) -> pd.DataFrame:
    """Counts the levels of `column` by target, most frequent first: level, rows, negatives, positives, prevalence.

    Missing values are a level of their own, in the last line. If there are more than `most` levels, the rarest share
    one line, "other (9 kinds)".
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
    """Histograms of age within each level of `column`: level, of ("all" or "positive"), images, known, median, bins.

    The bin columns are named by their lower edges 0, 5, … 100 (years; the last has no upper end). They hold shares of
    the images with known age, which sum to 1, or are 0 where no age is known. Levels have two rows each, in the order
    of `level_counts`.
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
    """Returns the share of the known `ages` (n,) in each bin of AGE_EDGES; zeros if none is known."""
    known = ages.dropna().to_numpy(np.float64)
    bins = np.clip(np.searchsorted(AGE_EDGES, known, side="right") - 1, 0, len(AGE_EDGES) - 1)
    return np.bincount(bins, minlength=len(AGE_EDGES)) / max(len(known), 1)


def age_rates(train: pd.DataFrame) -> pd.DataFrame:
    """Returns the share of positives by decade of age: ages ("40–49"; "90 and over"), images, positives, prevalence.

    Rows run from the youngest to the oldest decade with an image; a decade without images has a prevalence of NaN.
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
    """Counts groups by number of images: images ("1", "2–3" …), groups, with_positive, rows, positives, prevalence.

    Each size has its own line if no group has more than 12 images; otherwise the sizes are binned by powers of two.
    Lines without a group are left out.
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
    """Counts the missing values of age, sex, site and diagnosis: column, rows, train, negatives, positives, test.

    `rows` is the number of training rows without a value, the others are shares. `test` is NaN if there are no test
    rows or only train has the column.
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
    """Counts the original image sizes of `rows` (source_width, source_height, target), most frequent first.

    Columns width and height (pixels), rows, negatives, positives, prevalence.
    """
    by_size = rows.groupby(["source_width", "source_height"])["target"].agg(rows="size", positives="sum").reset_index()
    frame = by_size.rename(columns={"source_width": "width", "source_height": "height"})
    frame.insert(3, "negatives", frame["rows"] - frame["positives"])
    frame["prevalence"] = frame["positives"] / frame["rows"]
    return frame.sort_values(["rows", "width", "height"], ascending=[False, True, True], ignore_index=True)


def shortcuts(train: pd.DataFrame, facts: dict[str, ArrayLike], group: ArrayLike) -> pd.DataFrame:
    """Measures how well each of `facts` (n,) alone ranks positives before negatives; facts say nothing about the skin.

    ``group`` (n,) is the split_group of each row, or its group where there are no folds.

    Columns: fact; negatives, positives (medians); direction (positives are "larger", "smaller", "neither"); auc in that
    direction, so 0.5 or more; low, high: its 95 % interval over groups, NaN if fewer than two groups have a class.
    """
    y = train["target"].to_numpy()
    records = []
    for fact, given in facts.items():
        values = np.asarray(given, np.float64)
        found = column_auc(y, values, group)
        direction = "neither" if found.value == 0.5 else "larger" if found.value > 0.5 else "smaller"
        found = mirrored(found) if found.value < 0.5 else found
        medians = [float(np.median(values[y == label])) for label in (0, 1)]
        records.append([fact, *medians, direction, found.value, found.low, found.high])
    return pd.DataFrame(records, columns=["fact", "negatives", "positives", "direction", "auc", "low", "high"])


def _levels(values: pd.Series, most: int) -> tuple[NDArray[np.object_], str]:
    """Returns the level of each row, with names for missing and for rare levels, and the name for rare levels."""
    counts = values.value_counts()
    rare = counts.index[most - 1 :] if len(counts) > most else counts.index[:0]
    other = f"other ({len(rare)} kinds)"
    levels = values.astype("object").where(values.notna(), MISSING).mask(values.isin(rare), other)
    return levels.to_numpy(), other
