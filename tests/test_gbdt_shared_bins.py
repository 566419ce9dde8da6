"""Models that share binned features are, to the last byte, what the library fits to the same rows by itself."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from numpy.typing import NDArray

from tabular.fit_bag import BagSettings, Sampling, fit_bag
from tabular.gbdt import fit_gbdts
from tabular.gbdt_libraries import FIXED_PARAMS, LIBRARIES, gbdt_settings, library_names

KINDS = ("lightgbm", "xgboost", "catboost")
PARAMS = {"rounds": 40, "patience": 5, "learning_rate": 0.1}
SEEDS = (3, 4, 5)
Floats = NDArray[np.float32]


def rows(n: int, seed: int) -> tuple[pd.DataFrame, Floats]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[rng.random((n, 4)) < 0.1] = np.nan
    y = (rng.random(n) < 1 / (1 + np.exp(1 - np.nan_to_num(x[:, 0])))).astype(np.float32)
    return pd.DataFrame(x, columns=["a b", "c", "d", "e"]).assign(word=rng.integers(0, 30, n).astype(float)), y


def plain_fit(
    kind: str, X: pd.DataFrame, y: Floats, stop: tuple[pd.DataFrame, Floats], seed: int, weight: float
) -> Any:
    """The library's own early stopping with the first seed, then a fit to all rows with its number of rounds."""
    settings = gbdt_settings(kind, PARAMS)
    rounds, patience = int(settings.pop("rounds")), int(settings.pop("patience"))
    params: dict[str, Any] = {**settings, **FIXED_PARAMS[kind]}
    names = library_names(tuple(X))

    def values(frame: pd.DataFrame) -> Floats:
        return np.ascontiguousarray(frame.to_numpy(np.float32))

    def weights(targets: Floats) -> Floats | None:
        return None if weight == 1 else np.where(targets == 1, np.float32(weight), np.float32(1))

    both, targets = pd.concat([X, stop[0]]), np.concatenate([y, stop[1]])
    if kind == "lightgbm":
        params |= {"seed": SEEDS[0], "nthread": 1}

        def data(frame: pd.DataFrame, labels: Floats, **more: Any) -> Any:
            return lightgbm.Dataset(values(frame), labels, weight=weights(labels), **more)

        fitted, early = data(X, y, feature_name=names), lightgbm.early_stopping(patience, verbose=False)
        held = data(*stop, reference=fitted)
        best = lightgbm.train(dict(params), fitted, rounds, valid_sets=[held], callbacks=[early]).best_iteration
        return lightgbm.train(params | {"seed": seed}, data(both, targets, feature_name=names), best)
    if kind == "xgboost":
        params |= {"seed": SEEDS[0], "nthread": 1}

        def matrix(frame: pd.DataFrame, labels: Floats) -> Any:
            return xgboost.DMatrix(values(frame), labels, weight=weights(labels), feature_names=names, nthread=1)

        evals = [(matrix(*stop), "stop")]
        found = xgboost.train(
            params, matrix(X, y), rounds, evals=evals, early_stopping_rounds=patience, verbose_eval=False
        )
        return xgboost.train(params | {"seed": seed}, matrix(both, targets), found.best_iteration + 1)
    catboost = pytest.importorskip("catboost")
    params |= {"random_seed": SEEDS[0], "thread_count": 1}

    def pool(frame: pd.DataFrame, labels: Floats) -> Any:
        return catboost.Pool(values(frame), labels, weight=weights(labels), feature_names=names)

    first = catboost.CatBoost(params | {"iterations": rounds})
    first.fit(pool(X, y), eval_set=pool(*stop), early_stopping_rounds=patience, use_best_model=True)
    last = catboost.CatBoost(params | {"random_seed": seed, "iterations": first.tree_count_})
    return last.fit(pool(both, targets))


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_model_is_what_the_library_fits_alone(kind: str, weight: float) -> None:
    X, y = rows(900, 0)
    stop = rows(300, 1)
    made = fit_gbdts(kind, X, y, eval_set=stop, params=PARAMS, seeds=SEEDS, threads=1, positive_weight=weight)
    dump = LIBRARIES[kind].dump
    assert [dump(model.booster) for model in made] == [
        dump(plain_fit(kind, X, y, stop, seed, weight)) for seed in SEEDS
    ]
    assert len({dump(model.booster) for model in made}) == len(SEEDS), "each seed has its own model"


@pytest.mark.parametrize("kind", KINDS)
def test_with_categories_and_a_constraint_a_shared_model_is_one_of_its_own(kind: str) -> None:
    X, y = rows(900, 2)
    options: dict[str, Any] = {
        "eval_set": rows(300, 3), "params": PARAMS, "threads": 1, "categorical": ["word"], "increasing": ["c"],
    }  # fmt: skip
    dump = LIBRARIES[kind].dump
    together = fit_gbdts(kind, X, y, seeds=SEEDS, **options)
    found = fit_gbdts(kind, X, y, seeds=SEEDS[:1], **options)[0].rounds
    (more, labels), every = options["eval_set"], options | {"eval_set": None, "params": PARAMS | {"rounds": found}}
    both = pd.concat([X, more]), np.concatenate([y, labels])
    alone = [fit_gbdts(kind, *both, seeds=(seed,), **every)[0] for seed in SEEDS]
    assert [dump(model.booster) for model in together] == [dump(model.booster) for model in alone]


def test_where_the_bins_depend_on_the_seed_each_model_has_its_own() -> None:
    """LightGBM bins a sample that it draws by the seed where there are more than 200,000 rows."""
    most = LIBRARIES["lightgbm"].most_shared
    X, y = rows(most + 20_000, 4)
    X = X[["c"]]
    params = {"rounds": 3}
    made = fit_gbdts("lightgbm", X, y, eval_set=None, params=params, seeds=(0, 1), threads=1)
    settings: dict[str, Any] = {**gbdt_settings("lightgbm", params), **FIXED_PARAMS["lightgbm"], "nthread": 1}
    for name in ("rounds", "patience"):
        settings.pop(name)
    for seed, model in enumerate(made):
        data = lightgbm.Dataset(X.to_numpy(np.float32), y, feature_name=["c"])
        alone = lightgbm.train({**settings, "seed": seed}, data, 3)
        assert LIBRARIES["lightgbm"].dump(model.booster) == LIBRARIES["lightgbm"].dump(alone)


@pytest.mark.parametrize("draw", [{}, {"negatives": 0.5}, {"positives": 2.5}, {"positives": 2.0}])
def test_a_bag_is_the_models_of_its_seeds(draw: dict[str, float]) -> None:
    """A model of a bag does not depend on how many others are fitted with it."""
    X, y = rows(600, 5)
    inner = np.arange(len(y)) % 4 == 0
    dump, bags = LIBRARIES["lightgbm"].dump, []
    for count in (1, 3):
        settings = BagSettings("lightgbm", PARAMS, bags=count, sampling=Sampling(**draw))
        bag = fit_bag(settings, X, y, inner, seed=7, threads=1)
        bags.append([dump(model.booster) for model in bag.models])  # type: ignore[union-attr]
    assert bags[1][0] == bags[0][0]
    assert len(set(bags[1])) == 3
