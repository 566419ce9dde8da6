"""What goes wrong by a user's setting, file or row: shown without a traceback, exit status 2."""

from __future__ import annotations


class DermstackError(Exception):
    """The root of this package's errors: a mistake that the message says how to mend."""


class ConfigError(DermstackError):
    """A setting that is unknown, missing or out of range."""


class DataError(DermstackError):
    """A table, a row or a file of the user's that can't be used as it is."""


class BundleError(DermstackError):
    """A bundle that is damaged, of another version, or can't be made of these runs."""


class StoreError(DermstackError):
    """Something under runs/ is incomplete, stale or damaged."""
