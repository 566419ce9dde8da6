"""Reads encoded images from an HDF5 file in ISIC 2024's format: one data set of bytes per id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermstack.errors import ImageError
from dermstack.memory import limited_memory
from image_models.io.decode import MAX_ENCODED_BYTES

if TYPE_CHECKING:
    import h5py


MAX_OPEN_BYTES = 1 << 30  # of memory to open a file: libhdf5 believes sizes in a damaged file, such as 4 GiB


def open_hdf5(path: Path) -> h5py.File:
    """Opens an HDF5 file for reading. Raises ImageError for any other file."""
    import h5py

    try:
        with limited_memory(MAX_OPEN_BYTES):
            return h5py.File(path, "r")
    except (OSError, RuntimeError, LookupError, ValueError, MemoryError) as error:
        raise ImageError(f"{path}: not a readable HDF5 file ({error}): download or write it again") from error


def hdf5_bytes(file: h5py.File, key: str, path: Path) -> bytes:
    """Returns the encoded image under ``key``. Raises ImageError for anything else."""
    value = hdf5_dataset(file, key, path)
    try:
        data = value[()]
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise ImageError(f"{path}[{key}] cannot be read ({error}): download or write the file again") from error
    return data if isinstance(data, bytes) else np.asarray(data).tobytes()


def hdf5_dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """Returns the encoded image under ``key``: a scalar of opaque bytes or a vector of uint8, stored in this file.

    Raises ImageError for anything else.
    """
    import h5py

    advice = "store the encoded bytes of one image there"
    try:
        is_own = isinstance(file.get(key, getlink=True), h5py.HardLink)  # other links may point outside the file
        value = file[key] if is_own else None
        if not isinstance(value, h5py.Dataset) or value.external or value.is_virtual:
            raise ImageError(f"{path}[{key}] is not a data set stored in this file: {advice}")
        if value.dtype.kind not in "VSOu" or value.ndim > 1 or value.nbytes > MAX_ENCODED_BYTES:
            raise ImageError(f"{path}[{key}] holds {value.dtype} of shape {value.shape}: {advice}")
    except ImageError:
        raise
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ImageError(f"{path}[{key}] cannot be read ({error}): download or write the file again") from error
    return value
