"""The exception of the package."""

from __future__ import annotations


class ImageError(ValueError):
    """Raised where an image, backbone, weights or setting cannot be used; the message names it and the next step."""
