"""What lies under runs/: written to a temporary name and renamed, ``run.json`` last, read back only when whole."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from image_models.files import atomic_write
from stack.errors import StoreError

RUN_FILE = "run.json"
# The command that makes a run, by its kind; the rest are made by `stack`.
_MADE_BY = {"image": "oof", "net": "oof", "frozen": "oof", "imported": "import-oof", "predictions": "predict"}

LOCK_FILE = ".lock"
_DIGEST_KEY = "digest"  # the key under which a file keeps that of its content
_DISK_BLOCK_BYTES = 1 << 16  # bytes: a disk with less room is full

# What pyarrow and pandas raise for bytes that are no parquet, and NumPy for what is no array: its header is Python.
FRAME_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, MemoryError)
_ARRAY_ERRORS = (*FRAME_ERRORS, SyntaxError, TokenError, EOFError, ArithmeticError, RecursionError)


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
        path = self.verified_path(f"{name}.parquet")
        try:
            return pd.read_parquet(path)
        except FRAME_ERRORS as error:
            raise StoreError(
                f"{path} is no parquet file that can be read ({_short(error)}): {_remedy(path.parent)}"
            ) from error

    def array(self, name: str) -> NDArray[np.float16]:
        """``oof_z``, ``test_z`` or ``anchor_z``, memory-mapped, in the order of the frame's rows."""
        return read_array(self.verified_path(f"{name}.npy"), remedy=_remedy(self.folder))

    def verified_path(self, file: str) -> Path:
        """Where a file of the run lies. Raises StoreError for one that has changed since, or is gone."""
        path = self.folder / file
        if not path.exists() or _hash_once(path, path.stat().st_mtime_ns) != self.meta["files"].get(file):
            step = _MADE_BY.get(str(self.meta.get("kind")), "stack")
            raise StoreError(
                f"{path} is {'damaged' if path.exists() else 'gone'}: {_remedy(self.folder, f'`dermstack {step}`')}"
            )
        return path


def read_verified_run(folder: Path) -> Run | None:
    """`read_run`, after checking every file of the run, its folds and their nets.

    Raises StoreError naming the file that has changed or is gone, what to remove and what to run.
    """
    run = read_run(folder)
    folders = [*sorted(folder.glob("fold_*")), *sorted(folder.glob("fold_*/seed_*"))]
    parts = [run, *map(read_run, folders)] if run else []
    for part in parts:
        if part is not None:
            for file in part.meta["files"]:
                part.verified_path(file)
    return run


def read_array(path: Path, *, remedy: str) -> NDArray[Any]:
    """A .npy file, memory-mapped, so that what its header claims is no memory; ``again`` is the error's next step.

    Raises StoreError for anything else, also for pickled objects and for the zip of arrays that `np.load` would open.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # objects are refused there
    except _ARRAY_ERRORS as error:
        raise StoreError(f"{path} is no array that can be read ({_short(error)}): {remedy}") from error
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
    existing_files: Sequence[Path] = (),
) -> Run:
    """Write the frames as parquet, the arrays as npy and, when all of it is on the disk, ``run.json``.

    ``beside`` are files that already lie in the folder and belong to the run (weights, model texts, history).
    """
    files = {path.name: sha256(path) for path in existing_files}
    for name, frame in frames.items():
        with atomic(path := folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
        files[path.name] = sha256(path)
    for name, array in (arrays or {}).items():
        with atomic(path := folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        files[path.name] = sha256(path)
    run_json = {**meta, "files": files}
    write_json(folder / RUN_FILE, with_digest(run_json))
    return Run(folder, run_json)


def read_run(folder: Path) -> Run | None:
    """The run in ``folder``, or None where there is none or it isn't complete."""
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        meta = read_json(path)
        return Run(folder, {**meta, "files": dict(meta["files"])})
    except (LookupError, TypeError, ValueError, RecursionError) as error:  # ValueError: also of bytes that are no JSON
        raise StoreError(f"{path} is damaged ({_short(error)}): {_remedy(folder)}") from error


def read_runs(models: Path) -> list[Run]:
    """Every complete run under ``models/``, by name."""
    folders = sorted(models.iterdir()) if models.is_dir() else []
    return [run for folder in folders if folder.is_dir() and (run := read_run(folder)) is not None]


def set_aside(folder: Path, old: Path) -> Path | None:
    """Move a run that is stale to ``old/<name>-<fingerprint>``, kept for comparison until `dermstack clean`.

    One that is incomplete or damaged goes to the next free ``old/<name>-incomplete-<n>`` or ``-damaged-<n>``.
    """
    if not folder.exists():
        return None
    try:
        run = read_run(folder)
        suffix = run.meta["fingerprint"] if run else "incomplete"
    except StoreError:  # --rebuild is one way out of it
        suffix = "damaged"
    target = old / f"{folder.name}-{suffix}"
    if suffix in ("incomplete", "damaged"):  # not the same again: folds in it may be hours of work
        target = next(free for k in itertools.count(1) if not (free := old / f"{target.name}-{k}").exists())
    elif target.exists():
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


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, `signed` or not. Raises ValueError for anything else."""
    return verify_digest(json.loads(path.read_text(encoding="utf-8")))


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a digest of all of it, as JSON keeps it."""
    return {**value, _DIGEST_KEY: _digest(value)}


def verify_digest(value: Any) -> dict[str, Any]:
    """What was `signed`, or came without a digest. Raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    if (digest := value.pop(_DIGEST_KEY, None)) is not None and digest != _digest(value):
        raise ValueError("its content isn't what its digest says")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame as parquet, atomically, with a checksum of each page that `read_frame` verifies."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False, write_page_checksum=True)


def read_frame(path: Path, *, remedy: str) -> pd.DataFrame:
    """Reads what `write_frame` wrote. Raises StoreError for a damaged file, naming the command ``remedy`` to run again.

    Files of dermstack 0.1 have no checksums and are read without that check.
    """
    try:
        frame = pd.read_parquet(path, page_checksum_verification=True)
    except FRAME_ERRORS as error:
        raise StoreError(f"{path} is damaged ({_short(error)}): remove it and run `{remedy}`") from error
    frame.attrs.clear()  # of dermstack 0.1: a digest
    return frame


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; on success it is flushed to the disk and takes ``path``'s place.

    An OSError of what is written names ``path``, whatever library wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise error_with_path(error, path) from error


def error_with_path(error: OSError, path: Path) -> OSError:
    """The same error of ``path``; of a library that gives no number (numpy's of a short write) that of a full disk."""
    if error.errno is None:
        full = shutil.disk_usage(path.parent).free < _DISK_BLOCK_BYTES
        return OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path))
    return OSError(error.errno, os.strerror(error.errno), str(path))


def _remedy(folder: Path, step: str | None = None) -> str:
    """What to remove and run: a fold is made again with its run, once that is complete."""
    run = next((above for above in (folder.parents[1], folder.parent) if (above / RUN_FILE).exists()), folder)
    if step is None:
        return (
            f"remove {run} and run the step again (`dermstack oof` for an image model, `dermstack import-oof` for an "
            "imported one, `dermstack stack` for the rest)"
        )
    return f"remove {run} and run {step} again"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Work on ``folder`` alone, after ``wait`` seconds at most. The lock goes with its process, killed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK_FILE, timeout=wait):
            yield
    except Timeout as error:
        raise StoreError(f"another process is working on {folder}: wait for it, or stop it") from error


def row_positions(ids: Iterable[str], among: Iterable[str], what: str) -> NDArray[np.intp]:
    """Where each of ``ids`` (n,) stands in ``among``, which ``what`` names. Raises StoreError where one has no place,
    or two."""
    asked, index = pd.Index(ids), pd.Index(among)
    if not index.is_unique:
        raise StoreError(f"{what} hold id {index[index.duplicated()][0]!r} twice: make them again")
    found: NDArray[np.intp] = index.get_indexer(asked)
    if (lost := found < 0).any():
        raise StoreError(f"{lost.sum()} ids are not among {what}, first {asked[lost][0]!r}: make the run again")
    return found


def row_positions_in_run(run: Run, own: pd.Series[str], ids: pd.Series[str], part: str) -> NDArray[np.intp]:
    """Where each of ``ids`` stands in the run's rows (-1: nowhere). Raises for doubled ids and strangers."""
    index = pd.Index(own)
    if not index.is_unique:
        raise StoreError(f"{run.folder}/{part}.parquet holds {index.duplicated().sum()} ids twice: rebuild the run")
    extra = index.difference(pd.Index(ids))
    if len(extra):
        raise StoreError(
            f"{run.folder}/{part}.parquet holds {len(extra)} ids that are not in the table, first: "
            f"{', '.join(map(str, extra[:3]))}: rebuild the run for these rows"
        )
    return index.get_indexer(pd.Index(ids))
