"""The notebook of a bundle, run as it would be on a machine without network: attached folders are all it has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from conftest import run_cli, small_config
from sources import PACKAGES

from dermstack.errors import BundleError
from dermstack.serve.notebook import _INSTALL, installed_requirements, own_wheel_name

ROOT = Path(__file__).parents[1]
# Every Python process of the run, pip's too, meets this first: whoever connects to anything but this machine fails.
NO_NETWORK = """
import socket

def refuse(self, address):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
        return connect(self, address)
    raise OSError(f"no network: {address}")

connect = socket.socket.connect
socket.socket.connect = socket.socket.connect_ex = refuse
def no_names(*arguments, **options):
    raise socket.gaierror(f"no network: {arguments[0]}")
socket.getaddrinfo = no_names
"""
KERNEL = """
import json, sys
scope = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
"""


@dataclass(frozen=True)
class World:
    made: Path  # where the bundle, the notebook and the wheels were written
    submission: Path  # the experiment's own
    data: Path


@pytest.fixture(scope="module")
def world(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("notebook")
    tiny = {"name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1}
    config = small_config(
        small_data, folder, image_models=[tiny | {"metadata": ["age"]}], features={"cohort": True},
        blend={"methods": ["rank_mean"], "trials": 2},
    )  # fmt: skip
    assert run_cli("oof", "--config", str(config), "--quiet") == 0
    assert run_cli("stack", "--no-report", "--config", str(config), "--quiet") == 0
    made = folder / "made"
    assert run_cli("bundle", "--config", str(config), "--out", str(made / "skin.zip"), "--notebook", "--quiet") == 0
    return World(made, folder / "runs" / "small" / "submission.csv", small_data)


def attached(world: World, folder: Path, *, unpacked: bool) -> Path:
    """/kaggle/input as the competition mounts it: the hidden test set, and a data set of ours."""
    hidden, ours = folder / "competitions" / "skin", folder / "datasets" / "me" / "bundle"
    (hidden / "images").mkdir(parents=True)
    ours.mkdir(parents=True)
    for name in ("test.csv", "sample_submission.csv"):
        shutil.copy(world.data / name, hidden)
    for line in (world.data / "test.csv").read_text().splitlines()[1:]:
        shutil.copy(world.data / "images" / f"{line.split(',')[0]}.png", hidden / "images")
    for path in (world.made / "skin.wheels.txt", world.made / own_wheel_name()):
        shutil.copy(path, ours)
    if unpacked:
        with zipfile.ZipFile(world.made / "skin.zip") as archive:
            archive.extractall(ours / "skin")
    else:
        shutil.copy(world.made / "skin.zip", ours)
    return folder


def run_notebook(
    world: World, inputs: Path, outputs: Path, *, first: Path | None = None, more: Mapping[str, str] | None = None
) -> str:
    """What its code cells print; ``first`` is a folder that Python looks in before all others."""
    outputs.mkdir()
    for name in PACKAGES[:3]:  # a user's files of these names stand beside the notebook
        (outputs.parent / f"{name}.py").write_text("raise SystemExit('the working folder was imported')")
    blocked = outputs.parent / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join(map(str, [*([first] if first else []), blocked, *([] if first else [ROOT])]))
    environment = {**os.environ, "DERMSTACK_INPUT": str(inputs), "DERMSTACK_OUTPUT": str(outputs), "PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-c", KERNEL, str(world.made / "skin.ipynb")], env=environment | dict(more or {}),
        cwd=outputs.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("unpacked", [False, True])
def test_the_notebook_predicts_the_hidden_test_set_from_attached_folders_alone(
    world: World, tmp_path: Path, unpacked: bool
) -> None:
    inputs = attached(world, tmp_path / "input", unpacked=unpacked)
    before = {path: path.stat().st_mtime_ns for path in inputs.rglob("*")}
    said = run_notebook(world, inputs, tmp_path / "working")
    assert (tmp_path / "working" / "submission.csv").read_bytes() == world.submission.read_bytes()
    assert "to install: none" in said
    assert {path: path.stat().st_mtime_ns for path in inputs.rglob("*")} == before


@pytest.mark.slow
def test_what_is_not_there_is_installed_from_the_attached_wheels(world: World, tmp_path: Path) -> None:
    """dermstack's own wheel among them: the run comes from it, not from this checkout."""
    inputs = attached(world, tmp_path / "input", unpacked=True)
    listed = inputs / "datasets" / "me" / "bundle" / "skin.wheels.txt"
    listed.write_text(listed.read_text() + "made-up-for-this-test==1.5\n")
    (inputs / "wheels").mkdir()
    write_wheel(inputs / "wheels" / "made_up_for_this_test-1.5-py3-none-any.whl", "made_up_for_this_test", "1.5")
    target = tmp_path / "site"
    target.mkdir()
    put(target, "dermstack", "0.0.1", [])  # an older one stands there first, as an image might have it
    said = run_notebook(
        world, inputs, tmp_path / "working", first=target, more={"PIP_TARGET": str(target), "PIP_UPGRADE": "1"}
    )
    assert "dermstack==" in said
    assert "made-up-for-this-test==1.5" in said
    assert (target / "made_up_for_this_test.py").is_file()
    predict = Path("dermstack", "serve", "predict.py")
    assert (target / predict).read_bytes() == (ROOT / predict).read_bytes()
    assert (tmp_path / "working" / "submission.csv").read_bytes() == world.submission.read_bytes()


def run_install_cell(folder: Path, module: str = "made_up_for_this_test") -> subprocess.CompletedProcess[str]:
    """Runs the notebook's cell that installs, in a kernel that has imported another version of what is listed.

    Wheels are attached in ``folder``/wheels.
    """
    site = folder / "site"
    site.mkdir()
    (site / f"{module}.py").write_text("OLD = True")
    (folder / "skin.wheels.txt").write_text(f"{module.replace('_', '-')}==1.5\n")
    code = f"""
from pathlib import Path
import {module}
assert {module}.OLD
WHEELS, ATTACHED = Path({str(folder / "skin.wheels.txt")!r}), sorted(Path({str(folder / "wheels")!r}).rglob("*"))
{_INSTALL.format(version=version("dermstack"))}
import {module}
assert not hasattr({module}, "OLD")
"""
    more = {"PIP_TARGET": str(site), "PIP_UPGRADE": "1", "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True)


def test_what_is_installed_replaces_what_the_kernel_had_imported(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels" / "made_up_for_this_test-1.5-py3-none-any.whl", "made_up_for_this_test", "1.5")
    ended = run_install_cell(tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_another_numpy_in_the_kernel_needs_a_restart_which_is_said(tmp_path: Path) -> None:
    """Python refuses to load its compiled part twice: `cannot load module more than once per process`."""
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels" / "numpy-1.5-py3-none-any.whl", "numpy", "1.5")
    ended = run_install_cell(tmp_path, "numpy")
    assert "RuntimeError: the kernel had imported another numpy" in ended.stderr
    assert "restart the kernel and run all cells again" in ended.stderr
    assert "remove numpy's line from skin.wheels.txt" in ended.stderr


def test_a_wheel_that_is_not_attached_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    assert (
        "LookupError: pip could not install made-up-for-this-test==1.5 from the attached wheels (its reason is above): "
        "attach the wheels as skin.wheels.txt says, or remove the lines"
    ) in run_install_cell(tmp_path).stderr


@pytest.mark.slow
def test_a_notebook_is_valid_and_names_no_place_of_this_machine(world: World) -> None:
    text = (world.made / "skin.ipynb").read_text()
    nbformat.validate(nbformat.reads(text, as_version=4))
    for written in (text, (world.made / "skin.wheels.txt").read_text()):
        assert str(ROOT) not in written
        assert str(world.data) not in written


@pytest.mark.slow
def test_a_notebook_that_was_edited_is_not_written_over(world: World, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "skin.ipynb").write_text("mine")
    config = world.submission.parents[2] / "small.yaml"
    again = ("bundle", "--config", str(config), "--out", str(tmp_path / "skin"), "--notebook", "--quiet")
    assert run_cli(*again) == 2
    assert (tmp_path / "skin.ipynb").read_text() == "mine"
    assert not (tmp_path / "skin").exists()
    assert run_cli(*again, "--replace") == 0
    assert json.loads((tmp_path / "skin.ipynb").read_text())["nbformat"] == 4


@pytest.mark.slow
def test_the_own_wheel_holds_what_a_build_holds(world: World, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)

    def content(wheel: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(wheel) as archive:
            assert archive.testzip() is None
            return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}

    assert content(world.made / own_wheel_name()) == content(next(source.glob("*.whl")))


def test_needs_are_followed_through_extras_and_markers_and_stop_where_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, unasked = "absent; python_version < '3'", "unasked; extra == 'x'"
    put(tmp_path, "top-made-up", "1", ["middle.made_up[more]>=1", absent, unasked])
    put(tmp_path, "middle_made_up", "2.0+cu130", ["deep-made-up; extra == 'more'", "other-made-up; extra == 'less'"])
    put(tmp_path, "deep_made_up", "3", ["middle-made-up", "low-made-up"])  # a circle
    put(tmp_path, "low_made_up", "4", [])
    monkeypatch.syspath_prepend(str(tmp_path))
    everything = {"deep-made-up": "3", "low-made-up": "4", "middle-made-up": "2.0"}
    assert installed_requirements("top-made-up", ()) == everything
    assert installed_requirements("top-made-up", (), stop_at=["deep-made-up"]) == {
        name: everything[name] for name in ("deep-made-up", "middle-made-up")
    }
    with pytest.raises(BundleError, match="unasked, a requirement of"):
        installed_requirements("top-made-up", ("x",))


def put(folder: Path, name: str, version: str, needs: list[str]) -> None:
    """Metadata of an installed distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    lines += [f"Provides-Extra: {extra}" for extra in ("more", "less", "x")]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def write_wheel(path: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
