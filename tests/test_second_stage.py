"""Stackers that see models of the table alone: what they see, when they are fitted, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_cli
from fuzz_seeds_runs import manifest
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from pydantic import ValidationError

from dermstack.errors import StoreError
from dermstack.serve.manifest import Manifest
from stack.console import Out
from stack.experiment import Experiment
from stack.level1.image_runs import level1_runs
from stack.level2.features import fold_matrix
from stack.level2.importance import importance
from stack.level2.probes import _stored_bag, _with_rows_alone, make_probes
from stack.metrics.scores import auc
from stack.plan.steps import make_plan
from stack.predictions.joined import net_scales, predictions_of, standardised, stored_scales
from stack.store import Run, read_run
from stack.tune.run import tune_gbdt

TABLE = {"name": "table", "kind": "lightgbm", "params": {"rounds": 20, "patience": 5}, "bags": 1, "runs": []}
UPPER = {"name": "upper", "kind": "logistic", "runs": ["table", "net_a"]}
PLAIN = {"name": "plain", "kind": "logistic"}


def _experiment(folder: Path, *stackers: dict[str, object], **changes: object) -> Experiment:
    experiment = opened_experiment(write_experiment(folder, stackers=list(stackers), **changes))
    for seed, name in enumerate(("net_a", "net_b")):
        if read_run(experiment.models / name) is None:
            import_frames(experiment, name, *predictions(experiment, seed=seed))
    return experiment


def _stack(experiment: Experiment, *, report: bool = False) -> None:
    options = [] if report else ["--no-report"]
    assert run_cli("stack", "-c", str(experiment.config_path), "-q", *options) == 0


def _run(experiment: Experiment, name: str) -> Run:
    run = read_run(experiment.models / name)
    assert run is not None
    return run


def _changed(experiment: Experiment, **changes: object) -> Experiment:
    """The experiment with changes to the first stacker of its config."""
    path = experiment.config_path
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["stackers"][0] |= changes
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return opened_experiment(path)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A finished experiment of both stages, and stackers that see no other."""
    pattern = {**PLAIN, "name": "pattern", "runs": ["*"]}
    experiment = _experiment(tmp_path_factory.mktemp("stages"), UPPER, TABLE, PLAIN, pattern)
    _stack(experiment)
    return experiment


@pytest.fixture
def copied(stacked: Experiment, tmp_path: Path) -> Experiment:
    """The same in a folder that a test may change."""
    folder = stacked.config_path.parent
    return opened_experiment(shutil.copytree(folder, tmp_path / "copy") / stacked.config_path.name)


def test_a_stacker_sees_a_model_of_the_table_that_it_names_as_it_sees_a_network(stacked: Experiment) -> None:
    experiment = stacked
    made = {name: _run(experiment, name).meta["features"] for name in ("upper", "table", "plain", "pattern")}
    ends = {name.removeprefix("net_a") for name in made["upper"] if name.startswith("net_a")}
    assert len(ends) > 4
    assert {name.removeprefix("table") for name in made["upper"] if name.startswith("table")} == ends
    assert not any(name.startswith("net_b") for name in made["upper"])
    for other in ("table", "plain", "pattern"):  # no name, no change: also where a pattern would fit
        assert not any(name.startswith("table") for name in made[other])
    assert made["pattern"] == made["plain"]
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    assert blend.meta["runs"] == ["net_a", "net_b", "upper", "table", "plain", "pattern"]


def test_a_pattern_fits_no_stacker_also_where_another_one_is_named(tmp_path: Path) -> None:
    other = {**TABLE, "name": "other"}
    third = {**UPPER, "name": "third", "runs": ["other"]}
    experiment = _experiment(tmp_path, TABLE, other, {**UPPER, "runs": ["table", "*"]}, third)
    _stack(experiment)
    seen = _run(experiment, "upper").meta["features"]
    assert {"table", "net_a", "net_b"} <= set(seen)
    assert not any(name.startswith("other") for name in seen)


def test_the_others_have_the_same_bytes_as_without_a_second_stage(tmp_path: Path) -> None:
    frames = []
    for name, stackers in (("without", [TABLE, PLAIN]), ("with", [TABLE, UPPER, PLAIN])):
        (tmp_path / name).mkdir()
        experiment = _experiment(tmp_path / name, *stackers, features={"cohort": True})
        _stack(experiment)
        frames.append({name: _run(experiment, name).meta["files"] for name in ("table", "plain")})
        frames.append({name: _run(experiment, name).meta["inputs"] for name in ("table", "plain")})
    assert frames[0] == frames[2]
    assert frames[1] == frames[3]


def test_it_is_fitted_on_out_of_fold_predictions_and_predicts_test_rows_from_those_of_its_own_fold(
    tmp_path: Path,
) -> None:
    bare = {"metadata": False, "aggregates": False}
    experiment = _experiment(tmp_path, TABLE, {**UPPER, "runs": ["table"], "features": bare})
    _stack(experiment)
    table, upper = _run(experiment, "table"), _run(experiment, "upper")
    assert upper.meta["features"] == ["table"]
    fold = table.frame("oof")["fold"].to_numpy()
    lines = list[np.ndarray]()
    for part in ("oof", "test"):  # a regression on one column: its logit is linear in it, with one line for each fold
        x, y = (run.frame(part)["logit"].to_numpy(np.float64) for run in (table, upper))
        of_fold = fold if part == "oof" else table.frame(part)["fold"].to_numpy()
        assert np.array_equal(of_fold, upper.frame(part)["fold"])
        for k in range(3):
            line = np.polyfit(x[of_fold == k], y[of_fold == k], 1)
            np.testing.assert_allclose(np.polyval(line, x[of_fold == k]), y[of_fold == k], atol=1e-5)
            lines.append(line)
    np.testing.assert_allclose(lines[:3], lines[3:], rtol=1e-3, atol=1e-4)


def test_columns_that_tell_nothing_leave_an_auc_of_one_half(tmp_path: Path) -> None:
    boost = {**TABLE, "name": "boost", "runs": ["table"], "features": {"aligned_z": 0}}
    experiment = _experiment(tmp_path, {**TABLE, "params": {"rounds": 60}}, {**UPPER, "runs": ["table"]}, boost)
    _stack(experiment)  # the columns of the table are drawn without the targets
    for name in ("upper", "boost"):
        oof = _run(experiment, name).frame("oof")
        y = experiment.target[experiment.rows_of(oof["id"])]
        assert abs(auc(y, oof["logit"].to_numpy()) - 0.5) < 0.12  # three standard errors


def test_a_row_alone_has_the_predictions_of_the_table_without_its_group(copied: Experiment) -> None:
    experiment = copied
    upper, table, level1 = _run(experiment, "upper"), _run(experiment, "table"), level1_runs(experiment)
    made = make_probes(experiment, [upper, table], level1, Out(quiet=True))
    assert made is not None
    assert made[0].name == "upper"
    assert "alone" in made[1]["what"].tolist()
    scales = stored_scales(upper)
    predictions = standardised(predictions_of(experiment, [*level1, table]), scales)
    found = _with_rows_alone(experiment, [table], scales, {}, predictions, 0)
    assert found.alone is not None
    held = (experiment.folds.frame["fold"] == 0).to_numpy()
    column = predictions.names.index("table")
    changed = found.alone != predictions.oof
    assert not np.delete(changed, column, axis=1).any()  # a network sees one image
    assert not changed[~held].any()
    group = experiment.table.train["group"]
    single = group.map(group.value_counts()).to_numpy() == 1
    assert not changed[held & single].any()
    assert changed[held & ~single, column].any()
    lonely = replace(experiment, table=replace(experiment.table, train=experiment.table.train.assign(group="")))
    lonely.table.train["group"] = lonely.table.train["id"]  # an independent way: each row is its own group
    bag = _stored_bag(table, 0)
    rows = fold_matrix(experiment, {}, predictions, 0).features.transform(
        lonely.table.train[held], predictions.oof[held], {}
    )
    mean, spread = scales["table"][0]
    expected = (bag.logit(rows[list(bag.columns)]) - mean) / spread
    np.testing.assert_allclose(found.alone[held, column], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("stackers", "words"),
    [
        ([{**TABLE, "runs": ["table"]}], "`runs` names the stacker itself"),
        ([TABLE, {**UPPER, "runs": ["plain"]}, PLAIN], "names the stacker plain, which sees runs itself"),
        ([{**TABLE, "runs": ["upper"]}, UPPER], "which sees runs itself, and only a model of the table alone"),
        ([TABLE, UPPER, {**PLAIN, "runs": ["upper"]}], "set `runs: []` for upper, or remove it from the runs of plain"),
        ([{**TABLE, "enabled": False}, UPPER], "names the stacker table, which is not enabled"),
        ([TABLE, {**UPPER, "runs": ["tab*"]}], "a pattern fits no stacker, so write table in full"),
        ([TABLE, {**UPPER, "runs": ["table", "nett"]}], "no level-1 run fits 'nett' (runs): name one of net_a, net_b"),
    ],
)
def test_what_cannot_be_seen_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stackers: list[dict[str, object]], words: str
) -> None:
    experiment = _experiment(tmp_path, PLAIN)
    settings = yaml.safe_load(experiment.config_path.read_text(encoding="utf-8"))
    experiment.config_path.write_text(yaml.safe_dump(settings | {"stackers": stackers}), encoding="utf-8")
    for command in ("stack", "plan"):
        assert run_cli(command, "-c", str(experiment.config_path)) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert read_run(experiment.models / "table") is None


def _states(experiment: Experiment) -> dict[str, str]:
    steps = make_plan(experiment, measure=False).steps
    return {step.name: step.state for step in steps if step.command == "stack" and step.kind != "submission"}


def test_plan_tells_what_stack_makes_and_a_changed_source_is_made_again_with_what_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = _experiment(tmp_path, TABLE, UPPER, PLAIN)
    assert list(_states(experiment)) == ["table", "plain", "upper", "blend"]
    _stack(experiment)
    assert set(_states(experiment).values()) == {"skip"}
    experiment = _changed(experiment, bags=2)
    assert _states(experiment) == {"table": "remake", "plain": "skip", "upper": "remake", "blend": "remake"}
    steps = {step.name: step for step in make_plan(experiment, measure=False).steps}
    assert steps["upper"].why == "it sees table, made before it"
    before = _run(experiment, "upper").meta["features"]
    assert steps["upper"].features == len(before)
    capsys.readouterr()
    assert run_cli("stack", "--no-report", "-c", str(experiment.config_path)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "plain: complete, skipped" in said
    assert "upper: its inputs changed" in said
    assert set(_states(experiment).values()) == {"skip"}


def test_without_a_level_1_run_stackers_can_see_each_other(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path, stackers=[TABLE, {**UPPER, "runs": ["table"]}]))
    _stack(experiment)
    assert run_cli("audit", "-c", str(experiment.config_path)) in (0, 1)


@pytest.mark.usefixtures("without_figures")
def test_the_report_explains_what_comes_from_a_model_of_the_table(copied: Experiment) -> None:
    experiment = copied
    _stack(experiment, report=True)
    stackers = [_run(experiment, name) for name in ("upper", "table", "plain")]
    made = importance(experiment, stackers, level1_runs(experiment), Out(quiet=True))
    assert made is not None
    assert made["stacker"].drop_duplicates().tolist() == ["upper", "table", "plain"]
    blocks = made[made["of"] == "block"].set_index("stacker")["name"]
    assert {"models of the table", "models of the table, within the group", "image models"} <= set(blocks["upper"])
    assert not any("models of the table" in name for name in [*blocks["table"], *blocks["plain"]])
    of_upper = made[(made["stacker"] == "upper") & (made["of"] == "feature")].set_index("name")["block"]
    assert of_upper["table"] == "models of the table"
    assert of_upper["net_a"] == "image models"


def test_repeats_of_both_stages(tmp_path: Path) -> None:
    experiment = _experiment(tmp_path, {**TABLE, "repeats": 2}, {**UPPER, "repeats": 2})
    _stack(experiment)
    sources = [_run(experiment, "net_a"), _run(experiment, "table")]
    scales = net_scales(predictions_of(experiment, [*level1_runs(experiment), sources[1]]))
    stored = _run(experiment, "upper").meta["scales"]
    assert {run: {int(net): tuple(two) for net, two in nets.items()} for run, nets in stored.items()} == scales


def test_a_study_of_a_stacker_needs_the_models_that_it_sees(tmp_path: Path) -> None:
    upper = {**TABLE, "name": "upper", "runs": ["table"]}
    experiment = _experiment(tmp_path, TABLE, upper)
    with pytest.raises(StoreError, match="stacker table, which other stackers see, is not complete: run `dermstack"):
        tune_gbdt(experiment, experiment.config.stackers[1], Out(quiet=True), trials=1, timeout=None)
    _stack(experiment)
    assert tune_gbdt(experiment, experiment.config.stackers[1], Out(quiet=True), trials=1, timeout=None).is_file()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"stackers": ["top"], "sees": ["top"], "scales": {}}, "see each other"),
        ({"stackers": ["top"], "sees": ["other"], "scales": {}}, "stackers that are not there"),
        ({"stackers": ["gbdt", "top"], "sees": ["gbdt"], "scales": {}}, "see each other"),
        ({"stackers": ["top"], "sees": [], "scales": {}}, "at least 1 item"),
        ({"stackers": ["top"], "sees": ["gbdt"], "scales": {"gbdt": {"0": [0.0, 0.0]}}}, "spread that is not positive"),
    ],
)
def test_a_manifest_whose_second_stage_cannot_be_is_refused(entry: dict[str, object], words: str) -> None:
    content = json.loads(manifest({}))
    content["stackers"].append({"name": "top", "kind": "logistic", "shifts": [0.0, 0.0]})
    sound = {"stackers": ["top"], "sees": ["gbdt"], "scales": {"gbdt": {"0": [0.0, 1.0]}}}
    Manifest.model_validate(content | {"second_stage": sound})
    with pytest.raises(ValidationError, match=words):
        Manifest.model_validate(content | {"second_stage": entry})
