"""The commands init, which drafts a config, and plan, which says what `oof` and `stack` would make and its cost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from dermstack.cli.options import ConfigOption, QuietOption, SetOption, open_for_command

commands = typer.Typer()


@commands.command()
def init(
    start: Annotated[Path, typer.Argument(help="The folder of the data, or the csv or parquet of its training rows.")],
    test: Annotated[Path | None, typer.Option(help="The table of the rows to predict; default: found.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images; default: found.")] = None,
    target: Annotated[str | None, typer.Option(help="The column of the targets; default: found.")] = None,
    out: Annotated[Path, typer.Option(help="The config to write.")] = Path("config.yaml"),
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing config.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a config for your data.

    Looks at tables and images, guesses the meaning of each file and column, and writes a commented config that runs.
    What it cannot decide is a question in its comments.
    """
    from dermstack.errors import ConfigError, DataError
    from stack.console import Out
    from stack.draft.draft import draft_config
    from stack.outputs import check_output, output_file

    for path, option, what in (
        (start, "", "name the folder of the data, or its table"),
        (test, "--test ", "name the table of the rows to predict"),
        (images, "--images ", "name the folder of the images"),
    ):
        if path is not None and not path.exists():  # before --out, which matters only where there is something to read
            raise DataError(f"{option}{path}: no such file or folder: {what}")
    if out.exists() and not replace:
        raise ConfigError(f"--out {out} exists: name another file, or add --replace to overwrite it")
    if out.is_file() and out.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out} exists and is no .yaml file, so it is not replaced: name another file")
    check_output(out, "--out", inputs=[start, test])
    made = draft_config(start, out, test=test, images=images, target=target)
    with output_file(out) as temporary:
        temporary.write_text(made.text, encoding="utf-8")
    said = Out(quiet=quiet)
    for line in made.facts:
        said.say(line)
    for question in made.questions:
        said.warn(f"question: {question}")
    number = len(made.questions)
    asked = f", with {number} {'question' if number == 1 else 'questions'} in its comments" if number else ""
    said.say(f"config: {out}{asked}")
    if made.faults:
        raise DataError(f"{out} is written, but does not run before this is corrected:\n{made.faults}")
    for step in ("oof", "stack") if made.has_images else ("eda", "stack"):
        said.say(f"next: dermstack {step} --config {shlex.quote(str(out))}")


@commands.command()
def plan(
    config: ConfigOption,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    measure: Annotated[
        bool, typer.Option(help="Train each network that is to be made for a few batches, to estimate its time.")
    ] = True,
) -> None:
    """Show what `oof` and `stack` would make, and why.

    Says which steps are complete, to be made or stale, which setting changed from which value, and estimates time, disk
    and memory. Writes nothing.
    """
    from stack.plan.steps import make_plan
    from stack.plan.text import plan_lines

    experiment, out = open_for_command(config, overrides, as_json, introduced=False)
    made = make_plan(experiment, measure=measure)
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=1, ensure_ascii=False))
        return
    for line in plan_lines(made):
        out.say(line)
