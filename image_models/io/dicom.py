"""Reads a DICOM file: its image as RGB uint8, and of the patient only the tags of an allow-list."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGExtended12Bit

from dermstack.errors import ImageError
from image_models.io.decode import MAX_ENCODED_BYTES, MAX_PIXELS, Picture, decode

# The only tags of a header that are written to our files; no other patient data is.
ALLOWED_TAGS = ("PatientID", "PatientSex", "PatientAge", "BodyPartExamined")

_STRIPE = 1 << 20  # grey values converted at a time: a whole image in float64 may take gigabytes
_ADVICE = "restore the file or drop its row from the csv"
_SEXES = {"M": "male", "F": "female", "O": "other"}
_UNIT_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # JPEG and JPEG-LS markers that hold the size
_MAX_MARKERS = 10_000  # and bytes between them, that are searched for the size of a JPEG
_STANDALONE_MARKERS = frozenset({0x01, 0xFF, *range(0xD0, 0xDA)})  # markers without a length
# The errors that pydicom and its codecs raise for damaged files.
_READ_ERRORS = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, AttributeError, ValueError, TypeError, LookupError,
    ArithmeticError, NotImplementedError, RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


def read_dicom(path: Path, *, min_side: int, bits_stored: int = 0, tolerate: bool = False) -> Picture:
    """Reads the one image of a DICOM file as RGB; a baseline JPEG inside is decoded like a JPEG file.

    Grey values pass the modality table and the window, with its VOI LUT Function, or the VOI table. Where there is
    neither, the range of the stored bits becomes 0 to 255, the same for every file of a device, unlike a stretch of
    each image; ``bits_stored`` is for files that claim 16 bits and use fewer. As in other DICOM readers, the EXIF
    orientation of a JPEG inside has no meaning. Raises ImageError naming the file and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about odd values of tags that are not used here
            return _read(path, min_side, bits_stored, tolerate=tolerate)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file: restore it or drop its row from the csv") from error
    except ImageError:
        raise
    except _READ_ERRORS as error:
        raise ImageError(f"{path}: cannot be read as DICOM ({error}): {_ADVICE}") from error


def dicom_metadata(path: Path) -> dict[str, str]:
    """Returns image_name, patient_id, sex, age_approx (years), anatom_site_general_challenge; "" for missing tags.

    image_name is the file's name without suffix. Raises ImageError for a file that is not DICOM.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_inflated_size(path)
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(ALLOWED_TAGS))
            values = {name: str(tags.get(name, "") or "").strip() for name in ALLOWED_TAGS}
    except ImageError:
        raise
    except _READ_ERRORS as error:
        raise ImageError(f"{path}: cannot be read as DICOM ({error}): {_ADVICE}") from error
    return {
        "image_name": path.stem,
        "patient_id": values["PatientID"],
        "sex": _SEXES.get(values["PatientSex"].upper(), ""),
        "age_approx": _age(values["PatientAge"]),
        "anatom_site_general_challenge": values["BodyPartExamined"].lower(),
    }


def _age(text: str) -> str:
    """Returns the years of an age string such as 045Y, 018M, 003W or 010D; "" for any other text."""
    number, unit = text[:-1], text[-1:].upper()
    return f"{int(number) * _UNIT_YEARS[unit]:.4g}" if number.isdigit() and unit in _UNIT_YEARS else ""


def _read(path: Path, min_side: int, bits_stored: int, *, tolerate: bool) -> Picture:
    _check_inflated_size(path)
    tags = pydicom.dcmread(path)
    if "PixelData" not in tags:
        raise ImageError(f"{path}: holds no image (no PixelData): {_ADVICE}")
    _check_size(tags, path)
    _check_codestream(tags, path)
    photometric = str(tags.PhotometricInterpretation)
    syntax = tags.file_meta.get("TransferSyntaxUID")
    # An RGB JPEG may not say that it isn't YCbCr; grey with tables passes them below.
    if syntax == JPEGBaseline8Bit and photometric != "RGB" and not _has_grey_tables(tags):
        data = next(generate_frames(tags.PixelData, number_of_frames=1))
        picture = decode(data, name=str(path), min_side=min_side, upright=False, tolerate=tolerate)
        if photometric == "MONOCHROME1":
            picture = picture._replace(image=255 - picture.image)
        return picture
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        image, bits = _colour(tags), 0
    else:
        image, bits = _grey(tags, photometric, bits_stored)
    return Picture(np.ascontiguousarray(image), image.shape[0], image.shape[1], bits=bits)


def _has_grey_tables(tags: pydicom.Dataset) -> bool:
    """Tells whether grey values have a window or table, or are inverted by a negative slope."""
    if not str(tags.PhotometricInterpretation).startswith("MONOCHROME"):
        return False
    tables = bool(tags.get("VOILUTSequence")) or bool(tags.get("ModalityLUTSequence"))
    return tables or _first_value(tags, "WindowWidth") != 0 or _first_value(tags, "RescaleSlope") < 0


def _colour(tags: pydicom.Dataset) -> NDArray[np.uint8]:
    """Returns RGB uint8 of RGB, YBR (which pydicom converts) and palette images."""
    if tags.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(pixel_array(tags), tags)
        bits = 8 if _is_palette_of_bytes(tags) else 8 * values.dtype.itemsize
    else:
        values, bits = pixel_array(tags), int(tags.BitsStored)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"{tags.PhotometricInterpretation} of shape {values.shape}")
    if values.dtype.kind == "i" and bits > 8:  # of 8 bits, some writers set the tag for unsigned colours
        raise ValueError(f"colours of {bits} bits with a sign (PixelRepresentation 1), which the standard excludes")
    high: NDArray[np.uint8] = (values >> max(0, bits - 8)).astype(np.uint8)
    return high


def _is_palette_of_bytes(tags: pydicom.Dataset) -> bool:
    """Whether all words of a 16-bit palette are below 256, as some devices write 8-bit colours: else all is black."""
    tables = [tags.get(f"{colour}PaletteColorLookupTableData") for colour in ("Red", "Green", "Blue")]
    syntax = tags.file_meta.get("TransferSyntaxUID")
    high_byte = 1 if syntax is None or syntax.is_little_endian else 0
    return all(isinstance(table, bytes) and not any(table[high_byte::2]) for table in tables)


def _grey(tags: pydicom.Dataset, photometric: str, bits_stored: int) -> tuple[NDArray[np.uint8], int]:
    """Returns grey as RGB (h, w, 3), and the `bits` of its Picture."""
    stored = _decode_jpeg12(tags) if _is_twelve_bit_jpeg(tags) else _stored_values(tags)
    if stored.ndim != 2:
        raise ValueError(f"{photometric} of shape {stored.shape}")
    bits = int(tags.BitsStored)
    used = 0 if bits <= 8 else 16
    if bits == 16 and not tags.get("PixelRepresentation") and not _has_grey_tables(tags):
        used = max(1, int(stored.max()).bit_length())
        bits = bits_stored or bits
        if used > bits:
            raise ValueError(f"its largest value {int(stored.max())} takes {used} bits: correct `data.bits_stored`")
    grey, rows = np.empty(stored.shape, np.uint8), max(1, _STRIPE // stored.shape[1])
    for top in range(0, len(stored), rows):
        grey[top : top + rows] = _to_uint8(stored[top : top + rows], tags, photometric, bits)
    return np.repeat(grey[..., None], 3, axis=2), used


def _stored_values(tags: pydicom.Dataset) -> NDArray[Any]:
    """Returns the pixels' values; those that lie high in their words (HighBit) are shifted, which pydicom does not."""
    bits, syntax = int(tags.BitsStored), tags.file_meta.get("TransferSyntaxUID")
    unused = int(tags.get("HighBit", bits - 1)) + 1 - bits
    if unused <= 0 or (syntax is not None and syntax.is_encapsulated):
        return np.asarray(pixel_array(tags))
    words = np.asarray(pixel_array(tags, correct_unused_bits=False)) >> unused
    return np.asarray(words if tags.get("PixelRepresentation") else words & (1 << bits) - 1)


def _to_uint8(stored: NDArray[Any], tags: pydicom.Dataset, photometric: str, bits: int) -> NDArray[np.uint8]:
    """Maps stored values (h, w), of which ``bits`` bits are used, to 0 (black) … 255."""
    is_negative = photometric == "MONOCHROME1"
    low = -(2.0 ** (bits - 1)) if tags.get("PixelRepresentation") else 0.0
    values, high = stored.astype(np.float64), low + 2.0**bits - 1
    if _first_value(tags, "WindowWidth"):
        values = np.asarray(apply_modality_lut(stored, tags), np.float64)
        function = str(tags.get("VOILUTFunction") or "LINEAR").upper()
        values, low, high = _window(
            values, function, _first_value(tags, "WindowCenter"), _first_value(tags, "WindowWidth")
        )
    elif tags.get("VOILUTSequence"):
        values = np.asarray(apply_voi_lut(apply_modality_lut(stored, tags), tags), np.float64)
        low, high = 0.0, 2.0 ** int(tags.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif tags.get("ModalityLUTSequence"):
        values = np.asarray(apply_modality_lut(stored, tags), np.float64)
        low, high = 0.0, 2.0 ** int(tags.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    elif _first_value(tags, "RescaleSlope") < 0:
        is_negative = not is_negative
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    shades: NDArray[np.uint8] = np.round(255 * (1 - scaled if is_negative else scaled)).astype(np.uint8)
    return shades


def _is_twelve_bit_jpeg(tags: pydicom.Dataset) -> bool:
    return tags.file_meta.TransferSyntaxUID == JPEGExtended12Bit and int(tags.BitsStored) > 8


def _decode_jpeg12(tags: pydicom.Dataset) -> NDArray[np.uint16]:
    """Decodes lossy 12-bit JPEG, which no permissively licensed codec of pydicom can."""
    stored = np.empty((int(tags.Rows), int(tags.Columns)), np.uint16)
    imagecodecs.jpeg_decode(next(generate_frames(tags.PixelData, number_of_frames=1)), out=stored)
    return stored


def _window(
    values: NDArray[np.float64], function: str, centre: float, width: float
) -> tuple[NDArray[np.float64], float, float]:
    """Returns values and those that become black and white, by the VOI LUT Function (PS3.3, C.11.2.1.2 and .3)."""
    if function == "SIGMOID":
        if width <= 0:
            raise ValueError(f"a window of width {width:g}, which must be above 0")
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))), 0.0, 1.0
    if function == "LINEAR_EXACT":
        return values, centre - width / 2, centre + width / 2
    if function != "LINEAR":
        raise ValueError(f"unknown VOI LUT Function {function!r}")
    half = max(width - 1, 1e-9) / 2
    return values, centre - 0.5 - half, centre - 0.5 + half


def _first_value(tags: pydicom.Dataset, name: str) -> float:
    value: Any = tags.get(name)
    value = value[0] if isinstance(value, pydicom.multival.MultiValue) and len(value) else value
    return float(value) if value not in (None, "") else 0.0


def _check_size(tags: pydicom.Dataset, path: Path) -> None:
    """Raises ImageError for several frames, a wrong size or a cut-off file, before memory is allocated."""
    rows, columns, samples = (int(tags.get(name) or 0) for name in ("Rows", "Columns", "SamplesPerPixel"))
    frames = int(tags.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{path}: holds {frames} frames: write each image to a file of its own")
    if not 0 < rows * columns <= MAX_PIXELS:
        raise ImageError(f"{path}: its header claims {columns} × {rows} pixels: {_ADVICE}")
    syntax = tags.file_meta.get("TransferSyntaxUID")
    needed = rows * columns * samples * (int(tags.get("BitsAllocated") or 8) // 8)
    if tags.PhotometricInterpretation == "YBR_FULL_422":
        needed = needed * 2 // 3
    if needed > MAX_ENCODED_BYTES:
        raise ImageError(f"{path}: its header claims {needed:,} bytes of pixels: {_ADVICE}")
    if (syntax is None or not syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian) and needed > len(
        tags.PixelData
    ):
        raise ImageError(f"{path}: is cut off, {len(tags.PixelData)} of {needed} bytes of pixels are left: {_ADVICE}")


def _check_codestream(tags: pydicom.Dataset, path: Path) -> None:
    """Raises ImageError where the encoded image and the header differ in size: a decoder allocates the image's size."""
    syntax = tags.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_encapsulated:
        return
    header_size, size = (
        (int(tags.Rows), int(tags.Columns)),
        _codestream_size(next(generate_frames(tags.PixelData, number_of_frames=1))),
    )
    if size is not None and size != header_size:
        raise ImageError(
            f"{path}: {header_size[1]} × {header_size[0]} pixels in the header, "
            f"but {size[1]} × {size[0]} in the encoded image: {_ADVICE}"
        )


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width in a JPEG, JPEG-LS or JPEG 2000; None for other codings. ValueError if absent."""
    if (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:  # SIZ, perhaps in a JP2 file
        right, lower, left, upper = struct.unpack_from(">4I", data, at + 8)
        return lower - upper, right - left
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    for _ in range(_MAX_MARKERS):
        if at + 9 > len(data):
            break
        marker = data[at + 1]
        if data[at] == 0xFF and marker in _SOF_MARKERS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        standalone = data[at] != 0xFF or marker in _STANDALONE_MARKERS
        at += 1 if standalone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("the JPEG inside does not state its size")


def _check_inflated_size(path: Path) -> None:
    """Raises ImageError for a file that is too large, or becomes so when pydicom inflates its deflated data set."""
    with path.open("rb") as file:
        if (length := os.fstat(file.fileno()).st_size) > MAX_ENCODED_BYTES:
            raise ImageError(f"{path}: {length:,} bytes are more than an image file may have: {_ADVICE}")
        read_preamble(file, force=False)
        # pydicom's own reader, to get the same result as pydicom: the group's stated length may be wrong.
        if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (packed := inflate.unconsumed_tail or file.read(1 << 20)) and not inflate.eof:
            total += len(inflate.decompress(packed, 1 << 22))
            if total > MAX_ENCODED_BYTES:
                raise ImageError(
                    f"{path}: inflates to more than {MAX_ENCODED_BYTES >> 20} MiB, like a decompression bomb: {_ADVICE}"
                )
