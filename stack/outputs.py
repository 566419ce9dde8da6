"""Writes the files that a user names in an option: complete or not at all, through links, and to streams."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dermstack.errors import ConfigError
from stack.store import atomic, error_with_path

_OPEN_FILES = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")  # names of what a process has open already


def check_output(
    path: Path, option: str, *, inputs: Iterable[Path | None] = (), closed: Iterable[Path | None] = ()
) -> None:
    """Raises ConfigError where ``path`` cannot become a file: a folder, a device, below a file, or one of ``inputs``.

    Nothing is written in the folders ``closed``, such as a bundle, which is damaged by a further file. Called before
    any work, so that nothing is computed for a name that cannot be written.
    """
    words = f"{option} {path}"
    _check_name(path, option)
    if path.is_dir():
        raise ConfigError(f"{words} is a folder: name a file, such as {path / 'predictions.csv'}")
    if path.exists() and not path.is_file() and not is_stream(path):
        raise ConfigError(f"{words} is neither a file nor a stream: name a new file")
    for known in inputs:
        if known is not None and path.exists() and known.exists() and path.samefile(known):
            raise ConfigError(f"{words} is also an input of this command: name another file, so that both remain")
    _check_outside(path, words, closed)
    if not path.exists():
        _check_parents(_target(path), words)


def check_output_folder(folder: Path, option: str, *, closed: Iterable[Path | None] = ()) -> None:
    """Raises ConfigError where ``folder`` is a file, lies below one or in one of ``closed``, or cannot be made."""
    _check_name(folder, option)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{option} {folder} is a file: name a folder")
    _check_outside(folder, f"{option} {folder}", closed)
    if not folder.exists():
        _check_parents(_target(folder), f"{option} {folder}")


def is_stream(path: Path) -> bool:
    """Whether ``path`` is a pipe, a character device such as a terminal, or a file that this process has open."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or str(path.absolute()).startswith(_OPEN_FILES)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what is written there becomes the file ``path`` on success.

    A file is replaced at once, for a link the file that it leads to; to a stream the bytes are written in the end.
    """
    if not is_stream(path):
        with atomic(_target(path)) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="dermstack-") as folder:
        yield (temporary := Path(folder) / "output")
        try:  # appended: a redirected stdout keeps what was printed before
            with temporary.open("rb") as made, os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
                shutil.copyfileobj(made, stream)
        except OSError as error:
            raise error_with_path(error, path) from error


def _check_name(path: Path, option: str) -> None:
    """Raises ConfigError for a name that is not UTF-8, which libraries that write files beside it refuse in the end."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{option} {os.fspath(path)!a}: the name holds bytes that are not UTF-8: choose another name"
        ) from error


def _check_outside(path: Path, words: str, closed: Iterable[Path | None]) -> None:
    place = Path(os.path.realpath(path))
    for folder in closed:
        if folder is not None and folder.is_dir() and place.is_relative_to(os.path.realpath(folder)):
            raise ConfigError(f"{words} lies in {folder}, an input of this command: name a place outside of it")


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _check_parents(path: Path, words: str) -> None:
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"{words}: {above} is a file: name a file in a folder")
    if os.statvfs(above).f_flag & os.ST_RDONLY:
        raise ConfigError(f"{words}: the file system of {above} is read-only: name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{words}: this user may not write in {above}: name another folder")
