"""Files of a user that are named like our packages have no effect, or end in one error that names them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_config
from sources import ROOT

NAMES = ("stack", "tabular", "image_models", "pages", "commands", "serving", "audits", "reference")
BREAKS = "raise SystemExit('the working folder was imported')\n"


@pytest.fixture(params=["files", "packages", "folders"])
def shadowed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A working folder with a module of each name: that ends Python when imported, or, as a mere folder, is empty."""
    for name in NAMES:
        if request.param == "files":
            (tmp_path / f"{name}.py").write_text(BREAKS)
        else:
            (tmp_path / name).mkdir()
            if request.param == "packages":
                (tmp_path / name / "__init__.py").write_text(BREAKS)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the folder, which stands first in its path; dermstack is found behind it, as an installed one is."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_notebooks_import_finds_our_packages(shadowed: Path) -> None:
    code = "from dermstack import Blender, read_table; import stack.blend.blender; print(stack.__file__)"
    made = python(shadowed, "-c", code)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(ROOT / "stack" / "__init__.py")


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("shadowed", ["files", "folders"], indirect=True)  # Python finds a package as it finds a file
def test_worker_processes_find_our_packages(shadowed: Path) -> None:
    """Those of joblib, those of a study, which are spawned, and those that load images."""
    (shadowed / "notebook.py").write_text(
        """
import multiprocessing
import pickle
from functools import partial
import dermstack
from image_models.processes import own_packages_first, run_parallel
from stack.metrics.scores import auc

if __name__ == "__main__":
    tasks = [partial(auc, [0, 1, 1, 0], [0.1, 0.9, 0.8, 0.7])] * 2
    assert list(run_parallel(tasks, 2)) == [1.0, 1.0]
    process = multiprocessing.get_context("spawn").Process(target=tasks[0])
    with own_packages_first():
        process.start()
    process.join()
    assert process.exitcode == 0
    print("done")
"""
    )
    made = python(shadowed, "notebook.py")
    assert made.stdout.strip() == "done", made.stderr


@pytest.mark.parametrize("shadowed", ["files"], indirect=True)
@pytest.mark.slow
@pytest.mark.ci
def test_the_command_line_makes_an_experiment(shadowed: Path, small_data: Path) -> None:
    """Level 1 in two processes, of which each loads images with one more; a study of two workers; the report."""
    config = small_config(small_data, shadowed, n_jobs=2, workers=1)
    for command in (["oof"], ["stack"], ["tune", "blend", "--trials", "2", "--workers", "2"]):
        made = python(shadowed, "-m", "dermstack", *command, "-c", str(config), "-q")
        assert made.returncode == 0, made.stderr
    assert (shadowed / "runs" / "small" / "report.html").is_file()


@pytest.mark.parametrize("shadowed", ["files"], indirect=True)
@pytest.mark.slow
def test_workers_of_ray_find_our_packages(shadowed: Path, small_data: Path) -> None:
    pytest.importorskip("ray")
    config = small_config(small_data, shadowed, backend="ray")
    made = python(shadowed, "-m", "dermstack", "oof", "-c", str(config), "-q")
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_module_that_was_imported_before_is_named(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        place = tmp_path / "stack.py"
        place.write_text("")
    else:
        place = tmp_path / "stack"
        place.mkdir()
        (place / "__init__.py").write_text("")
    made = python(tmp_path, "-c", "import stack; import dermstack")
    assert made.returncode == 1
    (last,) = made.stderr.strip().splitlines()[-1:]
    assert last.startswith("ImportError: dermstack has a package named `stack`")
    assert str(place.resolve()) in last
    assert "import dermstack first, or rename" in last


def test_our_own_packages_may_be_imported_before(tmp_path: Path) -> None:
    made = python(tmp_path, "-c", "import dermstack.errors, tabular, image_models; import dermstack; print('fine')")
    assert made.stdout.strip() == "fine", made.stderr


def test_a_users_other_modules_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text("VALUE = 3")
    made = python(tmp_path, "-c", "import dermstack, features; print(features.VALUE)")
    assert made.stdout.strip() == "3", made.stderr
