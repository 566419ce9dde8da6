"""`dermstack init`: columns that say the target, the split or the fold are no features of the draft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from stack.draft.draft import draft_config
from stack.draft.roles import label_columns


def drafted(folder: Path, **columns: object) -> tuple[dict[str, object], str]:
    """Returns the columns of the config drafted for 200 rows with a size and ``columns``, and the questions."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": [f"i{k}" for k in range(200)], "size": rng.normal(size=200).round(3)})
    frame.assign(**columns).to_csv(folder / "train.csv", index=False)
    made = draft_config(folder, folder / "config.yaml")
    assert not made.faults
    return yaml.safe_load(made.text)["data"]["columns"], "\n".join(made.questions)


Y = (np.arange(200) % 3 == 0).astype(int)


@pytest.mark.parametrize("split", [["train", "test"], ["training", "val", "test"]])
def test_a_column_of_splits_is_no_feature_and_asked_about(tmp_path: Path, split: list[str]) -> None:
    words = np.random.default_rng(1).choice(split, 200)
    columns, questions = drafted(tmp_path, target=Y, split=words, hand=np.where(words == split[0], "left", "right"))
    assert columns["numeric"] == ["size"]
    assert columns["categorical"] == ["hand"]
    assert "data.train: 'split' divides the rows" in questions


def test_folds_that_are_not_taken_are_no_feature(tmp_path: Path) -> None:
    columns, questions = drafted(tmp_path, target=Y, fold=np.random.default_rng(1).integers(-1, 4, 200))
    assert "fold" not in columns
    assert columns["numeric"] == ["size"]
    assert "'fold' is not used" in questions


def test_rare_classes_of_a_one_hot_table_are_left_out(tmp_path: Path) -> None:
    number = np.where(Y == 1, 0, np.where(np.arange(200) % 25 == 1, 2, 1))
    number[Y == 1] = 0
    classes = {name: (number == k).astype(float) for k, name in enumerate(("MEL", "NV", "AK"))}
    assert 0 < classes["AK"].sum() < 20
    columns, questions = drafted(tmp_path, **classes)
    assert columns["target"] == "MEL"
    assert columns["numeric"] == ["size"]
    assert "'NV', 'AK'" in questions


@pytest.mark.parametrize("word", ["non-malignant", "not malignant", "non malignant", "premalignant", "pre-malignant"])
def test_a_class_that_is_not_malignant_is_not_positive(word: str) -> None:
    label = label_columns(pd.DataFrame({"diagnosis": ["malignant tumour", word, "unclear"] * 4}), set())[0]
    assert label.positive == ("malignant tumour",)
