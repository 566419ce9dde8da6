"""Imports many runs at once: skips those that are unchanged, goes on after a faulty one, and says the state of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from dermstack.errors import DataError, DermstackError, StoreError
from image_models.settings import DoneBefore
from stack.console import Out
from stack.experiment import Experiment, write_rows
from stack.imported.prediction_files import Files
from stack.imported.run import (
    Checked,
    Source,
    check_name,
    check_source,
    inputs_of,
    known_scores,
    read_as,
    unread_test_file,
    write_checked,
)
from stack.predictions.doubts import Doubt, doubts
from stack.predictions.plausibility import FACTS_TITLE, Comparison, RunFacts, facts_table
from stack.predictions.ranks import AVERAGED
from stack.predictions.run_views import Scores
from stack.store import Run, locked, read_verified_run
from stack.views import blends_run

State = Literal["imported", "unchanged", "changed", "not imported"]


@dataclass(frozen=True)
class Outcome:
    """What became of one run: ``reason`` says why it was not imported, or what changed since it was.

    ``meta`` is the run.json of the run that is stored.
    """

    name: str
    state: State
    reason: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def import_many(experiment: Experiment, sources: Sequence[Source], out: Out, *, replace_changed: bool) -> list[Outcome]:
    """Imports the runs of ``sources`` one after the other and returns what became of each, in their order.

    A run whose files and options are those of its last import is skipped. One whose are not is set aside and imported
    again with ``replace_changed``, and else left as it is. A faulty run is not imported, the others are; a kill leaves
    those that are complete. Prints progress, the facts about the predictions, what is doubtful and one line a run.

    Raises DataError at the end where a run was not imported, with the reasons.
    """
    sources = [replace(one, options=replace(one.options, averaged_where_needed=True)) for one in sources]
    files, comparison = Files(), Comparison(experiment)
    if any(unread_test_file(experiment, one) for one in sources):
        out.warn("the experiment has no test rows (data.test): the test files are not read")
    outcomes: list[Outcome] = []
    with locked(experiment.folder):
        write_rows(experiment)
        # A thread of its own writes one run, which is mostly waiting for the disk, while the next is read.
        with out.bar("import", len(sources), "runs") as progress, ThreadPoolExecutor(1) as writer:
            writing: Future[tuple[Run, Path | None]] | None = None
            for source in sources:
                outcome, checked = _checked(experiment, source, files, comparison, again=replace_changed)
                outcomes.append(outcome)
                if writing is not None:
                    writing.result()
                writing = None if checked is None else writer.submit(write_checked, experiment, checked)
                progress(DoneBefore(1) if outcome.state == "unchanged" else 1)
            if writing is not None:
                writing.result()
        compared = {one.name for one in outcomes if one.state in ("imported", "unchanged")}
        for scores in known_scores(experiment, out, without=compared):
            comparison.add_other(scores)
    for one in outcomes:
        if one.state == "imported" and one.reason:
            out.say(f"{one.name}: imported again with other {one.reason}; the old run is kept in {experiment.old}")
    facts = comparison.facts()
    _show(outcomes, facts, doubts(facts, is_blended=partial(blends_run, experiment.config)), out)
    _raise_for(outcomes)
    return outcomes


def _checked(
    experiment: Experiment, source: Source, files: Files, comparison: Comparison, *, again: bool
) -> tuple[Outcome, Checked | None]:
    """Returns what becomes of a run, and its predictions where they must be written."""
    name = source.name
    try:
        check_name(experiment, name)
        if len(experiment.table.test) and not source.test:
            raise DataError(
                f"{source.oof[0].path}: the experiment has test rows, but no test file of this run is found: name it "
                f"{name}_test, or list the files (--list)"
            )
        before, changed, checked = _stored(experiment, name, again=again), "", None
        if before is not None:
            changed, checked = _changes(experiment, before, source, files)
            if not changed:
                comparison.add(Scores.of(before))
                return Outcome(name, "unchanged", meta=before.meta), None
            if not again:
                return Outcome(name, "changed", changed, before.meta), None
        checked = checked or check_source(experiment, source, files)
        for doubt in doubts([comparison.add(checked.scores)]):
            if doubt.severity == "error":
                raise DataError(f"{source.oof[0].path}: {doubt.title} ({doubt.evidence}): {doubt.remedy}")
        return Outcome(name, "imported", changed, checked.meta), checked
    except DermstackError as error:
        comparison.discard(name)
        return Outcome(name, "not imported", str(error)), None


def _stored(experiment: Experiment, name: str, *, again: bool) -> Run | None:
    """Returns the stored run, verified; None where there is none, or a damaged one that may be replaced."""
    try:
        return read_verified_run(experiment.models / name)
    except StoreError:
        if again:
            return None
        raise


def _changes(experiment: Experiment, before: Run, source: Source, files: Files) -> tuple[str, Checked | None]:
    """Returns what differs from the run that is stored, "" for nothing, and the predictions if they were read."""
    inputs, stored = inputs_of(experiment, source), before.meta.get("inputs", {})
    changed = [name for name in inputs if inputs[name] != stored.get(name)]
    if "read_as" in before.meta:
        if (was := before.meta["read_as"]) != (now := read_as(source)):
            changed.append(f"options ({', '.join(key for key in now if now[key] != was.get(key))})")
    elif not changed:  # an earlier version did not note the options: the predictions themselves say whether they agree
        checked = check_source(experiment, source, files)
        if not all(checked.frames[part].equals(before.frame(part)) for part in ("oof", "test")):
            return "options", checked
    return ", ".join(changed), None


def _show(outcomes: Sequence[Outcome], facts: Sequence[RunFacts], found: Sequence[Doubt], out: Out) -> None:
    if facts:
        out.table(facts_table(facts), FACTS_TITLE)
    for doubt in found:
        out.warn(f"{doubt.title} ({doubt.evidence}): {doubt.remedy}")
    of_run = {one.name: one for one in facts}
    doubtful: dict[str, list[str]] = {one.name: [] for one in outcomes}
    for doubt in found:
        for name in doubt.runs:
            doubtful.setdefault(name, []).append(doubt.what)
    out.table(
        pd.DataFrame([_row(one, of_run.get(one.name), doubtful[one.name]) for one in outcomes]),
        f"Imported predictions: {_counts(outcomes)}",
    )


def _row(outcome: Outcome, facts: RunFacts | None, doubtful: Sequence[str]) -> dict[str, str]:
    problems = {"not imported": "refused, see below", "changed": f"other {outcome.reason}, see below"}.get(
        outcome.state, "; ".join(doubtful) if len(doubtful) < 2 else f"{len(doubtful)} warnings, see above"
    )
    row = {"run": outcome.name, "state": outcome.state, "rows": "–", "folds": "–", "test": "–", "AUC": "–"}
    if facts is not None:
        row |= {
            "rows": f"{facts.rows:,}",
            "folds": _folds(facts, outcome.meta),
            "test": _test_nets(facts),
            "AUC": str(facts.auc) if facts.auc else "–",
        }
    return row | {"problems": problems or "none"}


def _folds(facts: RunFacts, meta: Mapping[str, Any]) -> str:
    number = f"{len(facts.oof_nets)}" if len(facts.oof_nets) > 1 else "unknown"
    return f"{number}, foreign" if meta["foreign_folds"] else number


def _test_nets(facts: RunFacts) -> str:
    nets = facts.nets["net"].tolist()
    return "–" if not nets else "averaged" if nets == [AVERAGED] else f"{len(nets)} nets"


def _counts(outcomes: Sequence[Outcome]) -> str:
    counts = {state: sum(one.state == state for one in outcomes) for state in get_args(State)}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _raise_for(outcomes: Sequence[Outcome]) -> None:
    left = [one for one in outcomes if one.state in ("not imported", "changed")]
    if not left:
        return
    lines = [
        f"  {one.name}: {one.reason}"
        if one.state == "not imported"
        else f"  {one.name}: kept as it was imported before, with other {one.reason}: add --replace to import it again"
        for one in left
    ]
    raise DataError(
        f"{len(left)} of {len(outcomes)} runs are not imported as asked ({_counts(outcomes)}):\n"
        + "\n".join(lines)
        + "\nthe other runs are complete; run the same command again after mending these, it skips what is unchanged"
    )
