"""Decodes one encoded image to RGB uint8; raises for an image that cannot be decoded completely."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dermstack.errors import ImageError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # enabled in Pillow; its other formats are rare and often attacked
MAX_PIXELS = 200_000_000  # whole-slide scans are larger, photographs of a lesion never
MAX_ENCODED_BYTES = 1 << 29  # bytes of one encoded image

MAX_DOWNSCALE = 4  # a JPEG is decoded at no less than a quarter of its size

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap height and width
_ADVICE = "restore the file or drop its row from the csv"


class Picture(NamedTuple):
    """An upright RGB image (h, w, 3) uint8, and the original's height and width, larger where it was reduced."""

    image: NDArray[np.uint8]
    height: int
    width: int


def decode(data: bytes, *, name: str, min_side: int) -> Picture:
    """Decodes an image to RGB, upright by its EXIF tag; recognises the format by content, not by suffix.

    A JPEG may be decoded at a reduced scale, down to 1/4, as long as both sides keep ``min_side`` pixels: libjpeg then
    skips most of the arithmetic. Transparency is blended onto white; 16-bit values keep their high byte. Raises
    ImageError with ``name`` and the reason.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty: {_ADVICE}")
    if data.startswith(_JPEG) and (picture := _decode_jpeg(data, name, min_side)) is not None:
        return picture
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _decode_with_pillow(data, name)
            return Picture(image, *image.shape[:2])
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read ({', '.join(SUFFIXES)}): {_ADVICE}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: {error}: {_ADVICE}") from error
    # Pillow raises OSError for truncated data, SyntaxError for broken PNG chunks, ValueError and OverflowError for
    # absurd headers; its plugins raise the others.
    except (OSError, SyntaxError, ArithmeticError, ValueError, LookupError, TypeError, EOFError, MemoryError) as error:
        raise ImageError(f"{name}: cannot decode ({error}): {_ADVICE}") from error


def _decode_jpeg(data: bytes, name: str, min_side: int) -> Picture | None:
    """Decodes by libjpeg-turbo at the smallest sufficient scale; returns None for CMYK, which Pillow can convert."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, name)
        if colours in ("CMYK", "YCCK"):
            return None
        # Lower bounds of the reduced size. At scale 1/8, rough skin is 3 grey levels off, at 1/4 less than 2.
        min_sides = [max(min(min_side, side), -(-side // MAX_DOWNSCALE)) for side in (height, width)]
        # strict: a truncated file raises an error instead of ending in grey.
        image = simplejpeg.decode_jpeg(
            data, "RGB", min_height=min_sides[0], min_width=min_sides[1], min_factor=1, strict=True
        )
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ImageError(f"{name}: cannot decode ({str(error).strip()}): {_ADVICE}") from error
    orientation = _orientation(data)
    if orientation in _TRANSPOSED:
        height, width = width, height
    return Picture(_upright(image, orientation), height, width)


def _decode_with_pillow(data: bytes, name: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image.height, image.width, name)
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            return np.repeat(_high_byte(np.asarray(image), name)[..., None], 3, axis=2)
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return np.asarray(upright.convert("RGB"))


def _high_byte(grey: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """Returns the high byte of 16-bit grey, which Pillow may hold in wider types; raises ImageError beyond 16 bits."""
    if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 65535:
        raise ImageError(f"{name}: grey values outside 16 bits ({grey.dtype}): save it with 8 or 16 bits a channel")
    return (grey.astype(np.uint32) >> 8).astype(np.uint8)


def _check_size(height: int, width: int, name: str) -> None:
    """Raises ImageError for too many pixels, before memory is allocated: a header may claim gigabytes."""
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{name}: its header claims {width} × {height} pixels, more than {MAX_PIXELS // 10**6} million, like "
            f"a decompression bomb: {_ADVICE}"
        )


def _orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 where it has none."""
    if data.find(b"Exif\0\0", 0, 65536) < 0:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    # A damaged tag only loses the orientation; the pixels are intact.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError):
        return 1


def _upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns an image upright by its EXIF 2.3 orientation, 1 to 8."""
    if orientation in _TRANSPOSED:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
