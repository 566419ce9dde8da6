"""Names of the files of trained nets; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dermstack.errors import ImageError

BACKBONE = "backbone.safetensors"  # of a frozen run: one file beside its folds' folders
WEIGHTS = "weights.safetensors"  # of one net
HISTORY = "history.csv"  # of one net's training
STATE = "state.pt"  # of an unfinished training
ENCODER = "metadata.json"  # of a fold whose nets take columns of the table


def net_folder(fold: Path, seed: int) -> Path:
    """Returns the folder of one trained net of a fold; ``seed`` is the model's seed plus the experiment's."""
    return fold / f"seed_{seed}"


def weights_beside(place: int, seed: int) -> str:
    """Returns the name of the weights of the net number ``place`` where the nets of a fold lie side by side.

    They do in bundles and in runs made by dermstack 0.1; ``seed`` is the net's own.
    """
    return f"weights_{seed}.safetensors" if place else WEIGHTS


def net_files(fold: Path, seeds: Sequence[int]) -> list[Path]:
    """Returns the weights files of a fold's nets, in the order of the run's ``seeds``.

    These are ``seed_<s>/weights.safetensors``. Bundles, frozen runs and runs made by dermstack 0.1 have
    ``weights.safetensors`` for the first seed and ``weights_<s>.safetensors`` for the others. ``s`` is the run's seed
    plus the experiment's, which the run does not record, but which does not change the order. Raises ImageError where
    the numbers of files and seeds differ.
    """
    folders = sorted(fold.glob(f"seed_*/{WEIGHTS}"), key=lambda path: int(path.parent.name.removeprefix("seed_")))
    if folders:
        first, found, rest = [], folders, list(seeds)
    else:
        further = fold.glob("weights_*.safetensors")
        found = sorted(further, key=lambda path: int(path.stem.removeprefix("weights_")))
        first, rest = [fold / WEIGHTS], list(seeds[1:])
    if len(found) != len(rest):
        raise ImageError(
            f"{fold} has the weights of {len(first) + len(found)} seeds, but its settings name {len(seeds)}: restore "
            "the run's files, or make it again with `dermstack oof --rebuild`"
        )
    by_seed = dict(zip(sorted(rest), found, strict=True))
    return first + [by_seed[seed] for seed in rest]
