"""Files of imported runs for new rows: which are found, how they are read, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from pydantic import ValidationError

from dermstack.errors import DataError
from dermstack.serve.bundle import Bundle
from dermstack.serve.imported_runs import (
    given_predictions,
    imported_entries,
    imported_nets,
    one_prediction,
    prediction_notes,
    read_imported,
)
from dermstack.serve.manifest import MAX_SEEDS, Manifest
from stack.console import Out
from stack.imported.folds import net_label
from stack.imported.prediction_files import ImportedColumns, Part
from stack.imported.run import ImportOptions, Source, import_source
from stack.predictions.ranks import AVERAGED

IDS = pd.Series(["1", "2", "3"], dtype="str")
ENTRY = {
    "name": "net",
    "columns": {"id": "id", "p": "p", "fold": "fold", "seed": "seed"},
    "net_prefix": None,
    "average_seeds": False,
    "parts": [],
    "averaged": False,
    "nets": {"0": 0, "1": 1},
    "range": [0.01, 0.99],
}


def _bundle(*entries: dict[str, Any], **changes: Any) -> Bundle:
    """A bundle of imported runs alone: ``entries``, or one with ``changes``."""
    manifest = {"image_runs": [], "folds": 2, "imported_runs": list(entries) or [ENTRY | changes]}
    return Bundle(Path("b.zip"), manifest)


def _nets(nets: int = 2) -> pd.DataFrame:
    frames = [pd.DataFrame({"id": IDS, "p": [0.1, 0.2, 0.3], "fold": net}) for net in range(nets)]
    return pd.concat(frames, ignore_index=True).assign(p=lambda t: t["p"] + t["fold"] / 10)


def _read(bundle: Bundle, *paths: Path) -> pd.DataFrame:
    return read_imported(bundle, {"net": paths}, IDS)[0]


def test_a_folder_that_was_imported_gives_the_test_files_of_its_runs(tmp_path: Path) -> None:
    names = ["a_oof", "a_test", "b_seed1_oof", "b_seed1_test", "c_val.v2", "d_fold0_test", "d_fold1_test", "e", "a_ids"]
    for name in (*names, ".a_test", "other_all_rows"):
        (tmp_path / f"{name}.csv").write_text("id,p\n")
    runs = ["a", "b_seed1", "c_val.v2", "d", "e", "other"]
    found = given_predictions(_bundle(*(ENTRY | {"name": name} for name in runs)), [str(tmp_path)])
    assert {name: [path.stem for path in paths] for name, paths in found.items()} == {
        "a": ["a_test"], "b_seed1": ["b_seed1_test"], "c_val.v2": ["c_val.v2"], "d": ["d_fold0_test", "d_fold1_test"],
        "e": ["e"],
    }  # fmt: skip


def test_an_array_may_have_a_column_for_each_net(tmp_path: Path) -> None:
    _nets().to_csv(tmp_path / "long.csv", index=False)
    np.save(tmp_path / "net.npy", _nets()["p"].to_numpy().reshape(2, 3).T)
    np.save(tmp_path / "ids.npy", np.array(IDS, dtype=str))
    pd.testing.assert_frame_equal(_read(_bundle(), tmp_path / "net.npy"), _read(_bundle(), tmp_path / "long.csv"))


def test_a_run_of_one_column_a_net_takes_one_averaged_prediction_too(tmp_path: Path) -> None:
    bundle = _bundle(net_prefix="fold")
    wide = _nets().pivot_table(index="id", columns="fold", values="p").add_prefix("fold").reset_index()
    wide.assign(p=0.5).to_csv(tmp_path / "wide.csv", index=False)  # their mean may stand beside the nets
    _nets().to_csv(tmp_path / "long.csv", index=False)
    pd.testing.assert_frame_equal(_read(bundle, tmp_path / "wide.csv"), _read(_bundle(), tmp_path / "long.csv"))
    _nets(1).drop(columns="fold").to_csv(tmp_path / "mean.csv", index=False)
    assert list(_read(bundle, tmp_path / "mean.csv")) == ["prediction of net, averaged"]
    _nets(1).rename(columns={"p": "risk"}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(DataError, match=r"no column begins with 'fold'.* and none is 'p'.*rename the columns"):
        _read(bundle, tmp_path / "other.csv")


def test_nets_of_other_folds_are_averaged_only_if_each_row_has_all(tmp_path: Path) -> None:
    bundle, nets = _bundle(nets={}, mean_of=3), _nets(3)
    nets.to_csv(path := tmp_path / "net.csv", index=False)
    assert len(_read(bundle, path).columns) == 1
    for wrong, says in (
        (nets[nets["fold"] < 2], "predictions of 2 nets of net, which had 3 in training"),
        (pd.concat([nets, nets[:2]]), "2 rows repeat an id of the same net, first '1'"),
        (nets[1:], "1 id lacks a prediction of some of the 3 nets of net, first '1'"),
    ):
        wrong.to_csv(path, index=False)
        with pytest.raises(DataError, match=says):
            _read(bundle, path)


def test_a_prediction_of_one_row_that_is_far_from_those_of_training_is_told() -> None:
    assert prediction_notes(_bundle(), {"net": 0.5}) == []
    (note,) = prediction_notes(_bundle(), {"net": 0.999})
    assert note.startswith("the prediction 0.999 of net lies outside 0.01 to 0.99, where 98 % of those of training lie")


@pytest.mark.parametrize(("runs", "says"), [(2, "--predictions n0=FILE --predictions n1=FILE"), (30, "FOLDER")])
def test_the_next_command_gives_every_run(runs: int, says: str) -> None:
    bundle = _bundle(*(ENTRY | {"name": f"n{number}"} for number in range(runs)))
    assert f"{says} --out" in bundle.predict_command(Path("b.zip"))


def _array_without_ids(folder: Path) -> tuple[Bundle, list[Path]]:
    np.save(path := folder / "net.npy", np.array([0.1, 0.2, 0.3]))
    return _bundle(), [path]


def _ids_in_another_column(folder: Path) -> tuple[Bundle, list[Path]]:
    pd.DataFrame({"isic": IDS, "more": 1}).to_csv(folder / "ids.csv", index=False)
    return _array_without_ids(folder)


def _too_many_nets(folder: Path) -> tuple[Bundle, list[Path]]:
    _nets(101).assign(p=0.5).to_csv(path := folder / "net.csv", index=False)
    return _bundle(), [path]


def _two_seeds(folder: Path) -> tuple[Bundle, list[Path]]:
    paths = [folder / f"net_seed{seed}.csv" for seed in range(2)]
    for path in paths:
        _nets().to_csv(path, index=False)
    return _bundle(), paths


def _seeds_of_other_rows(folder: Path) -> tuple[Bundle, list[Path]]:
    _, paths = _two_seeds(folder)
    _nets()[1:].to_csv(paths[1], index=False)
    return _bundle(average_seeds=True), paths


def _two_files_of_columns(folder: Path) -> tuple[Bundle, list[Path]]:
    _, paths = _two_seeds(folder)
    return _bundle(parts=[["", "p"]]), paths


def _both_words(folder: Path) -> tuple[Bundle, list[Path]]:
    _nets().to_csv(path := folder / "net_oof_test.csv", index=False)
    return _bundle(), [path, path]


FAULTS: list[tuple[Callable[[Path], tuple[Bundle, list[Path]]], str]] = [
    (_array_without_ids, r"write the ids into net_ids.npy or test_ids.csv beside it or write ids"),
    (_ids_in_another_column, "ids.csv: no column 'id': rename the column; the columns are isic, more"),
    (_too_many_nets, "too many for folds: write the net of each row there"),
    (_two_seeds, "their names say no different folds"),
    (_seeds_of_other_rows, "give the same rows and folds for each seed"),
    (_two_files_of_columns, "were a column of one file: give one file"),
    (_both_words, "its name says oof and test: rename it"),
]


@pytest.mark.parametrize(("make", "says"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_no_message_names_an_option_of_the_import(
    make: Callable[[Path], tuple[Bundle, list[Path]]], says: str, tmp_path: Path
) -> None:
    bundle, paths = make(tmp_path)
    with pytest.raises(DataError, match=says) as error:
        _read(bundle, *paths)
    assert "--" not in str(error.value).replace("--predictions", "")


def test_large_numbers_name_different_nets() -> None:
    labels = [20240101, 20240102.0, np.int64(3), 1.5, "a"]
    assert [net_label(label) for label in labels] == ["20240101", "20240102", "3", "1.5", "a"]


def test_without_test_rows_new_files_are_read_as_the_out_of_fold_file(tmp_path: Path) -> None:
    data = {"name": "x", "train": "train.csv", "columns": {"id": "isic", "group": "patient", "target": "malignant"}}
    experiment = opened_experiment(write_experiment(tmp_path, data=data, stackers=[]))
    oof, _ = predictions(experiment)
    oof.assign(a=oof["p"]).drop(columns="p").to_csv(tmp_path / "oof.csv", index=False)
    columns = ImportedColumns("isic", "p", "fold")
    source = Source("a", (Part(tmp_path / "oof.csv", p="a"),), (), ImportOptions(columns, columns))
    run = import_source(experiment, source, Out(quiet=True), replace=False)
    assert imported_entries([run], 3)[0]["parts"] == [["", "a"]]


def test_a_run_of_other_folds_says_how_many_nets_its_mean_has(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path, stackers=[]))
    oof, test = predictions(experiment)
    one = test[test["fold"] == 0]
    theirs = pd.factorize(experiment.split_group)[0] % 2
    nets = pd.concat([one, one.assign(fold=1)])
    runs = [
        import_frames(experiment, "two", oof.assign(fold=theirs), nets, foreign_folds=True),
        import_frames(experiment, "once", oof.drop(columns="fold"), one.drop(columns="fold"), foreign_folds=True),
    ]
    entries = imported_entries(runs, 3)
    assert [(entry["mean_of"], entry["nets"]) for entry in entries] == [(2, {}), (0, {})]
    assert imported_nets(_bundle(*entries, ENTRY)).tolist() == [[AVERAGED, AVERAGED, 0], [AVERAGED, AVERAGED, 1]]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"parts": [["", ""]]}, "have no name"),
    ({"parts": [["1", "a"], ["1", "b"]], "average_seeds": True}, "two have the same name or seed"),
    ({"parts": [["1", "a"], ["2", "b"]]}, "does not average seeds"),
    ({"parts": [["1", "a", "b"]]}, "at most 2 items"),
    ({"parts": [[str(seed), str(seed)] for seed in range(MAX_SEEDS + 1)]}, f"at most {MAX_SEEDS} items"),
    ({"averaged": True}, "takes a mean of them"),
    ({"mean_of": 3}, "takes a mean of them"),
    ({"mean_of": 10**9, "nets": {}}, "less than or equal to 100"),
    ({"range": [0.9, 0.1]}, "ends before it begins"),
    ({"range": [0, 2]}, "less than or equal to 1"),
    ({"range": [-1, 0]}, "greater than or equal to 0"),
    ({"nets": {"0": 0, "1": 7}}, "does not have 2 nets"),
    ({"name": "../net"}, "match pattern"),
    ({"columns": {"id": "a", "p": "b", "fold": "c"}}, "at least 4 items"),
    ({"columns": {"id": "a" * 201, "p": "b", "fold": "c", "seed": "d"}}, "at most 200 characters"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_manifest_with_an_absurd_imported_run_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Manifest.model_validate(_manifest(ENTRY | changes))


def test_a_shift_beyond_every_logit_is_refused() -> None:
    stackers = [{"name": "line", "kind": "logistic", "shifts": [0.0, 1e308]}]
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        Manifest.model_validate(_manifest(ENTRY) | {"stackers": stackers})


@pytest.mark.parametrize(
    ("moments", "says"),
    [([0.0, 1e-300], "not positive"), ([1e308, 1.0], "beyond every"), ([0.0, 1e308], "beyond every")],
)
def test_a_scale_beyond_every_logit_is_refused(moments: list[float], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Manifest.model_validate(_manifest(ENTRY) | {"scales": {"net": {"0": moments}}})


def test_predictions_may_be_exactly_0_and_1_in_float32() -> None:
    Manifest.model_validate(_manifest(ENTRY | {"range": [0.0, 1.0]}))


def _manifest(entry: dict[str, Any]) -> dict[str, Any]:
    interval = {"value": 0.8, "low": 0.7, "high": 0.9}
    return {
        "dermstack": "0", "experiment": "x", "objective": "auc", "headline": interval, "chosen": "mean", "selected": [],
        "folds": 2, "threads": 1, "columns": {"id": "id", "target": "y"}, "resize": "square", "cache_format": "raw",
        "features": {}, "embeddings": {}, "image_runs": [], "imported_runs": [entry], "stackers": [], "scales": {},
        "training": {"rows": 10, "positives": 2}, "files": {},
    }  # fmt: skip


def test_an_exact_0_has_the_logit_that_it_had_in_training_whatever_else_is_in_the_file(tmp_path: Path) -> None:
    """Files of few rows are written finer or coarser than that of training by chance."""
    experiment = opened_experiment(write_experiment(tmp_path))
    oof, test = predictions(experiment)
    test["p"] = test["p"].round(2).where(test["isic"] != test["isic"].iloc[0], 0.0)
    run = import_frames(experiment, "net", oof, test)
    assert run.meta["clip"] == [0.005, 0.995]
    bundle = Bundle(Path("b.zip"), {"image_runs": [], "folds": 3, "imported_runs": imported_entries([run], 3)})
    ids = experiment.table.test["id"]
    whole = read_imported(bundle, {"net": [tmp_path / "net-test.csv"]}, ids)[0]
    stored = run.frame("test").pivot_table(index="id", columns="fold", values="logit").loc[ids]
    np.testing.assert_array_equal(whole, stored)
    for others in (0, 1, 5):
        kept = ids.iloc[: 1 + others]
        test[test["isic"].isin(kept)].to_csv(tmp_path / "few.csv", index=False)
        few = read_imported(bundle, {"net": [tmp_path / "few.csv"]}, kept)[0]
        np.testing.assert_array_equal(few, whole.iloc[: 1 + others])
    assert one_prediction(bundle, {"net": 0.0}).iloc[0, 0] == whole.iloc[0, 0]
    with pytest.raises(DataError, match="no probability"):
        one_prediction(_bundle(), {"net": 0.0})  # of an earlier import, which did not keep its limits
