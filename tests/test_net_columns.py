"""Any column beside the image: which ones a config names, how they are encoded and dropped, and when a net is stale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import run_cli, small_config
from interrupted import trained_twice

from dermstack.errors import ConfigError
from dermstack.serve.bundle import read_bundle
from dermstack.serve.image_runs import encoded_metadata
from dermstack.serve.new_rows import read_new_rows
from dermstack.serve.predict import predict_rows
from image_models.dataset import Batch, ColumnDropout
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.level1.image_runs import level1_inputs
from stack.net_metadata import metadata_inputs
from stack.plan.costs import measured
from stack.settings.config import read_config
from stack.settings.data import Columns
from stack.settings.image_models import ImageModel
from stack.store import fingerprint, read_run
from stack.tables.columns import TableColumns
from stack.tables.net_columns import further_columns, net_columns, roles_of
from tabular.encode import DenseMetadata

COLUMNS = Columns(id="isic", target="malignant", age="age_approx", sex="sex", site="site")
TABLE = TableColumns({"tbp_a": "tbp_a", "csv.width": "width"}, {"camera": "camera"}, {"ratio": "tbp_a / width"})


def model(*metadata: str, **changes: object) -> ImageModel:
    return ImageModel.model_validate(
        {"name": "net", "backbone": "test_resnet", "pretrained": False, "metadata": metadata, **changes},
        context={"folder": "."},
    )


@pytest.mark.parametrize(
    ("named", "taken"),
    [
        (["age"], ["age"]),
        (["site", "age"], ["site", "age"]),
        (["tbp_*", "sex"], ["sex", "tbp_a"]),
        (["width", "camera", "ratio"], ["csv.width", "camera", "ratio"]),
        (["age_approx"], ["age"]),
        (["*"], ["age", "sex", "site", "tbp_a", "csv.width", "ratio", "camera"]),
    ],
)
def test_names_and_patterns_fit_roles_and_columns(named: list[str], taken: list[str]) -> None:
    assert net_columns(model(*named), COLUMNS, TABLE) == taken
    assert further_columns(model(*named), COLUMNS, TABLE) == [one for one in taken if one not in {"age", "sex", "site"}]
    assert set(roles_of(model(*named), COLUMNS)) == set(taken) & {"age", "sex", "site"}


def test_a_name_that_fits_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"net: no column fits `metadata: tbp_b`, did you mean 'tbp_a'"):
        net_columns(model("tbp_b"), COLUMNS, TABLE)


def test_dropout_needs_columns() -> None:
    with pytest.raises(ValueError, match="metadata_dropout"):
        model(metadata_dropout=0.2)


@pytest.fixture
def frame(rng: np.random.Generator) -> pd.DataFrame:
    n = 80
    return pd.DataFrame({
        "age": pd.Series(rng.integers(20, 80, n), dtype="float32"),
        "size": pd.Series(rng.normal(1e5, 3e4, n), dtype="float32").mask(pd.Series(np.arange(n) % 7 == 0)),
        "full": pd.Series(rng.normal(0, 1, n), dtype="float32"),
        "still": pd.Series(np.full(n, 0.1), dtype="float32"),
        "camera": pd.Series(rng.choice(["A", "B"], n), dtype="str"),
    })  # fmt: skip


NAMES, NUMERIC = ["age", "size", "full", "still", "camera"], ["size", "full", "still"]


def test_further_columns_are_standardised_on_the_fitted_rows(frame: pd.DataFrame) -> None:
    encoder = DenseMetadata(NAMES, numeric=NUMERIC).fit(frame[:60])
    dense = encoder.transform(frame)
    assert encoder.sources == ["age", "age", "size", "size", "full", "still", "camera", "camera"]
    known = frame["size"][:60].dropna().astype(float)
    expected = (frame["size"].astype(float) - known.mean()) / known.std(ddof=0)
    np.testing.assert_allclose(dense[:, 2], expected.fillna(0), rtol=1e-5, atol=1e-6)
    assert (dense[:, 5] == 0).all()
    again = DenseMetadata.from_json(encoder.to_json())
    np.testing.assert_array_equal(again.transform(frame), dense)
    np.testing.assert_array_equal(again.all_missing(), encoder.all_missing())


def test_what_never_varied_in_training_says_nothing_later(frame: pd.DataFrame) -> None:
    """No weight was trained for it: a value that is missing for the first time must count as the mean."""
    odd = frame.assign(full=np.float32(np.nan), still=np.float32(7e5))
    plain = DenseMetadata(NAMES, numeric=NUMERIC).fit(frame)
    assert (plain.transform(odd)[:, [4, 5]] == 0).all()
    dropping = DenseMetadata(NAMES, numeric=NUMERIC, dropout=True).fit(frame)
    assert dropping.sources.count("full") == 2
    place = dropping.sources.index("full") + 1
    assert dropping.transform(odd)[0, place] != dropping.transform(frame)[0, place]
    again = DenseMetadata.from_json(dropping.to_json())
    np.testing.assert_array_equal(again.transform(odd), dropping.transform(odd))


def test_an_extreme_value_stays_in_range(frame: pd.DataFrame) -> None:
    encoder = DenseMetadata(NAMES, numeric=NUMERIC).fit(frame)
    assert np.abs(encoder.transform(frame.assign(full=np.float32(3e38)))[:, 4]).max() == 10


def test_dropout_replaces_whole_columns_by_what_a_missing_value_is(frame: pd.DataFrame) -> None:
    encoder = DenseMetadata(NAMES, numeric=NUMERIC, dropout=True).fit(frame)
    dense, column_of = encoder.transform(frame), pd.factorize(np.array(encoder.sources))[0]
    n = 40 * len(dense)
    many = torch.from_numpy(np.tile(dense, (40, 1)))
    batch = Batch(torch.zeros(n, 1, 1, 3), many, torch.zeros(n, 2), torch.arange(n))
    drop = ColumnDropout(0.3, encoder.all_missing(), column_of)
    made = drop(batch, np.random.default_rng(1)).metadata.numpy()
    np.testing.assert_array_equal(made, drop(batch, np.random.default_rng(1)).metadata.numpy())
    camera = frame.assign(camera=pd.Series(np.nan, index=frame.index, dtype="str"))
    without = np.tile(encoder.transform(camera), (40, 1))
    mine = column_of == column_of[-1]
    dropped = (made[:, mine] == without[:, mine]).all(axis=1)
    kept = (made[:, mine] == many.numpy()[:, mine]).all(axis=1)
    assert (dropped ^ kept).all()
    assert abs(dropped.mean() - 0.3) < 0.03
    other = (made[:, :2] != many.numpy()[:, :2]).any(axis=1)
    assert abs(np.corrcoef(dropped, other)[0, 1]) < 0.05, "columns are dropped independently"


def _data(small_data: Path, folder: Path) -> Path:
    """The small data with two more columns in train, test and an external table that lacks one of them."""
    rng = np.random.default_rng(5)
    for name in ("train.csv", "test.csv"):
        rows = pd.read_csv(small_data / name, dtype=str, keep_default_na=False)
        y = rows["target"].astype(int) if "target" in rows else rng.integers(0, 2, len(rows))
        rows["size [mm]"] = (2 * y + rng.normal(0, 0.5, len(rows))).round(3)
        rows["camera"] = rng.choice(["A", "B"], len(rows))
        rows["unused"] = np.arange(len(rows)) % 3
        rows.to_csv(folder / name, index=False)
    extra = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)[-8:]
    extra[["image_name", "patient_id", "target", "camera"]].to_csv(folder / "extra.csv", index=False)
    pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)[:-8].to_csv(folder / "train.csv", index=False)
    settings = {
        "name": "fused", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 2, "batch_size": 16,
        "lr": 0.01, "metadata": ["age", "size*", "camera"], "metadata_dropout": 0.2,
    }  # fmt: skip
    config = small_config(small_data, folder, image_models=[settings], stackers=[], folds={"k": 2})
    text = yaml.safe_load(config.read_text())
    text["data"] |= {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    text["data"]["columns"] |= {"numeric": ["size [mm]", "unused"], "categorical": ["camera"]}
    columns = {"id": "image_name", "group": "patient_id", "target": "target"}
    table = str(folder / "extra.csv")
    text["data"]["external"] = [{"name": "more", "table": table, "images": text["data"]["images"], "columns": columns}]
    text["blend"] = {"methods": ["rank_mean"]}
    config.write_text(yaml.safe_dump(text))
    return config


def _opened(config: Path, *overrides: str) -> Experiment:
    return open_experiment(read_config(config, overrides), config, Out(quiet=True))


def test_a_net_depends_on_the_values_of_its_columns_alone(small_data: Path, tmp_path: Path) -> None:
    config = _data(small_data, tmp_path)

    def inputs(*overrides: str) -> dict[str, str]:
        experiment = _opened(config, *overrides)
        return level1_inputs(experiment, experiment.config.image_models[0])

    first, only_age = inputs(), inputs("image_models.0.metadata=[age]")
    external = _opened(config).external
    assert "unused" not in external
    assert external["size [mm]"].isna().all()  # its csv lacks the column
    assert set(external["camera"]) == {"A", "B"}
    rows = pd.read_csv(tmp_path / "test.csv", dtype=str)
    rows.assign(unused="5").to_csv(tmp_path / "test.csv", index=False)
    assert inputs() == first
    rows.loc[3, "size [mm]"] = "9.5"
    rows.to_csv(tmp_path / "test.csv", index=False)
    assert [key for key, value in inputs().items() if value != first[key]] == ["metadata"]
    assert inputs("image_models.0.metadata=[age]") == only_age


def test_age_sex_and_site_keep_the_fingerprints_that_they_had(small_data: Path, tmp_path: Path) -> None:
    config = _data(small_data, tmp_path)
    experiment = _opened(config, "image_models.0.metadata=[age,sex]", "image_models.0.metadata_dropout=0")
    net = experiment.config.image_models[0]
    assert metadata_inputs(experiment, net)["metadata"] == experiment.columns_fingerprint([])
    before = net.model_dump(exclude={"name", "enabled", "pretrained", "selected", "metadata_dropout", "pseudo_labels"})
    assert level1_inputs(experiment, net)["settings"] == fingerprint(before)


@pytest.mark.slow
def test_a_net_with_columns_is_trained_bundled_and_predicts_what_it_said(small_data: Path, tmp_path: Path) -> None:
    config = _data(small_data, tmp_path)
    assert run_cli("oof", "-c", str(config), "-q") == 0
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    bundle_path = tmp_path / "bundle"
    assert run_cli("bundle", "-c", str(config), "--out", str(bundle_path), "-q") == 0
    bundle, images = read_bundle(bundle_path), small_data / "images"
    rows = read_new_rows(bundle, images, tmp_path / "test.csv")
    made = predict_rows(bundle, rows, tmp_path / "work").set_index("id")
    blend = read_run(tmp_path / "runs" / "small" / "blend")
    assert blend is not None
    submission = pd.read_csv(tmp_path / "runs" / "small" / "submission.csv").set_index("image_name")["target"]
    np.testing.assert_allclose(made["score"].loc[submission.index], submission, atol=1e-6)
    # The column that tells the target moves the score; without any column there is still one, from missing values.
    moved = rows.frame.assign(**{"size [mm]": np.float32(2.5)})
    (run,) = bundle.image_runs
    assert (encoded_metadata(bundle, run, 0, moved) != encoded_metadata(bundle, run, 0, rows.frame)).any()
    bare = read_new_rows(bundle, images, None)
    assert bare.frame["size [mm]"].isna().all()
    assert np.isfinite(predict_rows(bundle, bare, tmp_path / "bare")["score"]).all()
    costs = json.loads((bundle_path / "costs.json").read_text())
    assert any(entry["without"] == ["age"] for entry in costs)


def test_a_plan_measures_a_net_with_its_columns(small_data: Path, tmp_path: Path) -> None:
    experiment = _opened(_data(small_data, tmp_path))
    assert measured(experiment, experiment.config.image_models[0]).train > 0


@pytest.mark.slow
def test_an_interrupted_training_with_dropout_ends_with_the_same_weights(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, resumed = trained_twice(_data(small_data, tmp_path), monkeypatch)
    assert resumed == uninterrupted
