"""Reads and writes the runs and files under runs/: atomic writes, ``run.json`` last, hashes checked on reading."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import StoreError
from dermstack.parquet import FRAME_ERRORS, read_parquet
from image_models.locks import LOCK_FILE as LOCK_FILE
from image_models.locks import locked as locked
from stack.json_files import atomic as atomic
from stack.json_files import error_with_path as error_with_path
from stack.json_files import fingerprint as fingerprint
from stack.json_files import read_json as read_json
from stack.json_files import sha256 as sha256
from stack.json_files import sha256_once as sha256_once
from stack.json_files import verify_digest as verify_digest
from stack.json_files import with_digest as with_digest
from stack.json_files import write_json as write_json

RUN_FILE = "run.json"
# The command that makes a run of each kind; `stack` makes the other kinds.
_MADE_BY = {"image": "oof", "net": "oof", "frozen": "oof", "imported": "import-oof", "predictions": "predict"}

# Errors of NumPy for an invalid array, whose header is Python.
_ARRAY_ERRORS = (*FRAME_ERRORS, SyntaxError, TokenError, EOFError, ArithmeticError)


@dataclass(frozen=True)
class Run:
    """A finished run, or one fold or net of it: ``meta`` is its run.json, its files are in ``folder``.

    Frames that are ``held`` in memory are read instead of files.
    """

    folder: Path
    meta: dict[str, Any]
    held: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name, which is the name of its folder."""
        return self.folder.name

    def has(self, name: str) -> bool:
        """Whether the run holds a frame or array of this name."""
        files = self.meta["files"]
        return name in self.held or any(file in files for file in (f"{name}.parquet", f"{name}.npy"))

    def frame(self, name: str) -> pd.DataFrame:
        """Reads a frame such as ``oof``, ``test`` or ``anchor``, with id, fold, logit and p.

        Raises StoreError for a file that has changed, is missing or cannot be read.
        """
        if name in self.held:
            return self.held[name]
        path = self.verified_path(f"{name}.parquet")
        try:
            frame = read_parquet(path)
        except FRAME_ERRORS as error:
            raise StoreError(
                f"{path} is not a readable parquet file ({_short(error)}): {_remedy(path.parent)}"
            ) from error
        return frame

    def array(self, name: str) -> NDArray[np.float16]:
        """Opens an array such as ``oof_z``, ``test_z`` or ``anchor_z``, memory-mapped, in the frame's row order.

        Raises StoreError for a file that has changed, is missing or cannot be read.
        """
        return read_array(self.verified_path(f"{name}.npy"), remedy=_remedy(self.folder))

    def verified_path(self, file: str) -> Path:
        """Returns the path of a file of the run. Raises StoreError for a file that has changed or is missing."""
        path = self.folder / file
        if not path.exists() or sha256_once(path) != self.meta["files"].get(file):
            step = _MADE_BY.get(str(self.meta.get("kind")), "stack")
            raise StoreError(
                f"{path} is {'damaged' if path.exists() else 'missing'}: {_remedy(self.folder, f'`dermstack {step}`')}"
            )
        return path


_PARTS = ("fold_*", "fold_*/seed_*", "repeat_*/fold_*")  # folders of a run that are runs of their own


def read_verified_run(folder: Path) -> Run | None:
    """Reads a run as `read_run` does, and checks every file of the run, its folds, their nets and its repeats.

    Raises StoreError that names the changed or missing file, what to remove and what to run.
    """
    run = read_run(folder)
    folders = [one for pattern in _PARTS for one in sorted(folder.glob(pattern))]
    parts = [run, *map(read_run, folders)] if run else []
    for part in parts:
        if part is not None:
            for file in part.meta["files"]:
                part.verified_path(file)
    return run


def read_array(path: Path, *, remedy: str) -> NDArray[Any]:
    """Opens a .npy file memory-mapped, so that no memory is allocated for a false header; ``remedy`` ends its error.

    Raises StoreError for any other file, also for pickled objects and for a zip of arrays, which `np.load` would open.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # refuses object arrays
    except _ARRAY_ERRORS as error:
        raise StoreError(f"{path} is not a readable array ({_short(error)}): {remedy}") from error
    return array


def array_from_bytes(content: bytes, name: str, *, remedy: str) -> NDArray[Any]:
    """Reads the content of a .npy file, which errors call ``name``; ``remedy`` ends them.

    No memory is allocated for a false header. Raises StoreError for other content than numbers of the header's shape.
    """
    try:
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, in_columns, dtype = read_header[version](file)
        if dtype.kind not in "biuf" or dtype.itemsize * math.prod(shape) != len(content) - file.tell():
            raise ValueError(f"{dtype} of shape {shape} in {len(content) - file.tell()} bytes")
        values: NDArray[Any] = np.frombuffer(content, dtype, offset=file.tell())
        return np.array(values.reshape(shape, order="F" if in_columns else "C"))
    except _ARRAY_ERRORS as error:
        raise StoreError(f"{name} is not a readable array ({_short(error)}): {remedy}") from error


def prediction_frame(ids: pd.Series[str] | list[str], fold: NDArray[Any] | int, logit: NDArray[Any]) -> pd.DataFrame:
    """Returns the rows that a run stores: id, fold (int8), logit and p (float32).

    Raises StoreError unless all logits are finite.
    """
    if not np.isfinite(logit).all():
        raise StoreError(
            f"{int((~np.isfinite(logit)).sum())} predictions are not finite: the training has diverged, change the "
            "model's settings"
        )
    p = expit(np.asarray(logit, np.float64)).astype(np.float32)
    numbers = np.broadcast_to(fold, len(logit)).astype(np.int8)
    return pd.DataFrame({"id": ids, "fold": numbers, "logit": np.asarray(logit, np.float32), "p": p})


def write_run(
    folder: Path,
    meta: Mapping[str, Any],
    *,
    frames: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, NDArray[Any]] | None = None,
    existing_files: Sequence[Path] = (),
) -> Run:
    """Writes the frames as parquet, the arrays as npy and, when all of these are on the disk, ``run.json``.

    ``existing_files`` are files already in the folder that belong to the run (weights, models, history).
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
    """Reads the run in ``folder``; None where there is none or it is not complete.

    Raises StoreError for a damaged run.json.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        meta = read_json(path)
        return Run(folder, {**meta, "files": dict(meta["files"])})
    except (LookupError, TypeError, ValueError, RecursionError) as error:  # ValueError also for invalid JSON
        raise StoreError(f"{path} is damaged ({_short(error)}): {_remedy(folder)}") from error


def read_runs(models: Path) -> list[Run]:
    """Reads every complete run below the folder ``models``, sorted by name."""
    folders = sorted(models.iterdir()) if models.is_dir() else []
    return [run for folder in folders if folder.is_dir() and (run := read_run(folder)) is not None]


def set_aside(folder: Path, old: Path) -> Path | None:
    """Moves a stale run to ``old/<name>-<fingerprint>`` and returns that folder; None where there is no run.

    It is kept for comparison until `dermstack clean`. An incomplete or damaged run is moved to the next free
    ``old/<name>-incomplete-<n>`` or ``old/<name>-damaged-<n>``.
    """
    if not folder.exists():
        return None
    try:
        run = read_run(folder)
        suffix = run.meta["fingerprint"] if run else "incomplete"
    except StoreError:  # a damaged run may be rebuilt
        suffix = "damaged"
    target = old / f"{folder.name}-{suffix}"
    if suffix in ("incomplete", "damaged"):  # do not replace an earlier one: its folds may be hours of work
        target = next(free for k in itertools.count(1) if not (free := old / f"{target.name}-{k}").exists())
    elif target.exists():
        shutil.rmtree(target)
    old.mkdir(parents=True, exist_ok=True)
    folder.replace(target)
    return target


def frame_fingerprint(frame: pd.DataFrame) -> str:
    """Returns a fingerprint of a frame's columns and values, in order."""
    hashed = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return fingerprint({"columns": list(frame.columns), "rows": hashlib.sha256(hashed.tobytes()).hexdigest()})


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame as parquet, atomically, with a checksum of each page that `read_frame` verifies."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False, write_page_checksum=True)


def read_frame(path: Path, *, remedy: str) -> pd.DataFrame:
    """Reads what `write_frame` wrote. Raises StoreError for a damaged file, naming the command ``remedy`` to run again.

    Files of dermstack 0.1 have no checksums and are read without that check.
    """
    try:
        frame = read_parquet(path, verify=True)
    except FRAME_ERRORS as error:
        raise StoreError(f"{path} is damaged ({_short(error)}): remove it and run `{remedy}`") from error
    frame.attrs.clear()  # of dermstack 0.1: a digest
    return frame


def _remedy(folder: Path, step: str | None = None) -> str:
    """Returns what to remove and run; a fold of a complete run is made again together with the run."""
    run = next((above for above in (folder.parents[1], folder.parent) if (above / RUN_FILE).exists()), folder)
    if step is None:
        return (
            f"remove {run} and run the step again (`dermstack oof` for an image model, `dermstack import-oof` for an "
            "imported one, `dermstack stack` for the rest)"
        )
    return f"remove {run} and run {step} again"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def row_positions(ids: Iterable[str], among: Iterable[str], what: str) -> NDArray[np.intp]:
    """Returns the positions (n,) of ``ids`` in ``among``; ``what`` describes ``among`` in errors.

    Raises StoreError for an id that is not in ``among``, and where ``among`` has an id twice.
    """
    asked, index = pd.Index(ids), pd.Index(among)
    if not index.is_unique:
        raise StoreError(f"{what} hold the id {index[index.duplicated()][0]!r} twice: make them again")
    found: NDArray[np.intp] = index.get_indexer(asked)
    if (lost := found < 0).any():
        raise StoreError(f"{lost.sum()} ids are not among {what}, first {asked[lost][0]!r}: make the run again")
    return found


def row_positions_in_run(run: Run, own: pd.Series[str], ids: pd.Series[str], part: str) -> NDArray[np.intp]:
    """Returns the position of each of ``ids`` among the run's ids ``own``, -1 where absent.

    Raises StoreError for duplicated ids and for ids of the run that are not in ``ids``; ``part`` names its file.
    """
    index = pd.Index(own)
    if not index.is_unique:
        raise StoreError(
            f"{run.folder}/{part}.parquet holds {index.duplicated().sum()} duplicated ids: rebuild the run"
        )
    extra = index.difference(pd.Index(ids))
    if len(extra):
        raise StoreError(
            f"{run.folder}/{part}.parquet holds {len(extra)} ids that are not in the table, first: "
            f"{', '.join(map(str, extra[:3]))}: rebuild the run for these rows"
        )
    return index.get_indexer(pd.Index(ids))
