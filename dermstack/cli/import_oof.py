"""The command import-oof: one run from files that options name, or all runs of a folder, a pattern or a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermstack.cli.options import ConfigOption, QuietOption, SetOption, open_for_command, show_runs
from dermstack.errors import ConfigError

if TYPE_CHECKING:
    from stack.console import Out
    from stack.experiment import Experiment
    from stack.imported.run import ImportOptions, Source

commands = typer.Typer()


def _of_test(column: str) -> Any:
    return typer.Option(help=f"The {column} column in the test file, where it has another name there.")


def _by_net(file: str) -> Any:
    return typer.Option(help=f"{file} has one column per fold model, named by this text and the fold.")


def _ids_of(arrays: str) -> Any:
    return typer.Option(help=f"File with the ids of {arrays} npy arrays, where none lies beside them.")


@commands.command()
def import_oof(
    config: ConfigOption,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="With --oof: a name for the run. Without: folders, patterns or files, whose names say which belong "
            "together (net_a_oof.csv and net_a_test.csv)."
        ),
    ] = None,
    oof: Annotated[
        str | None,
        typer.Option(
            help="File of out-of-fold probabilities, one row per training image: csv (also .gz, .zip), parquet, or npy "
            "with ids beside it; or a pattern, for one file per fold."
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="File or pattern of test probabilities, one row per image and fold model."),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list", help="Table with a row per run: name, oof, test, and options as columns, such as p_column."
        ),
    ] = None,
    run_columns: Annotated[
        str | None,
        typer.Option(
            help="Pattern of columns, such as 'net_*', each of which is a run, in the files --oof and --test."
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The id column in all files; default: the config's id column.")
    ] = None,
    p_column: Annotated[str, typer.Option(help="The probability column in all files.")] = "p",
    fold_column: Annotated[
        str, typer.Option(help="The column with the fold of the model that made a row, in all files.")
    ] = "fold",
    net_prefix: Annotated[str | None, _by_net("The out-of-fold file")] = None,
    test_id_column: Annotated[str | None, _of_test("id")] = None,
    test_p_column: Annotated[str | None, _of_test("probability")] = None,
    test_fold_column: Annotated[str | None, _of_test("fold")] = None,
    test_net_prefix: Annotated[str | None, _by_net("The test file")] = None,
    test_averaged: Annotated[
        bool, typer.Option(help="The test file has one row per image, averaged over the fold models.")
    ] = False,
    ids: Annotated[Path | None, _ids_of("out-of-fold")] = None,
    test_ids: Annotated[Path | None, _ids_of("test")] = None,
    average_seeds: Annotated[
        bool,
        typer.Option(
            help="Average files, columns or rows of one run that differ only in their seed; default: a run each."
        ),
    ] = False,
    seed_column: Annotated[str, typer.Option(help="The column with the seed, for --average-seeds.")] = "seed",
    exclude: Annotated[
        int,
        typer.Option(min=0, help="Exact number of training rows that the file lacks; they are left out of the stack."),
    ] = 0,
    foreign_folds: Annotated[
        bool, typer.Option(help="Accept folds that differ from the experiment's; every number shows a note.")
    ] = False,
    all_rows: Annotated[
        Path | None,
        typer.Option(
            help="CSV or parquet of every fold model's predictions for every training row, in the form of the test "
            "file; used by `audit`."
        ),
    ] = None,
    all_rows_prefix: Annotated[str | None, _by_net("The --all-rows file")] = None,
    replace: Annotated[
        bool, typer.Option(help="Move an earlier import of this name aside; of many runs, those that changed.")
    ] = False,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Import other pipelines' predictions as level-1 runs.

    Reads out-of-fold and test probabilities, one run by --oof or many from a folder, and checks them. Of many runs,
    faulty ones are named and left out, and those that are unchanged since their import are skipped.
    """
    _check_call(sources or [], oof=oof, listed=listed, run_columns=run_columns, test=test, all_rows=all_rows)
    from stack.imported.files import listed_sources, matching_files, parts_of
    from stack.imported.many import import_many
    from stack.imported.prediction_files import ImportedColumns
    from stack.imported.run import ImportOptions, Source, import_source

    experiment, out = open_for_command(config, overrides, quiet)
    columns = ImportedColumns(
        id_column or experiment.config.data.columns.id, p_column, fold_column, nets=net_prefix, seed=seed_column,
        ids=ids,
    )  # fmt: skip
    test_columns = ImportedColumns(
        test_id_column or columns.id, test_p_column or p_column, test_fold_column or fold_column, option="--test",
        nets=test_net_prefix, seed=seed_column, ids=test_ids,
    )  # fmt: skip
    options = ImportOptions(
        columns, test_columns, test_averaged, exclude=exclude, foreign_folds=foreign_folds,
        all_rows_prefix=all_rows_prefix, average_seeds=average_seeds,
    )  # fmt: skip
    if listed is not None:
        found = listed_sources(listed, options)
    elif oof is None:
        found = _found_by_name(experiment, sources or [], options, out)
    else:
        paths = [matching_files(given, option) for given, option in ((oof, "--oof"), (test, "--test")) if given]
        if run_columns is None:
            parts = [parts_of(files, average_seeds=average_seeds) for files in paths]
            source = Source((sources or [""])[0], parts[0], parts[1] if test else (), options, all_rows)
            show_runs(experiment, out, [import_source(experiment, source, out, replace=replace)])
            out.say(f"next: {_next_command(experiment)}")
            return
        found = _found_by_column(experiment, paths, run_columns, options)
    import_many(experiment, found, out, replace_changed=replace)
    out.say(f"next: {_next_command(experiment)}")


def _next_command(experiment: Experiment) -> str:
    """Returns the command that makes the networks of the config that have no run yet, or else that of the stack."""
    made = {run.name for run in experiment.finished(level=1)}
    lacking = any(model.enabled and model.name not in made for model in experiment.config.image_models)
    return experiment.command("oof" if lacking else "stack")


def _found_by_name(experiment: Experiment, named: list[str], options: ImportOptions, out: Out) -> list[Source]:
    """Returns the runs of the folders, patterns and files ``named``; prints what was left out and why."""
    from stack.imported.files import found_sources

    data, runs, cache = experiment.config.data, experiment.config.runs, experiment.config.cache
    known = [data.train, data.test, data.sample_submission, data.duplicates, runs, cache]
    found, notes = found_sources(named, options, known=known)
    for note in notes:
        out.say(note)
    return found


def _found_by_column(
    experiment: Experiment, paths: Sequence[Sequence[Path]], pattern: str, options: ImportOptions
) -> list[Source]:
    """Returns a run for each column that fits ``pattern``, of the out-of-fold file and, where given, the test file."""
    from stack.imported.files import column_sources

    if any(len(files) > 1 for files in paths):
        raise ConfigError("--run-columns needs one file in --oof and in --test: name it without a pattern")
    roles = [str(name) for name in experiment.config.data.columns.roles.values() if isinstance(name, str)]
    test = paths[1][0] if len(paths) > 1 else None
    return column_sources(paths[0][0], test, pattern, options, without=roles)


def _check_call(
    sources: list[str], *, oof: str | None, listed: Path | None, run_columns: str | None, test: str | None,
    all_rows: Path | None,
) -> None:  # fmt: skip
    """Raises ConfigError for options and arguments that do not go together."""
    if listed is not None:
        if sources or oof or run_columns or test or all_rows:
            raise ConfigError("--list names the runs and their files: leave out other names and files")
    elif run_columns is not None:
        if sources or oof is None or all_rows:
            raise ConfigError("--run-columns names the runs by their columns: give --oof and --test, and no name")
    elif oof is not None:
        if len(sources) != 1:
            raise ConfigError(f"--oof is the file of one run: give one name for it, not {len(sources)}")
    elif not sources:
        raise ConfigError("nothing to import: name a folder or files, or a run with --oof, or a table with --list")
    elif test or all_rows:
        raise ConfigError("--test and --all-rows are files of one run: name its out-of-fold file with --oof")
