"""A table of labels without a config: the number of its folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dermstack.errors import DataError
from stack.experiment import Experiment, open_experiment
from stack.folds import TooFewGroupsError
from stack.forensics import label_rows
from stack.forensics.label_rows import open_labels


def write_labels(folder: Path, *, positive_patients: int, **columns: object) -> Path:
    """A table of 12 patients with two images each."""
    labels = pd.DataFrame(
        {"image": [f"ISIC_{i:07}" for i in range(24)], "patient_id": [f"P{i // 2}" for i in range(24)]}
    )
    labels = labels.assign(malignant=[int(i // 2 < positive_patients) for i in range(24)], **columns)
    folder.mkdir(exist_ok=True)
    labels.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@pytest.mark.parametrize(("positive_patients", "folds"), [(3, 3), (2, 2), (7, 5)])
def test_there_are_as_many_folds_as_patients_of_both_classes_allow_up_to_five(
    tmp_path: Path, positive_patients: int, folds: int
) -> None:
    rows = open_labels(write_labels(tmp_path, positive_patients=positive_patients))
    assert rows.experiment.folds.k == folds


def test_too_few_patients_for_two_folds_are_an_error_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(TooFewGroupsError, match="1 group holds positives, fewer than the 5 folds"):
        open_labels(write_labels(tmp_path, positive_patients=1))


def test_a_table_that_no_number_of_folds_mends_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder has folds in its name, which the message repeats."""
    opened = []

    def counted(*given: Any, **options: Any) -> Experiment:
        opened.append(given)
        return open_experiment(*given, **options)

    monkeypatch.setattr(label_rows, "open_experiment", counted)
    path = write_labels(tmp_path / "folds", positive_patients=4, image=["ISIC_0000001"] * 24)
    with pytest.raises(DataError, match=r"folds/labels\.csv") as caught:
        open_labels(path, id_column="image")
    assert not isinstance(caught.value, TooFewGroupsError)
    assert len(opened) == 1
