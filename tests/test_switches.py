"""Every switch of the config, on and off, alone and in pairs, ends in a report and a bundle, or is refused by name."""

from __future__ import annotations

import copy
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import assert_predicts_as_submitted, run_cli, small_config
from covering import Row, covering_array, pairs_in
from imported_experiment import COLUMNS, import_frames, opened_experiment, predictions, write_experiment
from pydantic import BaseModel
from test_docs import TEXTS, blocks

from image_models.settings import Training
from stack.settings.config import Config

METADATA = ("age", "sex", "site")

# Level 2 and blend on imported predictions. `one_…` is the same value in every row, `no_…` is empty in every row.
IMPORTED: dict[str, list[object]] = {
    "data.columns.age": [None, "years", "one_age", "no_age"],
    "data.columns.sex": [None, "sex", "one_sex", "no_sex"],
    "data.columns.site": [None, "site", "one_site"],
    "data.columns.source": [None, "hospital", "one_site"],
    "data.columns.diagnosis": [None, "dx"],
    "data.columns.width": [None, "pixels", "one_age"],
    "data.columns.height": [None, "pixels"],
    "data.columns.bytes": [None, "pixels"],
    "data.columns.fold": [None, "own_fold"],
    "data.test": ["test.csv", None],
    "data.sample_submission": ["sample.csv", None],
    "data.duplicates": [None, "pairs.csv"],
    "folds.stratify": [[], ["group_size"], ["age"], ["group_size", "age"]],
    **{
        f"features.{name}": [True, False]
        for name in ("logits", "metadata", "aggregates", "cohort", "context_counts", "shortcuts")
    },
    "stackers.0.kind": ["lightgbm", "xgboost", "catboost", "logistic"],
    "stackers.0.bags": [1, 2],
    "stackers.0.negatives": [1.0, 0.7],
    "stackers.0.positive_weight": [1.0, 2.0],
    "stackers.0.monotone": [False, True],
    "stackers.0.enabled": [True, False],
    "blend.methods": [
        ["rank_mean"], ["mean"], ["rank_logistic"], ["logistic"], ["averaged_logistic"], ["hill_climb"], ["optuna"],
        ["rank_mean", "mean", "logistic", "hill_climb", "optuna"],
    ],
    "blend.power": [False, True],
    "blend.preselect": [True, False],
    "blend.replacement": [True, False],
    "objective": ["auc", "pauc80", "ap", "logloss"],
    "review": [None, {"sensitivity": 0.9}, {"npv": 0.9, "ppv": 0.5, "confidence": 0.8, "test": "approximate"}],
}  # fmt: skip

# The whole way from images to a bundle that predicts.
PICTURES: dict[str, list[object]] = {
    "data.columns.age": [None, "age_approx", "one_age"],
    "data.columns.sex": [None, "sex"],
    "data.columns.site": [None, "anatom_site_general_challenge"],
    "data.test": ["test.csv", None],
    "data.test_images": [None, "images"],
    "data.on_unreadable": ["refuse", "drop", "tolerate"],
    "data.on_unreadable_test": ["refuse", "table"],
    "data.bits_stored": [None, 16],
    "data.similar_names": [False, True],
    "data.follow_links": [False, True],
    "data.swap_red_blue": [False, True],
    "data.find_duplicates": [True, False],
    "data.on_chain": ["refuse", "merge", "ignore"],
    "data.resize": ["square", "short_side"],
    "data.cache_format": ["raw", "jpeg"],
    "image_models.0.metadata": [[], ["age"], ["sex", "site"]],
    "image_models.0.target": ["binary", "diagnosis"],
    "image_models.0.diagnosis.unknown": ["class", "target"],
    "image_models.0.tta": ["none", "flips"],
    "image_models.0.balance": ["none", "sqrt", "full"],
    "image_models.0.select": ["last", "best"],
    "image_models.0.augment_on": ["cpu", "device"],
    "image_models.0.normalise": [None, {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}],
    "image_models.0.pretrained": [False],
    "image_models.0.selected": [False, True],
    "image_models.0.enabled": [True, False],
    "image_models.1.frozen": [True, False],
    "features.metadata": [True, False],
    "features.aggregates": [True, False],
    "features.neighbours": [True, False],
    "features.aligned_z": [0, 2],
    "features.frozen_z": [0, 2],
    "stackers.0.kind": ["lightgbm", "logistic"],
    "review": [None, {"npv": 0.9, "specificity": 0.8}],
}

GPU = ("precision", "compile")  # options of the training loop that need a GPU or a compiler

ELSEWHERE = {  # switches that no row of these arrays turns, and the tests that do
    "backend": "test_level1_jobs_ray.py",
    "ray.address": "test_level1_jobs_ray.py",
    "device": "test_gpu.py, with a GPU",
    "features.python": "test_python_features.py",
    "stackers.device": "needs a GPU build",
    "data.images": "the two arrays: none, and a folder",
    "data.external.columns.group": "test_external.py",
    "data.external.columns.age": "test_external.py",
    "data.external.columns.sex": "test_external.py",
    "data.external.columns.site": "test_external.py",
    "data.external.columns.diagnosis": "test_external.py",
    "data.external.swap_red_blue": "test_images.py",
    "data.external.on_collision": "test_external.py",
    **{f"data.unlabelled.columns.{role}": "test_unlabelled.py" for role in ("group", "age", "sex", "site")},
    "data.unlabelled.swap_red_blue": "test_unlabelled.py",
    "data.unlabelled.on_collision": "test_unlabelled.py",
    "image_models.frozen": "image_models.1.frozen here",
    "image_models.precision": "test_gpu.py, with a GPU",
    "image_models.compile": "needs a compiler",
    "image_models.pseudo_labels": "test_pseudo_labels.py",
    "image_models.pseudo_labels.labels": "test_pseudo_labels.py",
    "image_models.pseudo_labels.rows": "test_unlabelled.py",
    "blend.runs": "test_views.py",
    **dict.fromkeys(
        [f"review.{key}" for key in ("sensitivity", "npv", "specificity", "ppv", "test")], "test_review.py"
    ),
    "predict_per": "test_unit_rows.py",
    "predict_per.target": "test_unit_rows.py",
    "predict_per.pooling": "test_pooling.py",
    "tuned.blend": "test_tune_run.py",
    "storage": "test_studies.py",
    "data.columns.group": "test_columns_experiment.py",
    "data.columns.numeric": "test_columns_experiment.py",
    "data.columns.categorical": "test_columns_experiment.py",
    "folds.file": "test_columns_experiment.py",
    "folds.by": "test_leave_source_out.py",
    "folds.shared_groups": "test_leave_source_out.py",
    "data.sources": "test_leave_source_out.py",
    "estimate.leave_source_out": "test_leave_source_out.py",
    "estimate.train_by_source": "test_source_training.py",
    "features.columns": "test_columns_experiment.py",
    "features.native_categories": "test_columns_experiment.py",
    "features.target_encoding": "test_target_encoding.py",
    "features.relative": "test_columns_experiment.py",
    "features.relative_site": "test_columns_experiment.py",
    "features.outliers": "test_columns_experiment.py",
    "features.cohort_columns": "test_columns_experiment.py",
    "features.probability_ratio": "test_columns_experiment.py",
    "stackers.runs": "test_views.py",
    **dict.fromkeys(
        [
            f"tracking.{key}"
            for key in ("mlflow", "mlflow.uri", "tensorboard", "wandb", "wandb.entity", "wandb.mode", "report")
        ],
        "test_tracking.py",
    ),
}


def is_possible_imported(row: Row) -> bool:
    """Whether the docs allow this row; what they do not allow has a test of its refusal of its own."""
    return (
        any(row[key] for key in IMPORTED if key.startswith("features."))
        and not (row["features.shortcuts"] and None in (row[f"data.columns.{c}"] for c in ("width", "height", "bytes")))
        and not (row["stackers.0.kind"] == "logistic" and row["stackers.0.positive_weight"] != 1)
        and not (row["stackers.0.kind"] == "logistic" and row["stackers.0.monotone"])
        and not (row["data.test"] is None and row["data.sample_submission"])
        and not ("age" in str(row["folds.stratify"]) and row["data.columns.age"] in (None, "no_age"))
        and not (row["folds.stratify"] and row["data.columns.fold"])
    )


def is_possible_with_pictures(row: Row) -> bool:
    asked = row["image_models.0.metadata"]
    assert isinstance(asked, list)
    return all(row[f"data.columns.{name}"] for name in asked) and not (
        row["data.test"] is None and row["data.test_images"]
    )


def rows_of(places: dict[str, list[object]], is_possible: Any) -> list[Row]:
    return covering_array(places, is_possible)[0]


def settings_of(row: Row, base: dict[str, Any]) -> dict[str, Any]:
    """The settings with the row's values written into them; None removes a key."""
    made = copy.deepcopy(base)
    for key, value in row.items():
        *path, last = key.split(".")
        place: Any = made
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return made


def switches(model: type[BaseModel], where: str = "") -> set[str]:
    """Every key of the config that is on or off, one of several words, or may be none."""
    found = set()
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            found |= switches(inner, f"{where}{name}.")
        if _is_switch(field.annotation):
            found.add(where + name)
    return found


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models_in(part)]


def _is_switch(kind: Any) -> bool:
    if kind is bool or kind is type(None) or get_origin(kind) is Literal:
        return True
    return get_origin(kind) in (tuple, Union, types.UnionType) and any(_is_switch(part) for part in get_args(kind))


def test_every_switch_of_the_config_is_turned_here_or_elsewhere() -> None:
    turned = {key.replace(".0.", ".").replace(".1.", ".") for key in (*IMPORTED, *PICTURES)}
    assert switches(Config) - turned - set(ELSEWHERE) == set()


@pytest.mark.parametrize(
    ("places", "is_possible", "against_the_rules"),
    [
        (
            IMPORTED,
            is_possible_imported,
            {
                ("data.columns.age", "folds.stratify"),
                ("data.columns.fold", "folds.stratify"),
                *((f"data.columns.{name}", "features.shortcuts") for name in ("width", "height", "bytes")),
                ("data.test", "data.sample_submission"),
                ("stackers.0.kind", "stackers.0.positive_weight"),
                ("stackers.0.kind", "stackers.0.monotone"),
            },
        ),
        (
            PICTURES,
            is_possible_with_pictures,
            {
                *((f"data.columns.{name}", "image_models.0.metadata") for name in METADATA),
                ("data.test", "data.test_images"),
            },
        ),
    ],
)
def test_the_rows_hold_every_pair_that_the_docs_allow(
    places: dict[str, list[object]], is_possible: Any, against_the_rules: set[tuple[str, str]]
) -> None:
    rows, hopeless = covering_array(places, is_possible)
    seen = set().union(*(pairs_in(row, places) for row in rows))
    assert all(is_possible(row) for row in rows)
    n = [len(values) for values in places.values()]
    assert len(seen | hopeless) == (sum(n) ** 2 - sum(k * k for k in n)) // 2
    assert {(a, b) for a, _, b, _ in hopeless} == against_the_rules, "the pairs that break a rule by themselves"


IMPORTED_ROWS = rows_of(IMPORTED, is_possible_imported)
PICTURE_ROWS = rows_of(PICTURES, is_possible_with_pictures)


def with_columns(path: Path, columns: dict[str, object]) -> None:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    rng = np.random.default_rng(1)
    made = {
        name: rng.choice(value, len(frame)) if isinstance(value, list) else value for name, value in columns.items()
    }
    frame.assign(**made).to_csv(path, index=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(IMPORTED_ROWS)))
def test_imported_predictions_reach_a_report_and_a_page(number: int, tmp_path: Path) -> None:
    row = IMPORTED_ROWS[number]
    stacker = {"name": "two", "kind": "lightgbm"}
    if row["stackers.0.kind"] != "logistic":
        stacker["params"] = {"rounds": 8, "patience": 3}
    path = write_experiment(tmp_path, stackers=[stacker], blend={"trials": 3, "bags": 2})
    extra: dict[str, object] = {
        "one_age": "50", "no_age": "", "one_sex": "male", "no_sex": "", "one_site": "torso", "dx": "naevus",
        "hospital": ["a", "b"], "pixels": ["600", "1024", "2000"],
    }  # fmt: skip
    for name in ("train", "test"):
        with_columns(tmp_path / f"{name}.csv", extra)
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train["own_fold"] = pd.factorize(train["patient"])[0] % 3
    train.to_csv(tmp_path / "train.csv", index=False)
    pairs = [] if row["data.columns.fold"] else [[train["isic"][0], train["isic"][9]]]
    pd.DataFrame([*pairs, ["x", "y"]], columns=["a", "b"]).to_csv(tmp_path / "pairs.csv", index=False)
    path.write_text(yaml.safe_dump(settings_of(row, yaml.safe_load(path.read_text()))))
    experiment = opened_experiment(path)
    for seed, name in enumerate(("a", "b")):
        oof, test = predictions(experiment, noise=1.0 + seed, seed=seed)
        import_frames(experiment, name, oof, test if row["data.test"] else None)
    assert run_cli("stack", "-c", str(path), "-q") == 0
    assert run_cli("eda", "-c", str(path), "-q") == 0
    folder = tmp_path / "runs" / "elsewhere"
    for made in ("report.html", "model_card.md", "eda.html"):
        text = (folder / made).read_text(encoding="utf-8")
        assert len(text) > 1000
        assert "nan " not in text.lower().replace("banan ", "")
    assert (folder / "submission.csv").exists() == bool(row["data.test"])
    score = pd.read_parquet(folder / "blend" / "oof.parquet")["score"]
    assert np.isfinite(score).all()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PICTURE_ROWS)))
def test_images_reach_a_report_and_a_bundle_that_predicts(number: int, small_data: Path, tmp_path: Path) -> None:
    row = PICTURE_ROWS[number]
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(small_data / "images")
    for name in ("train", "test", "sample_submission"):
        frame = pd.read_csv(small_data / f"{name}.csv", dtype=str, keep_default_na=False)
        if "target" in frame:
            frame["dx"] = frame["target"].map({"1": "melanoma", "0": "naevus"})
            if row["image_models.0.diagnosis.unknown"] == "target":
                frame.loc[::9, "dx"] = ""
        frame.assign(one_age="50").to_csv(data / f"{name}.csv", index=False)
    sample = pd.read_csv(small_data / "sample_submission.csv")
    sample.to_csv(data / "sample_submission.csv", index=False)
    path = small_config(data, tmp_path, stackers=[{"name": "two", "kind": "lightgbm"}])
    base = yaml.safe_load(path.read_text())
    base["data"]["columns"]["diagnosis"] = "dx"
    if row["stackers.0.kind"] != "logistic":
        base["stackers"][0]["params"] = {"rounds": 8, "patience": 3}
    if row["data.test"] is None:
        del base["data"]["sample_submission"]
    relative = {
        key: value if value is None or key not in {"data.test", "data.test_images"} else str(data / str(value))
        for key, value in row.items()
    }
    path.write_text(yaml.safe_dump(settings_of(relative, base)))
    for step in (["oof"], ["stack"], ["audit"], ["bundle", "--out", str(tmp_path / "made.zip")]):
        assert run_cli(step[0], "-c", str(path), "-q", *step[1:]) == 0, step
    assert (tmp_path / "runs" / "small" / "report.html").exists()
    new = ["predict", "--bundle", str(tmp_path / "made.zip"), "--images", str(data / "images"), "-q"]
    new += ["--swap-red-blue"] if row["data.swap_red_blue"] else []
    new += ["--submission", str(tmp_path / "new_submission.csv"), "--sample", str(data / "sample_submission.csv")]
    assert run_cli(*new, "--out", str(tmp_path / "new.csv"), "--metadata", str(data / "test.csv")) == 0
    if row["data.test"]:
        submitted = (tmp_path / "runs" / "small" / "submission.csv").read_bytes()
        assert (tmp_path / "new_submission.csv").read_bytes() == submitted, "test rows and new rows go one way"
    made = pd.read_csv(tmp_path / "new.csv")
    assert len(made) == 60
    assert made.select_dtypes("number").notna().all(axis=None)


@pytest.mark.slow
def test_every_number_of_the_training_reaches_a_report_and_a_bundle_that_predicts(
    small_data: Path, tmp_path: Path
) -> None:
    """All options of the training loop that are no switch, at once, and the recipes of augmentation."""
    options: dict[str, Any] = {
        "epochs": 2, "batch_size": 24, "lr": 0.002, "weight_decay": 0.05, "warmup": 0.3, "layer_decay": 0.8,
        "positive_weight": 2.0, "label_smoothing": 0.05, "focal_gamma": 1.0, "mixup": 0.2, "cutmix": 0.5, "ema": 0.9,
        "dropout": 0.2, "dropout_samples": 2, "metadata_dropout": 0.2, "accumulate": 2, "clip_norm": 1.0,
        "augment": ["standard", "heavy", "microscope", "hair"],
    }  # fmt: skip
    left = {field.name for field in fields(Training)} - set(options)
    assert {f"image_models.0.{name}" for name in left} <= {*PICTURES, *(f"image_models.0.{name}" for name in GPU)}
    assert all(getattr(Training(), name) != value for name, value in options.items())
    net = {"name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "metadata": ["age"]}
    net |= {"seeds": [1, 0], "tta": "d4", "timm_args": {"drop_rate": 0.1}}
    path = small_config(small_data, tmp_path, image_models=[net | options])
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(path), "-q") == 0
    assert (tmp_path / "runs" / "small" / "report.html").exists()
    assert_predicts_as_submitted(path, small_data / "images", small_data / "test.csv")


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost", "catboost", "logistic"])
@pytest.mark.slow
def test_a_matrix_without_information_is_no_reason_to_stop(kind: str, tmp_path: Path) -> None:
    """Metadata alone, where there is none: every column of the matrix is constant."""
    params = {} if kind == "logistic" else {"rounds": 5, "patience": 2}
    path = write_experiment(
        tmp_path, stackers=[{"name": "two", "kind": kind, "params": params}],
        features={"logits": False, "aggregates": False, "neighbours": False},
    )  # fmt: skip
    settings = yaml.safe_load(path.read_text())
    settings["data"]["columns"] = {key: COLUMNS[key] for key in ("id", "group", "target")}
    path.write_text(yaml.safe_dump(settings))
    experiment = opened_experiment(path)
    import_frames(experiment, "a", *predictions(experiment))
    assert run_cli("stack", "-c", str(path), "-q") == 0
    logit = pd.read_parquet(tmp_path / "runs" / "elsewhere" / "models" / "two" / "oof.parquet").groupby("fold")["logit"]
    assert (logit.nunique() == 1).all(), "nothing to learn from: the same risk for all"


def test_a_matrix_without_a_column_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = dict.fromkeys(("logits", "metadata", "aggregates", "neighbours"), False)
    path = write_experiment(tmp_path, stackers=[{"name": "two", "kind": "logistic"}], features=off)
    experiment = opened_experiment(path)
    import_frames(experiment, "a", *predictions(experiment))
    assert run_cli("stack", "-c", str(path), "-q") == 2
    assert "every block of `features`" in capsys.readouterr().err


def shown_configs() -> list[dict[str, Any]]:
    texts = [code for path in TEXTS for code in blocks(path, "yaml") if code.startswith("experiment:")]
    texts += [path.read_text() for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))]
    shown = [yaml.safe_load(text) for text in texts]
    return [config for config in shown if "predict_per" not in config]  # whose columns test_unit_rows.py generates


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(shown_configs())))
def test_a_config_that_is_shown_reaches_a_report(number: int, tmp_path: Path) -> None:
    """Its columns, features, stackers and blend, on generated rows; its image models stand in as imported runs."""
    shown = shown_configs()[number]
    path = write_experiment(tmp_path)
    settings = yaml.safe_load(path.read_text())
    own = {"id": "isic", "group": "patient", "target": "malignant", "age": "years", "sex": "sex", "site": "site",
           "diagnosis": "sex", "source": "site", "fold": "own_fold"}  # fmt: skip
    columns = shown["data"]["columns"]
    settings["data"]["columns"] = {name: own.get(name, given) for name, given in columns.items()}
    assert all(columns[name] == "auto" for name in columns if name not in own), "other names need columns of their own"
    settings |= {key: shown[key] for key in ("features", "stackers", "objective", "folds", "review") if key in shown}
    settings["folds"] = {**shown.get("folds", {}), "k": 3}
    if "file" in settings["folds"]:
        settings["folds"]["file"] = str(tmp_path / "folds.csv")
    settings["blend"] = {**shown.get("blend", {}), "trials": 3}
    for stacker in settings.get("stackers", ()):
        if stacker["kind"] != "logistic":
            stacker["params"] = {**stacker.get("params", {}), "rounds": 8}
    path.write_text(yaml.safe_dump(settings))
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    fold = pd.factorize(train["patient"])[0] % 3
    train.assign(own_fold=fold).to_csv(tmp_path / "train.csv", index=False)
    train[["isic"]].assign(fold=fold).to_csv(tmp_path / "folds.csv", index=False)
    experiment = opened_experiment(path)
    for seed, name in enumerate(["a", *(model["name"] for model in shown.get("image_models", ()))]):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "-c", str(path), "-q") == 0
    assert (tmp_path / "runs" / "elsewhere" / "report.html").exists()
