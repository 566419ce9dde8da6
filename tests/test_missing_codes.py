"""Codes for "unknown": refused where no value can be one, reported where one could, and not where it is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audited_experiment import audited_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from dermstack.audit.rows import missing_code_findings
from dermstack.errors import DataError
from stack.console import Out
from stack.experiment import print_overview
from stack.tables.missing_codes import missing_codes
from stack.tables.table import read_new_frame, read_table

COLUMNS = {"id": "id", "group": "group", "target": "target", "age": "age", "width": "width"}


def rows(age: object = 50, width: object = 600, n: int = 40) -> pd.DataFrame:
    frame = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": range(n), "target": [0, 1] * (n // 2)})
    frame["age"], frame["width"] = [str(20 + k) for k in range(n)], "600"
    frame.loc[frame.index % 5 == 0, ["age", "width"]] = [str(age), str(width)]
    return frame


def frame_of(ages: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"age": ages, "sex": "male", "site": "torso"})


@pytest.mark.parametrize("age", [999, -1, 121, "120.5", "-0.1", "inf"])
def test_an_age_that_no_person_has_is_refused_in_every_table(age: object, tmp_path: Path) -> None:
    rows(age).to_csv(tmp_path / "bad.csv", index=False)
    rows().assign(id=lambda frame: "t" + frame["id"]).to_csv(tmp_path / "good.csv", index=False)
    for read in (
        lambda: read_table(tmp_path / "bad.csv", tmp_path / "good.csv", columns=COLUMNS),
        lambda: read_table(tmp_path / "good.csv", tmp_path / "bad.csv", columns=COLUMNS),
        lambda: read_new_frame(tmp_path / "bad.csv", COLUMNS),
    ):
        with pytest.raises(DataError) as error:
            read()
        assert f"bad.csv: age {str(age)!r} (rows 2, 7, 12" in str(error.value)
        assert "from 0 to 120" in str(error.value)
        assert "leave the cell empty where the age is unknown" in str(error.value)


@pytest.mark.parametrize("age", [0, 120, "0.5", "", "NA"])
def test_an_age_that_a_person_can_have_is_read(age: object, tmp_path: Path) -> None:
    rows(age).to_csv(tmp_path / "good.csv", index=False)
    found = read_table(tmp_path / "good.csv", None, columns=COLUMNS).train["age"].iloc[0]
    assert np.isnan(found) if age in {"", "NA"} else found == float(age)


@pytest.mark.parametrize("width", [0, -1])
def test_a_picture_has_no_width_of_nothing(width: int, tmp_path: Path) -> None:
    rows(width=width).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=r"width '-?[01]' .* leave the cell empty where the width is unknown"):
        read_table(tmp_path / "bad.csv", None, columns=COLUMNS)


@pytest.mark.parametrize("code", [0.0, 1.0, 99.0, 110.0])
def test_a_code_in_a_fifth_of_the_rows_is_found_and_counted(code: float, rng: np.random.Generator) -> None:
    ages = rng.integers(20, 86, 400).astype(float)
    ages[:100] = code
    found = missing_codes(frame_of(ages.tolist()))
    assert [(one.column, one.value, one.rows) for one in found] == [("age", f"{code:g}", 100)]
    assert found[0].share == pytest.approx(0.25)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 10]), st.integers(0, 20), st.integers(60, 110))
def test_ages_without_a_code_are_never_reported(seed: int, step: int, low: int, high: int) -> None:
    """Whole years, or in steps of five or ten; from birth on, and beyond a hundred."""
    ages = np.random.default_rng(seed).integers(low, high, 300) // step * step
    assert missing_codes(frame_of(ages.astype(float).tolist())) == []


def test_ages_that_are_capped_are_no_code(rng: np.random.Generator) -> None:
    """ISIC writes 85 for 85 and over."""
    assert missing_codes(frame_of(np.minimum(rng.normal(75, 15, 500).clip(20) // 5 * 5, 85).tolist())) == []


def test_one_age_for_all_is_no_code() -> None:
    assert missing_codes(frame_of([99.0] * 50)) == []


@pytest.mark.parametrize(("ages", "found"), [
    ([99.0], ["99"]), ([0.0, 50.0, 61.0], ["0"]), ([0.0, 0.0], ["0"]), ([50.0, 1.0, 88.0, 100.0], []),
    ([0.0, 1.0, 2.0, 3.0], []), ([0.0] + [50.0] * 99, []), ([], []),
])  # fmt: skip
def test_in_few_new_rows_an_age_that_hardly_anyone_has_is_reported(ages: list[float], found: list[str]) -> None:
    assert [code.value for code in missing_codes(frame_of(ages), few_rows=True) if code.is_number] == found
    assert missing_codes(frame_of(ages)) == []


def test_real_tables_have_no_code(shared_data: Path) -> None:
    for name in ("siim2020/train.csv", "siim2020/test.csv", "ham10000/train.csv", "isic2024/train.csv"):
        ages = pd.read_csv(shared_data / name)["age_approx"]
        assert missing_codes(frame_of(ages.tolist())) == [], name
        assert missing_codes(frame_of(ages.tolist()), few_rows=True) == [], name


def test_the_audit_and_the_reader_warn_of_an_age_and_note_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train.loc[train.index % 5 == 0, "age"] = 0.0
        test.loc[test.index % 4 == 0, "sex"] = "Unknown"

    experiment = audited_experiment(tmp_path, plant)
    age, word = missing_code_findings(experiment)
    assert (age.severity, word.severity) == ("warning", "note")
    assert age.evidence.startswith("age 0 in ")
    assert age.evidence.endswith("of train")
    assert "'unknown'" in word.evidence
    assert word.evidence.endswith("of test")
    print_overview(experiment, Out())
    shown = " ".join(capsys.readouterr().out.split())
    assert "train.csv: age 0 in" in shown
    assert 'leave these cells empty or declare it (data.missing: {"age": [0]})' in shown
    assert 'data.missing: {"age": [0]}' in age.remedy


def test_a_clean_table_has_no_finding(tmp_path: Path) -> None:
    assert missing_code_findings(audited_experiment(tmp_path)) == []
