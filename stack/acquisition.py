"""How pictures were made, beside the rows: width, height and bytes of the originals. Off at level 2 unless told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from stack.errors import DataError
from stack.experiment import Experiment
from stack.store import read_frame, write_frame
from stack.table import ACQUISITION, Table

if TYPE_CHECKING:
    from image_models.cache import ImageCache

FILE = "acquisition.parquet"
_OF_CACHE = {"source_width": "width", "source_height": "height", "source_bytes": "bytes"}


def write_acquisition(experiment: Experiment, cache: ImageCache) -> None:
    """Keep what the cache knows of the originals for steps that see no picture: id, width, height, bytes."""
    ids = pd.concat([experiment.table.train["id"], experiment.table.test["id"]], ignore_index=True)
    known = cache.index.iloc[cache.rows_for(ids)][list(_OF_CACHE)].rename(columns=_OF_CACHE)
    frame = known.astype("float32").assign(id=ids.to_numpy())
    write_frame(experiment.folder / FILE, frame)


def with_acquisition(experiment: Experiment) -> Experiment | None:
    """The experiment whose rows have width, height and bytes, of the csv or of the pictures; None where unknown."""
    tables = [experiment.table.train, experiment.table.test]
    missing = [name for name in ACQUISITION if name not in tables[0]]
    path = experiment.folder / FILE
    if len(missing) == len(ACQUISITION) and not path.is_file():
        return None
    known = pd.DataFrame(columns=list(ACQUISITION))
    if path.is_file():
        known = read_frame(path, again="dermstack oof").set_index("id")
    joined = []
    for table in tables:
        of_rows = known.reindex(table["id"])
        extra = {
            name: of_rows[name].to_numpy("float32", na_value=float("nan")) for name in ACQUISITION if name not in table
        }
        joined.append(table.assign(**extra))
    return replace(experiment, table=Table(*joined))


def needed_acquisition(experiment: Experiment) -> Experiment:
    """`with_acquisition`; raises DataError where `features.shortcuts` is on and nothing is known."""
    if (known := with_acquisition(experiment)) is None:
        raise DataError(
            "features.shortcuts needs width, height and bytes of the pictures: run `dermstack oof` on images, or name "
            "the csv's columns in data.columns.width, height, bytes"
        )
    return known
