"""One small world for every test: a generated data set, its config, and its finished experiment."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from browser import chromium, why_no_browser
from hypothesis import settings
from typer.main import get_command as typer_get_command

if TYPE_CHECKING:
    import pandas as pd
    import typer
    from playwright.sync_api import Browser

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: more threads only fight

# By default an example of over 200 ms fails, and on a busy machine any may.
settings.register_profile("dermstack", deadline=None)
settings.load_profile("dermstack")


def _open_file(descriptor: int) -> None:
    """In the place of `os.fsync`: a test waits for no disk, since no test cuts the power."""
    os.fstat(descriptor)  # as fsync does, it refuses what is no open file


os.fsync = _open_file

SHARED = Path(__file__).parents[2] / "shared"

WITHOUT_IMAGE_EXTRA = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "torch", "torchvision", "timm", "albumentations", "cv2",
            "simplejpeg", "pydicom", "gdcm", "h5py", "google_crc32c", "imagecodecs",
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""  # run first, in a process of its own, it makes Python behave as after `pip install .`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin, so that of two processes none waits for the other at the end."""
    longest = {item.path for item in items if item.get_closest_marker("ci")}
    items.sort(key=lambda item: item.path not in longest)  # otherwise in the order of their names


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With --dist loadfile: the files that use the bundled experiment run in one process too, which makes it once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    @functools.cache
    def shared(file: str) -> bool:
        return "bundled_experiment" in (config.rootpath / file).read_text(encoding="utf-8")

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "with the bundled experiment" if shared(file) else file

    return Scheduling(config, log)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")  # its event loop would be in the way of others'
def browser() -> Iterator[Browser]:
    """A headless chromium, where there is one."""
    if reason := why_no_browser():
        pytest.skip(reason)
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets, where they are at hand."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real data sets are not at hand")
    return SHARED / "data"


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 240 training and 60 test images at 32 px."""
    return _generated(tmp_path_factory, "small", n_train=240, n_test=60)


@pytest.fixture(scope="session")
def smaller_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 120 and 30 images, for tests that train often and ask which nets were trained, not how well."""
    return _generated(tmp_path_factory, "smaller", n_train=120, n_test=30)


def _generated(made: pytest.TempPathFactory, name: str, *, n_train: int, n_test: int) -> Path:
    from dermstack.cli.demo_data import write_demo_data

    folder = made.mktemp(name) / "data"
    write_demo_data(folder, n_train=n_train, n_test=n_test, size=32, seed=1)
    return folder


def small_config(data: Path, folder: Path, **changes: object) -> Path:
    """A config of two tiny image models and a GBDT on the small data set, written to ``folder/small.yaml``."""
    settings = {
        "experiment": "small",
        "runs": str(folder / "runs"),
        "cache": str(folder / "cache"),
        "threads": 1,
        "data": {
            "name": "small",
            "train": str(data / "train.csv"),
            "test": str(data / "test.csv"),
            "sample_submission": str(data / "sample_submission.csv"),
            "images": str(data / "images"),
            "columns": {
                "id": "image_name",
                "group": "patient_id",
                "target": "target",
                "age": "age_approx",
                "sex": "sex",
                "site": "anatom_site_general_challenge",
            },
        },
        "folds": {"k": 3},
        "image_models": [
            {
                "name": "tiny",
                "backbone": "test_resnet",
                "pretrained": False,
                "size": 32,
                "epochs": 1,
                "batch_size": 16,
            },
            {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True},
        ],
        "features": {"frozen_z": 4},
        "stackers": [{"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 30, "patience": 5}}],
        "blend": {"trials": 5},
    }
    settings.update(changes)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bundled_experiment(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment, small.yaml, and its bundle.zip: nets that see metadata, two seeds, frozen, stackers."""
    folder = tmp_path_factory.mktemp("bundled")
    tiny = {"backbone": "test_resnet", "pretrained": False, "size": 32, "batch_size": 16}
    models = [
        {**tiny, "name": "tiny", "epochs": 1, "metadata": ["age", "sex"], "seeds": [3, 0], "tta": "flips"},
        {**tiny, "name": "still", "frozen": True},
    ]
    stackers = [
        {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 30, "patience": 5}, "bags": 2, "negatives": 0.8},
        {"name": "line", "kind": "logistic"},
    ]
    features = {"frozen_z": 4, "aligned_z": 3, "cohort": True}
    config = small_config(small_data, folder, image_models=models, features=features, stackers=stackers)
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    assert run_cli("bundle", "-c", str(config), "--out", str(folder / "bundle.zip"), "-q") == 0
    return folder


@pytest.fixture
def config_path(small_data: Path, tmp_path: Path) -> Path:
    """The small experiment's config, with runs and cache of its own."""
    return small_config(small_data, tmp_path)


@contextmanager
def blank_figures() -> Iterator[None]:
    """Leaves the figures of pages empty, which takes most of a page's time: for tests that read words and numbers."""
    from unittest.mock import patch

    def save(_: object, file: IO[str] | Path, **_settings: object) -> None:
        nothing = '<svg viewBox="0 0 317 200"></svg>'
        file.write_text(nothing) if isinstance(file, Path) else file.write(nothing)

    with patch("matplotlib.figure.Figure.savefig", save):
        yield


@pytest.fixture
def without_figures() -> Iterator[None]:
    with blank_figures():
        yield


@pytest.fixture(scope="module")
def module_without_figures() -> Iterator[None]:
    """The same for all tests of a file and the experiments that they share."""
    with blank_figures():
        yield


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of every training from now on."""
    from image_models import fit

    seeds: list[int] = []
    train = fit.train_net

    def counted(*arguments: Any, **settings: Any) -> pd.DataFrame:
        seeds.append(settings["seed"])
        return train(*arguments, **settings)

    monkeypatch.setattr(fit, "train_net", counted)
    return seeds


@functools.cache
def _commands(app: typer.Typer) -> object:
    """The commands and options of an app, which typer would gather anew for each call."""
    return typer_get_command(app)


@functools.cache
def _drift_classifier() -> Callable[..., object]:
    """The classifier of train against test rows, fitted once for the same rows.

    Most experiments here have the same table, and without this its 28 fits take half of a small `dermstack stack`.
    """
    from dermstack.audit import adversarial_validation

    @functools.lru_cache(maxsize=512)
    def fitted(x: bytes, y: bytes, columns: int, kind: str) -> object:
        return fit(np.frombuffer(x).reshape(-1, columns), np.frombuffer(y, kind))

    fit = adversarial_validation._fit_classifier
    return lambda x, y: fitted(x.tobytes(), y.tobytes(), x.shape[1], y.dtype.str)


@pytest.fixture(scope="module")
def drift_fitted_once() -> Iterator[None]:
    """For tests that stack or audit by other ways than `run_cli`, which does the same."""
    from unittest.mock import patch

    with patch("dermstack.audit.adversarial_validation._fit_classifier", _drift_classifier()):
        yield


def run_cli(*arguments: str) -> int:
    """The command line in this process: its exit status."""
    from unittest.mock import patch

    from dermstack.cli.main import main

    of_ctrl_c = signal.getsignal(signal.SIGINT)  # which a command ignores once it is done
    with (
        patch("sys.argv", ["dermstack", *arguments]),
        patch("typer.main.get_command", _commands),
        patch("dermstack.cli.main._end_workers"),  # the next command uses them
        patch("dermstack.audit.adversarial_validation._fit_classifier", _drift_classifier()),
    ):
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            signal.signal(signal.SIGINT, of_ctrl_c)
    return 0


def assert_predicts_as_submitted(config: Path, images: Path, test: Path) -> list[str]:
    """Bundles a small experiment and predicts its test rows: the scores must have the bits of the submission.

    Returns the arguments of `predict`, without those of the table.
    """
    import pandas as pd

    bundle, out = config.parent / "bundle.zip", config.parent / "out.csv"
    assert run_cli("bundle", "-c", str(config), "--out", str(bundle), "-q") == 0
    arguments = ["--bundle", str(bundle), "--images", str(images), "--out", str(out)]
    assert run_cli("predict", *arguments, "--metadata", str(test), "-q") == 0
    made = pd.read_csv(out).set_index("id")["score"]
    sent = pd.read_csv(config.parent / "runs" / "small" / "submission.csv").set_index("image_name")["target"]
    np.testing.assert_array_equal(made[sent.index], sent)
    return arguments
