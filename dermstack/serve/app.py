"""The local web page: a form for one patient's images and the ensemble's predictions for them. Needs the extra [app].

The server renders the page, which also works without JavaScript; it loads nothing from other hosts and stores nothing.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermstack.errors import ConfigError, DataError, DermstackError
from dermstack.serve.patient import Ensemble, Photo, Reading, percent, read_patient
from image_models.io.decode import SUFFIXES
from image_models.io.readers import DICOM_SUFFIXES
from stack.metrics.scores import OBJECTIVE_LABELS
from stack.missing_codes import MAX_AGE

MAX_PICTURES = 50
MAX_UPLOAD_BYTES = 256 << 20  # of one request, all images together
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_WILDCARDS = ("0.0.0.0", "::", "")
_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, a browser would send `Origin: null` with the form
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(ensemble: Ensemble, *, host: str = "127.0.0.1") -> ASGIApp:
    """Returns the page as an ASGI application that accepts the host names of this machine and ``host``.

    Other sites cannot use it: the Host header is checked against DNS rebinding, the Origin header against their forms.
    A wildcard ``host`` (0.0.0.0 or ::) accepts every host name.
    """
    files = {
        name: ((_HERE / name).read_bytes(), kind)
        for name, kind in (("app.css", "text/css"), ("app.js", "text/javascript"), ("app.svg", "image/svg+xml"))
    }
    page = _Page(ensemble)

    async def asset(request: Request) -> Response:
        content, kind = files[request.url.path.removeprefix("/")]
        return Response(content, media_type=kind)

    known = ["*"] if host in _WILDCARDS else [*_LOCAL_HOSTS, f"[{host}]" if ":" in host else host]
    return Starlette(
        routes=[
            Route("/", page.empty, methods=["GET"]),
            Route("/", page.answer, methods=["POST"]),
            *(Route(f"/{name}", asset) for name in files),
        ],
        middleware=[
            Middleware(_WithHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=known, www_redirect=False),
        ],
        exception_handlers={HTTPException: page.refused},
    )


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; ``port`` 0 takes any free port. Raises ConfigError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on --host {host} --port {port} ({reason}): choose another port, or stop the program that "
            "uses it"
        ) from error


def is_loopback(host: str) -> bool:
    """Returns True if only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answers requests until Ctrl-C, then returns."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=3
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after its shutdown
        return


class _Page:
    """Renders the form, with or without an answer."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"percent": percent, "data_uri": _data_uri}
        self.template = environment.from_string((_HERE / "app.html.j2").read_text(encoding="utf-8"))

    async def empty(self, request: Request) -> Response:
        """Returns the form before anything was sent."""
        return self._render({"together": self._together})

    async def answer(self, request: Request) -> Response:
        """Returns the predictions for the sent images, or the errors in the input."""
        await _check_sender(request)
        async with request.form(max_files=MAX_PICTURES, max_fields=MAX_PICTURES + 8) as form:
            known = {name: str(form.get(name) or "") for name in ("age", "sex", "site", "together")}
            filled: dict[str, str | bool] = {**known, "together": known["together"] == "yes"}
            try:
                reading = await self._read(form, known)
            except DermstackError as error:
                return self._render(filled, faults=str(error).split("\n"))
        return self._render(filled, reading=reading)

    async def refused(self, request: Request, error: Exception) -> Response:
        """Returns an error page for a request that the library or `_check_sender` refuses."""
        assert isinstance(error, HTTPException)
        return self._render({"together": self._together}, faults=[str(error.detail)], status=error.status_code)

    async def _read(self, form: FormData, known: dict[str, str]) -> Reading:
        files = [part for part in form.getlist("pictures") if isinstance(part, UploadFile) and part.filename]
        sites = [str(part) for part in form.getlist("site_of")]
        if len(sites) != len(files):  # without JavaScript the form has one site for all images
            sites = [""] * len(files)
        photos = [
            Photo(str(file.filename), await file.read(), (site or known["site"]) or None)
            for file, site in zip(files, sites, strict=True)
        ]
        return await run_in_threadpool(
            read_patient, self.ensemble, photos, age=_age(known["age"]), sex=known["sex"] or None,
            together=known["together"] == "yes",
        )  # fmt: skip

    @property
    def _together(self) -> bool:
        """Whether images form one group by default: yes if the groups of training were patients, no if lesions."""
        return self.ensemble.group is not None and "lesion" not in self.ensemble.group.lower()

    def _render(
        self,
        filled: dict[str, str | bool],
        *,
        reading: Reading | None = None,
        faults: Sequence[str] = (),
        status: int = 200,
    ) -> Response:
        ensemble = self.ensemble
        return HTMLResponse(
            self.template.render(
                manifest=ensemble.bundle.manifest,
                selection_note=ensemble.bundle.selection_note,
                objective=OBJECTIVE_LABELS[ensemble.bundle.manifest["objective"]],
                columns=ensemble.bundle.columns,
                choices=ensemble.choices,
                group=ensemble.group,
                filled={"age": "", "sex": "", "site": "", **filled},
                accepted=",".join((*SUFFIXES, *DICOM_SUFFIXES)),
                most_pictures=MAX_PICTURES,
                most_bytes=MAX_UPLOAD_BYTES,
                oldest=MAX_AGE,
                reading=reading,
                faults=faults,
            ),
            status,
        )


async def _check_sender(request: Request) -> None:
    """Raises HTTPException for a form that another page sent (403), has no length (411) or is too large (413)."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "Another page sent this form: open this address in a browser and use the form here.")
    length = request.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        raise HTTPException(411, "The request does not state its Content-Length: send the form with a browser.")
    if int(length) > MAX_UPLOAD_BYTES:
        async for _ in request.stream():  # a browser shows no answer before it has sent the whole form
            pass
        raise HTTPException(
            413, f"The images have {int(length) >> 20:,} MiB, more than {MAX_UPLOAD_BYTES >> 20}: send fewer at a time."
        )


def _age(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"age {text!r} is not a number: give years, or leave it empty") from error


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


class _WithHeaders:
    """ASGI middleware that adds `_HEADERS` to every response, also to those of other middleware."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"], *((name.lower().encode(), text.encode()) for name, text in _HEADERS.items())
                ]  # fmt: skip
            await send(message)

        await self.app(scope, receive, send_with)
