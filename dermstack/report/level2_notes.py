"""Describes what was measured about level 2: gain from shortcuts, from group information, alignment of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from stack.experiment import Experiment
from stack.level2.importance import start_importance
from stack.level2.probes import start_probes
from stack.parallel import Pending
from stack.store import Run


class Level2(NamedTuple):
    """What the report shows of level 2 beside its scores."""

    notes: list[str]
    importance: pd.DataFrame | None  # `stack.level2.importance.importance`


def start_level2(experiment: Experiment, stackers: list[Run], sources: list[Run], *, of: str = "") -> Pending[Level2]:
    """Starts the probes of a stacker and the importances, both kept on disk; ``of`` as for `level2_notes`."""
    probes = start_probes(experiment, stackers, sources)
    importance = start_importance(experiment, stackers, sources)

    def finish(progress: Callable[[int], object]) -> Level2:
        return Level2(level2_notes(probes.finish(progress), of=of), importance.finish(progress))

    return Pending(probes.tasks + importance.tasks, finish)


def level2_notes(probed: tuple[Run, pd.DataFrame] | None, *, of: str = "") -> list[str]:
    """Describes the probes of a stacker (acquisition shortcuts, group information) and its embedding alignment.

    ``of`` is what the AUCs are of, where it is not what the blend scores.
    """
    if probed is None:
        return []
    run, probes = probed
    says = {
        "context_counts": "With the number of images in the group as a feature, {run} would have AUC {auc:.4f}, "
        "{apart}. This is an artefact of how images were collected; it is off unless `features.context_counts` is set.",
        "shortcuts": "With image width, height and file size as features, {run} would have AUC {auc:.4f}, {apart}. "
        "This is an artefact of how images were made; it is off unless `features.shortcuts` is set.",
        "alone": "Without the other images of each group, {run} has AUC {auc:.4f}, {apart}.",
        "groups of one": "Among groups of a single image, {run} has AUC {auc:.4f}; {apart} to the mean logit of "
        "its level-1 runs.",
    }
    notes = []
    for probe in probes.to_dict("records"):
        if text := says.get(str(probe["what"])):
            low, high = probe["difference_low"], probe["difference_high"]
            apart = f"difference {probe['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            notes.append(
                text.format(run=run.name, auc=probe["auc"], apart=apart) + (f" These are AUCs of {of}." * bool(of))
            )
    return notes + list(run.meta.get("alignment", []))
