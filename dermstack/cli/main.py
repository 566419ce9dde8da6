"""The entry point and the main commands: each opens an experiment, runs one step and prints the result."""

from __future__ import annotations

import errno
import io
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Annotated

import typer

from dermstack.cli.compare import commands as compare_commands
from dermstack.cli.data import commands as data_commands
from dermstack.cli.forensics import commands as forensics_commands
from dermstack.cli.import_oof import commands as import_commands
from dermstack.cli.options import (
    BySourceOption,
    ConfigOption,
    QuietOption,
    SetOption,
    ShuffleOption,
    open_for_command,
    with_by_source,
)
from dermstack.cli.serve import commands as serve_commands
from dermstack.cli.start import commands as start_commands
from dermstack.errors import ConfigError, DermstackError
from dermstack.masking import masked_streams, print_masked_traceback

EXTRAS = {  # the extra that installs these modules, as the end of a pip command
    "[image]' to work on images": {
        "torch", "torchvision", "timm", "albumentations", "cv2", "simplejpeg", "pydicom", "gdcm", "imagecodecs", "h5py",
        "google_crc32c", "kornia", "torchcam",
    },
    "[onnx]' to export networks": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "[tracking]' to log to experiment trackers": {"mlflow", "tensorboard", "wandb"},
    "[image,app]' for the local page": {"starlette", "uvicorn"},
}  # fmt: skip
INTERRUPTED, TERMINATED = 130, 143  # exit statuses that a shell expects after Ctrl-C and SIGTERM
RESUME_ADVICE = "run the same command again, it resumes from what is complete"
_WITHOUT_STUDY = {  # kinds of stackers that `tune gbdt` skips, in words
    "logistic": "logistic regression", "set_transformer": "set transformer", "sklearn": "classifier of scikit-learn",
}  # fmt: skip
_NO_PERMISSION = "permission denied: give this user the right, or name another folder (in a config `runs` and `cache`)"
DISK_ERRORS = {  # by errno: what is wrong and the next step
    errno.ENOSPC: "the disk is full: free some room",
    errno.EDQUOT: "the disk quota is used up: free some room",
    errno.EFBIG: "the file is larger than the system allows: raise the limit",
    errno.EROFS: "the file system is read-only: name another folder (in a config `runs` and `cache`)",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.ENAMETOOLONG: "the name is too long for this file system: choose a shorter one",
    errno.ENOTDIR: "a file stands where a folder should be: name another path",
    errno.EISDIR: "a folder stands where a file should be: name another path",
    errno.EEXIST: "a file or broken link stands where a folder should be: name another path",
    errno.ELOOP: "its links lead in a circle: name another path",
    errno.EPIPE: "nobody reads from it any more: start the reader first",
    errno.ENXIO: "nothing can be written to it: name a file",
    errno.EIO: "the disk cannot read or write it (input/output error): check the disk",
}


def run_app(app: Callable[[], object]) -> None:
    """Runs the command line ``app``; user errors and disk errors print one message and exit with status 2.

    Ctrl-C and SIGTERM end all worker processes, print how to resume and exit with status 130 or 143. Passwords are
    masked in everything that is printed.
    """
    if sys.flags.optimize > 1:  # LightGBM's and torch's imports read docstrings (LightGBM issue 7362)
        sys.stderr.write("error: python -OO removes docstrings that libraries need: unset PYTHONOPTIMIZE, or use -O\n")
        sys.exit(2)
    terminated = threading.Event()

    def terminate(number: int, frame: object) -> None:
        terminated.set()
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        raise KeyboardInterrupt

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with masked_streams():
            _run(app, terminated)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(app: Callable[[], object], terminated: threading.Event) -> None:
    try:
        app()
    except DermstackError as error:
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
        typer.echo(
            f"error: {error.filename or 'the standard output'}: {DISK_ERRORS[error.errno]}; {RESUME_ADVICE}", err=True
        )
        sys.exit(2)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        # Python keeps such bytes of a file's name as lone surrogates; pyarrow takes only names that are UTF-8.
        typer.echo(
            f"error: {error.object!a}: the name holds bytes that are not UTF-8: rename the file or folder, or set a "
            "UTF-8 locale (LC_ALL=C.UTF-8) if it is written in another encoding",
            err=True,
        )
        sys.exit(2)
    except BrokenExecutor as error:
        if type(error).__name__ != "TerminatedWorkerError":
            raise  # a worker could not receive or send an object: not a user's error
        from image_models.processes import explain_death

        said = explain_death(
            str(error),
            memory_advice="lower `n_jobs` or the batch size",
            crash_advice="update the libraries (`pip install --upgrade`), or set `n_jobs: 1` to see where it happens",
        )
        typer.echo(f"error: {said}; {RESUME_ADVICE}", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        _end_workers()  # typer turned a KeyboardInterrupt into this exit
        typer.echo(f"{'terminated' if terminated.is_set() else 'interrupted'}: {RESUME_ADVICE}", err=True)
        sys.exit(TERMINATED if terminated.is_set() else INTERRUPTED)


# Each command imports the heavy modules that it needs: `dermstack --help` is fast, and level 2 runs without torch.

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
    by_source: BySourceOption = False,
    rebuild: Annotated[
        list[str] | None,
        typer.Option(
            help="Move this image model's run aside and train it again; if only `seeds`, `tta` or `selected` changed, "
            "trained networks are reused. Of a run by source (estimate.train_by_source), leave_source_out/NAME. "
            "Repeatable."
        ),
    ] = None,
) -> None:
    """Train the image models fold by fold.

    Decodes the images, decides the folds, and writes out-of-fold logits and embeddings and test predictions.
    """
    from dermstack.cli.options import show_runs
    from dermstack.pipeline import run_oof
    from stack.console import Out
    from stack.level1.image_runs import advice_without_models

    out, given = Out(quiet=quiet), with_by_source(config, overrides, by_source)
    made = run_oof(config, overrides=given, rebuild=rebuild or (), shuffle_target=shuffle_target, out=out)
    experiment, runs = made.experiment, list(made.runs.values())
    show_runs(experiment, out, runs)
    if runs or experiment.finished(level=1):
        out.say(f"next: {experiment.command('stack')}")
    else:
        out.warn(f"nothing was trained, and `stack` needs a run: {advice_without_models(experiment)}")


@app.command()
def stack(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    shuffle_target: ShuffleOption = False,
    by_source: BySourceOption = False,
    no_report: Annotated[
        bool,
        typer.Option(
            "--no-report",
            help="Do not write the report, nor measure what only it shows, such as the gain from shortcuts; "
            "`report` does both.",
        ),
    ] = False,
) -> None:
    """Fit level 2 and the blend, write submission and report.

    Audits the runs that `oof` and `import-oof` made, fits the GBDTs and the blend on them, and writes submission.csv
    and report.html. Where nothing has changed since the last time, it prints the headline and where the files are.
    """
    from dermstack.cli.options import (
        show_blend,
        show_files,
        show_findings,
        show_headline,
        show_plausibility,
        show_probes,
        show_runs,
        show_sources,
        show_stacker,
    )
    from stack.console import Out
    from stack.settings.config import read_config
    from stack.up_to_date import nothing_to_do

    out, given = Out(quiet=quiet), with_by_source(config, overrides, by_source)
    settings = read_config(config, given)
    if done := nothing_to_do(settings, config, shuffle_target=shuffle_target, report=not no_report):
        out.say(f"{done.name}: complete, and nothing that it depends on has changed")
        show_headline(out, done.name, done.blend)
        show_files(out, done.folder, done.report)
        return
    from dermstack.workers import early_workers

    own_metric = ":" in settings.objective  # which is imported again, and workers that may have an older one are ended
    with early_workers(1 if own_metric else settings.n_jobs):
        from dermstack.pipeline import StackSteps, run_stack

        steps = StackSteps(
            level1=lambda experiment, runs: show_runs(experiment, out, runs),
            findings=lambda findings: show_findings(out, findings, notes=False),
            stacker=lambda experiment, run: show_stacker(experiment, out, run),
            stackers=lambda experiment, runs: show_plausibility(experiment, out, runs),
            blend=lambda experiment, blend: show_blend(experiment, out, blend),
            sources=lambda found: show_sources(out, found),
            probes=lambda run, probes: show_probes(out, run, probes),
        )
        made = run_stack(
            config, overrides=given, shuffle_target=shuffle_target, report=not no_report, out=out, steps=steps
        )
        show_files(out, made.experiment.folder, made.report)


@app.command()
def tune(
    study: Annotated[
        str,
        typer.Argument(
            help="blend (the weights), gbdt (the settings of each stacker) or image (the settings of each image model)."
        ),
    ],
    config: ConfigOption,
    trials: Annotated[
        int, typer.Option(min=1, help="Number of ended trials that each study reaches; pruned ones count.")
    ] = 30,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds, for all studies together, after which no trial is started.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of processes that share a study (blend: one process per study).")
    ] = 1,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Tune weights or settings with Optuna studies.

    An interrupted study continues when the command is run again. To use a result, name its file in the config under
    `tuned:`.
    """
    from stack.images import caches_in_use
    from stack.level1.image_runs import level1_locked, level1_runs
    from stack.level2.stackers import run_stackers
    from stack.store import locked
    from stack.tune.run import tune_blend, tune_gbdt, tune_images
    from stack.tuned import config_line

    if study not in {"blend", "gbdt", "image"}:
        raise ConfigError(f"unknown study {study!r}: choose blend, gbdt or image")
    experiment, out = open_for_command(config, overrides, quiet)
    with locked(experiment.folder):
        if study == "image":
            with caches_in_use(experiment.config):
                paths = tune_images(experiment, out, trials=trials, timeout=timeout, workers=workers)
            out.say("the AUC of a tuned image model is selected on these rows, and optimistic")
            next_step = experiment.command("oof", *(word for name in paths for word in ("--rebuild", name)))
        elif study == "blend":
            with level1_locked(experiment):
                runs = level1_runs(experiment)
                runs += run_stackers(experiment, runs, out)
                path = tune_blend(experiment, runs, out, trials=trials, timeout=timeout, workers=workers)
            paths, next_step = {"blend": path}, experiment.command("stack")
        else:
            paths, next_step = {}, experiment.command("stack")
            stackers = [stacker for stacker in experiment.config.stackers if stacker.enabled]
            for stacker in stackers:
                if not stacker.is_gbdt and len(stackers) > 1:
                    what = _WITHOUT_STUDY[stacker.kind]
                    out.say(f"{stacker.name}: a {what} has nothing to tune, skipped")
                else:
                    paths[stacker.name] = tune_gbdt(
                        experiment, stacker, out, trials=trials, timeout=timeout, workers=workers
                    )
        if paths:
            out.say(config_line(experiment, study, paths))
            out.say(f"next: {next_step}")


@app.command()
def report(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    show_ids: Annotated[
        bool,
        typer.Option("--show-ids", help="Show the ids on the page, instead of codes that only you can resolve."),
    ] = False,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the images out, so that the page can be shared.")
    ] = False,
    checklist: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer this reporting checklist from the run: tripod-ai, claim or probast-ai. Repeatable. Without "
            "--pack it is written beside the report."
        ),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a paper, written as a whole: the report, the checklists (all, unless --checklist names "
            "some), a methods text, each figure as SVG and PDF, each table as csv."
        ),
    ] = None,
) -> None:
    """Write report.html again from the results of `stack`, and checklists or a folder for a paper."""
    from dermstack.report.evidence import written_report
    from dermstack.report.pack.checklist import checklists_named
    from dermstack.report.pack.write_pack import check_pack_folder, write_checklists, write_pack
    from stack.images import caches_in_use
    from stack.store import locked

    checklists = checklists_named(checklist or ())
    if pack is not None:
        check_pack_folder(pack)
    experiment, out = open_for_command(config, overrides, quiet)
    with locked(experiment.folder), caches_in_use(experiment.config):
        made = written_report(experiment, out, show_ids=show_ids, images=not no_images)
        out.say(f"report: {made.path}")
        if pack is not None:
            out.say(f"pack: {write_pack(made, pack, checklists, out)}")
        else:
            for page in write_checklists(made, checklists):
                out.say(f"checklist: {page}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Option(help="The folder with the experiments.")] = Path("runs"),
    quiet: QuietOption = False,
) -> None:
    """List all experiments with their runs and headline scores."""
    from stack.console import Out
    from stack.history import experiments_elsewhere, list_experiments

    out = Out(quiet=quiet)
    listing = list_experiments(folder)
    if listing.empty:
        out.say(
            f"{folder} holds no experiment yet: `dermstack oof` with a config creates one in the folder that the "
            f"config's `runs` names, and --folder names another folder here{experiments_elsewhere(folder)}; `dermstack "
            "demo-data demo` writes a small data set and the config demo/demo.yaml"
        )
    else:
        out.table(listing.rename(columns={"auc": "AUC"}), str(folder))


app.add_typer(compare_commands)
app.add_typer(start_commands)
app.add_typer(import_commands)
app.add_typer(forensics_commands)
app.add_typer(data_commands)
app.add_typer(serve_commands)


def main() -> None:
    """Runs the command line."""
    sys.excepthook = print_masked_traceback
    try:
        run_app(app)
    finally:
        # Only idle workers are left to end; Ctrl-C would show a library's traceback after a finished command.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_workers()


def _end_workers() -> None:
    if "joblib" in sys.modules:  # else there is none, and its import would take longer than most commands
        from image_models.processes import end_workers

        end_workers()
