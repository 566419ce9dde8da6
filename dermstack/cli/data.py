"""The commands about data: look at it, bring it in, generate it, free what can be rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermstack.cli.options import ConfigOption, QuietOption, SetOption, open_for_command

commands = typer.Typer()
SHOWN_PAIRS = 5  # of each kind; the csv holds them all


@commands.command()
def audit(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    pictures: Annotated[
        bool, typer.Option(help="Look at every picture too: near-duplicates, odd colours, sizes.")
    ] = True,
    shuffles: Annotated[
        int,
        typer.Option(min=0, help="Refit a frozen model and level 2 on so many shuffles of the targets, say 20."),
    ] = 0,
) -> None:
    """Leaks, shortcuts, drift and doubtful labels of rows, pictures and level-1 runs, each with evidence and remedy."""
    from dermstack.audit.pictures import PAIR_KINDS
    from dermstack.audit.run import run_audit
    from dermstack.cli.options import show_findings

    experiment, out = open_for_command(config, overrides, quiet, introduced=False)
    review = run_audit(experiment, out, pictures=pictures, shuffles=shuffles)
    for kind in PAIR_KINDS:
        some = review.pairs[review.pairs["kind"] == kind].sort_values("distance")
        if len(some):
            out.table(some.head(SHOWN_PAIRS).drop(columns="kind"), f"{len(some)} pairs: {kind}")
    show_findings(out, review.findings)
    out.say(f"all findings: {review.experiment.folder / 'audit.csv'}")


@commands.command()
def eda(
    config: ConfigOption,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    sheet: Annotated[int, typer.Option(min=0, help="Pictures of each class on the contact sheet.")] = 24,
    no_images: Annotated[bool, typer.Option("--no-images", help="No picture on the page, to show it around.")] = False,
) -> None:
    """One page with what one wants to see first: targets, ages, sites, missing values, sizes, duplicates, drift."""
    from dermstack.report.eda import run_eda

    experiment, out = open_for_command(config, overrides, quiet, introduced=False)
    out.say(f"page: {run_eda(experiment, out, sheet=0 if no_images else sheet)}")


@commands.command()
def import_dicom(
    folder: Annotated[Path, typer.Argument(help="Where the .dcm files are, also in subfolders.")],
    csv: Annotated[Path, typer.Argument(help="The csv to write.")],
    replace: Annotated[bool, typer.Option("--replace", help="Write over a csv that is there.")] = False,
    n_jobs: Annotated[int, typer.Option(min=1, help="Processes that read.")] = 1,
    quiet: QuietOption = False,
) -> None:
    """Write the metadata csv that a folder of DICOM files implies: patient, sex, age, site; no other patient field."""
    from stack.console import Out
    from stack.import_metadata import read_dicom_metadata, write_metadata

    out = Out(quiet=quiet)
    with out.bar("DICOM headers", sum(1 for _ in folder.rglob("*.dcm")), "files") as progress:
        frame = read_dicom_metadata(folder, n_jobs=n_jobs, progress=progress)
    out.say(f"{write_metadata(frame, csv, replace=replace)}: {len(frame):,} rows of {', '.join(frame.columns)}")


@commands.command()
def import_tfrecord(
    place: Annotated[Path, typer.Argument(help="A .tfrec file, or a folder of them.")],
    csv: Annotated[Path, typer.Argument(help="The csv to write.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Whose data.tfrecord names features and codes.")
    ] = None,
    overrides: SetOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a csv that is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write the metadata csv that TFRecord shards imply; other names and integer codes come from a config."""
    from stack.config import TFRecords, read_config
    from stack.console import Out
    from stack.import_metadata import read_tfrecord_metadata, write_metadata

    out = Out(quiet=quiet)
    names = read_config(config, tuple(overrides or ())).data.tfrecord if config else TFRecords()
    frame, unused = read_tfrecord_metadata(place, features=names.features, codes=names.codes)
    out.say(f"{write_metadata(frame, csv, replace=replace)}: {len(frame):,} rows of {', '.join(frame.columns)}")
    if unused:
        out.warn(f"no column took the features {', '.join(unused)}: name them under data.tfrecord.features of a config")


@commands.command()
def clean(
    config: ConfigOption,
    overrides: SetOption = None,
    cache: Annotated[bool, typer.Option(help="Also the decoded images; `oof` decodes them again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Free what can be rebuilt: runs set aside, interrupted writes, with --cache the image caches."""
    from stack.config import read_config
    from stack.console import Out
    from stack.history import leftovers, remove_leftovers

    out = Out()
    found = leftovers(read_config(config, tuple(overrides or ())), cache=cache)
    for leftover in found:
        out.say(f"{leftover.size / 2**20:8.1f} MiB  {leftover.path}  ({leftover.what})")
    total = sum(leftover.size for leftover in found) / 2**20
    if not found:
        out.say("nothing to clean")
    elif yes or typer.confirm(f"remove these {len(found)}, {total:.1f} MiB?"):
        remove_leftovers(found)
        out.say(f"freed {total:.1f} MiB")


@commands.command()
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Where to write images/, train.csv, test.csv, sample_submission.csv.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """A generated data set of lesion-like images and patients, for the demo and the tests; no medical meaning."""
    from dermstack.cli.demo_data import write_demo_data
    from stack.console import Out

    written = write_demo_data(folder, seed=seed)
    Out(quiet=quiet).say(f"{folder}: " + ("generated data set written" if written else "already there, skipped"))
