"""What goes wrong between an image file and a network."""

from __future__ import annotations


class ImageError(ValueError):
    """An image, a backbone or weights that can't be used; the message names it and the next step."""
