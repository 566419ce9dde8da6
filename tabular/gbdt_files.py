"""Fitted GBDTs on disk, each in its library's own format, which executes nothing when read."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from tabular.errors import TabularError
from tabular.gbdt import Gbdt
from tabular.gbdt_libraries import LIBRARIES

UNREADABLE: tuple[type[Exception], ...] = (
    UnicodeDecodeError,
    *(refusal for library in LIBRARIES.values() for refusal in library.refusals),
)


def write_gbdt(model: Gbdt, path: Path) -> None:
    """Write LightGBM's text (a name ending in .txt), XGBoost's UBJSON (.ubj) or CatBoost's .cbm, all or nothing."""
    library = LIBRARIES[model.kind]
    if path.suffix != library.suffix:
        raise TabularError(f"{path}: a {model.kind} model is written to a name ending in {library.suffix}")
    content = library.dump(model.booster)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_gbdt(path: Path) -> Gbdt:
    """Read what `write_gbdt` wrote, by its suffix; it predicts the same, to the last bit."""
    kind = next((kind for kind, library in LIBRARIES.items() if library.suffix == path.suffix), None)
    if kind is None:
        raise TabularError(
            f"{path}: a model's name ends in {' or '.join(library.suffix for library in LIBRARIES.values())}"
        )
    content, library = path.read_bytes(), LIBRARIES[kind]
    if not library.is_whole(content):
        raise TabularError(f"{path} is no whole {kind} model: remove it and fit it again")
    try:
        booster, names, rounds = library.load(content)
    except UNREADABLE as error:
        raise TabularError(f"{path} is a damaged {kind} model: remove it and fit it again") from error
    return Gbdt(kind, booster, tuple(unquote(name) for name in names), rounds)
