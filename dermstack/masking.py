"""Masks passwords and tokens in everything that leaves the process: messages, hints, logs and tracebacks.

It stands below all packages, beside `dermstack.errors`. `mask_secrets` alone knows what a secret looks like;
`masked_streams` puts it before stdout and stderr, and `DermstackError` before the text of every error.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

MASK = "***"
_KEY = r"(?:\w*(?:passw(?:or)?d|passwd|passphrase|pwd|secret|token)|(?:\w*[_-])?api[_-]?key|access[_-]?key)"
# user:password@ of a URL, up to the last @: a password may hold an @ that nobody escaped. Each pattern passes over a
# text once, as a damaged file may put millions of characters into a message: only the scheme's last character is
# matched, and what follows the user is never given back.
_IN_URL = re.compile(r"""(?P<before>[\w+.-]://[^\s/:@'"]*+:)(?P<rest>[^\s'"]++)""")
# password=… of a query or a connection string, 'password': '…' of a printed dict, and "password: …" of YAML
_QUOTED = re.compile(rf"""(?P<before>\b{_KEY}['"]?\s*[:=]\s*(?P<quote>['"]))(?:(?!(?P=quote)).)+""", re.IGNORECASE)
_PLAIN = re.compile(rf"""(?P<before>\b{_KEY}=)[^\s&;,'"()\]}}]+""", re.IGNORECASE)


def mask_secrets(text: str) -> str:
    """Returns ``text`` with the password of each URL, and the value of each password or token, replaced by ``***``.

    >>> mask_secrets("postgresql://me:Sup3r@Secret@host/db?sslpassword=x1&timeout=3")
    'postgresql://me:***@host/db?sslpassword=***&timeout=3'
    """
    text = _IN_URL.sub(_masked_url, text)
    for pattern in (_QUOTED, _PLAIN):
        text = pattern.sub(rf"\g<before>{MASK}", text)
    return text


def _masked_url(found: re.Match[str]) -> str:
    password, at, host = found["rest"].rpartition("@")
    return f"{found['before']}{MASK}{at}{host}" if password else found[0]


class MaskedStream:
    """A text stream that masks secrets in what is written to it; everything else is the stream's own.

    It has no ``buffer``, through which a writer could get past it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the masked text; returns the length of the text that was given."""
        self._stream.write(mask_secrets(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes each of the lines, masked."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "_stream"):
            raise AttributeError(name)
        return getattr(self._stream, name)


def mask_streams() -> None:
    """Masks secrets in everything that this process writes to stdout and stderr from now on."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), MaskedStream) and stream is not None:
            setattr(sys, name, MaskedStream(stream))


def print_masked_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Prints an uncaught exception as Python does (`sys.excepthook`), with secrets masked."""
    print(mask_secrets("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


@contextmanager
def masked_streams() -> Iterator[None]:
    """Masks secrets in everything that is written to stdout and stderr inside the context."""
    before = sys.stdout, sys.stderr
    mask_streams()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
