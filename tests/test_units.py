"""stack.tables.units: which column names the unit of an image, and which tables are refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from imported_experiment import opened_experiment
from unit_experiment import UNIT, import_readers, units_of, write_breasts

from dermstack.errors import ConfigError, DataError
from stack.settings.config import read_config
from stack.store import fingerprint


def rewrite(path: Path, change: dict[str, object] | None = None, drop: str | None = None) -> None:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = frame.assign(**{name: value(frame) if callable(value) else value for name, value in (change or {}).items()})
    frame.drop(columns=drop or []).to_csv(path, index=False)


def test_the_values_of_several_columns_name_the_unit_by_image_id(tmp_path: Path) -> None:
    experiment = opened_experiment(write_breasts(tmp_path))
    units = experiment.table.units
    assert units is not None
    for part in ("train", "test"):
        frame = pd.read_csv(tmp_path / f"{part}.csv", dtype=str).set_index("image_id")
        assert units.loc[frame.index].tolist() == units_of(frame).tolist()


@pytest.mark.parametrize("short", ["group", "patient_id", ["patient_id"]])
def test_group_and_the_column_of_the_groups_are_one_unit(short: object, tmp_path: Path) -> None:
    experiment = opened_experiment(write_breasts(tmp_path, predict_per=short))
    units = experiment.table.units
    assert units is not None
    train = experiment.table.train
    assert units.loc[train["id"]].tolist() == train["group"].tolist()


def test_the_key_changes_no_fingerprint_of_what_is_trained(tmp_path: Path) -> None:
    per = opened_experiment(write_breasts(tmp_path))
    images = opened_experiment(write_breasts(tmp_path, predict_per=None))
    assert images.table.units is None
    for name in ("rows_fingerprint", "metadata_fingerprint"):
        assert getattr(per, name) == getattr(images, name)
    pd.testing.assert_frame_equal(per.table.train, images.table.train)
    assert fingerprint(per.config.blend.model_dump()) == fingerprint(images.config.blend.model_dump())


def test_a_torn_unit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unit '[LR]' has training images of \d+ groups .*\[patient_id, laterality\]"):
        opened_experiment(write_breasts(tmp_path, predict_per="laterality"))


def test_without_groups_a_unit_of_several_images_is_torn(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    columns = {"id": "image_id", "target": "cancer"}
    settings = f"data.columns={columns}"
    with pytest.raises(DataError, match=r"set data.columns.group to a column whose groups hold whole units"):
        opened_experiment(path, settings)


def test_a_unit_torn_between_test_groups_is_refused(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, predict_per="breast")
    for part in ("train", "test"):
        rewrite(tmp_path / f"{part}.csv", {"breast": lambda frame: units_of(frame)})
    rewrite(tmp_path / "test.csv", {"breast": lambda frame: frame["laterality"]})
    with pytest.raises(DataError, match=r"unit '[LR]' has test images of 20 groups"):
        opened_experiment(path)


def test_a_missing_value_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    frame = pd.read_csv(tmp_path / "train.csv", dtype=str)
    frame.loc[3, "laterality"] = None
    frame.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match=r"train.csv: row 5 without a value in 'laterality' \(predict_per\)"):
        opened_experiment(path)


def test_a_column_that_a_table_lacks_is_named(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    rewrite(tmp_path / "test.csv", drop="laterality")
    with pytest.raises(DataError, match=r"test.csv: no column 'laterality'"):
        opened_experiment(path)


def test_two_units_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    train = pd.read_csv(tmp_path / "train.csv", dtype=str)
    train.loc[0, ["patient_id", "laterality"]] = ["7_L", "x"]
    train.loc[1, ["patient_id", "laterality"]] = ["7", "L_x"]
    train.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match=r"'7_L_x'.* would name different units"):
        opened_experiment(path)


def test_spellings_of_one_integer_name_one_unit(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, predict_per="breast")
    for part in ("train", "test"):
        rewrite(
            tmp_path / f"{part}.csv",
            {"breast": lambda frame: frame["patient_id"].astype(int) * 2 + (frame["laterality"] == "L")},
        )
    expected = opened_experiment(path).table.units
    train = pd.read_csv(tmp_path / "train.csv", dtype=str)
    train.loc[::3, "breast"] += ".0"
    train.to_csv(tmp_path / "train.csv", index=False)
    found = opened_experiment(path).table.units
    assert expected is not None
    assert found is not None
    pairs = pd.DataFrame({"before": expected, "after": found.reindex(expected.index)}).drop_duplicates()
    assert len(pairs) == pairs["before"].nunique() == pairs["after"].nunique(), "the same images are together"
    assert found.str.endswith(".0").sum() < (train["breast"].str.endswith(".0")).sum(), "some have a spelling of both"


def test_images_of_both_targets_are_refused_where_they_must_agree(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, predict_per={"columns": UNIT, "target": "same"})
    assert opened_experiment(path).table.units is not None
    train = pd.read_csv(tmp_path / "train.csv", dtype=str)
    several = train[units_of(train).duplicated(keep=False)].index[0]
    train.loc[several, "cancer"] = str(1 - int(train.loc[several, "cancer"]))
    train.to_csv(tmp_path / "train.csv", index=False)
    unit = units_of(train)[several]
    with pytest.raises(DataError, match=rf"1 unit has images of both targets \('{unit}'\)"):
        opened_experiment(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.on_unreadable_test=table", "predict_per and data.on_unreadable_test: table exclude each other"),
        ("tuned.blend=study.json", "predict_per and tuned.blend exclude each other"),
        ("data.columns.group=null", None),
        ("predict_per=cancer", "predict_per names cancer, the target"),
        ("predict_per=[patient_id, patient_id]", "patient_id is named more than once"),
        ("predict_per.pooling=[]", "at least 1 item"),
        ("predict_per.pooling=[median]", "'mean', 'maximum', 'noisy_or' or 'learned'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_when_the_config_is_read(
    override: str, words: str | None, tmp_path: Path
) -> None:
    path = write_breasts(tmp_path)
    if words is None:
        with pytest.raises(ConfigError, match=r"predict_per: group needs data.columns.group"):
            read_config(path, (override, "predict_per=group"))
        return
    with pytest.raises(ConfigError, match=words):
        read_config(path, (override,))


def test_an_image_of_its_own_unit_needs_no_groups(tmp_path: Path) -> None:
    experiment = import_readers(write_breasts(tmp_path, predict_per="image_id"))
    units = experiment.table.units
    assert units is not None
    assert units.index.tolist() == units.tolist()
