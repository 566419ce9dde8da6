from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dermstack.errors import TabularError
from tabular.fit_bag import BagSettings, ColumnRoles, Sampling, fit_bag
from tabular.gbdt import fit_gbdt, write_gbdt
from tabular.logistic import fit_logistic, logistic_from_bytes, write_logistic
from tabular.models import read_bag, write_bag

KINDS = ["lightgbm", "xgboost", "catboost", "logistic"]


@pytest.fixture
def rows(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    n = 3000
    X = pd.DataFrame(rng.normal(size=(n, 4)).astype(np.float32), columns=["p", "q", "noise", "age"])
    y = (rng.random(n) < expit(1.5 * X["p"] + X["q"] - 2.5)).astype(np.int8).to_numpy()
    X.loc[rng.random(n) < 0.1, "age"] = np.nan
    return X, y, rng.random(n) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_bag_is_the_mean_of_its_models_logits(kind: str, rows: tuple) -> None:
    X, y, inner = rows
    params = {} if kind == "logistic" else {"rounds": 60}
    bag = fit_bag(BagSettings(kind, params, bags=3), X, y, inner, seed=5, threads=1)
    rounds = None if kind == "logistic" else int(bag.chosen[0])  # of the first model's early stopping
    alone = [fit_bag(BagSettings(kind, params), X, y, inner, seed=5 + n, threads=1, rounds=rounds) for n in range(3)]
    assert fit_bag(BagSettings(kind, params), X, y, inner, seed=5, threads=1).chosen == bag.chosen[:1]
    np.testing.assert_allclose(bag.logit(X), np.mean([one.logit(X) for one in alone], axis=0), atol=1e-5)
    assert roc_auc_score(y, bag.logit(X)) > 0.8
    assert len(bag.chosen) == (1 if kind == "logistic" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_negatives_leave_the_prevalence_where_it_was(kind: str, rows: tuple) -> None:
    X, y, inner = rows
    params = {} if kind == "logistic" else {"rounds": 60}
    bag = fit_bag(BagSettings(kind, params, bags=2, sampling=Sampling(negatives=0.3)), X, y, inner, seed=0, threads=1)
    assert len(bag.models) == 2
    assert expit(bag.logit(X)).mean() == pytest.approx(y.mean(), rel=0.15)
    assert (bag.models[0].logit(X) if kind == "logistic" else bag.logit(X) - bag.shift).mean() > bag.logit(X).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_predicts_the_same(kind: str, rows: tuple, tmp_path: Path) -> None:
    X, y, inner = rows
    params = {} if kind == "logistic" else {"rounds": 20}
    bag = fit_bag(BagSettings(kind, params, bags=11, sampling=Sampling(negatives=0.9)), X, y, inner, seed=0, threads=1)
    paths = write_bag(bag, tmp_path)
    assert len(paths) == len(bag.models) == 11
    (tmp_path / "features.json").write_text("{}")
    read = read_bag(kind, tmp_path, shift=bag.shift)
    assert read.chosen == bag.chosen  # in the order they were written
    assert (read.logit(X) == bag.logit(X)).all()
    with pytest.raises(TabularError, match=f"holds no {kind} model"):
        read_bag(kind, tmp_path / "elsewhere", shift=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_of_a_bag_sum_to_its_logit(kind: str, rows: tuple) -> None:
    X, y, inner = rows
    params = {} if kind == "logistic" else {"rounds": 40}
    bag = fit_bag(BagSettings(kind, params, bags=2, sampling=Sampling(negatives=0.5)), X, y, inner, seed=0, threads=1)
    added, bias = bag.contributions(X)
    np.testing.assert_allclose(added.sum(axis=1) + bias, bag.logit(X), atol=1e-4)
    assert added.abs().mean().idxmax() == "p"


def test_a_logistic_contribution_is_the_weight_times_the_distance_from_the_mean(rows: tuple) -> None:
    X, y, inner = rows
    model = fit_logistic(X[~inner], y[~inner], eval_set=(X[inner], y[inner]))
    slope = np.diff(model.logit(pd.concat([X[:1].assign(q=0.0), X[:1].assign(q=1.0)])))[0]
    added, _ = model.contributions(X)
    np.testing.assert_allclose(added["q"], slope * (X["q"] - X["q"].mean()), atol=2e-3)
    assert (added["age"][X["age"].isna()] == 0).all()


def test_logistic_refuses_parameters(rows: tuple) -> None:
    X, y, inner = rows
    with pytest.raises(TabularError, match="logistic has no parameters, got rounds"):
        fit_bag(BagSettings("logistic", {"rounds": 3}), X, y, inner, seed=0, threads=1)


def test_the_logistic_regression_is_scikit_learns_on_standardised_rows(rows: tuple) -> None:
    X, y, inner = rows
    model = fit_logistic(X[~inner], y[~inner], eval_set=(X[inner], y[inner]), C_grid=(0.01,))
    x = X.to_numpy(np.float64)
    z = np.nan_to_num((x - np.nanmean(x, axis=0)) / np.nanstd(x, axis=0))
    order = np.r_[np.flatnonzero(~inner), np.flatnonzero(inner)]
    oracle = LogisticRegression(C=0.01, max_iter=2000).fit(z[order], y[order])
    np.testing.assert_allclose(model.logit(X), oracle.decision_function(z), atol=1e-3)


def test_one_extreme_value_steers_nothing(rows: tuple) -> None:
    X, y, inner = rows
    model = fit_logistic(X[~inner], y[~inner], eval_set=(X[inner], y[inner]))
    far = X[:1].assign(p=1e9)
    assert model.logit(far)[0] == model.logit(X[:1].assign(p=1e6))[0]
    with pytest.raises(TabularError, match="columns are not those of the fit"):
        model.logit(X[["q", "p", "noise", "age"]])


@pytest.mark.parametrize("text", ["", "{}", '{"columns": []}', "\x00"])
def test_a_damaged_logistic_model_is_refused(text: str) -> None:
    with pytest.raises(TabularError, match=r"model\.json is not a logistic model"):
        logistic_from_bytes(text.encode(), "model.json")


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost", "catboost"])
def test_what_may_only_raise_the_risk_never_lowers_it(kind: str, rng: np.random.Generator) -> None:
    X = pd.DataFrame(rng.normal(size=(2000, 2)).astype(np.float32), columns=["p (net a)", "age"])
    bent = 2 * np.abs(X["p (net a)"]) - 1.5  # falls, then rises
    y = (rng.random(2000) < expit(bent)).astype(np.int8).to_numpy()
    inner = rng.random(2000) < 0.2
    line = pd.DataFrame({"p (net a)": np.linspace(-3, 3, 200, dtype=np.float32), "age": np.float32(0)})

    def falls(*increasing: str) -> float:
        settings = BagSettings(kind, {"rounds": 100}, columns=ColumnRoles(increasing=increasing))
        bag = fit_bag(settings, X, y, inner, seed=0, threads=1)
        return float(-np.diff(bag.logit(line)).min())

    assert falls() > 0.05
    assert falls("p (net a)", "not there") <= 1e-6


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost", "catboost"])
def test_a_weight_leaves_the_prevalence_where_it_was(kind: str, rows: tuple) -> None:
    X, y, inner = rows
    bag = fit_bag(
        BagSettings(kind, {"rounds": 60}, sampling=Sampling(positive_weight=4.0)), X, y, inner, seed=0, threads=1
    )
    assert bag.shift == pytest.approx(-np.log(4))
    assert expit(bag.logit(X)).mean() == pytest.approx(y.mean(), rel=0.25)
    assert expit(bag.logit(X) + np.log(4)).mean() > 1.5 * y.mean()


@pytest.mark.parametrize("kind", ["lightgbm", "logistic"])
@pytest.mark.parametrize("positives", [3.0, 2.5])
def test_copies_of_positives_leave_the_odds_at_the_prevalence(kind: str, positives: float) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(4000, 3)).astype(np.float32), columns=list("abc"))
    y = (rng.random(4000) < expit(X["a"].to_numpy() - 2)).astype(int)
    inner = np.arange(4000) % 5 == 0
    params = {"rounds": 60, "learning_rate": 0.1} if kind == "lightgbm" else {}
    plain, many = (
        fit_bag(BagSettings(kind, params, bags=2, sampling=Sampling(positives=times)), X, y, inner, seed=0, threads=1)
        for times in (1.0, positives)
    )
    assert many.shift == pytest.approx(-np.log(positives))
    assert len(many.models) == (2 if kind == "lightgbm" or positives % 1 else 1)
    new = pd.DataFrame(rng.normal(size=(4000, 3)).astype(np.float32), columns=list("abc"))
    for bag in (plain, many):
        assert abs(expit(bag.logit(new)).mean() - expit(new["a"] - 2).mean()) < 0.02
    assert (plain.logit(new) != many.logit(new)).any()


def test_copies_of_a_positive_row_are_whole_and_on_its_side() -> None:
    """The oracle repeats the rows by hand."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(300, 2)).astype(np.float32), columns=["a", "b"])
    y, inner = (rng.random(300) < 0.2).astype(int), np.arange(300) % 4 == 0
    many = fit_bag(BagSettings("logistic", sampling=Sampling(positives=3)), X, y, inner, seed=0, threads=1)
    sides = [np.repeat(np.flatnonzero(side), np.where(y[side] == 1, 3, 1)) for side in (~inner, inner)]
    by_hand = fit_logistic(X.iloc[sides[0]], y[sides[0]], eval_set=(X.iloc[sides[1]], y[sides[1]]))
    np.testing.assert_allclose(many.logit(X), by_hand.logit(X) - np.log(3), rtol=1e-5, atol=1e-6)


def test_models_are_flushed_to_the_disk_and_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(80, 2)), columns=["a", "b"])
    y = (X["a"] > 0).to_numpy(int)
    line = fit_logistic(X[:60], y[:60], eval_set=(X[60:], y[60:]))
    held = (X[60:], y[60:])
    tree = fit_gbdt("lightgbm", X[:60], y[:60], eval_set=held, params={"rounds": 3}, seed=0, threads=1)
    for write, model, name in ((write_logistic, line, "line.json"), (write_gbdt, tree, "tree.txt")):
        flushed: list[int] = []
        monkeypatch.setattr("dermstack.files.os.fsync", flushed.append)
        write(model, tmp_path / name)  # type: ignore[operator]
        assert len(flushed) == 1
        (tmp_path / name).write_text("before")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr("dermstack.files.os.fsync", full)
        with pytest.raises(OSError, match="No space") as caught:
            write(model, tmp_path / name)  # type: ignore[operator]
        assert caught.value.filename == str(tmp_path / name)
        assert (tmp_path / name).read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.json", "tree.txt"]
