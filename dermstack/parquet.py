"""Reads parquet: the errors of damaged files, the memory that they ask for, and text that is not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dermstack.memory import limited_memory

# Errors of pyarrow and pandas for damaged or foreign bytes. Most of pyarrow's are Python's own, too, but not all. Files
# of pandas hold JSON, and JSON that is nested too deeply raises RecursionError, a RuntimeError.
FRAME_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError, pa.ArrowException,
)  # fmt: skip

_FEW_BYTES, _CELL_BYTES = 2 << 30, 256  # of memory for any file, and further for each cell, long texts included


def parquet_metadata(path: Path) -> pq.FileMetaData:
    """Returns what the footer of a file says. Raises one of `FRAME_ERRORS` for a damaged one."""
    with limited_memory(_FEW_BYTES):
        return pq.read_metadata(path)


def read_parquet(path: Path, *, verify: bool = False) -> pd.DataFrame:
    """Reads a file of parquet; with ``verify``, its pages are compared with their checksums, where it has any.

    Raises one of `FRAME_ERRORS` for a damaged file, also for one that asks for far more memory than its cells need.
    """
    about = parquet_metadata(path)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else _FEW_BYTES
    with limited_memory(min(_FEW_BYTES + about.num_rows * about.num_columns * _CELL_BYTES, memory)):
        frame = pd.read_parquet(path, page_checksum_verification=verify)
    check_text(frame)
    return frame


def check_text(frame: pd.DataFrame) -> None:
    """Raises ValueError for text that is not UTF-8, of which pandas knows only when a cell is looked at."""
    levels = [frame.index.get_level_values(level) for level in range(frame.index.nlevels)]
    for values in [frame.iloc[:, column] for column in range(frame.shape[1])] + levels:
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.dtype.categories
        if isinstance(values.dtype, pd.StringDtype):
            pa.array(values.array).validate(full=True)
