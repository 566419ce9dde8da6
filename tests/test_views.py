"""The view of each stacker: own features, own runs, models of the table alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import assert_predicts_as_submitted, run_cli, small_config
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from stack.settings.config import read_config
from stack.store import Run, read_run

LINE = {"name": "line", "kind": "logistic"}


def _stack(config: Path, *names: str) -> dict[str, list[str]]:
    """Imports the runs, stacks, and returns the features of each stacker."""
    experiment = opened_experiment(config)
    for seed, name in enumerate(names):
        if read_run(experiment.models / name) is None:
            import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    found = {}
    for stacker in experiment.config.stackers:
        run = read_run(experiment.models / stacker.name)
        assert run is not None
        found[stacker.name] = list(run.meta["features"])
    return found


def test_a_stacker_sees_its_own_features_and_runs(tmp_path: Path) -> None:
    stackers = [
        LINE,
        LINE | {"name": "plain", "features": {"aggregates": False, "metadata": False}},
        LINE | {"name": "one", "runs": ["net_b"], "features": {"cohort": True, "metadata": False}},
        LINE | {"name": "table", "runs": []},
    ]
    found = _stack(write_experiment(tmp_path, stackers=stackers), "net_a", "net_b")
    assert found["plain"] == ["net_a", "net_b"]
    assert found["table"] == [name for name in found["line"] if not name.startswith("net_")]
    assert "net_b_group_z" in found["one"]
    assert not any(name.startswith("net_a") for name in found["one"])
    assert any("cohort" in name for name in found["one"])
    assert not any("cohort" in name for name in found["line"])


def test_a_stacker_is_the_same_to_the_last_bit_whatever_the_others_see(tmp_path: Path) -> None:
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    scores = []
    for folder, stackers in (
        (alone, [LINE]),
        (beside, [LINE, LINE | {"name": "other", "features": {"cohort": True, "aggregates": False}}]),
    ):
        folder.mkdir()
        config = write_experiment(folder, stackers=stackers)
        _stack(config, "net_a", "net_b")
        run = read_run(opened_experiment(config).models / "line")
        assert run is not None
        scores.append(run.frame("oof")["logit"].to_numpy())
    np.testing.assert_array_equal(*scores)


def test_a_new_stacker_leaves_the_others_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_experiment(tmp_path, stackers=[LINE])
    _stack(config, "net_a")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["stackers"].append(LINE | {"name": "other", "features": {"cohort": True}})
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run_cli("stack", "--no-report", "-c", str(config)) == 0
    assert "line: complete, skipped" in capsys.readouterr().out


@pytest.mark.usefixtures("without_figures")
def test_a_table_alone_needs_no_level_1_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stackers = [LINE | {"runs": []}, {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 20}, "runs": []}]
    config = write_experiment(tmp_path, stackers=stackers)
    assert run_cli("stack", "-c", str(config)) == 0
    folder = read_config(config).runs / "elsewhere"
    assert pd.read_csv(folder / "submission.csv")["malignant"].notna().all()
    assert (folder / "report.html").is_file()
    assert run_cli("report", "-c", str(config)) == 0
    assert run_cli("audit", "-c", str(config)) in (0, 1)
    capsys.readouterr()
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "b.zip")) == 0
    assert "no image model, 2 stackers" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("stacker", "words"),
    [
        ({"features": {"agregates": True}}, "did you mean 'aggregates'?"),
        ({"features": {"aligned_z": 99}}, "features.aligned_z is 99, more than the common 16"),
        ({"features": {"logits": "often"}}, "features.logits"),
        ({"runs": ["nett"]}, "no level-1 run fits 'nett' (runs): name one of net_a"),
        (
            {"runs": [], "features": {"metadata": False, "aggregates": False}},
            "stacker line has no feature",
        ),
    ],
)
def test_what_a_view_cannot_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stacker: dict[str, object], words: str
) -> None:
    config = write_experiment(tmp_path, stackers=[LINE, LINE | {"name": "second"}])
    experiment = opened_experiment(config)
    import_frames(experiment, "net_a", *predictions(experiment))
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["stackers"][0] |= stacker
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run_cli("stack", "-c", str(config)) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stackers": [LINE | {"runs": ["nett"]}]}, "no level-1 run fits 'nett'"),
        ({"stackers": [LINE], "blend": {"runs": ["lime"]}}, "blend.runs: no run fits 'lime': name one of net_a, line"),
    ],
)
def test_names_that_fit_no_run_are_refused_before_the_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    config = write_experiment(tmp_path, **change)
    experiment = opened_experiment(config)
    import_frames(experiment, "net_a", *predictions(experiment))
    for command in ("stack", "plan"):
        assert run_cli(command, "-c", str(config)) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (experiment.folder / "audit.json").exists()
    assert not (experiment.models / "line").exists()


def _blend(config: Path, *options: str) -> Run:
    assert run_cli("stack", "--no-report", "-c", str(config), "-q", *options) == 0
    blend = read_run(read_config(config).runs / "elsewhere" / "blend")
    assert blend is not None
    return blend


def test_the_blend_weights_the_runs_that_it_names_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_experiment(tmp_path, stackers=[LINE], blend={"methods": ["rank_mean"], "preselect": False})
    _stack(config, "net_a", "net_b", "other")
    every = _blend(config)
    assert every.meta["runs"] == ["net_a", "net_b", "other", "line"]
    all_scores = every.frame("test")["score"].to_numpy()
    assert _blend(config, "--set", "blend.runs=['*']").meta == every.meta, "all of them by name: the blend stays"
    two = _blend(config, "--set", "blend.runs=['net_?']")
    assert two.meta["weights"] == {"net_a": 0.5, "net_b": 0.5}
    models = [read_run(two.folder.parent / "models" / name) for name in two.meta["runs"]]
    ranks = sum(model.frame("oof")["p"].rank() for model in models if model is not None)
    assert np.corrcoef(two.frame("oof")["rank_mean_nested"], ranks)[0, 1] > 0.98
    assert not np.array_equal(two.frame("test")["score"], all_scores)
    assert _blend(config, "--set", "blend.runs=[line,net_a]").meta["runs"] == ["net_a", "line"]
    capsys.readouterr()
    for command in (["stack"], ["tune", "blend"]):
        assert run_cli(*command, "-c", str(config), "-q", "--set", "blend.runs=[net_a,'deep*']") == 2
        words = " ".join(capsys.readouterr().err.split())
        assert "blend.runs: no run fits 'deep*': name one of net_a, net_b, other, line" in words
    assert run_cli("stack", "-c", str(config), "-q", "--set", "blend.runs=[]") == 2
    assert "blend.runs" in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_near_copies_are_told_with_what_leaving_them_out_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path, stackers=[])
    experiment = opened_experiment(config)
    oof, test = predictions(experiment)
    import_frames(experiment, "net_a", oof, test)
    import_frames(experiment, "other", *predictions(experiment, seed=1))
    shift = np.random.default_rng(0).uniform(-0.02, 0.02, len(oof))
    import_frames(experiment, "net_c", oof.assign(p=np.clip(oof["p"] + shift, 0.001, 0.999)), test)
    assert run_cli("stack", "-c", str(config)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "near copies by rank correlation: net_a, net_c (≥ 0.99" in told
    assert "(`blend.runs` selects runs)" in told
    assert "near copies by rank correlation: net_a, net_c" in (experiment.folder / "report.html").read_text()
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    assert blend.meta["near_copies"]["groups"][0]["runs"] == ["net_a", "net_c"]
    assert blend.meta["near_copies"]["change"]["low"] <= 0 <= blend.meta["near_copies"]["change"]["high"]
    assert not (experiment.folder / "blend_fits").exists()


@pytest.mark.slow
def test_a_bundle_of_stackers_with_views_gives_the_scores_of_the_submission(small_data: Path, tmp_path: Path) -> None:
    stackers = [
        LINE,
        LINE | {"name": "own", "features": {"cohort": True, "metadata": False, "aligned_z": 2}, "runs": ["tiny"]},
        {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 20}, "runs": []},
        {"name": "boost", "kind": "xgboost", "params": {"rounds": 20}, "features": {"columns": True}},
        {"name": "cat", "kind": "catboost", "params": {"rounds": 20}, "bags": 1, "runs": []},
        LINE | {"name": "upper", "runs": ["tiny", "gbdt"]},
        {"name": "top", "kind": "xgboost", "params": {"rounds": 20}, "runs": ["cat", "gbdt"]},
    ]
    config = small_config(small_data, tmp_path, stackers=stackers)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    rng = np.random.default_rng(5)
    for name in ("train", "test"):
        frame = pd.read_csv(small_data / f"{name}.csv", dtype=str, keep_default_na=False)
        frame["µ [mm]"] = rng.normal(size=len(frame)).round(3)
        frame["camera"] = rng.choice(["A", "B", ""], len(frame))
        words = 30 if name == "train" else 40  # some words are in test only
        frame['device, "kind"'] = rng.choice(["", *(f"d{word} [é]" for word in range(words))], len(frame))
        settings["data"][name] = str(tmp_path / f"{name}.csv")
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    settings["data"]["columns"] |= {"numeric": "auto", "categorical": "auto"}
    settings["blend"] = {**settings.get("blend", {}), "runs": ["own", "[gb]*"]}
    config.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    for stacker in stackers:
        run = read_run(tmp_path / "runs" / "small" / "models" / str(stacker["name"]))
        assert run is not None
        assert ('device, "kind"' in run.meta["features"]) == (stacker["kind"] != "logistic")
    arguments = assert_predicts_as_submitted(config, small_data / "images", tmp_path / "test.csv")
    assert run_cli("predict", *arguments, "-q") == 0  # without a table: every further column is missing
