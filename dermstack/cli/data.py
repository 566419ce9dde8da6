"""The commands on data: audit, eda, sources, import-dicom, import-tfrecord, clean and demo-data."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from dermstack.cli.options import ConfigOption, QuietOption, SetOption, open_for_command
from dermstack.listing import counted

commands = typer.Typer()
SHOWN_PAIRS = 5  # of each kind; audit_pairs.csv holds all


@commands.command()
def audit(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    pictures: Annotated[
        bool, typer.Option(help="Also check the images: near-duplicates, unusual colours, sizes.")
    ] = True,
    shuffles: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of refits of a frozen image model and level 2 on shuffled targets, whose mean AUC must be "
            "about 0.5; use at least 20.",
        ),
    ] = 0,
) -> None:
    """Check rows, images and level-1 runs for problems.

    Finds leaks, shortcuts, drift and doubtful labels, and prints evidence and a remedy for each.
    """
    from dermstack.audit.pictures import PAIR_KINDS
    from dermstack.audit.run import run_audit
    from dermstack.cli.options import show_findings
    from dermstack.report.look_alikes import write_pairs_page
    from dermstack.report.tables import terminal_table
    from stack.images import caches_in_use
    from stack.store import locked

    experiment, out = open_for_command(config, overrides, quiet, introduced=False)
    with locked(experiment.folder), caches_in_use(experiment.config):
        review = run_audit(experiment, out, pictures=pictures, shuffles=shuffles)
    for kind in PAIR_KINDS:
        some = review.pairs[review.pairs["kind"] == kind].sort_values("distance").drop(columns="kind")
        if len(some):
            shown = some.head(SHOWN_PAIRS)
            targets = shown[["target_1", "target_2"]].map("{:.0f}".format, na_action="ignore")  # of test rows: unknown
            nearest = f", the {SHOWN_PAIRS} most alike" if len(some) > SHOWN_PAIRS else ""
            title = f"pairs of images that look alike, {kind}: {len(some):,}{nearest}"
            out.table(terminal_table(shown.assign(**targets)), title)
    show_findings(out, review.findings)
    if (
        pictures
        and experiment.config.data.images is not None
        and (page := write_pairs_page(review.experiment, review.pairs))
    ):
        out.say(f"pairs as images: {page}")
    out.say(f"all findings: {review.experiment.folder / 'audit.csv'}")


@commands.command()
def eda(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    sheet: Annotated[int, typer.Option(min=0, help="Number of images of each class on the contact sheet.")] = 24,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the images out, so that the page can be shared.")
    ] = False,
) -> None:
    """Write a page for exploring the data, eda.html.

    Shows targets, ages, sites, missing values, image sizes, duplicates and drift from train to test.
    """
    from dermstack.report.eda import run_eda
    from stack.images import caches_in_use

    experiment, out = open_for_command(config, overrides, quiet, introduced=False)
    with caches_in_use(experiment.config):
        out.say(f"page: {run_eda(experiment, out, sheet=0 if no_images else sheet)}")


@commands.command()
def sources(
    config: ConfigOption,
    out_file: Annotated[Path, typer.Option("--out", help="The csv to write; name it in data.sources.")] = Path(
        "sources.csv"
    ),
    overrides: SetOption = None,
    quiet: QuietOption = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="A further column of the training csv that tells how an image was taken. Repeatable."),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            min=2, help="Number of parts into which colours divide each format; default: chosen by the silhouette."
        ),
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Read the images: sizes, encodings and colours.")] = True,
) -> None:
    """Group the training rows by how their images were taken, where no hospital or camera is known.

    Uses sizes, encodings and colours, and no targets. Writes a csv of id and source; if data.sources names it,
    `stack` estimates the score with these sources held out. Look at the groups before you trust them.
    """
    from stack.images import caches_in_use
    from stack.outputs import check_output, output_file
    from stack.sources.acquisition import find_sources

    experiment, out = open_for_command(config, overrides, quiet, introduced=False)
    data = experiment.config.data
    further = [*(one.table for one in data.external), *(one.table for one in data.unlabelled)]
    own = [data.sample_submission, data.duplicates, experiment.config.folds.file]
    check_output(out_file, "--out", inputs=[config, data.train, data.test, data.images, *further, *own])
    with caches_in_use(experiment.config):
        found = find_sources(experiment, out, columns=columns or (), clusters=clusters, pictures=pictures)
    with output_file(out_file) as temporary:
        found.rows.rename(columns={"id": data.columns.id}).to_csv(temporary, index=False)
    out.table(found.summary, "Groups of rows by how their images were taken")
    for remark in found.remarks:
        out.say(remark)
    named = os.path.relpath(out_file.resolve(), config.resolve().parent)  # as a path in the config is read
    out.say(f"next: write `sources: {named}` below `data:` in {config}, then `{experiment.command('stack')}`")


@commands.command()
def import_dicom(
    folder: Annotated[Path, typer.Argument(help="The folder with the .dcm files; subfolders are included.")],
    csv: Annotated[Path, typer.Argument(help="The csv to write.")],
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing csv.")] = False,
    n_jobs: Annotated[int, typer.Option(min=1, help="Number of processes that read files.")] = 1,
    quiet: QuietOption = False,
) -> None:
    """Write a metadata csv from the headers of DICOM files.

    Takes image name, patient, sex, age and site, and no other field about the patient.
    """
    from stack.console import Out
    from stack.tables.metadata import check_metadata_csv, dicom_files, read_dicom_metadata, write_metadata

    out = Out(quiet=quiet)
    check_metadata_csv(csv, replace=replace)
    with out.bar("DICOM headers", len(dicom_files(folder)), "files") as progress:
        frame = read_dicom_metadata(folder, n_jobs=n_jobs, progress=progress)
    out.say(
        f"{write_metadata(frame, csv, replace=replace)}: {counted(len(frame), 'rows')} of {', '.join(frame.columns)}"
    )
    out.say(f"next: add a column with the target of each image, then {_init_command(csv, folder)}")


@commands.command()
def import_tfrecord(
    place: Annotated[Path, typer.Argument(help="A .tfrec file or a folder of .tfrec files.")],
    csv: Annotated[Path, typer.Argument(help="The csv to write.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A config whose data.tfrecord gives feature names and integer codes."),
    ] = None,
    overrides: SetOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing csv.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a metadata csv from TFRecord files.

    Feature names other than Kaggle's, and the meaning of integer codes, come from a config.
    """
    from stack.console import Out
    from stack.settings.config import read_config
    from stack.settings.data import TFRecords
    from stack.tables.metadata import check_metadata_csv, read_tfrecord_metadata, write_metadata

    out = Out(quiet=quiet)
    check_metadata_csv(csv, replace=replace)
    names = read_config(config, tuple(overrides or ())).data.tfrecord if config else TFRecords()
    frame, unused = read_tfrecord_metadata(place, features=names.features, codes=names.codes)
    out.say(
        f"{write_metadata(frame, csv, replace=replace)}: {counted(len(frame), 'rows')} of {', '.join(frame.columns)}"
    )
    if unused:
        out.warn(f"features without a column: {', '.join(unused)}: name them in data.tfrecord.features of a config")
    add = "" if "target" in frame else "add a column with the target of each image, then "
    out.say(f"next: {add}{_init_command(csv, place)}")


def _init_command(csv: Path, images: Path) -> str:
    """Returns the command that drafts a config for the rows of a csv and their images."""
    return f"dermstack init {shlex.quote(str(csv))} --images {shlex.quote(str(images))}"


@commands.command()
def clean(
    config: ConfigOption,
    overrides: SetOption = None,
    cache: Annotated[bool, typer.Option(help="Also remove the decoded images; `oof` decodes them again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking for confirmation.")] = False,
) -> None:
    """Remove files that are no longer used or can be rebuilt.

    These are runs that were set aside, files of interrupted writes and, with --cache, the image caches. Lists them
    first and asks for confirmation.
    """
    from stack.console import Out
    from stack.history import leftovers, nobody_works, remove_leftovers
    from stack.settings.config import read_config

    out, settings = Out(), read_config(config, tuple(overrides or ()))
    found = leftovers(settings, cache=cache)
    for leftover in found:
        out.say(f"{leftover.size / 2**20:8.1f} MiB  {leftover.path}  ({leftover.what})")
    total = sum(leftover.size for leftover in found) / 2**20
    if not found:
        out.say("nothing to clean")
    elif yes or typer.confirm(f"remove these {len(found)} ({total:.1f} MiB)?"):
        listed = {leftover.path for leftover in found}
        with nobody_works(settings, cache=cache):
            remove_leftovers([leftover for leftover in leftovers(settings, cache=cache) if leftover.path in listed])
        out.say(f"freed {total:.1f} MiB")


@commands.command()
def demo_data(
    folder: Annotated[
        Path, typer.Argument(help="The folder for images/, train.csv, test.csv, sample_submission.csv and demo.yaml.")
    ],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Generate a data set of lesion-like images and patients, with a config for it.

    For the demo and the tests; the data have no medical meaning.
    """
    from dermstack.cli.demo_data import CONFIG_NAME, write_demo_data
    from stack.console import Out

    written = write_demo_data(folder, seed=seed)
    out = Out(quiet=quiet)
    out.say(f"{folder}: " + ("generated data set written" if written else "exists already, skipped"))
    out.say(f"next: dermstack oof --config {shlex.quote(str(folder / CONFIG_NAME))}")
