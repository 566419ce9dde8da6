import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dermstack.cli.demo_data
from dermstack.cli.demo_data import CONFIG_NAME, _draw_rows, write_demo_data
from dermstack.errors import ConfigError, DataError
from stack.console import Out
from stack.experiment import open_experiment
from stack.folds import make_folds
from stack.settings.config import read_config
from stack.tables.table import Table, read_table

COLUMNS = {
    "id": "image_name",
    "group": "patient_id",
    "target": "target",
    "age": "age_approx",
    "sex": "sex",
    "site": "anatom_site_general_challenge",
    "diagnosis": "diagnosis",
}


def write_small(folder: Path, *, n_train: int = 60, seed: int = 0) -> bool:
    return write_demo_data(folder, n_train=n_train, n_test=20, size=24, seed=seed)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def demo_table(folder: Path) -> Table:
    return read_table(folder / "train.csv", folder / "test.csv", columns=COLUMNS)


def train_rows(seed: int) -> pd.DataFrame:
    return _draw_rows(1500, 600, seed).query("part == 'train'").reset_index(drop=True)


def metadata_features(rows: pd.DataFrame) -> pd.DataFrame:
    age = rows["age_approx"]
    dummies = pd.get_dummies(rows[["anatom_site_general_challenge", "sex"]], dtype=float)
    return dummies.assign(age=age.fillna(age.mean()), age_missing=age.isna().astype(float))


def oracle(features: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Out-of-fold score of a logistic regression, whole patients held out."""
    model = make_pipeline(StandardScaler(), LogisticRegression())
    score: NDArray[np.float64] = cross_val_predict(
        model,
        features,
        rows["target"],
        groups=rows["patient_id"],
        cv=GroupKFold(5),
        method="decision_function",
    )
    return score


def oracles(rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    metadata, image = metadata_features(rows), rows[["image_risk"]]
    return {
        "image": oracle(image, rows),
        "metadata": oracle(metadata, rows),
        "both": oracle(metadata.join(image), rows),
    }


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert write_small(tmp_path / name, seed=seed)
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 60 + 20 + 4 + 2  # images, tables, config and manifest
    assert not {a[name] for name in a if name.endswith(".png")} & set(c.values())


def test_the_config_beside_the_data_opens_them_and_stays_when_it_is_changed(tmp_path: Path) -> None:
    """The one example that an installed dermstack brings, so it is also the example of the checkout."""
    folder = tmp_path / "demo"
    write_small(folder)
    config = folder / CONFIG_NAME
    assert len(open_experiment(read_config(config), config, Out(quiet=True)).table.train) == 60
    shipped = (Path(__file__).parents[1] / "configs" / "demo.yaml").read_text().replace("../data/demo/", "")
    assert config.read_text().partition("\n")[2] == shipped.partition("\n")[2]
    config.write_text("experiment: changed\n")
    assert write_small(folder) is False
    assert config.read_text() == "experiment: changed\n"
    config.unlink()  # as in a folder of an earlier release
    assert write_small(folder) is False
    assert config.is_file()


def test_a_finished_data_set_is_left_alone(tmp_path: Path) -> None:
    assert write_small(tmp_path / "demo") is True
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_small(tmp_path / "demo") is False
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("after", [0, 1, 30, 79])
def test_an_interrupted_run_is_finished_by_running_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write_small(tmp_path / "whole")
    draw, drawn = dermstack.cli.demo_data._draw_lesion, iter(range(after))

    def stop(*args: float, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        if next(drawn, None) is None:
            raise KeyboardInterrupt
        return draw(*args, size=size, rng=rng)

    with monkeypatch.context() as patch:
        patch.setattr(dermstack.cli.demo_data, "_draw_lesion", stop)
        with pytest.raises(KeyboardInterrupt):
            write_small(tmp_path / "cut")
    assert not (tmp_path / "cut" / "train.csv").exists()
    assert write_small(tmp_path / "cut") is True
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


def test_leftovers_of_a_write_cut_short_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "manifest.json.part").write_bytes(b"{")
    assert write_small(folder) is True
    (folder / "images" / "DEMO_.png.part").write_bytes(b"")
    next((folder / "images").glob("*.png")).unlink()
    assert write_small(folder) is True  # an image was missing
    assert write_small(folder) is False


def test_a_folder_that_holds_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(DataError, match="is not empty and holds no demo data"):
        write_small(tmp_path)
    for text in ("[]", "{}", "no json"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="holds no demo data"):
            write_small(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        write_small(tmp_path / "thesis.txt")


def test_demo_data_of_other_parameters_are_not_overwritten(tmp_path: Path) -> None:
    write_small(tmp_path / "demo")
    before = hashes(tmp_path / "demo")
    with pytest.raises(DataError, match="holds demo data of other parameters"):
        write_small(tmp_path / "demo", n_train=61)
    assert hashes(tmp_path / "demo") == before


@pytest.mark.parametrize("wrong", [{"n_train": 19}, {"n_test": 1}, {"size": 15}])
def test_impossible_sizes_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 20 training images"):
        write_demo_data(tmp_path / "demo", **wrong)
    assert not (tmp_path / "demo").exists()


def test_the_files_agree_with_each_other(tmp_path: Path) -> None:
    write_small(tmp_path, n_train=200)
    table = demo_table(tmp_path)
    assert (len(table.train), len(table.test), table.shared_groups) == (200, 20, 0)
    assert table.train["target"].sum() == 16
    truth = pd.read_csv(tmp_path / "test_labels.csv")
    sample = pd.read_csv(tmp_path / "sample_submission.csv")
    assert truth["image_name"].tolist() == sample["image_name"].tolist() == table.test["id"].tolist()
    assert truth["target"].sum() == 2
    assert (sample["target"] == 0).all()
    names = {path.stem for path in (tmp_path / "images").iterdir()}
    assert names == set(table.train["id"]) | set(table.test["id"])
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (24, 24))
    assert json.loads((tmp_path / "manifest.json").read_text())["finished"] is True


@pytest.mark.parametrize("n", [2, 3, 20, 61, 600, 1500])
def test_rows_are_exact_and_patients_have_two_to_twelve_images(n: int) -> None:
    for seed in range(5):
        rows = _draw_rows(max(n, 20), n, seed)
        parts = rows.groupby("part")
        assert parts.size().to_dict() == {"train": max(n, 20), "test": n}
        assert (parts["target"].sum() == [max(1, round(0.08 * size)) for size in parts.size()]).all()
        assert rows["image_name"].is_unique
        assert (rows.groupby("patient_id")["part"].nunique() == 1).all()
        sizes = rows.groupby("patient_id").size()
        assert sizes.min() >= 2
        assert sizes.max() <= (12 if n > 3 else 13)


def test_rows_are_like_those_of_a_competition() -> None:
    rows = train_rows(0)
    assert rows[["sex", "age_approx", "anatom_site_general_challenge", "diagnosis"]].isna().any().all()
    assert rows[["image_name", "patient_id", "target"]].notna().all(axis=None)
    assert set(rows.loc[rows["target"] == 1, "diagnosis"]) == {"melanoma"}
    assert "melanoma" not in set(rows.loc[rows["target"] == 0, "diagnosis"])
    train = rows.rename(columns={"image_name": "id", "patient_id": "group"})
    assert make_folds(train, k=5, seed=0).summary(train["target"])["positives"].tolist() == [24] * 5


def test_image_and_metadata_together_beat_either_by_more_than_noise() -> None:
    rows = train_rows(0)  # the data set of the demo
    target, scores = rows["target"].to_numpy(), oracles(rows)
    patients = list(rows.groupby("patient_id").indices.values())
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(100):
        drawn = np.concatenate([patients[i] for i in rng.integers(len(patients), size=len(patients))])
        draws.append([roc_auc_score(target[drawn], score[drawn]) for score in scores.values()])
    image, metadata, both = np.array(draws).T
    for single in (image, metadata):
        gain = both - single
        assert gain.mean() > 2.5 * gain.std()


def test_image_and_metadata_carry_the_signal_that_was_meant() -> None:
    aucs = []
    for seed in range(5):
        rows = train_rows(seed)
        aucs.append({name: roc_auc_score(rows["target"], score) for name, score in oracles(rows).items()})
    mean = pd.DataFrame(aucs).mean()
    assert 0.83 < mean["image"] < 0.87
    assert 0.67 < mean["metadata"] < 0.73
    assert mean["both"] > mean["image"] + 0.02


def test_nothing_but_image_and_metadata_tells_the_target() -> None:
    aucs = []
    for seed in range(25):
        rows = train_rows(seed)
        shortcuts = {
            "size of the patient": rows.groupby("patient_id")["target"].transform("size"),
            "order": rows.index,
            "id": rows["image_name"].str[5:].astype(int),
            "patient id": rows["patient_id"].str[3:].astype(int),
            "missing": rows[["age_approx", "sex", "anatom_site_general_challenge"]].isna().sum(axis=1),
        }
        aucs.append({name: roc_auc_score(rows["target"], values) for name, values in shortcuts.items()})
    table = pd.DataFrame(aucs)
    distance = (table.mean() - 0.5).abs() / (table.std() / np.sqrt(len(table)))
    assert (distance < 4).all(), distance
    assert ((table.mean() - 0.5).abs() < 0.03).all()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_data(folder)
    return folder


@pytest.mark.slow
def test_pictures_show_the_risk(demo: Path) -> None:
    """A handful of plain pixel statistics finds most of what the latent risk knows."""

    def statistics(names: pd.Series) -> NDArray[np.float64]:
        rows = []
        for name in names:
            with Image.open(demo / "images" / f"{name}.png") as image:
                pixels = np.asarray(image, dtype=float)
            centre = pixels[16:48, 16:48].reshape(-1, 3)
            blue = centre[:, 2] - centre[:, 0]
            rows.append([*centre.std(axis=0), *centre.mean(axis=0), np.quantile(blue, 0.95), blue.std()])
        return np.array(rows)

    train, truth = demo_table(demo).train, pd.read_csv(demo / "test_labels.csv")
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(statistics(train["id"]), train["target"])
    assert roc_auc_score(truth["target"], model.decision_function(statistics(truth["image_name"]))) > 0.7


@pytest.mark.slow
def test_file_size_tells_little(demo: Path) -> None:
    train = demo_table(demo).train
    sizes = [(demo / "images" / f"{name}.png").stat().st_size for name in train["id"]]
    assert abs(roc_auc_score(train["target"], sizes) - 0.5) < 0.2
