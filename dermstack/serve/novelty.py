"""The novelty model of a bundle: how far an image lies from the training images, by the density of embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermstack.errors import BundleError, DermstackError, TabularError
from dermstack.serve.bundle import Bundle
from dermstack.serve.manifest import ImageRun
from image_models.predict import NetOutput
from stack.experiment import Experiment
from stack.history import auc_of
from stack.store import Run, write_json
from tabular.embeddings import N_QUANTILES, Density, fit_density

FAR_QUANTILE = 0.99  # about one training image in a hundred lies further out
NOVELTY_FOLDER = "novelty"


@dataclass(frozen=True)
class Novelty:
    """Novelty model: a density of embeddings for each fold of one run, or a single one for a frozen backbone."""

    run: str
    densities: tuple[Density, ...]

    def scorer(self) -> NoveltyScorer:
        """Returns a collector for the networks' raw predictions."""
        return NoveltyScorer(self)


@dataclass
class NoveltyScorer:
    """Measures novelty while predictions are made, so that embeddings need not be kept."""

    model: Novelty
    shares: list[NDArray[np.float64]] = field(default_factory=list)

    def see(self, run: ImageRun, fold: int, made: NetOutput) -> None:
        """Adds one fold's predictions for all rows; those of other runs are ignored."""
        if run.name == self.model.run:
            if made.z.shape[1] != (features := len(self.model.densities[fold].mean)):
                raise BundleError(
                    f"{run.name} has {made.z.shape[1]} features, its novelty model {features}: bundle again"
                )
            self.shares.append(self.model.densities[fold].share_nearer(made.z))

    def novelty(self) -> NDArray[np.float64]:
        """Returns (n,) in 0..1: the share of training images nearer to the others than this one, mean over folds."""
        mean: NDArray[np.float64] = np.mean(self.shares, axis=0)
        return mean

    def far(self) -> NDArray[np.bool_]:
        """Returns (n,): whether an image is so unusual that it should be checked before its prediction is trusted."""
        return self.novelty() > FAR_QUANTILE


def fit_novelty(experiment: Experiment, runs: list[Run]) -> Novelty | None:
    """Fits the novelty model to the out-of-fold embeddings of the best trained run (else the best frozen run).

    Returns None if a fold has too few rows for a density, and without image runs.
    """
    if not runs:
        return None
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
    """Writes the novelty model into the folder of an unfinished bundle."""
    for fold, density in enumerate(novelty.densities):
        folder = bundle / NOVELTY_FOLDER / f"fold_{fold}"
        folder.mkdir(parents=True)
        for name in ("mean", "axes", "reference"):
            np.save(folder / f"{name}.npy", getattr(density, name), allow_pickle=False)
        write_json(folder / "noise.json", {"noise": density.noise})
    write_json(bundle / NOVELTY_FOLDER / "novelty.json", {"run": novelty.run, "nets": len(novelty.densities)})


def read_novelty(bundle: Bundle) -> Novelty | None:
    """Reads the novelty model; None if the bundle has none. Raises BundleError if it cannot be read."""
    if f"{NOVELTY_FOLDER}/novelty.json" not in bundle:
        return None
    about = bundle.json(f"{NOVELTY_FOLDER}/novelty.json")
    try:
        run = next(run for run in bundle.image_runs if run.name == about["run"])
        densities = []
        nets = 1 if run.kind == "frozen" else bundle.folds
        if about["nets"] != nets:
            raise ValueError(f"it is of {str(about['nets'])[:20]} networks, not of {nets}")
        for fold in range(nets):
            noise = float(bundle.json(f"{NOVELTY_FOLDER}/fold_{fold}/noise.json")["noise"])
            density = Density(**bundle.arrays(f"{NOVELTY_FOLDER}/fold_{fold}"), noise=noise)
            shapes = [density.mean.shape, density.axes.shape[:1], density.reference.shape]
            if density.axes.ndim != 2 or shapes[0] != shapes[1] or shapes[2] != (N_QUANTILES,):
                raise ValueError(f"fold {fold} has arrays of shapes {shapes}, which do not fit each other")
            if not 0 < noise < np.inf or (np.diff(density.reference) < 0).any() or not density.axes.any(axis=0).all():
                raise ValueError(f"fold {fold} has distances or deviations that are out of range")
            densities.append(density)
    except BundleError:
        raise
    except (DermstackError, LookupError, StopIteration, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{bundle.place}: the novelty model cannot be read ({error}): bundle again") from error
    return Novelty(run.name, tuple(densities))
