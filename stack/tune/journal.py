"""Optuna's journal file with a checksum in each line, and a lock that goes with its process."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from stack.errors import StoreError
from stack.store import LOCK


class Journal(JournalFileBackend):
    """The same lines, each with a key `crc` that other readers of the file ignore; older lines come without."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_Lock(path.with_name(LOCK)))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write a line for each."""
        super().append_logs([{**log, "crc": _crc(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # narrower
        """Every line from this number on. Raises StoreError for one that isn't what was written."""
        try:
            for log in super().read_logs(log_number_from):
                if not isinstance(log, dict) or log.pop("crc", _crc(log)) != _crc(log):
                    raise ValueError("a line isn't what its checksum says")
                yield log
        except ValueError as error:  # of JSON and UTF-8 too
            raise StoreError(
                f"{self._path} is damaged ({error}): remove {self._path} and run `dermstack tune` again, which starts "
                "the studies anew"
            ) from error


class _Lock(BaseJournalFileLock):
    """Optuna's own is a symbolic link, which a killed process leaves behind for half a minute."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _crc(log: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps({key: value for key, value in log.items() if key != "crc"}).encode())
