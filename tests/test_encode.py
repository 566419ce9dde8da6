import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dermstack.errors import TabularError
from tabular.encode import MetadataEncoder


@pytest.fixture
def train() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": np.array([40, np.nan, 65], dtype=np.float32),
            "sex": ["male", None, "female"],
            "site": ["torso", "head/neck", "torso"],
        },
        index=[7, 3, 5],
    )


def test_age_keeps_its_gaps_and_categories_become_one_hot_with_missing_indicators(train):
    encoded = MetadataEncoder().fit(train).transform(train)
    expected = pd.DataFrame(
        {
            "age": [40, np.nan, 65],
            "age_missing": [0, 1, 0],
            "sex=female": [0, 0, 1],
            "sex=male": [1, 0, 0],
            "sex_missing": [0, 1, 0],
            "site=head/neck": [0, 1, 0],
            "site=torso": [1, 0, 1],
            "site_missing": [0, 0, 0],
        },
        index=[7, 3, 5],
        dtype=np.float32,
    )
    pd.testing.assert_frame_equal(encoded, expected)


def test_unseen_categories_become_zeros_and_are_counted_for_the_last_transform(train):
    encoder = MetadataEncoder().fit(train)
    new = pd.DataFrame({"age": [1.0] * 3, "sex": ["male", "other", "other"], "site": ["palm", None, "torso"]})
    encoded = encoder.transform(new)
    assert encoder.unseen_ == {"sex": {"other": 2}, "site": {"palm": 1}}
    assert encoded.loc[1, ["sex=female", "sex=male", "sex_missing"]].tolist() == [0, 0, 0]
    assert encoded.loc[0, ["site=head/neck", "site=torso", "site_missing"]].tolist() == [0, 0, 0]
    encoder.transform(train)
    assert encoder.unseen_ == {}


def test_a_category_called_missing_stays_apart_from_the_indicator():
    frame = pd.DataFrame({"age": [1.0, 2.0], "sex": ["missing", None], "site": ["torso", "torso"]})
    encoded = MetadataEncoder().fit(frame).transform(frame)
    assert encoded[["sex=missing", "sex_missing"]].to_numpy().tolist() == [[1, 0], [0, 1]]


texts = st.one_of(st.none(), st.text(max_size=3))
frames = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(0, 120, width=32)), texts, texts), min_size=1, max_size=8
).map(
    lambda rows: pd.DataFrame(
        {
            "age": np.array([np.nan if row[0] is None else row[0] for row in rows], dtype=np.float32),
            "sex": pd.Series([row[1] for row in rows], dtype="str"),
            "site": pd.Series([row[2] for row in rows], dtype="str"),
        }
    )
)


@settings(max_examples=30)
@given(frames, frames)
def test_encoding_equals_a_loop_and_survives_json(train, new):
    encoder = MetadataEncoder().fit(train)
    encoded = encoder.transform(new)
    for column in ("sex", "site"):
        for category in train[column].dropna().unique():
            assert encoded[f"{column}={category}"].tolist() == [float(v == category) for v in new[column]]
        assert encoded[f"{column}_missing"].tolist() == [float(pd.isna(v)) for v in new[column]]
        unseen = [v for v in new[column] if not pd.isna(v) and v not in set(train[column].dropna())]
        assert encoder.unseen_.get(column, {}) == {v: unseen.count(v) for v in unseen}
    again = MetadataEncoder.from_json(encoder.to_json())
    assert again.columns_ == encoder.columns_
    pd.testing.assert_frame_equal(again.transform(new), encoded)


def test_what_is_learned_ignores_the_order_of_the_rows(train):
    assert MetadataEncoder().fit(train).to_json() == MetadataEncoder().fit(train[::-1]).to_json()


def test_no_rows_give_no_rows_and_the_same_columns(train):
    encoder = MetadataEncoder().fit(train)
    assert encoder.transform(train.iloc[:0]).columns.tolist() == encoder.columns_


def test_one_new_row_without_metadata_is_all_missing(train):
    nothing = pd.DataFrame({"age": [np.nan], "sex": [None], "site": [None]})
    encoded = MetadataEncoder().fit(train).transform(nothing)
    missing = [name for name in encoded.columns if name.endswith("_missing")]
    assert encoded[missing].to_numpy().tolist() == [[1, 1, 1]]
    assert encoded.drop(columns=["age", *missing]).to_numpy().sum() == 0


def test_columns_of_floats_are_not_parsed_again(monkeypatch):
    rows = pd.DataFrame({f"m{k}": np.array([k, np.nan, 0.1], np.float32) for k in range(50)})
    parsed = MetadataEncoder(list(rows), [], sparse=True).fit(rows.astype(object)).transform(rows.astype(object))

    def refuse(*args, **kwargs):
        raise AssertionError("a column of floats was parsed")

    monkeypatch.setattr(pd, "to_numeric", refuse)
    pd.testing.assert_frame_equal(MetadataEncoder(list(rows), [], sparse=True).fit(rows).transform(rows), parsed)


def test_the_columns_are_a_setting_that_clone_keeps(train):
    encoder = clone(MetadataEncoder(numeric=("age",), categorical=("site",))).fit(train)
    assert encoder.columns_ == ["age", "age_missing", "site=head/neck", "site=torso", "site_missing"]
    assert MetadataEncoder(numeric=(), categorical=()).fit(train).transform(train).shape == (3, 0)


def test_errors_name_the_column_and_the_value(train):
    encoder = MetadataEncoder().fit(train)
    with pytest.raises(TabularError, match=r"'site' absent.*'age', 'sex'"):
        encoder.transform(train[["age", "sex"]])
    with pytest.raises(TabularError, match=r"'age' holds 1 values.*'forty' in row 1"):
        encoder.transform(pd.DataFrame({"age": ["30", "forty"], "sex": ["male"] * 2, "site": ["torso"] * 2}))
    with pytest.raises(TabularError, match=r"'age' holds 1 values.*'inf' in row 0"):
        encoder.transform(pd.DataFrame({"age": [np.inf], "sex": ["male"], "site": ["torso"]}))
    with pytest.raises(TabularError, match="no rows"):
        MetadataEncoder().fit(train.iloc[:0])
    with pytest.raises(NotFittedError):
        MetadataEncoder().transform(train)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"numeric": ["age"], "categories": []}', "null",
        '{"numeric": [], "categories": {"sex": ["male", "male"]}}', '{"numeric": [], "categories": {"sex": [0, "0"]}}',
        '{"numeric": [], "categories": {"sex": ["male"]}, "rare": {"sex": ["male"]}}',
        '{"numeric": [], "categories": {"sex": ["\\ud800"]}}',
    ],
)  # fmt: skip
def test_json_of_something_else_is_refused(text):
    with pytest.raises(TabularError, match="not a metadata encoder"):
        MetadataEncoder.from_json(text)
