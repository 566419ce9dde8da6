"""Options that several commands share, and functions that open an experiment and print results."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermstack.errors import ConfigError

if TYPE_CHECKING:  # these import pandas, which is slow and would delay `--help`
    import pandas as pd

    from dermstack.audit.finding import Finding
    from stack.console import Out
    from stack.experiment import Experiment
    from stack.sources.estimates import LeaveSourceOut
    from stack.store import Run


_MAX_LISTED = 5  # rows named in a message

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML file of the experiment; demo-data writes an example.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting of the config, such as image_models.0.epochs=3. Repeatable."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
ShuffleOption = Annotated[
    bool,
    typer.Option(
        "--shuffle-target",
        help="Test for leaks: exchange targets between groups of equal size, in a separate experiment; "
        "among these groups the AUC must be about 0.5.",
    ),
]


BySourceOption = Annotated[
    bool,
    typer.Option(
        "--by-source",
        help="Work on the experiment NAME-by-source, whose folds hold out whole sources (folds.by: source); `stack` of "
        "the experiment itself then shows its estimate beside its own.",
    ),
]


def with_by_source(config: Path, overrides: list[str] | None, by_source: bool) -> tuple[str, ...]:
    """Returns the overrides of a command, with those of --by-source where it is given."""
    given = tuple(overrides or ())
    if not by_source:
        return given
    from stack.settings.config import read_config

    settings = read_config(config, given)
    if settings.folds.by == "source":
        raise ConfigError("--by-source: the folds of this config already hold out sources (folds.by): leave it out")
    if settings.estimate.train_by_source:
        raise ConfigError(
            "--by-source: this config trains its image models by source already (estimate.train_by_source): leave out "
            "one of the two"
        )
    return (*given, f"experiment={settings.name_by_source}", "folds.by=source")


def open_for_command(
    config: Path, overrides: list[str] | None, quiet: bool, *, introduced: bool = True
) -> tuple[Experiment, Out]:
    """Returns the experiment of a config and the command's output; prints an overview first, or its notes alone."""
    from stack.console import Out
    from stack.experiment import open_experiment, print_overview
    from stack.settings.config import read_config

    out = Out(quiet=quiet)
    given = tuple(overrides or ())
    experiment = open_experiment(read_config(config, given), config, out, overrides=given)
    if introduced:
        print_overview(experiment, out)
    else:
        for note in experiment.table.notes:
            out.warn(note)
    return experiment, out


def show_runs(experiment: Experiment, out: Out, runs: list[Run]) -> None:
    """Prints each run's out-of-fold score with its interval."""
    from dermstack.report.tables import terminal_table
    from stack.history import run_table
    from stack.metrics.own_metric import own_label
    from stack.metrics.scores import objective_label

    if runs:
        objective, label = own_label(experiment.config.objective), objective_label(experiment.config.objective)
        shown = run_table(experiment, runs).drop(columns=["level", "min_fold", "max_fold"])
        shown["seconds"] = shown["seconds"].round()
        out.table(
            terminal_table(shown, intervals={objective: ("low", "high")}, heads={objective: label}),
            f"{experiment.name}: out-of-fold {label} of each run, interval by group; mean of folds: AUC",
        )


def show_stacker(experiment: Experiment, out: Out, run: Run) -> None:
    """Prints the out-of-fold score of a stacker that has just been completed, with its interval, on one line."""
    from stack.history import run_table
    from stack.metrics.own_metric import own_label
    from stack.metrics.scores import objective_label

    line = run_table(experiment, [run]).iloc[0]
    objective, label = own_label(experiment.config.objective), objective_label(experiment.config.objective)
    more = [f"AP {line['ap']:.4f}", f"within folds {line['within_folds']:.4f}"]
    more += [f"{line['seconds']:,.0f} s"] if line["seconds"] == line["seconds"] else []
    more += [f"equal size {line['equal_size']}"] if "equal_size" in line else []
    more += [line["note"]] if line["note"] else []
    out.say(f"{run.name}: {label} {line[objective]:.4f} [{line['low']:.4f}, {line['high']:.4f}], {', '.join(more)}")


def show_probes(out: Out, run: Run, probes: pd.DataFrame) -> None:
    """Prints what a stacker would gain from acquisition shortcuts and lose without the other images of each group."""
    from dermstack.report.tables import terminal_table

    words = {
        "alone": "each image without its group",
        "context_counts": "number of images of the group as a feature",
        "shortcuts": "width, height and file size as features",
    }
    intervals = {"auc": ("low", "high"), "difference": ("difference_low", "difference_high")}
    heads = {"what": "condition", "difference": "difference", "difference_low": "paired interval"}
    out.table(
        terminal_table(probes.replace({"what": words}), intervals=intervals, heads=heads),
        f"{run.name}: gain from shortcuts, and loss when each image is predicted without its group; groups of one and "
        "other groups are compared with the mean of the level-1 logits",
    )


def show_findings(out: Out, findings: list[Finding], *, notes: bool = True, title: str = "audit") -> None:
    """Prints each finding with evidence, example and remedy; without ``notes``, notes are only counted."""
    from dermstack.audit.finding import SEVERITIES

    for finding in findings:
        if notes or finding.severity != "note":
            told = out.say if finding.severity == "note" else out.warn
            told(f"{finding.what} ({finding.severity})" if finding.severity == "error" else finding.what)
            for prefix, text in (("  ", finding.evidence), ("  ", finding.example), ("  -> ", finding.remedy)):
                if text and text != "none":
                    out.say(prefix + text)
    counts = [(sum(finding.severity == name for finding in findings), name) for name in SEVERITIES]
    out.say(f"{title}: " + ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts))


def show_plausibility(experiment: Experiment, out: Out, runs: list[Run]) -> None:
    """Prints the facts about each run's predictions, and what is doubtful about those of level 2.

    The audit has already told what is doubtful about level 1. Nothing is printed where the targets are shuffled.
    """
    if experiment.shuffled:
        return
    from stack.predictions.doubts import doubts
    from stack.predictions.plausibility import FACTS_TITLE, facts_table, run_facts
    from stack.predictions.run_views import Scores
    from stack.views import blends_run

    facts = run_facts(experiment, (Scores.of(run) for run in runs))
    out.table(facts_table(facts), FACTS_TITLE)
    level2 = {run.name for run in runs if run.meta["level"] == 2}
    judged = (one for one in facts if one.name in level2)
    for doubt in doubts(judged, is_blended=partial(blends_run, experiment.config)):
        out.warn(f"{doubt.title} ({doubt.evidence}): {doubt.remedy}")


def show_headline(out: Out, name: str, meta: Mapping[str, Any]) -> None:
    """Prints the headline of an experiment of this ``name`` from ``meta``, the run.json of its blend."""
    from stack.metrics.objective import OBJECTIVE_LABELS  # light: a `stack` with nothing to do imports no table
    from stack.metrics.own_metric import own_label

    headline, objective = meta["headline"], meta["objective"]
    label = OBJECTIVE_LABELS.get(objective) or own_label(objective)
    out.say(
        f"{name}: {label} {headline['value']:.4f} [{headline['low']:.4f}, "
        f"{headline['high']:.4f}] nested (mean within folds {meta['within_folds']:.4f}); submitted: {meta['chosen']}; "
        f"tuned in-sample, an optimistic {meta['tuned_in_sample']:.4f}"
    )
    if meta["selected"]:
        out.warn(
            f"{', '.join(meta['selected'])}: selected on these rows, by a study or by hand, so estimates that use it "
            "may be optimistic"
        )


def show_blend(experiment: Experiment, out: Out, blend: Run) -> None:
    """Prints the headline, a comparison of the blend methods, the calibration maps and the weights."""
    import pandas as pd

    from dermstack.report.tables import terminal_table
    from stack.metrics.scores import objective_label

    meta = blend.meta
    show_headline(out, experiment.name, meta)
    intervals = {"nested": ("low", "high"), "difference": ("difference_low", "difference_high")}
    heads = {"gap": "gap", "difference": "less the first", "difference_low": "paired interval"}
    methods = pd.DataFrame(meta["methods"])
    methods.loc[methods.index[:1], ["difference", "difference_low", "difference_high"]] = float("nan")  # to itself
    out.table(
        terminal_table(methods, intervals=intervals, heads=heads),
        f"Blend methods, {objective_label(meta['objective'])}: nested estimate, and optimistic in-sample estimate",
    )
    calibration = meta["calibration"]
    less = "less platt"
    out.table(
        terminal_table(
            pd.DataFrame(calibration["maps"]),
            intervals={less: ("low", "high")},
            heads={less: "log loss less that of platt", "low": "paired interval"},
        ),
        f"Calibration maps, fitted without the fold that they are scored on; p_calibrated uses {calibration['chosen']}",
    )
    weights = pd.DataFrame({"run": list(meta["weights"]), "weight": list(meta["weights"].values())})
    weights["enters by"] = list(meta["transforms"].values())
    out.table(weights, f"Weights of the submitted blend ({meta['chosen']}), refitted on all rows")


def show_sources(out: Out, found: LeaveSourceOut) -> None:
    """Prints the estimates with sources held out beside that of the experiment's own folds."""
    from stack.metrics.scores import objective_label
    from stack.sources.estimates import estimate_table, source_sentences

    out.table(
        estimate_table(found),
        f"Estimates by what the folds hold out ({objective_label(found.objective)}), and AUC within sources",
    )
    for sentence in source_sentences(found):
        out.say(sentence)


def show_files(out: Out, folder: Path, report: Path | None) -> None:
    """Prints where submission and report of the experiment in ``folder`` are, and names the rows of the fallback."""
    if (submission := folder / "submission.csv").exists():
        out.say(f"submission: {submission}")
        _show_fallback_rows(out, folder, submission)
    if report is not None:
        out.say(f"report: {report}")
    elif (earlier := folder / "report.html").exists():
        out.warn(f"{earlier} is of an earlier state: `dermstack report` writes it again")


def _show_fallback_rows(out: Out, folder: Path, submission: Path) -> None:
    """Names the rows of the submission that are predictions of the declared fallback."""
    if not (listed := folder / "fallback.csv").exists():
        return
    with listed.open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    with submission.open(encoding="utf-8", newline="") as file:
        rows = sum(1 for _ in csv.reader(file)) - 1
    more = f", … {len(ids):,} in all" if len(ids) > _MAX_LISTED else ""
    out.warn(
        f"{len(ids):,} of {rows:,} rows of the submission are predicted from the table alone, as their images cannot "
        f"be read: {', '.join(ids[:_MAX_LISTED])}{more}; see {listed}"
    )
