"""What a hostile variant of a bundle is: a name and one change of the bundle's folder or of its manifest's content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Content = dict[str, Any]
Change = Callable[[Path, Content], None]
Variant = tuple[str, Change]


def replaced(name: str, content: bytes | Callable[[bytes], bytes]) -> Change:
    """A change of one file's bytes."""

    def change(folder: Path, _: Content) -> None:
        path = folder / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return change
