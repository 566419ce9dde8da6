"""Which new images lie far from those that the ensemble was made for, by the embedding of one of its runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermstack.serve.bundle import Bundle, ImageRun
from image_models.predict import Predictions
from stack.errors import BundleError, DermstackError
from stack.experiment import Experiment
from stack.history import auc_of
from stack.store import Run, write_json
from tabular.density import Density, fit_density
from tabular.errors import TabularError

FAR = 0.99  # of training images no more than about one in a hundred lies further out
FOLDER = "novelty"


@dataclass(frozen=True)
class Novelty:
    """A density for each fold net of one run, or one for a frozen backbone."""

    run: str
    densities: tuple[Density, ...]

    def watcher(self) -> Watcher:
        """Something to show the nets' predictions to."""
        return Watcher(self)


@dataclass
class Watcher:
    """Looks at raw predictions as they are made, so that embeddings needn't be kept."""

    model: Novelty
    shares: list[NDArray[np.float64]] = field(default_factory=list)

    def see(self, run: ImageRun, fold: int, made: Predictions) -> None:
        """One net's predictions of all rows."""
        if run.name == self.model.run:
            self.shares.append(self.model.densities[fold].share_nearer(made.z))

    def novelty(self) -> NDArray[np.float64]:
        """(n,) in 0..1: the share of training images nearer to the rest than this one, averaged over the nets."""
        mean: NDArray[np.float64] = np.mean(self.shares, axis=0)
        return mean

    def far(self) -> NDArray[np.bool_]:
        """(n,): those that a prediction should not be believed of without a look."""
        return self.novelty() > FAR


def fit_novelty(experiment: Experiment, runs: list[Run]) -> Novelty | None:
    """Of the best trained run (else the best frozen one), each net on the rows that it didn't train on.

    None where a net has too few rows to say what is usual.
    """
    run = max(runs, key=lambda run: (run.meta["kind"] == "image", auc_of(experiment, run)))
    oof, z = run.frame("oof"), run.array("oof_z")
    groups = experiment.split_group[experiment.rows_of(oof["id"])]
    nets = oof["fold"].to_numpy() if run.meta["kind"] == "image" else np.zeros(len(oof), np.int8)
    try:
        densities = [fit_density(z[nets == net], groups[nets == net]) for net in np.unique(nets)]
    except TabularError:
        return None
    return Novelty(run.name, tuple(densities))


def write_novelty(novelty: Novelty, bundle: Path) -> None:
    """Into the folder of a bundle in the making."""
    for fold, density in enumerate(novelty.densities):
        folder = bundle / FOLDER / f"fold_{fold}"
        folder.mkdir(parents=True)
        for name in ("mean", "axes", "reference"):
            np.save(folder / f"{name}.npy", getattr(density, name), allow_pickle=False)
        write_json(folder / "noise.json", {"noise": density.noise})
    write_json(bundle / FOLDER / "novelty.json", {"run": novelty.run, "nets": len(novelty.densities)})


def read_novelty(bundle: Bundle) -> Novelty | None:
    """None where the bundle has none."""
    if not (bundle.folder / FOLDER / "novelty.json").is_file():
        return None
    about = bundle.json(f"{FOLDER}/novelty.json")
    try:
        run = next(run for run in bundle.image_runs if run.name == about["run"])
        densities = []
        for fold in range(1 if run.kind == "frozen" else bundle.folds):
            noise = float(bundle.json(f"{FOLDER}/fold_{fold}/noise.json")["noise"])
            densities.append(Density(**bundle.arrays(f"{FOLDER}/fold_{fold}"), noise=noise))
    except (DermstackError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.folder}: what says how unusual a picture is can't be read ({error}): bundle again"
        ) from error
    return Novelty(run.name, tuple(densities))
