"""Walks a folder of images, lists what is skipped there, and compares file names with ids that differ in form only."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dermstack.errors import ImageError

_LEFT_BY_SYSTEMS = ("._", "__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Skipped:
    """A file or linked folder from which no image is read, and why."""

    path: Path
    reason: str


def walk_files(folder: Path, *, follow_links: bool = False) -> Iterator[os.DirEntry[str]]:
    """Yields the files below ``folder``, sorted; skips hidden files and the __MACOSX folders of unpacked archives.

    Linked folders are entered with ``follow_links`` only, and no folder twice.
    """
    yield from (entry for entry, reason in _walk(folder, follow_links, set()) if not reason)


def skipped_files(folder: Path, suffixes: Iterable[str], *, follow_links: bool = False) -> list[Skipped]:
    """Returns what `walk_files` leaves out, and the files without any of ``suffixes`` (lower case)."""
    known, skipped = frozenset(suffixes), []
    for entry, reason in _walk(folder, follow_links, set()):
        if entry.name.startswith(_LEFT_BY_SYSTEMS):
            continue
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path for each file costs seconds)
        if reason or suffix not in known:
            skipped.append(Skipped(Path(entry.path), reason or "suffix of no image"))
    return skipped


def _walk(folder: Path, follow_links: bool, entered: set[tuple[int, int]]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yields each file and each skipped entry with the reason; "" for a file that is not skipped."""
    status = folder.stat()
    if (key := (status.st_dev, status.st_ino)) in entered:
        return
    entered.add(key)
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith((".", "__MACOSX")):
            yield entry, "hidden"
        elif entry.is_dir(follow_symlinks=False) or (follow_links and entry.is_dir()):
            yield from _walk(Path(entry.path), follow_links, entered)
        elif entry.is_dir():
            yield entry, "linked folder"
        elif entry.is_file():
            yield entry, ""
        else:
            yield entry, "broken link" if entry.is_symlink() else "no regular file"


def check_name(entry: os.DirEntry[str]) -> str:
    """Returns the file's name. Raises ImageError where it is not UTF-8, so that no id can be made of it."""
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{printable(entry.path)}: its name is not UTF-8, so no id can be made of it: rename the file"
        ) from error
    return entry.name


def printable(path: str | Path) -> str:
    """Returns a path as text; bytes that are not UTF-8 as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


class SimilarNames:
    """Ids, looked up by their form: without suffix of an image, case, and way of writing letters in Unicode."""

    def __init__(self, ids: Iterable[str], suffixes: tuple[str, ...]) -> None:
        self._suffixes = suffixes
        self._ids: dict[str, list[str]] = {}
        for row_id in ids:
            self._ids.setdefault(self._form(row_id), []).append(row_id)

    def __contains__(self, name: object) -> bool:
        return self._form(str(name)) in self._ids

    def ids(self, name: str) -> list[str]:
        """Returns the ids of the same form as ``name``."""
        return self._ids.get(self._form(name), [])

    def _form(self, name: str) -> str:
        form = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        while form.endswith(self._suffixes) and not form.startswith(self._suffixes):
            form = form[: form.rindex(".")]
        return form


def difference(row_id: str, name: str, suffixes: tuple[str, ...]) -> str:
    """Returns in words how an id and a file's name of the same form differ."""
    if row_id.lower().endswith(suffixes) != name.lower().endswith(suffixes):
        return "the suffix inside the id"
    if unicodedata.normalize("NFC", row_id) == unicodedata.normalize("NFC", name):
        return "the Unicode form"
    return "case"
