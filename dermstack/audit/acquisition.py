"""Checks whether acquisition facts (row order, ids, group size, image and file size, source) predict the target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata, spearmanr
from sklearn.linear_model import LogisticRegression

from dermstack.audit.finding import Finding
from dermstack.audit.single_column import FALSE_ALARM_RATE, ColumnAssociation, column_association, one_hot
from stack.experiment import Experiment
from stack.images import with_acquisition
from stack.level2.features import metadata_of_models
from stack.level2.probes import stored_probes
from stack.metrics.intervals import Interval, paired_difference
from stack.metrics.scores import auc
from stack.store import Run, row_positions_in_run

WARNING_AUC = 0.55  # a significant fact is a warning if its own AUC is above this, else a note
_SAME_CORRELATION = 0.999  # two facts with a rank correlation above this are treated as one
_RESTATES, _MOST_ALONE = 0.98, 0.95  # agreement of a feature with a fact; share of one source that makes it trivial
_MIN_KNOWN, _MAX_LISTED = 20, 12  # rows for a correlation; columns that a finding lists
_MAX_ID_PATTERNS = 50  # the id format is a fact only if there are at most this many formats
_MIN_NUMBERED_SHARE = 0.9  # the numbers in names are a fact only if at least this share of names has one

_PROBES = {  # probes of a stacker: the text for each, and the facts that it already covers
    "context_counts": ("the number of images in the group", ("images in the group",)),
    "shortcuts": ("image width, height and file size", ("width", "height", "file size", "bytes per pixel")),
}


def acquisition_findings(
    experiment: Experiment, sizes: pd.DataFrame | None = None, runs: Sequence[Run] = ()
) -> list[Finding]:
    """Reports each fact that predicts the target, one note on the others, and what the facts would add to level 2.

    ``sizes`` (id, source_width, source_height, source_bytes, encoding) describes the image files; without it the sizes
    of the csv or of an earlier `oof` are used. The gain of a fact is measured over one of the experiment's ``runs``:
    the first that has probes, else the first of level 2, else the first.
    """
    facts = acquisition_facts(experiment, sizes)
    y, fold, group = experiment.target, experiment.folds.frame["fold"], experiment.split_group
    associations = [column_association(name, values, y, fold, group) for name, values in facts.items()]
    telling = [one for one in associations if one.p * len(associations) < FALSE_ALARM_RATE]
    found = [_fact_finding(one, len(associations)) for one in telling]
    if quiet := [f"{one.name} {one}" for one in associations if one not in telling]:
        evidence = f"not significant: {'; '.join(quiet)}"
        found.append(Finding("note", "these acquisition facts do not predict the target", evidence, "none"))
    found += shortcut_columns(experiment, facts)
    return found + gain_findings(experiment, {one.name: facts[one.name] for one in telling}, runs)


def shortcut_columns(experiment: Experiment, facts: dict[str, pd.Series]) -> list[Finding]:
    """Reports features of the table that restate an acquisition fact, such as a column that is the file size.

    A number restates a fact of numbers if their rank correlation is at least 0.98 in size; a column of words restates
    the source if at least 98 % of the rows have the source that is most frequent for their word, unless one source has
    95 % of all rows.
    """
    columns = experiment.table.columns
    used = metadata_of_models(experiment.config, columns)
    train = experiment.table.train
    numbers = {name: values for name, values in facts.items() if pd.api.types.is_numeric_dtype(values)}
    told: dict[str, list[str]] = {}
    for name in columns.numbers:
        for fact, values in numbers.items() if name in used else ():
            correlation = _rank_correlation(train[name].to_numpy(np.float64), values.to_numpy(np.float64))
            if abs(correlation) >= _RESTATES:
                told.setdefault(fact, []).append(f"`{columns.shown[name]}` (rank correlation {correlation:.3f})")
    if "source" in facts:
        source = facts["source"].fillna("")
        alone = float(source.value_counts(normalize=True).iloc[0])
        for name in columns.categorical:
            words = train[name].reset_index(drop=True)
            known = words.notna()
            if name in used and known.any() and words.nunique() <= _MAX_ID_PATTERNS and alone < _MOST_ALONE:
                share = float(source[known].groupby(words[known]).agg(lambda of: of.value_counts().iloc[0]).sum())
                if share / known.sum() >= _RESTATES:
                    told.setdefault("source", []).append(
                        f"`{columns.shown[name]}` ({share / known.sum():.1%} of the rows)"
                    )
    remedy = "keep them out of the features if new rows are collected in another way: they say how an image was taken"
    return [
        Finding(
            "warning", f"columns that models use restate an acquisition fact: {fact}",
            ", ".join(names[:_MAX_LISTED]) + (f", … {len(names)} in all" if len(names) > _MAX_LISTED else ""), remedy,
        )
        for fact, names in told.items()
    ]  # fmt: skip


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < _MIN_KNOWN or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a[known]), rankdata(b[known]))[0, 1])


def acquisition_facts(experiment: Experiment, sizes: pd.DataFrame | None = None) -> dict[str, pd.Series]:
    """Returns the acquisition facts of the training rows by name: numbers or words (n,), in table order."""
    known = with_acquisition(experiment) if sizes is None else None
    train = (known or experiment).table.train.reset_index(drop=True)
    group = train["group"]
    facts = {
        "row order": pd.Series(np.arange(len(train))),
        "number in the id": _last_numbers(train["id"]),
        "id format": train["id"].str.replace(r"\d+", "0", regex=True),
        "images in the group": group.map(group.value_counts()),
    }
    if not (group == train["id"]).all():
        facts["number in the group's name"] = _last_numbers(group)
    if "source" in train:
        facts["source"] = train["source"]
    facts |= _picture_facts(train, sizes)
    if facts["id format"].nunique() > _MAX_ID_PATTERNS:
        facts.pop("id format")
    facts = {name: values for name, values in facts.items() if values.nunique(dropna=False) > 1}
    if "number in the id" in facts and _same_order(facts["row order"], facts["number in the id"]):
        facts = {"row order (same as id order)": facts.pop("row order"), **facts}
        facts.pop("number in the id")
    return facts


def gain_findings(experiment: Experiment, facts: dict[str, pd.Series], runs: Sequence[Run]) -> list[Finding]:
    """Reports how much ``facts`` and the stackers' own probes would add to a run's AUC; none should be a feature."""
    probed = [(run, probes) for run in runs if (probes := stored_probes(experiment, run)) is not None]
    gains = [
        (run.name, row["what"], row["auc"], _probe_difference(row))
        for run, probes in probed
        for row in probes.to_dict("records")
        if row["what"] in _PROBES
    ]
    names = {run.name for run, _ in probed}
    ordered = sorted(runs, key=lambda run: (run.name not in names, -run.meta["level"]))
    known = {fact for _, what, *_ in gains for fact in _PROBES[what][1]}
    gains = [(run, _PROBES[what][0], value, difference) for run, what, value, difference in gains]
    for name, values in facts.items() if ordered else ():
        if name not in known:
            gains.append((ordered[0].name, name, *gain_over_run(experiment, ordered[0], values)))
    found, quiet = [], []
    for run, what, value, difference in gains:
        beyond = (
            difference.value > 0
            and norm.sf(difference.value / max(difference.se, 1e-9)) * len(gains) < FALSE_ALARM_RATE
        )
        evidence = f"AUC {value:.4f} with it, {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        if beyond:
            remedy = "keep it out of the features: it depends on how these rows were collected, new rows may differ"
            found.append(Finding("warning", f"{what} would raise the AUC of {run}", evidence, remedy))
        else:
            quiet.append(f"{what}, added to {run}: {evidence}")
    if quiet:
        what = "these acquisition facts would not raise the AUC"
        found.append(Finding("note", what, f"not significant: {'; '.join(quiet)}", "none"))
    return found


def gain_over_run(experiment: Experiment, run: Run, values: pd.Series) -> tuple[float, Interval]:
    """Returns the AUC of a logistic regression on the run's logit and a fact (n,), and the gain from the fact.

    Both regressions, with and without the fact, are cross-fitted. The gain is a paired difference by split_group.
    """
    oof = run.frame("oof")
    place = row_positions_in_run(run, oof["id"], experiment.table.train["id"], "oof")
    rows = np.flatnonzero(place >= 0)
    y, group = experiment.target[rows], experiment.split_group[rows]
    fold = experiment.folds.frame["fold"].to_numpy()[rows]
    logit = oof["logit"].to_numpy(np.float64)[place[rows]]
    made = _out_of_fold(np.column_stack([logit, one_hot(values.iloc[rows])]), y, fold)
    plain = _out_of_fold(logit[:, None], y, fold)
    return auc(y, made), paired_difference("auc", y, made, plain, group)


def _out_of_fold(x: NDArray[np.float64], y: NDArray[np.int8], fold: NDArray[np.generic]) -> NDArray[np.float64]:
    made = np.empty(len(y))
    for k in np.unique(fold):
        held = fold == k
        made[held] = LogisticRegression(max_iter=1000).fit(x[~held], y[~held]).decision_function(x[held])
    return made


def _probe_difference(row: dict[object, object]) -> Interval:
    value, low, high = (float(str(row[name])) for name in ("difference", "difference_low", "difference_high"))
    return Interval(value, low, high, (high - low) / (2 * 1.959964))


def _fact_finding(one: ColumnAssociation, number: int) -> Finding:
    evidence = f"{one} by this fact alone; p = {min(1.0, one.p * number):.1g}, corrected for {number} facts"
    if one.strength <= WARNING_AUC:
        what = f"the target can be predicted slightly from {one.name}"
        return Finding("note", what, evidence, "keep it out of the features")
    remedy = "keep it out of the level-2 features; image models may still learn it from the images"
    return Finding("warning", f"the target can be predicted from {one.name}", evidence, remedy)


def _picture_facts(train: pd.DataFrame, sizes: pd.DataFrame | None) -> dict[str, pd.Series]:
    if sizes is not None:
        renamed = sizes.drop_duplicates("id").rename(columns=lambda name: name.removeprefix("source_"))
        train = renamed.set_index("id").reindex(train["id"]).reset_index()
    named = {"width": "width", "height": "height", "file size": "bytes"}
    facts = {words: train[name] for words, name in named.items() if name in train}
    if len(facts) == 3:
        pixels = train["width"] * train["height"]
        if pixels.nunique() > 1:
            facts["bytes per pixel"] = train["bytes"] / pixels
    return facts | ({"encoding": train["encoding"]} if "encoding" in train else {})


def _last_numbers(names: pd.Series) -> pd.Series:
    """Returns the last number in each name (n,); all NaN if fewer than 90 % of the names hold one."""
    digits = names.str.extract(r"(\d+)\D*$")[0]
    if digits.notna().mean() < _MIN_NUMBERED_SHARE:
        return pd.Series(np.nan, index=range(len(names)))
    return digits.astype("float64")


def _same_order(a: pd.Series, b: pd.Series) -> bool:
    return bool(abs(spearmanr(a, b, nan_policy="omit").statistic) > _SAME_CORRELATION)
