"""Ranks any number of finished runs on the rows that all of them cover, with the settings in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from dermstack.errors import DataError, StoreError
from stack.history import experiments_elsewhere, find_run, run_scores, units_of
from stack.metrics.decision_metrics import NEGATED, decision_metric
from stack.metrics.intervals import Interval, bootstrap_scores, percentile_interval
from stack.metrics.own_metric import is_import_path, is_own_metric, own_label, own_metric
from stack.metrics.scores import Floats, objective_label, score
from stack.run_settings import differing_settings, settings_of
from stack.sources.estimates import stored_leave_source_out
from stack.store import Run, read_run

NESTED, OUT_OF_FOLD = "nested", "out-of-fold"
BEST, WORSE, NOT_WORSE = "best on these rows", "worse than the best", "not shown to be worse"
_TOGETHER = 10  # runs between two steps of the progress; the groups are drawn once for them
_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Entry:
    """A finished run or blend, as `read_entries` found it."""

    name: str  # as `dermstack compare` takes it
    run: Run
    scores: pd.DataFrame = field(repr=False)  # as `run_scores` returns, of the rows that it covers
    settings: dict[str, str] | None = field(repr=False)  # by config key; None where no record of them was kept
    other_sources: str = ""  # AUC of a blend within a typical source that was held out; "" where it was not measured

    @property
    def estimate(self) -> str:
        """What its score is: nested for a blend, out-of-fold for a single run."""
        return NESTED if self.run.meta["kind"] == "blend" else OUT_OF_FOLD


@dataclass(frozen=True)
class Leaderboard:
    """Runs on the same rows, the best first."""

    objective: str
    rows: int  # that all runs cover
    groups: int
    positives: int
    # One row a run: run, estimate, the objective with low and high, difference to the best with its paired interval,
    # simultaneous_low and simultaneous_high of that difference, verdict, rows that it covers, its score on all of
    # these (all_rows), a note and, where any has one, its AUC where sources were held out (other_sources).
    table: pd.DataFrame
    settings: pd.DataFrame  # one row a config key in which runs differ; one column a run, in the order of the table
    # How much too high the best one's score is at most, on average, because it was chosen on these rows.
    optimism: float
    best: Interval  # the best one's score with the interval that holds for all runs at once, whichever was chosen
    remarks: tuple[str, ...]  # what a reader has to know besides

    @property
    def column(self) -> str:
        """The column of the table with the objective: its name without the hash of a user's code."""
        return own_label(self.objective)

    @property
    def names(self) -> list[str]:
        """The runs, the best first."""
        return list(self.table["run"])


def find_names(runs: Path, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the names of the runs that ``patterns`` name, each once, and remarks on what was left out.

    A pattern is a name as `find_run` takes it, or has wildcards (``mine/old/*``; a `*` matches no slash). Without
    patterns all experiments with a complete blend are returned. Raises StoreError where nothing is found.
    """
    if patterns:
        found = [name for pattern in patterns for name in _matching(runs, pattern)]
        return list(dict.fromkeys(found)), []
    names, remarks = [], []
    for folder in sorted(path.parent for path in runs.glob("*/table.parquet")):
        if (shuffled := folder.name.rpartition("-shuffled-")[0]) and (runs / shuffled).is_dir():
            remarks.append(f"{folder.name} is left out: its targets are shuffled")
        elif _is_complete(folder / "blend"):
            names.append(folder.name)
        else:
            remarks.append(f"{folder.name} is left out: it has no complete blend; `dermstack stack` makes one")
    if not names:
        raise StoreError(
            f"{runs} holds no experiment with a complete blend: `dermstack stack` with a config makes one; --folder "
            f"names another folder{experiments_elsewhere(runs)}"
        )
    return names, remarks


def read_entries(runs: Path, names: Sequence[str]) -> list[Entry]:
    """Reads these runs with their scores and settings. Raises StoreError for one that is missing or damaged."""
    entries = []
    for name in names:
        run = find_run(runs, name)
        settings = settings_of(runs, name, run)
        entries.append(Entry(name, run, run_scores(runs, name, run), settings, _other_sources(runs, name, run)))
    return entries


def _other_sources(runs: Path, name: str, run: Run) -> str:
    """Returns the AUC of a blend where sources were held out, with its interval; "" where there is none."""
    if run.meta["kind"] != "blend":
        return ""
    found = stored_leave_source_out(runs / name.partition("/")[0], str(run.meta["fingerprint"]))
    return "" if found is None else found.summary


def same_rows(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Divides runs into those of the same data: an id or more in common, and the same targets of all common ids.

    Blends of units (`predict_per`) are never beside runs that predict images, or units of other columns.
    """
    found: list[list[Entry]] = []
    for entry in entries:
        for board in found:
            if units_of(board[0].run) != units_of(entry.run):
                continue
            both = board[0].scores.merge(entry.scores, on="id", suffixes=("", "_b"))
            if len(both) and (both["target"] == both["target_b"]).all():
                board.append(entry)
                break
        else:
            found.append([entry])
    return found


def leaderboard(
    entries: Sequence[Entry],
    *,
    objective: str | None = None,
    draws: int = 1000,
    progress: Callable[[int], object] = lambda done: None,
) -> Leaderboard:
    """Scores the runs on the rows that all cover, joined by id, and ranks them.

    All intervals come from the same bootstrap draws of whole split_groups (`bootstrap_scores`). ``difference`` is each
    run minus the best one, with the paired interval that a comparison of the two alone would have. As the best one is
    chosen by these scores, the verdict goes by ``simultaneous_low`` and ``simultaneous_high``, which hold for all
    pairs of runs at once (max-T, Westfall & Young 1993). ``progress`` is called with the number of runs just scored.
    Raises DataError where no row is covered by all or targets differ, ConfigError for an unknown objective.
    """
    objective, remarks = _objective(entries, objective)
    metric = decision_metric(objective)
    used = "p" if metric is not None and metric.needs_p else "score"
    frame = _common_rows(
        entries, used, with_patients=is_own_metric(objective) or (metric is not None and metric.needs_patients)
    )
    patient = frame["group"].to_numpy(object) if "group" in frame else None
    names = [entry.name for entry in entries]
    y = frame["target"].to_numpy()
    groups, regrouped = _joined_groups(frame[[f"split_group {name}" for name in names]])
    values, drawn = np.empty(len(names)), np.empty((draws, len(names)))
    for start in range(0, len(names), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        s = frame[[f"score {name}" for name in names[part]]].to_numpy(np.float64)
        values[part] = [score(objective, y, column, patient=patient) for column in s.T]
        # The same draws in every part.
        drawn[:, part] = bootstrap_scores(objective, y, s, groups, draws=draws, patient=patient)
        progress(s.shape[1])
    order = np.argsort(-values, kind="stable")
    entries = [entries[number] for number in order]
    values, drawn = values[order], drawn[:, order]
    held = drawn[np.isfinite(drawn).all(axis=1)]
    table = pd.DataFrame(
        {
            "run": [entry.name for entry in entries],
            "estimate": [entry.estimate for entry in entries],
            **_compared_with_the_first(values, drawn, held, objective),
            "rows": [len(entry.scores) for entry in entries],
        }
    )
    table["all_rows"] = [
        score(
            objective, rows["target"], rows[used], patient=None if patient is None else rows["group"].to_numpy(object)
        )
        for rows in (entry.scores for entry in entries)
    ]
    if any(entry.other_sources for entry in entries):
        table["other_sources"] = [entry.other_sources for entry in entries]
    table["note"] = ["selected on these rows" if entry.run.meta.get("selected") else "" for entry in entries]
    if regrouped:
        remarks.append(
            f"the split groups of {', '.join(regrouped)} differ from those of {names[0]}: rows that any run joins are "
            "one group"
        )
    remarks += _row_remarks(table, len(frame))
    if unknown := [entry.name for entry in entries if entry.settings is None]:
        remarks.append(f"no record of the settings of {', '.join(unknown)} was kept: their settings are not compared")
    settings = differing_settings({entry.name: entry.settings for entry in entries if entry.settings is not None})
    return Leaderboard(
        objective, len(frame), len(np.unique(groups)), int(y.sum()), table, settings,
        optimism=_mean_of_largest(held[:, (table["verdict"] != WORSE).to_numpy()]),
        best=_interval_for_all(values, held, highest=_highest(objective)), remarks=tuple(remarks),
    )  # fmt: skip


def _compared_with_the_first(values: Floats, drawn: Floats, held: Floats, objective: str) -> dict[str, Any]:
    """Returns columns of the table: the scores (runs,), best first, their differences to the best one, and a verdict.

    ``drawn`` (draws, runs) are the scores of all draws, ``held`` those in which every run has one.
    """
    differences = values - values[0]
    reach = _critical_of_pairs(held) * (held - held[:, :1]).std(axis=0)
    verdict = np.where(differences + reach < 0, WORSE, NOT_WORSE)
    verdict[0] = BEST
    return {
        own_label(objective): values,
        **_bounds([percentile_interval(value, drawn[:, n]) for n, value in enumerate(values)], "low", "high"),
        "difference": differences,
        **_bounds(
            [percentile_interval(value, drawn[:, n] - drawn[:, 0]) for n, value in enumerate(differences)],
            "difference_low", "difference_high",
        ),
        "simultaneous_low": differences - reach,
        "simultaneous_high": differences + reach,
        "verdict": verdict,
    }  # fmt: skip


def choice_note(board: Leaderboard) -> str:
    """States that the best of many was chosen on these rows, how optimistic its score can be, and its wide interval."""
    best, label = board.best, objective_label(board.objective)
    if (board.table["verdict"] != WORSE).sum() == 1:
        then = f"and each other one is shown to be worse, so the choice makes its {label} hardly optimistic"
    else:
        then = (
            f"so its {label} is optimistic: on average by up to about {board.optimism:.4f}, which is reached where all "
            "that may be best are equally good"
        )
    return (
        f"the best of {len(board.table)} was chosen on these {board.rows:,} rows, {then}. Its interval that allows for "
        f"the choice is {best.low:.4f} to {best.high:.4f}; the verdicts allow for it too"
    )


def csv_table(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """Returns all boards as one table: a row a run, and after the numbers a column for each key that differs.

    With several boards the first column is the number of the board.
    """
    frames = []
    for number, board in enumerate(boards, 1):
        frame = board.table.copy()
        frame.insert(0, "place", np.arange(1, len(frame) + 1))
        frame.insert(list(frame).index("rows"), "common_rows", board.rows)
        if len(boards) > 1:
            frame.insert(0, "board", number)
        settings = board.settings.T.reindex(frame["run"]).reset_index(drop=True)
        frames.append(pd.concat([frame, settings.add_prefix("config.")], axis=1))
    return pd.concat(frames, ignore_index=True)


def _matching(runs: Path, pattern: str) -> list[str]:
    if not _PATTERN & set(pattern):
        return [pattern]
    wanted = pattern.split("/")
    found = []
    for name in _complete_names(runs):
        parts = name.split("/")
        if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
            found.append(name)
    if not found:
        raise StoreError(f"{pattern}: no complete run has such a name: `dermstack runs` lists the runs in {runs}")
    return found


def _complete_names(runs: Path) -> Iterator[str]:
    for folder in sorted(path.parent for path in runs.glob("*/table.parquet")):
        if (folder / "blend" / "run.json").is_file():
            yield folder.name
        for part, place in (("", "models"), ("old/", "old")):
            yield from (
                f"{folder.name}/{part}{path.parent.name}" for path in sorted(folder.glob(f"{place}/*/run.json"))
            )


def _is_complete(folder: Path) -> bool:
    try:
        return read_run(folder) is not None
    except StoreError:
        return False


def _objective(entries: Sequence[Entry], given: str | None) -> tuple[str, list[str]]:
    """Returns the given objective, else the one that most blends name, with a remark where they differ; else AUC."""
    if given is not None:
        if is_import_path(given):
            return own_metric(given, Path.cwd(), may_take_groups=True), []
        objective_label(given)  # raises for an unknown one
        return given, []
    counts = Counter(str(named) for entry in entries if (named := entry.run.meta.get("objective")))
    if not counts:
        return "auc", []
    objective = counts.most_common(1)[0][0]
    if is_own_metric(objective):
        objective = own_metric(objective, Path.cwd(), may_take_groups=True)
    others = sorted(set(counts) - {objective})
    too = ", ".join(dict.fromkeys(map(own_label, others)))
    remark = f"objectives differ ({too} too): all are scored by {own_label(objective)}; --objective chooses another"
    return objective, [remark] if others else []


def _common_rows(entries: Sequence[Entry], used: str, *, with_patients: bool) -> pd.DataFrame:
    """Joins the runs by id: target and, for each run, its score and split_group, of the rows that all cover.

    ``used`` is the column of the score: score or p. ``with_patients`` adds the group.
    """
    first = entries[0].scores.set_index("id")
    columns = [first["target"], *([first["group"]] if with_patients else [])]
    for entry in entries:
        rows = entry.scores.set_index("id")
        if rows.index.has_duplicates:
            doubled = rows.index[rows.index.duplicated()][0]
            raise StoreError(f"{entry.name} has more than one row of id {doubled}: make the run again")
        columns += [
            rows[used].rename(f"score {entry.name}"),
            rows["split_group"].rename(f"split_group {entry.name}"),
        ]
        both = rows["target"].to_frame("here").join(first["target"], how="inner")
        if both.empty:
            raise DataError(
                f"{entries[0].name} and {entry.name} have no id in common: compare runs of the same data set"
            )
        differ = both["here"] != both["target"]
        if differ.any():
            raise DataError(
                f"{entries[0].name} and {entry.name} disagree on the target of {differ.sum()} rows, first id "
                f"{both.index[differ][0]}: compare runs of the same data set, neither of them with shuffled targets"
            )
    frame = pd.concat(columns, axis=1, join="inner")
    if frame.empty:
        raise DataError(
            f"no id is covered by all of {', '.join(entry.name for entry in entries)}: leave out those that cover few "
            "rows"
        )
    return frame


def _joined_groups(columns: pd.DataFrame) -> tuple[NDArray[Any], list[str]]:
    """Returns the groups in which rows are joined that any column joins, and the runs whose groups differ.

    Where no groups differ, these are the groups of the first run as they are.
    """
    first, codes, regrouped = columns.iloc[:, 0], list[NDArray[np.intp]](), list[str]()
    for name, column in columns.items():
        of = pd.factorize(column)[0]
        if not codes or not any(np.array_equal(of, known) for known in codes):
            if codes:
                regrouped.append(str(name).removeprefix("split_group "))
            codes.append(of)
    if not regrouped:
        return first.to_numpy(object), []
    starts = np.cumsum([0, *(of.max() + 1 for of in codes)])
    at = np.concatenate([of + start for of, start in zip(codes, starts, strict=False)])
    rows = np.tile(np.arange(len(columns)), len(codes))
    size = len(columns) + int(starts[-1])
    graph = sparse.coo_array((np.ones(len(at), bool), (rows, len(columns) + at)), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(columns)], regrouped


def _row_remarks(table: pd.DataFrame, common: int) -> list[str]:
    most = int(table["rows"].max())
    if common >= 0.95 * most:
        return []
    few = table.iloc[int(table["rows"].to_numpy().argmin())]
    return [
        f"only {common:,} of up to {most:,} rows are covered by all; {few['run']} covers {int(few['rows']):,}: without "
        "it the others may be compared on more rows"
    ]


def _bounds(intervals: Sequence[Interval], low: str, high: str) -> Mapping[str, list[float]]:
    return {low: [one.low for one in intervals], high: [one.high for one in intervals]}


def _critical_of_pairs(drawn: Floats) -> float:
    """Returns the standard errors that no difference of two columns of ``drawn`` exceeds by chance, in 95 % of draws.

    The largest standardised deviation of all pairs in each draw, and of these the 95th percentile.
    """
    deviations = drawn - drawn.mean(axis=0)
    largest = np.zeros(len(drawn))
    for number in range(1, drawn.shape[1]):
        pairs = np.abs(deviations[:, :number] - deviations[:, number : number + 1])
        spread = np.sqrt((pairs**2).mean(axis=0))
        varies = spread > 1e-12  # two runs with the same order of rows never differ
        if varies.any():
            largest = np.maximum(largest, (pairs[:, varies] / spread[varies]).max(axis=1))
    return float(np.quantile(largest, 0.95))


def _interval_for_all(values: Floats, drawn: Floats, *, highest: float) -> Interval:
    """Returns the first (best) value with an interval that covers, with those of all others, in 95 % of samples."""
    deviations, spread = np.abs(drawn - drawn.mean(axis=0)), drawn.std(axis=0)
    varies = spread > 1e-12
    reach = 0.0
    if varies[0]:
        critical = float(np.quantile((deviations[:, varies] / spread[varies]).max(axis=1), 0.95))
        reach = critical * float(spread[0])
    value = float(values[0])
    return Interval(value, value - reach, min(value + reach, highest), float(spread[0]))


def _highest(objective: str) -> float:
    """Returns the value of a perfect score."""
    metric = decision_metric(objective)
    if metric is not None and metric.kind in NEGATED:
        return -1.0  # each image that is reviewed is positive
    return 0.0 if objective == "logloss" else np.inf if is_own_metric(objective) else 1.0


def _mean_of_largest(drawn: Floats) -> float:
    """Returns the mean of the largest error of the columns: no choice among them is more optimistic on average.

    Of the runs that may be the best: those that are shown to be worse are not what would have been chosen instead.
    """
    return float((drawn - drawn.mean(axis=0)).max(axis=1).mean())
