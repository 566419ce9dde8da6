"""Gathers the data of the report from the store, replaces ids by codes, and writes report.html and model_card.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from dermstack.audit.columns import number_columns, word_columns
from dermstack.audit.drift import missing_values
from dermstack.audit.finding import FINDING_COLUMNS, is_audited, read_findings
from dermstack.audit.pictures import count_kinds, pair_kinds
from dermstack.errors import ConfigError, StoreError
from dermstack.report.cases import doubtful_labels_section, start_hard_cases
from dermstack.report.explorer import explorer
from dermstack.report.fairness import blend_subgroups, fairness_sections
from dermstack.report.level2_notes import Level2, start_level2
from dermstack.report.model_card import model_card, write_model_card
from dermstack.report.population import fallback_notes, group_notes, positives, source_note, sources_file
from dermstack.report.pseudonyms import pseudonymiser
from dermstack.report.report import (
    Calibration,
    Comparison,
    DataFacts,
    Decision,
    ReportData,
    Section,
    report_html,
)
from dermstack.report.report_parts import Parts, blend_figures, report_parts
from dermstack.report.review import band_sentences
from dermstack.report.row_flow import merged_groups
from dermstack.report.sources import sources_section
from dermstack.report.training import training_of
from dermstack.report.units import Scored, scored_rows
from stack.blend.copies import copies_text
from stack.console import Out
from stack.experiment import Experiment
from stack.history import fold_table, rank_correlations, run_table
from stack.images import require_acquisition
from stack.metrics.calibration import calibration_scores, reliability
from stack.metrics.decisions import decision_curve, decision_numbers, round_thresholds
from stack.metrics.intervals import Interval, interval, paired_difference
from stack.metrics.own_metric import own_label
from stack.metrics.subgroups import subgroups
from stack.parallel import Pending
from stack.review import shown_review
from stack.sources.estimates import stored_leave_source_out
from stack.store import Run, atomic, fingerprint, read_run, read_runs
from stack.study_inputs import current_study_inputs
from stack.tables.columns import described_choices, number_warnings
from stack.tune.studies import StudyHistory, read_studies
from stack.up_to_date import library_versions
from stack.views import all_runs


def table_facts(experiment: Experiment) -> dict[str, int | float | str]:
    """Returns the sizes of the table, by name."""
    train, test = experiment.table.train, experiment.table.test
    facts: dict[str, int | float | str] = {
        "training rows": len(train),
        "positives": int(experiment.target.sum()),
        "groups": int(train["group"].nunique()),
        "groups after joining those with the same image": int(experiment.folds.frame["split_group"].nunique()),
        "test rows": len(test),
    }
    columns = experiment.table.columns
    named = {"columns of numbers": columns.numeric, "columns of words": columns.categorical, "derived": columns.derived}
    facts |= {f"{words}, without a role": len(names) for words, names in named.items() if names}
    if lost := len(experiment.unreadable_test):
        facts["further test rows, image unreadable, predicted from the table alone"] = lost
    if len(experiment.external_as_read):
        facts["external rows (used only to train level 1)"] = len(experiment.external_as_read)
    if len(experiment.unlabelled_as_read):
        facts["rows without a target (used only to train level 1)"] = len(experiment.unlabelled_as_read)
    return facts


_NOT_SHOWN = {"runs", "cache", "storage", "tracking"}  # of the settings on the page: where files lie and copies go


def data_facts(experiment: Experiment, *, show_ids: bool) -> DataFacts:
    """Returns duplicates, missing values and the audit's findings; they contain ids only with ``show_ids``."""
    path = experiment.config_path
    shown = path.name if path.is_absolute() else path  # an absolute path would show this machine's folders
    pictures_unaudited = experiment.config.data.images is not None and not is_audited(experiment, "pictures")
    columns = experiment.table.columns
    return DataFacts(
        duplicates=_duplicates(experiment),
        missing=missing_values(experiment.table),
        findings=_findings(experiment, show_ids=show_ids),
        numbers=number_columns(experiment.table, experiment.split_group, seed=experiment.config.seed),
        words=word_columns(experiment.table, experiment.folds, seed=experiment.config.seed),
        column_notes=[*described_choices(columns), *number_warnings(columns)],
        audit_command=f"dermstack audit --config {shown}" if pictures_unaudited else "",
    )


def _duplicates(experiment: Experiment) -> dict[str, int | str]:
    facts: dict[str, int | str] = {}
    published = experiment.listed_duplicates
    if published is not None:
        facts["pairs in the list of duplicates"] = len(published)
        facts["of these, with an id outside the training rows"] = experiment.folds.unknown_pairs
    if experiment.curation.images_fingerprint:
        pairs = pair_kinds(experiment.curation.pairs, experiment.table)
        facts |= {f"pairs of images that look alike, {kind}": count for kind, count in count_kinds(pairs).items()}
        facts["of all these pairs, between two training images"] = int(
            ((pairs["part_1"] == "train") & (pairs["part_2"] == "train")).sum()
        )
    else:
        facts["near-duplicates"] = "the images were not checked"
    facts["groups merged into others because of duplicates"] = merged_groups(experiment)
    facts["groups with rows in both train and test"] = experiment.table.shared_groups
    facts["training rows dropped, image unreadable"] = experiment.unreadable_train
    return facts


def _findings(experiment: Experiment, *, show_ids: bool) -> pd.DataFrame | None:
    found = read_findings(experiment)
    if found is None:
        return None
    frame = pd.DataFrame(found, columns=list(FINDING_COLUMNS))
    # Only the column example contains ids.
    return frame if show_ids else frame.drop(columns="example")


def write_report(experiment: Experiment, out: Out, *, show_ids: bool = False, images: bool = True) -> Path:
    """Writes runs/<experiment>/report.html and model_card.md. Raises StoreError if `stack` has not been run.

    The page shows ids of images and groups only with ``show_ids``, and images only with ``images``.
    """
    return written_report(experiment, out, show_ids=show_ids, images=images).path


@dataclass(frozen=True)
class WrittenReport:
    """The report page that was written, and what it was made of."""

    path: Path
    html: str
    data: ReportData
    parts: Parts
    sections: Mapping[str, Section]  # those that are rendered apart from the page
    experiment: Experiment
    blend: Run
    runs: tuple[Run, ...]  # those of the blend, and those that feed its stackers
    images: bool  # whether images were wanted


def written_report(experiment: Experiment, out: Out, *, show_ids: bool = False, images: bool = True) -> WrittenReport:
    """Writes the report as `write_report` does, and returns what it was made of, for checklists and files."""
    blend = read_run(experiment.folder / "blend")
    if blend is None:
        raise StoreError(f"{experiment.folder} has no blend yet: run `{experiment.command('stack')}`")
    path = experiment.folder / "report.html"
    runs = blended_runs(experiment, blend)
    scored = scored_rows(experiment, blend, runs)
    # Worker processes make what takes longest, while this one makes all that does not depend on it.
    cases = _start_hard_cases(experiment, blend, runs, scored, show_ids=show_ids, images=images)
    level2 = _start_level2(experiment, runs, scored)
    with out.bar("report", cases.tasks + level2.tasks + 3, "parts") as progress:
        sections = _case_sections(experiment, blend, runs, scored, show_ids=show_ids, images=images)
        progress(1)
        data = _data_of_blend(experiment, blend, runs, out, scored=scored, show_ids=show_ids)
        drawn = blend_figures(data)
        progress(1)
        data = _with_level2(data, level2.finish(progress))
        sections["hard-cases"] = cases.finish(progress)
        parts = report_parts(data, drawn)
        html = report_html(data, sections, parts)
        with atomic(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
        card = model_card(
            experiment,
            blend,
            runs=data.runs,
            subgroups=_card_subgroups(data.subgroups),
            scored=scored,
            notes=[*data.notes, *data.diagnostics],
            decisions=band_sentences(data.review.band, data.unit) if data.review else (),
        )
        write_model_card(experiment, card)
        progress(1)
    return WrittenReport(path, html, data, parts, sections, experiment, blend, tuple(runs), images)


def _start_level2(experiment: Experiment, runs: list[Run], scored: Scored) -> Pending[Level2]:
    """Starts what is measured about level 2 for the report, and kept on disk."""
    stackers = [run for run in runs if run.meta["level"] == 2]
    of = "" if scored.units is None else "images"
    return start_level2(experiment, stackers, _seen_level1(experiment, stackers), of=of)


def _start_hard_cases(
    experiment: Experiment, blend: Run, runs: list[Run], scored: Scored, *, show_ids: bool, images: bool
) -> Pending[Section]:
    display_name = str if show_ids else pseudonymiser(experiment)
    return start_hard_cases(experiment, blend, runs, scored=scored, display_name=display_name, no_images=not images)


def _case_sections(
    experiment: Experiment, blend: Run, runs: list[Run], scored: Scored, *, show_ids: bool, images: bool
) -> dict[str, Section]:
    """Returns the sections on rows, subgroups, thresholds and doubtful labels that have something to show."""
    oof = blend.frame("oof")
    display_name = str if show_ids else pseudonymiser(experiment)
    rows = scored.experiment.rows_of(oof["id"])
    y, split_group = scored.experiment.target[rows], scored.experiment.split_group[rows]
    level1 = [run for run in runs if run.meta["level"] == 1]
    found = stored_leave_source_out(experiment.folder, blend.meta["fingerprint"])
    sections = {
        **fairness_sections(experiment, blend, runs, scored),
        "sources": None
        if found is None
        else sources_section(found, from_file=sources_file(experiment), unit=scored.unit),
        "explorer": explorer(y, oof["p_calibrated"], split_group, scored.unit),
        "second-look": doubtful_labels_section(experiment, level1, display_name=display_name, no_images=not images),
    }
    return {place: made for place, made in sections.items() if made}


def _seen_level1(experiment: Experiment, stackers: list[Run]) -> list[Run]:
    """Returns the level-1 runs that the stackers' matrix was made of, also those that the blend leaves out."""
    names = {name for stacker in stackers for name in stacker.meta["scales"]}
    order = [model.name for model in experiment.config.image_models]
    found = [run for run in experiment.finished(level=1) if run.name in names]
    return sorted(found, key=lambda run: order.index(run.name) if run.name in order else len(order))  # stable


def blended_runs(experiment: Experiment, blend: Run) -> list[Run]:
    """Returns the runs of the blend's experiment, in its order; those that the blend leaves out feed its stackers.

    Raises StoreError where one of them is gone, as while `oof --rebuild` makes it again, or is not the run that was
    blended: a page of both would show numbers that do not belong together.
    """
    by_name = {run.name: run for run in read_runs(experiment.models)}
    again = f"run `{experiment.command('stack')}`"
    if gone := [name for name in all_runs(blend) if name not in by_name]:
        raise StoreError(
            f"the blend was made of {', '.join(all_runs(blend))}, of which {', '.join(gone)} is no longer complete in "
            f"{experiment.models}: wait for the `oof` that makes it, or run `{experiment.command('oof')}`; then {again}"
        )
    files = {name: by_name[name].meta["files"] for name in blend.meta["runs"]}
    if blend.meta["inputs"].get("runs") != fingerprint(files):
        raise StoreError(
            f"{', '.join(files)}: at least one of these runs was made again after they were blended, so {blend.folder} "
            f"is stale: {again}, which blends them and writes the report"
        )
    return [by_name[name] for name in all_runs(blend)]


def report_data(experiment: Experiment, blend: Run, runs: list[Run], out: Out) -> ReportData:
    """Collects everything that the page shows about this blend and its ``runs``, on the rows it covers."""
    scored = scored_rows(experiment, blend, runs)
    level2 = _start_level2(experiment, runs, scored)
    data = _data_of_blend(experiment, blend, runs, out, scored=scored, show_ids=False)
    return _with_level2(data, level2.finish(lambda done: None))


def _with_level2(data: ReportData, level2: Level2) -> ReportData:
    return replace(data, diagnostics=level2.notes, importance=level2.importance)


def _data_of_blend(
    experiment: Experiment, blend: Run, runs: list[Run], out: Out, *, scored: Scored, show_ids: bool
) -> ReportData:
    """Collects what `report_data` returns but what is measured about level 2 for the report alone."""
    oof = blend.frame("oof")
    rows = scored.experiment.rows_of(oof["id"])
    y, split_group = scored.experiment.target[rows], scored.experiment.split_group[rows]
    given = scored.experiment.table
    patients = given.train["group"].to_numpy(object)[rows] if given.groups_known else None
    objective = experiment.config.objective
    table = run_table(scored.experiment, scored.runs)
    blended = [number for number, run in enumerate(runs) if run.name in blend.meta["runs"]]
    best = scored.runs[blended[int(table[own_label(objective)].to_numpy()[blended].argmax())]]
    score = oof["score"].to_numpy(np.float64)
    curves = _curves(oof, best, scored.prefix)
    comparisons = [
        Comparison(
            label,
            interval(objective, y, other, split_group),
            paired_difference(objective, y, score, other, split_group),
        )
        for label, other in list(curves.items())[1:]
    ]
    parts, uncut = blend_subgroups(scored.experiment, rows)
    has_level2 = any(run.meta["level"] == 2 for run in runs)
    weights = blend.meta["weights"]
    return ReportData(
        experiment=experiment.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        objective=objective,
        unit=scored.unit,
        headline=Interval(**blend.meta["headline"]),
        headline_label="nested from level 2 up, with the out-of-fold predictions of level 1 as given"
        + ("; some settings were selected on these rows" if blend.meta["selected"] else ""),
        chosen=blend.meta["chosen"],
        comparisons=comparisons,
        runs=table,
        methods=pd.DataFrame(blend.meta["methods"]),
        weights=pd.DataFrame({
            "run": list(weights), "weight": list(weights.values()),
            "enters as": [blend.meta["transforms"][name] for name in weights],
        }),
        y=y,
        curves=curves,
        fold=oof["fold"].to_numpy(),
        folds=experiment.folds.summary(experiment.target, experiment.table.train),
        facts=table_facts(experiment),
        notes=_notes(experiment, blend, scored, has_level2=has_level2, show_ids=show_ids),
        target=experiment.config.data.columns.target_column,
        positives=positives(experiment),
        group=experiment.config.data.columns.group or "",
        settings=_settings(experiment),
        versions=library_versions(),
        calibration=_calibration(blend, oof, y, split_group, scored.prefix),
        decision=Decision(
            decision_curve(y, oof["p_calibrated"], split_group),
            decision_curve(y, oof["p_calibrated"], split_group, thresholds=round_thresholds(y)),
            decision_numbers(y, score, oof["p_calibrated"], split_group, patients),
        ),
        review=shown_review(experiment, blend, out),
        by_fold=fold_table(scored.experiment, [blend, *scored.runs]),
        agreement=rank_correlations([blend, *scored.runs]),
        uncut=uncut,
        subgroups=subgroups(y, score, split_group, parts),
        training=training_of(runs, experiment.config.tuned.gbdt),
        studies=_studies(experiment, runs, out),
        data=data_facts(experiment, show_ids=show_ids),
        seeds=_seeds(experiment),
        fingerprints={
            "training rows, targets and folds": experiment.rows_fingerprint,
            "metadata": experiment.metadata_fingerprint,
            **{run.name: run.meta["fingerprint"] for run in [*runs, blend]},
        },
    )  # fmt: skip


def _curves(oof: pd.DataFrame, best: Run, prefix: str) -> dict[str, NDArray[np.float64]]:
    """Returns the scores to compare, by label: the blend's first, then its best run's and the rank average's."""
    best_score = best.frame("oof").set_index("id")["p"].loc[oof["id"]]
    curves = {"blend (nested)": oof["score"], f"{best.name}, selected on these rows": best_score}
    if (simplest := f"{prefix}rank_mean_nested") in oof:
        curves["rank average of the mean logits" if prefix else "rank average"] = oof[simplest]
    return {label: scores.to_numpy(np.float64) for label, scores in curves.items()}


def _studies(experiment: Experiment, runs: list[Run], out: Out) -> list[StudyHistory]:
    """Returns the studies of these runs and settings; warns and returns [] where their storage cannot be read."""
    if experiment.config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    try:
        return read_studies(experiment, current_study_inputs(experiment, runs))
    except (ConfigError, StoreError) as error:  # an unreachable database, a damaged journal
        out.warn(f"the report lacks its section on studies: {error}")
        return []


def _card_subgroups(found: pd.DataFrame | None) -> pd.DataFrame:
    """Renames the columns of the subgroup table to those of the model card."""
    if found is None:
        return pd.DataFrame(columns=["subgroup", "level", "rows", "positives", "auc", "low", "high", "note"])
    notes = np.where(found["apart"], "differs from the rest, beyond noise", "")
    return found.rename(columns={"subgroup": "level"}).rename(columns={"by": "subgroup"}).assign(note=notes)


def _calibration(
    blend: Run, oof: pd.DataFrame, y: NDArray[np.int8], split_group: NDArray[np.object_], prefix: str
) -> Calibration:
    """Returns the reliability of the chosen method's nested score, before and after its calibration."""
    method, after = blend.meta["chosen"], oof["p_calibrated"].to_numpy()
    before = oof[f"{method}_nested"].to_numpy()
    probabilities = {f"the score of {method}": before}
    if method != f"{prefix}mean" and f"{prefix}mean_nested" in oof:
        probabilities["the mean of the runs' probabilities"] = oof[f"{prefix}mean_nested"].to_numpy()
    probabilities["calibrated"] = after
    scores = pd.DataFrame([{"probability": label, **calibration_scores(y, p)} for label, p in probabilities.items()])
    return Calibration(
        method=method,
        map=blend.meta["calibration"]["chosen"],
        before=reliability(y, before, split_group),
        after=reliability(y, after, split_group),
        scores=scores,
    )


def _settings(experiment: Experiment) -> str:
    shown = _without_folders(experiment.config.model_dump(mode="json", exclude=_NOT_SHOWN))
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    """Replaces absolute paths in the settings by file names, which say nothing about the machine."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _seeds(experiment: Experiment) -> dict[str, int | str]:
    config = experiment.config
    return {
        "experiment (models, studies, blend)": config.seed,
        "folds": config.folds.seed,
        **{f"{model.name}": ", ".join(map(str, model.seeds)) for model in config.image_models if model.enabled},
    }


def _notes(experiment: Experiment, blend: Run, scored: Scored, *, has_level2: bool, show_ids: bool) -> list[str]:
    """Says what limits the result: what was scored, for whom it holds, and what saw the scored rows."""
    source = source_note(experiment, blend)
    notes = [
        *scored.notes,
        *([] if source is None else [source]),
        *group_notes(experiment),
        "Tuned, in-sample values are measured on the same rows that the weights were fitted on; they are optimistic.",
    ]
    if has_level2:
        notes.append(
            "Level-2 models are fitted on out-of-fold predictions of networks that saw the images of the held-out fold "
            "in training. With shuffled targets this gives an AUC slightly above 0.5 (measured by `--shuffle-target`)."
        )
    if blend.meta["left_out"]:
        notes.append(
            f"{blend.meta['left_out']} training rows are left out: an imported run was declared not to cover them."
        )
    if copies := blend.meta.get("near_copies"):
        notes.append(f"The blend has {copies_text(copies, blend.meta['objective'])} (`blend.runs` selects runs).")
    if blend.meta["selected"]:
        notes.append(
            f"{', '.join(blend.meta['selected'])}: the settings were selected on these rows, by a study or by hand. "
            "The results of these runs, of level 2 and of the blend can therefore be optimistic."
        )
    if experiment.shuffled:
        notes.append(
            "Targets were shuffled between groups of equal size: among groups of one size, results should be chance."
        )
    return [*notes, *fallback_notes(experiment, show_ids=show_ids)]
