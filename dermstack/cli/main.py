"""The command line: each command opens the experiment, calls one step and shows what came of it."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer

from dermstack.cli.data import commands as data_commands
from dermstack.cli.options import ConfigOption, QuietOption, SetOption, ShuffleOption, open_for_command
from dermstack.cli.serve import commands as serve_commands
from image_models.errors import ImageError
from stack.errors import ConfigError, DermstackError
from tabular.errors import TabularError

EXTRAS = {  # what a user installs for whom
    "[image]' to work on images": {
        "torch", "torchvision", "timm", "albumentations", "cv2", "simplejpeg", "pydicom", "gdcm", "imagecodecs", "h5py",
        "google_crc32c", "kornia", "torchcam",
    },
    "[onnx]' to export networks": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "[image,app]' for the local page": {"starlette", "uvicorn"},
}  # fmt: skip
INTERRUPTED, TERMINATED = 130, 143  # what a shell expects after Ctrl-C and SIGTERM
RESUME_ADVICE = "run the same command again, it goes on from what is complete"
_NO_PERMISSION = "this user has no right to it: give it, or name another folder (in a config `runs` and `cache`)"
DISK_ERRORS = {  # what a disk may answer
    errno.ENOSPC: "the disk is full: free some room",
    errno.EDQUOT: "the disk quota is used up: free some room",
    errno.EFBIG: "the file is larger than the system allows: raise the limit",
    errno.EROFS: "the file system is read-only: name another folder (in a config `runs` and `cache`)",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EIO: "the disk can't read or write it (input/output error): look after the disk",
}


def run_app(app: Callable[[], object]) -> None:
    """Run the command line ``app``: a mistake or a disk in the way is one message and exit status 2, Ctrl-C and SIGTERM
    end every step as it should be ended, and say how to go on."""
    terminated = threading.Event()

    def terminate(number: int, frame: object) -> None:
        terminated.set()
        signal.signal(number, signal.SIG_IGN)  # a second one shall not cut the first one's work short
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        _run(app, terminated)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(app: Callable[[], object], terminated: threading.Event) -> None:
    try:
        app()
    except (DermstackError, ImageError, TabularError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        missing_module = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if missing_module in modules), None)
        if extra is None:
            raise
        typer.echo(f"error: {error.name} is not installed: pip install 'dermstack{extra}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        typer.echo(f"error: {error.filename or 'a file'}: {DISK_ERRORS[error.errno]}; {RESUME_ADVICE}", err=True)
        sys.exit(2)
    except BrokenProcessPool as error:
        if type(error).__name__ != "TerminatedWorkerError":
            raise  # what a worker could not read or send: no user's mistake
        typer.echo(
            "error: a worker process was killed, as the system does when memory runs out: lower `n_jobs` or the batch "
            f"size where that is why; {RESUME_ADVICE}",
            err=True,
        )
        sys.exit(2)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        from image_models.processes import end_workers

        end_workers()  # typer has made it of a KeyboardInterrupt
        typer.echo(f"{'terminated' if terminated.is_set() else 'interrupted'}: {RESUME_ADVICE}", err=True)
        sys.exit(TERMINATED if terminated.is_set() else INTERRUPTED)


# Everything heavier is imported by the command that needs it: `dermstack --help` answers at once, and level 2 runs
# where torch isn't installed.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Tabular + image ensemble stacking with an unbiased estimate of its score.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dermstack {version('dermstack')}")
        raise typer.Exit


@app.callback()
def _options_of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def oof(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    shuffle_target: ShuffleOption = False,
    rebuild: Annotated[
        list[str] | None,
        typer.Option(
            help="Set this image model's run aside and make it again; where only `seeds`, `tta` or `selected` changed, "
            "nets that were trained are taken over. Repeatable."
        ),
    ] = None,
) -> None:
    """Image cache, folds and image models: out-of-fold logits and embeddings, test predictions."""
    from dermstack.cli.options import show_runs
    from stack.experiment import print_overview
    from stack.images import with_images, write_acquisition
    from stack.level1 import check_image_models, run_image_models

    experiment, out = open_for_command(config, overrides, quiet, shuffle_target=shuffle_target, introduced=False)
    sizes = check_image_models(experiment, rebuild=rebuild or [])
    experiment, caches = with_images(experiment, sizes, out)
    print_overview(experiment, out)
    runs = run_image_models(experiment, caches, out, rebuild=rebuild or [])
    if caches:
        write_acquisition(experiment, caches[min(caches)])
    show_runs(experiment, out, runs)
    out.say(f"next: {experiment.command('stack')}")


@app.command()
def stack(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    shuffle_target: ShuffleOption = False,
) -> None:
    """Audit, level-2 matrix, GBDTs, blend, submission.csv and report.html, from what `oof` and `import-oof` made."""
    from dermstack.audit.run import audit_for_stack
    from dermstack.cli.options import show_blend, show_findings, show_runs
    from dermstack.report.evidence import write_report
    from stack.experiment import write_rows
    from stack.history import append_ledger
    from stack.level1 import level1_runs
    from stack.level2 import run_stackers
    from stack.store import locked
    from stack.submission import run_blend

    experiment, out = open_for_command(config, overrides, quiet, shuffle_target=shuffle_target)
    with locked(experiment.folder):
        runs = level1_runs(experiment)
        write_rows(experiment)
        if not experiment.shuffled:
            show_findings(out, audit_for_stack(experiment, runs, out), notes=False)
        runs += run_stackers(experiment, runs, out)
        blend = run_blend(experiment, runs, out)
        report = write_report(experiment, out)
        append_ledger(experiment, blend)
    show_runs(experiment, out, runs)
    show_blend(experiment, out, blend)
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
    all_rows: Annotated[
        Path | None,
        typer.Option(help="CSV or parquet of every fold model on every training row, for `audit`: as the test file."),
    ] = None,
    all_rows_prefix: Annotated[
        str | None, typer.Option(help="That file has a column a fold model instead: this text, then its fold.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Set an earlier import of this name aside.")] = False,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Bring another pipeline's out-of-fold and test predictions in as a level-1 run."""
    from dermstack.cli.options import show_runs
    from stack.import_oof import ImportedColumns, import_oof

    experiment, out = open_for_command(config, overrides, quiet)
    columns = ImportedColumns(id_column or experiment.config.data.columns.id, p_column, fold_column)
    run = import_oof(
        experiment, name, oof, test, out, columns=columns, test_averaged=test_averaged, exclude=exclude,
        foreign_folds=foreign_folds, replace=replace, all_rows=all_rows, all_rows_prefix=all_rows_prefix,
    )  # fmt: skip
    show_runs(experiment, out, [run])


@app.command()
def tune(
    study: Annotated[
        str,
        typer.Argument(help="blend (its weights), gbdt (each stacker's settings) or image (each model's)."),
    ],
    config: ConfigOption,
    trials: Annotated[int, typer.Option(min=1, help="Ended trials that each study shall have.")] = 30,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which no trial is started, shared by the studies.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share a study (blend: that take one each).")] = 1,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Optuna studies that survive and continue; the config uses what they chose under `tuned:`."""
    from stack.level1 import level1_runs
    from stack.level2 import run_stackers
    from stack.store import locked
    from stack.tune.run import tune_blend, tune_gbdt, tune_images

    if study not in {"blend", "gbdt", "image"}:
        raise ConfigError(f"unknown study {study!r}: choose blend, gbdt or image")
    experiment, out = open_for_command(config, overrides, quiet)
    with locked(experiment.folder):
        if study == "image":
            tune_images(experiment, out, trials=trials, timeout=timeout, workers=workers)
            return
        if study == "blend":
            runs = level1_runs(experiment)
            runs += run_stackers(experiment, runs, out)
            path = tune_blend(experiment, runs, out, trials=trials, timeout=timeout, workers=workers)
            out.say(f"to use it: `tuned: {{blend: {path}}}`")
            return
        stackers = [stacker for stacker in experiment.config.stackers if stacker.enabled]
        for stacker in stackers:
            if stacker.kind == "logistic" and len(stackers) > 1:
                out.say(f"{stacker.name}: a logistic regression has nothing to tune, skipped")
            else:
                path = tune_gbdt(experiment, stacker, out, trials=trials, timeout=timeout, workers=workers)
                out.say(f"to use it: `tuned: {{gbdt: {{{stacker.name}: {path}}}}}`")


@app.command()
def report(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    show_ids: Annotated[
        bool,
        typer.Option("--show-ids", help="Ids on the page as they are, not as codes that only you can resolve."),
    ] = False,
    no_images: Annotated[bool, typer.Option("--no-images", help="No picture on the page, to show it around.")] = False,
) -> None:
    """Write report.html again, from what `stack` made."""
    from dermstack.report.evidence import write_report

    experiment, out = open_for_command(config, overrides, quiet)
    out.say(f"report: {write_report(experiment, out, show_ids=show_ids, images=not no_images)}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Option(help="Where experiments lie.")] = Path("runs"),
    quiet: QuietOption = False,
) -> None:
    """List what exists: every experiment with its runs and its headline."""
    from stack.console import Out
    from stack.history import list_experiments

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
    from stack.console import Out
    from stack.history import compare

    made = compare(folder, a, b, objective=objective)
    difference = made.difference
    verdict = (
        "the interval contains zero: no difference is shown"
        if difference.low <= 0 <= difference.high
        else (f"{a if difference.low > 0 else b} is better by more than noise")
    )
    delong = "" if made.p is None else f", p {made.p:.3g} (DeLong, clustered by group)"
    out = Out()
    out.say(
        f"{made.objective} of {a} less {b}: {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        f"{delong} on {made.rows:,} rows; {verdict}"
    )
    for name in dict.fromkeys(made.selected):
        out.warn(
            f"{name}: selected on these rows, by a study or by hand, so its score is better than new rows will show"
        )


app.add_typer(data_commands)
app.add_typer(serve_commands)


def main() -> None:
    """Run the command line."""
    run_app(app)
