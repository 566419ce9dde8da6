"""Options that several commands share, and functions that open an experiment and print results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:  # these import pandas, which is slow and would delay `--help`
    from dermstack.audit.finding import Finding
    from stack.console import Out
    from stack.experiment import Experiment
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


def open_for_command(
    config: Path, overrides: list[str] | None, quiet: bool, *, introduced: bool = True
) -> tuple[Experiment, Out]:
    """Returns the experiment of a config and the command's output; with ``introduced``, prints an overview first."""
    from stack.config import read_config
    from stack.console import Out
    from stack.experiment import open_experiment, print_overview

    out = Out(quiet=quiet)
    given = tuple(overrides or ())
    experiment = open_experiment(read_config(config, given), config, out, overrides=given)
    if introduced:
        print_overview(experiment, out)
    return experiment, out


def show_runs(experiment: Experiment, out: Out, runs: list[Run]) -> None:
    """Prints each run's out-of-fold score with its interval, and the gain from shortcuts for each level-2 run."""
    from stack.history import run_table

    if runs:
        objective = experiment.config.objective
        table = run_table(experiment, runs)
        table["95 % interval"] = [
            f"{low:.4f} – {high:.4f}" for low, high in zip(table["low"], table["high"], strict=True)
        ]
        columns = ["run", "kind", "rows", objective, "95 % interval", "ap", "within_folds", "seconds", "note"]
        columns += [column for column in ("equal_size",) if column in table]
        out.table(table[columns], f"{experiment.name}: out-of-fold {objective} of each run, interval by group")
    for run in runs:
        if run.has("probes"):
            out.table(
                run.frame("probes"),
                f"{run.name}: gain from shortcuts, and loss when each image is predicted without its group; groups of "
                "one and other groups are compared with the mean of the level-1 logits",
            )


def show_findings(out: Out, findings: list[Finding], *, notes: bool = True) -> None:
    """Prints each finding with evidence, example and remedy; without ``notes``, notes are only counted."""
    from dermstack.audit.finding import Severity

    for finding in findings:
        if notes or finding.severity != "note":
            told = out.say if finding.severity == "note" else out.warn
            told(f"{finding.what} ({finding.severity})" if finding.severity == "error" else finding.what)
            for prefix, text in (("  ", finding.evidence), ("  ", finding.example), ("  -> ", finding.remedy)):
                if text and text != "none":
                    out.say(prefix + text)
    counts = [(sum(finding.severity == name for finding in findings), name) for name in get_args(Severity)]
    out.say("audit: " + ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts))


def show_plausibility(experiment: Experiment, out: Out, runs: list[Run]) -> None:
    """Prints the facts about each run's predictions, and what is doubtful about those of level 2.

    The audit has already told what is doubtful about level 1.
    """
    from stack.doubts import doubts
    from stack.plausibility import FACTS_TITLE, Scores, facts_table, run_facts

    facts = run_facts(experiment, (Scores.of(run) for run in runs))
    out.table(facts_table(facts), FACTS_TITLE)
    level2 = {run.name for run in runs if run.meta["level"] == 2}
    for doubt in doubts(one for one in facts if one.name in level2):
        out.warn(f"{doubt.what} ({doubt.evidence}): {doubt.remedy}")


def show_blend(experiment: Experiment, out: Out, blend: Run) -> None:
    """Prints the headline, a comparison of the blend methods, the calibration maps and the weights."""
    import pandas as pd

    from stack.metrics.intervals import Interval

    meta, headline = blend.meta, Interval(**blend.meta["headline"])
    out.say(
        f"{experiment.name}: {meta['objective']} {headline.value:.4f} [{headline.low:.4f}, {headline.high:.4f}] nested "
        f"(mean within folds {meta['within_folds']:.4f}); submitted: {meta['chosen']}; "
        f"tuned in-sample, an optimistic {meta['tuned_in_sample']:.4f}"
    )
    if meta["selected"]:
        out.warn(
            f"{', '.join(meta['selected'])}: selected on these rows, by a study or by hand, so estimates that use it "
            "may be optimistic"
        )
    out.table(pd.DataFrame(meta["methods"]), "Blend methods: nested estimate, and optimistic in-sample estimate")
    calibration = meta["calibration"]
    out.table(
        pd.DataFrame(calibration["maps"]),
        f"Calibration maps, fitted without the fold that they are scored on; p_calibrated uses {calibration['chosen']}",
    )
    weights = pd.DataFrame({"run": list(meta["weights"]), "weight": list(meta["weights"].values())})
    weights["enters by"] = list(meta["transforms"].values())
    out.table(weights, f"Weights of the submitted blend ({meta['chosen']}), refitted on all rows")


def show_fallback_rows(experiment: Experiment, out: Out) -> None:
    """Names the rows of the submission that are predictions of the declared fallback."""
    from stack.fallback import FOLDER

    if len(ids := experiment.unreadable_test["id"]):
        more = f", … {len(ids):,} in all" if len(ids) > _MAX_LISTED else ""
        out.warn(
            f"{len(ids):,} of {len(experiment.as_read.test):,} rows of the submission are predicted from the table "
            f"alone, as their images cannot be read: {', '.join(ids[:_MAX_LISTED])}{more}; see "
            f"{experiment.folder / FOLDER}.csv"
        )
