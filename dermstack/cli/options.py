"""What every command takes, and how it opens an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# Heavy libraries are imported by the command that needs them: `dermstack --help` answers at once.
if TYPE_CHECKING:
    from stack.console import Out
    from stack.experiment import Experiment

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


def open_it(
    config: Path, overrides: list[str] | None, quiet: bool, *, shuffle_target: bool = False, introduced: bool = True
) -> tuple[Experiment, Out]:
    """The experiment of a config, and where its command speaks; ``introduced``: it says what it starts from."""
    from stack.config import read_config
    from stack.console import Out
    from stack.experiment import introduce, open_experiment

    out = Out(quiet=quiet)
    given = tuple(overrides or ())
    experiment = open_experiment(
        read_config(config, given), config, out, overrides=given, shuffle_target=shuffle_target
    )
    if introduced:
        introduce(experiment, out)
    return experiment, out
