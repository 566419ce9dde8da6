"""One line for every `make stack`: when, what changed since the line before, what came out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from stack.experiment import Experiment
from stack.store import Run


def add_line(experiment: Experiment, blend: Run) -> dict[str, Any]:
    """Append to runs/<experiment>/ledger.jsonl and return the line."""
    settings = _flat(
        experiment.config.model_dump(mode="json", exclude={"runs", "cache", "storage", "n_jobs", "device", "workers"})
    )
    before = read_lines(experiment)
    known = before[-1]["settings"] if before else settings
    changed = {
        key: [known.get(key), settings.get(key)]
        for key in sorted({*known, *settings})
        if known.get(key) != settings.get(key)
    }
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: blend.meta[key] for key in ("fingerprint", "objective", "headline", "tuned_in_sample", "chosen")},
        "changed": changed,
        "settings": settings,
    }
    with (experiment.folder / "ledger.jsonl").open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a crash tore would swallow this line too
        file.write(json.dumps(line).encode() + b"\n")
    return line


def read_lines(experiment: Experiment) -> list[dict[str, Any]]:
    """All lines, oldest first; a last line torn by a crash is left out."""
    path = experiment.folder / "ledger.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """``{"blend.trials": 100, "image_models.0.lr": …}``."""
    if isinstance(settings, dict):
        pairs = settings.items()
    elif isinstance(settings, list):
        pairs = enumerate(settings)  # type: ignore[assignment]
    else:
        return {prefix: settings}
    return {
        key: value
        for name, part in pairs
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }
