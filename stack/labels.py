"""What an image model learns: 0/1, or the classes of diagnosis, of which some make up the target."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.errors import DataError
from stack.image_config import Diagnosis, ImageModel

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Labels:
    """Of training rows, then external rows: which classes each may be of."""

    names: list[str]
    positive: list[bool]  # the classes whose probability is p
    train: NDArray[np.bool_]  # (n, c)
    external: NDArray[np.bool_]  # (m, c)


def labels_of(model: ImageModel, train: pd.DataFrame, external: pd.DataFrame) -> Labels:
    """The classes that ``model`` learns, of frames with `target` and, for `target: diagnosis`, `diagnosis`.

    Raises DataError where `diagnosis.classes` names what no row has, where a class holds rows of both targets, or where
    all rows are of one class.
    """
    both = pd.concat([train, external], ignore_index=True)
    target = both["target"].to_numpy(np.int8)
    if model.target == "binary":
        names, positive = ["0", "1"], [False, True]
        allowed = np.stack([target == 0, target == 1], axis=1)
    else:
        names, positive, allowed = _classes(both["diagnosis"], target, model.diagnosis, model.name)
    return Labels(names, positive, allowed[: len(train)], allowed[len(train) :])


def _classes(
    diagnosis: pd.Series, target: NDArray[np.int8], settings: Diagnosis, name: str
) -> tuple[list[str], list[bool], NDArray[np.bool_]]:
    # The words of the data decide which classes there are, and their targets which of them count; no fold does.
    words = diagnosis.astype("str")
    found = sorted(words.dropna().unique())
    for word in settings.classes:
        if word not in found:
            near = difflib.get_close_matches(word, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the rows have {', '.join(map(repr, found))}"
            raise DataError(f"{name}: diagnosis.classes names {word!r}, which is the diagnosis of no row: {hint}")
    words = words.replace(settings.classes)
    missing = (words.isna() | (words.str.lower() == UNKNOWN)).to_numpy()
    if settings.unknown == "class":
        words = words.mask(missing, UNKNOWN)
        missing = np.zeros(len(words), bool)
    counts = pd.crosstab(words[~missing], target[~missing]).reindex(columns=[0, 1], fill_value=0)
    mixed = counts[(counts > 0).all(axis=1)]
    if len(mixed):
        first = mixed.iloc[0]
        remedy = (
            "set `diagnosis.unknown: target`"
            if mixed.index[0] == UNKNOWN
            else "map what it holds to classes of one target in `diagnosis.classes`, or to `unknown` with "
            "`diagnosis.unknown: target`"
        )
        raise DataError(
            f"{name}: diagnosis class {mixed.index[0]!r} has {first[0]} rows of target 0 and {first[1]} of target 1: "
            + remedy
        )
    # Target 0 first: with two classes the second is the target.
    ordered = counts.assign(positive=counts[1] > 0).reset_index(names="name").sort_values(["positive", "name"])
    names, positive = ordered["name"].tolist(), ordered["positive"].tolist()
    if len(set(positive)) < 2:
        raise DataError(f"{name}: `target: diagnosis` needs diagnoses of both targets, found {', '.join(names)}")
    allowed = words.to_numpy(object)[:, None] == np.array(names, object)
    allowed[missing] = target[missing, None] == np.array(positive)
    return names, positive, allowed
