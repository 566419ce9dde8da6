"""The local page as a program meets it: what it answers, whom it turns away, how it starts and ends."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli
from imported_experiment import command_error
from starlette.testclient import TestClient
from unfitted_ensemble import unfitted_ensemble

from dermstack.errors import ConfigError
from dermstack.serve.admission import MAX_UPLOAD_BYTES
from dermstack.serve.app import is_loopback, listen, make_app
from dermstack.serve.connections import MAX_CONNECTIONS

ROOT = Path(__file__).parents[1]
BOUNDARY = "-----part"


@contextmanager
def started(bundle: Path, temporary: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`dermstack app` on a free port; it is stopped at the end."""
    code = "import dermstack.cli.main; dermstack.cli.main.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "app", "--bundle", str(bundle), "--port", "0", "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"PATH": "", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"open http://127\.0\.0\.1:(\d+)/ in a browser; stop with Ctrl-C\n", line)
        assert found, line + process.stdout.read()
        yield int(found[1]), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def app(bundled_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Its port, and where its temporary files go."""
    temporary = tmp_path_factory.mktemp("temporary")
    with started(bundled_experiment / "bundle.zip", temporary) as (port, _):
        yield port, temporary


def form(files: dict[str, bytes], **fields: str) -> bytes:
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
             for name, value in fields.items()]  # fmt: skip
    for name, content in files.items():
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def ask(port: int, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str) -> tuple:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body is not None else {}
    connection.request(method, path, body=body, headers={**kind, **headers})
    response = connection.getresponse()
    made = response.status, dict(response.headers), response.read().decode()
    connection.close()
    return made


def picture(small_data: Path) -> bytes:
    return next((small_data / "images").glob("*.png")).read_bytes()


@pytest.mark.slow
def test_a_form_is_answered_and_leaves_nothing_behind(app: tuple[int, Path], small_data: Path) -> None:
    port, temporary = app
    before = {path.name for path in temporary.iterdir()}
    status, _, text = ask(
        port, "POST", body=form({"a.png": picture(small_data), "b.png": picture(small_data)}, age="50", together="yes")
    )
    assert status == 200
    assert "2 images scored" in text
    assert "Research software, not a medical device." in text
    heats = text.count("Regions that raise the risk")
    assert heats + text.count("found no region that raises the risk") == 2
    assert text.count("data:image/jpeg;base64,") == 2 + heats
    assert {path.name for path in temporary.iterdir()} == before


@pytest.mark.slow
def test_what_is_wrong_is_told_in_the_page_and_markup_in_a_name_is_text(
    app: tuple[int, Path], small_data: Path
) -> None:
    port, temporary = app
    before = {path.name for path in temporary.iterdir()}
    status, _, text = ask(port, "POST", body=form({"<b>x.txt": b"text", "a.png": picture(small_data)}, age="50"))
    assert status == 200
    assert "Not scored" in text
    assert "&lt;b&gt;x.txt: not an image" in text
    assert "<b>x" not in text
    assert 'value="50"' in text
    assert {path.name for path in temporary.iterdir()} == before
    for fields, expected in (
        ({"age": "old"}, "is not a number"),
        ({"age": "-3"}, "age -3 is out of range: give years from 0 to 120"),
        ({"sex": "x"}, "does not occur in training"),
    ):
        assert expected in ask(port, "POST", body=form({"a.png": picture(small_data)}, **fields))[2]
    assert "no image was given" in ask(port, "POST", body=form({}))[2]


@pytest.mark.slow
def test_other_names_other_pages_and_too_much_are_turned_away(app: tuple[int, Path], small_data: Path) -> None:
    port, _ = app
    body = form({"a.png": picture(small_data)})
    assert ask(port, Host="evil.example")[0] == 400
    assert ask(port, Host=f"evil.example:{port}")[0] == 400
    assert ask(port, Host=f"localhost:{port}")[0] == 200
    assert ask(port, Host=f"[::1]:{port}")[0] == 200
    assert ask(port, "POST", body=body, Origin="https://evil.example")[0] == 403
    assert ask(port, "POST", body=body, Origin="null")[0] == 403
    assert ask(port, "POST", body=body, Origin="http://[")[0] == 403
    assert ask(port, "POST", body=body, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ask(port, "POST", body=body, Origin=f"http://127.0.0.1:{port}")[0] == 200
    status, _, text = ask(port, "POST", body=bytes(MAX_UPLOAD_BYTES + 1))
    assert status == 413
    assert "send fewer at a time" in text
    assert "Too many files" in ask(port, "POST", body=form({f"{i}.png": b"" for i in range(51)}))[2]
    assert ask(port, path="/app.html.j2")[0] == 404
    assert ask(port, path="/../app.py")[0] == 404


def said(**manifest: Any) -> str:
    """The words of the page of a bundle with these entries of the manifest, before any image is scored."""
    client = TestClient(make_app(unfitted_ensemble(**manifest)), base_url="http://127.0.0.1")
    return " ".join(unescape(re.sub("<[^>]+>", "", client.get("/").text)).split())


def test_the_score_of_a_regression_on_ranks_is_called_no_mean_of_ranks() -> None:
    for chosen, is_mean in (
        ("rank_mean", True),
        ("maximum/rank_mean", True),
        ("rank_logistic", False),
        ("mean", False),
    ):
        assert ("a mean of ranks from 0 to 1, not a probability" in said(chosen=chosen)) == is_mean


def test_the_page_says_which_images_are_positive() -> None:
    assert "9 images, 33 % of them positive (those with target = 1 in the training table)." in said()
    words = {"table": {"positive": ["MEL", "BCC"]}, "columns": {"id": "image", "target": "dx"}}
    assert "positive (those with dx = MEL or BCC in the training table)." in said(**words)
    sides = {"predict_per": {"columns": ["side"], "target": "any", "pooling": "mean"}}
    assert "9 units of images, 33 % of them positive (those with an image with target = 1 in the" in said(**sides)


@pytest.mark.slow
def test_a_browser_is_told_to_fetch_nothing_and_keep_nothing(app: tuple[int, Path]) -> None:
    for path in ("/", "/app.css", "/app.js", "/app.svg"):
        status, headers, text = ask(app[0], path=path)
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert ask(app[0], Host="evil.example")[1]["content-security-policy"].startswith("default-src 'none'; ")


@pytest.mark.slow
def test_hundreds_of_silent_connections_and_killed_uploads_leave_the_page_in_use_and_print_nothing(
    bundled_experiment: Path, small_data: Path, tmp_path: Path
) -> None:
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
    with started(bundled_experiment / "bundle.zip", tmp_path) as (port, process), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(b"GET / HT")
        for part in (b"", b"--" + BOUNDARY.encode(), form({"a.png": picture(small_data)})[:-30]):
            with socket.create_connection(("127.0.0.1", port)) as killed:
                killed.sendall(head.encode() + b"Content-Length: 99999\r\n\r\n" + part)
        assert ask(port)[0] == 200
        sockets = [
            link for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.readlink().name.startswith("socket")
        ]
        assert len(sockets) <= MAX_CONNECTIONS + 10
        assert "1 image scored" in ask(port, "POST", body=form({"a.png": picture(small_data)}))[2]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "stopped; no image was stored\n"


@pytest.mark.slow
def test_uploads_at_once_share_the_limit_and_those_that_do_not_fit_are_told_when_to_come_again(
    app: tuple[int, Path],
) -> None:
    port, _ = app
    content = form({"a.png": bytes(MAX_UPLOAD_BYTES * 2 // 3)})
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(port, "POST", body=content), range(3)))
    refused = [(headers, text) for status, headers, text in answers if status == 503]
    assert {status for status, *_ in answers} == {200, 503}
    for headers, text in refused:
        assert int(headers["retry-after"]) > 0
        assert headers["x-frame-options"] == "DENY"
        assert "busy with the images" in text
    assert ask(port, "POST", body=form({"a.png": b"no picture"}))[0] == 200


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(bundled_experiment: Path, tmp_path: Path) -> None:
    with started(bundled_experiment / "bundle.zip", tmp_path) as (port, process):
        assert ask(port)[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "stopped; no image was stored\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # torch leaves an empty folder


def test_a_port_in_use_is_a_mistake_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = command_error(capsys, "app", "--bundle", str(tmp_path), "--port", str(port))
    assert f"cannot listen on --host 127.0.0.1 --port {port}" in message
    assert "choose another port" in message
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


def test_a_bundle_that_is_none_is_a_mistake_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such bundle" in command_error(capsys, "app", "--bundle", str(tmp_path / "none.zip"), "--port", "0")


@pytest.mark.slow
def test_an_address_that_others_reach_is_warned_of(
    bundled_experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dermstack.serve.connections.serve", lambda app, listener, headers: None)
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        assert run_cli("app", "--bundle", str(bundled_experiment / "bundle.zip"), "--host", host, "--port", "0") == 0
        assert ("no login" in capsys.readouterr().out) is warned
    assert is_loopback("::1")
    assert not is_loopback("192.168.0.7")
    assert not is_loopback("example.org")
