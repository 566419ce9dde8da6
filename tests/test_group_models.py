"""The set transformer as a stacker: through a stack, its report, its plan, repeats, probes and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WITHOUT_IMAGE_EXTRA, run_cli, small_config
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import roc_auc_score
from sources import ROOT

from dermstack.errors import BundleError, ConfigError
from dermstack.serve.bundle import read_bundle, write_manifest
from dermstack.serve.ensemble import read_fitted
from stack.console import Out
from stack.experiment import Experiment
from stack.level2.features import fold_matrix
from stack.level2.group_models import read_group_net
from stack.level2.importance import importance
from stack.predictions.joined import predictions_of, standardised, stored_scales
from stack.settings.config import read_config
from stack.store import Run, read_run
from tabular.models import read_bag

SETS = {"name": "sets", "kind": "set_transformer", "bags": 2, "params": {"epochs": 4, "width": 8, "heads": 2}}
LINE = {"name": "line", "kind": "logistic"}


def stacked(folder: Path, *stackers: dict[str, object], **changes: object) -> tuple[Path, Experiment]:
    folder.mkdir(exist_ok=True)
    config = write_experiment(folder, stackers=list(stackers), **changes)
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    return config, experiment


def run_of(experiment: Experiment, name: str) -> Run:
    run = read_run(experiment.models / name)
    assert run is not None
    return run


@pytest.mark.slow
def test_it_goes_through_a_stack_and_its_report_and_is_blended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, experiment = stacked(tmp_path, SETS, LINE)
    run = run_of(experiment, "sets")
    assert [path.name for path in sorted((run.folder / "fold_0").glob("model*"))] == [
        "model.safetensors",
        "model_1.safetensors",
    ]
    assert not any("net_" in name for name in run.meta["features"]), "no statistics of the group"
    assert any("net_" in name for name in run_of(experiment, "line").meta["features"])
    assert run_cli("report", "-c", str(config), "-q") == 0
    page = " ".join((experiment.folder / "report.html").read_text(encoding="utf-8").split())
    assert "sets has no exact contributions" in page
    shares = importance(
        experiment, [run_of(experiment, name) for name in ("sets", "line")], [run_of(experiment, "net")],
        Out(quiet=True),
    )  # fmt: skip
    assert shares is not None
    assert set(shares["stacker"]) == {"line"}
    assert run_cli("plan", "-c", str(config)) == 0
    assert "sets (set_transformer)" in capsys.readouterr().out
    assert run_cli("stack", "--no-report", "-c", str(config), "--set", "n_jobs=2") == 0
    assert "skipped" in capsys.readouterr().out
    assert run_cli("runs", "--folder", str(tmp_path / "runs")) == 0
    assert "sets" in capsys.readouterr().out
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    assert "sets" in blend.meta["runs"]


@pytest.mark.slow
def test_it_is_probed_without_the_other_rows_and_with_the_counts(tmp_path: Path) -> None:
    from stack.level2.probes import make_probes, stored_probes

    _, experiment = stacked(tmp_path, SETS)
    run, source = run_of(experiment, "sets"), run_of(experiment, "net")
    make_probes(experiment, [run], [source], Out(quiet=True))
    probes = stored_probes(experiment, run)
    assert probes is not None
    assert {"alone", "context_counts", "other groups"} <= set(probes["what"])
    oof = run.frame("oof").set_index("id").loc[experiment.table.train["id"]]
    alone = probes.set_index("what").loc["alone"]
    assert alone["auc"] - alone["difference"] == pytest.approx(roc_auc_score(experiment.target, oof["logit"]))


def test_stored_models_give_the_predictions_of_whole_groups_and_test_rows_the_same_way(tmp_path: Path) -> None:
    """Held-out and test rows by the models on disk, group by group, against what the stack wrote."""
    _, experiment = stacked(tmp_path, SETS)
    run = run_of(experiment, "sets")
    level1 = standardised(predictions_of(experiment, [run_of(experiment, "net")]), stored_scales(run))
    written = {part: run.frame(part) for part in ("oof", "test")}
    for fold in range(experiment.folds.k):
        matrix = fold_matrix(experiment, {}, level1, fold)
        kept = read_run(run.folder / f"fold_{fold}")
        assert kept is not None
        bag = read_bag("set_transformer", kept.folder, shift=kept.meta["shift"], read_groups=read_group_net)
        x_test = matrix.features.transform(experiment.table.test, level1.test[fold], {})
        for part, frame, x in (
            ("oof", experiment.table.train.iloc[matrix.held_rows], matrix.held),
            ("test", experiment.table.test, x_test),
        ):
            of_fold = written[part][written[part]["fold"] == fold].set_index("id")["logit"]
            for _, rows in frame.reset_index(drop=True).groupby("group"):
                made = bag.logit(x.iloc[rows.index][list(bag.columns)], groups=rows["group"])
                np.testing.assert_array_equal(made, of_fold.loc[rows["id"]])


@pytest.mark.slow
def test_other_parameters_make_it_stale_and_other_stackers_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, experiment = stacked(tmp_path, SETS, LINE)
    before, kept = run_of(experiment, "sets").meta, run_of(experiment, "line").meta
    capsys.readouterr()
    assert run_cli("stack", "--no-report", "-c", str(config), "--set", "stackers.0.params.epochs=2") == 0
    said = capsys.readouterr().out
    assert "sets: its inputs changed" in said
    assert "line: complete, skipped" in said
    assert run_of(experiment, "sets").meta["fingerprint"] != before["fingerprint"]
    assert run_of(experiment, "line").meta == kept


@pytest.mark.slow
def test_one_or_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    _, one = stacked(tmp_path / "one", SETS)
    _, two = stacked(tmp_path / "two", SETS, n_jobs=2)
    files = run_of(one, "sets").meta["files"]
    assert files == run_of(two, "sets").meta["files"]
    for fold in range(one.folds.k):
        made = [read_run(run_of(experiment, "sets").folder / f"fold_{fold}") for experiment in (one, two)]
        assert made[0] is not None
        assert made[1] is not None
        assert made[0].meta["files"] == made[1].meta["files"]


@pytest.mark.slow
def test_repeats_and_features_of_its_own_and_a_place_as_a_source(tmp_path: Path) -> None:
    own = SETS | {"bags": 1, "positive_weight": 3.0}
    _, experiment = stacked(
        tmp_path,
        own | {"repeats": 2, "features": {"aggregates": True}},
        own | {"name": "table", "runs": []},
        LINE | {"runs": ["net", "table"]},
    )
    assert any(name.startswith("net_") for name in run_of(experiment, "sets").meta["features"])
    assert "net" not in run_of(experiment, "table").meta["features"]
    assert "table" in run_of(experiment, "line").meta["features"]
    oof = run_of(experiment, "sets").frame("oof")
    assert abs(oof["p"].mean() - experiment.target.mean()) < 0.1, "the weight is taken out of the odds"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"negatives": 0.5}, "it has no `negatives` and `positives`"),
        ({"positives": 2}, "it has no `negatives` and `positives`"),
        ({"monotone": True}, "are for GBDTs"),
        ({"device": "gpu"}, "are for GBDTs"),
        ({"estimator": "sklearn.ensemble.ExtraTreesClassifier"}, "`estimator` is for kind sklearn"),
        ({"params": {"widht": 3}}, "params: a set transformer has no parameter 'widht': did you mean 'width'"),
        ({"params": {"width": 9}}, "not a multiple of its 4 heads"),
    ],
)
def test_a_setting_that_it_cannot_have_is_refused_when_the_config_is_read(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(write_experiment(tmp_path, stackers=[SETS | change]))


def test_it_has_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = stacked(tmp_path, SETS, LINE)
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "1") == 0
    assert "sets: a set transformer has nothing to tune, skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_without_torch_it_is_refused_before_anything_is_fitted_and_other_stackers_run(tmp_path: Path) -> None:
    config = write_experiment(tmp_path, stackers=[LINE, SETS])
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))

    def stack(*overrides: str) -> subprocess.CompletedProcess[str]:
        arguments = ["stack", "--no-report", "-q", "-c", str(config), *overrides]
        code = f"{WITHOUT_IMAGE_EXTRA}\nfrom dermstack.cli.main import main\nsys.argv[1:] = {arguments}\nmain()"
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    refused = stack()
    assert refused.returncode == 2
    assert "stacker sets: kind set_transformer needs torch" in " ".join(refused.stderr.split())
    assert read_run(experiment.models / "line") is None
    assert stack("--set", "stackers.1.enabled=false").returncode == 0


@pytest.mark.slow
def test_a_bundle_predicts_the_test_rows_with_it_and_refuses_damaged_weights(small_data: Path, tmp_path: Path) -> None:
    config = small_config(small_data, tmp_path, stackers=[SETS, LINE])
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    target, out = tmp_path / "bundle", tmp_path / "p.csv"
    assert run_cli("bundle", "-c", str(config), "--out", str(target), "-q") == 0
    images, metadata = str(small_data / "images"), str(small_data / "test.csv")
    command = ["predict", "--bundle", str(target), "--images", images, "--metadata", metadata, "--out", str(out), "-q"]
    assert run_cli(*command) == 0
    made = pd.read_csv(out, dtype={"id": str})
    before = pd.read_parquet(tmp_path / "runs/small/predictions.parquet")
    np.testing.assert_array_equal(made[["id", "score", "p_calibrated"]], before)
    manifest = read_bundle(target).manifest
    weights = [name for name in manifest["files"] if "stackers/sets" in name]
    assert len(weights) == 2 * manifest["folds"]
    assert all(name.endswith(".safetensors") for name in weights)
    (target / weights[0]).write_bytes((target / weights[0]).read_bytes()[:-8])
    write_manifest(target, {key: value for key, value in manifest.items() if key not in {"files", "format"}})
    with pytest.raises(BundleError, match="not a set transformer"):
        read_fitted(read_bundle(target))
