from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss, roc_auc_score

from dermstack.errors import TabularError
from tabular.gbdt import fit_gbdt, importance, predict_logit, read_gbdt, shap_values, write_gbdt
from tabular.gbdt_libraries import DEFAULTS, LIBRARIES

KINDS = sorted(DEFAULTS)
both = pytest.mark.parametrize("kind", KINDS)
QUICK = {"learning_rate": 0.2, "rounds": 60, "patience": 10}
# blanks, brackets, JSON signs and letters beyond ASCII: a name from somebody's table
COLUMNS = ["cnn a_logit", "age [years]", 'site="head/neck"', "größe: {mm}", "50%25"]


def rows(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 5)).astype(np.float32), columns=COLUMNS)
    risk = 2.0 * X[COLUMNS[0]] + np.abs(X[COLUMNS[1]]) - 3.0
    y = (rng.random(n) < expit(risk)).astype(np.int8)
    return X.mask(rng.random(X.shape) < 0.1), y


def fit(kind, *, eval_set=True, params=QUICK, seed=0, threads=1):
    watch = rows(300, 1) if eval_set else None
    return fit_gbdt(kind, *rows(600, 0), eval_set=watch, params=params, seed=seed, threads=threads)


@both
def test_it_learns_what_the_rows_hold_and_ranks_new_rows(kind):
    X, y = rows(3000, 2)
    margin = predict_logit(fit(kind), X)
    assert margin.dtype == np.float32
    assert margin.shape == (3000,)
    # the ceiling: the very risk that the targets were drawn with, gaps filled with its middle
    ceiling = roc_auc_score(y, 2.0 * X[COLUMNS[0]].fillna(0) + X[COLUMNS[1]].abs().fillna(0.8))
    assert ceiling - 0.03 < roc_auc_score(y, margin) < ceiling + 0.01


@both
def test_predictions_are_log_odds_at_the_prevalence(kind):
    X, y = rows(600, 0)
    assert abs(expit(predict_logit(fit(kind, eval_set=False), X)).mean() - y.mean()) < 0.02


@both
def test_rounds_are_found_on_the_stop_rows_and_the_refit_uses_all_rows(kind):
    (X, y), (X_stop, y_stop) = rows(600, 0), rows(300, 1)
    model = fit(kind)
    assert 1 < model.rounds < QUICK["rounds"]
    # the oracle: plain fits of the first rows alone, one for each number of rounds that early stopping saw
    losses = []
    for rounds in range(1, model.rounds + QUICK["patience"] + 1):
        plain = fit_gbdt(kind, X, y, eval_set=None, params={**QUICK, "rounds": rounds}, seed=0, threads=1)
        losses.append(log_loss(y_stop, expit(predict_logit(plain, X_stop))))
    assert model.rounds == np.argmin(losses) + 1
    everything = pd.concat([X, X_stop], ignore_index=True), np.concatenate([y, y_stop])
    params = {**QUICK, "rounds": model.rounds}
    refit = fit_gbdt(kind, *everything, eval_set=None, params=params, seed=0, threads=1)
    np.testing.assert_array_equal(predict_logit(model, X), predict_logit(refit, X))


@both
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_and_threads_give_the_same_bytes(kind, threads, tmp_path):
    contents = []
    for name in "ab":
        path = tmp_path / f"{name}{LIBRARIES[kind].suffix}"
        write_gbdt(fit(kind, threads=threads), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@both
def test_another_seed_gives_another_model(kind):
    X, _ = rows(600, 0)
    assert (predict_logit(fit(kind), X) != predict_logit(fit(kind, seed=1), X)).any()


@both
def test_a_read_model_predicts_bitwise_what_the_written_one_did(kind, tmp_path):
    X, _ = rows(3000, 2)
    model = fit(kind)
    before = predict_logit(model, X)
    path = tmp_path / f"model{LIBRARIES[kind].suffix}"
    write_gbdt(model, path)
    again = read_gbdt(path)
    assert (again.kind, again.columns, again.rounds) == (kind, tuple(COLUMNS), model.rounds)
    np.testing.assert_array_equal(predict_logit(again, X), before)
    np.testing.assert_array_equal(predict_logit(again, X, threads=2), before)
    np.testing.assert_array_equal(np.concatenate([predict_logit(again, X[i : i + 1]) for i in range(9)]), before[:9])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    content = path.read_bytes()
    write_gbdt(again, path)
    assert path.read_bytes() == content
    assert predict_logit(again, X.iloc[:0]).shape == (0,)


@both
def test_a_file_cut_short_anywhere_is_refused(kind, tmp_path):
    path = tmp_path / f"model{LIBRARIES[kind].suffix}"
    write_gbdt(fit(kind), path)
    content = path.read_bytes()
    for length in [0, 1, 40, len(content) // 5, len(content) // 2, len(content) - 200, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(
            TabularError, match=f"model{LIBRARIES[kind].suffix} is (an incomplete|a damaged) {kind} model"
        ):
            read_gbdt(path)


@both
def test_missing_values_carry_their_own_signal(kind):
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], 200)
    X = pd.DataFrame({"age": np.where(y == 1, np.nan, rng.normal(size=400)), "noise": rng.normal(size=400)})
    model = fit_gbdt(kind, X, y, eval_set=None, params=QUICK, seed=0, threads=1)
    margin = predict_logit(model, pd.DataFrame({"age": [np.nan, 0.0], "noise": [0.0, 0.0]}))
    assert margin[0] > 0 > margin[1]


@both
def test_gain_is_largest_for_the_signal_and_zero_for_what_no_tree_uses(kind):
    X, y = rows(600, 0)
    model = fit_gbdt(kind, X.assign(constant=1.0), y, eval_set=None, params=QUICK, seed=0, threads=1)
    gain = importance(model)
    assert gain.index[0] == COLUMNS[0]
    assert gain["constant"] == 0
    assert sorted(gain.index) == sorted([*COLUMNS, "constant"])
    assert gain.is_monotonic_decreasing


@both
def test_targets_without_signal_leave_the_base_rate(kind):
    X, _ = rows(600, 0)
    y = np.arange(600) % 4 == 0
    noise = X.notna() * 0.0
    if kind == "catboost":
        with pytest.raises(TabularError, match="constant"):
            fit_gbdt(kind, noise, y, eval_set=(noise[:100], y[:100]), params={}, seed=0, threads=1)
        return
    model = fit_gbdt(kind, noise, y, eval_set=(noise[:100], y[:100]), params={}, seed=0, threads=1)
    np.testing.assert_allclose(predict_logit(model, noise), logit(0.25), atol=0.02)


@both
def test_columns_at_prediction_must_be_those_of_the_fit(kind):
    X, _ = rows(20, 0)
    model = fit(kind)
    with pytest.raises(TabularError, match=r"missing: age \[years\]; extra: weight"):
        predict_logit(model, X.rename(columns={"age [years]": "weight"}))
    with pytest.raises(TabularError, match="order differs"):
        predict_logit(model, X[COLUMNS[::-1]])
    with pytest.raises(TabularError, match="missing: cnn a_logit"):
        fit_gbdt(kind, *rows(50, 0), eval_set=(X[COLUMNS[1:]], np.zeros(20)), params=QUICK, seed=0, threads=1)


def test_an_unknown_kind_or_parameter_names_the_nearest():
    with pytest.raises(TabularError, match="unknown GBDT 'lightgb': did you mean 'lightgbm'"):
        fit("lightgb")
    with pytest.raises(TabularError, match="no settable parameter 'num_leafs': did you mean 'num_leaves'"):
        fit("lightgbm", params={"num_leafs": 7})
    with pytest.raises(TabularError, match="no settable parameter 'objective'"):
        fit("xgboost", params={"objective": 1})


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("lightgbm", {"rounds": 0}, "'rounds' is 0: give at least 1"),
        ("xgboost", {"patience": 2.5}, "'patience' is 2.5: give a value of type int"),
        ("xgboost", {"learning_rate": True}, "'learning_rate' is True: give a value of type float"),
        ("lightgbm", {"extra_trees": 1}, "'extra_trees' is 1: give a value of type bool"),
        ("lightgbm", {"learning_rate": -1}, "lightgbm rejects the parameters {'learning_rate': -1}"),
        ("xgboost", {"subsample": 7.0}, "xgboost rejects the parameters {'subsample': 7.0}"),
    ],
)
def test_a_bad_value_names_the_parameter(kind, params, message):
    with pytest.raises(TabularError, match=message):
        fit(kind, params=params)


@both
def test_overrides_reach_the_library(kind):
    X, _ = rows(600, 0)
    stump = fit(kind, eval_set=False, params={**QUICK, "rounds": 1, "depth" if kind == "catboost" else "max_depth": 1})
    assert len(np.unique(predict_logit(stump, X))) == 2


@both
def test_bad_rows_are_refused_by_name(kind):
    X, y = rows(50, 0)
    common = {"eval_set": None, "params": QUICK, "seed": 0, "threads": 1}
    with pytest.raises(TabularError, match="targets are 0 or 1"):
        fit_gbdt(kind, X, np.full(50, 2), **common)
    with pytest.raises(TabularError, match="target nan in row 0"):
        fit_gbdt(kind, X, np.full(50, np.nan), **common)
    with pytest.raises(TabularError, match="one class only"):
        fit_gbdt(kind, X, np.ones(50), **common)
    with pytest.raises(TabularError, match=r"\(49,\) targets for 50 rows"):
        fit_gbdt(kind, X, y[:49], **common)
    with pytest.raises(TabularError, match="are not numeric: sex"):
        fit_gbdt(kind, X.assign(sex="male"), y, **common)
    with pytest.raises(TabularError, match="infinite values in age"):
        fit_gbdt(kind, X.assign(age=np.inf), y, **common)
    with pytest.raises(TabularError, match="repeated columns cnn a_logit"):
        fit_gbdt(kind, pd.concat([X, X[COLUMNS[:1]]], axis=1), y, **common)
    with pytest.raises(TabularError, match=r"no rows for early stopping"):
        fit_gbdt(kind, X, y, **{**common, "params": {}})
    with pytest.raises(TabularError, match=r"no rows for early stopping"):
        fit_gbdt(kind, X, y, **{**common, "eval_set": (X[:0], y[:0])})


def test_the_suffix_decides_whose_model_it_is(tmp_path):
    with pytest.raises(TabularError, match=r"ending in \.txt"):
        write_gbdt(fit("lightgbm"), tmp_path / "model.pkl")
    with pytest.raises(TabularError, match=r"\.txt or \.ubj"):
        read_gbdt(tmp_path / "model.pkl")


@both
def test_shap_values_and_the_bias_sum_to_the_logit(kind):
    model, (X, _) = fit(kind), rows(500, 3)
    added, bias = shap_values(model, X)
    assert added.shape == X.shape
    assert list(added) == COLUMNS
    np.testing.assert_allclose(added.sum(axis=1) + bias, predict_logit(model, X), atol=1e-4)
    spread = added.abs().mean()
    assert set(spread.nlargest(2).index) == set(COLUMNS[:2])  # what the targets were drawn with


@both
def test_a_column_that_no_tree_splits_on_adds_nothing(kind):
    X, y = rows(600, 0)
    X = X.assign(still=np.float32(1))
    model = fit_gbdt(kind, X, y, eval_set=None, params=QUICK, seed=0, threads=1)
    assert (shap_values(model, X)[0]["still"] == 0).all()


def test_shap_values_are_shapleys_of_the_trees_by_brute_force():
    """Over all subsets of columns; a split on a column that is not among them goes both ways, by rows of the fit."""
    X, y = (part.to_numpy() if hasattr(part, "to_numpy") else part for part in rows(600, 0))
    frame = pd.DataFrame(np.nan_to_num(X), columns=COLUMNS)
    model = fit_gbdt("lightgbm", frame, y, eval_set=None, params={"rounds": 4, "learning_rate": 0.3}, seed=0, threads=1)
    trees = [tree["tree_structure"] for tree in model.booster.dump_model()["tree_info"]]

    def count(node):
        return node["internal_count"] if "split_feature" in node else node["leaf_count"]

    def expected(node, x, known):
        if "split_feature" not in node:
            return node["leaf_value"]
        left, right = node["left_child"], node["right_child"]
        if node["split_feature"] in known:
            return expected(left if x[node["split_feature"]] <= node["threshold"] else right, x, known)
        weighted = (count(side) * expected(side, x, known) for side in (left, right))
        return sum(weighted) / count(node)

    def value(x, known):
        return sum(expected(tree, x, known) for tree in trees)

    added, bias = shap_values(model, frame.iloc[:5])
    for x, found in zip(frame.iloc[:5].to_numpy(), added.to_numpy(), strict=True):
        assert bias == pytest.approx(value(x, ()), abs=1e-6)
        for column in range(5):
            others, total = [other for other in range(5) if other != column], 0.0
            for size in range(5):
                for known in combinations(others, size):
                    weight = factorial(size) * factorial(4 - size) / factorial(5)
                    total += weight * (value(x, (*known, column)) - value(x, known))
            assert found[column] == pytest.approx(total, abs=1e-6)


@both
def test_shap_values_are_refused_for_other_columns_and_empty_for_no_rows(kind):
    model, (X, _) = fit(kind), rows(10, 3)
    with pytest.raises(TabularError, match="missing: 50%25"):
        shap_values(model, X[COLUMNS[:4]])
    assert shap_values(model, X.iloc[:0])[0].shape == (0, 5)
