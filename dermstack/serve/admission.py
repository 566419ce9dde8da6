"""Checks each request to the app before the page sees it: its sender, its headers, and the bytes in flight of all.

All uploads together have one limit, as the forms of several browsers are in memory and on disk at the same time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD_BYTES = 256 << 20  # of all requests in flight, so also of one
MAX_FORMS = 8  # forms in flight: the ensemble scores one patient at a time, the others wait
RETRY_SECONDS = 10  # what Retry-After says
BODY_GRACE_SECONDS = 30.0  # a form may pause this long ...
BODY_BYTES_PER_SECOND = 64 << 10  # ... and must arrive at this rate on average
_MAX_DRAINED_BYTES = 4 * MAX_UPLOAD_BYTES

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_FORM = re.compile(r"multipart/form-data *; *boundary=(\"?)[-0-9A-Za-z'()+_,./:=?]{1,70}\1 *", re.IGNORECASE)
_READ_ONCE = ("host", "origin", "content-type", "content-length", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")


class Admission:
    """ASGI middleware that refuses requests of other sites, malformed headers, slow forms and too many bytes.

    ``refused`` renders a refusal. The limits are those of this module, and arguments for tests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        refused: Callable[[HTTPException], Response],
        max_bytes: int = MAX_UPLOAD_BYTES,
        max_forms: int = MAX_FORMS,
        grace_seconds: float = BODY_GRACE_SECONDS,
    ) -> None:
        self.app = app
        self.refused = refused
        self.max_bytes = max_bytes
        self.max_forms = max_forms
        self.grace_seconds = grace_seconds
        self.bytes_in_flight = 0
        self.forms_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on to the page, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            check_sender(headers, scope["method"])
            if scope["method"] != "POST":
                await self.app(scope, receive, send)
                return
            n_bytes = form_bytes(headers)
            paced = _paced(receive, n_bytes, self.grace_seconds)
            try:
                with self._admitted(n_bytes):
                    await self.app(scope, paced, send)
            except _Refused as refusal:
                # A browser shows no answer before it has sent the whole form.
                if n_bytes <= _MAX_DRAINED_BYTES:
                    async for _ in Request(scope, paced).stream():
                        pass
                raise refusal.error from None
        except HTTPException as error:
            await self.refused(error)(scope, receive, send)
        except ClientDisconnect:  # nobody waits for an answer
            return

    @contextmanager
    def _admitted(self, n_bytes: int) -> Iterator[None]:
        """Counts a form of ``n_bytes`` as in flight; raises `_Refused` with 413 or 503 if it does not fit."""
        if n_bytes > self.max_bytes:
            raise _Refused(
                413, f"The images have {n_bytes >> 20:,} MiB, more than {self.max_bytes >> 20}: send fewer at a time."
            )
        if self.forms_in_flight >= self.max_forms or self.bytes_in_flight + n_bytes > self.max_bytes:
            raise _Refused(
                503,
                f"The program is busy with the images of {self.forms_in_flight} other requests: send these again in "
                f"{RETRY_SECONDS} seconds.",
                {"Retry-After": str(RETRY_SECONDS)},
            )
        self.forms_in_flight += 1
        self.bytes_in_flight += n_bytes
        try:
            yield
        finally:
            self.forms_in_flight -= 1
            self.bytes_in_flight -= n_bytes


class _Refused(Exception):
    """A form that is refused before the page sees it."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.error = HTTPException(status, detail, {"Connection": "close", **(headers or {})})


def check_sender(headers: Headers, method: str) -> None:
    """Raises HTTPException for malformed headers (400) and for what the page of another site sent (403).

    A browser says with Origin or Sec-Fetch-Site who asks. From elsewhere only a link may come, which loads a page that
    the other site cannot read: the resource isolation policy of https://web.dev/articles/fetch-metadata.
    """
    for name in _READ_ONCE:
        if len(headers.getlist(name)) > 1:
            raise HTTPException(400, f"The request has two headers {name}: open this address in a browser.")
    host = headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise HTTPException(400, "The request has no valid Host header: open this address in a browser.")
    origin = headers.get("origin")
    # The text is compared, not parsed: an origin that is no URL is another origin.
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise HTTPException(403, _OTHER_PAGE)
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        navigation = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if method not in ("GET", "HEAD") or not navigation:
            raise HTTPException(403, _OTHER_PAGE)


_OTHER_PAGE = "Another page sent this request: open this address in a browser and use the form here."


def form_bytes(headers: Headers) -> int:
    """Returns the length of a form; raises HTTPException without one (411) or for what is no form of a page (415)."""
    length = headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise HTTPException(411, "The request does not state its Content-Length: send the form with a browser.")
    if not _FORM.fullmatch(headers.get("content-type", "")):
        raise HTTPException(
            415, "The request is no form (multipart/form-data with a boundary): send the form with a browser."
        )
    return int(length)


def _paced(receive: Receive, stated_bytes: int, grace_seconds: float) -> Callable[[], Awaitable[Message]]:
    """Returns ``receive`` that raises HTTPException where the body is too slow (408) or longer than stated (413).

    A request that has a Transfer-Encoding too may state any length, and only the stated one counts as in flight.
    """
    clock = asyncio.get_running_loop().time
    start, n_bytes, complete = clock(), 0, False

    async def receive_in_time() -> Message:
        nonlocal n_bytes, complete
        if complete:  # from now on it waits for the end of the connection
            return await receive()
        try:
            async with asyncio.timeout_at(start + grace_seconds + n_bytes / BODY_BYTES_PER_SECOND):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, "The images came too slowly: send fewer at a time.", {"Connection": "close"}
            ) from None
        n_bytes += len(message.get("body", b""))
        if n_bytes > stated_bytes:
            raise HTTPException(
                413, "The request is longer than its Content-Length: send the form with a browser.",
                {"Connection": "close"},
            )  # fmt: skip
        complete = not message.get("more_body", False)
        return message

    return receive_in_time
