"""A bundle with imported runs: the user gives their predictions, and all else is as in the experiment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from imported_experiment import import_frames, import_paths, opened_experiment, predictions, write_experiment
from starlette.testclient import TestClient

from dermstack.errors import BundleError, ConfigError, DataError
from dermstack.serve.app import make_app
from dermstack.serve.bundle import FORMAT_OF_REPEATS, Bundle, read_bundle, write_manifest
from dermstack.serve.ensemble import FittedEnsemble, read_fitted
from dermstack.serve.imported_runs import given_predictions
from dermstack.serve.manifest_content import manifest_of
from dermstack.serve.new_rows import read_new_rows
from dermstack.serve.notebook import write_notebook
from dermstack.serve.patient import Ensemble, read_row
from dermstack.serve.predict import predict_rows
from dermstack.serve.stages import SeenRows
from dermstack.serve.write_bundle import write_bundle
from stack.console import Out
from stack.experiment import Experiment
from stack.imported.prediction_files import ImportedColumns
from stack.level1.image_runs import level1_runs
from stack.predictions.joined import predictions_of
from stack.predictions.ranks import AVERAGED
from stack.predictions.repeats import repeated
from stack.store import read_json, read_run, with_digest, write_json

QUIET = Out(quiet=True)
STACKERS = [
    {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 15, "min_data_in_leaf": 5}, "bags": 1},
    {"name": "line", "kind": "logistic", "repeats": 2},
]
METHODS = {"methods": ["rank_mean", "mean", "logistic"]}
COLUMNS = ImportedColumns("isic", "p", "fold")


def _experiment(
    folder: Path, bring: Callable[[Experiment], dict[str, list[Path]]]
) -> tuple[Experiment, dict[str, Any]]:
    """An experiment that is stacked on the runs that ``bring`` imports, and bundled; with their test files."""
    folder.mkdir(exist_ok=True)
    stackers = STACKERS if bring is _by_net else STACKERS[1:]
    config = write_experiment(folder, stackers=stackers, blend=METHODS)
    experiment = opened_experiment(config)
    files = bring(experiment)
    assert run_cli("stack", "-c", str(config), "--no-report", "-q") == 0
    write_bundle(experiment, folder / "b.zip", QUIET)
    return experiment, files


def _by_net(experiment: Experiment) -> dict[str, list[Path]]:
    """Two runs whose nets have names; of the second, the predictions are averaged."""
    oof, test = predictions(experiment)
    names = {0: "c", 1: "a", 2: "b"}
    import_frames(experiment, "net", oof.assign(fold=oof["fold"].map(names)), test.assign(fold=test["fold"].map(names)))
    oof, test = predictions(experiment, seed=1)
    mean = test.groupby("isic", sort=False, as_index=False)["p"].mean()
    import_frames(experiment, "other", oof, mean, test_averaged=True)
    folder = experiment.config_path.parent
    return {"net": [folder / "net-test.csv"], "other": [folder / "other-test.csv"]}


def _foreign(experiment: Experiment) -> dict[str, list[Path]]:
    """A run over five other folds of whole groups."""
    oof, test = predictions(experiment)
    theirs = pd.factorize(experiment.split_group)[0] % 5
    nets = [test[test["fold"] == 0].assign(fold=net, p=lambda t, net=net: (t["p"] + net) / 6) for net in range(5)]
    import_frames(experiment, "net", oof.assign(fold=theirs), pd.concat(nets), foreign_folds=True)
    return {"net": [experiment.config_path.parent / "net-test.csv"]}


def _without_folds(experiment: Experiment) -> dict[str, list[Path]]:
    """A run whose out-of-fold file does not say which net held out a row: its ranks are those of one net."""
    oof, test = predictions(experiment)
    import_frames(experiment, "net", oof.drop(columns="fold"), test, foreign_folds=True)
    return {"net": [experiment.config_path.parent / "net-test.csv"]}


def _wide(experiment: Experiment) -> dict[str, list[Path]]:
    """A run whose files have one column for each fold net."""
    oof, test = predictions(experiment)
    folder = experiment.config_path.parent
    columns = ImportedColumns("isic", "p", "fold", nets="fold_")
    for name, frame in (("oof", oof), ("test", test)):
        wide = frame.pivot_table(index="isic", columns="fold", values="p").add_prefix("fold_").reset_index()
        wide.to_csv(folder / f"wide-{name}.csv", index=False)
    import_paths(
        experiment, "net", folder / "wide-oof.csv", folder / "wide-test.csv", columns=columns,
        test_columns=ImportedColumns("isic", "p", "fold", "--test", nets="fold_"),
    )  # fmt: skip
    return {"net": [folder / "wide-test.csv"]}


def _file_of_each_fold(experiment: Experiment) -> dict[str, list[Path]]:
    oof, test = predictions(experiment)
    folder = experiment.config_path.parent / "nets"
    folder.mkdir()
    for part, frame in (("oof", oof), ("test", test)):
        for fold, own in frame.groupby("fold"):
            own.drop(columns="fold").to_csv(folder / f"net_fold{fold}_{part}.csv", index=False)
    assert run_cli("import-oof", "-c", str(experiment.config_path), str(folder), "-q") == 0
    return {"net": sorted(folder.glob("*_test.csv"))}


def _columns_of_one_file(experiment: Experiment) -> dict[str, list[Path]]:
    """Two runs as columns of one pair of files, each the mean of two seeds."""
    folder, made = experiment.config_path.parent, {}
    for part in (0, 1):
        frames = [predictions(experiment, seed=seed)[part] for seed in range(4)]
        names = ("a_seed0", "a_seed1", "b_seed0", "b_seed1")
        made[part] = frames[0].drop(columns="p").assign(
            **{name: frame["p"].to_numpy() for name, frame in zip(names, frames, strict=True)}
        )  # fmt: skip
        made[part].to_csv(folder / f"{part}.csv", index=False)
    files = ["--oof", str(folder / "0.csv"), "--test", str(folder / "1.csv"), "--run-columns", "*_seed*"]
    assert run_cli("import-oof", "-c", str(experiment.config_path), *files, "--average-seeds", "-q") == 0
    return {"a": [folder / "1.csv"], "b": [folder / "1.csv"]}


@pytest.mark.parametrize("bring", [_by_net, _foreign, _without_folds, _wide, _file_of_each_fold, _columns_of_one_file])
def test_the_test_rows_get_the_scores_of_the_submission_and_training_rows_those_of_their_folds(
    bring: Callable[[Experiment], dict[str, list[Path]]], tmp_path: Path
) -> None:
    experiment, files = _experiment(tmp_path, bring)
    bundle = read_bundle(tmp_path / "b.zip")
    assert bundle.manifest["format"] == FORMAT_OF_REPEATS
    rows = read_new_rows(bundle, None, tmp_path / "test.csv", predictions=files)
    assert rows.notes == ()
    made = predict_rows(bundle, rows, tmp_path / "work").set_index("id")["score"]
    sent = pd.read_csv(experiment.folder / "submission.csv", dtype={"isic": "str"}).set_index("isic")["malignant"]
    np.testing.assert_array_equal(made[sent.index], sent)
    _check_held_out(experiment, read_fitted(bundle))


def _check_held_out(experiment: Experiment, fitted: FittedEnsemble) -> None:
    """The oracle are the out-of-fold logits that `stack` wrote: nets of other folds keep their own scales."""
    level1 = predictions_of(experiment, level1_runs(experiment))
    folds = np.stack([repeated(experiment, repeat).folds.frame["fold"].to_numpy() for repeat in range(fitted.repeats)])
    made = fitted.logits(SeenRows(experiment.table.train, level1.oof, level1.nets, {}), folds)
    for name, logit in zip(fitted.stackers, made.T[len(fitted.names) :], strict=True):
        run = read_run(experiment.models / name)
        assert run is not None
        own = run.frame("oof").set_index("id")["logit"][experiment.table.train["id"]]
        np.testing.assert_allclose(logit, own, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("imported")
    _, files = _experiment(folder, _by_net)
    return read_bundle(folder / "b.zip"), files


def _folder(files: dict[str, Any]) -> Path:
    path: Path = files["net"][0].parent
    return path


def test_rows_are_joined_by_id_whatever_their_order_and_further_ones_are_named(
    made: tuple[Bundle, dict[str, Any]], tmp_path: Path
) -> None:
    bundle, files = made
    table = _folder(files) / "test.csv"
    whole = predict_rows(bundle, read_new_rows(bundle, None, table, predictions=files), tmp_path / "a")
    moved = pd.read_csv(files["net"][0], dtype={"isic": "str"}).iloc[::-1]
    extra = moved.iloc[:3].assign(isic="elsewhere", fold=["a", "b", "c"])
    pd.concat([extra, moved]).to_csv(tmp_path / "net.csv", index=False)
    pd.read_csv(table, dtype="str").iloc[::-1].to_csv(tmp_path / "t.csv", index=False)
    rows = read_new_rows(bundle, None, tmp_path / "t.csv", predictions={**files, "net": tmp_path / "net.csv"})
    assert "1 id is not among the rows to predict" in " ".join(rows.notes)
    again = predict_rows(bundle, rows, tmp_path / "b").set_index("id").loc[whole["id"]].reset_index()
    pd.testing.assert_frame_equal(again, whole)


FAULTS: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    (lambda t: t[t["isic"] != t["isic"].iloc[0]], "no prediction of net c of net for 'T"),
    (lambda t: pd.concat([t, t.iloc[:1]]), "repeats an id"),
    (lambda t: t.assign(fold=t["fold"].replace("a", "z")), "no net 'z' in training: its nets are a, b, c"),
    (lambda t: t[t["fold"] != "b"], "no row is of net b"),
    (lambda t: t.rename(columns={"p": "risk"}), "no column 'p', which held the predictions of net"),
    (lambda t: t.rename(columns={"isic": "id"}), "no column 'isic', which held the ids"),
    (lambda t: t.assign(p=t["p"] + 1), "are not probabilities"),
]


@pytest.mark.parametrize(("change", "says"), FAULTS, ids=[says for _, says in FAULTS])
def test_a_faulty_file_is_named(
    change: Callable[[pd.DataFrame], pd.DataFrame], says: str, made: tuple[Bundle, dict[str, Any]], tmp_path: Path
) -> None:
    bundle, files = made
    change(pd.read_csv(files["net"][0], dtype={"isic": "str"})).to_csv(tmp_path / "faulty.csv", index=False)
    with pytest.raises(DataError, match=says) as error:
        read_new_rows(bundle, None, _folder(files) / "test.csv", predictions={**files, "net": tmp_path / "faulty.csv"})
    assert "faulty.csv" in str(error.value)
    assert "--test-" not in str(error.value), "an option of import-oof, which predict does not have"


def test_odd_predictions_are_told(made: tuple[Bundle, dict[str, Any]], tmp_path: Path) -> None:
    bundle, files = made
    net = pd.read_csv(files["net"][0], dtype={"isic": "str"})
    net.assign(p=net["p"] / 1e6).to_csv(tmp_path / "scaled.csv", index=False)
    once = net[net["fold"] == "a"].drop(columns="fold")
    once.to_csv(tmp_path / "once.csv", index=False)
    for name, says in (("scaled", "check that they are probabilities of the same model"), ("once", "counts for every")):
        given = {**files, "net": tmp_path / f"{name}.csv"}
        assert says in " ".join(read_new_rows(bundle, None, _folder(files) / "test.csv", predictions=given).notes)


def test_the_option_takes_names_folders_and_one_file_of_one_run(
    made: tuple[Bundle, dict[str, Any]], tmp_path: Path, bundled_experiment: Path
) -> None:
    bundle, files = made
    texts = [f"{name}={paths[0]}" for name, paths in files.items()]
    assert given_predictions(bundle, texts) == {name: tuple(paths) for name, paths in files.items()}
    for name, paths in files.items():
        (tmp_path / f"{name}_test.csv").write_bytes(paths[0].read_bytes())
    assert given_predictions(bundle, [str(tmp_path)]) == {name: [tmp_path / f"{name}_test.csv"] for name in files}
    for given, says in (
        (["net2=a.csv"], "write NAME=FILE, where NAME is an imported run"),
        ([str(files["net"][0])], r"write NAME=FILE.*\(net, other\)"),
        ([texts[0], texts[0]], "net has files already"),
    ):
        with pytest.raises(ConfigError, match=says):
            given_predictions(bundle, given)
    with pytest.raises(DataError, match="no such file"):
        read_new_rows(bundle, None, _folder(files) / "test.csv", predictions={**files, "net": tmp_path / "no.csv"})
    with pytest.raises(ConfigError, match="--predictions is missing for net, other"):
        read_new_rows(bundle, None, _folder(files) / "test.csv")
    with pytest.raises(ConfigError, match="has no imported run, so leave it out"):
        given_predictions(read_bundle(bundled_experiment / "bundle.zip"), ["net=a.csv"])


def test_the_commands_predict_evaluate_and_recalibrate(
    made: tuple[Bundle, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, files = made
    folder = _folder(files)
    given = [word for name, paths in files.items() for word in ("--predictions", f"{name}={paths[0]}")]
    whole = ["--bundle", str(folder / "b.zip"), "-q"]
    command = [*whole, "--metadata", str(folder / "test.csv"), "--out", str(tmp_path / "p.csv")]
    assert run_cli("predict", *command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "give those of the new rows with `--predictions net=FILE`" in said
    sent = tmp_path / "s.csv"
    assert run_cli("predict", *command, *given, "--submission", str(sent)) == 0
    assert sent.read_bytes() == (folder / "runs" / "elsewhere" / "submission.csv").read_bytes()
    score = pd.read_csv(tmp_path / "p.csv")["score"] + np.random.default_rng(0).normal(0, 0.1, len(pd.read_csv(sent)))
    labelled = pd.read_csv(folder / "test.csv", dtype={"isic": "str"})
    labelled.assign(malignant=(score > score.median()).astype(int)).to_csv(tmp_path / "y.csv", index=False)
    assert run_cli("evaluate", *whole, *given, "--labels", str(tmp_path / "y.csv"), "--out", str(tmp_path / "e")) == 0
    made_there = pd.read_csv(tmp_path / "e" / "predictions.csv", dtype={"id": "str"}).set_index("id")["score"]
    np.testing.assert_array_equal(made_there, pd.read_csv(tmp_path / "p.csv", dtype={"id": "str"})["score"])
    assert run_cli("recalibrate", *whole, *given, "--metadata", str(folder / "test.csv")) == 0
    labels = ["--labels", str(tmp_path / "y.csv"), "--out", str(tmp_path / "r.zip")]
    assert run_cli("recalibrate", *whole, *given, *labels) == 0
    capsys.readouterr()
    assert run_cli("recalibrate", *whole, *given, "--prevalence", "0.1", "--out", str(tmp_path / "q.zip")) == 2
    assert "--predictions are those of rows: give --metadata" in " ".join(capsys.readouterr().err.split())


def test_the_page_asks_for_the_predictions_and_predicts_as_the_command_does(
    made: tuple[Bundle, dict[str, Any]], tmp_path: Path
) -> None:
    bundle, files = made
    ensemble = Ensemble(bundle)
    reading = read_row(ensemble, age=50, sex="male", predictions={"net": 0.3, "other": 0.6})
    one = pd.DataFrame({"isic": ["x"], "patient": ["p"], "years": [50], "sex": ["male"]})
    one.to_csv(tmp_path / "one.csv", index=False)
    for name, p in (("net", 0.3), ("other", 0.6)):
        pd.DataFrame({"isic": ["x"], "p": [p]}).to_csv(tmp_path / f"{name}.csv", index=False)
    given = {name: tmp_path / f"{name}.csv" for name in files}
    expected = predict_rows(
        bundle, read_new_rows(bundle, None, tmp_path / "one.csv", predictions=given), tmp_path / "w"
    )
    assert reading.lesions[0].score == expected["score"].item()
    for wrong, says in (
        ({"net": 0.3}, "the prediction of other is missing"),
        ({"net": 0.3, "other": 1.5}, "1.5 of other is no probability"),
        ({"net": 0.3, "other": 0.5, "third": 0.5}, "third"),
    ):
        with pytest.raises(DataError, match=says):
            read_row(ensemble, predictions=wrong)
    client = TestClient(make_app(ensemble), base_url="http://127.0.0.1")
    assert "Predictions made elsewhere" in client.get("/").text
    fields = {"age": "50", "sex": "male", "prediction_0": "0.3", "prediction_1": "0.6"}
    form = {name: (None, value) for name, value in fields.items()}
    page = client.post("/", files=form, headers={"Origin": "http://127.0.0.1"}).text
    assert f"<dd>{reading.lesions[0].score:.4f}</dd>" in page
    assert "the predictions of net, other" in page
    form["prediction_1"] = (None, "")
    page = client.post("/", files=form, headers={"Origin": "http://127.0.0.1"}).text
    assert "the prediction of other is missing" in page


def test_the_notebook_predicts_from_attached_predictions(
    made: tuple[Bundle, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells are run in this process, without that which installs."""
    _, files = made
    folder, attached, written = _folder(files), tmp_path / "in", tmp_path / "out"
    for place in (attached, written):
        place.mkdir()
    (attached / "b.zip").write_bytes((folder / "b.zip").read_bytes())
    for name, source in (("test.csv", folder / "test.csv"), ("sample.csv", folder / "sample.csv")):
        (attached / name).write_bytes(source.read_bytes())
    for name, paths in files.items():
        (attached / f"{name}.csv").write_bytes(paths[0].read_bytes())
    experiment = opened_experiment(folder / "elsewhere.yaml")
    notebook, *_ = write_notebook(read_bundle(attached / "b.zip"), attached / "b.zip", experiment.config.data)
    monkeypatch.setenv("DERMSTACK_INPUT", str(attached))
    monkeypatch.setenv("DERMSTACK_OUTPUT", str(written))
    scope: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and "subprocess" not in text:
            exec(compile(text, cell["id"], "exec"), scope)
    sent = folder / "runs" / "elsewhere" / "submission.csv"
    assert (written / "submission.csv").read_bytes() == sent.read_bytes()


def test_a_manifest_with_a_net_too_few_is_refused(made: tuple[Bundle, dict[str, Any]], tmp_path: Path) -> None:
    bundle, _ = made
    content = {key: value for key, value in bundle.manifest.items() if key not in {"files", "format"}}
    del content["imported_runs"][0]["nets"]["a"]
    write_manifest(tmp_path, content)
    with pytest.raises(BundleError, match="does not have 3 nets") as error:
        read_bundle(tmp_path)
    assert "\n" not in str(error.value)


def test_no_bundle_is_written_that_its_readers_refuse(
    made: tuple[Bundle, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> dict[str, Any]:
        content = manifest_of(*args)
        return content | {"imported_runs": [run | {"range": [0.9, 0.1]} for run in content["imported_runs"]]}

    monkeypatch.setattr("dermstack.serve.write_bundle.manifest_of", wrong)
    experiment = opened_experiment(_folder(made[1]) / "elsewhere.yaml")
    with pytest.raises(BundleError, match="the range of net ends before it begins"):
        write_bundle(experiment, tmp_path / "b", QUIET)
    assert not (tmp_path / "b").exists()


def test_nets_of_an_earlier_import_have_no_names_which_is_said(tmp_path: Path) -> None:
    config = write_experiment(tmp_path, stackers=[], blend=METHODS)
    experiment = opened_experiment(config)
    run = import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "-c", str(config), "--no-report", "-q") == 0
    content = read_json(run.folder / "run.json")
    del content["nets"]
    write_json(run.folder / "run.json", with_digest(content))
    with pytest.raises(BundleError, match="import it again with --replace; nothing else becomes stale"):
        write_bundle(experiment, tmp_path / "b", QUIET)
    import_frames(experiment, "net", *predictions(experiment), replace=True)
    write_bundle(experiment, tmp_path / "b", QUIET)


def test_images_and_imported_predictions_together(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A net of the experiment, and one of another pipeline, whose predictions are here those of the first."""
    shutil.copytree(bundled_experiment / "runs", tmp_path / "runs")
    models = yaml.safe_load((bundled_experiment / "small.yaml").read_text(encoding="utf-8"))["image_models"]
    line = {"name": "line", "kind": "logistic"}
    config = small_config(small_data, tmp_path, image_models=models, features={"aligned_z": 3}, stackers=[line])
    for part in ("oof", "test"):
        rows = pd.read_parquet(bundled_experiment / f"runs/small/models/still/{part}.parquet")
        rows.rename(columns={"id": "image_name"}).to_csv(tmp_path / f"{part}.csv", index=False)
    files = ["--oof", str(tmp_path / "oof.csv"), "--test", str(tmp_path / "test.csv")]
    assert run_cli("import-oof", "theirs", "-c", str(config), *files, "-q") == 0
    assert run_cli("stack", "-c", str(config), "--no-report", "-q") == 0
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "b.zip")) == 0
    assert "1 imported run whose predictions must be given" in " ".join(capsys.readouterr().out.split())
    command = ["--bundle", str(tmp_path / "b.zip"), "--images", str(small_data / "images"), "-q"]
    command += ["--metadata", str(small_data / "test.csv"), "--predictions", str(tmp_path / "test.csv")]
    sent = tmp_path / "s.csv"
    assert run_cli("predict", *command, "--out", str(tmp_path / "p.csv"), "--submission", str(sent)) == 0
    assert sent.read_bytes() == (tmp_path / "runs" / "small" / "submission.csv").read_bytes()
    with pytest.raises(ConfigError, match="which a page cannot ask for: use `dermstack predict`"):
        make_app(Ensemble(read_bundle(tmp_path / "b.zip")))
    bundle = read_bundle(tmp_path / "b.zip")
    assert bundle.level1_names[-1] == "theirs"
    assert AVERAGED not in bundle.imported_runs[0].nets.values()


def test_the_model_card_names_the_predictions_that_must_be_given(made: tuple[Bundle, dict[str, Any]]) -> None:
    folder = _folder(made[1])
    assert run_cli("report", "-c", str(folder / "elsewhere.yaml"), "-q") == 0
    card = " ".join((folder / "runs" / "elsewhere" / "model_card.md").read_text().split())
    assert "Input: a row of the table, without an image: age, sex and site, if known; the predictions of `net`" in card
    assert "--metadata new.csv --predictions NAME=FILE --out p.csv" in card
    assert "--images" not in card
