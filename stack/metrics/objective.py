"""The metrics that a headline, a blend or a study can optimise, and their names on pages.

Apart from `stack/metrics/scores.py`, as the config needs the names alone.
"""

from __future__ import annotations

from typing import Literal, get_args

Objective = Literal["auc", "pauc80", "ap", "logloss"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
OBJECTIVE_LABELS: dict[str, str] = {  # as pages show them
    "auc": "AUC",
    "pauc80": "partial AUC",
    "ap": "average precision",
    "logloss": "log loss, negated",
}
