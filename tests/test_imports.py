"""The walls of the house: imports go one way, heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WITHOUT_IMAGE_EXTRA

ROOT = Path(__file__).parents[1]

# Inside a package a file imports only files that stand before it.
ORDER = {
    "image_models": [
        "errors",
        "whole",
        "processes",
        "decode",
        "dicom",
        "tfrecord",
        "readers",
        "cache",
        "cache_build",
        "looks",
        "settings",
        "artefacts",
        "transforms",
        "dataset",
        "device",
        "device_augment",
        "loss",
        "prior",
        "mix",
        "net",
        "head",
        "views",
        "predict",
        "ema",
        "state",
        "train",
        "fit",
        "stored",
        "apply",
        "explain",
        "onnx_export",
    ],
    "tabular": [
        "errors",
        "encode",
        "dense",
        "aggregates",
        "neighbours",
        "cohort",
        "density",
        "align",
        "gbdt_params",
        "gbdt_libraries",
        "gbdt",
        "gbdt_files",
        "logistic",
        "models",
    ],
    "stack": [
        "errors",
        "reading",
        "console",
        "settings",
        "image_config",
        "config",
        "threads",
        "curve",
        "metrics",
        "intervals",
        "delong",
        "subgroups",
        "proportion",
        "recalibration",
        "reliability",
        "operating",
        "measures",
        "validation",
        "net_benefit",
        "null",
        "table",
        "external",
        "deal",
        "folds",
        "store",
        "join",
        "journal",
        "pseudonym",
        "pictures",
        "experiment",
        "ranks",
        "weighting",
        "tuned",
        "acquisition",
        "images",
        "summary",
        "labels",
        "trained_before",
        "fold_tasks",
        "devices",
        "task_runner",
        "oof",
        "matrix",
        "embeddings",
        "imported_files",
        "imported",
        "sources",
        "fold_matrix",
        "shortcuts",
        "stackers",
        "importance",
        "hill_climb",
        "logistic_weights",
        "blend_study",
        "blend",
        "blend_state",
        "nested",
        "calibrate",
        "calibrate_nested",
        "studies",
        "tune_image",
        "tune",
        "submit",
        "ensemble",
        "ledger",
        "listing",
        "compare",
        "clean",
        "demo_data",
        "survey",
        "drift",
        "import_metadata",
    ],
    "audits": [
        "finding",
        "record",
        "pictures",
        "alone",
        "proxies",
        "rows",
        "acquisition",
        "shift",
        "partitions",
        "held_out",
        "runs",
        "second_look",
        "shuffled",
        "audit",
    ],
    "pages": [
        "figures",
        "section",
        "curves",
        "model_figures",
        "tables",
        "report_data",
        "report_panels",
        "explorer",
        "contact_sheet",
        "case_pictures",
        "hard_cases",
        "second_look",
        "model_card",
        "report",
        "data_facts",
        "evidence",
        "eda_figures",
        "eda_tables",
        "eda_panels",
        "eda",
        "first_look",
        "evaluation_figures",
        "evaluation",
    ],
    "serving": [
        "manifest",
        "bundle",
        "fitted",
        "level1",
        "novel",
        "costs",
        "promise",
        "onnx_export",
        "pack",
        "predict",
        "files",
        "labelled",
        "evaluate",
        "wheels",
        "notebook",
        "heat",
        "others",
        "session",
        "app",
    ],
    "commands": ["shown", "options", "data", "serve", "door", "cli"],
    "reference": ["sentences", "config_keys", "command_line", "field_comments", "hooks"],
}
MAY_IMPORT = {
    "image_models": set(),
    "tabular": set(),
    "stack": {"image_models", "tabular"},
    "audits": {"image_models", "tabular", "stack"},
    "pages": {"image_models", "tabular", "stack", "audits"},
    "serving": {"image_models", "tabular", "stack", "audits", "pages"},
    "commands": {"image_models", "tabular", "stack", "audits", "pages", "serving"},
    "reference": {"image_models", "tabular", "stack", "audits", "pages", "serving", "commands"},
}
HEAVY = {
    **dict.fromkeys(("torch", "torchvision", "timm", "albumentations", "cv2"), "image_models/"),
    **dict.fromkeys(("pydicom", "gdcm", "simplejpeg", "h5py", "google_crc32c", "imagecodecs"), "image_models/"),
    **dict.fromkeys(("kornia", "torchcam"), "image_models/"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "image_models/"),
    **dict.fromkeys(("starlette", "uvicorn"), "dermstack/serve/app.py"),
    "ray": "stack/level1_jobs.py",
    **dict.fromkeys(("lightgbm", "xgboost", "catboost"), "tabular/gbdt_libraries.py"),
}


def files() -> list[tuple[str, Path]]:
    return [(package, path) for package in ORDER for path in sorted((ROOT / package).glob("*.py"))]


def imports(path: Path, package: str) -> list[str]:
    """Every module that the file imports, also inside functions, as absolute dotted names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{path}: import from a parent package"
            found.append(f"{package}.{node.module}" if node.level else str(node.module))
    return found


@pytest.mark.parametrize(("package", "path"), files(), ids=lambda value: getattr(value, "name", value))
def test_imports_go_one_way(package: str, path: Path) -> None:
    order = ORDER[package]
    for name in imports(path, package):
        root, _, rest = name.partition(".")
        if root in ORDER and root != package:
            assert root in MAY_IMPORT[package], f"{path.name} imports {name}: {package} must not know {root}"
        elif root == package:
            module = rest.split(".")[0]
            assert order.index(module) < order.index(path.stem), f"{path.name} imports {module}, which stands after it"


@pytest.mark.parametrize(("package", "path"), files(), ids=lambda value: getattr(value, "name", value))
def test_heavy_libraries_stay_in_their_rooms(package: str, path: Path) -> None:
    for name in imports(path, package):
        home = HEAVY.get(name.split(".")[0])
        assert home is None or f"{package}/{path.name}".startswith(home), f"{path.name} imports {name} of {home}"


def test_every_file_has_its_place_in_the_order() -> None:
    for package, order in ORDER.items():
        assert {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"} == set(order)


def test_level_2_and_the_blender_run_without_torch() -> None:
    """With the [image] extra's modules blocked, everything but `oof` still imports."""
    code = (
        WITHOUT_IMAGE_EXTRA
        + """
import dermstack.cli.main, stack.submission, stack.level2, stack.import_oof, stack.tune.run, dermstack.report.report, stack.compare
from dermstack import Blender
Blender()
"""
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = "import sys, dermstack.cli.main; print([m for m in ('torch', 'pandas', 'lightgbm', 'optuna') if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert made.stdout.strip() == "[]"


def test_the_export_list_is_frozen() -> None:
    import dermstack

    assert dermstack.__all__ == [
        "Blender",
        "DermstackError",
        "Ensemble",
        "Interval",
        "Out",
        "Photo",
        "auc",
        "average_precision",
        "blend_nested",
        "evaluate",
        "interval",
        "make_folds",
        "open_experiment",
        "paired_difference",
        "pauc80",
        "predict_rows",
        "read_bundle",
        "read_config",
        "read_labelled_rows",
        "read_new_rows",
        "read_patient",
        "read_run",
        "read_table",
        "write_bundle",
        "write_report",
    ]  # fmt: skip
    for name in dermstack.__all__:
        assert getattr(dermstack, name).__module__.startswith(("stack.", "dermstack."))
