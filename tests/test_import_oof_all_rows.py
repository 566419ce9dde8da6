"""What every fold model says of every row, brought in beside a run: the same models, rows and folds, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import Files, import_error, import_frames, opened_experiment, predictions, write_experiment

from stack.experiment import Experiment
from stack.store import read_run


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return opened_experiment(write_experiment(tmp_path))


@pytest.fixture
def files(experiment: Experiment) -> Files:
    return predictions(experiment)


def every_net(oof: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Of each net a p for each row, its own rows' as in the out-of-fold file: isic, p, fold, in chance order."""
    rng = np.random.default_rng(seed)
    parts = []
    for net in sorted(set(oof["fold"])):
        p = np.where(oof["fold"] == net, oof["p"], rng.random(len(oof)))
        parts.append(pd.DataFrame({"isic": oof["isic"], "p": p, "fold": net}))
    return pd.concat(parts).sample(frac=1, random_state=seed)


def wide(made: pd.DataFrame) -> pd.DataFrame:
    return made.pivot(index="isic", columns="fold", values="p").add_prefix("net_fold").reset_index()


def written(experiment: Experiment, frame: pd.DataFrame, name: str = "all.csv") -> Path:
    path = experiment.config_path.parent / name
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def test_a_row_a_net_and_a_column_a_net_say_the_same_in_csv_and_parquet(experiment: Experiment, files: Files) -> None:
    made = every_net(files[0])
    expected = made.rename(columns={"isic": "id"}).set_index(["id", "fold"])["p"].sort_index()
    for number, (name, frame, prefix) in enumerate([
        ("all.csv", made, None),
        ("all.parquet", made, None),
        ("wide.csv", wide(made), "net_fold"),
        ("wide.parquet", wide(made).assign(fold=0), "net_fold"),
    ]):  # fmt: skip
        path = written(experiment, frame, name)
        run = import_frames(experiment, f"net{number}", *files, all_rows=path, all_rows_prefix=prefix)
        stored = run.frame("all_rows")
        assert list(stored) == ["id", "fold", "logit", "p"]
        again = stored.set_index(["id", "fold"])["p"].sort_index()
        assert again.index.tolist() == expected.index.tolist()
        assert np.allclose(again, expected, rtol=1e-5)


def test_nets_go_by_the_numbers_of_our_folds(experiment: Experiment, files: Files) -> None:
    names = {0: "b", 1: "c", 2: "a"}
    oof, test = (frame.assign(fold=frame["fold"].map(names)) for frame in files)
    made = every_net(oof)
    run = import_frames(experiment, "net", oof, test, all_rows=written(experiment, made))
    stored = run.frame("all_rows").set_index(["id", "fold"])["p"]
    own = run.frame("oof").set_index(["id", "fold"])["p"]
    assert np.allclose(stored.loc[own.index], own, rtol=1e-5)


def test_nets_of_foreign_folds_keep_the_numbers_of_their_out_of_fold_rows(experiment: Experiment, files: Files) -> None:
    groups = sorted(set(experiment.split_group))
    dealt = {group: "xyz"[number % 3] for number, group in enumerate(groups)}
    oof = files[0].assign(fold=[dealt[group] for group in experiment.split_group])
    made = every_net(oof)
    unknown = import_error_with(experiment, (oof.drop(columns="fold"), files[1]), made, foreign_folds=True)
    assert "no column 'fold'" in unknown
    run = import_frames(experiment, "net", oof, files[1], foreign_folds=True, all_rows=written(experiment, made))
    own = run.frame("oof").set_index(["id", "fold"])["p"]
    assert np.allclose(run.frame("all_rows").set_index(["id", "fold"])["p"].loc[own.index], own, rtol=1e-5)


def import_error_with(experiment: Experiment, files: Files, made: pd.DataFrame, **options: object) -> str:
    return import_error(experiment, files, all_rows=written(experiment, made), **options)


def test_rows_and_nets_must_be_those_of_the_out_of_fold_file(experiment: Experiment, files: Files) -> None:
    made = every_net(files[0])
    assert "1 out-of-fold rows have no prediction of net" in import_error_with(experiment, files, made.iloc[1:])
    doubled = pd.concat([made, made.iloc[:1]])
    assert "1 row repeats an id of net 1: give one row for each id and net" in import_error_with(
        experiment, files, doubled
    )
    stranger = pd.concat([made, made.iloc[:1].assign(isic="stranger")])
    assert "1 ids are not out-of-fold rows" in import_error_with(experiment, files, stranger)
    assert "no row is of net 2" in import_error_with(experiment, files, made[made["fold"] != 2])
    assert "fold 7 is not in the out-of-fold file" in import_error_with(
        experiment, files, made.assign(fold=made["fold"].replace(2, 7))
    )
    assert "are not probabilities" in import_error_with(experiment, files, made.assign(p=made["p"] + 1))
    assert "--all-rows-prefix" in import_error_with(experiment, files, made.drop(columns="fold"))
    assert "no column begins with 'm_'" in import_error_with(experiment, files, wide(made), all_rows_prefix="m_")


def test_a_net_that_says_something_else_of_its_own_rows_is_another_net(experiment: Experiment, files: Files) -> None:
    made = every_net(files[0])
    rounded = made.assign(p=made["p"].round(3))
    turned = made.assign(fold=(made["fold"] + 1) % 3)
    assert "another p than in the out-of-fold file" in import_error_with(experiment, files, turned)
    assert import_frames(experiment, "net", *files, all_rows=written(experiment, rounded)).has("all_rows")


def test_the_command_takes_such_a_file(experiment: Experiment, files: Files, tmp_path: Path) -> None:
    for name, frame in zip(("oof", "test"), files, strict=True):
        frame.to_csv(tmp_path / f"net-{name}.csv", index=False)
    arguments = ["import-oof", "net", "-c", str(experiment.config_path), "--oof", str(tmp_path / "net-oof.csv"), "-q"]
    arguments += ["--test", str(tmp_path / "net-test.csv"), "--all-rows-prefix", "net_fold"]
    path = written(experiment, wide(every_net(files[0])), "wide.parquet")
    assert run_cli(*arguments, "--all-rows", str(path)) == 0
    run = read_run(experiment.models / "net")
    assert run is not None
    assert run.has("all_rows")
    assert run_cli(*arguments, "--replace", "--all-rows", str(tmp_path / "nowhere.csv")) == 2
    assert run_cli(*arguments, "--replace") == 2, "a prefix of no file"
