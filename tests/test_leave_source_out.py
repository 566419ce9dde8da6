"""The estimate with sources held out, from the config to the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from imported_experiment import command_error, import_paths, opened_experiment
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sourced_experiment import HOSPITALS, write_sourced

import dermstack
from dermstack.pipeline import StackResult, run_stack
from dermstack.report.sources import sources_section
from stack.imported.prediction_files import ImportedColumns
from stack.metrics.intervals import interval
from stack.metrics.own_metric import own_label, own_metric
from stack.settings.config import read_config
from stack.sources.estimates import HELD_OUT, LEVEL_2_ONLY, OWN, REFITTED, SEEN, TRAINED_AGAIN, source_sentences
from stack.sources.leave_source_out import FOLDER

pytestmark = pytest.mark.usefixtures("drift_fitted_once", "module_without_figures")

LIGHT = {"stackers": [{"name": "line", "kind": "logistic", "runs": []}]}


def changed_rows(config: Path, change: object) -> None:
    """Rewrites train.csv beside the config."""
    path = config.parent / "train.csv"
    frame = pd.read_csv(path)
    change(frame)  # type: ignore[operator]
    frame.to_csv(path, index=False)


def stacked(config: Path, *overrides: str) -> StackResult:
    return run_stack(config, overrides=overrides, report=False)


def scores_by_source(made: StackResult) -> pd.DataFrame:
    """The out-of-fold rows of the blend that was fitted with folds of sources."""
    folder = made.experiment.folder / FOLDER / "blend"
    oof = pd.read_parquet(folder / "oof.parquet")
    hospital = made.experiment.table.train.set_index("id")["source"]
    return oof.assign(source=hospital.loc[oof["id"]].to_numpy())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StackResult:
    return run_stack(write_sourced(tmp_path_factory.mktemp("sourced")))


def test_what_helps_only_in_known_hospitals_is_lost_where_they_are_held_out(finished: StackResult) -> None:
    found = finished.by_source
    assert found is not None
    assert [(one.origin, one.held_out) for one in found.estimates] == [(OWN, SEEN), (REFITTED, HELD_OUT)]
    groups, sources = found.estimates
    assert groups.pooled == finished.headline
    assert sources.difference is not None
    assert sources.difference.high < 0, "the column `local` misleads in a hospital that was not in training"
    assert sources.over.mean < groups.over.mean - 0.1
    assert sources.over.next_low < sources.over.low
    assert found.strictest is sources
    assert not found.left_out


def test_each_fold_holds_out_whole_sources_and_scores_them(finished: StackResult) -> None:
    oof, found = scores_by_source(finished), finished.by_source
    assert found is not None
    assert (oof.groupby("source")["fold"].nunique() == 1).all()
    assert (oof.groupby("fold")["source"].nunique() == 1).all()
    target = finished.experiment.table.train.set_index("id")["target"]
    for name, rows in oof.groupby("source"):
        line = found.strictest.over.sources.set_index("source").loc[name]
        assert line["auc"] == pytest.approx(roc_auc_score(target.loc[rows["id"]], rows["score"]), abs=2e-3)


def test_a_sources_scores_do_not_depend_on_its_targets(tmp_path: Path) -> None:
    """Law: no model that scores a source, and no weight of its blend, was fitted to the source's targets.

    Ranks and calibration compare a source with scores of the others, by models that had seen these targets, so the
    blend's values may move, but not the order that it gives to the source's rows.
    """
    config = write_sourced(tmp_path, **LIGHT)

    def scored() -> pd.DataFrame:
        made = stacked(config)
        line = pd.read_parquet(made.experiment.folder / FOLDER / "models/line/oof.parquet").set_index("id")["p"]
        return scores_by_source(made).set_index("id").join(line)

    def flip(frame: pd.DataFrame) -> None:
        frame["target"] = np.where(frame["hospital"] == "Vienna", 1 - frame["target"], frame["target"])

    before = scored()
    changed_rows(config, flip)
    after = scored().loc[before.index]
    vienna = before["source"] == "Vienna"
    assert np.array_equal(before.loc[vienna, "p"], after.loc[vienna, "p"])
    assert not np.array_equal(before.loc[~vienna, "p"], after.loc[~vienna, "p"])
    for column in ("score", "rank_mean_nested", "mean_nested"):
        orders = [frame.loc[vienna, column].rank() for frame in (before, after)]
        assert np.array_equal(*orders), column


def test_the_pages_show_both_numbers(finished: StackResult) -> None:
    folder, found = finished.experiment.folder, finished.by_source
    assert found is not None
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="sources"' in page
    for one in found.estimates:
        assert f"{one.over.mean:.3f}" in page
        assert f"{one.pooled.value:.3f}" in page
    best = found.strictest.over
    assert f"{best.next_low:.3f} to {best.next_high:.3f}" in page
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert f"| sources held out | {found.strictest.pooled.value:.3f}" in card
    whats = [finding.what for finding in finished.findings]
    assert "the AUC is lower where the source was not in training" in whats
    assert set(found.facts["source"]) == set(HOSPITALS)
    assert found.facts["positives"].sum() == finished.experiment.target.sum()


def test_the_section_names_an_objective_of_ones_own(finished: StackResult, tmp_path: Path) -> None:
    code = "from sklearn.metrics import roc_auc_score\n\ndef score(y, s):\n    return roc_auc_score(y, s)\n"
    (tmp_path / "measured_here.py").write_text(code, encoding="utf-8")
    objective = own_metric("measured_here:score", tmp_path, may_take_groups=False)
    assert finished.by_source is not None
    page = str(sources_section(replace(finished.by_source, objective=objective)).markup)
    assert f"{own_label(objective)}, all images" in page.replace("<wbr>", "")


def test_compare_shows_the_auc_in_held_out_sources(finished: StackResult, tmp_path: Path) -> None:
    out = tmp_path / "board.csv"
    runs = finished.experiment.config.runs
    assert run_cli("compare", "--folder", str(runs), "--out", str(out), "--out", str(tmp_path / "b.html")) == 0
    found = finished.by_source
    assert found is not None
    assert pd.read_csv(out)["other_sources"].iloc[0] == f"{found.summary}"
    assert found.summary in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_it_is_switched_off_and_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sourced(tmp_path, **LIGHT)
    off = stacked(config, "estimate.leave_source_out=false")
    assert off.by_source is None
    assert not (off.experiment.folder / FOLDER).exists()
    on = stacked(config)
    assert on.by_source is not None
    assert on.headline == off.headline
    assert on.blend.meta["fingerprint"] == off.blend.meta["fingerprint"], "the submission does not depend on it"
    line = pd.read_parquet(on.experiment.folder / FOLDER / "models/line/oof.parquet").set_index("id")["p"]
    blend = scores_by_source(on).set_index("id")["score"]
    assert (blend.rank() == line.loc[blend.index].rank()).all(), "one run alone, on one scale over all sources"
    assert stacked(config, "estimate.leave_source_out=false").by_source is None, "not of an earlier call"


def test_nothing_is_said_of_sources_where_none_is_named(tmp_path: Path) -> None:
    made = run_stack(write_sourced(tmp_path, source_column=None, **LIGHT))
    assert made.by_source is None
    page = (made.experiment.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="sources"' not in page
    assert "No source (hospital, camera) is named" in page


def test_rows_without_a_source_and_too_few_sources_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sourced(tmp_path, **LIGHT)
    changed_rows(config, lambda frame: frame.__setitem__("hospital", "Basel"))
    assert run_cli("stack", "-c", str(config), "--no-report") == 0
    assert "no leave-source-out estimate: 1 of 1 sources has positives" in capsys.readouterr().out.replace("\n", " ")
    changed_rows(config, lambda frame: frame.loc.__setitem__((3, "hospital"), ""))
    assert run_cli("stack", "-c", str(config), "--no-report") == 0
    assert "1 of 236 training rows have no source" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "runs/sourced/leave_source_out.json").exists()


def test_images_of_a_patient_outside_her_main_hospital_are_left_out(tmp_path: Path) -> None:
    config = write_sourced(tmp_path, **LIGHT)
    frame = pd.read_csv(tmp_path / "train.csv")
    three = frame.index[frame["patient"].duplicated(keep=False)][:2]
    frame.loc[len(frame)] = {**frame.loc[three[0]].to_dict(), "image": "elsewhere", "hospital": "Vienna"}
    frame.to_csv(tmp_path / "train.csv", index=False)
    made = stacked(config)
    found = made.by_source
    assert found is not None
    assert (found.shared_groups, found.left_out) == (1, 1)
    oof = scores_by_source(made)
    assert "elsewhere" not in set(oof["id"])
    assert len(oof) == len(frame) - 1
    assert (oof.groupby("source")["fold"].nunique() == 1).all()
    assert any("neither trained on nor scored" in sentence for sentence in source_sentences(found))


def test_units_are_scored_where_their_source_is_held_out(tmp_path: Path) -> None:
    """A patient of two hospitals is a unit of the one with most of her images, and only these are pooled."""
    config = write_sourced(tmp_path, **LIGHT, predict_per={"columns": ["group"], "pooling": ["maximum"]})
    frame = pd.read_csv(tmp_path / "train.csv")
    both = frame.index[frame["patient"].duplicated(keep=False)][0]
    frame.loc[len(frame)] = {**frame.loc[both].to_dict(), "image": "elsewhere", "hospital": "Vienna"}
    frame.to_csv(tmp_path / "train.csv", index=False)
    made = stacked(config)
    found = made.by_source
    assert found is not None
    assert (found.strictest.held_out, found.left_out) == (HELD_OUT, 1)
    oof = pd.read_parquet(made.experiment.folder / FOLDER / "blend" / "oof.parquet").set_index("id")
    of_patients = frame.groupby("patient")
    assert set(oof.index) == set(of_patients.groups)
    assert (oof["target"] == of_patients["target"].max().loc[oof.index]).all()
    hospital = of_patients["hospital"].first().loc[oof.index]
    assert (oof.groupby(hospital.to_numpy())["fold"].nunique() == 1).all()
    assert oof.loc[frame["patient"][both], "images"] == of_patients.size()[frame["patient"][both]] - 1
    assert found.strictest.rows == len(oof)
    own = interval("auc", oof["target"], oof["score"], oof["split_group"].to_numpy(object))
    assert found.strictest.as_fitted is not None
    assert found.strictest.as_fitted.value == own.value
    within = [roc_auc_score(part["target"], part["score"]) for _, part in oof.groupby(hospital.to_numpy())]
    np.testing.assert_allclose(found.strictest.over.sources.sort_values("source")["auc"], within, atol=1e-3)
    assert found.facts.set_index("source")["rows"].to_dict() == hospital.value_counts().to_dict()
    assert "units are meant" in sources_section(found, unit="unit").markup
    assert "units are meant" not in sources_section(found).markup


@pytest.mark.slow
def test_shared_patients_join_hospitals_or_lose_images(tmp_path: Path) -> None:
    config = write_sourced(tmp_path, **LIGHT)
    frame = pd.read_csv(tmp_path / "train.csv")
    shared = [f"{name}-0" for name in HOSPITALS[1:]]
    frame.loc[frame["patient"].isin(shared), "patient"] = f"{HOSPITALS[0]}-0"  # one patient in all hospitals
    frame.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(dermstack.DataError, match=r"1 of 1 sources has .* after those that share 1 split groups"):
        opened_experiment(config, "folds.by=source")
    again = ("experiment=sourced-by-source", "folds.by=source", "folds.shared_groups=drop")
    made = stacked(config, *again)
    train = made.experiment.table.train
    fold = made.experiment.folds.frame["fold"]
    assert (train["id"].to_numpy() == made.experiment.folds.frame["id"].to_numpy()).all()
    for name in ("source", "group"):
        assert (fold.groupby(train[name]).nunique() == 1).all()
    lost = set(frame["image"]) - set(train["id"])
    assert lost
    assert set(frame.set_index("image").loc[sorted(lost), "patient"]) == {f"{HOSPITALS[0]}-0"}
    assert made.experiment.unreadable_train == 0
    found = made.by_source
    assert found is not None
    assert found.own.held_out == HELD_OUT


def imported(config: Path, fold_of: pd.Series, *overrides: str, foreign: bool = False) -> None:
    """Imports a run `net` whose nets held out these folds (by id)."""
    experiment = opened_experiment(config, *overrides)
    rng = np.random.default_rng(0)
    train = experiment.table.train
    p = expit(train["target"] + rng.normal(size=len(train)))
    path = config.parent / "net.csv"
    pd.DataFrame({"image": train["id"], "p": p, "fold": fold_of.loc[train["id"]].to_numpy()}).to_csv(path, index=False)
    columns = ImportedColumns("image", "p", "fold")
    import_paths(experiment, "net", path, None, columns=columns, foreign_folds=foreign, replace=True)


SEES_NET = {"stackers": [{"name": "line", "kind": "logistic"}]}


def test_networks_that_had_seen_the_source_make_the_estimate_optimistic_in_words(tmp_path: Path) -> None:
    config = write_sourced(tmp_path, **SEES_NET)
    frame = opened_experiment(config).folds.frame
    imported(config, frame.set_index("id")["fold"])
    found = run_stack(config).by_source
    assert found is not None
    best = found.strictest
    assert (best.origin, best.held_out, best.seen_by) == (REFITTED, LEVEL_2_ONLY, ("net",))
    said = " ".join(source_sentences(found))
    assert "optimistic: level 2 and the blend were fitted without it, but net had been trained on other images" in said
    assert "expect an AUC" not in said
    assert "optimistic" in found.summary


def test_imported_folds_that_keep_sources_apart_hold_them_out(tmp_path: Path) -> None:
    config = write_sourced(tmp_path, **SEES_NET)
    train = opened_experiment(config).table.train.set_index("id")
    imported(config, pd.Series(pd.factorize(train["source"])[0], index=train.index), foreign=True)
    found = stacked(config).by_source
    assert found is not None
    assert (found.strictest.origin, found.strictest.held_out) == (REFITTED, HELD_OUT)


def test_an_import_without_folds_may_have_seen_everything(tmp_path: Path) -> None:
    config = write_sourced(tmp_path, **SEES_NET)
    experiment = opened_experiment(config)
    path = tmp_path / "net.csv"
    rng = np.random.default_rng(0)
    p = expit(experiment.target + rng.normal(size=len(experiment.target)))
    pd.DataFrame({"image": experiment.table.train["id"], "p": p}).to_csv(path, index=False)
    import_paths(experiment, "net", path, None, columns=ImportedColumns("image", "p", None), foreign_folds=True)
    found = stacked(config).by_source
    assert found is not None
    assert found.strictest.held_out == LEVEL_2_ONLY


def test_everything_trained_again_by_source_is_shown_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_sourced(tmp_path, **SEES_NET)
    imported(config, opened_experiment(config).folds.frame.set_index("id")["fold"])
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    by_source = ("experiment=sourced-by-source", "folds.by=source")
    imported(config, opened_experiment(config, *by_source).folds.frame.set_index("id")["fold"], *by_source)
    assert run_cli("stack", "--no-report", "-c", str(config), "--by-source", "-q") == 0
    own = json.loads((tmp_path / "runs/sourced-by-source/leave_source_out.json").read_text())
    assert [(one["origin"], one["held_out"]) for one in own["estimates"]] == [(OWN, HELD_OUT)]
    capsys.readouterr()
    assert run_cli("stack", "-c", str(config)) == 0, "it notices that the other experiment is complete"
    found = stacked(config).by_source
    assert found is not None
    assert [one.origin for one in found.estimates] == [OWN, REFITTED, TRAINED_AGAIN]
    assert found.strictest.origin == TRAINED_AGAIN
    assert found.strictest.pooled.value == pytest.approx(own["estimates"][0]["pooled"]["value"])
    assert not found.strictest.note
    changed = stacked(config, "blend.trials=3").by_source
    assert changed is not None
    assert changed.estimates[-1].note == "made with other settings: blend.trials"
    page = (tmp_path / "runs/sourced/report.html").read_text(encoding="utf-8")
    assert "everything trained again" in page


def test_oof_by_source_works_on_the_other_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sourced(tmp_path, **LIGHT)
    assert run_cli("oof", "-c", str(config), "--by-source") == 0
    assert "sourced-by-source: 236 training rows" in capsys.readouterr().out.replace("\n", " ")
    assert "--by-source" in command_error(capsys, "oof", "-c", str(config), "--set", "folds.by=source", "--by-source")


def test_repeats_of_a_stacker_keep_sources_whole(tmp_path: Path) -> None:
    config = write_sourced(tmp_path, **{"stackers": [{"name": "line", "kind": "logistic", "runs": [], "repeats": 2}]})
    found = stacked(config, "folds.by=source").by_source
    assert found is not None
    assert [(one.origin, one.held_out) for one in found.estimates] == [(OWN, HELD_OUT)]
    from stack.predictions.repeats import repeated

    experiment = opened_experiment(config, "folds.by=source")
    again = repeated(experiment, 1).folds.frame["fold"]
    assert (again.groupby(experiment.table.train["source"]).nunique() == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": {"by": "source"}, "source_column": None}, "folds.by: source needs sources"),
        ({"folds": {"by": "source", "file": "folds.csv"}}, "folds.by: source makes new folds, but folds.file names"),
        ({"folds": {"by": "hospital"}}, "folds.by"),
        ({"estimate": {"leave_source_out": "perhaps"}}, "estimate.leave_source_out"),
    ],
)
def test_what_cannot_be_held_out_is_refused_when_the_config_is_read(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(dermstack.ConfigError, match=message):
        read_config(write_sourced(tmp_path, **changes))  # type: ignore[arg-type]


def test_sources_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(dermstack.ConfigError, match=r"data\.columns\.source and data\.sources both name sources"):
        read_config(write_sourced(tmp_path), ("data.sources=sources.csv",))


def test_a_damaged_result_names_its_file(finished: StackResult, tmp_path: Path) -> None:
    from stack.sources.estimates import RESULT, stored_leave_source_out

    text = (finished.experiment.folder / RESULT).read_text(encoding="utf-8")
    fingerprint = finished.blend.meta["fingerprint"]
    (tmp_path / RESULT).write_text(text.replace('"own folds"', '"other"'), encoding="utf-8")
    with pytest.raises(dermstack.StoreError, match=RESULT):
        stored_leave_source_out(tmp_path, fingerprint)
    (tmp_path / RESULT).write_text(text, encoding="utf-8")
    read = stored_leave_source_out(tmp_path, fingerprint)
    assert read is not None
    assert read.strictest.over.sources.equals(finished.by_source.strictest.over.sources)  # type: ignore[union-attr]
    assert stored_leave_source_out(tmp_path, "of another blend") is None


def test_the_command_sources_writes_what_data_sources_reads(tmp_path: Path) -> None:
    config, out = write_sourced(tmp_path, source_column=None, **LIGHT), tmp_path / "sources.csv"
    assert run_cli("sources", "-c", str(config), "--columns", "hospital", "--out", str(out), "-q") == 0
    written = pd.read_csv(out)
    train = pd.read_csv(tmp_path / "train.csv")
    assert written.set_index("image")["source"].equals(train.set_index("image")["hospital"].rename("source"))
    settings = yaml.safe_load(config.read_text())
    settings["data"]["sources"] = "sources.csv"
    config.write_text(yaml.safe_dump(settings))
    found = stacked(config).by_source
    assert found is not None
    assert found.strictest.held_out == HELD_OUT


@pytest.mark.slow
def test_embeddings_of_a_frozen_backbone_have_seen_no_source(small_data: Path, tmp_path: Path) -> None:
    """Its head has, which is in its logits: the estimate is optimistic as soon as these are used."""
    rows = pd.read_csv(small_data / "train.csv")
    rows["source"] = [f"h{number % 3}" for number in pd.factorize(rows["patient_id"])[0]]
    rows[["image_name", "source"]].to_csv(tmp_path / "sources.csv", index=False)
    features = {"logits": False, "aggregates": False, "frozen_z": 4}
    config = small_config(
        small_data, tmp_path, stackers=[{"name": "z", "kind": "logistic", "features": features}],
        image_models=[
            {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}
        ],
        blend={"runs": ["z"], "trials": 2},
    )  # fmt: skip
    given = (f"data.sources={tmp_path / 'sources.csv'}",)
    assert run_cli("oof", "-c", str(config), "-q", "--set", given[0]) == 0
    found = stacked(config, *given).by_source
    assert found is not None
    assert (found.strictest.origin, found.strictest.held_out) == (REFITTED, HELD_OUT)
    found = stacked(config, *given, "stackers.0.features.logits=true").by_source
    assert found is not None
    assert (found.strictest.held_out, found.strictest.seen_by) == (LEVEL_2_ONLY, ("still",))
