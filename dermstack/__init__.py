"""The public names: what a notebook imports. Each loads its module on first use, so this import costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Blender": "stack.blend",
    "Ensemble": "serving.session",
    "Interval": "stack.intervals",
    "Out": "stack.console",
    "Photo": "serving.session",
    "auc": "stack.metrics",
    "average_precision": "stack.metrics",
    "evaluate": "serving.evaluate",
    "interval": "stack.intervals",
    "paired_difference": "stack.intervals",
    "pauc80": "stack.metrics",
    "blend_nested": "stack.nested",
    "make_folds": "stack.folds",
    "open_experiment": "stack.experiment",
    "predict_rows": "serving.predict",
    "read_bundle": "serving.bundle",
    "read_new_rows": "serving.predict",
    "read_labelled_rows": "serving.labelled",
    "read_config": "stack.config",
    "read_patient": "serving.session",
    "read_run": "stack.store",
    "read_table": "stack.table",
    "write_bundle": "serving.pack",
    "write_report": "pages.evidence",
    "DermstackError": "stack.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dermstack' has no attribute {name!r}: it exports {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
