"""Exceptions for faults in a user's settings, files or rows; a command prints them without traceback, exit status 2."""

from __future__ import annotations


class DermstackError(Exception):
    """Base class of this package's errors; each message says how to correct the fault."""


class ConfigError(DermstackError):
    """Raised for a setting that is unknown, missing or out of range."""


class DataError(DermstackError):
    """Raised for a user's table, row or file that cannot be used as it is."""


class BundleError(DermstackError):
    """Raised for a bundle that is damaged, of another version, or cannot be made from these runs."""


class StoreError(DermstackError):
    """Raised for a file or folder under runs/ that is missing, incomplete, stale or damaged."""
