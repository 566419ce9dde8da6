"""Keeps each finished fit of a nested blend on disk, so that a blend that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stack.blend.columns import LeftOutFolds
from stack.blend.weights import Fitted, Settings
from stack.metrics.scores import Bools
from stack.settings.config import BLEND_VERSION
from stack.store import fingerprint, read_json, with_digest, write_json


@dataclass(frozen=True)
class StoredFits:
    """A folder with one small file for each fit: the method, the folds left out, and the weights found.

    A file counts only if its key is that of all that the fit depends on: predictions, targets, nets, folds and groups
    (`data_key`), the folds left out, the method and the settings that it uses. Others, and damaged ones, are made
    again. A fit is not changed by being read back: JSON keeps floats to the last bit.
    """

    folder: Path
    data: str  # of `data_key`

    def read(
        self, without: LeftOutFolds, methods: Iterable[str], settings: Settings
    ) -> tuple[dict[str, Fitted], Bools | None]:
        """Returns the finished fits of the methods without some folds, and the runs that they used, if there is one."""
        found: dict[str, Fitted] = {}
        used: Bools | None = None
        for method in methods:
            try:
                state = read_json(self._path(without, method))
                if state["key"] != self._key(without, method, settings):
                    continue
                found[method] = Fitted.from_dict(state["fit"])
                used = np.array(state["used"], np.bool_)
            except (OSError, LookupError, TypeError, ValueError):  # missing or damaged: it is made again
                found.pop(method, None)
        return found, used

    def write(self, without: LeftOutFolds, method: str, settings: Settings, fit: Fitted, used: Bools) -> None:
        """Writes a finished fit, whole or not at all."""
        state = {"key": self._key(without, method, settings), "fit": fit.to_dict(), "used": used.tolist()}
        write_json(self._path(without, method), with_digest(state))

    def _path(self, without: LeftOutFolds, method: str) -> Path:
        return self.folder / f"without_{'_'.join(map(str, sorted(without))) or 'none'}.{method}.json"

    def _key(self, without: LeftOutFolds, method: str, settings: Settings) -> str:
        return fingerprint({
            "version": BLEND_VERSION,
            "data": self.data,
            "without": sorted(without),
            "method": method,
            "settings": settings.used_by(method),
        })  # fmt: skip


def data_key(
    P: NDArray[np.float64],
    y: NDArray[Any],
    nets: NDArray[Any],
    fold: NDArray[Any],
    split_group: ArrayLike,
    preselect: bool,
) -> str:
    """Returns a fingerprint of the rows of a blend: of all values that a fit of any method reads."""
    digest = hashlib.sha256(f"{P.shape} {np.shape(nets)} {preselect}".encode())
    groups = pd.factorize(np.asarray(split_group))[0]  # which rows share a group, whatever it is called
    for values in (P, *(np.asarray(part, np.int64) for part in (y, nets, fold, groups))):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


def remove_fits(folder: Path) -> None:
    """Removes the fits of a blend that is complete."""
    shutil.rmtree(folder, ignore_errors=True)
