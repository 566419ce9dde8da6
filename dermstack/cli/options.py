"""What every command takes, and how it opens an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

if TYPE_CHECKING:  # pandas takes its time to import, and `--help` shall not wait for it
    from dermstack.audit.finding import Finding
    from stack.console import Out
    from stack.experiment import Experiment
    from stack.store import Run


ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The experiment's YAML file, see configs/.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, such as image_models.0.epochs=3. Repeatable."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]
ShuffleOption = Annotated[
    bool,
    typer.Option(
        "--shuffle-target",
        help="Exchange target vectors between groups of equal size, in an experiment of its own: "
        "among these groups it must end at AUC 0.5.",
    ),
]


def open_for_command(
    config: Path, overrides: list[str] | None, quiet: bool, *, shuffle_target: bool = False, introduced: bool = True
) -> tuple[Experiment, Out]:
    """The experiment of a config, and where its command speaks; ``introduced``: it says what it starts from."""
    from stack.config import read_config
    from stack.console import Out
    from stack.experiment import open_experiment, print_overview

    out = Out(quiet=quiet)
    given = tuple(overrides or ())
    experiment = open_experiment(
        read_config(config, given), config, out, overrides=given, shuffle_target=shuffle_target
    )
    if introduced:
        print_overview(experiment, out)
    return experiment, out


def show_runs(experiment: Experiment, out: Out, runs: list[Run]) -> None:
    """Print each run's out-of-fold score with its interval, and what shortcuts would add to each level-2 run."""
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
                f"{run.name}: what shortcuts would add to it, and how it does alone; groups of one and other groups "
                "against the mean of its level-1 logits",
            )


def show_findings(out: Out, findings: list[Finding], *, notes: bool = True) -> None:
    """Print each finding with evidence, example and remedy; without ``notes`` those are only counted."""
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


def show_blend(experiment: Experiment, out: Out, blend: Run) -> None:
    """Print the headline, the methods beside each other and the weights."""
    import pandas as pd

    from stack.metrics.intervals import Interval

    meta, headline = blend.meta, Interval(**blend.meta["headline"])
    out.say(
        f"{experiment.name}: {meta['objective']} {headline.value:.4f} [{headline.low:.4f}, {headline.high:.4f}] nested "
        f"(mean within folds {meta['within_folds']:.4f}); submitted: {meta['chosen']}; "
        f"tuned in-sample it would claim {meta['tuned_in_sample']:.4f}"
    )
    if meta["selected"]:
        out.warn(
            f"{', '.join(meta['selected'])}: selected on these rows, by a study or by hand, and so is what is built "
            "on it"
        )
    out.table(pd.DataFrame(meta["methods"]), "Blend methods: nested, and what tuning in-sample would have claimed")
    calibration = meta["calibration"]
    out.table(
        pd.DataFrame(calibration["maps"]),
        f"p_calibrated, by {calibration['chosen']}: each map fitted without the fold that it is scored on",
    )
    weights = pd.DataFrame({"run": list(meta["weights"]), "weight": list(meta["weights"].values())})
    weights["enters by"] = list(meta["transforms"].values())
    out.table(weights, f"Weights of the submitted blend ({meta['chosen']}), refitted on all rows")
