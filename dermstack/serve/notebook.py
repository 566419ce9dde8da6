"""A notebook for code competitions without network: what is attached is found, installed, and predicts the test set."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dermstack.serve.bundle import Bundle
from dermstack.serve.wheels import own_wheel_name, wheel_list, write_own_wheel
from stack.config import Data
from stack.errors import BundleError
from stack.store import atomic

_ATTACH = """# {experiment}: predictions without network
{objective} {value:.4f} [{low:.4f}, {high:.4f}] nested, on {rows:,} training rows. Attach, as one data set or several:
the bundle `{bundle}` (as a folder or a zip), `{wheels}`, and the wheels that it tells how to fetch."""

_PATHS = """import os
from pathlib import Path

INPUT = Path(os.environ.get("DERMSTACK_INPUT", "/kaggle/input"))  # what is attached: searched, never written to
OUTPUT = Path(os.environ.get("DERMSTACK_OUTPUT", "/kaggle/working"))
ATTACHED = sorted(INPUT.rglob("*"))


def only(found, what):
    if len(found) != 1:
        raise LookupError(f"{{what}}: {{len(found)}} below {{INPUT}} {{[*map(str, found[:5])]}}: write its path here")
    return found[0]


def named(name):
    return only([path for path in ATTACHED if path.name == name], name)


manifests = [path for path in ATTACHED if path.name == "manifest.json" and '"dermstack"' in path.read_text("utf-8")]
BUNDLE = only([path.parent for path in manifests] + [path for path in ATTACHED if path.name == {zip!r}], "the bundle")
WHEELS = named({wheels!r})
TEST_CSV = named({test_csv!r})
IMAGES = named({images!r})
SAMPLE = {sample}"""

_INSTALL = """import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version


def here(name):
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


pins = [line for line in WHEELS.read_text("utf-8").splitlines() if "==" in line and not line.startswith("#")]
wanted = ["dermstack=={version}", *pins]
lacking = [pin for pin in wanted if here(pin.split("==")[0]) != pin.split("==")[1]]
print(f"{{len(wanted) - len(lacking)}} distributions are there, to install: {{', '.join(lacking) or 'none'}}")
if lacking:
    folders = sorted({{str(path.parent) for path in ATTACHED if path.suffix == ".whl"}})
    links = [f"--find-links={{folder}}" for folder in folders]
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *links, *lacking], check=True)"""

_READ = """from dermstack.serve.bundle import read_bundle
from dermstack.serve.wheels import check_environment

check_environment()
bundle = read_bundle(BUNDLE)
print(f"bundle {bundle.fingerprint}, made by dermstack {bundle.manifest['dermstack']}")"""

_PREDICT = """from dermstack.serve.files import Wanted, predict_to_files
from stack.console import Out

predictions = predict_to_files(
    bundle,
    IMAGES,
    TEST_CSV,
    Out(),
    Wanted(OUTPUT / "predictions.csv", submission=OUTPUT / "submission.csv", sample=SAMPLE),
    n_jobs=os.cpu_count() or 1,
)"""

_SHOW = """import pandas as pd

pd.read_csv(OUTPUT / "submission.csv").head()"""


def write_notebook(bundle: Bundle, target: Path, data: Data) -> tuple[Path, Path, Path]:
    """Beside the bundle ``target``: the notebook, the list of wheels to attach, and dermstack's own wheel.

    The notebook looks for test csv, pictures and sample submission by the names that they have in ``data``. Raises
    BundleError where a distribution that dermstack needs isn't installed here.
    """
    notebook, wheels = beside(target)
    manifest, headline = bundle.manifest, bundle.manifest["headline"]
    paths = _PATHS.format(
        zip=f"{_stem(target)}.zip",
        wheels=wheels.name,
        test_csv=data.test.name if data.test else "test.csv",
        images=(data.test_images or data.images or Path("images")).name,
        sample=f"named({data.sample_submission.name!r})" if data.sample_submission else None,
    )
    title = _ATTACH.format(
        experiment=manifest["experiment"], objective=manifest["objective"], bundle=_stem(target), wheels=wheels.name,
        value=headline["value"], low=headline["low"], high=headline["high"], rows=manifest["training"]["rows"],
    )  # fmt: skip
    cells = [
        ("markdown", title),
        ("markdown", "Everything is found by its name below the input folder; a path can be written in its place."),
        ("code", paths),
        ("markdown", "What is missing, or there in another version, is installed from the attached wheels alone."),
        ("code", _INSTALL.format(version=version("dermstack"))),
        ("markdown", "Each file of the bundle is checked against its hash; nothing in it is executed."),
        ("code", _READ),
        ("markdown", "The inference path of training, on the test set that lies there now. Interrupted, it goes on."),
        ("code", _PREDICT),
        ("markdown", "What is handed in:"),
        ("code", _SHOW),
    ]
    listed = wheel_list(own_wheel_name()).replace("THIS_FILE", wheels.name)
    own = write_own_wheel(target.parent)
    for path, text in ((wheels, listed), (notebook, json.dumps(_as_notebook(cells), indent=1) + "\n")):
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return notebook, wheels, own


def check_free(target: Path) -> None:
    """Raises BundleError where a notebook, perhaps edited by hand, would be written over."""
    if there := [path for path in beside(target) if path.exists()]:
        raise BundleError(f"{there[0]} is there already: move it away, or `--replace` it")


def beside(target: Path) -> tuple[Path, Path]:
    """Where the notebook of a bundle and its list of wheels lie."""
    stem = _stem(target)
    return target.with_name(f"{stem}.ipynb"), target.with_name(f"{stem}.wheels.txt")


def _stem(target: Path) -> str:
    return target.name.removesuffix(".zip")


def _as_notebook(cells: list[tuple[str, str]]) -> dict[str, Any]:
    """Cells (kind, source) in nbformat 4.5."""
    return {
        "cells": [
            {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
            | ({"execution_count": None, "outputs": []} if kind == "code" else {})
            for number, (kind, source) in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
