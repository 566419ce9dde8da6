"""Columns without a role through an experiment: config, level 2, fingerprints, bundle and prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import COLUMNS, import_frames, opened_experiment, predictions, write_experiment

from stack.level1.image_runs import level1_runs
from stack.level2.features import FoldFeatures, fold_matrix
from stack.metrics.scores import auc
from stack.predictions.joined import predictions_of, standardised
from stack.settings.level2 import Features
from stack.store import read_run

STACKERS = [{"name": "lr", "kind": "logistic"}]


def _with_columns(folder: Path, **columns: object) -> Path:
    """The imported experiment with a column that tells the target, one of words and one whose name is odd."""
    config = write_experiment(folder, stackers=STACKERS)
    rng = np.random.default_rng(3)
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        y = frame["malignant"].astype(int) if "malignant" in frame else rng.integers(0, 2, len(frame))
        frame["size [mm]"] = (1.5 * y + rng.normal(0, 1, len(frame))).round(4)
        frame["camera"] = rng.choice(["A", "B", "C"], len(frame))
        frame["never used"] = "x"
        frame.to_csv(folder / name, index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"] = COLUMNS | columns
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def _stacked(config: Path, *overrides: str) -> dict[str, object]:
    experiment = opened_experiment(config, *overrides)
    if read_run(experiment.models / "net") is None:
        import_frames(experiment, "net", *predictions(experiment, noise=4.0))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q", *(f"--set={text}" for text in overrides)) == 0
    run = read_run(experiment.models / "lr")
    assert run is not None
    return run.meta


@pytest.mark.usefixtures("without_figures")
def test_level_2_uses_the_named_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _with_columns(tmp_path, numeric=["size*"], categorical="camera")
    features = _stacked(config)["features"]
    assert isinstance(features, list)
    assert {"size [mm]", "camera=A", "camera=B", "camera=C"} <= set(features)
    assert "size [mm]_missing" not in features  # no row lacks it
    experiment = opened_experiment(config)
    runs = {name: read_run(experiment.models / name) for name in ("lr", "net")}
    scores = {name: run.frame("oof").set_index("id")["logit"] for name, run in runs.items() if run}
    y = pd.Series(experiment.target, index=experiment.table.train["id"])
    found = {name: auc(y, score[y.index]) for name, score in scores.items()}
    assert found["lr"] > found["net"] + 0.1, found
    assert run_cli("stack", "-c", str(config)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "columns that nothing uses: 1 (never used)" in said


def test_the_columns_can_be_switched_off_and_a_changed_value_makes_the_stacker_stale(tmp_path: Path) -> None:
    config = _with_columns(tmp_path, numeric="auto", categorical="auto")
    first = _stacked(config)
    assert first == _stacked(config)
    off = _stacked(config, "features.columns=false")
    assert isinstance(off["features"], list)
    assert "size [mm]" not in off["features"]
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train.loc[7, "size [mm]"] = "9.25"
    train.to_csv(tmp_path / "train.csv", index=False)
    assert _stacked(config)["fingerprint"] != first["fingerprint"]


def test_an_experiment_without_such_columns_has_the_fingerprint_that_it_had(tmp_path: Path) -> None:
    assert "columns" not in Features().inputs()
    assert Features(columns=False).inputs()["columns"] is False
    experiment = opened_experiment(write_experiment(tmp_path))
    assert experiment.metadata_fingerprint == experiment.columns_fingerprint([])


def test_two_features_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _with_columns(tmp_path, numeric="size [mm]")
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
        frame.rename(columns={"size [mm]": "net_group_mean"}).to_csv(tmp_path / name, index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"]["numeric"] = ["net_group_mean"]
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "-c", str(config)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "two features of level 2 are named 'net_group_mean'" in said


@pytest.mark.usefixtures("without_figures")
def test_target_words_missing_codes_and_no_group_work_to_the_submission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _with_columns(tmp_path, numeric="auto")
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False).drop(columns="patient")
        frame.loc[::5, "years"] = "999"
        if "malignant" in frame:
            frame["malignant"] = frame["malignant"].map({"1": "malignant", "0": "benign"})
            frame.loc[frame.index[frame["malignant"] == "benign"][0], "malignant"] = "malignnat"
        frame.to_csv(tmp_path / name, index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    del settings["data"]["columns"]["group"]
    settings["data"]["columns"]["target"] = {"column": "malignant", "positive": "malignant"}
    settings["data"]["missing"] = {"age": [999]}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    _stacked(config)
    experiment = opened_experiment(config)
    assert experiment.table.train["age"].isna()[::5].all()
    assert not (experiment.table.train["age"] == 999).any()
    submission = pd.read_csv(experiment.folder / "submission.csv")
    assert list(submission) == ["isic", "malignant"]
    assert submission["malignant"].notna().all()
    for command in (["stack"], ["plan", "--no-measure"], ["eda"], ["audit", "--no-pictures"]):
        assert run_cli(*command, "-c", str(config)) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("each row is a group of its own") == 1, command
        assert said.count("target 'malignnat' (1 row) counts as negative, but looks like 'malignant'") == 1, command


def test_folds_of_a_file_are_used_and_a_file_that_lacks_ids_is_named(tmp_path: Path) -> None:
    config = write_experiment(tmp_path)
    made = opened_experiment(config).folds.frame
    (tmp_path / "oof.csv").write_text(
        made.assign(fold=(made["fold"] + 1) % 3, p=0.5).rename(columns={"id": "isic"}).sample(frac=1, random_state=0)
        .to_csv(index=False),
        encoding="utf-8",
    )  # fmt: skip
    experiment = opened_experiment(config, f"folds.file={tmp_path / 'oof.csv'}")
    np.testing.assert_array_equal(experiment.folds.frame["fold"], (made["fold"] + 1) % 3)
    lines = (tmp_path / "oof.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "oof.csv").write_text("\n".join(lines[:-2]) + "\n", encoding="utf-8")
    with pytest.raises(Exception, match=r"lacks 2 of .* training ids"):
        opened_experiment(config, f"folds.file={tmp_path / 'oof.csv'}")


BLOCKS = {
    "columns": ["size [mm]", "camera=A"],
    "relative": ["size [mm]_group_z", "ratio_group_mean_diff"],
    "relative_site": ["size [mm]_group_site_rank"],
    "outliers": ["table_group_nearest", "table_group_outlier"],
    "cohort_columns": ["size [mm]_cohort_z"],
    "probability_ratio": ["net_group_p_ratio"],
}
ON = {
    "relative": ["z", "mean_diff"], "relative_site": ["rank"], "cohort_columns": True, "probability_ratio": True,
    "derived": {"ratio": "`size [mm]` / (1 + years)"},
}  # fmt: skip


def _rewritten(config: Path, **changes: object) -> Path:
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings.update(changes)
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def test_each_block_of_columns_is_a_switch(tmp_path: Path) -> None:
    config = _rewritten(_with_columns(tmp_path, numeric="size*", categorical="camera"), features=ON)
    fitted = _stacked(config)["features"]
    for switched_off in (None, *BLOCKS):
        off = {} if switched_off is None else {switched_off: [] if "relative" in switched_off else False}
        experiment = opened_experiment(_rewritten(config, features=ON | off))
        level1 = standardised(predictions_of(experiment, level1_runs(experiment)))
        features = list(fold_matrix(experiment, {}, level1, 0).train.columns)
        if switched_off is None:
            assert features == fitted
        for block, columns in BLOCKS.items():
            there = [column for column in columns if column in features]
            assert there == ([] if block == switched_off else columns), (switched_off, block, features)


def test_a_derived_column_is_computed_from_the_csv_and_never_infinite(tmp_path: Path) -> None:
    config = _rewritten(
        _with_columns(tmp_path), features={"derived": {"inverse": "1 / `size [mm]`", "twice": "2 * inverse"}}
    )
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train.loc[[0, 1], "size [mm]"] = ["0", ""]
    train.to_csv(tmp_path / "train.csv", index=False)
    table = opened_experiment(config).table
    assert table.columns.numbers == ["inverse", "twice"]
    made = table.train["inverse"].to_numpy()
    assert np.isnan(made[:2]).all()
    np.testing.assert_allclose(made[2:], 1 / train["size [mm]"][2:].astype(float), rtol=1e-6)
    np.testing.assert_allclose(table.test["twice"], 2 * table.test["inverse"], rtol=1e-6)


@pytest.mark.parametrize(
    ("derived", "words"),
    [
        ({"x": "sizze * 2"}, "no column 'sizze' (features.derived)"),
        ({"x": "__import__('os')"}, "features.derived: x:"),
        ({"x": "camera * 2"}, "column 'camera' holds"),
        ({"years": "`size [mm]` + 1"}, "features.derived: 'years' is a column of"),
        ({"x": "y + 1", "y": "years + 1"}, "features.derived: 'x' uses 'y', which is derived below it: put 'y' above"),
        ({"x": "1 + x"}, "features.derived: 'x' uses itself"),
    ],
)
def test_a_derived_column_that_cannot_be_computed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], derived: dict[str, str], words: str
) -> None:
    config = _rewritten(_with_columns(tmp_path), features={"derived": derived})
    assert run_cli("stack", "-c", str(config)) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("role", ["target", "diagnosis", "source"])
@pytest.mark.parametrize("derived", [{"x": "told + 1"}, {"x": "years + `size [mm]`", "z": "where(told > 0, x, 1)"}])
def test_a_derived_column_cannot_be_made_of_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str, derived: dict[str, str]
) -> None:
    config = _with_columns(tmp_path)
    column = "told"
    for name in ("train.csv", "test.csv"):  # a test csv may have labels too
        frame = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
        frame[column] = frame.get("malignant", "1")
        frame.to_csv(tmp_path / name, index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"][role] = column
    settings["features"] = {"derived": derived}
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    assert run_cli("stack", "-c", str(config)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"uses column 'told', which is mapped as columns.{role} and is no feature" in said


KINDS = ("lightgbm", "xgboost", "catboost", "logistic")


def _with_many_words(folder: Path, **features: object) -> Path:
    """The experiment with a column of 26 words, which tell the target, and a stacker of each kind."""
    config = _with_columns(folder, categorical=["camera", "nurse"])
    rng = np.random.default_rng(4)
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        y = frame["malignant"].astype(int) if "malignant" in frame else rng.integers(0, 2, len(frame))
        frame["nurse"] = [f"n{word}" for word in (12 * y + rng.integers(0, 14, len(frame)))]
        frame.to_csv(folder / name, index=False)
    stackers = [{"name": kind, "kind": kind, "bags": 1, "runs": []} for kind in KINDS]
    for stacker in stackers[:3]:
        stacker["params"] = {"rounds": 40, "learning_rate": 0.1}
    stackers[0]["params"] |= {"min_data_in_leaf": 5, "min_data_per_group": 5}  # there are 140 rows
    return _rewritten(config, stackers=stackers, features=features)


def _features_of(config: Path, *options: str) -> dict[str, list[str]]:
    assert run_cli("stack", "-c", str(config), "-q", *options) == 0
    models = opened_experiment(config).models
    runs = {kind: read_run(models / kind) for kind in KINDS}
    return {kind: list(run.meta["features"]) for kind, run in runs.items() if run}


@pytest.mark.usefixtures("without_figures")
def test_gbdts_take_columns_of_many_words_as_native_categories(tmp_path: Path) -> None:
    config = _with_many_words(tmp_path)
    found = _features_of(config)
    for kind in KINDS:
        one_hot = [name for name in found[kind] if name.startswith("nurse=")]
        assert ("nurse" in found[kind], len(one_hot)) == ((False, 20) if kind == "logistic" else (True, 0))
        assert {"camera=A", "camera=B", "camera=C"} <= set(found[kind])
    experiment = opened_experiment(config)
    y = pd.Series(experiment.target, index=experiment.table.train["id"])
    for kind in ("lightgbm", "xgboost", "catboost"):
        run = read_run(experiment.models / kind)
        assert run is not None
        logit = run.frame("oof").set_index("id")["logit"]
        assert auc(y, logit[y.index]) > 0.75, kind
    page = (experiment.folder / "report.html").read_text(encoding="utf-8")
    assert "native categories" in page


def test_native_categories_are_a_switch_and_a_setting_of_one_stacker(tmp_path: Path) -> None:
    config = _with_many_words(tmp_path, native_categories=False)
    assert all("nurse" not in names and "nurse=n12" in names for names in _features_of(config, "--no-report").values())
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["stackers"][1]["features"] = {"native_categories": True}
    found = _features_of(_rewritten(config, stackers=settings["stackers"]), "--no-report")
    assert {kind for kind, names in found.items() if "nurse" in names} == {"xgboost"}


@pytest.mark.slow
@pytest.mark.parametrize("columns", [300, 2000])
def test_a_wide_table_works(tmp_path: Path, columns: int) -> None:
    config = _with_columns(tmp_path, numeric=["wide*"], categorical=["word*"])
    rng = np.random.default_rng(6)
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
        made = {f"wide [{number}]": rng.normal(size=len(frame)).round(3).astype(str) for number in range(columns - 20)}
        made |= {f"word {number}": rng.integers(0, 30, len(frame)).astype(str) for number in range(20)}
        pd.concat([frame, pd.DataFrame(made)], axis=1).to_csv(tmp_path / name, index=False)
    kinds = KINDS if columns == 300 else ("lightgbm", "logistic")
    stackers = [{"name": kind, "kind": kind, "bags": 1} for kind in kinds]
    for stacker in stackers[:-1]:
        stacker["params"] = {"rounds": 5}
    config = _rewritten(config, stackers=stackers)
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    found = _features_of(config)
    assert all(len(names) > columns for names in found.values())
    assert (experiment.folder / "report.html").stat().st_size < 4e6


def test_features_of_columns_use_no_row_of_another_group(tmp_path: Path) -> None:
    config = _rewritten(_with_columns(tmp_path, numeric="size*", categorical="camera"), features=ON)
    experiment = opened_experiment(config)
    frame = experiment.table.train
    features = FoldFeatures(experiment.config.features, ("net",), seed=0, columns=experiment.table.columns)
    logits = np.random.default_rng(0).normal(size=(len(frame), 1)).astype(np.float32)
    features.fit(frame, logits, {})
    together = features.transform(frame, logits, {})
    for group in frame["group"].unique()[:5]:
        rows = np.flatnonzero(frame["group"] == group)
        alone = features.transform(frame.iloc[rows], logits[rows], {})
        np.testing.assert_array_equal(alone.to_numpy(), together.iloc[rows].to_numpy())
