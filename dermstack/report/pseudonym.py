"""Names that say nothing: short codes instead of ids, for pages that may leave the house."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path

from stack.errors import StoreError
from stack.store import atomic

_KEY_BYTES = 32
_CODE_BYTES = 6  # of 400,000 ids two have the same code with a chance of 0.03 %


def pseudonyms(ids: Iterable[str], key: bytes) -> list[str]:
    """A code of ten letters and digits for each id, the same for the same id and key.

    A keyed hash (BLAKE2s): without the key nobody can try ids until a code comes out, though ids are few and guessable.
    """
    return [_code(str(name), key) for name in ids]


def pseudonym_key(folder: Path) -> bytes:
    """The key of the experiment in ``folder``, made at random once and kept in ``pseudonym.key``, for its owner's eyes.

    Who has it can tell which id a code stands for, by trying. Raises StoreError for a file that is no key.
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
            f"{path} holds {len(key)} bytes, a key has {_KEY_BYTES}: remove it, and codes will be new ones"
        )
    return key


def _code(name: str, key: bytes) -> str:
    digest = hashlib.blake2s(name.encode(), key=key, digest_size=_CODE_BYTES).digest()
    return base64.b32encode(digest).decode().rstrip("=").lower()
