from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, page_of_sections
from conftest import run_cli, small_config
from html_page import Page
from PIL import Image

import dermstack.report.pictures
from dermstack.errors import StoreError
from dermstack.report.cases import hard_cases, image_run, most_wrong
from dermstack.report.pictures import cached_case_pictures, colour, has_heat_maps, overlay
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config
from stack.store import Run, read_run, read_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHAPE = {"pretrained": False, "size": 32, "epochs": 1, "batch_size": 16}
MODELS = [
    {"name": "seeing", "backbone": "test_resnet", "metadata": ["age", "sex", "site"], **SHAPE, "epochs": 3},
    {"name": "turning", "backbone": "test_vit", **SHAPE, "size": 160, "frozen": True},
]
EVIL = "<script>alert(1)</script>"


def named(row_id: str) -> str:
    return f"case {row_id[-3:]} {EVIL}"


@pytest.fixture
def oof() -> pd.DataFrame:
    """Prevalence 0.4: a, b, g are positives of one, one and another group."""
    return pd.DataFrame({
        "id": list("abcdefghij"),
        "target": [1, 1, 0, 0, 0, 0, 1, 1, 0, 0],
        "split_group": ["p", "p", "q", "q", "r", "s", "t", "u", "v", "p"],
        "score": [0.1, 0.2, 0.9, 0.8, 0.7, 0.7, 0.3, 0.9, 0.1, 0.95],
        "p_calibrated": [0.10, 0.05, 0.9, 0.95, 0.6, 0.6, 0.39, 0.5, 0.3, 0.7],
    })  # fmt: skip


def test_the_most_wrong_are_one_of_a_group_and_on_the_wrong_side(oof: pd.DataFrame) -> None:
    missed, alarms = most_wrong(oof, each=20)
    assert missed["id"].tolist() == ["b", "g"]  # a is of b's group, h lies above the prevalence
    assert alarms["id"].tolist() == ["d", "j", "e", "f"]  # a group may be in both lists; i lies below
    missed, alarms = most_wrong(oof.sample(frac=1, random_state=0), each=1)
    assert (missed["id"].tolist(), alarms["id"].tolist()) == (["b"], ["d"])


def test_the_hotter_a_place_the_more_of_it_is_covered(rng: np.random.Generator) -> None:
    picture = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    heat = np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(overlay(picture, heat), picture)
    heat[1, 2], heat[3, 3] = 1, 0.5
    made = overlay(picture, heat).astype(float)
    away = np.abs(made - picture.astype(float)).sum(axis=2) > 0
    assert away.sum() == 2
    np.testing.assert_allclose(made[1, 2], 0.35 * picture[1, 2] + 0.65 * np.array([253, 231, 37]), atol=1)  # yellow
    assert colour(np.array([0.0, 1.0])).round().tolist() == [[68, 1, 84], [253, 231, 37]]


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Run, list[Run]]:
    folder = tmp_path_factory.mktemp("cases")
    path = small_config(small_data, folder, image_models=MODELS)
    for command in (["oof"], ["stack", "--no-report"]):
        assert run_cli(*command, "--config", str(path), "--quiet") == 0
    experiment = open_experiment(read_config(path), path, Out(quiet=True))
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    return experiment, blend, [run for run in read_runs(experiment.models) if run.name in blend.meta["runs"]]


def weighted(blend: Run, **weights: float) -> Run:
    return Run(blend.folder, blend.meta | {"weights": weights})


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.slow
def test_each_case_shows_its_picture_and_the_heat_of_the_net_that_did_not_see_it(
    finished: tuple[Experiment, Run, list[Run]], small_data: Path
) -> None:
    from image_models.explain import risk_maps
    from image_models.saved import read_fold_nets
    from tabular.encode import DenseMetadata

    experiment, blend, runs = finished
    blend = weighted(blend, seeing=0.5, turning=0.2, gbdt=0.3)
    section = hard_cases(experiment, blend, runs, display_name=lambda row_id: row_id)
    assert "Grad-CAM heat map of the image model <strong>seeing</strong>" in section.markup
    cases = re.findall(
        r'<img src="(\S+)" style="aspect-ratio: 32 / 32" alt="(\S+)">\s*<img src="(\S+)"', section.markup
    )
    assert 8 < len(cases) <= 40
    run = next(run for run in runs if run.name == "seeing")
    oof, table = run.frame("oof").set_index("id"), experiment.table.train.set_index("id", drop=False)
    apart = []
    for picture, row_id, heat in cases:
        original = Image.open(small_data / "images" / f"{row_id}.png").convert("RGB")
        large = np.asarray(original.resize((160, 160), Image.Resampling.LANCZOS))
        np.testing.assert_allclose(pixels(picture), large, atol=60)  # of a JPEG
        assert np.abs(pixels(picture).astype(float) - large).mean() < 5
        maps = []
        for fold in range(3):
            folder = run.folder / f"fold_{fold}"
            encoder = DenseMetadata.from_json((folder / "metadata.json").read_text())
            (net,) = read_fold_nets(folder, run.meta["settings"], metadata=encoder.width)
            images = torch.from_numpy(np.array(original))[None]
            maps.append(risk_maps(net, images, torch.from_numpy(encoder.transform(table.loc[[row_id]])))[0])
        shown = pixels(heat).astype(float)
        errors = []
        for risk in maps:
            covered = Image.fromarray(overlay(np.asarray(original), risk)).resize((160, 160), Image.Resampling.LANCZOS)
            errors.append(np.abs(shown - np.asarray(covered)).mean())
        unseen = int(oof["fold"].loc[row_id])
        assert errors[unseen] == min(errors) < 5
        apart += [error - errors[unseen] for fold, error in enumerate(errors) if fold != unseen]
    assert max(apart) > 3  # another net would have shown something else


@pytest.mark.slow
def test_heat_maps_of_the_same_run_are_kept_for_the_next_report(
    finished: tuple[Experiment, Run, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, _, runs = finished
    run = next(run for run in runs if run.name == "seeing")
    shutil.rmtree(experiment.folder / "report" / "heat_maps", ignore_errors=True)
    drawn: list[list[str]] = []
    draw = dermstack.report.pictures._new_heat_overlays

    def spy(experiment: Experiment, run: Run, ids: list[str], pixels: np.ndarray) -> tuple[dict[str, str], str]:
        drawn.append(list(ids))
        return draw(experiment, run, ids, pixels)

    monkeypatch.setattr(dermstack.report.pictures, "_new_heat_overlays", spy)
    a, b, c, d = run.frame("oof")["id"].iloc[:4]
    first, _ = cached_case_pictures(experiment, run, [a, b, c])
    assert (drawn, has_heat_maps(experiment, run, [b, a])) == ([[a, b, c]], True)
    assert not has_heat_maps(experiment, run, [a, d])
    again, _ = cached_case_pictures(experiment, run, [c, d, a])
    assert drawn == [[a, b, c], [d]], "one image is new"
    assert list(again.heat) == [c, d, a]
    assert (again.heat[a], again.heat[c]) == (first.heat[a], first.heat[c])
    back, _ = cached_case_pictures(experiment, run, [a, b, c])
    assert (back, drawn[2:]) == (first, []), "those of earlier reports are kept"
    rebuilt = Run(run.folder, run.meta | {"files": run.meta["files"] | {"oof.parquet": "another"}})
    assert not has_heat_maps(experiment, rebuilt, [a])
    kept = experiment.folder / "report" / "heat_maps" / "heat_maps.parquet"
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"heat_maps.*remove"):
        cached_case_pictures(experiment, run, [a])
    shutil.rmtree(kept.parent)


@pytest.mark.slow
def test_a_transformer_shows_the_picture_alone_and_says_so(finished: tuple[Experiment, Run, list[Run]]) -> None:
    experiment, blend, runs = finished
    section = hard_cases(experiment, weighted(blend, seeing=0.1, turning=0.2), runs, display_name=named, each=2)
    assert "No heat maps for turning: Grad-CAM needs a convolutional backbone" in section.markup
    images = [attrs for tag, attrs in Page(section.markup).tags if tag == "img"]
    assert 2 <= len(images) <= 4
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)


@pytest.mark.slow
def test_without_images_the_cases_are_a_table(finished: tuple[Experiment, Run, list[Run]]) -> None:
    experiment, blend, runs = finished
    section = hard_cases(experiment, blend, runs, display_name=named, no_images=True)
    page = Page(section.markup)
    assert not {"img", "script"} & {tag for tag, _ in page.tags}
    assert "data:" not in section.markup
    assert not any(row_id in section.markup for row_id in experiment.table.train["id"])  # names alone
    missed, alarms = most_wrong(
        blend.frame("oof").merge(experiment.folds.frame[["id", "split_group"]], on="id").merge(
            experiment.table.train[["id", "target"]], on="id"
        ),
        each=20,
    )  # fmt: skip
    rows = [row for row in page.rows if row[0].startswith("case")]
    wanted = [named(row_id) for row_id in [*missed["id"], *alarms["id"]]]
    assert [row[0] for row in rows if row[0] != "case"] == wanted
    first = experiment.table.train.set_index("id").loc[missed["id"].iloc[0]]
    assert f"{first['age']:.0f} years" in page.text or pd.isna(first["age"])


@pytest.mark.slow
def test_the_run_with_the_largest_weight_is_asked_and_of_equals_the_best(
    finished: tuple[Experiment, Run, list[Run]],
) -> None:
    from sklearn.metrics import roc_auc_score

    experiment, blend, runs = finished

    def asked(**weights: float) -> str | None:
        run = image_run(weighted(blend, **weights), runs, experiment)
        return run.name if run else None

    assert asked(seeing=0.2, turning=0.3, gbdt=0.5) == "turning"
    assert asked(seeing=0.3, turning=0.2, gbdt=0.5) == "seeing"
    assert asked(gbdt=1.0) is None
    target = experiment.table.train.set_index("id")["target"]
    best = max(
        (run for run in runs if run.name != "gbdt"),
        key=lambda run: roc_auc_score(target.loc[run.frame("oof")["id"]], run.frame("oof")["logit"]),
    )
    assert asked(seeing=0.0, turning=0.0) == best.name


@pytest.mark.slow
def test_pictures_that_are_not_cached_are_left_out_and_named(
    finished: tuple[Experiment, Run, list[Run]], tmp_path: Path
) -> None:
    from dataclasses import replace

    experiment, blend, runs = finished
    elsewhere = replace(experiment, config=experiment.config.model_copy(update={"cache": tmp_path}))
    section = hard_cases(elsewhere, blend, runs, display_name=named)
    assert "The image cache lacks these images" in section.markup
    assert "<table" in section.markup
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("no_images", [False, True])
def test_cases_fit_a_telephone_and_axe_finds_no_serious_barrier(
    no_images: bool, scheme: str, finished: tuple[Experiment, Run, list[Run]], tmp_path: Path, browser: Browser
) -> None:
    experiment, blend, runs = finished
    blend = weighted(blend, seeing=0.5, turning=0.2)
    section = hard_cases(experiment, blend, runs, display_name=named, no_images=no_images)
    path = tmp_path / "page.html"
    path.write_text(page_of_sections(section), encoding="utf-8")
    for width in WIDTHS:
        with opened_page(browser, path, scheme=scheme, width=width, bypass_csp=True) as seen:
            assert seen.overflow_px == 0
            assert accessibility_violations(seen.page) == []
            shown = "[...document.images].map((image) => image.naturalWidth)"
            assert set(seen.page.evaluate(shown)) == (set() if no_images else {160})
            assert seen.console_errors == []
