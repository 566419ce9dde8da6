"""The bundle: a folder or zip with all that prediction needs, checked by SHA-256 and loaded without executing code."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dermstack.errors import BundleError, StoreError
from dermstack.serve.manifest import ImageRun, ImportedRun, Manifest, image_runs, imported_runs, is_inside
from stack.metrics.review_band import Band, band_from_record
from stack.metrics.scores import objective_label
from stack.settings.data import ColumnRules, PredictPer
from stack.store import array_from_bytes, verify_digest, with_digest
from stack.tables.columns import TableColumns
from stack.tables.units import unit_columns, unit_name

# The format grows when an older reader would misread a newer bundle; each bundle has the oldest one that can read it.
FORMAT_OF_IMAGES = 1
FORMAT_OF_UNITS = 2  # one prediction for each unit of several images
FORMAT_OF_TABLES = 3  # no image model
FORMAT_OF_REPEATS = 4  # stackers of several repeats, or imported runs
FORMAT = FORMAT_OF_REPEATS
MANIFEST = "manifest.json"
_MAX_NAMED = 3  # imported runs whose files a command names one by one
MAX_MANIFEST = 1 << 23  # bytes
MAX_JSON = 1 << 25  # bytes of any other JSON file: Python takes up to thirty times as many for what is in it
MAX_COMPRESSION_RATIO = 20  # unpacked to packed size of a zip: weights hardly compress, a zip bomb does
_ADVICE = "make it again with `dermstack bundle`, or copy it again from where it was made"

# Errors that zipfile and the decompressors inside it raise.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError, LookupError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked; ``holder`` keeps the folder of an unpacked zip while it is in use."""

    folder: Path
    manifest: dict[str, Any]
    holder: TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)
    opened_zip: Path | None = field(default=None, repr=False, compare=False)

    @property
    def place(self) -> Path:
        """The zip or the folder that the user named, for messages."""
        return self.opened_zip or self.folder

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 of the manifest, which holds the hash of every file."""
        text = json.dumps(self.manifest, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def objective(self) -> str:
        """The name of the training estimate's metric on pages, such as AUC."""
        return objective_label(self.manifest["objective"])

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.manifest["folds"])

    @property
    def columns(self) -> dict[str, str]:
        """Column names of the training csv by role: id, group, target, age, sex, site and others that it has."""
        return dict(self.manifest["columns"])

    @property
    def table_columns(self) -> TableColumns:
        """Columns without a role that the features of level 2 use."""
        entry = self.manifest.get("table", {})
        return TableColumns(
            dict(entry.get("numeric", {})), dict(entry.get("categorical", {})), dict(entry.get("derived", {}))
        )

    @property
    def table_inputs(self) -> dict[str, str]:
        """The csv's columns without a role that the ensemble needs, by their name among missing columns."""
        return self.table_columns.inputs(self.columns.values())

    @property
    def column_rules(self) -> ColumnRules:
        """Codes for missing values and values of a positive target, as in training."""
        entry = self.manifest.get("table", {})
        missing = {name: tuple(codes) for name, codes in entry.get("missing", {}).items()}
        return ColumnRules(missing=missing, positive=tuple(entry.get("positive", ())))

    @property
    def image_runs(self) -> list[ImageRun]:
        """Image runs (level 1), in the order of the blend's columns."""
        return image_runs(self.manifest)

    @property
    def level1_names(self) -> tuple[str, ...]:
        """The runs of level 1, in the order of the blend's columns."""
        return tuple(run["name"] for run in (*self.manifest["image_runs"], *self.manifest.get("imported_runs", ())))

    @property
    def imported_runs(self) -> list[ImportedRun]:
        """Imported runs (level 1), in the order of the blend's columns, after the image runs."""
        return imported_runs(self.manifest)

    @property
    def takes_images(self) -> bool:
        """Whether it predicts from images, perhaps with a table; False: from the table and imported predictions."""
        return bool(self.manifest["image_runs"])

    @property
    def sizes(self) -> list[int]:
        """Image sizes (pixels per side) that the networks take, sorted."""
        return sorted({int(run.settings["size"]) for run in self.image_runs})

    @property
    def predict_per(self) -> PredictPer | None:
        """What gets one prediction, with the one pooling that the blend uses; None: each image."""
        entry = self.manifest.get("predict_per")
        return None if entry is None else PredictPer(**{**entry, "pooling": (entry["pooling"],)})

    @property
    def pooling(self) -> str | None:
        """How the predictions of a unit's images become one; None where predictions are for images."""
        return None if self.predict_per is None else self.predict_per.pooling[0]

    @property
    def unit_columns(self) -> tuple[str, ...]:
        """The csv's columns that together name a unit; empty where predictions are for images."""
        return () if self.predict_per is None else unit_columns(self.predict_per.columns, self.columns)

    @property
    def per_text(self) -> str:
        """What gets one prediction, as the end of a sentence: "each image", or each value of the columns of units."""
        return f"each {' and '.join(self.unit_columns)}" if self.unit_columns else "each image"

    @property
    def unit(self) -> str:
        """What a row of predictions is, in a word: an image, a unit of several, or, without an image model, a row."""
        if self.unit_columns:
            return "unit"
        return "image" if self.takes_images else "row"

    @property
    def estimate(self) -> str:
        """How the training estimate was made, in a word: of a net alone nothing is chosen, so its folds are enough."""
        return "out-of-fold" if "distilled" in self.manifest else "nested"

    def predict_command(self, place: Path) -> str:
        """Returns the command that predicts new rows with this bundle at ``place``."""
        rows = "--images FOLDER" if self.takes_images else "--metadata ROWS.csv"
        names = [run.name for run in self.imported_runs]
        of_each = "".join(f" --predictions {name}=FILE" for name in names)
        rows += of_each if len(names) <= _MAX_NAMED else " --predictions FOLDER"
        return f"dermstack predict --bundle {place} {rows} --out predictions.csv"

    @property
    def id_column(self) -> str:
        """Name of the id column of a submission without a sample."""
        per = self.predict_per
        return self.columns["id"] if per is None else unit_name(per.columns, self.columns)

    @property
    def review_band(self) -> Band | None:
        """Which calibrated risks are decided and which go to a person; None for a bundle without such a band.

        A recalibrated bundle has none: its parent's was chosen for other risks, and for other patients.
        """
        record = self.manifest.get("review")
        return None if record is None or self.manifest.get("recalibration") else band_from_record(record)

    @property
    def selection_note(self) -> str | None:
        """Warning to show beside the headline if settings were chosen on the training rows, else None."""
        if not self.manifest["selected"]:
            return None
        names = ", ".join(self.manifest["selected"])
        return (
            f"{names}: settings were chosen on the training rows, by a study or by hand, so the training estimate may "
            "be optimistic."
        )

    def __contains__(self, name: str) -> bool:
        """Returns whether the manifest has a file of this name."""
        return name in self.manifest["files"]

    def names_in(self, folder: str) -> list[str]:
        """Returns the names, without the folder's, of the files directly in a folder of the bundle, sorted."""
        paths = map(PurePosixPath, self.manifest["files"])
        return sorted(path.name for path in paths if path.parent == PurePosixPath(folder))

    def read(self, name: str) -> bytes:
        """Returns the content of a file: exactly these bytes have the size and hash that the manifest gave at opening.

        Raises BundleError naming a file that is gone or has changed since, as when the bundle was replaced.
        """
        expected = self.manifest["files"].get(name)
        if expected is None:
            raise BundleError(f"{self.place}: {name} is not in its {MANIFEST}: {_ADVICE}")
        try:
            content = _read_regular(self.folder / name, expected["bytes"] + 1)
        except OSError:
            content = b""
        if len(content) != expected["bytes"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise BundleError(self._what_changed(name))
        return content

    def read_path(self, path: Path) -> bytes:
        """Returns the content of a file of the bundle by its path, as `read` does."""
        return self.read(path.relative_to(self.folder).as_posix())

    def json(self, name: str) -> Any:
        """Returns the content of a JSON file of the bundle. Raises BundleError if it cannot be read."""
        if (size := self.manifest["files"].get(name, {}).get("bytes", 0)) > MAX_JSON:
            raise BundleError(f"{self.place}: {name} has {size:,} bytes, more than {MAX_JSON:,}: {_ADVICE}")
        content = self.read(name)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.place}: {name} cannot be read ({error}): {_ADVICE}") from error

    def arrays(self, folder: str) -> dict[str, NDArray[Any]]:
        """Returns the .npy files directly in a folder of the bundle, by name; {} if there is no such folder.

        Raises BundleError for a file that is no array of finite numbers.
        """
        found = {}
        for name in self.names_in(folder):
            path = PurePosixPath(folder, name)
            if path.suffix == ".npy":
                try:
                    values = array_from_bytes(self.read(str(path)), str(path), remedy=_ADVICE)
                except StoreError as error:
                    raise BundleError(f"{self.place}: {error}") from error
                if not np.isfinite(values).all():
                    raise BundleError(f"{self.place}: {path} holds values that are not finite: {_ADVICE}")
                found[path.stem] = values
        return found

    def _what_changed(self, name: str) -> str:
        """Returns the message for a file that no longer has the content that was checked at opening."""
        try:
            there = read_manifest_of(self.folder)
        except BundleError:
            there = None
        again = "start the command or the app again to use what lies there now"
        if there is not None and Bundle(self.folder, there).fingerprint != self.fingerprint:
            return (
                f"{self.place} was replaced by another bundle ({Bundle(self.folder, there).fingerprint}) after this "
                f"one ({self.fingerprint}) was opened, so {name} is no longer there: {again}"
            )
        return f"{self.place}: {name} has changed since the bundle was opened: {_ADVICE}; then {again}"


def read_bundle(path: Path) -> Bundle:
    """Opens a bundle (a folder or a zip) and checks every file against its manifest.

    Raises BundleError if ``path`` is not a bundle, has another format, or contains a missing, damaged or unknown file.
    """
    path = Path(path)
    if path.is_dir():
        bundle = Bundle(path, read_manifest_of(path))
        there = {file.relative_to(path).as_posix() for file in path.rglob("[!.]*") if not file.is_dir()}
        if strange := sorted(there - {MANIFEST, *bundle.manifest["files"]}):
            raise BundleError(
                f"{path}: {len(strange)} files are not in its {MANIFEST}, such as {strange[0]}: remove them"
            )
    elif path.is_file():
        bundle = _unpack_zip(path)
    else:
        raise BundleError(f"{path}: no such bundle: name the folder or .zip that `dermstack bundle` made")
    root = bundle.folder.resolve()
    for name, expected in bundle.manifest["files"].items():
        file = bundle.folder / name
        if not file.is_file() or file.resolve() != root / name:  # a link to a file or a folder may lead out
            raise BundleError(f"{path}: {name} is missing: {_ADVICE}")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise BundleError(f"{path}: {name} is damaged (it differs from the manifest): {_ADVICE}")
    return bundle


def write_manifest(folder: Path, content: Mapping[str, Any]) -> Bundle:
    """Completes a bundle: writes its manifest from ``content`` and the size and hash of every file in ``folder``."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"format": _format_of(content), **content, "files": files}
    (folder / MANIFEST).write_text(json.dumps(with_digest(manifest), indent=1, ensure_ascii=False), encoding="utf-8")
    return Bundle(folder, json.loads(json.dumps(manifest)))


def _format_of(content: Mapping[str, Any]) -> int:
    if content.get("imported_runs") or any(stacker.get("repeats", 1) > 1 for stacker in content["stackers"]):
        return FORMAT_OF_REPEATS
    if not content["image_runs"]:
        return FORMAT_OF_TABLES
    return FORMAT_OF_UNITS if content.get("predict_per") else FORMAT_OF_IMAGES


def zip_bundle(bundle: Bundle, path: Path) -> None:
    """Writes the bundle to a zip, uncompressed (weights hardly shrink); the same bundle gives the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in [MANIFEST, *bundle.manifest["files"]]:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with archive.open(info, "w", force_zip64=True) as target, (bundle.folder / name).open("rb") as source:
                shutil.copyfileobj(source, target)


def read_manifest_of(folder: Path) -> dict[str, Any]:
    """Returns the checked manifest of an unpacked bundle. Raises BundleError where there is none, or a damaged one."""
    return _checked_manifest(_read_manifest(folder), folder)


def _read_regular(path: Path, n_bytes: int) -> bytes:
    """Returns the first bytes of a regular file. Raises OSError for others, such as a pipe, which would block."""
    with os.fdopen(
        os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
    ) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        return file.read(n_bytes)


def _read_manifest(folder: Path) -> bytes | None:
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        content = file.read(MAX_MANIFEST + 1)
    _check_length(len(content), folder)
    return content


def _check_length(n_bytes: int, path: Path) -> None:
    if n_bytes > MAX_MANIFEST:
        raise BundleError(
            f"{path}: its {MANIFEST} has more than {MAX_MANIFEST:,} bytes, so dermstack did not write it: {_ADVICE}"
        )


def _unpack_zip(path: Path) -> Bundle:
    """Unpacks only the files that a zip's manifest names, to a temporary folder that the bundle holds."""
    holder = TemporaryDirectory(prefix="dermstack-bundle-", ignore_cleanup_errors=True)
    folder = Path(holder.name)
    try:
        with zipfile.ZipFile(path) as archive:
            listed = {info.filename: info for info in archive.infolist()}
            if (info := listed.get(MANIFEST)) is not None:
                _check_length(info.file_size, path)
            content = archive.read(info) if info else None
            manifest = _checked_manifest(content, path)
            _check_disk_space(manifest, path, folder)
            (folder / MANIFEST).write_bytes(content or b"")
            for name, expected in manifest["files"].items():
                if (member := listed.get(name)) is None:
                    raise BundleError(f"{path}: {name} is missing: {_ADVICE}")
                if member.file_size != expected["bytes"]:  # checked before it can fill the disk
                    raise BundleError(f"{path}: {name} is damaged (it differs from the manifest): {_ADVICE}")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, (folder / name).open("xb") as target:
                    for part in _read_limited(source, expected["bytes"]):
                        target.write(part)
    except _ZIP_ERRORS as error:
        # `dermstack bundle` replaces no file that is not a bundle.
        raise BundleError(f"{path} cannot be read as a zip ({error}): remove {path} and {_ADVICE}") from error
    return Bundle(folder, manifest, holder, path)


def _check_disk_space(manifest: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Raises BundleError, before anything is unpacked, for a zip bomb or a zip too large for the disk."""
    unpacked_bytes, packed = sum(file["bytes"] for file in manifest["files"].values()), path.stat().st_size
    if unpacked_bytes > max(MAX_COMPRESSION_RATIO * packed, 1 << 24):
        raise BundleError(f"{path}: {packed:,} bytes would unpack to {unpacked_bytes:,}, as in a zip bomb: {_ADVICE}")
    if unpacked_bytes > (free := shutil.disk_usage(folder).free):
        raise BundleError(
            f"{path} needs {unpacked_bytes:,} bytes unpacked, {folder.parent} has {free:,} free: set TMPDIR to a "
            "folder on a larger disk"
        )


def _read_limited(source: Any, n_bytes: int) -> Iterator[bytes]:
    """Yields the content of a zip member in parts, at most ``n_bytes`` in all."""
    left = n_bytes
    while left > 0 and (part := source.read(min(left, 1 << 20))):
        left -= len(part)
        yield part


def _checked_manifest(content: bytes | None, path: Path) -> dict[str, Any]:
    if content is None:
        raise BundleError(
            f"{path} holds no {MANIFEST}, so it is not a complete bundle: name the folder or .zip that "
            "`dermstack bundle` made"
        )
    try:
        manifest = json.loads(content)
        written, inside = manifest["format"], all(is_inside(name) for name in dict(manifest["files"]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is damaged ({type(error).__name__}): {_ADVICE}") from error
    if written not in range(FORMAT_OF_IMAGES, FORMAT + 1):
        newer = "a newer dermstack" if isinstance(written, int) and written > FORMAT else "another dermstack version"
        raise BundleError(
            f"{path} has format {str(written)[:20]}, this dermstack reads up to {FORMAT}: use {newer}, or bundle again"
        )
    if not inside:
        raise BundleError(
            f"{path}: {MANIFEST} names a file outside the bundle: dermstack did not write it, do not use it"
        )
    try:
        sound = verify_digest(manifest)
        Manifest.model_validate(sound)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        fault = f"{place}: {first['msg']}" if place else first["msg"]
        raise BundleError(
            f"{path}: {MANIFEST} is invalid ({fault.removeprefix('Value error, ')}): {_ADVICE}"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        fault = str(error)[:400]
        raise BundleError(f"{path}: {MANIFEST} is invalid ({fault}): {_ADVICE}") from error
    return dict(sound)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
