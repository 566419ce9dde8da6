"""The local web page: a form for one patient's images and the ensemble's predictions for them. Needs the extra [app].

The server renders the page, which also works without JavaScript; it loads nothing from other hosts and stores nothing.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermstack.errors import ConfigError, DataError, DermstackError
from dermstack.report.review import band_sentences
from dermstack.serve.admission import MAX_UPLOAD_BYTES, Admission
from dermstack.serve.imported_runs import imported_with_images, inputs_text
from dermstack.serve.patient import Ensemble, Photo, Reading, read_patient, read_row
from dermstack.serve.questions import short_number
from dermstack.serve.standings import percent
from image_models.io.decode import SUFFIXES
from image_models.io.readers import DICOM_SUFFIXES
from stack.tables.missing_codes import MAX_AGE

MAX_PICTURES = 50
MAX_ASKED = 6  # columns without a role that the form asks for; the others are folded away
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_WILDCARDS = ("0.0.0.0", "::", "")
_DECISIONS = {"negative": "negative", "positive": "positive", "review": "for a person"}
_HERE = Path(__file__).parent
HEADERS = {  # of every answer, also of refusals
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

    Other sites cannot use it: the Host header is checked against DNS rebinding, Origin and Sec-Fetch-Site against their
    forms. A wildcard ``host`` (0.0.0.0 or ::) accepts every host name. Every answer has `HEADERS`.
    """
    files = {
        name: ((_HERE / name).read_bytes(), kind)
        for name, kind in (("app.css", "text/css"), ("app.js", "text/javascript"), ("app.svg", "image/svg+xml"))
    }
    if ensemble.bundle.takes_images and ensemble.bundle.imported_runs:
        raise ConfigError(imported_with_images(ensemble.bundle))
    page = _Page(ensemble)

    async def asset(request: Request) -> Response:
        content, kind = files[request.url.path.removeprefix("/")]
        return Response(content, media_type=kind)

    known = ["*"] if host in _WILDCARDS else [*_LOCAL_HOSTS, f"[{host}]" if ":" in host else host]
    starlette = Starlette(
        routes=[
            Route("/", page.empty, methods=["GET"]),
            Route("/", page.answer, methods=["POST"]),
            *(Route(f"/{name}", asset) for name in files),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=known, www_redirect=False),
            Middleware(Admission, refused=page.refusal),
        ],
        exception_handlers={HTTPException: page.refused, Exception: page.failed},
    )
    starlette.router.redirect_slashes = False  # there are no other paths, and the address would come from Host
    return _WithHeaders(starlette)  # outside of Starlette, whose answer to an exception no middleware sees


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


class _Page:
    """Renders the form, with or without an answer."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"percent": percent, "data_uri": _data_uri, "short_number": short_number}
        self.template = environment.from_string((_HERE / "app.html.j2").read_text(encoding="utf-8"))
        self.turn = asyncio.Lock()  # images of one patient at a time are in memory, those of others in files

    async def empty(self, request: Request) -> Response:
        """Returns the form before anything was sent."""
        return self._render({"together": self._together})

    async def answer(self, request: Request) -> Response:
        """Returns the predictions for the sent images, or the errors in the input."""
        try:
            names = self._further
            form = await request.form(max_files=MAX_PICTURES, max_fields=2 * MAX_PICTURES + 9 + len(names))
        except (ValueError, LookupError) as error:  # what the parser does not see as a fault of its input
            raise HTTPException(400, "The form cannot be read: send it with a browser.") from error
        try:
            known = {name: str(form.get(name) or "") for name in ("age", "sex", "site", "unit", "together")}
            known |= {name: str(form.get(name) or "") for name in names}
            filled: dict[str, str | bool] = {**known, "together": known["together"] == "yes"}
            try:
                async with self.turn:
                    if await request.is_disconnected():
                        raise ClientDisconnect  # `Admission` ends it quietly
                    reading = await self._read(form, known)
            except DermstackError as error:
                return self._render(filled, faults=str(error).split("\n"))
            return self._render(filled, reading=reading)
        finally:
            await form.close()

    def refusal(self, error: HTTPException) -> Response:
        """Returns an error page for a request that is refused."""
        page = self._render({"together": self._together}, faults=[str(error.detail)], status=error.status_code)
        page.headers.update(error.headers or {})
        return page

    async def refused(self, request: Request, error: Exception) -> Response:
        """Returns an error page for a request that Starlette or the form's parser refuses."""
        assert isinstance(error, HTTPException)
        return self.refusal(error)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Returns an error page for a fault of dermstack; the traceback is printed where the command runs."""
        return self.refusal(HTTPException(500, "The program failed: its terminal shows why."))

    async def _read(self, form: FormData, known: dict[str, str]) -> Reading:
        values = {question.csv: known[f"column_{number}"] for number, question in enumerate(self.ensemble.questions)}
        if not self.ensemble.bundle.takes_images:
            return await run_in_threadpool(
                read_row, self.ensemble, age=_age(known["age"]), sex=known["sex"] or None, site=known["site"] or None,
                values=values, predictions={
                    run.name: _number(known[f"prediction_{number}"], f"prediction of {run.name}")
                    for number, run in enumerate(self.ensemble.bundle.imported_runs)
                },
            )  # fmt: skip
        files = [part for part in form.getlist("pictures") if isinstance(part, UploadFile) and part.filename]
        sites = [str(part) for part in form.getlist("site_of")]
        if len(sites) != len(files):  # without JavaScript the form has one site for all images
            sites = [""] * len(files)
        units = [str(part) for part in form.getlist("unit_of")]
        if len(units) != len(files):  # likewise
            units = [""] * len(files)
        photos = [
            Photo(str(file.filename), await file.read(), site or known["site"] or None, unit or known["unit"] or None)
            for file, site, unit in zip(files, sites, units, strict=True)
        ]
        return await run_in_threadpool(
            read_patient, self.ensemble, photos, age=_age(known["age"]), sex=known["sex"] or None,
            together=known["together"] == "yes", values=values,
        )  # fmt: skip

    @property
    def _further(self) -> list[str]:
        """Names of the form's fields for columns without a role and for imported runs."""
        counts = {"column": len(self.ensemble.questions), "prediction": len(self.ensemble.bundle.imported_runs)}
        return [f"{kind}_{number}" for kind, count in counts.items() for number in range(count)]

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
                objective=ensemble.bundle.objective,
                columns=ensemble.bundle.columns,
                positive=ensemble.bundle.column_rules.positive or (1,),
                choices=ensemble.choices,
                takes_age=ensemble.takes_age,
                questions=list(enumerate(ensemble.questions)),
                imported=list(enumerate(ensemble.bundle.imported_runs)),
                inputs=inputs_text(ensemble.bundle),
                asked_first=MAX_ASKED,
                group=ensemble.group if ensemble.bundle.takes_images else None,
                takes_images=ensemble.bundle.takes_images,
                filled={"age": "", "sex": "", "site": "", "unit": "", **filled},
                accepted=",".join((*SUFFIXES, *DICOM_SUFFIXES)),
                most_pictures=MAX_PICTURES,
                most_bytes=MAX_UPLOAD_BYTES,
                oldest=MAX_AGE,
                band=(band := ensemble.bundle.review_band),
                band_sentences=band_sentences(band, ensemble.bundle.unit) if band else [],
                decisions=_DECISIONS,
                reading=reading,
                units=" and ".join(ensemble.asked_for_units) if ensemble.bundle.takes_images else "",
                unit=ensemble.bundle.unit,
                per=ensemble.bundle.per_text,
                faults=faults,
                busy=status >= 500,
            ),
            status,
        )


def _age(text: str) -> float | None:
    return _number(text, "age", "years")


def _number(text: str, what: str, unit: str = "a number") -> float | None:
    """Returns the number of a field; None where it is empty. Raises DataError for other text."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{what} {text!r} is not a number: give {unit}, or leave it empty") from error


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


class _WithHeaders:
    """ASGI middleware that adds `HEADERS` to every response, also to those of other middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"], *((name.lower().encode(), text.encode()) for name, text in HEADERS.items())
                ]  # fmt: skip
            await send(message)

        await self.app(scope, receive, send_with)
