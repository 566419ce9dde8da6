"""The command line: each command opens the experiment, calls one step and shows what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from image_models.errors import ImageError
from stack.errors import ConfigError, DermstackError
from tabular.errors import TabularError

# Everything heavier is imported by the command that needs it: `dermstack --help` answers at once, and level 2 runs
# where torch isn't installed.
if TYPE_CHECKING:
    from stack.console import Out
    from stack.experiment import Experiment
    from stack.store import Run

IMAGE_EXTRA = {"torch", "torchvision", "timm", "albumentations", "cv2"}
INTERRUPTED = 130  # what a shell expects after Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Tabular + image ensemble stacking whose number can be believed.",
)

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


@app.command()
def oof(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    shuffle_target: ShuffleOption = False,
    rebuild: Annotated[
        list[str] | None, typer.Option(help="Set this image model's run aside and make it again. Repeatable.")
    ] = None,
) -> None:
    """Image cache, folds and image models: out-of-fold logits and embeddings, test predictions."""
    from stack.oof import run_image_models

    experiment, out = _open(config, overrides, quiet, shuffle_target)
    runs = run_image_models(experiment, out, rebuild=rebuild or [])
    _show_runs(experiment, out, runs)
    out.say(f"next: dermstack stack --config {config}")


@app.command()
def stack(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    shuffle_target: ShuffleOption = False,
) -> None:
    """Level-2 matrix, GBDTs, blend, submission.csv and report.html, from what `oof` and `import-oof` made."""
    from stack.ensemble import run_blend
    from stack.evidence import write_report
    from stack.experiment import write_rows
    from stack.ledger import add_line
    from stack.stackers import level1_runs, run_stackers
    from stack.store import locked

    experiment, out = _open(config, overrides, quiet, shuffle_target)
    with locked(experiment.folder):
        runs = level1_runs(experiment)
        write_rows(experiment)
        runs += run_stackers(experiment, runs, out)
        blend = run_blend(experiment, runs, out)
        report = write_report(experiment)
        add_line(experiment, blend)
    _show_runs(experiment, out, runs)
    _show_blend(experiment, out, blend)
    if (submission := experiment.folder / "submission.csv").exists():
        out.say(f"submission: {submission}")
    out.say(f"report: {report}")


@app.command()
def import_oof(
    name: Annotated[str, typer.Argument(help="The run's name in the experiment.")],
    config: ConfigOption,
    oof: Annotated[Path, typer.Option(help="CSV of out-of-fold probabilities, one row a training image.")],
    test: Annotated[Path | None, typer.Option(help="CSV of test probabilities, one row an image and fold net.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: the config's id column.")] = None,
    p_column: Annotated[str, typer.Option(help="The probability's column, in both files.")] = "p",
    fold_column: Annotated[str, typer.Option(help="The column of the net that made a row, in both files.")] = "fold",
    test_averaged: Annotated[
        bool, typer.Option(help="The test file holds one row an image, averaged over nets.")
    ] = False,
    exclude: Annotated[
        int, typer.Option(min=0, help="How many training rows the file lacks; they leave the stack.")
    ] = 0,
    foreign_folds: Annotated[
        bool, typer.Option(help="Accept other folds than the experiment's; shown with every number.")
    ] = False,
    replace: Annotated[bool, typer.Option(help="Set an earlier import of this name aside.")] = False,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring another pipeline's out-of-fold and test predictions in as a level-1 run."""
    from stack.imported import ImportedColumns, import_oof

    experiment, out = _open(config, overrides, quiet, shuffle_target=False)
    columns = ImportedColumns(id_column or experiment.config.data.columns.id, p_column, fold_column)
    run = import_oof(
        experiment, name, oof, test, out, columns=columns, test_averaged=test_averaged, exclude=exclude,
        foreign_folds=foreign_folds, replace=replace,
    )  # fmt: skip
    _show_runs(experiment, out, [run])


@app.command()
def tune(
    study: Annotated[str, typer.Argument(help="blend (its weights) or gbdt (each stacker's parameters).")],
    config: ConfigOption,
    trials: Annotated[int, typer.Option(min=1, help="Ended trials that each study shall have.")] = 30,
    timeout: Annotated[float | None, typer.Option(help="gbdt: seconds after which no trial is started.")] = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Optuna studies that survive and continue; the config uses what they chose under `tuned:`."""
    from stack.stackers import level1_runs, run_stackers
    from stack.store import locked
    from stack.tune import tune_blend, tune_gbdt

    if study not in {"blend", "gbdt"}:
        raise ConfigError(f"unknown study {study!r}: choose blend or gbdt")
    experiment, out = _open(config, overrides, quiet, shuffle_target=False)
    with locked(experiment.folder):
        if study == "blend":
            runs = level1_runs(experiment)
            runs += run_stackers(experiment, runs, out)
            out.say(f"to use it: `tuned: {{blend: {tune_blend(experiment, runs, out, trials=trials)}}}`")
            return
        for stacker in experiment.config.stackers:
            if stacker.enabled:
                path = tune_gbdt(experiment, stacker, out, trials=trials, timeout=timeout)
                out.say(f"to use it: `tuned: {{gbdt: {{{stacker.name}: {path}}}}}`")


@app.command()
def report(config: ConfigOption, overrides: SetOption = None, quiet: QuietOption = False) -> None:
    """Write report.html again, from what `stack` made."""
    from stack.evidence import write_report

    experiment, out = _open(config, overrides, quiet, shuffle_target=False)
    out.say(f"report: {write_report(experiment)}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Option(help="Where experiments lie.")] = Path("runs"),
    quiet: QuietOption = False,
) -> None:
    """List what exists: every experiment with its runs and its headline."""
    from stack.console import Out
    from stack.listing import list_experiments

    out = Out(quiet=quiet)
    listing = list_experiments(folder)
    if listing.empty:
        out.say(f"{folder} holds no experiment yet: `dermstack oof --config configs/demo.yaml` makes one")
    else:
        out.table(listing, str(folder))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="<experiment> (its blend), <experiment>/<run> or <experiment>/old/<run>.")],
    b: Annotated[str, typer.Argument(help="The same for the other side.")],
    folder: Annotated[Path, typer.Option(help="Where experiments lie.")] = Path("runs"),
    objective: Annotated[
        str | None, typer.Option(help="auc, pauc80, ap or logloss; default: the experiment's.")
    ] = None,
) -> None:
    """The paired difference A less B on the rows that both cover, with its 95 % interval by group."""
    from stack.compare import compare
    from stack.console import Out

    difference, rows, scored = compare(folder, a, b, objective=objective)
    verdict = (
        "the interval contains zero: no difference is shown"
        if difference.low <= 0 <= difference.high
        else (f"{a if difference.low > 0 else b} is better by more than noise")
    )
    Out().say(
        f"{scored} of {a} less {b}: {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"on {rows:,} rows; {verdict}"
    )


@app.command()
def clean(
    config: ConfigOption,
    overrides: SetOption = None,
    cache: Annotated[bool, typer.Option(help="Also the decoded images; `oof` decodes them again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Free what can be rebuilt: runs set aside, interrupted writes, with --cache the image caches."""
    from stack.clean import leftovers, remove
    from stack.config import read_config
    from stack.console import Out

    out = Out()
    found = leftovers(read_config(config, tuple(overrides or ())), cache=cache)
    for leftover in found:
        out.say(f"{leftover.size / 2**20:8.1f} MiB  {leftover.path}  ({leftover.what})")
    total = sum(leftover.size for leftover in found) / 2**20
    if not found:
        out.say("nothing to clean")
    elif yes or typer.confirm(f"remove these {len(found)}, {total:.1f} MiB?"):
        remove(found)
        out.say(f"freed {total:.1f} MiB")


@app.command()
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Where to write images/, train.csv, test.csv, sample_submission.csv.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """A generated data set of lesion-like images and patients, for the demo and the tests; no medical meaning."""
    from stack.console import Out
    from stack.demo_data import write_demo_data

    written = write_demo_data(folder, seed=seed)
    Out(quiet=quiet).say(f"{folder}: " + ("generated data set written" if written else "already there, skipped"))


def _open(config: Path, overrides: list[str] | None, quiet: bool, shuffle_target: bool) -> tuple[Experiment, Out]:
    from stack.config import read_config
    from stack.console import Out
    from stack.experiment import open_experiment

    out = Out(quiet=quiet)
    return open_experiment(read_config(config, tuple(overrides or ())), config, out, shuffle_target=shuffle_target), out


def _show_runs(experiment: Experiment, out: Out, runs: list[Run]) -> None:
    from stack.summary import run_table

    if runs:
        objective = experiment.config.objective
        table = run_table(experiment, runs)
        table["95 % interval"] = [
            f"{low:.4f} – {high:.4f}" for low, high in zip(table["low"], table["high"], strict=True)
        ]
        shown = ["run", "kind", "rows", objective, "95 % interval", "ap", "within_folds", "seconds", "note"]
        shown += [column for column in ("equal_size",) if column in table]
        out.table(table[shown], f"{experiment.name}: out-of-fold {objective} of each run, interval by group")


def _show_blend(experiment: Experiment, out: Out, blend: Run) -> None:
    import pandas as pd

    from stack.metrics import Interval

    meta, headline = blend.meta, Interval(**blend.meta["headline"])
    out.say(
        f"{experiment.name}: {meta['objective']} {headline.value:.4f} [{headline.low:.4f}, {headline.high:.4f}] nested "
        f"(mean within folds {meta['within_folds']:.4f}); submitted: {meta['chosen']}; "
        f"tuned in-sample it would claim {meta['tuned_in_sample']:.4f}"
    )
    out.table(pd.DataFrame(meta["methods"]), "Blend methods: nested, and what tuning in-sample would have claimed")
    weights = pd.DataFrame({"run": list(meta["weights"]), "weight": list(meta["weights"].values())})
    out.table(weights, f"Weights of the submitted blend ({meta['chosen']}), refitted on all rows")


def main() -> None:
    """Run the command line: a user's mistake is one message and exit status 2, Ctrl-C says how to go on."""
    try:
        app()
    except (DermstackError, ImageError, TabularError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in IMAGE_EXTRA:
            raise
        typer.echo(f"error: {error.name} is not installed: pip install 'dermstack[image]' to work on images", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer has made it of a KeyboardInterrupt
            typer.echo("interrupted: run the same command again, it goes on from what is complete", err=True)
        raise
