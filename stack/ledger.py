"""Keeps the ledger of an experiment: one line for each `dermstack stack`, with the changed settings and the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dermstack.errors import StoreError
from stack.json_files import error_with_path
from stack.settings.config import Config

LEDGER = "ledger.jsonl"
# Where files lie, how fast it runs and what is told to others: not what the numbers come from.
_LEFT_OUT = {"runs", "cache", "storage", "n_jobs", "device", "workers", "tracking"}


def ledger_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that results come from, as the ledger keeps them."""
    return config.model_dump(mode="json", exclude=_LEFT_OUT)


def append_line(folder: Path, config: Config, blend: Mapping[str, Any]) -> dict[str, Any]:
    """Appends the headline in ``blend``, a blend's run.json, and the changed settings to the ledger in ``folder``.

    Returns the line. Raises StoreError for a damaged line before it.
    """
    settings = flat_settings(ledger_settings(config))
    before = read_lines(folder)
    known = before[-1]["settings"] if before else settings
    changed = {
        key: [known.get(key), settings.get(key)]
        for key in sorted({*known, *settings})
        if known.get(key) != settings.get(key)
    }
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: blend[key] for key in ("fingerprint", "objective", "headline", "tuned_in_sample", "chosen")},
        "changed": changed,
        "settings": settings,
    }
    path = folder / LEDGER
    try:
        with path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # drop a line that a crash left incomplete
            file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise error_with_path(error, path) from error
    return line


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Reads all lines, oldest first, without a last line that a crash left incomplete.

    Raises StoreError for a damaged line.
    """
    path = folder / LEDGER
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


def flat_settings(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings, as ``{"blend.trials": 100, "image_models.0.lr": …}``."""
    if isinstance(settings, dict):
        pairs = settings.items()
    elif isinstance(settings, list):
        pairs = enumerate(settings)  # type: ignore[assignment]
    else:
        return {prefix: settings}
    return {
        key: value
        for name, part in pairs
        for key, value in flat_settings(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }
