"""Records what a `stack` read and what it made, so that the next one can tell that it has nothing to do.

The record holds a SHA-256 of every file that `stack` or the report reads or writes, a fingerprint of the settings, of
dermstack's own code and templates and of the libraries' versions. Only where all of them are the same is nothing done;
then no table is read, and neither pandas nor a GBDT library is imported. Any difference leads to the whole way, on
which each step checks its own inputs.

Files of networks' weights are not hashed, as `stack` computes nothing from them: their size and time count. An image
cache counts by its index, which holds a hash of each source.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dermstack.errors import StoreError
from image_models.locks import locked
from stack.json_files import fingerprint, read_json, sha256_once, with_digest, write_json
from stack.ledger import append_line
from stack.settings.config import Config

RECORD = "up_to_date.json"
REPORT_FILES = ("report.html", "model_card.md")
LIBRARIES = (
    "dermstack",
    "numpy",
    "pandas",
    "scikit-learn",
    "lightgbm",
    "xgboost",
    "catboost",
    "optuna",
    "torch",
    "timm",
    "albumentations",
)
_CODE = ("dermstack", "stack", "image_models", "tabular")
_SUBMITTED = {"submission.csv", "predictions.parquet", "fallback.csv"}  # what `stack` writes and no step of it reads
_OF_OTHERS = re.compile(
    r"(old|bundle.*|eda\.html|ledger\.jsonl|tracked\.json)"
)  # in the experiment's folder: `stack` reads none
_WEIGHTS = (".safetensors", ".pt", ".pth")
_IMAGE_KEYS = {"images", "test_images"}  # of the config: the images themselves are what `oof` reads

TRACKING = "tracking"  # key of what a `stack` logged its results to; no result depends on it

Digests = dict[str, str]


@dataclass(frozen=True)
class Finished:
    """A complete `stack` whose inputs and outputs are as it left them."""

    name: str  # of the experiment
    folder: Path
    blend: Mapping[str, Any]  # run.json of the blend
    report: Path | None  # None where the last `stack` wrote no report of this state


@dataclass(frozen=True)
class Record:
    """What a `stack` was given, the files that it left in the experiment's folder, and whether it wrote the report."""

    given: Digests
    files: Digests
    report: bool


def given_to_stack(config: Config, config_path: Path) -> Digests:
    """Returns digests, by name, of what `stack` is given: settings, files that they name, code and libraries.

    It is called before the first of these is read, so that a file that changes meanwhile counts as changed.
    """
    shown = config_path.name if config_path.is_absolute() else str(config_path)  # as the report quotes it
    files = [
        path
        for path in _paths(config.model_dump(exclude={"image_models", "runs", "cache", "tracking"}))
        if path.is_file()
    ]
    caches = sorted(config.cache.glob(f"{config.data.name}-*/index.parquet")) if config.data.images else []
    return {
        "settings": fingerprint({"config": config.model_dump(mode="json", exclude={"tracking"}), "path": shown}),
        "code": _code_digest(),
        "libraries": fingerprint(library_versions()),
        **{str(path): sha256_once(path) for path in [*files, *caches, *_by_source(config)]},
        **_destinations(config),
    }


def _by_source(config: Config) -> list[Path]:
    """Returns the run.json of the blend whose image models were trained with folds of sources, if it is complete."""
    path = config.runs / config.name_by_source / "blend" / "run.json"
    return [path] if path.is_file() else []


def files_in(folder: Path) -> Digests:
    """Returns digests of the experiment's files that `stack` or the report reads or writes, by their relative path."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(_files(folder))}


def write_record(folder: Path, given: Digests, files: Digests, *, report: bool) -> None:
    """Writes what `nothing_to_do` compares; ``files`` are digests of before the report was written, if one was.

    A file that changed while the report was made keeps its earlier digest, so the next `stack` makes the report again.
    """
    now = files_in(folder)
    made = {name: files.get(name, digest) if _is_read(name) else digest for name, digest in now.items()}
    record = {"given": given, "files": made, "report": report}
    write_json(folder / RECORD, with_digest(record))


def read_record(folder: Path) -> Record | None:
    """Reads what `write_record` wrote; None where there is none, or it is damaged or of another version."""
    try:
        found = read_json(folder / RECORD)
        return Record(dict(found["given"]), dict(found["files"]), bool(found["report"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def nothing_to_do(config: Config, config_path: Path, *, shuffle_target: bool, report: bool) -> Finished | None:
    """Returns the complete `stack` of this config if nothing that it read or made has changed since; else None.

    With ``report`` it must have written the report too. A line is added to the ledger, as by every `stack`. Raises
    StoreError where another process works on the experiment.
    """
    folder = config.runs / config.experiment_name(shuffled=shuffle_target)
    if not (folder / RECORD).is_file():
        return None
    with locked(folder):
        done = finished(config, folder, given_to_stack(config, config_path), report=report)
        if done is not None:
            append_line(folder, config, done.blend)
    return done


def finished(config: Config, folder: Path, given: Digests, *, report: bool) -> Finished | None:
    """Does the work of `nothing_to_do` for a locked ``folder`` and what `stack` is ``given``."""
    record = read_record(folder)
    if record is None or config.storage is not None:  # studies in a database may have grown
        return None
    logged = {TRACKING: record.given[TRACKING]} if TRACKING in record.given else {}
    if record.given != logged | given:  # what was logged before remains, where nothing is to be logged now
        return None
    if (report and not record.report) or record.files != files_in(folder):
        return None
    try:
        blend = read_json(folder / "blend" / "run.json")
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / 'blend' / 'run.json'} cannot be read ({error}): run the command again") from error
    return Finished(folder.name, folder, blend, folder / REPORT_FILES[0] if record.report else None)


def report_is_current(config: Config, folder: Path, given: Digests, files: Digests) -> bool:
    """Whether the report on disk shows what it would show if it were written again from ``files``."""
    record = read_record(folder)
    if record is None or not record.report or config.storage is not None:
        return False
    if _without_destinations(record.given) != _without_destinations(given):
        return False
    return _without_submission(record.files) == _without_submission(files)


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that results depend on; those of optional extras may be missing."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _code_digest() -> str:
    """Returns a SHA-256 of dermstack's modules, templates, style sheets and scripts."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for package in _CODE:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _paths(settings: Any, key: str = "") -> Iterator[Path]:
    """Yields every path in nested settings, apart from those of images."""
    if isinstance(settings, Path) and key not in _IMAGE_KEYS:
        yield settings
    pairs = settings.items() if isinstance(settings, dict) else [(key, one) for one in _entries(settings)]
    for name, value in pairs:
        yield from _paths(value, str(name))


def _entries(settings: Any) -> list[Any]:
    return list(settings) if isinstance(settings, list | tuple) else []


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files of an experiment's ``folder`` apart from locks, temporary files and those of other commands."""
    for path in folder.iterdir():
        if path.name != RECORD and not _OF_OTHERS.fullmatch(path.name):
            yield from _files_below(path)


def _files_below(path: Path) -> Iterator[Path]:
    if path.name.startswith("."):
        return
    if path.is_dir():
        for one in path.iterdir():
            yield from _files_below(one)
    elif path.is_file():
        yield path


def _digest(path: Path) -> str:
    if path.suffix in _WEIGHTS:
        state = path.stat()
        return f"{state.st_size} bytes, {state.st_mtime_ns} ns"
    return sha256_once(path)


def _is_read(name: str) -> bool:
    """Whether the report reads this file of the experiment's folder; the others, it or `stack` itself writes."""
    return name not in _SUBMITTED and name not in REPORT_FILES and not name.startswith("report/")


def _destinations(config: Config) -> Digests:
    """Returns a fingerprint of where results are to be logged; nothing where they are not."""
    tracking = config.tracking
    if tracking.mlflow is None and tracking.tensorboard is None and tracking.wandb is None:
        return {}
    address = None if tracking.mlflow is None else tracking.mlflow.shown_uri
    return {TRACKING: fingerprint({"keys": tracking.model_dump(mode="json"), "address": address})}


def _without_destinations(given: Digests) -> Digests:
    return {name: digest for name, digest in given.items() if name != TRACKING}


def _without_submission(files: Digests) -> Digests:
    return {name: digest for name, digest in files.items() if name not in _SUBMITTED}
