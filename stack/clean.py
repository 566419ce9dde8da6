"""What can be made again, and what it would free."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from stack.config import Config

INTERRUPTED_AFTER_S = 3600.0  # no write takes an hour: a younger temporary file may be somebody's at this moment


@dataclass(frozen=True)
class Leftover:
    """A file or folder that a command makes again, or that only served comparison."""

    path: Path
    what: str
    size: int  # bytes


def leftovers(config: Config, *, cache: bool) -> list[Leftover]:
    """Set-aside runs and temporary files of the config's experiments (also the shuffled ones), with ``cache`` the image
    caches of its data set too."""
    found = []
    for folder in sorted(config.runs.glob("*")):
        if not re.fullmatch(rf"{re.escape(config.experiment)}(-shuffled--?\d+)?", folder.name):
            continue
        aside = sorted(folder.glob("old/*"))
        found += [(path, "set aside when its inputs changed") for path in aside]
        torn = [path for path in sorted(folder.rglob(".*.tmp")) if not set(aside) & set(path.parents) and _is_old(path)]
        found += [(path, "left by an interrupted write") for path in torn]
    if cache:
        caches = [path for path in sorted(config.cache.glob("*")) if _is_cache_of(config.data.name, path.name)]
        found += [(path, "image cache") for path in caches]
    return [Leftover(path, what, _size(path)) for path, what in found]


def remove(found: list[Leftover]) -> None:
    """Delete them."""
    for leftover in found:
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)


def _is_cache_of(data: str, folder: str) -> bool:
    # <data set>-<pixels>, as image_models.cache.cache_name writes it
    return re.fullmatch(rf"{re.escape(data)}-\d+(-short_side)?(-jpeg)?", folder) is not None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > INTERRUPTED_AFTER_S
    except FileNotFoundError:  # finished while we looked
        return False


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
