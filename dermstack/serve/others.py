"""How far a lesion stands from the same patient's others, in the terms of level 2: the ugly duckling, for a reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tabular.group_features import prediction_aggregates
from tabular.neighbours import embedding_aggregates


@dataclass(frozen=True)
class Standing:
    """One lesion among the others that were given with it."""

    others: int  # how many there are
    distance: float | None  # cosine distance of its embedding to the others' mean direction, 0..2; None: not measured
    place: int | None  # 1: no lesion lies further from the rest; None where two can't be told apart
    others_distance: tuple[float, float] | None  # least and greatest of the others'
    others_risk: float | None  # mean calibrated risk of the others
    sentence: str


def standings(risk: NDArray[np.float64], embeddings: list[dict[str, NDArray[np.floating]]]) -> list[Standing]:
    """Of the n pictures of a patient: calibrated ``risk`` (n,), and each fold's centred components (n, r) by run.

    Distances are level 2's feature `<run>_group_centroid`, averaged over folds and runs.
    """
    n = len(risk)
    if n == 1:
        return [Standing(0, None, None, None, None, _ALONE)]
    patient = np.zeros(n, np.intp)
    others_risk = prediction_aggregates(patient, risk[:, None], ["risk"])["risk_group_others_mean"].to_numpy(np.float64)
    apart = [
        embedding_aggregates(patient, z, name)[f"{name}_group_centroid"].to_numpy(np.float64)
        for fold in embeddings
        for name, z in fold.items()
    ]
    if not apart:
        return [
            Standing(n - 1, None, None, None, float(mean), f"{_NOT_MEASURED} {_risk_sentence(own, mean, n - 1)}")
            for own, mean in zip(risk, others_risk, strict=True)
        ]
    distance = np.mean(apart, axis=0)
    made = []
    for row, (own, mean) in enumerate(zip(risk, others_risk, strict=True)):
        rest = np.delete(distance, row)
        place = int((distance > distance[row]).sum()) + 1 if n > 2 else None
        span = (float(rest.min()), float(rest.max()))
        sentence = f"{_place_sentence(float(distance[row]), place, span, n)} {_risk_sentence(own, mean, n - 1)}"
        made.append(Standing(n - 1, float(distance[row]), place, span, float(mean), sentence))
    return made


_ALONE = "The only picture: there are no others of this patient to compare it with."
_NOT_MEASURED = "This ensemble's level 2 takes no embedding, so how alike the lesions look is not measured."


def _place_sentence(distance: float, place: int | None, span: tuple[float, float], n: int) -> str:
    if place is None:
        return f"Its distance to the other lesion is {distance:.2f}; of two, neither can be the odd one."
    others = f"{span[0]:.2f}" if f"{span[0]:.2f}" == f"{span[1]:.2f}" else f"{span[0]:.2f} to {span[1]:.2f}"
    rest = f"distance {distance:.2f}, the others' {others}"
    if place == 1:
        return f"Of these {n} lesions the networks find this one least like the rest ({rest})."
    return f"Number {place} of {n} by how far it lies from the rest ({rest})."


def _risk_sentence(own: float, mean: float, others: int) -> str:
    return f"Its risk is {percent(own)}, {'the mean of the others' if others > 1 else 'the other'} {percent(mean)}."


def percent(share: float) -> str:
    """A risk as people read it: two digits that count, and never "0 %" for what isn't nothing."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %" if share < 0.1 or share > 0.99 else f"{100 * share:.0f} %"
