"""The commands about data: look at it, bring it in, generate it, free what can be rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stack.cli_options import ConfigOption, QuietOption, SetOption

commands = typer.Typer()


@commands.command()
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


@commands.command()
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
