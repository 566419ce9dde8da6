"""Classifiers of scikit-learn as stackers: what is imported, fitted, calibrated, and never written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from scipy.special import expit
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score

from dermstack.errors import TabularError
from stack.store import read_run
from tabular.estimators import estimator_class, fit_estimator, make_estimator
from tabular.fit_bag import BagSettings, Sampling, fit_bag
from tabular.models import read_bag, write_bag

TREES, FEW = "sklearn.ensemble.ExtraTreesClassifier", {"n_estimators": 30, "min_samples_leaf": 5}
PATHS = [
    (TREES, FEW),
    ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 30}),
    ("sklearn.ensemble.AdaBoostClassifier", {"n_estimators": 20}),
    ("sklearn.neural_network.MLPClassifier", {"hidden_layer_sizes": [8], "learning_rate_init": 0.02, "max_iter": 60}),
    ("sklearn.neighbors.KNeighborsClassifier", {"n_neighbors": 25}),
    ("sklearn.naive_bayes.GaussianNB", {}),
    ("sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis", {"reg_param": 0.1}),
    ("sklearn.linear_model.LogisticRegressionCV", {}),
]


def rows(n: int, seed: int, *, scale: float = 1.0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 4)).astype(np.float32), columns=["a [mm]", "b", "c", "d"])
    y = (rng.random(n) < expit(2 * X["a [mm]"] + X["b"] - 1)).astype(np.int8)
    return X.mask(rng.random(X.shape) < 0.1).assign(empty=np.float32("nan")) * np.float32(scale), y


def fit(path: str, params: dict[str, object], *, seed: int = 0, threads: int = 1, scale: float = 1.0, **more: float):
    return fit_estimator(
        path, *rows(800, 0, scale=scale), eval_set=rows(400, 1, scale=scale), params=params, seed=seed, threads=threads,
        **more,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("path", "params"), PATHS)
def test_a_classifier_ranks_new_rows_with_missing_values_and_its_logits_are_calibrated(
    path: str, params: dict[str, object]
) -> None:
    X, y = rows(3000, 2)
    made = fit(path, params).logit(X)
    assert made.dtype == np.float32
    assert roc_auc_score(y, made) > 0.8
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 1.01)):
        inside = (expit(made) >= low) & (expit(made) < high)
        assert abs(expit(made[inside]).mean() - y[inside].mean()) < 0.12, (low, high)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_logits_and_another_gives_others(threads: int) -> None:
    X, _ = rows(500, 3)
    first, again, other = (fit(TREES, FEW, seed=seed, threads=threads).logit(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_refit_uses_all_rows_and_the_slope_only_those_of_the_other_groups() -> None:
    (X, y), (inner, target), (new, _) = (
        (frame.drop(columns="empty"), target) for frame, target in (rows(800, 0), rows(400, 1), rows(300, 2))
    )
    made = fit_estimator(TREES, X, y, eval_set=(inner, target), params=FEW, seed=0, threads=1)
    oracle = ExtraTreesClassifier(**FEW, random_state=0).fit(
        np.concatenate([X.to_numpy(), inner.to_numpy()]), np.concatenate([y, target])
    )
    p = oracle.predict_proba(new.to_numpy())[:, 1]
    assert (np.diff(made.logit(new)[np.argsort(p)]) >= 0).all()
    assert len(np.unique(made.logit(new))) > 250
    turned = fit_estimator(TREES, X, y, eval_set=(inner, 1 - target), params=FEW, seed=0, threads=1)
    assert 0 < turned.slope < 0.02 < made.slope  # an order that is wrong on the inner rows is not turned round


def test_scale_does_not_matter_where_the_classifier_needs_scaling() -> None:
    for path in ("sklearn.neighbors.KNeighborsClassifier", "sklearn.linear_model.LogisticRegression"):
        one, large = (fit(path, {}, scale=scale).logit(rows(200, 2, scale=scale)[0]) for scale in (1.0, 1024.0))
        np.testing.assert_allclose(one, large, atol=1e-3)


def test_the_weight_of_positives_moves_the_odds_and_a_bag_takes_it_back() -> None:
    X, y = rows(3000, 2)
    assert np.mean(fit(TREES, FEW, positive_weight=8).logit(X) - fit(TREES, FEW).logit(X)) > 1.0
    bag = fit_bag(
        BagSettings("sklearn", FEW, bags=2, estimator=TREES, sampling=Sampling(negatives=0.5, positive_weight=8)),
        X,
        y,
        np.arange(3000) % 5 == 0,
        seed=0,
        threads=1,
    )
    new, target = rows(3000, 4)
    assert abs(expit(bag.logit(new)).mean() - target.mean()) < 0.05
    with pytest.raises(TabularError, match="takes no weights"):
        fit("sklearn.neighbors.KNeighborsClassifier", {}, positive_weight=2)


def test_a_classifier_without_random_numbers_is_fitted_once(tmp_path: Path) -> None:
    X, y = rows(400, 0)
    made = {
        path: fit_bag(
            BagSettings("sklearn", bags=3, estimator=path, sampling=Sampling(negatives=negatives)), X, y,
            np.arange(400) % 5 == 0, seed=0, threads=1,
        )
        for path, negatives in (
            ("sklearn.naive_bayes.GaussianNB", 1.0), ("sklearn.tree.ExtraTreeClassifier", 1.0),
            ("sklearn.neighbors.KNeighborsClassifier", 0.8),
        )
    }  # fmt: skip
    assert [len(bag.models) for bag in made.values()] == [1, 3, 3]
    bag = made["sklearn.naive_bayes.GaussianNB"]
    assert write_bag(bag, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TabularError, match="not kept on disk"):
        read_bag("sklearn", tmp_path, shift=0.0)
    with pytest.raises(TabularError, match="no exact contributions"):
        bag.contributions(X)
    with pytest.raises(TabularError, match="not those of the fit"):
        bag.logit(X[["b", "a [mm]", "c", "d", "empty"]])
    assert bag.logit(X.iloc[:0]).shape == (0,)


def test_nothing_outside_scikit_learn_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for path in (
        "evil.C", "os.system", "sklearnx.C", "sklearn", "sklearn.", "sklearn..svm.SVC", "sklearn.svm.nothing",
        "sklearn.base.warnings", "sklearn.ensemble._forest.np", "sklearn.utils.Bunch", "sklearn.base.clone",
        "sklearn.os.system", "sklearn.nothing.C", "sklearn.svm.SVC()", "sklearn.joblib.load",
    ):  # fmt: skip
        with pytest.raises(TabularError, match="scikit-learn"):
            estimator_class(path)
    assert not (tmp_path / "ran").exists()
    planted = type("Planted", (ExtraTreesClassifier,), {"__module__": "elsewhere"})
    monkeypatch.setattr("sklearn.svm.Planted", planted, raising=False)
    with pytest.raises(TabularError, match="not a classifier of scikit-learn"):
        estimator_class("sklearn.svm.Planted")


@pytest.mark.parametrize(
    ("path", "params", "words"),
    [
        ("sklearn.semi_supervised.SelfTrainingClassifier", {}, "needs another estimator"),
        (TREES, {"n_estimater": 3}, "no parameter 'n_estimater': did you mean 'n_estimators'"),
        (TREES, {"n_jobs": 3}, "n_jobs is set from the config's key `threads`"),
        (TREES, {"random_state": 3}, "random_state is set from the config's key `seed`"),
        ("sklearn.linear_model.RidgeClassifier", {}, "no classifier with predict_proba"),
        ("sklearn.linear_model.Ridge", {}, "no classifier with predict_proba"),
        ("sklearn.ensemble.VotingClassifier", {}, "needs another estimator"),
    ],
)
def test_what_cannot_be_made_is_named(path: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(TabularError, match=words):
        make_estimator(path, params, seed=0, threads=1)


@pytest.mark.parametrize(
    ("path", "params", "words"),
    [
        ("sklearn.neighbors.KNeighborsClassifier", {"n_neighbors": 10_000}, "cannot predict 100 rows .*n_neighbors"),
        ("sklearn.neighbors.RadiusNeighborsClassifier", {"radius": 1e-6}, "cannot predict 100 rows .*No neighbors"),
        ("sklearn.semi_supervised.LabelPropagation", {"gamma": 1e6}, "has no probability for [0-9]+ of 100 rows"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_classifier_that_cannot_predict_is_named(path: str, params: dict[str, object], words: str) -> None:
    X, y = rows(400, 0)
    with pytest.raises(TabularError, match=words):
        fit_estimator(path, X, y, eval_set=rows(100, 1), params=params, seed=0, threads=1)


def test_a_value_that_scikit_learn_refuses_is_named() -> None:
    with pytest.raises(TabularError, match="'n_estimators' parameter of ExtraTreesClassifier must be"):
        fit(TREES, {"n_estimators": -3})
    X, y = rows(50, 0)
    with pytest.raises(TabularError, match="one class only"):
        fit_estimator(TREES, X, y * 0, eval_set=(X, y), params=FEW, seed=0, threads=1)


STACKER = {"name": "trees", "kind": "sklearn", "estimator": TREES, "params": FEW, "bags": 2}


def test_a_stack_with_a_classifier_of_scikit_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_experiment(tmp_path, stackers=[STACKER, {"name": "line", "kind": "logistic"}])
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "--no-report", "-c", str(config)) == 0
    run = read_run(experiment.models / "trees")
    assert run is not None
    assert (
        roc_auc_score(experiment.target, run.frame("oof").set_index("id")["logit"][experiment.table.train["id"]]) > 0.7
    )
    assert not [path for path in experiment.folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")]
    assert run_cli("report", "-c", str(config)) == 0
    assert run_cli("stack", "--no-report", "-c", str(config), "--set", "n_jobs=2") == 0
    assert "trees: complete, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"estimator": ""}, "kind sklearn needs `estimator`"),
        ({"kind": "logistic", "params": {}}, "`estimator` is for kind sklearn"),
        ({"monotone": True}, "are for GBDTs"),
        ({"estimator": "os.path.join"}, "is not of scikit-learn"),
        ({"params": {"max_dept": 3}}, "did you mean 'max_depth'"),
    ],
)
def test_a_faulty_setting_is_named_before_anything_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], words: str
) -> None:
    config = write_experiment(tmp_path, stackers=[STACKER | change])
    if "estimator" not in change or change["estimator"]:
        experiment = opened_experiment(config) if "kind" not in change and "monotone" not in change else None
        if experiment is not None:
            import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "-c", str(config)) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_bundle_refuses_it_by_name(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(small_data, tmp_path, stackers=[{"name": "line", "kind": "logistic"}, STACKER])
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "b.zip")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "trees: sklearn.ensemble.ExtraTreesClassifier cannot be bundled" in said
    assert "pickles, which run code" in said
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["stackers"][1]["enabled"] = False
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "b.zip"), "-q") == 0
