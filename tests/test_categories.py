"""Native categories: their codes, and what each GBDT library makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from dermstack.errors import TabularError
from tabular.categories import CategoryCodes
from tabular.fit_bag import BagSettings, ColumnRoles, Sampling, fit_bag
from tabular.gbdt import fit_gbdt, importance, predict_logit, read_gbdt, shap_values, write_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.models import read_bag, write_bag

each = pytest.mark.parametrize("kind", sorted(LIBRARIES))
QUICK = {"learning_rate": 0.2, "rounds": 40, "patience": 10}
WORDS = 60
# what a header can hold: blanks, quotes, brackets, JSON, separators, escapes, numbers, other scripts, and names that
# are equal to another once cleaned
ODD_NAMES = [
    "a b", "a_b", "a.b", "a\tb", "a  b", " a b", 'say "x"', "it's", "`x`", "[mm]", "(x)", "<x", "x>", "{'a': 1}",
    "[1, 2]", "a,b", "a;b", "a:b", "a|b", "a\\b", "a/b", "50%", "50%25", "%", "a=b", "#1", "0", "1", "-1", "1e5", "nan",
    "None", "true", "größe", "gro\u0308ße", "年龄", "🧪", "\u200b", "\u202e", "a\nb", "A B", "", " ", "name:a", "label",
    "Column_0", "f0", "x" * 300,
]  # fmt: skip


def world(n: int, seed: int, *, effect: float = 1.5) -> tuple[pd.DataFrame, np.ndarray]:
    """Three numbers and the code of a word, the second column; the first number and the word tell the target."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, WORDS, n)
    of_word = np.random.default_rng(99).normal(0, effect, WORDS)
    X = pd.DataFrame(rng.normal(size=(n, 3)), columns=["x [mm]", "y", "z"]).astype(np.float32)
    y = (rng.random(n) < expit(of_word[code] + X["x [mm]"] - 1)).astype(np.int8)
    X.insert(1, "camera {A}", np.where(rng.random(n) < 0.05, np.nan, code).astype(np.float32))
    return X, y


def fit(kind: str, *, categorical: tuple[str, ...] = ("camera {A}",), params: dict[str, float] | None = None):
    return fit_gbdt(
        kind, *world(1500, 0), eval_set=world(500, 1), params=params or QUICK, seed=0, threads=1,
        categorical=categorical,
    )  # fmt: skip


def test_codes_are_by_frequency_and_only_of_columns_with_many_words() -> None:
    frame = pd.DataFrame({"many": ["b", "c", "c", "a", None], "few": ["x", "y", "x", "y", None]})
    codes = CategoryCodes(["many", "few"], more_than=2).fit(frame)
    assert codes.words_ == {"many": ["c", "a", "b"]}
    made = codes.transform(pd.DataFrame({"many": ["a", "never seen", None, "c", "nan"]}, index=list("pqrst")))
    assert made.dtypes.to_list() == [np.float32]
    np.testing.assert_array_equal(made["many"], [1, np.nan, np.nan, 0, np.nan])
    empty = pd.DataFrame({"many": pd.Series(["nan", "None", None, np.nan], dtype="object")})
    of_text = CategoryCodes(["many"], more_than=0).fit(empty)  # an empty cell is not the word "nan"
    np.testing.assert_array_equal(of_text.transform(empty)["many"], [1, 0, np.nan, np.nan])
    assert list(made.index) == list("pqrst")
    with pytest.raises(TabularError, match="'many' is absent"):
        codes.transform(frame[["few"]])


def test_words_of_few_rows_share_a_code_with_those_that_no_row_has() -> None:
    frame = pd.DataFrame({"w": ["a"] * 3 + ["b"] * 2 + ["c", "d", None], "even": list("xxyyzzuu")})
    codes = CategoryCodes(["w", "even"], more_than=2, min_rows=2).fit(frame)
    assert codes.words_ == {"w": ["a", "b"], "even": ["u", "x", "y", "z"]}
    new = pd.DataFrame({"w": ["a", "b", "c", "d", "new", None], "even": ["x", "u", "new", None, "y", "z"]})
    for one in (codes, CategoryCodes.from_json(codes.to_json())):
        made = one.transform(new)
        np.testing.assert_array_equal(made["w"], [0, 1, 2, 2, 2, np.nan])
        np.testing.assert_array_equal(made["even"], [1, 0, np.nan, np.nan, 2, 3])  # none of its words is rare
    rare = CategoryCodes(["w"], more_than=2, min_rows=9).fit(frame)
    np.testing.assert_array_equal(rare.transform(new)["w"], [0, 0, 0, 0, 0, np.nan])


@each
def test_the_shared_code_of_rare_words_is_a_category_like_any_other(kind: str) -> None:
    rng = np.random.default_rng(0)
    word = pd.Series(np.where(rng.random(1500) < 0.5, "often", [f"rare {k}" for k in range(1500)]))
    y = (rng.random(1500) < np.where(word == "often", 0.2, 0.7)).astype(np.int8)
    codes = CategoryCodes(["w"], min_rows=5).fit(pd.DataFrame({"w": word[:1000]}))
    X = codes.transform(pd.DataFrame({"w": word})).assign(x=rng.normal(size=1500).astype(np.float32))
    model = fit_gbdt(
        kind, X[:800], y[:800], eval_set=(X[800:1000], y[800:1000]), params=QUICK, seed=0, threads=1, categorical=["w"]
    )
    assert roc_auc_score(y[1000:], predict_logit(model, X[1000:])) > 0.68  # each of these words is new


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=40), st.integers(1, 3), st.data())
def test_stored_codes_are_the_same_and_every_word_has_its_own(
    cells: list[str | None], min_rows: int, data: st.DataObject
) -> None:
    frame = pd.DataFrame({"w": pd.Series(cells, dtype="str")})
    codes = CategoryCodes(["w"], more_than=0, min_rows=min_rows).fit(frame)
    again = CategoryCodes.from_json(codes.to_json())
    new = pd.DataFrame({"w": pd.Series(data.draw(st.lists(st.text(max_size=4), max_size=10)), dtype="str")})
    for one in (frame, new):
        pd.testing.assert_frame_equal(again.transform(one), codes.transform(one))
    words = [cell for cell in cells if cell is not None]
    if words:
        made = codes.transform(frame)["w"]
        assert made.isna().sum() == len(cells) - len(words)
        often = {word for word in words if words.count(word) >= min_rows}
        assert set(made.dropna()) == set(range(len(often) + (len(often) < len(set(words)))))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"words": 3}', '{"words": {"a": 3}}', '{"words": {"a": []}, "others": ["b"]}',
        '{"words": {}, "others": 3}', '{"words": {"a": ["x", "x"]}}', '{"words": {"a": ["\\ud800"]}}',
    ],
)  # fmt: skip
def test_what_is_no_stored_codes_says_so(text: str) -> None:
    with pytest.raises(TabularError, match="not codes of categories"):
        CategoryCodes.from_json(text)


@each
def test_a_native_category_beats_its_code_as_a_number_and_the_frequent_words_alone(kind: str) -> None:
    X, y = world(4000, 2)
    native, number = (
        roc_auc_score(y, predict_logit(fit(kind, categorical=flags), X)) for flags in (("camera {A}",), ())
    )
    assert native > number + 0.02
    frequent = [
        part.assign(**{f"w{i}": part["camera {A}"] == i for i in range(20)})
        .drop(columns="camera {A}")
        .astype(np.float32)
        for part in (world(1500, 0)[0], world(500, 1)[0], X)
    ]
    one_hot = fit_gbdt(
        kind, frequent[0], world(1500, 0)[1], eval_set=(frequent[1], world(500, 1)[1]), params=QUICK, seed=0, threads=1
    )
    assert native > roc_auc_score(y, predict_logit(one_hot, frequent[2])) + 0.02


@each
def test_the_numbers_of_the_codes_carry_no_meaning(kind: str) -> None:
    """Other codes for the same words give nearly the same model; as numbers they give another."""
    X, _ = world(4000, 2)
    turned = np.random.default_rng(5).permutation(WORDS).astype(np.float32)

    def recoded(frame: pd.DataFrame) -> pd.DataFrame:
        codes = frame["camera {A}"]
        return frame.assign(**{"camera {A}": codes.map(lambda code: turned[int(code)], na_action="ignore")})

    one, two = fit(kind), fit_gbdt(
        kind, recoded(world(1500, 0)[0]), world(1500, 0)[1], eval_set=(recoded(world(500, 1)[0]), world(500, 1)[1]),
        params=QUICK, seed=0, threads=1, categorical=["camera {A}"],
    )  # fmt: skip
    a, b = predict_logit(one, X), predict_logit(two, recoded(X))
    assert np.corrcoef(a, b)[0, 1] > 0.93


@each
def test_an_unknown_word_is_as_a_missing_one_and_moves_only_what_splits_on_it(kind: str) -> None:
    X, _ = world(50, 3)
    train = pd.DataFrame({"w": [f"w{code}" for code in range(WORDS)] * 2})
    codes = CategoryCodes(["w"]).fit(train)
    new = codes.transform(pd.DataFrame({"w": ["w3", "never", None]}))["w"].to_numpy()
    np.testing.assert_array_equal(np.isnan(new), [False, True, True])
    X = pd.concat([X.iloc[:1]] * 3, ignore_index=True).assign(**{"camera {A}": new})
    margin = predict_logit(fit(kind), X)
    assert np.isfinite(margin).all()
    assert margin[1] == margin[2]


@each
def test_a_written_model_is_read_to_the_same_bits_and_a_cut_file_is_refused(kind: str, tmp_path: Path) -> None:
    X, _ = world(1000, 2)
    model, path = fit(kind), tmp_path / f"model{LIBRARIES[kind].suffix}"
    write_gbdt(model, path)
    content, again = path.read_bytes(), read_gbdt(path)
    assert again.columns == tuple(X)
    for part in (X, X.iloc[:1], X.assign(**{"camera {A}": np.nan})):
        np.testing.assert_array_equal(predict_logit(again, part), predict_logit(model, part))
        pd.testing.assert_frame_equal(shap_values(again, part)[0], shap_values(model, part)[0])
    write_gbdt(again, path)
    assert path.read_bytes() == content
    write_gbdt(fit(kind), path)
    assert path.read_bytes() == content  # the same rows and seed give the same bytes
    end_of_trees = 8 + int.from_bytes(content[4:8], "little")  # CatBoost's: tables of statistics follow
    cuts = [0, 8, 40, len(content) // 2, len(content) - 200, len(content) - 5, len(content) - 1]
    for length in [*cuts, *([end_of_trees, end_of_trees + 4, end_of_trees + 9] if kind == "catboost" else [])]:
        assert length < len(content)
        path.write_bytes(content[:length])
        with pytest.raises(TabularError, match=r"is (an incomplete|a damaged)"):
            read_gbdt(path)


@each
def test_shap_values_sum_to_the_logit_and_the_category_has_gain(kind: str) -> None:
    X, _ = world(300, 3)
    model = fit(kind)
    added, bias = shap_values(model, X)
    np.testing.assert_allclose(added.sum(axis=1) + bias, predict_logit(model, X), atol=1e-4)
    assert set(importance(model).index[:2]) == {"x [mm]", "camera {A}"}


@each
def test_a_bag_of_them_is_written_and_read(kind: str, tmp_path: Path) -> None:
    X, y = world(800, 0)
    bag = fit_bag(
        BagSettings(
            kind, QUICK, bags=2, sampling=Sampling(negatives=0.7), columns=ColumnRoles(categorical=["camera {A}"])
        ),
        X,
        y,
        np.arange(800) % 5 == 0,
        seed=0,
        threads=1,
    )
    write_bag(bag, tmp_path)
    np.testing.assert_array_equal(read_bag(kind, tmp_path, shift=bag.shift).logit(X), bag.logit(X))


@each
def test_words_without_an_effect_give_held_out_rows_no_order(kind: str) -> None:
    rng = np.random.default_rng(7)
    code = pd.DataFrame({"w": rng.integers(0, 300, 3000).astype(np.float32)})
    y, inner = (rng.random(3000) < 0.2).astype(np.int8), np.arange(1500) % 5 == 0
    bag = fit_bag(
        BagSettings(kind, QUICK, columns=ColumnRoles(categorical=["w"])),
        code[:1500],
        y[:1500],
        inner,
        seed=0,
        threads=1,
    )
    assert abs(roc_auc_score(y[1500:], bag.logit(code[1500:])) - 0.5) < 0.05


@each
def test_no_column_name_breaks_a_library(kind: str, tmp_path: Path) -> None:
    assert len(set(ODD_NAMES)) == len(ODD_NAMES)
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(400, len(ODD_NAMES))), columns=ODD_NAMES).astype(np.float32)
    y = (X["年龄"] + X[""] + rng.normal(size=400) > 0).astype(np.int8)
    path = tmp_path / f"model{LIBRARIES[kind].suffix}"
    for categorical in ([], ["a b", "[mm]", "", "\u202e"]):
        one = X.assign(**{name: rng.integers(0, 30, 400).astype(np.float32) for name in categorical})
        model = fit_gbdt(
            kind, one, y, eval_set=None, params={**QUICK, "rounds": 20}, seed=0, threads=1, categorical=categorical,
            increasing=["年龄", "a_b"],
        )  # fmt: skip
        write_gbdt(model, path)
        again = read_gbdt(path)
        assert again.columns == tuple(ODD_NAMES)
        np.testing.assert_array_equal(predict_logit(again, one), predict_logit(model, one))
        assert list(shap_values(again, one)[0]) == ODD_NAMES
        assert importance(again).index[0] in ("年龄", "")


@pytest.mark.parametrize(
    ("codes", "words"), [([0.0, 1.5], "holds 1.5"), ([-1.0, 0.0], "holds -1"), ([0.0, 2.0**24], "holds 1.67772e")]
)
def test_what_is_no_code_is_refused(codes: list[float], words: str) -> None:
    X = pd.DataFrame({"w": codes * 50}).astype(np.float32)
    with pytest.raises(TabularError, match=words):
        fit_gbdt("lightgbm", X, np.arange(100) % 2, eval_set=None, params=QUICK, seed=0, threads=1, categorical=["w"])


def test_a_logistic_regression_takes_no_codes() -> None:
    X, y = world(200, 0)
    with pytest.raises(TabularError, match=r"logistic takes no codes of categories, got 'camera \{A\}'"):
        fit_bag(
            BagSettings("logistic", columns=ColumnRoles(categorical=["camera {A}"])),
            X,
            y,
            np.arange(200) % 5 == 0,
            seed=0,
            threads=1,
        )


def test_parameters_of_categories_reach_the_library_and_change_nothing_without_categories() -> None:
    X, y = world(600, 0)
    plain = X.drop(columns="camera {A}")
    for kind, params in {
        "lightgbm": {"cat_l2": 500.0}, "xgboost": {"max_cat_threshold": 1}, "catboost": {"one_hot_max_size": 100},
    }.items():  # fmt: skip
        made = {}
        for frame in (X, plain):
            for extra in ({}, params):
                model = fit_gbdt(
                    kind, frame, y, eval_set=None, params={**QUICK, **extra}, seed=0, threads=1,
                    categorical=["camera {A}"],
                )  # fmt: skip
                made[len(frame.columns), bool(extra)] = predict_logit(model, frame)
        assert (made[4, True] != made[4, False]).any(), kind
        np.testing.assert_array_equal(made[3, True], made[3, False])
