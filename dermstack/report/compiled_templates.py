"""Keeps the compiled templates of a page for the next page of the same process."""

from __future__ import annotations

from types import CodeType

from jinja2.bccache import Bucket, BytecodeCache


class CompiledTemplates(BytecodeCache):
    """Compiled templates by name and content; to compile those of the report takes longer than to render it.

    Environments may share it that compile alike: with the same autoescaping, and filters of the same name and meaning.
    """

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType | None] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Fills in the code of a template that was compiled before."""
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keeps the code of a template that was compiled just now."""
        self._code[bucket.key, bucket.checksum] = bucket.code
