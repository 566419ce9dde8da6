"""Nested target encoding and selection of columns: no row's own group enters its value, and noise stays noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import assert_predicts_as_submitted, run_cli, small_config
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from dermstack.errors import TabularError
from stack.level2.features import early_stopping_rows, encoding_parts
from stack.store import read_run
from tabular.fit_bag import BagSettings, ColumnRoles, fit_bag, strongest_columns
from tabular.models import ENCODING_FILE, read_bag, write_bag
from tabular.target_encoding import INNER, SMOOTHING, encoding_from_json, fit_target_encoding

QUICK = {"lightgbm": {"rounds": 60, "patience": 20, "learning_rate": 0.1}, "logistic": {}}
each = pytest.mark.parametrize("kind", sorted(QUICK))


def grouped(n: int, words: int, seed: int, *, effect: float = 0.0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Codes, targets and the part of each row: groups of 4 rows in five parts, the last of which is set aside."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) // 4
    code = rng.integers(0, words, n)
    of_word = np.random.default_rng(99).normal(0, effect, words)
    x = rng.normal(size=n)
    y = (rng.random(n) < expit(of_word[code] + 0.7 * x - 1.5)).astype(int)
    parts = np.random.default_rng(1).integers(0, 5, group.max() + 1)[group]
    return pd.DataFrame({"x": x, "w": code}).astype(np.float32), y, np.where(parts == 4, INNER, parts)


def test_each_row_is_encoded_from_the_rows_of_other_parts_by_a_loop() -> None:
    X, y, parts = grouped(300, 30, 0)
    X.loc[::11, "w"] = np.nan
    made, encoding = fit_target_encoding(X, y, parts, ["w", "absent"])
    prior = y.mean()
    assert encoding.prior == pytest.approx(logit(prior))
    for row in range(300):
        others = [
            at for at in range(300)
            if X["w"][at] == X["w"][row] and parts[at] != parts[row] and parts[at] != INNER
        ]  # fmt: skip
        positives = y[others].sum()
        share = (positives + SMOOTHING * prior) / (len(others) + SMOOTHING)
        assert made["w"][row] == pytest.approx(logit(share), abs=1e-5), row
    np.testing.assert_array_equal(made["x"], X["x"])
    new = encoding(pd.DataFrame({"x": [0.0] * 4, "w": [3.0, 29.0, np.nan, 77.0]}, dtype=np.float32))["w"]
    for place, code in enumerate((3, 29)):
        rows = X["w"] == code
        share = (y[rows].sum() + SMOOTHING * prior) / (rows.sum() + SMOOTHING)
        assert new[place] == pytest.approx(logit(share), abs=1e-5)
    assert new[2] == new[3] == pytest.approx(encoding.prior)


def test_the_targets_of_a_part_change_only_the_prevalence_in_its_own_rows() -> None:
    """With the prevalence kept, other targets in one part leave the values of its rows, and those set aside theirs."""
    X, y, parts = grouped(800, 40, 0)
    before = fit_target_encoding(X, y, parts, ["w"])[0]["w"].to_numpy()
    for part in (0, 2, INNER):
        own = parts == part
        turned = y.copy()
        turned[own] = np.random.default_rng(3).permutation(y[own])
        after = fit_target_encoding(X, turned, parts, ["w"])[0]["w"].to_numpy()
        np.testing.assert_array_equal(after[own], before[own])
        assert (after != before).any() == (part != INNER)  # rows set aside enter no other training row


@each
def test_words_without_an_effect_leave_auc_one_half(kind: str) -> None:
    """300 words in 1,500 rows; the naive encoding by all rows, which the oracle uses, is far from it."""
    found = []
    for seed in range(3):
        X, y, parts = grouped(3000, 300, seed)
        y = np.random.default_rng(seed + 50).permutation(y)
        words = X[["w"]]
        bag = fit_bag(
            BagSettings(kind, QUICK[kind], columns=ColumnRoles(encoded=["w"])),
            words[:1500],
            y[:1500],
            parts[:1500] == INNER,
            seed=0,
            threads=1,
            parts=parts[:1500],
        )
        found.append(roc_auc_score(y[1500:], bag.logit(words[1500:])))
        naive = fit_target_encoding(words[:1500], y[:1500], parts[:1500], ["w"])[1](words[:1500])["w"]
        assert roc_auc_score(y[:1500], naive) > 0.7
    assert abs(np.mean(found) - 0.5) < 0.03


@each
def test_noise_words_do_not_drown_a_true_column_and_true_words_help(kind: str) -> None:
    for effect, least in ((0.0, -0.02), (1.5, 0.05)):
        X, y, parts = grouped(6000, 300, 4, effect=effect)
        scores = []
        for columns in (["x"], ["x", "w"]):
            bag = fit_bag(
                BagSettings(kind, QUICK[kind], columns=ColumnRoles(encoded=["w"])),
                X[:3000][columns],
                y[:3000],
                parts[:3000] == INNER,
                seed=0,
                threads=1,
                parts=parts[:3000],
            )
            scores.append(roc_auc_score(y[3000:], bag.logit(X[3000:][columns])))
        assert scores[1] - scores[0] > least, (effect, scores)


@each
def test_a_bag_with_an_encoding_is_written_and_read(kind: str, tmp_path: Path) -> None:
    X, y, parts = grouped(600, 30, 0, effect=1.0)
    bag = fit_bag(
        BagSettings(kind, QUICK[kind], bags=2, columns=ColumnRoles(encoded=["w"])),
        X,
        y,
        parts == INNER,
        seed=0,
        threads=1,
        parts=parts,
    )
    assert [path.name for path in write_bag(bag, tmp_path)][-1] == ENCODING_FILE
    again = read_bag(kind, tmp_path, shift=bag.shift)
    np.testing.assert_array_equal(again.logit(X), bag.logit(X))
    added, bias = again.contributions(X)
    np.testing.assert_allclose(added.sum(axis=1) + bias, bag.logit(X), atol=1e-4)
    state = json.loads((tmp_path / ENCODING_FILE).read_text())
    (tmp_path / ENCODING_FILE).write_text(json.dumps(state | {"values": {"other": [0.0]}}))
    with pytest.raises(TabularError, match="encodes 'other'"):
        read_bag(kind, tmp_path, shift=bag.shift)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"prior": 0, "values": 3}',
        '{"prior": NaN, "values": {}}',
        '{"prior": 0, "values": {"w": [[1]]}}',
    ],
)
def test_what_is_no_encoding_says_so(text: str) -> None:
    with pytest.raises(TabularError, match=r"file\.json is not a target encoding"):
        encoding_from_json(text, "file.json")


def test_selection_keeps_the_columns_that_tell_the_target_and_never_sees_the_rows_set_aside() -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(1500, 200)), columns=[f"noise {n}" for n in range(200)]).astype(np.float32)
    X.insert(100, "true [a]", rng.normal(size=1500).astype(np.float32))
    X.insert(7, "true b", rng.normal(size=1500).astype(np.float32))
    y = (rng.random(1500) < expit(X["true [a]"] + X["true b"] - 1)).astype(int)
    kept = strongest_columns(X, y, 10, (), seed=0, threads=1)
    assert len(kept) == 10
    assert {"true [a]", "true b"} <= set(kept)
    assert kept == [name for name in X if name in kept]
    inner = np.arange(1500) % 5 == 0
    ten, all_of_them = (BagSettings("lightgbm", QUICK["lightgbm"], select=most) for most in (10, 500))
    bag = fit_bag(ten, X, y, inner, seed=0, threads=1)
    other = fit_bag(ten, X, np.where(inner, 1 - y, y), inner, seed=0, threads=1)
    assert bag.columns == other.columns
    assert len(bag.columns) == 10
    assert fit_bag(all_of_them, X, y, inner, seed=0, threads=1).columns == tuple(X)
    assert strongest_columns(X[["noise 1"]] * 0, y, 1, (), seed=0, threads=1) == ["noise 1"]


@each
def test_columns_selected_among_noise_leave_auc_one_half(kind: str) -> None:
    """Selected on all rows, the oracle, the same ten columns order the held-out rows."""
    honest, cheating = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = pd.DataFrame(rng.normal(size=(800, 300)), columns=[f"n{n}" for n in range(300)]).astype(np.float32)
        y, inner = (rng.random(800) < 0.3).astype(int), np.arange(400) % 5 == 0
        bag = fit_bag(BagSettings(kind, QUICK[kind], select=10), X[:400], y[:400], inner, seed=0, threads=1)
        honest.append(roc_auc_score(y[400:], bag.logit(X[400:][list(bag.columns)])))
        seen = X[strongest_columns(X, y, 10, (), seed=0, threads=1)]
        bag = fit_bag(BagSettings(kind, QUICK[kind]), seen[:400], y[:400], inner, seed=0, threads=1)
        cheating.append(roc_auc_score(y[400:], bag.logit(seen[400:])))
    assert abs(np.mean(honest) - 0.5) < 0.05
    assert np.mean(cheating) > 0.55


STACKERS = [
    {"name": "line", "kind": "logistic", "runs": []},
    {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 20}, "bags": 1, "select": 4},
]


def _with_words(folder: Path, **changes: object) -> Path:
    config = write_experiment(folder, features={"target_encoding": True}, stackers=STACKERS, **changes)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"]["categorical"] = ["nurse"]
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    rng = np.random.default_rng(4)
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        frame["nurse"] = [f"n{word}" for word in rng.integers(0, 30, len(frame))]
        frame.to_csv(folder / name, index=False)
    return config


def test_a_stack_encodes_targets_within_the_fold_and_selects_columns(tmp_path: Path) -> None:
    config = _with_words(tmp_path)
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    runs = {name: read_run(experiment.models / name) for name in ("line", "gbdt")}
    assert runs["line"] is not None
    assert runs["gbdt"] is not None
    assert "nurse" in runs["line"].meta["features"]
    assert not [name for name in runs["line"].meta["features"] if name.startswith("nurse=")]
    assert len(runs["gbdt"].meta["features"]) <= 4
    fold = experiment.folds.frame["fold"].to_numpy()
    words = experiment.table.train["nurse"]
    for number in range(3):
        kept = experiment.models / "line" / f"fold_{number}"
        bag = read_bag("logistic", kept, shift=0.0)
        assert bag.encoding is not None
        # the encoding of the stored models, by hand: rows of the other folds only
        y = experiment.target[fold != number]
        found, prior = {}, y.mean()
        for word in words[fold != number].unique():
            rows = (words[fold != number] == word).to_numpy()
            found[word] = logit((y[rows].sum() + SMOOTHING * prior) / (rows.sum() + SMOOTHING))
        np.testing.assert_allclose(sorted(bag.encoding.values["nurse"]), sorted(found.values()), atol=1e-5)


def test_parts_hold_whole_split_groups_and_the_rows_set_aside(tmp_path: Path) -> None:
    experiment = opened_experiment(_with_words(tmp_path))
    rows = np.flatnonzero(experiment.folds.frame["fold"] != 0)
    inner = early_stopping_rows(experiment, rows)
    parts = encoding_parts(experiment, rows, inner)
    np.testing.assert_array_equal(parts == INNER, inner)
    assert set(parts) == {INNER, 0, 1, 2, 3, 4}
    assert (pd.Series(parts).groupby(experiment.split_group[rows]).nunique() == 1).all()


@pytest.mark.slow
def test_a_bundle_gives_the_scores_of_the_submission(small_data: Path, tmp_path: Path) -> None:
    stackers = [*STACKERS, {"name": "boost", "kind": "xgboost", "params": {"rounds": 20}, "bags": 2}]
    config = small_config(small_data, tmp_path, stackers=stackers, features={"target_encoding": True})
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"]["categorical"] = "auto"
    rng = np.random.default_rng(5)
    for name in ("train", "test"):
        frame = pd.read_csv(small_data / f"{name}.csv", dtype=str, keep_default_na=False)
        words = 30 if name == "train" else 40
        frame['device, "kind"'] = rng.choice(["", *(f"d{word} [é]" for word in range(words))], len(frame))
        settings["data"][name] = str(tmp_path / f"{name}.csv")
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    config.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    assert_predicts_as_submitted(config, small_data / "images", tmp_path / "test.csv")
