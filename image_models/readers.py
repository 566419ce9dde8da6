"""One image file in, RGB uint8 out; what can't be decoded whole is an error, never a black or half picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from image_models.errors import ImageError

SUFFIXES = (".jpg", ".jpeg", ".png")


def read_image(path: Path, *, at_least: int) -> NDArray[np.uint8]:
    """Decode ``path`` to RGB ``(height, width, 3)`` uint8, upright as its EXIF tag says.

    A JPEG may come at a reduced scale (1/2, 1/4, 1/8) as long as both sides stay ``at_least`` pixels: libjpeg then
    skips most of the arithmetic. Raises ImageError naming the file and the reason.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (at_least, at_least))
            image.load()
            if image.mode.startswith("I;16"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image that can be read ({', '.join(SUFFIXES)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from error
    # Pillow raises OSError for truncated data, SyntaxError for broken PNG chunks and ValueError for absurd headers.
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: cannot decode ({error})") from error


def image_paths(folder: Path, ids: list[str]) -> list[Path]:
    """Where the image of each id lies: ``folder/<id>`` with a known suffix. Raises ImageError listing the missing."""
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder: set data.images to the folder that holds <id>.jpg or <id>.png")
    at_hand = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    missing = [row_id for row_id in ids if row_id not in at_hand]
    if missing:
        raise ImageError(
            f"{len(missing)} of {len(ids)} images are missing in {folder}, first: {', '.join(missing[:3])}: "
            "restore the files or drop the rows from the csv"
        )
    return [at_hand[row_id] for row_id in ids]
