"""Each form of files in the table of docs/imported_predictions.md, imported by the command that stands beside it."""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import expected, opened_experiment, predictions, stored, write_experiment
from scipy.special import expit, logit
from test_docs import ROOT

from stack.experiment import Experiment
from stack.predictions.ranks import AVERAGED
from stack.store import read_run

Runs = dict[str, tuple[pd.DataFrame, pd.DataFrame]]  # by name: what must be stored of out-of-fold and test rows


class Here:
    """The folder in which the command runs, and two runs to write there."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self.folder, self.experiment = folder, experiment
        (folder / "nets").mkdir()
        self.runs: Runs = {f"net_{name}": predictions(experiment, seed=seed) for seed, name in enumerate("ab")}

    def write(self, frame: pd.DataFrame, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mixed = frame.sample(frac=1, random_state=len(name))  # rows are joined by id
        mixed.to_parquet(path, index=False) if path.suffix == ".parquet" else mixed.to_csv(path, index=False)

    def write_all(self, oof: str, test: str) -> Runs:
        """One file a run and part, named by patterns with the run's name."""
        for name, (first, second) in self.runs.items():
            self.write(first, oof.format(name))
            self.write(second, test.format(name))
        return self.runs

    def write_ids(self, ids: pd.Series, name: str, *, fold: pd.Series | None = None) -> None:
        path = self.folder / name
        if path.suffix == ".npy":
            np.save(path, ids.to_numpy(object).astype(str))
        elif path.suffix == ".txt":
            path.write_text("\n".join(ids) + "\n", encoding="utf-8")
        else:
            frame = ids.to_frame("isic")
            (frame if fold is None else frame.assign(fold=fold)).to_csv(path, index=False)

    def write_arrays(self) -> None:
        test = self.experiment.table.test["id"]
        for name, (oof, of_test) in self.runs.items():
            np.save(self.folder / f"nets/{name}_oof.npy", oof["p"].to_numpy())
            wide = of_test.pivot(index="isic", columns="fold", values="p").loc[test].to_numpy()
            np.save(self.folder / f"nets/{name}_test.npy", wide if name == "net_a" else wide.T)


def files_of_each_format(here: Here) -> Runs:
    """The four formats take turns."""
    oof, test = here.runs["net_a"]
    here.write(oof, "nets/net_a_oof.csv.gz")
    here.write(test, "nets/net_a_test.parquet")
    here.write(here.runs["net_b"][0], "nets/net_b_oof.csv")
    with zipfile.ZipFile(here.folder / "nets/net_b_test.zip", "w") as archive:
        archive.writestr("submission.csv", here.runs["net_b"][1].to_csv(index=False))
    (here.folder / "nets" / "notes.txt").write_text("no predictions")
    here.write(test, "nets/sample_submission.csv")
    return here.runs


def some_files(here: Here) -> Runs:
    made = here.write_all("nets/{}_oof.csv", "nets/{}_test.csv")
    here.write(made["net_a"][0].assign(p=2.0), "nets/other_oof.csv")
    return made


def listed_files(here: Here) -> Runs:
    a, b = here.runs["net_a"], here.runs["net_b"]
    here.write(a[0], "x/1.csv")
    here.write(a[1].rename(columns={"p": "q"}), "x/2.csv")
    here.write(b[0], "3.csv")
    averaged = b[1][b[1]["fold"] == 1].assign(fold=AVERAGED)
    here.write(averaged.drop(columns="fold"), "4.csv")
    (here.folder / "nets.csv").write_text(
        "name,oof,test,test_p_column,test_averaged\nnet_a,x/1.csv,x/2.csv,q,\nnet_b,3.csv,4.csv,,yes\n"
    )
    return {"net_a": a, "net_b": (b[0], averaged)}


def other_columns(here: Here) -> Runs:
    for name, (oof, test) in here.runs.items():
        here.write(oof.rename(columns={"p": "oof_pred"}), f"nets/{name}_oof.csv")
        here.write(test.rename(columns={"p": "target"}), f"nets/{name}_test.csv")
    return here.runs


def averaged_tests(here: Here) -> Runs:
    """Of one run; the other has every net, which is not lost."""
    oof, test = here.runs["net_a"]
    one = test[test["fold"] == 0].assign(fold=AVERAGED)
    here.runs["net_a"] = oof, one
    made = here.write_all("nets/{}_oof.csv", "nets/{}_test.csv")
    here.write(one.drop(columns="fold"), "nets/net_a_test.csv")
    return made


def files_of_folds(here: Here) -> Runs:
    for name, (oof, test) in here.runs.items():
        for fold in range(3):
            here.write(oof[oof["fold"] == fold].drop(columns="fold"), f"nets/{name}_fold{fold}_oof.csv")
            here.write(test[test["fold"] == fold].drop(columns="fold"), f"nets/{name}_fold{fold}_test.csv")
    return here.runs


def files_of_folds_of_one(here: Here) -> Runs:
    return {"net_a": files_of_folds(here)["net_a"]}


def columns_of_nets(here: Here) -> Runs:
    oof, test = here.runs["net_a"]
    wide = oof.pivot(index="isic", columns="fold", values="p").add_prefix("fold_").reset_index()
    here.write(wide, "a.csv")  # a cell is empty unless the net held the row out
    here.write(test.pivot(index="isic", columns="fold", values="p").add_prefix("fold_").reset_index(), "a_test.csv")
    return {"net_a": (oof, test)}


def columns_of_runs(here: Here) -> Runs:
    for part, name in enumerate(("nets_oof.csv", "nets_test.csv")):
        frame = here.runs["net_a"][part].rename(columns={"p": "net_a"})
        here.write(frame.assign(net_b=here.runs["net_b"][part]["p"], target=0), name)
    return here.runs


def _seeds(here: Here) -> tuple[list[tuple[pd.DataFrame, pd.DataFrame]], Runs]:
    made = [predictions(here.experiment, seed=seed) for seed in (1, 2)]
    means = [
        made[0][part].assign(p=expit((logit(made[0][part]["p"]) + logit(made[1][part]["p"])) / 2)) for part in (0, 1)
    ]
    return made, {"net_a": (means[0], means[1])}


def files_of_seeds(here: Here) -> Runs:
    made, mean = _seeds(here)
    for seed, (oof, test) in enumerate(made, 1):
        here.write(oof, f"nets/net_a_seed{seed}_oof.csv")
        here.write(test, f"nets/net_a_seed_{seed}_test.csv")
    return mean


def rows_of_seeds(here: Here) -> Runs:
    made, mean = _seeds(here)
    for part, name in enumerate(("nets/net_a_oof.csv", "nets/net_a_test.csv")):
        here.write(pd.concat([files[part].assign(seed=seed) for seed, files in enumerate(made)]), name)
    return mean


def arrays(here: Here) -> Runs:
    here.write_arrays()
    here.write_ids(here.runs["net_a"][0]["isic"], "nets/oof_ids.csv", fold=here.runs["net_a"][0]["fold"])
    here.write_ids(here.experiment.table.test["id"], "nets/test_ids.npy")
    return here.runs


def arrays_with_ids_elsewhere(here: Here) -> Runs:
    here.write_arrays()
    here.write_ids(here.runs["net_a"][0]["isic"], "ids.csv", fold=here.runs["net_a"][0]["fold"])
    here.write_ids(here.experiment.table.test["id"], "ids_of_test.txt")
    return here.runs


FILES: dict[str, Callable[[Here], Runs]] = {  # by the beginning of the table's first cell
    "a csv, csv.gz, zip": files_of_each_format,
    "a folder for each run": lambda here: here.write_all("nets/{}/oof.csv", "nets/{}/test.csv"),
    "a folder for each part": lambda here: here.write_all("nets/oof/{}.csv", "nets/sub/{}.csv"),
    "some of the files": some_files,
    "files with names of all kinds": listed_files,
    "other names of columns": other_columns,
    "test files with one averaged": averaged_tests,
    "a file for each fold:": files_of_folds,
    "a file for each fold of one run": files_of_folds_of_one,
    "a column for each fold net": columns_of_nets,
    "several runs as columns": columns_of_runs,
    "repeated seeds as files": files_of_seeds,
    "repeated seeds as rows": rows_of_seeds,
    "NumPy arrays with ids beside": arrays,
    "NumPy arrays with ids elsewhere": arrays_with_ids_elsewhere,
}


def shown() -> list[tuple[str, str]]:
    page = (ROOT / "docs" / "imported_predictions.md").read_text(encoding="utf-8")
    table = page.partition("| your files | command |")[2].partition("\n\n")[0]
    return re.findall(r"^\| (?!---)(.*) \| `dermstack (import-oof .*)` \|$", table, re.MULTILINE)


def test_every_row_of_the_table_is_tried_and_no_other() -> None:
    rows = [what for what, _ in shown()]
    assert [sum(row.startswith(begin) for row in rows) for begin in FILES] == [1] * len(FILES)
    assert len(rows) == len(FILES)


@pytest.mark.parametrize(("what", "command"), shown())
def test_the_command_stores_what_the_files_say(
    what: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_experiment(tmp_path)
    config.rename(tmp_path / "mine.yaml")
    experiment = opened_experiment(tmp_path / "mine.yaml")
    wanted = next(make for begin, make in FILES.items() if what.startswith(begin))(Here(tmp_path, experiment))
    assert run_cli(*shlex.split(command)) == 0, capsys.readouterr().err
    assert sorted(path.name for path in experiment.models.iterdir()) == sorted(wanted)
    for name, frames in wanted.items():
        run = read_run(experiment.models / name)
        assert run is not None
        assert not run.meta["foreign_folds"]
        for part, frame in zip(("oof", "test"), frames, strict=True):
            pd.testing.assert_series_equal(stored(run, part), expected(frame), check_dtype=False, rtol=1e-5)
