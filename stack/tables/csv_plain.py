"""Reads a csv without quotation marks in one pass, with the cells that the full parser returns; most files are such."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
from pandas.io.common import get_handle  # type: ignore[import-not-found]  # pandas' stubs lack it

COMPRESSION_ERRORS = (EOFError, zlib.error, zipfile.BadZipFile, lzma.LZMAError, NotImplementedError)
_BOM = b"\xef\xbb\xbf"
_MAX_BYTES = 1 << 30  # a larger file is read by the parser that reads in parts


def read_plain_csv(path: Path) -> pd.DataFrame | None:
    """Returns the cells of a csv as text, the header as the first row; None where it needs the full parser.

    A file is plain if it is UTF-8 text without quotation marks, NUL or lone carriage returns, and each line has as many
    commas as the first, at least one. No row or cell can then be lost (`stack.tables.csv_rows`), and a cell is what
    stands between two commas. Nothing is raised: the full parser words the errors.
    """
    try:
        with get_handle(path, "rb", compression="infer", is_text=False) as opened:
            content: bytes = opened.handle.read(_MAX_BYTES)
        if len(content) == _MAX_BYTES or not _is_plain(content := content.removeprefix(_BOM)):
            return None
        width = content.partition(b"\n")[0].count(b",") + 1
        names = [str(number) for number in range(width)]
        table = pacsv.read_csv(
            pa.BufferReader(content),
            read_options=pacsv.ReadOptions(column_names=names, use_threads=False, block_size=max(len(content), 1)),
            parse_options=pacsv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string())),
        )
    except (OSError, ValueError, MemoryError, pa.ArrowException, *COMPRESSION_ERRORS):
        return None
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.large_string(): pd.StringDtype(na_value=np.nan)}.get)
    return frame.set_axis(range(width), axis=1)


def _is_plain(content: bytes) -> bool:
    if b'"' in content or b"\0" in content or content.count(b"\r") != content.count(b"\r\n"):
        return False
    content.decode("utf-8")  # raises UnicodeDecodeError, a ValueError
    marks = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(marks == ord("\n"))
    if not content.endswith(b"\n"):
        ends = np.append(ends, len(content))
    commas = np.diff(np.searchsorted(np.flatnonzero(marks == ord(",")), ends), prepend=0)
    return bool(len(commas) and commas[0] > 0 and (commas == commas[0]).all())
