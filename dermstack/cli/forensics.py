"""The command forensics: examines files of out-of-fold predictions beside their labels, without a config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermstack.cli.options import QuietOption
from dermstack.errors import ConfigError

if TYPE_CHECKING:
    from stack.imported.run import ImportOptions, Source

commands = typer.Typer()


@commands.command()
def forensics(
    labels: Annotated[Path, typer.Option(help="csv or parquet with ids, targets and, where known, patients.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Further files as in --oof, so that several names may follow --oof."),
    ] = None,
    oof: Annotated[
        list[str] | None,
        typer.Option(
            help="File, folder or pattern of out-of-fold predictions; names of files say run, fold and part as in "
            "import-oof. Repeatable."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="File or pattern of test predictions, named as its out-of-fold file. Repeatable."),
    ] = None,
    blend: Annotated[
        Path | None, typer.Option(help="File of the blend's prediction for each labelled row, as its author made it.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of the blend instead of its file, such as 'net_a=0.6,net_b=0.4'.")
    ] = None,
    weights_of: Annotated[str, typer.Option(help="What the weights multiply: p, logits or ranks.")] = "p",
    claimed: Annotated[str | None, typer.Option(help="The AUC that the blend's author states, as written.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The id column; default: found by names and content.")] = None,
    target: Annotated[str | None, typer.Option(help="The column of the labels' targets; default: found.")] = None,
    group: Annotated[str | None, typer.Option(help="The column of patients or lesions; default: found.")] = None,
    p_column: Annotated[str | None, typer.Option(help="The column of predictions; default: found.")] = None,
    fold_column: Annotated[str | None, typer.Option(help="The column of folds; default: found in each file.")] = None,
    net_prefix: Annotated[
        str | None,
        typer.Option(
            help="The file has one column per fold model, named by this text and the fold; where none is empty, it is "
            "tested which rows each model held out."
        ),
    ] = None,
    all_rows_prefix: Annotated[
        str | None, typer.Option(help="The same for a file named NAME_all_rows beside NAME_oof.")
    ] = None,
    run_columns: Annotated[
        str | None, typer.Option(help="Pattern of columns, such as 'net_*', each of which is a run, in one --oof file.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("forensics.html"),
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this file.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Examine out-of-fold files without a config.

    Checks ids, folds, scales of fold models, labels in predictions, ranks, rounding, copies and test files, tests which
    rows models held out, and compares a blend and its claimed AUC with a nested estimate. Writes one page.
    """
    from dermstack.audit.forensics import ClaimedBlend, run_forensics
    from dermstack.cli.options import show_findings
    from dermstack.report.forensics import forensics_html, forensics_json, named_findings
    from stack.console import Out
    from stack.forensics.files import NamedColumns
    from stack.imported.prediction_files import Part
    from stack.imported.run import Source
    from stack.outputs import check_output, output_file

    _check_call(blend, weights, claimed, out, as_json)
    for path, option in ((out, "--out"), (as_json, "--json")):
        if path is not None:
            check_output(
                path, option, inputs=[labels, blend, *map(Path, [*(oof or []), *(sources or []), *(test or [])])]
            )
    options = _options(all_rows_prefix, net_prefix)
    given = [*(oof or []), *(sources or [])]
    found, notes = _sources(given, test or [], options, labels=labels, blend=blend, run_columns=run_columns)
    said = Out(quiet=quiet)
    for note in notes:
        said.say(note)
    made = run_forensics(
        labels, found, said, named=NamedColumns(id_column, p_column, fold_column, net_prefix), target=target,
        group=group, blend=ClaimedBlend(
            None if blend is None else Source("blend", (Part(blend),), (), options), weights, weights_of, claimed
        ),
    )  # fmt: skip
    show_findings(said, named_findings(made), title="forensics")
    with output_file(out) as temporary:
        temporary.write_text(forensics_html(made), encoding="utf-8")
    said.say(f"page: {out}")
    if as_json is not None:
        with output_file(as_json) as temporary:
            temporary.write_text(forensics_json(made), encoding="utf-8")
        said.say(f"numbers: {as_json}")


def _check_call(
    blend: Path | None, weights: str | None, claimed: str | None, out: Path, as_json: Path | None
) -> None:  # fmt: skip
    """Raises ConfigError for options that do not go together."""
    if blend is not None and weights is not None:
        raise ConfigError("--blend and --weights both say what the blend is: give one of them")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: name a file that ends with .html; --json writes the numbers")
    if as_json is not None and as_json.absolute() == out.absolute():
        raise ConfigError(f"--json {as_json} is also --out: name another file")
    if claimed is not None:
        try:
            value = float(claimed)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ConfigError(f"--claimed {claimed}: give the AUC as a number from 0 to 1, such as 0.95")


def _options(all_rows_prefix: str | None, net_prefix: str | None) -> ImportOptions:
    from stack.imported.prediction_files import ImportedColumns
    from stack.imported.run import ImportOptions

    columns = ImportedColumns("id", "p", "fold", nets=net_prefix)
    return ImportOptions(columns, columns, all_rows_prefix=all_rows_prefix)


def _sources(
    given: list[str],
    test: list[str],
    options: ImportOptions,
    *,
    labels: Path,
    blend: Path | None,
    run_columns: str | None,
) -> tuple[list[Source], list[str]]:
    """Returns the runs of the files, and notes on files that are left out."""
    from stack.imported.files import column_sources, found_sources, matching_files

    if not given:
        raise ConfigError("no file to examine: name out-of-fold files with --oof")
    if run_columns is None:
        return found_sources(given, options, known=[labels, blend], test=test)
    paths = [
        matching_files(one, option) for one, option in ((given[0], "--oof"), *((one, "--test") for one in test[:1]))
    ]
    if len(given) > 1 or len(test) > 1 or any(len(files) > 1 for files in paths):
        raise ConfigError("--run-columns needs one file in --oof and at most one in --test, without a pattern")
    return column_sources(paths[0][0], paths[1][0] if test else None, run_columns, options, without=()), []
