"""One patient's pictures: the numbers of `predict`, and nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_cli

import dermstack.serve.heat_maps
from dermstack.errors import DataError, ImageError
from dermstack.serve.bundle import read_bundle
from dermstack.serve.image_runs import encoded_metadata
from dermstack.serve.patient import Ensemble, Photo, read_patient
from image_models.explain import pixel_risk_maps, risk_maps
from image_models.net import Net
from image_models.saved import read_fold_nets

pytestmark = pytest.mark.slow  # the bundle takes seconds to make

AGE, SEX, SITES = 55.0, "female", ["torso", None, "head/neck"]


@pytest.fixture(scope="module")
def ensemble(bundled_experiment: Path) -> Ensemble:
    return Ensemble(read_bundle(bundled_experiment / "bundle.zip"), device="cpu")


@pytest.fixture(scope="module")
def photos(small_data: Path) -> list[Photo]:
    files = sorted((small_data / "images").glob("*.png"))[:3]
    return [Photo(file.name, file.read_bytes(), site) for file, site in zip(files, SITES, strict=True)]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def predicted(bundle: Path, photos: list[Photo], folder: Path, *, group: bool) -> pd.DataFrame:
    """What the command line says of the same rows."""
    (folder / "pictures").mkdir()
    for photo in photos:
        (folder / "pictures" / photo.name).write_bytes(photo.data)
    rows = pd.DataFrame({"image_name": [Path(photo.name).stem for photo in photos]})
    rows["sex"], rows["age_approx"] = SEX, AGE
    rows["anatom_site_general_challenge"] = [photo.site for photo in photos]
    if group:
        rows["patient_id"] = "somebody"
    rows.to_csv(folder / "rows.csv", index=False)
    assert run_cli(
        "predict", "--bundle", str(bundle), "--images", str(folder / "pictures"), "--metadata",
        str(folder / "rows.csv"), "--out", str(folder / "p.csv"), "--device", "cpu", "-q",
    ) == 0  # fmt: skip
    return pd.read_csv(folder / "p.csv")


@pytest.mark.parametrize("together", [True, False])
def test_a_patient_is_read_as_predict_reads_the_same_rows(
    together: bool, ensemble: Ensemble, photos: list[Photo], bundled_experiment: Path, tmp_path: Path
) -> None:
    expected = predicted(bundled_experiment / "bundle.zip", photos, tmp_path, group=together)
    for _ in range(2):  # cold nets, and warm ones that have been asked for heat maps
        lesions = read_patient(ensemble, photos, age=AGE, sex=SEX, together=together).lesions
        assert [lesion.name for lesion in lesions] == [photo.name for photo in photos]
        for name in ("score", "p_calibrated", "novelty"):
            made = [getattr(lesion, name) for lesion in lesions]
            np.testing.assert_allclose(made, expected[name], rtol=0, atol=1e-6)
        assert [lesion.far for lesion in lesions] == expected["far"].tolist()
    assert expected["score"].nunique() == len(photos)


def test_nets_that_stay_in_memory_say_what_nets_read_anew_say(
    ensemble: Ensemble, photos: list[Photo], bundled_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        "image_models.saved.read_fold_nets",
        lambda fold, *args, **kw: read.append(fold) or read_fold_nets(fold, *args, **kw),
    )
    forgetful, warm = (
        Ensemble(read_bundle(bundled_experiment / "bundle.zip"), device="cpu", net_cache_bytes=0),
        ensemble,
    )
    for number, other in enumerate((forgetful, warm)):
        read_patient(other, photos)
        before = len(read)
        assert read_patient(other, photos) == read_patient(forgetful, photos)
        again = len(read) - before
        assert again == (2, 1)[number] * (3 + 1 + 3)  # three folds, the frozen body, and the heat's three folds


def test_age_sex_and_site_are_those_of_the_patient(ensemble: Ensemble, photos: list[Photo]) -> None:
    known = [lesion.score for lesion in read_patient(ensemble, photos, age=AGE, sex=SEX).lesions]
    older = [lesion.score for lesion in read_patient(ensemble, photos, age=85, sex=SEX).lesions]
    elsewhere = [Photo(photo.name, photo.data, "head/neck") for photo in photos]
    moved = [lesion.score for lesion in read_patient(ensemble, elsewhere, age=AGE, sex=SEX).lesions]
    assert known != older
    assert known != moved


def test_a_file_that_is_no_picture_is_named_and_nothing_stays_on_disk(
    ensemble: Ensemble, photos: list[Photo], temporary: Path
) -> None:
    bad = [Photo("notes.txt", b"no picture"), photos[0], Photo("scan.dcm", b"no DICOM"), Photo("empty.png", b"")]
    with pytest.raises(DataError) as error:
        read_patient(ensemble, bad)
    lines = str(error.value).split("\n")
    assert [line.partition(":")[0] for line in lines] == ["notes.txt", "scan.dcm", "empty.png"]
    assert all(line.endswith("choose an image or a DICOM file (.dcm) instead") for line in lines)
    assert str(temporary) not in str(error.value)
    assert list(temporary.iterdir()) == []
    assert len(read_patient(ensemble, photos).lesions) == len(photos)
    assert list(temporary.iterdir()) == []


def test_a_value_that_no_training_row_has_is_refused(ensemble: Ensemble, photos: list[Photo]) -> None:
    assert ensemble.choices["sex"] == ["female", "male"]
    assert "head/neck" in ensemble.choices["site"]
    with pytest.raises(DataError, match=r"sex 'women'.*female, male"):
        read_patient(ensemble, photos, sex="women")
    with pytest.raises(DataError, match="site 'moon'"):
        read_patient(ensemble, [Photo("a.png", photos[0].data, "moon")])
    for age in (-1, 121, float("nan")):
        with pytest.raises(DataError, match="years from 0 to 120"):
            read_patient(ensemble, photos, age=age)
    with pytest.raises(DataError, match="at least one"):
        read_patient(ensemble, [])


def test_unknown_columns_come_with_their_cost(ensemble: Ensemble, photos: list[Photo]) -> None:
    assert read_patient(ensemble, photos, age=AGE, sex=SEX).notes == []
    (note,) = read_patient(ensemble, photos, sex=SEX).notes
    assert note.startswith("no age (column age_approx): without it, AUC on the training rows changes by ")
    notes = read_patient(ensemble, [Photo("a.png", photos[0].data)], together=False).notes
    assert len(notes) == 1
    assert notes[0].startswith("no age and no sex and no site and no group")


def test_an_age_that_may_mean_unknown_is_noted(ensemble: Ensemble, photos: list[Photo]) -> None:
    for age in (0, 99):
        (note,) = read_patient(ensemble, photos, age=age, sex=SEX).notes
        assert note == f"age {age} is often written for 'unknown': if it is here, leave the age empty"


def test_an_age_that_hardly_any_training_patient_has_is_noted(ensemble: Ensemble, photos: list[Photo]) -> None:
    assert ensemble.ages is not None
    low, high = ensemble.ages
    assert read_patient(ensemble, photos, age=high, sex=SEX).notes == []
    (note,) = read_patient(ensemble, photos, age=high + 1, sex=SEX).notes
    assert note.startswith(
        f"the age {high + 1:g} lies outside {low:.3g} to {high:.3g}, where 98 % of the ages of training lie"
    )


def heat_world(ensemble: Ensemble, photos: list[Photo], tmp_path: Path) -> tuple[dict, pd.DataFrame]:
    from dermstack.serve.patient import _caches, _frame, _source

    frame = _frame(ensemble, photos, AGE, SEX, together=True, given={})
    sources = [_source(tmp_path, row, photo, bits_stored=0) for row, photo in enumerate(photos)]
    return _caches(ensemble.bundle, tmp_path, frame, sources), frame


def test_heat_is_the_mean_of_the_fold_nets_maps(ensemble: Ensemble, photos: list[Photo], tmp_path: Path) -> None:
    caches, frame = heat_world(ensemble, photos, tmp_path)
    heat, run = dermstack.serve.heat_maps.heat_maps(
        ensemble.bundle, ensemble.store, caches, frame, preferred_run="tiny", device="cpu"
    )
    pixels = torch.from_numpy(caches[32].take(np.arange(len(photos))))
    mean = np.zeros((len(photos), 32, 32))
    for fold in range(3):
        known = encoded_metadata(ensemble.bundle, run, fold, frame)
        nets = read_fold_nets(
            ensemble.bundle.folder / f"image_models/tiny/fold_{fold}", run.settings, metadata=known.shape[1]
        )
        mean += risk_maps(nets[0], pixels, torch.from_numpy(known)) / 3
    assert run.name == "tiny"
    assert mean.max() > 0
    for own, expected in zip(heat, mean, strict=True):
        np.testing.assert_allclose(own, expected / (expected.max() or 1), atol=1e-5)


def test_a_net_without_a_map_leaves_the_heat_to_the_next(
    ensemble: Ensemble, photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, frame = heat_world(ensemble, photos, tmp_path)

    def only_frozen(net: Net, *args: np.ndarray, threads: int) -> np.ndarray:
        if not net.frozen:
            raise ImageError("as of a transformer")
        return pixel_risk_maps(net, *args, threads=threads)

    monkeypatch.setattr(dermstack.serve.heat_maps, "pixel_risk_maps", only_frozen)
    _, run = dermstack.serve.heat_maps.heat_maps(
        ensemble.bundle, ensemble.store, caches, frame, preferred_run="tiny", device="cpu"
    )
    assert run.name == "still"
    monkeypatch.setattr(
        dermstack.serve.heat_maps, "pixel_risk_maps", lambda net, pixels, *args, **kw: np.zeros(pixels.shape[:3])
    )
    cold = read_patient(ensemble, photos)
    assert cold.heat_map_run == "tiny"
    assert {lesion.heat for lesion in cold.lesions} == {None}

    def none(net: Net, *args: np.ndarray, threads: int) -> np.ndarray:
        raise ImageError("as of a transformer")

    monkeypatch.setattr(dermstack.serve.heat_maps, "pixel_risk_maps", none)
    bundle, store = ensemble.bundle, ensemble.store
    with pytest.raises(ImageError, match="none of tiny, still is a convolutional network"):
        dermstack.serve.heat_maps.heat_maps(bundle, store, caches, frame, preferred_run="tiny", device="cpu")
    reading = read_patient(ensemble, photos)
    assert reading.heat_map_run is None
    assert {lesion.heat for lesion in reading.lesions} == {None}
