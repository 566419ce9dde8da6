"""A bundle with right hashes and hostile content is refused in one message and little memory; good ones predict."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from hostile_bundles import good_variants, sealed, variants
from PIL import Image

from dermstack.serve import evaluate as _evaluate  # noqa: F401 - imported before the forks, which then need not
from dermstack.serve.bundle import read_bundle
from dermstack.serve.ensemble import read_fitted

if sys.platform != "linux":
    pytest.skip("the limits of memory need Linux", allow_module_level=True)

MAX_BYTES = 3 << 30  # of address space that a variant may take, beyond what the test itself has
MAX_RESIDENT = 1 << 30  # of memory beyond that of the good bundle
MAX_CPU_S = 60
GROUPS = ("lightgbm", "xgboost", "catboost", "arrays", "json", "weights", "settings", "manifest")


@pytest.fixture(scope="module")
def good(bundled_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good bundle as a folder, opened once, so that its own models have been tried."""
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    with zipfile.ZipFile(bundled_experiment / "bundle.zip") as archive:
        archive.extractall(folder)
    read_fitted(read_bundle(folder))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, and labels for them."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, seed in (("a", 0), ("b", 1)):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    labels = pd.DataFrame({"image_name": ["a", "b"] * 1, "patient_id": ["p", "q"], "target": [0, 1]})
    labels.to_csv(folder.parent / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def outcome(good: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple]:
    """Runs `predict` (or `evaluate`) with a changed bundle in a process of its own."""
    place = tmp_path_factory.mktemp("variants")

    def run(change: Callable[..., None], *, evaluate: bool = False) -> tuple[int, str, int, bytes]:
        folder = place / "bundle"
        shutil.copytree(good, folder)
        sealed(folder, change)
        files = "--images", str(images), "-q", "--device", "cpu"
        options = "predict", "--bundle", str(folder), *files, "--out", str(place / "out.csv")
        if evaluate:
            labels = "--labels", str(images.parent / "labels.csv")
            options = "evaluate", "--bundle", str(folder), *files, *labels, "--out", str(place / "page")
        said = place / "said"
        if (child := os.fork()) == 0:
            _run_limited(options, said)
        _, status, used = os.wait4(child, 0)
        shown = said.read_text(errors="replace")
        made = (place / "out.csv").read_bytes() if (place / "out.csv").exists() else b""
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return os.waitstatus_to_exitcode(status), shown, used.ru_maxrss * 1024, made

    return run


def _run_limited(options: tuple[str, ...], said: Path) -> None:
    status = 99
    try:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - pytest has put another in its place
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MAX_BYTES, size + MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
        status = run_cli(*options)
    except BaseException:  # noqa: BLE001 - what a command would show as a traceback
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


@pytest.mark.slow
def test_good_bundles_predict(good: Path, outcome: Callable[..., tuple]) -> None:
    """Else the test below would show nothing."""
    made = {}
    for name, change in good_variants(good):
        status, said, _, made[name] = outcome(change)
        assert (status, said) == (0, ""), f"{name}: {said}"
        assert len(made[name].splitlines()) == 3
    assert outcome(lambda *_: None)[3] == made["as it is"]


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_hostile_bundle_ends_in_one_message(group: str, good: Path, outcome: Callable[..., tuple]) -> None:
    _, _, usual, _ = outcome(lambda *_: None)
    faults = []
    for name, change in variants(good)[group]:
        status, said, used, made = outcome(change, evaluate=name.startswith("promise"))
        one_message = said.startswith("error: ") and "Traceback" not in said and said.count("error: ") == 1
        if status != 2 or not one_message or len(said) > 3_000 or made or used > usual + MAX_RESIDENT:
            faults.append(f"{name}: exit status {status}, {used >> 20} MiB, {len(said)} characters: {said[-600:]}")
    assert not faults, f"{len(faults)} of {len(variants(good)[group])}:\n" + "\n".join(faults)


def test_there_are_two_hundred(good: Path) -> None:
    found = [name for of_group in variants(good).values() for name, _ in of_group]
    assert len(found) == len(set(found)) >= 200
