"""Compares each of a patient's images with the others: its risk, and how unlike them the networks find it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tabular.group_features import embedding_aggregates, prediction_aggregates


@dataclass(frozen=True)
class Standing:
    """One lesion compared with the others of the same patient."""

    others: int  # number of other lesions
    distance: float | None  # cosine distance of its embedding to the others' mean direction, 0..2; None: not measured
    place: int | None  # rank by distance, 1: furthest from the others; None for two lesions or fewer, or not measured
    others_distance_range: tuple[float, float] | None  # smallest and largest distance of the others
    others_mean_risk: float | None  # mean calibrated risk of the others
    sentence: str


def standings(
    risk: NDArray[np.float64], embeddings: list[dict[str, NDArray[np.floating]]], *, own_risk: bool = True
) -> list[Standing]:
    """Compares each of a patient's n images with the others.

    ``risk`` (n,) is calibrated; ``embeddings`` holds, for each fold by run, centred components (n, r). Distances are
    level 2's feature `<run>_group_centroid`, averaged over folds and runs. Without ``own_risk``, images share the risk
    of their unit, and no sentence compares risks.
    """
    n = len(risk)
    if n == 1:
        return [Standing(0, None, None, None, None, _ONLY_PICTURE)]
    patient = np.zeros(n, np.intp)
    others_mean_risk = prediction_aggregates(patient, risk[:, None], ["risk"])["risk_group_others_mean"].to_numpy(
        np.float64
    )
    distances = [
        embedding_aggregates(patient, z, name)[f"{name}_group_centroid"].to_numpy(np.float64)
        for fold in embeddings
        for name, z in fold.items()
    ]
    risks_said = [
        _risk_sentence(own, mean, n - 1) if own_risk else "" for own, mean in zip(risk, others_mean_risk, strict=True)
    ]
    if not distances:
        return [
            Standing(n - 1, None, None, None, float(mean), f"{_NOT_MEASURED}{said}")
            for mean, said in zip(others_mean_risk, risks_said, strict=True)
        ]
    distance = np.mean(distances, axis=0)
    made = []
    for row, (mean, said) in enumerate(zip(others_mean_risk, risks_said, strict=True)):
        rest = np.delete(distance, row)
        place = int((distance > distance[row]).sum()) + 1 if n > 2 else None
        span = (float(rest.min()), float(rest.max()))
        sentence = f"{_rank_sentence(float(distance[row]), place, span, n)}{said}"
        made.append(Standing(n - 1, float(distance[row]), place, span, float(mean), sentence))
    return made


_ONLY_PICTURE = "This is the only image: there are no others of this patient to compare it with."
NOT_SEEN = "This image cannot be read: its risk says nothing about the lesion, only about age, sex and site."
_NOT_MEASURED = "No model here combines embeddings, so the similarity of the lesions is not measured."


def _rank_sentence(distance: float, place: int | None, span: tuple[float, float], n: int) -> str:
    if place is None:
        return f"Its distance to the other lesion is {distance:.2f}; of only two, neither can be the unusual one."
    others = f"{span[0]:.2f}" if f"{span[0]:.2f}" == f"{span[1]:.2f}" else f"{span[0]:.2f} to {span[1]:.2f}"
    rest = f"distance {distance:.2f}, the others' {others}"
    if place == 1:
        return f"Of these {n} lesions, this one is the least similar to the others ({rest})."
    return f"Number {place} of {n} by distance from the others ({rest})."


def _risk_sentence(own: float, mean: float, others: int) -> str:
    return (
        f" Its risk is {percent(own)}, "
        f"{'the mean of the others is' if others > 1 else 'that of the other lesion is'} {percent(mean)}."
    )


def percent(share: float) -> str:
    """Formats a share in percent: one decimal below 10 % and above 99 %, and never "0 %" for a positive share."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %" if share < 0.1 or share > 0.99 else f"{100 * share:.0f} %"
