"""What lies under runs/: written to a temporary name and renamed, ``run.json`` last, read back only when whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from scipy.special import expit

from stack.errors import StoreError

# What pyarrow and pandas raise for bytes that are no parquet, and NumPy for what is no array: its header is Python.
NO_FRAME = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, MemoryError)
_NO_ARRAY = (*NO_FRAME, SyntaxError, TokenError, EOFError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Run:
    """A finished run (or one fold of it): ``meta`` is its run.json, the frames and arrays lie beside it."""

    folder: Path
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.name

    def has(self, name: str) -> bool:
        """Whether the run holds a frame or array of this name."""
        return any(file in self.meta["files"] for file in (f"{name}.parquet", f"{name}.npy"))

    def frame(self, name: str) -> pd.DataFrame:
        """``oof``, ``test`` or ``anchor``: id, fold, logit, p. Raises StoreError for a file that has changed."""
        path = self.checked(f"{name}.parquet")
        try:
            return pd.read_parquet(path)
        except NO_FRAME as error:
            raise StoreError(
                f"{path} is no parquet file that can be read ({_short(error)}): {_again(path.parent)}"
            ) from error

    def array(self, name: str) -> NDArray[np.float16]:
        """``oof_z``, ``test_z`` or ``anchor_z``, memory-mapped, in the order of the frame's rows."""
        return read_array(self.checked(f"{name}.npy"), again=_again(self.folder))

    def checked(self, file: str) -> Path:
        """Where a file of the run lies. Raises StoreError for one that has changed since, or is gone."""
        path = self.folder / file
        if not path.exists() or _hash_once(path, path.stat().st_mtime_ns) != self.meta["files"].get(file):
            raise StoreError(f"{path} is {'damaged' if path.exists() else 'gone'}: {_again(self.folder)}")
        return path


def read_array(path: Path, *, again: str) -> NDArray[Any]:
    """A .npy file, memory-mapped, so that what its header claims is no memory; ``again`` is the error's next step.

    Raises StoreError for anything else, also for pickled objects and for the zip of arrays that `np.load` would open.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # objects are refused there
    except _NO_ARRAY as error:
        raise StoreError(f"{path} is no array that can be read ({_short(error)}): {again}") from error
    return array


def prediction_frame(ids: pd.Series[str] | list[str], fold: NDArray[Any] | int, logit: NDArray[Any]) -> pd.DataFrame:
    """The rows that a run stores: id, fold (int8), logit, p (float32). Raises StoreError unless logits are finite."""
    if not np.isfinite(logit).all():
        raise StoreError(f"{int((~np.isfinite(logit)).sum())} predictions are not finite: the model has collapsed")
    frame = pd.DataFrame({"id": ids, "fold": np.broadcast_to(fold, len(logit)), "logit": logit})
    frame["p"] = expit(frame["logit"].astype(np.float64))
    return frame.astype({"fold": np.int8, "logit": np.float32, "p": np.float32})


def write_run(
    folder: Path,
    meta: Mapping[str, Any],
    *,
    frames: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, NDArray[Any]] | None = None,
    beside: Sequence[Path] = (),
) -> Run:
    """Write the frames as parquet, the arrays as npy and, when all of it is on the disk, ``run.json``.

    ``beside`` are files that already lie in the folder and belong to the run (weights, model texts, history).
    """
    files = {path.name: sha256(path) for path in beside}
    for name, frame in frames.items():
        with atomic(path := folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
        files[path.name] = sha256(path)
    for name, array in (arrays or {}).items():
        with atomic(path := folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        files[path.name] = sha256(path)
    write_json(folder / "run.json", run_json := {**meta, "files": files})
    return Run(folder, run_json)


def read_run(folder: Path) -> Run | None:
    """The run in ``folder``, or None where there is none or it isn't complete."""
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return Run(folder, {**meta, "files": dict(meta["files"])})
    except (
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also of bytes that are no JSON or no UTF-8
        raise StoreError(f"{path} is damaged ({error}): remove {folder} and run the step again") from error


def read_runs(models: Path) -> list[Run]:
    """Every complete run under ``models/``, by name."""
    folders = sorted(models.iterdir()) if models.is_dir() else []
    return [run for folder in folders if folder.is_dir() and (run := read_run(folder)) is not None]


def set_aside(folder: Path, old: Path) -> Path | None:
    """Move a run that is stale to ``old/<name>-<fingerprint>``, kept for comparison until `dermstack clean`."""
    if not folder.exists():
        return None
    run = read_run(folder)
    mark = run.meta["fingerprint"] if run else "incomplete"
    target = old / f"{folder.name}-{mark}"
    if target.exists():
        shutil.rmtree(target)
    old.mkdir(parents=True, exist_ok=True)
    folder.replace(target)
    return target


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Twelve hex digits of a step's settings and inputs; n_jobs, device and paths don't belong in."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def frame_fingerprint(frame: pd.DataFrame) -> str:
    """Of a frame's columns and values, in order."""
    hashed = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return fingerprint({"columns": list(frame.columns), "rows": hashlib.sha256(hashed.tobytes()).hexdigest()})


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _hash_once(path: Path, mtime_ns: int) -> str:
    """An embedding is a large file and read once a fold: it is hashed when first read, and when it has changed."""
    return sha256(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Atomically; keys stay in their order."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; on success it is flushed to the disk and takes ``path``'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _again(folder: Path) -> str:
    return (
        f"remove {folder} and run the step again (`dermstack oof` for an image model, `dermstack stack` for the rest)"
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Work on ``folder`` alone. The lock goes with its process, so a killed one leaves none behind."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise StoreError(f"another process is working on {folder}: wait for it, or stop it") from error
