"""One line for every `make stack`: when, what changed since the line before, what came out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stack.errors import StoreError
from stack.experiment import Experiment
from stack.store import Run, named


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
    path = experiment.folder / "ledger.jsonl"
    try:
        with path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a crash tore would swallow this line too
            file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise named(error, path) from error
    return line


def read_lines(experiment: Experiment) -> list[dict[str, Any]]:
    """All lines, oldest first; a last line torn by a crash is left out."""
    path = experiment.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [_read(line, path, number) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _read(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        read = json.loads(line)
        return {**read, "settings": dict(read["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: line {number} is damaged ({error}): remove {path} (nothing is computed from this record) and run "
            "`dermstack stack` again"
        ) from error


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
