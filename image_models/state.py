"""The state of an unfinished training on disk: written whole or not at all, checked before it is believed."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from image_models.errors import ImageError
from image_models.files import whole


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers and strings under names; a SHA-256 of the bytes stands before them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with whole(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def read_state(path: Path, *, identity: str) -> dict[str, Any] | None:
    """What `write_state` wrote for the same ``identity``; None where there is nothing, or of another training.

    Raises ImageError for a damaged file.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    damaged = ImageError(
        f"{path}, the state of an unfinished training, is damaged: remove {path} and run "
        "`dermstack oof` again, which trains this fold anew"
    )
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise damaged
    try:
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise damaged from error
    return state if isinstance(state, dict) and state.get("identity") == identity else None
