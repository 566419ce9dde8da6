"""The errors of dermstack, as one tree: a command shows them without a traceback and ends with exit status 2.

They stand below all packages, so that `image_models` and `tabular` raise them too.
"""

from __future__ import annotations

from dermstack.masking import mask_secrets


class DermstackError(Exception):
    """The root of the tree: a user's mistake, with a message that names the thing, its value and the next step.

    Passwords and tokens in the message are masked (`dermstack.masking`).
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(mask_secrets(part) if isinstance(part, str) else part for part in arguments))


class ConfigError(DermstackError):
    """A setting that is unknown, missing or out of range."""


class DataError(DermstackError):
    """A table, a row or a file of the user that cannot be used as it is."""


class StoreError(DermstackError):
    """A file below runs/ that is incomplete, stale or damaged."""


class BundleError(DermstackError):
    """A bundle that is damaged or of another version, or runs of which none can be made."""


class ImageError(DermstackError, ValueError):
    """An image, backbone, weights file or training setting that cannot be used."""


class TabularError(DermstackError, ValueError):
    """A column, value or parameter that level 2 cannot use."""
