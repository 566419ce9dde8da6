"""What every reader of parquet must know: the errors of damaged files, and text that is not UTF-8."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

# Errors of pyarrow and pandas for damaged or foreign bytes. Most of pyarrow's are Python's own, too, but not all. Files
# of pandas hold JSON, and JSON that is nested too deeply raises RecursionError, a RuntimeError.
FRAME_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError, pa.ArrowException,
)  # fmt: skip


def check_text(frame: pd.DataFrame) -> None:
    """Raises ValueError for text that is not UTF-8, of which pandas knows only when a cell is looked at."""
    levels = [frame.index.get_level_values(level) for level in range(frame.index.nlevels)]
    for values in [frame.iloc[:, column] for column in range(frame.shape[1])] + levels:
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.dtype.categories
        if isinstance(values.dtype, pd.StringDtype):
            pa.array(values.array).validate(full=True)
