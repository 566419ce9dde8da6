"""Decodes one encoded image to RGB uint8; raises for an image that cannot be decoded completely."""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from dermstack.errors import ImageError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # enabled in Pillow; its other formats are rare and often attacked
MAX_PIXELS = 200_000_000  # whole-slide scans are larger, photographs of a lesion never
MAX_ENCODED_BYTES = 1 << 29  # bytes of one encoded image

MAX_DOWNSCALE = 4  # a JPEG is decoded at no less than a quarter of its size

DECODER_VERSION = 4  # raise it where an image now gives other pixels, so that caches are made again

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap height and width
_PHOTOMETRIC, _BITS_PER_SAMPLE, _WHITE_IS_ZERO = 262, 258, 0  # tags of a TIFF, and the value for a negative
_CHANNELS, _PLANES, _APART = 277, 284, 2  # tags, and the value for channels that are stored apart
_SAMPLE_FORMAT, _SIGNED = 339, 2  # tag, and the value for signed numbers
_PAGE_KIND, _COPY_OR_MASK = 254, 0b101  # tag of a page of a TIFF, and its bits for a reduced copy and for a mask
_MAX_PAGES = 64  # of a TIFF that are looked at; a pyramid has about ten
_ADVICE = "restore the file or drop its row from the csv"
# The one warning of libjpeg that leaves every pixel decoded: stray bytes between the last of them and the end.
_STRAY_AT_END = re.compile(r"\d+ extraneous bytes before marker 0xd9")
# Tags of a TIFF without which the pixels are others, or in other places; Pillow warns of a damaged one and goes on.
_PIXEL_TAGS = frozenset({
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347,
    *range(512, 522), 529, 530, 531, 532,
})  # fmt: skip
_SKIPPED_TAG = re.compile(r"Skipping tag (\d+)")
_PILLOW_LIMIT = threading.Lock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints the errors that Pillow logs and raises


class Picture(NamedTuple):
    """An upright RGB image (h, w, 3) uint8, and the original's height and width, larger where it was reduced.

    ``bits`` is 0 for an image of 8 bits a channel, otherwise the bits that its largest value takes (16 where the file
    itself says how many are used). ``note`` says what is wrong with a file that was tolerated.
    """

    image: NDArray[np.uint8]
    height: int
    width: int
    bits: int = 0
    note: str = ""


def decode(
    data: bytes, *, name: str, min_side: int, bits_stored: int = 0, upright: bool = True, tolerate: bool = False
) -> Picture:
    """Decodes an image to RGB, upright by its EXIF tag; recognises the format by content, not by suffix.

    A JPEG may be decoded at a reduced scale, down to 1/4, as long as both sides keep ``min_side`` pixels: libjpeg then
    skips most of the arithmetic. Transparency is blended onto white. 16-bit values keep the high byte of their lower
    ``bits_stored`` bits (0: of all 16, or of 15 where they are signed). ``upright=False`` ignores the EXIF orientation;
    ``tolerate`` accepts a JPEG with stray bytes after its last pixel. Raises ImageError with ``name`` and the reason,
    also for a file of several images and for one without a visible pixel.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty: {_ADVICE}")
    if data.startswith(_JPEG):
        picture = _decode_jpeg(data, name, min_side, upright=upright, tolerate=tolerate)
        if picture is not None:
            return picture
    try:
        return _decode_with_pillow(data, name, bits_stored, upright=upright)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read ({', '.join(SUFFIXES)}): {_ADVICE}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}: {_ADVICE}") from error
    # Pillow raises OSError for truncated data, SyntaxError for broken PNG chunks, ValueError and OverflowError for
    # absurd headers; its plugins raise the others.
    except (OSError, SyntaxError, ArithmeticError, ValueError, LookupError, TypeError, EOFError, MemoryError) as error:
        raise ImageError(f"{name}: cannot decode ({error}): {_ADVICE}") from error


def _decode_jpeg(data: bytes, name: str, min_side: int, *, upright: bool, tolerate: bool) -> Picture | None:
    """Decodes by libjpeg-turbo at the smallest sufficient scale; returns None for CMYK, which Pillow can convert."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, name)
        if colours in ("CMYK", "YCCK"):
            return None
        # Lower bounds of the reduced size. At scale 1/8, rough skin is 3 grey levels off, at 1/4 less than 2.
        min_sides = [max(min(min_side, side), -(-side // MAX_DOWNSCALE)) for side in (height, width)]
        image, note = _decode_strictly(data, min_sides, tolerate=tolerate)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ImageError(f"{name}: cannot decode ({str(error).strip()}): {_ADVICE}") from error
    orientation = _orientation(data) if upright else 1
    if orientation in _TRANSPOSED:
        height, width = width, height
    return Picture(_upright(image, orientation), height, width, note=note)


def _decode_strictly(data: bytes, min_sides: list[int], *, tolerate: bool) -> tuple[NDArray[np.uint8], str]:
    """Returns the image and what was tolerated. Raises ValueError for a file that libjpeg warns about.

    A truncated file raises instead of ending in grey. libjpeg stops at its first warning, so if that is about bytes
    before the end marker, all pixels were decoded before it without any.
    """
    sides = {"min_height": min_sides[0], "min_width": min_sides[1], "min_factor": 1}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True, **sides), ""
    except ValueError as error:
        if (stray := _STRAY_AT_END.search(str(error))) is None:
            raise
        if not tolerate:
            raise ValueError(
                f"{str(error).strip()}; `on_unreadable: tolerate` uses it, since it decodes to the end"
            ) from error
        return simplejpeg.decode_jpeg(data, "RGB", strict=False, **sides), stray.group()


def _decode_with_pillow(data: bytes, name: str, bits_stored: int, *, upright: bool) -> Picture:
    with _pillow_settings() as warned, Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_tags(image, warned, name)
        _check_size(image.height, image.width, name)
        _check_one_image(image, name)
        # Read before load(), which turns a TIFF upright and then removes its tag.
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
        is_deep = ";16" in str(image.tile)
        is_negative = tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        depth = 16 if tags is None else int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
        is_signed = tags is not None and _SIGNED in tags.get(_SAMPLE_FORMAT, ())
        if tags is not None:
            _check_samples(tags, depth, name, is_raw="'raw'" in str(image.tile), bits_stored=bits_stored)
        image.load()  # for a TIFF, Pillow checks the size again
        orientation = 1 if tags is not None or not upright else int(image.getexif().get(_ORIENTATION, 1))
        if image.mode.startswith("I") or image.mode == "F":
            values = _sixteen_bit(np.asarray(image), name, is_signed=is_signed)
            clear = values == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
            if is_signed and depth == 16:  # one bit is the sign: white is 32767, as for scikit-image
                bits_stored = min(bits_stored or 15, 15)
            grey, bits = _high_byte(values, name, depth if depth < 16 else bits_stored)
            if is_negative:
                grey = 255 - grey
            if clear is not None:
                _check_visible(~clear, name)
                grey[clear] = 255
            rgb = np.repeat(_upright(grey, orientation)[..., None], 3, axis=2)
            return Picture(rgb, rgb.shape[0], rgb.shape[1], bits=16 if depth < 16 else bits)
        bits = 0
        if is_deep and bits_stored not in (0, 16):
            colours, bits = _deep_colours(data, name, bits_stored)
            turned = Image.fromarray(_upright(colours, orientation))
        else:
            turned = ImageOps.exif_transpose(image) if upright else image
            if is_deep:  # Pillow keeps the high byte
                bits = 8 + int(np.asarray(turned.convert("RGB")).max()).bit_length()
        if "A" in turned.getbands() or "transparency" in turned.info:
            turned = turned.convert("RGBA")
            _check_visible(np.asarray(turned.getchannel("A")), name)
            turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
        rgb = np.asarray(turned.convert("RGB"))
        return Picture(rgb, rgb.shape[0], rgb.shape[1], bits=bits)


@contextmanager
def _pillow_settings() -> Iterator[list[warnings.WarningMessage]]:
    """Sets two global settings of Pillow that other code in the process may have changed, and restores them.

    Yields the list to which warnings are added, such as Pillow's about damaged tags, which name no file.

    Images may have up to `MAX_PIXELS` pixels; Pillow's own limit refuses more than 89,478,485. A truncated file is an
    error; training scripts often set `LOAD_TRUNCATED_IMAGES`, which makes the missing part black.
    """
    with _PILLOW_LIMIT:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS + 1  # ours is checked afterwards; Pillow's error comes at twice its limit
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                yield warned
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_tags(image: Image.Image, warned: list[warnings.WarningMessage], name: str) -> None:
    """Raises ImageError for a TIFF that was opened without a tag that its pixels need, or whose list of tags is cut.

    With the default for a lost compression, depth or zero of the grey scale, Pillow decodes another picture. Other
    tags describe the picture, and a lost orientation leaves it as it is stored, as in a JPEG.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    for text in (str(one.message) for one in warned if Path(one.filename).name == "TiffImagePlugin.py"):
        if skipped := _SKIPPED_TAG.search(text):
            spoils_pixels = int(skipped[1]) in _PIXEL_TAGS
        else:
            spoils_pixels = "too many entries" not in text
        if spoils_pixels:
            raise ImageError(f"{name}: a damaged TIFF, of which Pillow says {text!r}: {_ADVICE}")


def _check_samples(
    tags: TiffImagePlugin.ImageFileDirectory_v2, depth: int, name: str, *, is_raw: bool, bits_stored: int
) -> None:
    """Raises ImageError for a TIFF whose numbers Pillow or OpenCV would take for others, without an error.

    Pillow reads channels that are stored apart as of 8 bits where they are not compressed, and OpenCV in another order;
    signed numbers of 8 bits become unsigned ones.
    """
    if (
        depth > 8
        and tags.get(_PLANES) == _APART
        and tags.get(_CHANNELS, 1) > 1
        and (is_raw or bits_stored not in (0, 16))
    ):
        raise ImageError(
            f"{name}: a TIFF with channels of {depth} bits that are stored apart (PlanarConfiguration 2), which cannot "
            "be read: save it with interleaved channels"
        )
    if depth == 8 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError(f"{name}: a TIFF of signed numbers of 8 bits, which cannot be read: save it as unsigned ones")


def _check_one_image(image: Image.Image, name: str) -> None:
    """Raises ImageError for an animation, and for a TIFF whose first page is not its only image.

    A page of a TIFF that is a mask, or a smaller copy of the first page, is no image.
    """
    if image.format in ("PNG", "WEBP") and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(f"{name}: is an animation of {frames} images: write each image to a file of its own")
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    first, is_copy = image.size, bool(int(image.tag_v2.get(_PAGE_KIND, 0)) & _COPY_OR_MASK)
    for page in range(1, _MAX_PAGES):
        try:
            image.seek(page)
            is_image = not (int(image.tag_v2.get(_PAGE_KIND, 0)) & _COPY_OR_MASK or _is_smaller_copy(image.size, first))
        except (EOFError, OSError, SyntaxError, ArithmeticError, ValueError, LookupError, TypeError):
            break  # the end, or bytes that are no page
        if is_copy or is_image:
            raise ImageError(
                f"{name}: holds several images, the first of {first[0]} × {first[1]} pixels, page {page + 1} of "
                f"{image.width} × {image.height}: write each image to a file of its own"
            )
    image.seek(0)


def _is_smaller_copy(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """Whether a page (width, height) has the aspect of a larger one, up to the rounding of its sides."""
    width, height = size
    is_same_aspect = abs(width * of[1] - height * of[0]) <= max(of)
    return is_same_aspect and width < of[0] and height < of[1]


def _check_visible(alpha: NDArray[Any], name: str) -> None:
    """Raises ImageError where every pixel is transparent: on white, nothing of the image would be left."""
    if not alpha.any():
        raise ImageError(
            f"{name}: every pixel is transparent, so nothing of it can be seen: save it without its alpha channel"
        )


def _sixteen_bit(grey: NDArray[np.generic], name: str, *, is_signed: bool) -> NDArray[np.uint16]:
    """Returns 16-bit grey, which Pillow may hold in wider types, as uint16; raises ImageError beyond 16 bits."""
    if is_signed and (lowest := int(grey.min())) < 0:
        raise ImageError(
            f"{name}: negative grey values, down to {lowest}: which is black is not known, so save it with 8 or 16 "
            "bits without a sign"
        )
    if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 65535:
        raise ImageError(f"{name}: grey values outside 16 bits ({grey.dtype}): save it with 8 or 16 bits a channel")
    return grey.astype(np.uint16)


def _high_byte(values: NDArray[np.uint16], name: str, bits_stored: int) -> tuple[NDArray[np.uint8], int]:
    """Returns the upper 8 of the lower ``bits_stored`` bits (0: 16), and the bits that the largest value takes."""
    used, allowed = max(1, int(values.max()).bit_length()), bits_stored or 16
    if used > allowed:
        raise ImageError(
            f"{name}: its largest value {int(values.max())} takes {used} bits, more than the {allowed} that are "
            "stored: correct `data.bits_stored`"
        )
    return (values >> (allowed - 8)).astype(np.uint8), used


def _deep_colours(data: bytes, name: str, bits_stored: int) -> tuple[NDArray[np.uint8], int]:
    """Decodes 16-bit colours by OpenCV, since Pillow drops their low byte; alpha has its full 16 bits."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ImageError(f"{name}: 16-bit colours that cannot be read with `data.bits_stored`: save it with 8 bits")
    high, used = _high_byte(np.ascontiguousarray(values[..., 2::-1]), name, bits_stored)
    if values.shape[2] == 4:
        high = np.dstack([high, (values[..., 3] >> 8).astype(np.uint8)])
    return high, used


def _check_size(height: int, width: int, name: str) -> None:
    """Raises ImageError for too many pixels, before memory is allocated: a header may claim gigabytes."""
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{name}: its header claims {width} × {height} pixels, more than {MAX_PIXELS // 10**6} million, like "
            f"a decompression bomb: {_ADVICE}"
        )


def _orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 where it has none."""
    if b"Exif\0\0" not in data:  # it may stand behind colour profiles of any length
        return 1
    try:
        with _pillow_settings(), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    # A damaged tag only loses the orientation; the pixels are intact.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError):
        return 1


def _upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns an image upright by its EXIF 2.3 orientation, 1 to 8."""
    if orientation in _TRANSPOSED:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
