from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import DataError
from stack.level1.folds import labels_of
from stack.settings.image_models import ImageModel

NO_EXTERNAL = pd.DataFrame({"id": [], "target": []})


def model(**changes: object) -> ImageModel:
    settings = {"name": "m", "backbone": "b", "pretrained": False, "target": "diagnosis"} | changes
    return ImageModel.model_validate(settings)


def rows(*pairs: tuple[str | None, int]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["diagnosis", "target"]).astype({"diagnosis": "str"})


def test_each_diagnosis_is_a_class_and_those_of_target_1_are_positive() -> None:
    labels = labels_of(model(), rows(("nevus", 0), ("melanoma", 1), ("wart", 0), ("nevus", 0)), NO_EXTERNAL)
    assert dict(zip(labels.names, labels.positive, strict=True)) == {"nevus": False, "wart": False, "melanoma": True}
    chosen = [labels.names[row.argmax()] for row in labels.train]
    assert chosen == ["nevus", "melanoma", "wart", "nevus"]
    assert (labels.train.sum(axis=1) == 1).all()


def test_of_two_classes_the_second_is_the_target() -> None:
    """A net of two classes has one output, the log odds of the second."""
    labels = labels_of(model(), rows(("a melanoma", 1), ("nevus", 0)), NO_EXTERNAL)
    assert labels.positive == [False, True]
    assert labels.names == ["nevus", "a melanoma"]


def test_a_mapping_merges_diagnoses() -> None:
    mapping = {"classes": {"blue nevus": "nevus", "lentigo maligna": "melanoma"}}
    table = rows(("blue nevus", 0), ("nevus", 0), ("lentigo maligna", 1), ("melanoma", 1))
    labels = labels_of(model(diagnosis=mapping), table, NO_EXTERNAL)
    assert labels.names == ["nevus", "melanoma"]
    assert labels.train.argmax(axis=1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("word", "hint"), [("neevus", "did you mean 'nevus'?"), ("zzz", "the rows have 'melanoma'")])
def test_a_mapping_of_what_no_row_has_is_refused(word: str, hint: str) -> None:
    with pytest.raises(DataError, match=rf"m: diagnosis.classes names '{word}'.*{re.escape(hint)}"):
        labels_of(model(diagnosis={"classes": {word: "x"}}), rows(("nevus", 0), ("melanoma", 1)), NO_EXTERNAL)


@pytest.mark.parametrize("unknown", [None, "unknown", "Unknown"])
def test_an_unknown_diagnosis_is_a_class_of_its_own_or_any_of_its_targets(unknown: str | None) -> None:
    table = rows(("nevus", 0), ("wart", 0), ("melanoma", 1), (unknown, 0))
    own = labels_of(model(), table, NO_EXTERNAL)
    assert own.names == ["nevus", "unknown", "wart", "melanoma"]
    assert own.train[3].tolist() == [False, True, False, False]
    table = pd.concat([table, rows((unknown, 1))], ignore_index=True)
    by_target = labels_of(model(diagnosis={"unknown": "target"}), table, NO_EXTERNAL)
    assert by_target.names == ["nevus", "wart", "melanoma"]
    assert by_target.train[3:].tolist() == [[True, True, False], [False, False, True]]
    with pytest.raises(DataError, match=r"'unknown' has 1 rows of target 0 and 1 of target 1.*unknown: target"):
        labels_of(model(), table, NO_EXTERNAL)


def test_a_class_of_both_targets_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="m: diagnosis class 'nevus' has 1 rows of target 0 and 2 of target 1"):
        labels_of(model(), rows(("nevus", 0), ("nevus", 1), ("nevus", 1), ("melanoma", 1)), NO_EXTERNAL)


def test_diagnoses_of_one_target_are_refused() -> None:
    with pytest.raises(DataError, match="needs diagnoses of both targets, found only nevus"):
        labels_of(model(), rows(("nevus", 0)), NO_EXTERNAL)


def test_external_rows_share_the_classes() -> None:
    external = rows(("wart", 0), ("melanoma", 1))
    labels = labels_of(model(), rows(("nevus", 0), ("melanoma", 1)), external)
    assert labels.names == ["nevus", "wart", "melanoma"]
    assert labels.train.shape == (2, 3)
    assert labels.external.argmax(axis=1).tolist() == [1, 2]


def test_a_binary_model_needs_no_diagnosis() -> None:
    labels = labels_of(model(target="binary"), pd.DataFrame({"target": [0, 1, 1]}), NO_EXTERNAL)
    assert labels.train.tolist() == [[True, False], [False, True], [False, True]]
    assert labels.external.shape == (0, 2)
    assert np.array(labels.positive).tolist() == [False, True]
