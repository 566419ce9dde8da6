"""Imports go one way and heavy libraries stay where pyproject.toml's [tool.importlinter] says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WITHOUT_IMAGE_EXTRA
from sources import PACKAGES, ROOT, source_files


def test_imports_keep_the_contracts_of_pyproject() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    made = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout


def test_level_2_and_the_blender_run_without_torch() -> None:
    """With the [image] extra's modules blocked, everything but `oof` still imports."""
    code = (
        WITHOUT_IMAGE_EXTRA
        + """
import dermstack.cli.main, dermstack.report.report
import stack.history, stack.imported.run, stack.level2.stackers, stack.submission, stack.tune.run
from dermstack import Blender
Blender()
"""
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_optional_extras_are_imported_only_where_they_are_used() -> None:
    """Each module but those that stand for an extra imports after `pip install 'dermstack[image]'`."""
    without = ("__main__.py", "app.py", "admission.py", "connections.py", "onnx_export.py")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in source_files()
        if path.relative_to(ROOT).parts[0] in PACKAGES and path.name not in without
    ]
    extras = ["onnx", "onnxruntime", "onnxscript", "starlette", "uvicorn", "multipart", "catboost", "ray", "pg8000"]
    extras += ["mlflow", "tensorboard", "wandb"]
    code = f"import sys, importlib; sys.modules.update(dict.fromkeys({extras}))\n"
    code += f"for name in {modules}: importlib.import_module(name)"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("started", "heavy"),
    [
        ("dermstack.cli.main", ("torch", "pandas", "lightgbm", "optuna")),  # --help
        ("stack.blend.fold_fits", ("sklearn", "scipy.stats", "pydantic", "matplotlib", "torch")),  # a worker of a blend
        ("image_models.explain, image_models.saved", ("albumentations", "kornia")),  # predictions and heat maps
    ],
)
def test_what_starts_does_not_wait_for_imports_that_it_does_not_need(started: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {started}; print([name for name in {heavy} if name in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert made.stdout.strip() == "[]"


def test_the_export_list_is_frozen() -> None:
    import dermstack

    assert dermstack.__all__ == [
        "Blender",
        "BundleError",
        "ConfigError",
        "DataError",
        "DermstackError",
        "Ensemble",
        "ImageError",
        "Interval",
        "Out",
        "Photo",
        "StoreError",
        "TabularError",
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
        "read_row",
        "read_run",
        "read_table",
        "run_oof",
        "run_stack",
        "write_bundle",
        "write_report",
    ]  # fmt: skip
    for name in dermstack.__all__:
        assert getattr(dermstack, name).__module__.startswith(("stack.", "dermstack."))
