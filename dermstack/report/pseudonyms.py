"""Names images and patients on pages by codes from which nobody without the experiment's key finds their ids."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.store import atomic

_KEY_BYTES = 32
_CODE_BYTES = 6  # 48 bits: among 400,000 ids, two have the same code with a probability of 0.03 %


def pseudonyms(ids: Iterable[str], key: bytes) -> list[str]:
    """Returns a code of ten letters and digits for each id, always the same for the same id and key.

    The code is a keyed hash (BLAKE2s): without the key nobody can find the id of a code by trying all possible ids.
    """
    return [_pseudonym(str(name), key) for name in ids]


def pseudonym_key(folder: Path) -> bytes:
    """Returns the experiment's key in ``folder``/pseudonym.key; makes it at random if it does not exist.

    Only the owner can read the file: with the key, the id of a code can be found by trying ids. Raises StoreError if
    the file has the wrong size.
    """
    path = folder / "pseudonym.key"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(_KEY_BYTES))
            temporary.chmod(0o600)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise StoreError(
            f"{path} has {len(key)} bytes, but a key has {_KEY_BYTES}: remove it to make a new key and new codes"
        )
    return key


def _pseudonym(name: str, key: bytes) -> str:
    digest = hashlib.blake2s(name.encode(), key=key, digest_size=_CODE_BYTES).digest()
    return base64.b32encode(digest).decode().rstrip("=").lower()


def pseudonymiser(experiment: Experiment) -> Callable[[str], str]:
    """Returns the function from an id to its code in this experiment."""
    key = pseudonym_key(experiment.folder)
    return lambda row_id: pseudonyms([row_id], key)[0]
