"""Makes one image model of an experiment stand alone, as a small net that imitates the blend (Hinton et al. 2015).

The net is an image model with `pseudo_labels`: its nets of fold k learn the targets of the other folds' rows, and, on
test and unlabelled rows, the probabilities of the teachers' nets of fold k. On training rows no teacher's probabilities
are used: those of the nets of fold k were fitted to the same targets, and the out-of-fold ones come from other folds'
nets, which know the targets of fold k. So the out-of-fold score of the net is that of new rows, as for every model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dermstack.errors import BundleError
from image_models.settings import is_own_backbone
from stack.console import Out
from stack.experiment import Experiment
from stack.level1.image_runs import level1_runs
from stack.metrics.intervals import Interval, interval, paired_difference
from stack.plan.costs import prediction_seconds
from stack.store import Run, read_run
from stack.submission import blend_alone, blend_inputs
from stack.tuned import enabled_models
from stack.unit_rows import scored_experiment
from stack.views import alone


@dataclass(frozen=True)
class Distilled:
    """A net that stands alone, and how it compares with the blend that it imitates."""

    experiment: Experiment  # of this net alone
    run: Run
    blend: Run  # of the run alone: its calibration and its headline
    auc: Interval  # out-of-fold
    loss: Interval  # its AUC minus the nested AUC of the blend, paired, on rows that both cover
    megabytes: float  # weights of all its nets
    of_all_megabytes: float  # of all image models
    seconds: float  # a new image takes, measured on this machine
    of_all_seconds: float  # with all image models

    def described(self) -> str:
        """Returns one line for the command."""
        return (
            f"{self.run.name} alone: AUC {self.auc} (out-of-fold), {self.loss.value:+.4f} [{self.loss.low:+.4f}, "
            f"{self.loss.high:+.4f}] against the nested blend; {self.megabytes:,.1f} MB of weights "
            f"({self.of_all_megabytes:,.1f} of all image models), {self.seconds:.3g} s an image "
            f"({self.of_all_seconds:.3g} with all)"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of the manifest; without seconds, as the same runs give the same bundle."""
        return {
            "run": self.run.name, "auc": asdict(self.auc), "loss": asdict(self.loss), "megabytes": self.megabytes,
            "of_all_megabytes": self.of_all_megabytes,
        }  # fmt: skip


def distilled(experiment: Experiment, name: str, out: Out) -> Distilled:
    """Returns the image model ``name`` as a net that stands alone; calibrates it, and measures its cost and its loss.

    Raises BundleError where it has no pseudo-labels, and where it or the blend is missing or stale.
    """
    models = {model.name: model for model in enabled_models(experiment)}
    if name not in models or models[name].pseudo_labels is None:
        taught = [model.name for model in models.values() if model.pseudo_labels is not None]
        raise BundleError(
            f"--distilled {name}: no enabled image model of {experiment.config_path} with pseudo_labels has this name "
            f"({', '.join(taught) or 'none has pseudo_labels'}): add a small image model after the others, with "
            "`pseudo_labels: {teachers: [...]}` that names them, and run `dermstack oof` and `dermstack stack`"
        )
    if is_own_backbone(models[name].backbone):
        raise BundleError(
            f"{name}: its backbone {models[name].backbone} is your own code, which a bundle does not contain"
        )
    level1 = level1_runs(experiment)
    run = next(one for one in level1 if one.name == name)
    whole = _whole_blend(experiment, level1)
    only = alone(experiment, name)
    blend = blend_alone(only, run, out)
    auc, loss = _compared(experiment, blend, whole)
    costs = {model.name: prediction_seconds(experiment, model) for model in models.values()}
    return Distilled(
        only, run, blend, auc, loss, _megabytes(run),
        sum(_megabytes(one) for one in level1 if one.name in models), costs[name], sum(costs.values()),
    )  # fmt: skip


def _whole_blend(experiment: Experiment, level1: list[Run]) -> Run:
    """Returns the blend of all runs. Raises BundleError where it is missing or stale."""
    stackers = [read_run(experiment.models / one.name) for one in experiment.config.stackers if one.enabled]
    blend, known = read_run(experiment.folder / "blend"), [one for one in stackers if one is not None]
    if (
        blend is None
        or len(known) < len(stackers)
        or blend.meta["inputs"] != blend_inputs(experiment, [*level1, *known])
    ):
        raise BundleError(
            f"the blend is {'stale' if blend else 'missing'}, with which --distilled compares the net: run "
            f"`{experiment.command('stack')}` first"
        )
    return blend


def _compared(experiment: Experiment, blend: Run, whole: Run) -> tuple[Interval, Interval]:
    """Returns the AUC of a blend, and its difference from that of ``whole`` on the rows of both."""
    mine, others = (run.frame("oof").set_index("id")["score"] for run in (blend, whole))
    experiment = scored_experiment(experiment)
    rows = experiment.rows_of(mine.index)
    auc = interval("auc", experiment.target[rows], mine.to_numpy(np.float64), experiment.split_group[rows])
    ids = mine.index[mine.index.isin(others.index)]
    rows = experiment.rows_of(ids)
    a, b = (scores.loc[ids].to_numpy(np.float64) for scores in (mine, others))
    return auc, paired_difference("auc", experiment.target[rows], a, b, experiment.split_group[rows])


def _megabytes(run: Run) -> float:
    return sum(path.stat().st_size for path in run.folder.glob("**/*.safetensors")) / 1e6
