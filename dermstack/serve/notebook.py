"""Writes a notebook for code competitions without network, which installs attached wheels and predicts the test set."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import sys
import zipfile
from collections.abc import Collection
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dermstack.errors import BundleError
from dermstack.report.tables import code_span
from dermstack.serve.bundle import Bundle
from stack.outputs import output_file
from stack.settings.data import Data

PACKAGE = "dermstack"
EXTRA = "image"
# A GPU notebook has these already, built for its driver; their wheels take gigabytes.
HOST_PACKAGES = ("torch", "torchvision")
_MAX_NAMED = 12  # columns of the csv that the notebook names
_GPU_LIBRARIES = ("nvidia-", "cuda-")
_WHEEL = "Wheel-Version: 1.0\nGenerator: dermstack\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel_list(wheel: str) -> str:
    """Returns a requirements file: ``wheel``, the requirements of ``dermstack[image]`` as installed here, instructions.

    Requirements that only torch needs are commented out. Raises BundleError if a requirement is not installed here.
    """
    everything = installed_requirements(PACKAGE, (EXTRA,))
    needed = installed_requirements(PACKAGE, (EXTRA,), stop_at=HOST_PACKAGES)
    host = {
        name: version
        for name, version in everything.items()
        if name in HOST_PACKAGES or name not in needed or name.startswith(_GPU_LIBRARIES)
    }
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join([
        "# All that dermstack needs for predictions, in the versions installed where the bundle was made: "
        f"CPython {python}, {platform.system()} {platform.machine()}.",
        "# Download the wheels beside this file with the notebook's Python (safest: the same notebook with network):",
        "#   pip download --only-binary=:all: --no-deps -r THIS_FILE -d wheels",
        f"# then attach wheels/, this file and the bundle. On another machine, add --python-version {python}",
        "# --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64. The same versions give the same numbers.",
        f"./{wheel}",
        *(f"{name}=={version}" for name, version in needed.items() if name not in host),
        "",
        "# A GPU notebook has these already, perhaps in other versions; uncomment a line to install this version.",
        *(f"# {name}=={version}" for name, version in host.items()),
        "",
    ])  # fmt: skip


def installed_requirements(root: str, extras: Collection[str], *, stop_at: Collection[str] = ()) -> dict[str, str]:
    """Returns the versions, by name and sorted, of all direct and indirect requirements of ``root`` with ``extras``.

    Markers are evaluated for this Python and system. Distributions in ``stop_at`` are included, their own requirements
    are not. Raises BundleError if a requirement is not installed.
    """
    found: dict[str, str] = {}
    waiting, seen = [(root, frozenset(extras))], set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        name, its_extras = asked
        here = _installed(name)
        if name != root:
            found[name] = Version(here.version).public  # local versions such as +cu130 are not on public indexes
        if name not in stop_at:
            waiting += [
                (canonicalize_name(need.name), frozenset(need.extras)) for need in _requirements(here, its_extras)
            ]
    return dict(sorted(found.items()))


def check_environment() -> None:
    """Raises BundleError listing the requirements of ``dermstack[image]`` that are missing or have a wrong version."""
    unmet = []
    for need in _requirements(_installed(PACKAGE), {EXTRA}):
        try:
            here = distribution(need.name).version
        except PackageNotFoundError:
            here = "none"
        if here == "none" or not need.specifier.contains(here, prereleases=True):
            unmet.append(f"{need.name}{need.specifier} (installed: {here})")
    if unmet:
        raise BundleError(f"dermstack needs {', '.join(unmet)}: attach these wheels and add them to the list of wheels")


def write_own_wheel(folder: Path) -> Path:
    """Writes the running dermstack, editable or not, as a wheel and returns its path. Same code, same bytes."""
    own = _installed(PACKAGE)
    info = f"{PACKAGE}-{own.version}.dist-info"
    kept = ("METADATA", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    texts = {name: own.read_text(name) for name in kept}
    # A checkout installed in place and first on the path is found through its .egg-info, which has neither file.
    texts["METADATA"] = texts["METADATA"] or own.read_text("PKG-INFO")
    texts["WHEEL"] = texts["WHEEL"] or _WHEEL
    files = {f"{info}/{name}": text.encode() for name, text in texts.items() if text is not None}
    for package in (own.read_text("top_level.txt") or "").split():
        spec = find_spec(package)
        assert spec is not None, "the packages are importable: this module is in one of them"
        assert spec.origin is not None, "each package has an __init__.py"
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                files[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    wheel = folder / own_wheel_name()
    with output_file(wheel) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return wheel


def own_wheel_name() -> str:
    """Returns the file name of the running dermstack's wheel."""
    return f"{PACKAGE}-{_installed(PACKAGE).version}-py3-none-any.whl"


def _requirements(of: Distribution, extras: Collection[str]) -> list[Requirement]:
    """Returns the requirements with ``extras`` whose markers hold on this Python and system."""
    needs = [Requirement(line) for line in of.requires or []]
    return [
        need
        for need in needs
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def _installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise BundleError(
            f"{name}, a requirement of dermstack[{EXTRA}], is not installed: pip install 'dermstack[{EXTRA}]'"
        ) from error


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


_ATTACH = """# {experiment}: predictions without network
{objective} {value:.4f} [{low:.4f}, {high:.4f}] {estimate}, on {rows:,} training {what}. Attach as one data set or
several: the bundle `{bundle}` (a folder or a zip), `{wheels}`, and the wheels listed in it, which says how to download
them."""

_PATHS = """import os
from pathlib import Path

INPUT = Path(os.environ.get("DERMSTACK_INPUT", "/kaggle/input"))  # the attached files: searched, never written to
OUTPUT = Path(os.environ.get("DERMSTACK_OUTPUT", "/kaggle/working"))
ATTACHED = sorted(INPUT.rglob("*"))


def only(found, what):
    if len(found) != 1:
        raise LookupError(f"{{what}}: {{len(found)}} in {{INPUT}} {{[*map(str, found[:5])]}}: write the path here")
    return found[0]


def named(name):
    return only([path for path in ATTACHED if path.name == name], name)


manifests = [path for path in ATTACHED if path.name == "manifest.json" and '"dermstack"' in path.read_text("utf-8")]
BUNDLE = only([path.parent for path in manifests] + [path for path in ATTACHED if path.name == {zip!r}], "the bundle")
WHEELS = named({wheels!r})
TEST_CSV = named({test_csv!r})
IMAGES = {images}{predictions}
SAMPLE = {sample}  # None: the submission has the rows of the test csv, in its order"""

_INSTALL = """import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files, version


def here(name):
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


pins = [line for line in WHEELS.read_text("utf-8").splitlines() if "==" in line and not line.startswith("#")]
wanted = ["dermstack=={version}", *pins]
lacking = [pin for pin in wanted if here(pin.split("==")[0]) != pin.split("==")[1]]
print(f"{{len(wanted) - len(lacking)}} distributions are installed, to install: {{', '.join(lacking) or 'none'}}")
if lacking:
    folders = sorted({{str(path.parent) for path in ATTACHED if path.suffix == ".whl"}})
    links = [f"--find-links={{folder}}" for folder in folders]
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *links, *lacking]
    if subprocess.run(pip).returncode:
        raise LookupError(
            f"pip could not install {{', '.join(lacking)}} from the attached wheels (its reason is above): attach the "
            f"wheels as {{WHEELS.name}} says, or remove the lines of those that may stay in the version of this machine"
        )
    parts = {{file.parts[0].removesuffix(".py") for pin in lacking for file in files(pin.split("==")[0]) or ()}}
    if "numpy" in parts and "numpy" in sys.modules:
        raise RuntimeError(
            "the kernel had imported another numpy, which Python loads once only: restart the kernel and run all cells "
            f"again; nothing is installed then. In a notebook that runs by itself, remove numpy's line from "
            f"{{WHEELS.name}}: the version of this machine then stays"
        )
    for name in [name for name in sys.modules if name.split(".")[0] in parts]:
        del sys.modules[name]  # the kernel had imported the version that was replaced"""

_READ = """from dermstack.serve.bundle import read_bundle
from dermstack.serve.notebook import check_environment

check_environment()
bundle = read_bundle(BUNDLE)
print(f"bundle {bundle.fingerprint}, made by dermstack {bundle.manifest['dermstack']}")"""

_PREDICT = """from dermstack.serve.predict_files import OutputFiles, predict_to_files
from stack.console import Out

predictions = predict_to_files(
    bundle,
    IMAGES,
    TEST_CSV,
    Out(),
    OutputFiles(OUTPUT / "predictions.csv", submission=OUTPUT / "submission.csv", sample=SAMPLE),
    n_jobs=os.cpu_count() or 1,{further}
)"""

_SHOW = """import pandas as pd

pd.read_csv(OUTPUT / "submission.csv").head()"""


def write_notebook(bundle: Bundle, target: Path, data: Data) -> tuple[Path, Path, Path]:
    """Writes three files beside the bundle ``target``: the notebook, the list of wheels and dermstack's own wheel.

    The notebook finds the test csv, the images (if the bundle takes any) and the sample submission by their names in
    ``data``. Raises
    BundleError if a requirement of dermstack is not installed here.
    """
    notebook, wheels = notebook_paths(target)
    manifest, headline = bundle.manifest, bundle.manifest["headline"]
    images = data.test_images or data.images or Path("images")
    paths = _PATHS.format(
        zip=f"{_stem(target)}.zip",
        wheels=wheels.name,
        test_csv=data.test.name if data.test else "test.csv",
        images=f"named({images.name!r})" if bundle.takes_images else "None  # the bundle has no image model",
        predictions=_predictions_of(bundle),
        sample=f"named({data.sample_submission.name!r})" if data.sample_submission else None,
    )
    title = _ATTACH.format(
        experiment=manifest["experiment"], objective=bundle.objective, bundle=_stem(target), wheels=wheels.name,
        value=headline["value"], low=headline["low"], high=headline["high"], rows=manifest["training"]["rows"],
        what="units" if bundle.unit_columns else "rows", estimate=bundle.estimate,
    )  # fmt: skip
    cells = [
        ("markdown", title),
        ("markdown", "Files are found by name below the input folder; you can write a path instead."),
        ("code", paths),
        ("markdown", "Missing distributions and other versions are installed, only from the attached wheels."),
        ("code", _INSTALL.format(version=version("dermstack"))),
        ("markdown", "Every file of the bundle is checked against its hash; nothing in it is executed."),
        ("code", _READ),
        (
            "markdown",
            "Predicts the attached test set with the inference path of training. If interrupted, run it again."
            + _needed(bundle),
        ),
        ("code", _PREDICT.format(further=_further_arguments(bundle, data))),
        ("markdown", "The submission:"),
        ("code", _SHOW),
    ]
    listed = wheel_list(own_wheel_name()).replace("THIS_FILE", wheels.name)
    own = write_own_wheel(target.parent)
    for path, text in ((wheels, listed), (notebook, json.dumps(_as_notebook(cells), indent=1) + "\n")):
        with output_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return notebook, wheels, own


def _predictions_of(bundle: Bundle) -> str:
    """Returns the lines that find the predictions of imported runs for the test rows; none without such runs."""
    if not (runs := bundle.imported_runs):
        return ""
    files = "".join(f"\n    {run.name!r}: [named({f'{run.name}.csv'!r})]," for run in runs)
    return f"\n# For the test rows, in files like the test files that were imported.\nPREDICTIONS = {{{files}\n}}"


def _further_arguments(bundle: Bundle, data: Data) -> str:
    """Returns the arguments that only some bundles need, each on a line of its own."""
    further = ["swap_red_blue=True"] * data.swap_red_blue + ["predictions=PREDICTIONS"] * bool(bundle.imported_runs)
    return "".join(f"\n    {one}," for one in further)


def _needed(bundle: Bundle) -> str:
    """Returns what the rows are where they are units, and which columns the test csv needs beside those with a role."""
    needed, units = list(bundle.table_inputs.values()), ""
    if bundle.unit_columns:
        columns = " and ".join(map(code_span, bundle.unit_columns))
        units = f" There is one row for each {columns}, not for each image: the test csv must have these columns."
    if not needed:
        return units
    more = f", … {len(needed):,} in all" if len(needed) > _MAX_NAMED else ""
    named = ", ".join(code_span(csv) for csv in needed[:_MAX_NAMED])
    return (
        f"{units} The models use further columns of the csv: {named}{more}. One that is absent is named with its cost."
    )


def check_no_notebook(target: Path) -> None:
    """Raises BundleError if a notebook or list of wheels, perhaps edited by hand, would be overwritten."""
    if there := [path for path in notebook_paths(target) if path.exists()]:
        raise BundleError(f"{there[0]} exists already: move it away, or overwrite it with `--replace`")


def notebook_paths(target: Path) -> tuple[Path, Path]:
    """Returns the paths of a bundle's notebook and list of wheels."""
    stem = _stem(target)
    return target.with_name(f"{stem}.ipynb"), target.with_name(f"{stem}.wheels.txt")


def _stem(target: Path) -> str:
    return target.name.removesuffix(".zip")


def _as_notebook(cells: list[tuple[str, str]]) -> dict[str, Any]:
    """Returns cells (kind, source) as a notebook in nbformat 4.5."""
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
