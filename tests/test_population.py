"""What a page says of its population: the diagnoses of both classes, and groups that are lesions or not known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from dermstack.report.population import group_notes, positives
from stack.experiment import Experiment


def experiment(diagnosis: list[str | None], target: list[int], **table: Any) -> Experiment:
    train = pd.DataFrame({"diagnosis": pd.Series(diagnosis, dtype="str")})
    columns = SimpleNamespace(group=table.pop("group", "patient_id"))
    return cast(Experiment, SimpleNamespace(
        table=SimpleNamespace(train=train, **{"groups_known": True, **table}), target=np.array(target),
        config=SimpleNamespace(data=SimpleNamespace(columns=columns)),
    ))  # fmt: skip


def test_every_row_is_counted_among_the_diagnoses_of_its_class() -> None:
    diagnosis = ["melanoma", *["nevus"] * 4, *["a"] * 3, *["b"] * 2, *["c"] * 2, "d", None]
    made = experiment(diagnosis, [1] + [0] * 13)
    negative = "Negative: nevus (4), a (3), b (2), c (2), others (1), not known (1)."
    assert positives(made) == f"Positive: melanoma (1). {negative}"
    assert positives(experiment([None, None], [0, 1])) == ""


@pytest.mark.parametrize(
    ("group", "known", "words"),
    [("patient_id", True, ""), ("lesion_id", True, "column `lesion_id`"), (None, False, "names no patients")],
)
def test_groups_that_are_no_patients_are_a_limit_of_the_result(group: str | None, known: bool, words: str) -> None:
    said = " ".join(group_notes(experiment(["a"], [1], group=group, groups_known=known)))
    assert words in said
    assert bool(said) == bool(words)
