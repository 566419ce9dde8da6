import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermstack.errors import DataError
from stack.submission_csv import check_submission, submission, submission_text

IDS = ["007", "b", "1e5", "NA"]  # what a careless reader turns into 7, 100000.0 and NaN
SCORES = [0.1, 0.9, 0.5, 0.25]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample_submission.csv"
    path.write_text("\ufeffimage_name,target\n1e5,0\nNA,0\n007,0\nb,0\n", encoding="utf-8")
    return path


def make(ids=IDS, score=SCORES, *, sample=None, id_column="image_name", target_column="target"):
    return submission(ids, score, id_column=id_column, target_column=target_column, sample=sample)


def test_rows_take_the_order_of_the_sample_by_id(sample):
    frame = make(sample=sample)
    assert list(frame["image_name"]) == ["1e5", "NA", "007", "b"]
    assert dict(zip(frame["image_name"], frame["target"], strict=True)) == dict(zip(IDS, SCORES, strict=True))


@settings(max_examples=30)
@given(order=st.permutations(range(4)))
def test_the_order_of_the_predictions_does_not_matter(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("sample") / "sample.csv"
    path.write_text("id,p\n" + "".join(f"{name},0\n" for name in IDS), encoding="utf-8")
    shuffled = make([IDS[i] for i in order], [SCORES[i] for i in order], sample=path)
    assert submission_text(shuffled) == submission_text(make(sample=path))


def test_without_a_sample_the_order_of_the_table_stays():
    frame = make(id_column="id", target_column="p")
    assert list(frame.columns) == ["id", "p"]
    assert list(frame["id"]) == IDS


def test_ids_in_the_file_are_those_of_the_table(sample):
    text = submission_text(make(sample=sample))
    assert [line.split(",")[0] for line in text.splitlines()] == ["image_name", "1e5", "NA", "007", "b"]
    odd = submission_text(make(['a,"b"', "é"], [0.1, 0.2]))
    assert list(pd.read_csv(io.StringIO(odd), dtype=str)["image_name"]) == ['a,"b"', "é"]


def test_the_sample_names_the_columns_and_their_order(tmp_path):
    path = tmp_path / "sample.csv"
    path.write_text("melanoma,picture\n" + "".join(f"0,{name}\n" for name in IDS))
    frame = make(sample=path, id_column="picture", target_column="malignant")
    assert list(frame.columns) == ["melanoma", "picture"]
    assert list(frame["melanoma"]) == SCORES

    path.write_text("isic_id,prediction\n" + "".join(f"{name},0\n" for name in IDS))
    assert list(make(sample=path).columns) == ["isic_id", "prediction"]


def test_missing_and_extra_ids_are_named_and_counted(sample):
    with pytest.raises(DataError, match=r"without a score: b\. Check") as error:
        make(["007", "1e5", "NA"], [0.1, 0.2, 0.3], sample=sample)
    assert "sample_submission.csv" in str(error.value)
    extra = [f"x{i}" for i in range(9)]
    with pytest.raises(DataError, match=r"not in the sample: x0, x1, x2, x3, x4, … 9 in all"):
        make(IDS + extra, SCORES + [0.5] * 9, sample=sample)


def test_doubled_ids_are_refused_wherever_they_stand(sample):
    with pytest.raises(DataError, match="the predictions: duplicated ids b"):
        make([*IDS, "b"], [*SCORES, 0.4])
    sample.write_text(sample.read_text() + "007,0\n")
    with pytest.raises(DataError, match=r"sample_submission\.csv: duplicated ids 007"):
        make(sample=sample)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9, 1 + 1e-9])
def test_a_score_that_is_no_number_in_0_1_is_refused(bad, sample):
    for path in (None, sample):
        with pytest.raises(DataError, match=r"not in \[0, 1\] \(b: "):
            make(score=[0.0, bad, 1.0, 0.5], sample=path)


def test_an_id_that_is_no_string_is_refused():
    for odd in (7, 7.0, None, np.nan, ""):
        with pytest.raises(DataError, match="is not an id"):
            make(["a", odd], [0.1, 0.2])


def test_scores_that_do_not_fit_the_ids_are_refused():
    with pytest.raises(DataError, match=r"4 ids and scores of shape \(3,\)"):
        make(score=[0.1, 0.2, 0.3])


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_scores_come_back_from_the_file_exactly(scores):
    text = submission_text(make([f"i{i}" for i in range(len(scores))], scores))
    assert [float(line.split(",")[1]) for line in text.splitlines()[1:]] == scores


def test_neighbouring_floats_do_not_tie_in_the_file():
    score = [0.5, np.nextafter(0.5, 1), np.nextafter(np.nextafter(0.5, 1), 1), 5e-324]
    lines = submission_text(make(score=score)).splitlines()[1:]
    assert len({line.split(",")[1] for line in lines}) == 4


def test_float32_scores_are_written_as_the_float64_they_equal():
    score = np.array([0.1, 0.2, 0.3, 1 / 3], np.float32)
    lines = submission_text(make(score=score)).splitlines()[1:]
    assert [float(line.split(",")[1]) for line in lines] == [float(value) for value in score]


def test_the_text_ends_lines_the_same_everywhere():
    assert submission_text(make(["a"], [0.1])).encode() == b"image_name,target\na,0.1\n"


def test_a_handed_in_frame_is_held_to_the_sample(sample):
    good = make(sample=sample)
    check_submission(good, id_column="image_name", sample=sample)
    with pytest.raises(DataError, match=r"4 ids are in other rows .*row 2: 'b' instead of '1e5'"):
        check_submission(good.iloc[::-1], id_column="image_name", sample=sample)
    with pytest.raises(DataError, match="without a score: b"):
        check_submission(good.iloc[:3], id_column="image_name", sample=sample)
    with pytest.raises(
        DataError, match=r"columns \['image_name', 'target'\], the submission has \['image_name', 'p'\]"
    ):
        check_submission(good.rename(columns={"target": "p"}), id_column="image_name", sample=sample)
    with pytest.raises(DataError, match="give the column 'id' and one score"):
        check_submission(good, id_column="id")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the file is empty"),
        ("id\na\n", "needs two"),
        ("id,a,b\n1,2,3\n", "needs two"),
        ("a,a\n1,2\n", "two"),
    ],
)
def test_a_sample_of_another_shape_is_refused(tmp_path, text, match):
    path = tmp_path / "sample.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        make(sample=path)


def test_a_sample_that_is_not_there_names_the_setting(tmp_path):
    with pytest.raises(DataError, match=r"data\.sample_submission"):
        make(sample=tmp_path / "nowhere.csv")
