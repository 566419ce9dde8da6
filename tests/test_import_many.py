"""Many runs at once: faulty ones are named and the others imported, unchanged ones skipped, changed ones kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import (
    Files,
    by_id,
    import_paths,
    opened_experiment,
    predictions,
    stored,
    unexpected_files,
    write_experiment,
)

from dermstack.errors import DataError
from stack.console import Out
from stack.experiment import Experiment
from stack.imported.files import found_sources, listed_sources
from stack.imported.many import Outcome, import_many
from stack.imported.prediction_files import ImportedColumns
from stack.imported.run import ImportOptions
from stack.store import read_json, read_run, read_runs, with_digest, write_json

COLUMNS = ImportedColumns("isic", "p", "fold")
OPTIONS = ImportOptions(COLUMNS, ImportedColumns("isic", "p", "fold", option="--test"))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return opened_experiment(write_experiment(tmp_path))


@pytest.fixture
def nets(experiment: Experiment, tmp_path: Path) -> Path:
    """A folder of the files of net_a, net_b and net_c."""
    folder = tmp_path / "nets"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write(folder, f"net_{name}", predictions(experiment, seed=seed))
    return folder


def write(folder: Path, name: str, files: Files) -> None:
    for part, frame in zip(("oof", "test"), files, strict=True):
        frame.to_csv(folder / f"{name}_{part}.csv", index=False)


def imported(experiment: Experiment, *given: Path, out: Out | None = None, replace: bool = False) -> list[Outcome]:
    sources, _ = found_sources([str(path) for path in given], OPTIONS)
    return import_many(experiment, sources, out or Out(quiet=True), replace_changed=replace)


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {one.name: one.state for one in outcomes}


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_run_has_the_bytes_of_an_import_of_its_own(experiment: Experiment, nets: Path, tmp_path: Path) -> None:
    imported(experiment, nets)
    other = tmp_path / "other"
    other.mkdir()
    alone = opened_experiment(write_experiment(other))
    for name in ("net_a", "net_b", "net_c"):
        import_paths(alone, name, nets / f"{name}_oof.csv", nets / f"{name}_test.csv")
    for path, content in bytes_below(alone.models).items():
        if path.endswith(".parquet"):
            assert bytes_below(experiment.models)[path] == content, path
    keys = ("fingerprint", "level", "kind", "inputs", "excluded", "foreign_folds", "test_averaged", "files")
    for made, single in zip(read_runs(experiment.models), read_runs(alone.models), strict=True):
        assert {key: made.meta[key] for key in keys} == {key: single.meta[key] for key in keys}


def test_a_faulty_run_is_named_and_the_others_are_imported(
    experiment: Experiment, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = pd.read_csv(nets / "net_b_oof.csv", dtype={"isic": str}, keep_default_na=False)
    broken.loc[4, "p"] = 1.5
    broken.to_csv(nets / "net_b_oof.csv", index=False)
    with pytest.raises(DataError) as error:
        imported(experiment, nets, out=Out())
    message = str(error.value)
    assert message.startswith("1 of 3 runs are not imported as asked (2 imported, 1 not imported):")
    assert "net_b: " in message
    assert "net_b_oof.csv: 1 values of 'p' are not probabilities, first '1.5' in row 6" in message
    assert sorted(path.name for path in experiment.models.iterdir()) == ["net_a", "net_c"]
    shown = capsys.readouterr().out
    assert [line.split("│")[1:3] for line in shown.splitlines() if "│ net_" in line][-3:] == [
        [" net_a ", " imported     "],
        [" net_b ", " not imported "],
        [" net_c ", " imported     "],
    ]
    broken.loc[4, "p"] = 0.5
    broken.to_csv(nets / "net_b_oof.csv", index=False)
    assert states(imported(experiment, nets)) == {"net_a": "unchanged", "net_b": "imported", "net_c": "unchanged"}


@pytest.mark.parametrize("fault", ["labels", "constant", "stranger", "folds", "no test file", "name"])
def test_every_kind_of_fault_leaves_only_its_own_run_out(experiment: Experiment, nets: Path, fault: str) -> None:
    oof, test = predictions(experiment, seed=9)
    if fault == "labels":
        oof["p"] = experiment.target
    elif fault == "constant":
        oof["p"] = 0.5
    elif fault == "stranger":
        oof.loc[0, "isic"] = "stranger"
    elif fault == "folds":
        oof["fold"] = np.arange(len(oof)) % 3
    name = "_bad" if fault == "name" else "bad"
    write(nets, name, (oof, test))
    if fault == "no test file":
        (nets / "bad_test.csv").unlink()
    if fault == "name":
        (nets / "_bad_oof.csv").rename(nets / f"{'x' * 65}_oof.csv")
        (nets / "_bad_test.csv").rename(nets / f"{'x' * 65}_test.csv")
    words = {
        "labels": "its predictions are the labels",
        "constant": "all out-of-fold predictions are equal",
        "stranger": "1 ids are not training rows, first 'stranger'",
        "folds": "other folds than the experiment's",
        "no test file": "no test file of this run is found: name it bad_test",
        "name": "cannot be the name of a run",
    }
    with pytest.raises(DataError, match="1 of 4 runs are not imported") as error:
        imported(experiment, nets)
    assert words[fault] in str(error.value)
    assert sorted(path.name for path in experiment.models.iterdir()) == ["net_a", "net_b", "net_c"]


def test_a_repeated_call_skips_what_is_unchanged_and_writes_nothing(experiment: Experiment, nets: Path) -> None:
    imported(experiment, nets)
    before = bytes_below(experiment.models)
    for replace in (False, True):
        assert set(states(imported(experiment, nets, replace=replace)).values()) == {"unchanged"}
    assert bytes_below(experiment.models) == before
    assert not experiment.old.exists()


def test_a_changed_run_is_named_and_stays_until_it_may_be_replaced(
    experiment: Experiment, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(experiment, nets)
    before = bytes_below(experiment.models)
    other = predictions(experiment, seed=7)
    write(nets, "net_b", other)
    with pytest.raises(DataError) as error:
        imported(experiment, nets)
    assert "net_b: kept as it was imported before, with other files: add --replace" in str(error.value)
    assert bytes_below(experiment.models) == before
    capsys.readouterr()
    made = imported(experiment, nets, out=Out(), replace=True)
    assert f"net_b: imported again with other files; the old run is kept in {experiment.old}" in capsys.readouterr().out
    assert states(made) == {"net_a": "unchanged", "net_b": "imported", "net_c": "unchanged"}
    run = read_run(experiment.models / "net_b")
    assert run is not None
    assert by_id(run.frame("oof"), "p") == pytest.approx(by_id(other[0], "p"), rel=1e-6)
    assert [run.name.partition("-")[0] for run in read_runs(experiment.old)] == ["net_b"]


def test_other_options_or_folds_are_a_change_too(experiment: Experiment, nets: Path, tmp_path: Path) -> None:
    """The files are the same, so only their names and hashes would say that nothing changed."""
    for path in nets.iterdir():
        frame = pd.read_csv(path, dtype={"isic": str}, keep_default_na=False)
        frame.assign(q=1 - frame["p"]).to_csv(path, index=False)
    imported(experiment, nets)
    columns = ImportedColumns("isic", "q", "fold")
    options = ImportOptions(columns, ImportedColumns("isic", "q", "fold", option="--test"))
    sources, _ = found_sources([str(nets)], options)
    with pytest.raises(DataError, match=r"with other options \(columns, test_columns\)"):
        import_many(experiment, sources, Out(quiet=True), replace_changed=False)
    again = opened_experiment(tmp_path / "elsewhere.yaml", "folds.seed=5")
    with pytest.raises(DataError, match="with other rows or folds"):
        imported(again, nets)


def test_a_run_of_an_earlier_version_is_compared_by_its_predictions(experiment: Experiment, nets: Path) -> None:
    """It did not note its options, so the same files may have been read from other columns."""
    imported(experiment, nets)
    for run in read_runs(experiment.models):
        write_json(run.folder / "run.json", with_digest({k: v for k, v in run.meta.items() if k != "read_as"}))
    assert set(states(imported(experiment, nets)).values()) == {"unchanged"}
    run = read_run(experiment.models / "net_b")
    assert run is not None
    other = import_paths(experiment, "net_b", nets / "net_c_oof.csv", nets / "net_c_test.csv", replace=True)
    meta = {**run.meta, "files": other.meta["files"]}
    write_json(other.folder / "run.json", with_digest({k: v for k, v in meta.items() if k != "read_as"}))
    with pytest.raises(DataError, match="net_b: kept as it was imported before, with other options"):
        imported(experiment, nets)


def test_predictions_of_every_net_for_every_row_go_with_their_run(experiment: Experiment, nets: Path) -> None:
    oof = predictions(experiment, seed=0)[0]
    wide = pd.DataFrame({f"m{net}": np.where(oof["fold"] == net, oof["p"], 0.5) for net in range(3)})
    wide.insert(0, "isic", oof["isic"])
    wide.to_csv(nets / "net_a_all_rows.csv", index=False)
    sources, _ = found_sources([str(nets)], dataclasses.replace(OPTIONS, all_rows_prefix="m"))
    import_many(experiment, sources, Out(quiet=True), replace_changed=False)
    assert [run.has("all_rows") for run in read_runs(experiment.models)] == [True, False, False]
    wide.assign(m0=wide["m1"]).to_csv(nets / "net_a_all_rows.csv", index=False)
    with pytest.raises(DataError, match="net_a: kept as it was imported before, with other files"):
        import_many(experiment, sources, Out(quiet=True), replace_changed=False)


def test_it_does_not_matter_whether_a_run_came_alone_or_with_others(experiment: Experiment, nets: Path) -> None:
    write(nets, "net_seed1", predictions(experiment, seed=5))
    for name in ("net_a", "net_seed1"):
        import_paths(
            experiment, name, nets / f"{name}_oof.csv", nets / f"{name}_test.csv", columns=COLUMNS,
            test_columns=OPTIONS.test_columns,
        )  # fmt: skip
    found = states(imported(experiment, nets))
    assert found == {"net_a": "unchanged", "net_b": "imported", "net_c": "imported", "net_seed1": "unchanged"}


def test_a_file_that_is_gone_is_named(experiment: Experiment, nets: Path) -> None:
    table = nets / "nets.csv"
    table.write_text("name,oof,test\nnet_a,net_a_oof.csv,net_a_test.csv\nnet_b,net_b_oof.csv,net_b_test.csv\n")
    import_many(experiment, listed_sources(table, OPTIONS), Out(quiet=True), replace_changed=False)
    (nets / "net_b_test.csv").unlink()
    with pytest.raises(DataError, match=r"net_b: .*net_b_test\.csv cannot be read \(No such file or directory\)"):
        import_many(experiment, listed_sources(table, OPTIONS), Out(quiet=True), replace_changed=False)


def test_a_damaged_run_is_named_and_may_be_replaced(experiment: Experiment, nets: Path) -> None:
    imported(experiment, nets)
    (experiment.models / "net_c" / "oof.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"net_c: .*oof\.parquet is damaged"):
        imported(experiment, nets)
    assert states(imported(experiment, nets, replace=True))["net_c"] == "imported"
    assert set(states(imported(experiment, nets)).values()) == {"unchanged"}


def test_an_interrupted_import_goes_on_with_what_is_missing(
    experiment: Experiment, nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stack.imported.many as module

    write_checked, done = module.write_checked, []

    def interrupted(*given: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return write_checked(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_checked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imported(experiment, nets)
    monkeypatch.undo()
    assert states(imported(experiment, nets)) == {"net_a": "unchanged", "net_b": "imported", "net_c": "imported"}


def test_copies_are_warned_of_whichever_of_them_is_new(
    experiment: Experiment, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(nets, "net_d", predictions(experiment, seed=1))
    imported(experiment, nets / "net_b_oof.csv", nets / "net_b_test.csv")
    capsys.readouterr()
    imported(experiment, nets, out=Out())
    shown = capsys.readouterr().out
    assert shown.count("their out-of-fold predictions are equal") == 3  # the warning, and the rows of both
    assert shown.count("most like") >= 1


def test_runs_that_are_not_imported_now_are_compared_with(
    experiment: Experiment, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(experiment, nets)
    copy = nets.parent / "more"
    copy.mkdir()
    write(copy, "net_e", predictions(experiment, seed=2))
    imported(experiment, copy, out=Out())
    shown = capsys.readouterr().out
    assert "net_e and net_c: their out-of-fold predictions are equal" in shown
    assert "│ net_a" not in shown, "the tables are about the runs that were named"


def test_the_command_ends_with_status_2_and_imports_the_rest(
    experiment: Experiment, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nets / "net_a_oof.csv").write_text("isic,p,fold\n")
    config = str(experiment.config_path)
    assert run_cli("import-oof", "-c", config, str(nets), "-q") == 2
    shown = capsys.readouterr()
    assert "net_a_oof.csv: the file has a header but no rows" in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert sorted(path.name for path in experiment.models.iterdir()) == ["net_b", "net_c"]


def test_the_command_ends_with_the_next_one(
    experiment: Experiment, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(experiment.config_path)
    options = ["--id-column", "isic"]
    assert run_cli("import-oof", "-c", config, str(nets), *options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: dermstack stack --config {config}"
    one = ["--oof", str(nets / "net_a_oof.csv"), "--test", str(nets / "net_a_test.csv")]
    model = "image_models=[{name: net, backbone: test_resnet}]"
    images = ["--set", model, "--set", f"data.images={nets}"]
    assert run_cli("import-oof", "single", "-c", config, *one, *options, *images) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"next: dermstack oof --config {config} "), "its network has no run yet"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to import"),
        (["nets", "--test", "x.csv"], "name its out-of-fold file with --oof"),
        (["a", "b", "--oof", "x.csv"], "give one name for it, not 2"),
        (["--oof", "x.csv"], "give one name for it, not 0"),
        (["nets", "--list", "x.csv"], "--list names the runs and their files"),
        (["a", "--run-columns", "net_*", "--oof", "x.csv"], "and no name"),
        (["nowhere"], "no such file or folder"),
        (["nowhere*"], "no file fits this pattern"),
        (["net", "--oof", "nowhere*.csv"], "--oof nowhere*.csv: no file fits this pattern"),
        (["--list", "nowhere.csv"], "no such file"),
    ],
)
def test_a_call_that_makes_no_sense_says_what_to_give(
    experiment: Experiment, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("import-oof", "-c", str(experiment.config_path), *arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err + shown.out
    assert unexpected_files(experiment.config_path.parent) == []


def test_the_record_names_how_the_files_were_read(experiment: Experiment, nets: Path) -> None:
    imported(experiment, nets)
    run = read_run(experiment.models / "net_a")
    assert run is not None
    record = read_json(run.folder / "run.json")["read_as"]
    assert record["columns"] == {"id": "isic", "p": "p", "fold": "fold", "nets": None, "seed": "seed", "ids": None}
    assert record["parts"] == {"oof": [["", "", ""]], "test": [["", "", ""]]}
    assert str(nets) not in (run.folder / "run.json").read_text(), "no paths, which may be private"
    assert len(stored(run, "oof")) == len(experiment.target)
