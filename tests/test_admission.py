"""Which requests reach the page: those of its own form, well formed, in time, and not more than fit at once."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from unfitted_ensemble import unfitted_ensemble

from dermstack.serve import patient
from dermstack.serve.admission import MAX_UPLOAD_BYTES, Admission
from dermstack.serve.app import HEADERS, make_app

BOUNDARY = "part"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
App = Callable[[Scope, Receive, Send], object]


def stub_app(host: str = "127.0.0.1") -> App:
    """The page of an ensemble that scores nothing."""
    return make_app(unfitted_ensemble(), host=host)  # type: ignore[return-value]


shared_app = functools.cache(stub_app)


def scope_of(method: str, path: str, headers: dict[str, str] | list[tuple[bytes, bytes]]) -> Scope:
    if isinstance(headers, dict):
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}  # fmt: skip


async def asked(app: App, scope: Scope, body: list[bytes] | Receive = []) -> tuple[int, Headers, str]:  # noqa: B006
    """Status, headers and text of the answer; status 0 if there is none."""
    parts = [*body] if isinstance(body, list) else []
    sent: list[Message] = []

    async def receive() -> Message:
        part = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive if isinstance(body, list) else body, send)  # type: ignore[misc]
    if not sent:
        return 0, Headers({}), ""
    return sent[0]["status"], Headers(raw=sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:]).decode()


def ask(method: str = "GET", path: str = "/", body: bytes = b"", **headers: str) -> tuple[int, Headers, str]:
    named = {"Host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if method == "POST":
        named = {"Content-Type": FORM, "Content-Length": str(len(body)), **named}
    return asyncio.run(asked(shared_app(), scope_of(method, path, named), [body]))


EMPTY_FORM = f"--{BOUNDARY}--\r\n".encode()


def test_the_own_form_is_read() -> None:
    for headers in (
        {},
        {"Origin": "http://localhost:8000", "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
    ):
        status, _, text = ask("POST", body=EMPTY_FORM, **headers)
        assert status == 200
        assert "no image was given" in text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "origin", ["http://[", "http://]", "null", "", "http://localhost:8000.evil.example", "http://localhost:9", "\xff",
               "http://localhost:8000/", "localhost:8000", "ftp://localhost:8000"]
)  # fmt: skip
def test_every_other_origin_is_refused(method: str, origin: str) -> None:
    status, headers, text = ask(method, body=EMPTY_FORM, Origin=origin)
    assert status == 403
    assert headers["x-frame-options"] == "DENY"
    assert "Another page sent this request" in text


def test_what_another_site_makes_the_browser_send_is_refused_unless_it_is_a_link() -> None:
    for site in ("cross-site", "same-site", "nonsense", ""):
        assert ask("POST", body=EMPTY_FORM, Sec_Fetch_Site=site)[0] == 403
        assert (
            ask("POST", body=EMPTY_FORM, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document")[0]
            == 403
        )
        assert ask(Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image")[0] == 403
        assert ask(Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe")[0] == 403
        assert ask(path="/app.js", Sec_Fetch_Site=site, Sec_Fetch_Dest="script")[0] == 403
        assert ask(Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document")[0] == 200


_FIELD_NAMES = st.sampled_from([
    "host", "origin", "content-type", "content-length", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "cookie",
    "transfer-encoding", "accept", "range", "expect", "referer",
])  # fmt: skip
_VALUES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([
        b"http://[", b"[", b"[::1", b"localhost:99999999", b"a b", b"multipart/form-data", FORM.encode() + b"\xff",
        b"multipart/form-data; charset=idna; boundary=part", b"multipart/form-data; charset=undefined; boundary=part",
        b"multipart/form-data; boundary*=utf-8''%00", b"multipart/form-data; boundary=" + b"x" * 5000, b"9" * 5000,
        b"-1", b"1e3", "٣".encode(), b"text/plain", b"application/x-www-form-urlencoded", b"cross-site", FORM.encode(),
    ]),
)  # fmt: skip


@settings(max_examples=150)
@given(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS"]),
    st.sampled_from(["/", "/app.css", "/app.css/", "//evil.example", "/../app.py"]),
    st.sampled_from(["127.0.0.1", "0.0.0.0"]),  # with the second, no host name is checked
    st.lists(st.tuples(_FIELD_NAMES, _VALUES), max_size=4),
    st.booleans(),
)
def test_any_header_ends_in_an_answer_with_the_headers_and_never_in_a_fault_of_the_program(
    method: str, path: str, host: str, fields: list[tuple[str, bytes]], usual: bool
) -> None:
    headers = [(name.encode(), value) for name, value in fields]
    names = {name for name, _ in fields}
    if usual:  # beside the right headers, so that the wrong one reaches the form's parser
        right = {"host": "localhost:8000", "content-type": FORM, "content-length": str(len(EMPTY_FORM))}
        headers += [(name.encode(), value.encode()) for name, value in right.items() if name not in names]
    status, answered, _ = asyncio.run(asked(shared_app(host), scope_of(method, path, headers), [EMPTY_FORM]))
    assert status == 200 or 400 <= status < 500
    assert {name: answered[name] for name in HEADERS} == HEADERS
    assert all(len(answered.getlist(name)) == 1 for name in HEADERS)


@settings(max_examples=200)
@given(st.binary(max_size=80), st.binary(max_size=80), st.booleans())
def test_any_form_ends_in_an_answer(head: bytes, content: bytes, named: bool) -> None:
    disposition = b'Content-Disposition: form-data; name="pictures"; ' if named else b""
    body = b"--part\r\n" + disposition + head + b"\r\n\r\n" + content + b"\r\n--part--\r\n"
    status, answered, _ = ask("POST", body=body)
    assert status in (200, 400)
    assert answered["x-frame-options"] == "DENY"


def test_what_is_no_form_of_a_page_is_refused() -> None:
    assert ask("POST", body=b"age=3", Content_Type="application/x-www-form-urlencoded")[0] == 415
    assert ask("POST", body=EMPTY_FORM, Content_Type="multipart/form-data")[0] == 415
    assert ask("POST", body=EMPTY_FORM, Content_Length="-1")[0] == 411
    assert ask("PUT")[0] == 405
    assert ask("PUT")[1]["allow"]


def test_a_fault_of_the_program_has_the_headers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    app = stub_app()

    async def run() -> tuple[int, Headers, str]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise ZeroDivisionError

        scope = scope_of("POST", "/", {"Host": "localhost", "Content-Type": FORM, "Content-Length": "9"})
        with pytest.raises(ZeroDivisionError):  # the server prints it
            await app(scope, receive, send)  # type: ignore[misc]
        return sent[0]["status"], Headers(raw=sent[0]["headers"]), sent[1]["body"].decode()

    status, headers, text = asyncio.run(run())
    assert status == 500
    assert headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert "its terminal shows why" in text


def test_a_browser_that_leaves_is_no_fault() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    scope = scope_of("POST", "/", {"Host": "localhost", "Content-Type": FORM, "Content-Length": "9"})
    assert asyncio.run(asked(stub_app(), scope, gone))[0] == 0
    too_much = scope_of("POST", "/", {"Host": "localhost", "Content-Type": FORM, "Content-Length": str(300 << 20)})
    assert asyncio.run(asked(stub_app(), too_much, gone))[0] == 0


def test_nobody_is_scored_for_a_browser_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermstack.serve.app.read_patient", lambda *_, **__: pytest.fail("scored"))
    messages = [{"type": "http.request", "body": EMPTY_FORM, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    scope = scope_of("POST", "/", {"Host": "localhost", "Content-Type": FORM, "Content-Length": str(len(EMPTY_FORM))})
    assert asyncio.run(asked(stub_app(), scope, receive))[0] == 0
    assert messages == []


class Bodies:
    """A form of ``n_bytes`` whose second half comes when ``go`` is set."""

    def __init__(self, n_bytes: int) -> None:
        self.halves = [b"a" * (n_bytes // 2), b"b" * (n_bytes - n_bytes // 2)]
        self.go = asyncio.Event()

    async def __call__(self) -> Message:
        if len(self.halves) == 1:
            await self.go.wait()
        return {"type": "http.request", "body": self.halves.pop(0), "more_body": bool(self.halves)}


async def counted(scope: Scope, receive: Receive, send: Send) -> None:
    n_bytes = len(await Request(scope, receive).body())
    await PlainTextResponse(str(n_bytes))(scope, receive, send)


def refused(error: HTTPException) -> Response:
    return PlainTextResponse(str(error.detail), error.status_code, error.headers)


def form_scope(n_bytes: int) -> Scope:
    return scope_of("POST", "/", {"Host": "localhost", "Content-Type": FORM, "Content-Length": str(n_bytes)})


def test_all_forms_in_flight_share_one_limit_and_give_their_bytes_back() -> None:
    async def run() -> None:
        admission = Admission(counted, refused=refused, max_bytes=100)
        first, second = Bodies(60), Bodies(60)
        second.go.set()
        held = asyncio.ensure_future(asked(admission, form_scope(60), first))
        await asyncio.sleep(0)
        status, headers, text = await asked(admission, form_scope(60), second)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "10", "close")
        assert "busy with the images of 1 other request" in text
        assert second.halves == [], "a browser shows no answer before it has sent the whole form"
        assert (await asked(admission, form_scope(40), [b"a" * 40]))[0] == 200
        assert admission.bytes_in_flight == 60
        first.go.set()
        assert (await held)[0] == 200
        assert (await asked(admission, form_scope(100), [b"a" * 100]))[0] == 200
        assert (await asked(admission, form_scope(101), [b"a" * 101]))[0] == 413
        assert (admission.bytes_in_flight, admission.forms_in_flight) == (0, 0)

    asyncio.run(run())


def test_a_form_that_is_longer_than_it_states_is_given_up_where_its_stated_bytes_end() -> None:
    parts = [b"a" * 5, b"b" * 5, b"c" * 5, b"d" * 5]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def run() -> None:
        admission = Admission(counted, refused=refused, max_bytes=100)
        scope = form_scope(9)
        scope["headers"].append((b"transfer-encoding", b"chunked"))  # a server then ignores the length
        status, headers, _ = await asked(admission, scope, receive)
        assert (status, headers["connection"]) == (413, "close")
        assert len(parts) == 2
        assert (admission.bytes_in_flight, admission.forms_in_flight) == (0, 0)
        assert (await asked(admission, form_scope(9), [b"a" * 5, b"b" * 4]))[0] == 200

    asyncio.run(run())


def test_the_number_of_forms_in_flight_is_limited_and_a_killed_one_no_longer_counts() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    async def run() -> None:
        admission = Admission(counted, refused=refused, max_forms=2)
        bodies = [Bodies(4), Bodies(4)]
        held = [asyncio.ensure_future(asked(admission, form_scope(4), body)) for body in bodies]
        await asyncio.sleep(0)
        assert (await asked(admission, form_scope(4), [b"aaaa"]))[0] == 503
        held[0].cancel()
        await asyncio.gather(*held[:1], return_exceptions=True)
        assert (await asked(admission, form_scope(4), [b"aaaa"]))[0] == 200
        bodies[1].go.set()
        assert (await held[1])[0] == 200
        admission.app = broken
        assert (await asked(admission, form_scope(4), [b"aaaa"]))[0] == 0
        assert (admission.bytes_in_flight, admission.forms_in_flight) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("n_bytes", [60, MAX_UPLOAD_BYTES + 1])
def test_a_form_that_comes_too_slowly_is_given_up(n_bytes: int) -> None:
    async def run() -> None:
        admission = Admission(counted, refused=refused, grace_seconds=0.2)
        silent = Bodies(60)
        status, headers, text = await asked(admission, form_scope(n_bytes), silent)
        assert (status, headers["connection"]) == (408, "close")
        assert "too slowly" in text
        assert admission.bytes_in_flight == 0

    asyncio.run(run())


def test_a_form_that_keeps_coming_has_time_for_its_size() -> None:
    async def run() -> None:
        admission = Admission(counted, refused=refused, grace_seconds=0.5)
        parts = [b"a" * (64 << 10)] * 4

        async def receive() -> Message:
            await asyncio.sleep(0.2)
            return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

        assert (await asked(admission, form_scope(256 << 10), receive))[2] == str(256 << 10)

    asyncio.run(run())


def test_one_patients_images_at_a_time_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def slow(*_: object, **__: object) -> patient.Reading:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return patient.Reading([], None, [])

    monkeypatch.setattr("dermstack.serve.app.read_patient", slow)
    app = stub_app()

    async def one() -> int:
        parts = [EMPTY_FORM]
        waits = asyncio.Event()

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await waits.wait()
            raise AssertionError

        scope = form_scope(len(EMPTY_FORM))
        return (await asked(app, scope, receive))[0]

    async def run() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(5)))

    assert asyncio.run(run()) == [200] * 5
    assert most == 1
