"""A real `Ensemble` on a real `Bundle` without models or files, for what the app says before any image is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dermstack.serve.bundle import Bundle
from dermstack.serve.patient import Ensemble
from dermstack.serve.questions import Question
from dermstack.serve.words import WORDS

_MANIFEST = {
    "experiment": "small", "objective": "auc", "headline": {"value": 0.9, "low": 0.8, "high": 1.0}, "chosen": "mean",
    "selected": [], "folds": 2, "columns": {"id": "image", "age": "age", "target": "target"},
    "image_runs": [{"name": "net", "settings": {"metadata": []}}], "stackers": [],
    "training": {"rows": 9, "positives": 3, "split_groups": 9}, "files": {},
}  # fmt: skip


def unfitted_ensemble(*, words: Sequence[str] = (), questions: Sequence[Question] = (), **manifest: Any) -> Ensemble:
    """Returns an ensemble with these entries of the manifest; ``words`` are those of sex and site."""
    ensemble = Ensemble.__new__(Ensemble)  # its __init__ reads the models
    ensemble.bundle = Bundle(Path("none"), {**_MANIFEST, **manifest})
    ensemble.choices = {name: list(words) for name in WORDS}
    ensemble.questions = list(questions)
    ensemble.takes_age = "age" in ensemble.bundle.columns
    return ensemble
