"""Level 2 on the small world: what its features are made of, and what they must not be made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import blank_figures, run_cli, small_config

from dermstack.errors import StoreError
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.images import ACQUISITION_FILE
from stack.level1.image_runs import level1_runs
from stack.level2.features import fold_matrix
from stack.level2.probes import stored_probes
from stack.level2.stackers import _warn_of_unseen
from stack.predictions.joined import Predictions, alignment_notes, predictions_of, read_embeddings, standardised
from stack.predictions.ranks import AVERAGED
from stack.settings.config import read_config
from stack.store import read_run
from stack.tables.table import Table
from tabular.cohort import CohortScore
from tabular.encode import MetadataEncoder

FEATURES = {"frozen_z": 4, "aligned_z": 3, "cohort": True}
STACKERS = [
    {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 20, "patience": 5}, "bags": 2, "negatives": 0.8},
    {"name": "line", "kind": "logistic"},
]


@pytest.fixture(scope="module")
def folder(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("level2")
    config = small_config(small_data, folder, features=FEATURES, stackers=STACKERS)
    assert run_cli("oof", "-c", str(config), "-q") == 0
    with blank_figures():
        assert run_cli("stack", "-c", str(config), "-q") == 0
    return folder


@pytest.fixture
def experiment(folder: Path) -> Experiment:
    path = folder / "small.yaml"
    return open_experiment(read_config(path), path, Out(quiet=True))


@pytest.fixture
def predictions(experiment: Experiment) -> Predictions:
    return standardised(predictions_of(experiment, level1_runs(experiment)))


def test_every_fold_net_has_the_same_scale(experiment: Experiment, predictions: Predictions) -> None:
    raw = predictions_of(experiment, level1_runs(experiment))
    for run in range(predictions.oof.shape[1]):
        for net in range(3):
            rows = raw.nets[:, run] == net
            scaled, own = predictions.oof[rows, run], raw.oof[rows, run]
            assert abs(scaled.mean()) < 1e-4
            assert scaled.std() == pytest.approx(1, abs=1e-4)
            np.testing.assert_allclose(
                predictions.test[net, :, run], (raw.test[net, :, run] - own.mean()) / own.std(), atol=1e-3
            )


def test_test_predictions_that_came_averaged_take_the_mean_scale(experiment: Experiment) -> None:
    raw = predictions_of(experiment, level1_runs(experiment))
    averaged = replace(raw, test_nets=np.full_like(raw.test_nets, AVERAGED))
    scales = [(raw.oof[raw.nets[:, 0] == k, 0].mean(), raw.oof[raw.nets[:, 0] == k, 0].std()) for k in range(3)]
    mean, spread = np.mean(scales, axis=0)
    np.testing.assert_allclose(
        standardised(averaged).test[1, :, 0], (raw.test[1, :, 0] - mean) / spread, rtol=1e-3, atol=1e-3
    )


def test_targets_change_no_feature(experiment: Experiment, predictions: Predictions) -> None:
    """The permutation law: features are fitted without targets, so shuffling these leaves every column as it was."""
    embeddings = read_embeddings(experiment, level1_runs(experiment))
    train = experiment.table.train
    target = np.random.default_rng(0).permutation(train["target"].to_numpy())
    shuffled = replace(experiment, table=Table(train.assign(target=target), experiment.table.test))
    for fold in range(3):
        before = fold_matrix(experiment, embeddings, predictions, fold, ungrouped=True)
        after = fold_matrix(shuffled, embeddings, predictions, fold, ungrouped=True)
        pd.testing.assert_frame_equal(before.train, after.train)
        pd.testing.assert_frame_equal(before.held, after.held)


def test_another_groups_predictions_change_no_row(experiment: Experiment, predictions: Predictions) -> None:
    embeddings = read_embeddings(experiment, level1_runs(experiment))
    matrix = fold_matrix(experiment, embeddings, predictions, 0)
    held = experiment.table.train.iloc[matrix.held_rows]
    mine = (held["group"] == held["group"].iloc[0]).to_numpy()
    z = {name: embedding.oof[matrix.held_rows].copy() for name, embedding in embeddings.items()}
    logits = predictions.oof[np.isin(predictions.rows, matrix.held_rows)].copy()
    before = matrix.features.transform(held, logits, z)
    logits[~mine] += 3
    for values in z.values():
        values[~mine] *= -2
    after = matrix.features.transform(held, logits, z)
    pd.testing.assert_frame_equal(before[mine], after[mine])
    assert not before[~mine].equals(after[~mine])


def test_aligned_components_stand_in_the_order_of_the_table(experiment: Experiment) -> None:
    runs = level1_runs(experiment)
    embeddings = read_embeddings(experiment, runs)
    run = next(run for run in runs if run.name == "tiny")
    oof, test = run.frame("oof").set_index("id"), run.frame("test")
    alignment = embeddings["tiny"].alignment
    assert alignment is not None
    assert embeddings["still"].alignment is None
    for place in (0, 17, 100):
        row = experiment.table.train["id"].iloc[place]
        at = oof.index.get_loc(row)
        made = alignment.transform(run.array("oof_z")[[at]], int(oof["fold"].iloc[at]))[0]
        np.testing.assert_allclose(embeddings["tiny"].oof[place], made, atol=1e-5)
    for net in range(3):
        at = np.flatnonzero((test["fold"] == net) & (test["id"] == experiment.table.test["id"].iloc[5]))
        made = alignment.transform(run.array("test_z")[at], net)[0]
        np.testing.assert_allclose(embeddings["tiny"].test_of(net)[5], made, atol=1e-5)
    ((note, _),) = alignment_notes(embeddings, runs)
    assert note.startswith("tiny: embeddings of 3 nets aligned on train rows, 3 components, residual ")


def test_what_brings_new_images_onto_the_shared_axes_is_kept(experiment: Experiment) -> None:
    runs = level1_runs(experiment)
    embedding = read_embeddings(experiment, runs)["tiny"]
    level2 = read_run(experiment.models / "gbdt")
    assert level2 is not None
    run = next(run for run in runs if run.name == "tiny")
    test = run.frame("test")
    for net in range(3):
        rows = (test["fold"] == net).to_numpy()
        z = run.array("test_z")[rows].astype(np.float32)
        made = (z - level2.array("tiny_mean")[net]) @ level2.array("tiny_turn")[net]
        np.testing.assert_array_equal(made, embedding.test_of(net))


def test_what_a_fold_needs_for_new_images_is_kept(experiment: Experiment) -> None:
    """Frozen components and scales of logits from what lies on disk, against the matrix that was trained on."""
    runs = level1_runs(experiment)
    raw, level2 = predictions_of(experiment, runs), read_run(experiment.models / "gbdt")
    of_fold = read_run(experiment.models / "gbdt" / "fold_1")
    assert level2 is not None
    assert of_fold is not None
    matrix = fold_matrix(experiment, read_embeddings(experiment, runs), standardised(raw), 1)
    held = experiment.table.train["id"].iloc[matrix.held_rows]
    for run, name in enumerate(raw.names):
        mean, spread = level2.meta["scales"][name]["1"]
        np.testing.assert_allclose(
            matrix.held[name], (raw.oof[matrix.held_rows, run] - mean) / spread, rtol=1e-4, atol=1e-4
        )
    still = next(run for run in runs if run.name == "still")
    z = still.array("oof_z")[pd.Index(still.frame("oof")["id"]).get_indexer(held)].astype(np.float32)
    made = (z - of_fold.array("still_mean")) @ of_fold.array("still_turn")
    np.testing.assert_allclose(made[:, :4], matrix.held[[f"still_z{i}" for i in range(4)]], atol=1e-4)


def test_embeddings_in_the_order_of_the_table_are_not_copied(experiment: Experiment) -> None:
    runs = [run for run in level1_runs(experiment) if run.meta["kind"] == "frozen"]
    train = experiment.table.train
    turned = replace(experiment, table=Table(train.iloc[::-1], experiment.table.test.iloc[::-1]))
    for name, as_filed in read_embeddings(experiment, runs).items():
        assert all(isinstance(z, np.memmap) for z in (as_filed.oof, as_filed.test[0])), "worker processes map the file"
        other = read_embeddings(turned, runs)[name]
        np.testing.assert_array_equal(other.oof, as_filed.oof[::-1])
        np.testing.assert_array_equal(other.test[0], as_filed.test[0][::-1])


def test_frozen_test_rows_are_joined_by_id(experiment: Experiment) -> None:
    runs = level1_runs(experiment)
    still = next(run for run in runs if run.name == "still")
    ids = still.frame("test").query("fold == 0")["id"].tolist()
    taken = read_embeddings(experiment, runs)["still"].test[0]
    for place in (0, 5, 11):
        z = still.array("test_z")[ids.index(experiment.table.test["id"].iloc[place])]
        np.testing.assert_array_equal(taken[place], z)


def test_an_embedding_that_lacks_a_row_is_refused(experiment: Experiment) -> None:
    longer = pd.concat([experiment.table.train, experiment.table.train.head(1).assign(id="stranger")])
    table = replace(experiment.table, train=longer)
    with pytest.raises(StoreError, match="lacks 1 of"):
        read_embeddings(replace(experiment, table=table), level1_runs(experiment))


def test_the_columns_are_those_that_were_asked_for(experiment: Experiment) -> None:
    level2 = read_run(experiment.models / "gbdt")
    assert level2 is not None
    columns = level2.meta["features"]
    assert {"tiny", "age", "tiny_group_rank", "tiny_cohort_z", "still_z3", "tiny_z2", "tiny_group_nearest"} <= {
        *columns
    }
    assert not {"group_images", "width", "bytes", "tiny_z3", "still_z4"} & {*columns}


def test_the_first_stacker_says_what_it_must_not_live_on(experiment: Experiment) -> None:
    level2, line = (read_run(experiment.models / name) for name in ("gbdt", "line"))
    assert level2 is not None
    assert line is not None
    stored = stored_probes(experiment, level2)
    assert stored is not None
    probes = stored.set_index("what")
    assert {"alone", "context_counts", "shortcuts"} <= set(probes.index)
    oof = level2.frame("oof")
    for name in ("alone", "context_counts", "shortcuts"):
        assert probes.loc[name, "rows"] == len(oof)
        assert probes.loc[name, "low"] <= probes.loc[name, "auc"] <= probes.loc[name, "high"]
    assert stored_probes(experiment, line) is None


def test_shortcuts_are_features_only_when_asked_for(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = small_config(
        small_data, copy, features=FEATURES | {"shortcuts": True, "context_counts": True}, stackers=STACKERS
    )
    assert run_cli("stack", "-c", str(config), "-q") == 0
    columns = read_run(copy / "runs" / "small" / "models" / "gbdt").meta["features"]  # type: ignore[union-attr]
    assert {"width", "height", "bytes", "group_images", "group_images_of_site"} <= {*columns}
    (copy / "runs" / "small" / ACQUISITION_FILE).unlink()
    assert run_cli("stack", "-c", str(config), "-q") == 2
    assert "features.shortcuts needs width, height and bytes" in capsys.readouterr().err


def test_the_report_says_what_shortcuts_would_add(folder: Path) -> None:
    page = (folder / "runs" / "small" / "report.html").read_text(encoding="utf-8")
    for words in ("With the number of images in the group", "Without the other images of each group", "residual"):
        assert words in page


def test_a_category_that_only_test_rows_have_is_counted(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    test = pd.read_csv(data / "test.csv", dtype=str, keep_default_na=False)
    test.loc[:6, "anatom_site_general_challenge"] = "moon"
    test.to_csv(data / "test.csv", index=False)
    models = [{"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}]
    config = small_config(data, tmp_path, image_models=models, stackers=STACKERS[1:])
    assert run_cli("oof", "-c", str(config), "-q") == 0
    assert run_cli("stack", "--no-report", "-c", str(config)) == 0
    assert "site 'moon' (7)" in capsys.readouterr().out


def test_a_lone_image_is_judged_without_its_group(experiment: Experiment, predictions: Predictions) -> None:
    embeddings = read_embeddings(experiment, level1_runs(experiment))
    alone = fold_matrix(experiment, embeddings, predictions, 0, ungrouped=True).held_ungrouped
    assert alone is not None
    assert (alone["tiny_group_std"] == 0).all()
    assert (alone["tiny_group_rank"] == 0.5).all()
    assert (alone["tiny_group_nearest"] == 0).all()
    assert (alone["tiny_group_max"] == alone["tiny"]).all()


def test_what_was_fitted_on_a_folds_rows_lies_beside_its_models(
    experiment: Experiment, predictions: Predictions
) -> None:
    embeddings = read_embeddings(experiment, level1_runs(experiment))
    for fold in range(3):
        kept = json.loads((experiment.models / "line" / f"fold_{fold}" / "features.json").read_text(encoding="utf-8"))
        matrix = fold_matrix(experiment, embeddings, predictions, fold)
        held = experiment.table.train.iloc[matrix.held_rows]
        logits = predictions.oof[np.isin(predictions.rows, matrix.held_rows)]
        cohort = CohortScore.from_json(json.dumps(kept["cohort"])).transform(held, logits, predictions.names)
        assert (cohort.to_numpy() == matrix.held[cohort.columns].to_numpy()).all()
        encoded = MetadataEncoder.from_json(json.dumps(kept["metadata"])).transform(held)
        np.testing.assert_array_equal(encoded.to_numpy(), matrix.held[encoded.columns].to_numpy())


def test_words_that_training_lacks_are_listed_in_a_few_words(capsys: pytest.CaptureFixture[str]) -> None:
    first = {"ward": {f"w{number}": 1 + number % 3 for number in range(900)}, "sex": {"M": 4}}
    _warn_of_unseen([first, {"sex": {"M": 7}}, *({f"c{place}": {"x": 1}} for place in range(9))], Out())
    said = " ".join(capsys.readouterr().out.split())
    assert len(said) < 600
    assert said.endswith("… 11 in all")
    _warn_of_unseen([first, {"sex": {"M": 7}}], Out())
    said = " ".join(capsys.readouterr().out.split())
    assert "sex 'M' (7); ward 'w101' (3), 'w104' (3), 'w107' (3), 'w11' (3), 'w110' (3), … 900 values in all" in said
    _warn_of_unseen([{}, {}], Out())
    assert capsys.readouterr().out == ""
