"""`dermstack init`: which tables become train, test and sample submission, and that no table is left out unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from table_layouts import write_image

from stack.draft.draft import DraftedConfig, draft_config


def written(folder: Path, *, side: int = 0) -> pd.DataFrame:
    """Writes train.csv (80 rows with id, size, target), and images of all rows where ``side``; returns 100 rows."""
    rng = np.random.default_rng(0)
    y = rng.random(100) < 0.4
    frame = pd.DataFrame({"id": [f"{7 * k:05d}" for k in range(100)], "size": rng.normal(size=100).round(3)})
    frame["target"] = y.astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    frame[:80].to_csv(folder / "train.csv", index=False)
    if side:
        for number, name in enumerate(frame["id"]):
            place = "train" if number < 80 else "test"
            write_image(folder / place / f"{name}.png", rng, positive=bool(y[number]), side=side)
    return frame


def asked(made: DraftedConfig, *words: str) -> bool:
    """Whether one question holds all words."""
    return any(all(word in question for word in words) for question in made.questions)


def test_without_a_test_table_the_ids_of_the_sample_submission_are_predicted(tmp_path: Path) -> None:
    frame = written(tmp_path, side=32)
    frame[80:][["id"]].assign(target=0.5).to_csv(tmp_path / "sample_submission.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    data = yaml.safe_load(made.text)["data"]
    assert (data["test"], data["sample_submission"]) == ("sample_submission.csv", "sample_submission.csv")
    assert not made.faults
    assert asked(made, "data.test: there is no table of test rows, so those of sample_submission.csv are predicted")


def test_test_rows_of_ids_alone_need_images(tmp_path: Path) -> None:
    frame = written(tmp_path)
    for name in ("sample_submission.csv", "test.csv"):
        frame[80:][["id"]].assign(**({"target": 0.5} if "sample" in name else {})).to_csv(tmp_path / name, index=False)
        made = draft_config(tmp_path, tmp_path / "config.yaml")
        assert "test" not in yaml.safe_load(made.text)["data"]
        assert asked(made, "data.test: ", "has 20 test rows, but no image was found; where are their images?")
        assert not made.faults


def test_a_test_table_shares_no_column_but_the_ids(tmp_path: Path) -> None:
    frame = written(tmp_path, side=32)
    frame[:80][["id", "target"]].to_csv(tmp_path / "train.csv", index=False)  # as the ISIC challenge of 2019 has them
    frame[80:][["id", "size"]].to_csv(tmp_path / "Test_Metadata.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert yaml.safe_load(made.text)["data"]["test"] == "Test_Metadata.csv"
    assert not made.faults


def test_a_sample_submission_of_other_ids_is_asked_about(tmp_path: Path) -> None:
    frame = written(tmp_path)
    frame[80:].drop(columns="target").to_csv(tmp_path / "test.csv", index=False)
    sample = frame[80:][["id"]].assign(target=0)
    sample.assign(id=sample["id"].astype(int)).to_csv(tmp_path / "sample_submission.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert asked(made, "sample_submission.csv is not used", "missing, such as '00560'", "others, such as '560'")
    assert "question (sample_submission)" in made.text
    sample.to_csv(tmp_path / "sample_submission.csv", index=False)
    assert not asked(draft_config(tmp_path, tmp_path / "config.yaml"), "sample_submission.csv")


def test_test_rows_under_another_name_of_the_id_are_asked_about(tmp_path: Path) -> None:
    frame = written(tmp_path)
    frame[80:][["id", "size"]].rename(columns={"id": "image"}).to_csv(tmp_path / "test.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert asked(made, "data.test: test.csv (20 rows) has no column 'id'", "the same name in both")


def test_test_rows_with_ids_of_training_rows_are_asked_about(tmp_path: Path) -> None:
    frame = written(tmp_path)
    frame[:20].drop(columns="target").to_csv(tmp_path / "test.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert asked(made, "data.test: test.csv is not used: 20 of its 20 ids are in train.csv too, such as '00000'")


def test_a_table_about_train_and_test_rows_is_asked_about(tmp_path: Path) -> None:
    frame = written(tmp_path)
    frame.assign(age=50)[["id", "age"]].to_csv(tmp_path / "metadata.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert asked(made, "metadata.csv has rows of the same ids", "(age)", "20 rows of other ids: are these to be")


def test_a_table_of_several_images_of_each_row_is_asked_about(tmp_path: Path) -> None:
    frame = written(tmp_path)
    images = pd.concat([frame[["id"]].assign(view=view, image=frame["id"] + view) for view in "LR"])
    images.to_csv(tmp_path / "images.csv", index=False)
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert asked(made, "images.csv has several rows of one 'id' (200 rows of 100;", "`predict_per: group`")


def test_a_second_column_of_images_is_asked_about_and_a_column_of_paths_is_not(tmp_path: Path) -> None:
    frame = written(tmp_path, side=32)
    train = frame[:80].assign(path=lambda rows: "train/" + rows["id"] + ".png")
    pairs = train[::2].assign(other=train["id"][1::2].to_numpy() + ".png")
    for table, is_asked in ((train, False), (pairs, True)):
        table.to_csv(tmp_path / "train.csv", index=False)
        made = draft_config(tmp_path, tmp_path / "config.yaml")
        assert not made.faults
        assert asked(made, "data.columns.id: 'other' names images too, such as '00007.png'") is is_asked
        assert asked(made, "names images too") is is_asked


def test_the_columns_that_are_taken_and_left_out_are_named(tmp_path: Path) -> None:
    frame = written(tmp_path)[:80].assign(tone=["pale", "dark"] * 40, same="x")
    frame.to_csv(tmp_path / "train.csv", index=False)
    facts = draft_config(tmp_path, tmp_path / "config.yaml").facts
    for line in ("numeric columns: 1 (size)", "categorical columns: 1 (tone)", "columns left out: same: "):
        assert any(fact.startswith(line) for fact in facts), facts
