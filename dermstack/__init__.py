"""The public names of dermstack for notebooks and scripts; each loads its module on first use, so importing is fast."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dermstack.own_packages import find_own_packages

find_own_packages()

_HOME = {
    "Blender": "stack.blend.blender",
    "Ensemble": "dermstack.serve.patient",
    "Interval": "stack.metrics.intervals",
    "Out": "stack.console",
    "Photo": "dermstack.serve.patient",
    "auc": "stack.metrics.scores",
    "average_precision": "stack.metrics.scores",
    "evaluate": "dermstack.serve.evaluate",
    "interval": "stack.metrics.intervals",
    "paired_difference": "stack.metrics.intervals",
    "pauc80": "stack.metrics.scores",
    "blend_nested": "stack.blend.nested",
    "make_folds": "stack.folds",
    "open_experiment": "stack.experiment",
    "predict_rows": "dermstack.serve.predict",
    "read_bundle": "dermstack.serve.bundle",
    "read_new_rows": "dermstack.serve.new_rows",
    "read_labelled_rows": "dermstack.serve.evaluate",
    "read_config": "stack.settings.config",
    "run_oof": "dermstack.pipeline",
    "run_stack": "dermstack.pipeline",
    "read_patient": "dermstack.serve.patient",
    "read_row": "dermstack.serve.patient",
    "read_run": "stack.store",
    "read_table": "stack.tables.table",
    "write_bundle": "dermstack.serve.write_bundle",
    "write_report": "dermstack.report.evidence",
    **dict.fromkeys(
        ("BundleError", "ConfigError", "DataError", "DermstackError", "ImageError", "StoreError", "TabularError"),
        "dermstack.errors",
    ),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dermstack' has no attribute {name!r}: it exports {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
