"""What is known of sources (hospitals, cameras): estimates that hold them out or not, their differences, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import StoreError
from dermstack.listing import counted, first_of
from stack.experiment import Experiment
from stack.json_files import read_json, verify_digest, with_digest, write_json
from stack.metrics.by_source import OverSources, too_few
from stack.metrics.calibration import recalibration
from stack.metrics.intervals import Interval
from stack.metrics.measures import jsonable
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.metrics.scores import objective_label

RESULT = "leave_source_out.json"  # in the experiment's folder

# How far an estimate holds sources out. Only the first is what to expect of a source that was never seen.
HELD_OUT = "held out"  # every model that scores a row was fitted without its source
LEVEL_2_ONLY = "held out from level 2 only"  # image models or imported predictions had seen other rows of the source
SEEN = "in training"  # the folds hold out groups: all models had seen the source
STRICTEST_FIRST = (HELD_OUT, LEVEL_2_ONLY, SEEN)

OWN, REFITTED, TRAINED_AGAIN = "own folds", "level 2 fitted again", "trained again"  # where an estimate comes from

_VERSION = 1
_SCALE_EDGE = 1e-6  # p nearer to 0 or 1 counts as this in the mean of logits


@dataclass(frozen=True)
class SourceEstimate:
    """One nested estimate on the training rows: pooled, and within each source."""

    origin: str  # OWN, REFITTED or TRAINED_AGAIN
    held_out: str  # HELD_OUT, LEVEL_2_ONLY or SEEN
    seen_by: tuple[str, ...]  # level-1 runs whose nets had seen rows of the source that they score
    folds: int
    rows: int
    pooled: Interval  # of the objective
    over: OverSources  # AUC within sources
    pooled_difference: Interval | None = None  # this minus the estimate of the own folds, on the same rows
    difference: Interval | None = None  # the same for the AUC within a typical source; ``se`` is NaN
    note: str = ""  # why it may not be comparable
    imported: tuple[str, ...] = ()  # those of ``seen_by`` that were imported, which cannot be trained again here
    as_fitted: Interval | None = None  # ``pooled`` of scores that are not moved to one share; None: it is of these
    unknown_share: tuple[str, ...] = ()  # imported runs that hold sources out, whose scores cannot be moved

    @property
    def label(self) -> str:
        """What its folds hold out, in words."""
        if self.held_out == SEEN:
            return "groups held out"
        if self.held_out == HELD_OUT:
            return "sources held out"
        if self.origin == TRAINED_AGAIN:
            return f"sources held out, but {first_of(self.imported)} had seen them"
        return "sources held out from level 2 only"

    @property
    def predicts_next(self) -> bool:
        """Whether its interval for a further source means anything: its sources were held out, and are enough."""
        return self.held_out != SEEN and math.isfinite(self.over.next_low)


@dataclass(frozen=True)
class RunBySource:
    """An image model with folds of groups and, trained again, with folds of whole sources, on the same rows."""

    name: str
    kind: str  # image or frozen
    selected: bool  # whether its settings were chosen on these rows
    rows: int
    groups: Interval  # of the objective, with groups held out
    sources: Interval  # the same with sources held out
    pooled_difference: Interval  # sources minus groups
    over_groups: OverSources  # AUC within sources, with groups held out
    over_sources: OverSources
    difference: Interval | None  # of the AUC within a typical source; ``se`` is NaN, None where it cannot be told


@dataclass(frozen=True)
class LeaveSourceOut:
    """The estimate of the experiment's own folds beside those by sources, and what differs between the sources."""

    objective: str
    blend: str  # fingerprint of the experiment's blend
    estimates: tuple[SourceEstimate, ...]  # the first has the experiment's own folds
    facts: pd.DataFrame  # `source_facts` of the scores of the strictest estimate
    joined: tuple[str, ...] = ()  # sources that are held out together, as they share split groups
    shared_groups: int = 0  # split groups with rows in more than one source
    left_out: int = 0  # rows of such groups outside their main source, which neither train nor score
    untuned: bool = False  # level 2 was fitted again without tuned settings, which were chosen with other folds
    runs: tuple[RunBySource, ...] = ()  # image models that were trained again with folds of sources
    external: tuple[str, ...] = ()  # external tables, whose rows trained the nets of every fold

    @property
    def own(self) -> SourceEstimate:
        """The estimate of the experiment's own folds."""
        return self.estimates[0]

    @property
    def summary(self) -> str:
        """The AUC within a typical source of the strictest estimate, and how strict it is; "" where none holds out."""
        best, over = self.strictest, self.strictest.over
        if best.held_out == SEEN or not math.isfinite(over.mean):
            return ""
        optimistic = ""
        if best.held_out == LEVEL_2_ONLY:
            names = best.imported if best.origin == TRAINED_AGAIN else ("level 1",)
            optimistic = f", optimistic: {', '.join(names)} had seen them"
        return f"{bounds(over.mean, over.low, over.high)} in {over.used} sources{optimistic}"

    @property
    def strictest(self) -> SourceEstimate:
        """The estimate that holds out most; of equals the first."""
        return min(self.estimates, key=lambda one: STRICTEST_FIRST.index(one.held_out))


def source_facts(
    experiment: Experiment, rows: NDArray[np.intp], unit: NDArray[np.object_], p: NDArray[np.float64]
) -> pd.DataFrame:
    """Returns one row a unit of sources: who is in it, and how the calibrated ``p`` (n,) behaves there.

    ``rows`` (n,) are rows of the training table and ``unit`` (n,) their sources. Columns: source, rows, groups,
    positives, prevalence, age (median), sex and site (the most frequent, with its share), size (median width × height
    in pixels), expected (positives, the sum of p), logit_negatives (mean logit of p among negatives), in_the_large with
    in_the_large_low and in_the_large_high (the constant that every logit lacks: above 0 where risks are too low), slope
    with slope_low and slope_high. NaN or "" where it is not known or groups are too few.
    """
    train, y = experiment.table.train.iloc[rows], experiment.target[rows] == 1
    group = experiment.split_group[rows]
    logit = clipped_logit(p, clip_limits(p, _SCALE_EDGE))
    records = []
    for name in sorted(set(unit)):
        part = unit == name
        of = train[part]
        record: dict[str, Any] = {
            "source": name, "rows": int(part.sum()), "groups": len(set(group[part])), "positives": int(y[part].sum()),
            "prevalence": float(y[part].mean()), "age": float(of["age"].median()),
            "sex": _most_frequent(of["sex"]), "site": _most_frequent(of["site"]), "size": _size(of),
            "expected": float(p[part].sum()),
            "logit_negatives": float(logit[part & ~y].mean()) if (part & ~y).any() else math.nan,
        }  # fmt: skip
        if not too_few(y[part], group[part]):
            found = recalibration(y[part], p[part], group[part])
            for key, value in (("in_the_large", found.in_the_large), ("slope", found.slope)):
                record |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
        records.append(record)
    columns = ["source", "rows", "groups", "positives", "prevalence", "age", "sex", "site", "size", "expected"]
    columns += [
        "logit_negatives",
        *(f"{key}{end}" for key in ("in_the_large", "slope") for end in ("", "_low", "_high")),
    ]
    return pd.DataFrame(records).reindex(columns=columns)


def estimate_table(found: LeaveSourceOut) -> pd.DataFrame:
    """Returns one row an estimate: what is held out, folds, the objective with its interval, the AUC within a source.

    ``next source`` is the 95 % prediction interval for the AUC within a source that is not among these.
    """
    records = []
    for one in found.estimates:
        over = one.over
        enough = math.isfinite(over.mean)
        records.append({
            "estimate": one.label + (" (trained again)" if one.origin == TRAINED_AGAIN and not one.imported else ""),
            "folds": one.folds,
            "rows": one.rows,
            objective_label(found.objective): str(one.pooled),
            "AUC in a typical source": bounds(over.mean, over.low, over.high) if enough else "too few sources",
            "next source": f"{over.next_low:.3f} to {over.next_high:.3f}" if one.predicts_next else "–",
            "sources": f"{over.used} of {len(over.sources)}",
            "difference": "" if one.difference is None else bounds(*_ends(one.difference), sign="+"),
        })  # fmt: skip
    return pd.DataFrame(records)


def source_sentences(found: LeaveSourceOut, *, advice: bool = True) -> list[str]:
    """Says what the estimates mean for an unseen source, in sentences; with ``advice``, how to get a better one."""
    best, over = found.strictest, found.strictest.over
    said = []
    reach = f"{over.next_low:.3f} to {over.next_high:.3f}"
    if best.held_out == SEEN:
        said.append("No estimate holds sources out: these numbers hold for new patients of the same sources only.")
    elif best.held_out == LEVEL_2_ONLY:
        nets = ", the blend and the image models" if best.origin == TRAINED_AGAIN else " and the blend"
        said.append(
            f"For an unseen source this is optimistic: level 2{nets} were fitted without it, but "
            f"{first_of(best.seen_by)} had been trained on other images of it. Expect less."
        )
        said += retraining_advice(best) if advice else []
        if math.isfinite(over.next_low):
            said.append(f"The interval for the next source, {reach}, does not allow for this optimism.{_wide(over)}")
    else:
        said.append(
            "Every model that scores a source here was fitted without it; weights and calibration were fitted on "
            "scores of the other sources."
        )
        if math.isfinite(over.next_low):
            said.append(
                f"In the next source, if it is one like these, expect an AUC of {reach} (95 % prediction interval from "
                f"{over.used} sources).{_wide(over)}"
            )
    if best.difference is not None:
        said.append(_difference_sentence(best.difference))
    said += [_run_sentence(one, found.objective) for one in found.runs]
    if best.pooled_difference is not None:
        said.append(
            f"Over the images of all sources together, {objective_label(found.objective)} changes by "
            f"{bounds(*_ends(best.pooled_difference), sign='+')} on the {best.rows:,} images that both estimates "
            f"score. {_pooled_sentence(best)} Read the values within a source."
        )
    if over.used == 2:
        said.append("Two sources do not tell how much sources vary: nothing can be said of the next one.")
    elif over.used < 2:
        said.append(
            f"{over.used} of {len(over.sources)} sources has enough groups of both classes for an AUC: too few to say "
            "how well the models do in another source."
        )
    if few := [str(row["source"]) for row in over.sources.to_dict("records") if row["note"]]:
        said.append(f"Too few groups for an AUC of their own: {first_of(few)}.")
    if found.joined:
        said.append(
            f"Sources that share {counted(found.shared_groups, 'groups')} (patients or lesions) are held out together: "
            f"{first_of(found.joined, separator='; ')}."
        )
    if found.left_out:
        said.append(
            f"Sources share {counted(found.shared_groups, 'groups')} (patients or lesions): "
            f"{counted(found.left_out, 'images')} outside the main source of a group are neither trained on nor scored "
            "where sources are held out."
        )
    if found.external and best.held_out != SEEN:
        said.append(
            f"The rows of {first_of(found.external)} (data.external) trained the nets of every fold: a source that "
            "they come from was not held out."
        )
    if found.untuned:
        said.append("Level 2 was fitted again without tuned settings, which had been chosen with folds of groups.")
    said += [f"The estimate of the models trained again: {one.note}." for one in found.estimates if one.note]
    return said


def retraining_advice(estimate: SourceEstimate) -> list[str]:
    """Says what to do so that the level-1 runs that had seen the sources are replaced by runs that had not."""
    own = [name for name in estimate.seen_by if name not in estimate.imported]
    said = []
    if own:
        said.append(
            f"To train {first_of(own)} again without each source, set `estimate.train_by_source: true` and run "
            "`dermstack oof` and `dermstack stack`; `dermstack plan` says how long it takes."
        )
    if estimate.imported:
        said.append(
            f"Imported predictions cannot be trained again here: {first_of(estimate.imported)}. Import predictions of "
            "nets whose folds hold out whole sources, or leave these runs out."
        )
    return said


def _pooled_sentence(best: SourceEstimate) -> str:
    """Says what a value over all sources compares, and in which direction it may be wrong."""
    if best.as_fitted is None:
        return (
            "This value also compares risks by different models: each source is scored by one that never saw its share "
            "of positives, and where the shares differ, it can be far too low."
        )
    but = f" (not those of {first_of(best.unknown_share)}: its share is unknown)" if best.unknown_share else ""
    return (
        "Each source is scored by models that never saw its share of positives, so their scores were moved to one "
        f"share{but}; without this, the value is {best.as_fitted}. It is right where positives look alike in all "
        "sources, and negatives too; else it can be off by some hundredths, upwards too."
    )


def _run_sentence(run: RunBySource, objective: str) -> str:
    """Says what an image model loses where it was trained without the source that it scores."""
    change = bounds(*_ends(run.pooled_difference), sign="+")
    return (
        f"{run.name}, trained again without each source, has {objective_label(objective)} {run.sources} over the "
        f"images of all sources, with groups held out {run.groups} on the same images: {change}."
    )


def _wide(over: OverSources) -> str:
    """Says what an interval for the next source means that reaches down to chance."""
    if over.next_low > 0.5:
        return ""
    return (
        f" It includes 0.5, which is chance: {over.used} sources are too few, or too different, to show that the "
        "ensemble works in the next one. Measure it there before it is used."
    )


def _difference_sentence(difference: Interval) -> str:
    """Says whether the estimate with sources held out is lower than that with groups held out, on the same images."""
    reach = bounds(*_ends(difference), sign="+")
    if difference.high < 0:
        return f"Within a source, the AUC is lower than with groups held out, by more than noise: {reach}."
    if difference.low > 0:
        return f"Within a source, the AUC is higher than with groups held out, by more than noise: {reach}."
    return (
        f"Within a source, the AUC is not shown to differ from that with groups held out: {reach}; a loss of "
        f"{max(-difference.low, 0):.3f} could not be excluded."
    )


def headline_note(found: LeaveSourceOut) -> str:
    """Says in one paragraph what a reader of the headline has to know of other sources."""
    best = found.strictest
    typical = best.over
    if best.held_out == SEEN:
        return "This estimate holds for new patients of the same sources; no source was held out."
    if not math.isfinite(typical.mean):
        label = objective_label(found.objective)
        return f"With sources held out, {label} is {best.pooled}; sources are too few for an AUC within them."
    seen_by = "the models" if best.held_out == HELD_OUT else "level 2 and the blend"
    what = f"On images of a source (hospital, camera) that {seen_by} had not seen"
    own, mean = found.own.over, bounds(typical.mean, typical.low, typical.high)
    before = f", with groups held out {own.mean:.3f}" if best is not found.own and math.isfinite(own.mean) else ""
    note = f"{what}, the AUC within a typical source is {mean}{before}"
    if best.predicts_next:
        note += f"; 95 % prediction interval for the next source {typical.next_low:.3f} to {typical.next_high:.3f}"
        note += ", which includes 0.5, chance" if typical.next_low <= 0.5 else ""
    if best.held_out == LEVEL_2_ONLY:
        who = first_of(best.imported) if best.origin == TRAINED_AGAIN else "the models of level 1"
        note += f". This is still optimistic, as {who} had been trained on other images of the source"
    return f"{note}."


def bounds(value: float, low: float, high: float, *, sign: str = "") -> str:
    """Formats a value with its interval."""
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def write_leave_source_out(folder: Path, made: LeaveSourceOut) -> None:
    """Writes the estimates as leave_source_out.json into the experiment's ``folder``."""
    estimates = [
        jsonable(replace(one, over=None)) | {"over": _over_to_json(one.over)}  # type: ignore[arg-type]
        for one in made.estimates
    ]
    runs = [
        jsonable(replace(one, over_groups=None, over_sources=None))  # type: ignore[arg-type]
        | {name: _over_to_json(getattr(one, name)) for name in ("over_groups", "over_sources")}
        for one in made.runs
    ]
    content = {
        "version": _VERSION, "objective": made.objective, "blend": made.blend, "estimates": estimates,
        "facts": jsonable(made.facts.to_dict("records")), "joined": list(made.joined),
        "shared_groups": made.shared_groups, "left_out": made.left_out, "untuned": made.untuned,
        "runs": runs, "external": list(made.external),
    }  # fmt: skip
    write_json(folder / RESULT, with_digest(content))


def stored_leave_source_out(folder: Path, fingerprint: str) -> LeaveSourceOut | None:
    """Reads the estimates in an experiment's ``folder`` for the blend of this ``fingerprint``.

    None where there are none, or they are of another blend. Raises StoreError for a damaged file.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found = verify_digest(read_json(path))
        if found["version"] != _VERSION or found["blend"] != fingerprint:
            return None
        return LeaveSourceOut(
            found["objective"], found["blend"], tuple(map(_estimate_of, found["estimates"])), _frame(found["facts"]),
            tuple(found["joined"]), int(found["shared_groups"]), int(found["left_out"]), bool(found["untuned"]),
            tuple(map(_run_of, found.get("runs", []))), tuple(found.get("external", [])),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}): remove it and run `dermstack stack` again") from error


def _estimate_of(content: Mapping[str, Any]) -> SourceEstimate:
    names = ("pooled", "pooled_difference", "difference", "as_fitted")
    intervals = {name: _interval_of(content.get(name)) for name in names}
    assert intervals["pooled"] is not None
    known = {name: content[name] for name in ("origin", "held_out", "folds", "rows", "note")}
    return SourceEstimate(
        **known, **intervals, seen_by=tuple(content["seen_by"]),  # type: ignore[arg-type]
        over=_over_of(content["over"]), imported=tuple(content.get("imported", [])),
        unknown_share=tuple(content.get("unknown_share", [])),
    )  # fmt: skip


def _run_of(content: Mapping[str, Any]) -> RunBySource:
    over = {name: _over_of(content[name]) for name in ("over_groups", "over_sources")}
    groups, sources, pooled = (_interval_of(content[name]) for name in ("groups", "sources", "pooled_difference"))
    assert groups is not None
    assert sources is not None
    assert pooled is not None
    return RunBySource(
        str(content["name"]), str(content["kind"]), bool(content["selected"]), int(content["rows"]), groups, sources,
        pooled, **over, difference=_interval_of(content["difference"]),
    )  # fmt: skip


def _over_of(content: Mapping[str, Any]) -> OverSources:
    over = dict(content)
    table = _frame(over.pop("sources"))
    table["note"] = table["note"].fillna("")
    return OverSources(table, **{name: _number(value) for name, value in over.items()})


def _over_to_json(over: OverSources) -> dict[str, Any]:
    table = jsonable(over.sources.to_dict("records"))
    return {**jsonable(replace(over, sources=None)), "sources": table}  # type: ignore[arg-type]


def _interval_of(content: Mapping[str, Any] | None) -> Interval | None:
    return None if content is None else Interval(**{name: _number(value) for name, value in content.items()})


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([
        {key: math.nan if value is None else value for key, value in record.items()} for record in records
    ])  # fmt: skip


def _most_frequent(words: pd.Series) -> str:
    counts = words.value_counts()
    return "" if counts.empty else f"{counts.index[0]} {counts.iloc[0] / len(words):.0%}"


def _size(rows: pd.DataFrame) -> str:
    if "width" not in rows or "height" not in rows or not rows[["width", "height"]].notna().all(axis=1).any():
        return ""
    return f"{rows['width'].median():.0f} × {rows['height'].median():.0f}"
