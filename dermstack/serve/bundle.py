"""The bundle: all that predicts elsewhere in one folder or zip, checked by hash; nothing in it is executed on load."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stack.errors import BundleError
from stack.image_config import ImageModel, Name
from stack.store import read_array, verify_digest, with_digest

_SHA256 = r"^[0-9a-f]{64}$"
# Names of devices on Windows, whatever follows the first point.
_WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)),
}

ShortText = Annotated[str, Field(max_length=200)]


class _StrictModel(BaseModel):
    """Values of the very types that JSON has; what else stands there is of no concern."""

    model_config = ConfigDict(strict=True, frozen=True)


class _File(_StrictModel):
    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=0)


class _Interval(_StrictModel):
    value: float
    low: float
    high: float


class _ImageRun(_StrictModel):
    name: Name
    kind: Literal["image", "frozen"]
    settings: dict[str, Any]
    positive: list[bool] = Field(min_length=2)

    @field_validator("settings")
    @classmethod
    def _validate_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return run_settings(settings)


class _Stacker(_StrictModel):
    name: Name
    kind: Literal["lightgbm", "xgboost", "catboost", "logistic"]
    shifts: list[float]


class _Training(_StrictModel):
    rows: int = Field(ge=1)
    positives: int = Field(ge=0)


class Manifest(_StrictModel):
    """Every key that is read somewhere; see `dermstack.serve.write_bundle` for what writes it."""

    dermstack: ShortText
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    objective: Literal["auc", "pauc80", "ap", "logloss"]
    headline: _Interval
    chosen: ShortText
    selected: list[ShortText]
    folds: int = Field(ge=2, le=100)
    threads: int = Field(ge=1, le=1024)
    columns: dict[ShortText, ShortText]
    resize: Literal["square", "short_side"]
    cache_format: Literal["raw", "jpeg"]
    features: dict[ShortText, bool | int]
    embeddings: dict[Name, Literal["aligned", "frozen"]]
    image_runs: list[_ImageRun] = Field(min_length=1)
    stackers: list[_Stacker]
    scales: dict[Name, dict[str, list[float]]]
    training: _Training
    files: dict[str, _File]

    @model_validator(mode="after")
    def _check_consistency(self) -> Manifest:
        names = [*(run.name for run in self.image_runs), *(stacker.name for stacker in self.stackers)]
        if len(set(names)) < len(names) or not set(self.embeddings) <= set(names):
            raise ValueError("runs that are named twice, or embeddings of none")
        if any(len(stacker.shifts) != self.folds for stacker in self.stackers):
            raise ValueError(f"a stacker of other folds than {self.folds}")
        if lacking := {"id", "target"} - set(self.columns):
            raise ValueError(f"no column of {', '.join(sorted(lacking))}")
        return self


def run_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """An image run's settings as a config would hold them. Raises ValidationError for what no config may."""
    model = ImageModel.model_validate({**settings, "pretrained": False}, context={"folder": "."})
    return model.model_dump(mode="json", exclude={"pretrained", "enabled"})


def is_inside(name: str) -> bool:
    """Whether a name leads to a place below the folder, on any system."""
    parts = PurePosixPath(name).parts
    odd = any(sign in name for sign in '\\:*?"<>|') or not name.isprintable() or name != str(PurePosixPath(name))
    hidden = any(
        part.startswith(".") or part[-1:] in ". " or part.split(".")[0].lower() in _WINDOWS_DEVICES for part in parts
    )
    return bool(parts) and not odd and not hidden and not name.startswith("/")


FORMAT = 1  # raised when an older reader would misread a newer bundle
MANIFEST = "manifest.json"
MAX_MANIFEST = 1 << 23  # bytes
MAX_COMPRESSION_RATIO = 20  # times its size that a zip may become: weights hardly shrink
_ADVICE = "make it again with `dermstack bundle`, or copy it again from where it was made"

# What zipfile and the packings inside a zip raise.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError, LookupError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class ImageRun:
    """One image model of a bundle: its settings as in the config, and what makes p of its outputs."""

    name: str
    kind: str  # "image", one net a fold, or "frozen", one backbone with a head a fold
    settings: dict[str, Any]
    positive: tuple[bool, ...]  # of each class


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked. ``holder`` keeps what a zip was unpacked to, as long as it is used."""

    folder: Path
    manifest: dict[str, Any]
    holder: TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of everything in it."""
        text = json.dumps(self.manifest, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folds(self) -> int:
        """How many nets and stackers of each run there are."""
        return int(self.manifest["folds"])

    @property
    def columns(self) -> dict[str, str]:
        """What a csv calls the id, the group, age, sex and site; the target too, for external validation."""
        return dict(self.manifest["columns"])

    @property
    def image_runs(self) -> list[ImageRun]:
        """Level 1, in the order of the blend's columns."""
        return [
            ImageRun(run["name"], run["kind"], run_settings(run["settings"]), tuple(run["positive"]))
            for run in self.manifest["image_runs"]
        ]

    @property
    def sizes(self) -> list[int]:
        """Pixels a side that its nets ask for."""
        return sorted({int(run.settings["size"]) for run in self.image_runs})

    @property
    def selection_note(self) -> str | None:
        """What must be said beside the promised number where settings were chosen on the training rows; or None."""
        if not self.manifest["selected"]:
            return None
        names = ", ".join(self.manifest["selected"])
        return f"{names}: settings chosen on the training rows, by a study or by hand: the promise may flatter."

    def json(self, name: str) -> Any:
        """A JSON file of the bundle."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{self.folder}: {name} can't be read ({error}): {_ADVICE}") from error

    def arrays(self, folder: str) -> dict[str, NDArray[Any]]:
        """The .npy files directly in a folder of the bundle, by name; {} where there is no such folder."""
        files = sorted((self.folder / folder).glob("*.npy"))
        return {path.stem: np.array(read_array(path, remedy=_ADVICE)) for path in files}


def read_bundle(path: Path) -> Bundle:
    """Open a bundle, a folder or a zip, and check every file of it against its manifest.

    Raises BundleError where it is no bundle, of another format, or not as it was made: which file, and what to do.
    """
    path = Path(path)
    if path.is_dir():
        bundle = Bundle(path, _checked_manifest(_read_manifest(path), path))
        there = {file.relative_to(path).as_posix() for file in path.rglob("[!.]*") if not file.is_dir()}
        if strange := sorted(there - {MANIFEST, *bundle.manifest["files"]}):
            raise BundleError(f"{path}: {strange[0]} is none of its files, {len(strange)} such: remove them")
    elif path.is_file():
        bundle = _unpack_zip(path)
    else:
        raise BundleError(f"{path}: no such bundle: name the folder or .zip that `dermstack bundle` made")
    root = bundle.folder.resolve()
    for name, expected in bundle.manifest["files"].items():
        file = bundle.folder / name
        if not file.is_file() or file.resolve() != root / name:  # a link may lead out, that of a folder too
            raise BundleError(f"{path}: {name} is missing: {_ADVICE}")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise BundleError(f"{path}: {name} is damaged, it isn't what the manifest says: {_ADVICE}")
    return bundle


def write_manifest(folder: Path, content: Mapping[str, Any]) -> Bundle:
    """Finish a bundle: ``content`` and the hash of every file in ``folder``, written last."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"format": FORMAT, **content, "files": files}
    (folder / MANIFEST).write_text(json.dumps(with_digest(manifest), indent=1, ensure_ascii=False), encoding="utf-8")
    return Bundle(folder, json.loads(json.dumps(manifest)))


def zip_bundle(bundle: Bundle, path: Path) -> None:
    """The same files as a zip: not compressed, since weights don't shrink, and the same bytes for the same bundle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in [MANIFEST, *bundle.manifest["files"]]:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with archive.open(info, "w", force_zip64=True) as target, (bundle.folder / name).open("rb") as source:
                shutil.copyfileobj(source, target)


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
            f"{path}: its {MANIFEST} has more than {MAX_MANIFEST:,} bytes, which is none of ours: {_ADVICE}"
        )


def _unpack_zip(path: Path) -> Bundle:
    """What the manifest of a zip names, and nothing else, in a folder that goes with the process."""
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
                if member.file_size != expected["bytes"]:  # before it fills the disk
                    raise BundleError(f"{path}: {name} is damaged, it isn't what the manifest says: {_ADVICE}")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, (folder / name).open("xb") as target:
                    for part in _read_limited(source, expected["bytes"]):
                        target.write(part)
    except _ZIP_ERRORS as error:
        raise BundleError(f"{path} is no zip that can be read ({error}): {_ADVICE}") from error
    return Bundle(folder, manifest, holder)


def _check_disk_space(manifest: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Refuse what would fill the disk, before the first byte."""
    unpacked_bytes, packed = sum(file["bytes"] for file in manifest["files"].values()), path.stat().st_size
    if unpacked_bytes > max(MAX_COMPRESSION_RATIO * packed, 1 << 24):
        raise BundleError(f"{path}: {packed:,} bytes that would become {unpacked_bytes:,}, as a bomb does: {_ADVICE}")
    if unpacked_bytes > (free := shutil.disk_usage(folder).free):
        raise BundleError(
            f"{path}: unpacked it takes {unpacked_bytes:,} bytes, {folder.parent} has {free:,}: set TMPDIR elsewhere"
        )


def _read_limited(source: Any, n_bytes: int) -> Iterator[bytes]:
    """What a member holds, but never more than it says."""
    left = n_bytes
    while left > 0 and (part := source.read(min(left, 1 << 20))):
        left -= len(part)
        yield part


def _checked_manifest(content: bytes | None, path: Path) -> dict[str, Any]:
    if content is None:
        raise BundleError(f"{path} holds no {MANIFEST}: it is no bundle, or one whose making was interrupted")
    try:
        manifest = json.loads(content)
        written, inside = manifest["format"], all(is_inside(name) for name in dict(manifest["files"]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is damaged ({type(error).__name__}): {_ADVICE}") from error
    if written != FORMAT:
        newer = "a newer dermstack" if isinstance(written, int) and written > FORMAT else "another dermstack"
        raise BundleError(
            f"{path} has format {str(written)[:20]}, this dermstack reads {FORMAT}: use {newer}, or bundle again"
        )
    if not inside:
        raise BundleError(f"{path}: {MANIFEST} names a file outside the bundle: it is none of ours, don't use it")
    try:
        sound = verify_digest(manifest)
        Manifest.model_validate(sound)
    except (ValueError, TypeError, RecursionError) as error:  # pydantic's is a ValueError
        fault = str(error)[:400]
        raise BundleError(f"{path}: {MANIFEST} says what none of ours does ({fault}): {_ADVICE}") from error
    return dict(sound)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
