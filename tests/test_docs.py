"""What is written for readers holds: links lead somewhere, commands parse, configs are valid, snippets run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import typer

import dermstack
from dermstack.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
GENERATED = re.compile(r"<!-- [\w ]+: written by `python -m reference` -->.*?<!-- end of [\w ]+ -->", re.DOTALL)
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md", *PAGES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return [code for kind, code in FENCED.findall(path.read_text(encoding="utf-8")) if kind == language]


def code_lines(path: Path) -> list[str]:
    """Every line of code that is shown, fenced or indented; one that ends in a backslash goes on in the next."""
    text = re.sub(r" *\\\n *", " ", GENERATED.sub("", path.read_text(encoding="utf-8")))
    fenced = [line for _, code in FENCED.findall(text) for line in code.splitlines()]
    return fenced + [line.strip() for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]


def inline_code(path: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", path.read_text(encoding="utf-8")))


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def shown_commands() -> Iterator[tuple[str, str]]:
    for path in TEXTS:
        for line in code_lines(path):
            if match := re.match(r"(?:\$ )?(?:\.venv/bin/)?dermstack (.*)", line):
                yield named(path), match[1]


def shown_targets() -> Iterator[tuple[str, str]]:
    for path in TEXTS:
        for code in code_lines(path) + inline_code(path):
            if match := re.match(r"make ([a-z-]+)", code):
                yield named(path), match[1]


def mentioned_commands() -> Iterator[tuple[str, str]]:
    for path in TEXTS:
        for code in inline_code(path):
            if match := re.match(r"dermstack (.*)", code):
                yield named(path), match[1]


@pytest.mark.parametrize(("where", "line"), list(shown_commands()))
def test_a_command_that_is_shown_parses(where: str, line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    if name in {"--help", "--version", "--install-completion", "--show-completion"}:
        return
    commands()[name].make_context(name, arguments)  # raises for an unknown option and for what is missing


@pytest.mark.parametrize(("where", "code"), list(mentioned_commands()))
def test_a_command_that_is_mentioned_exists_with_its_options(where: str, code: str) -> None:
    name, *words = code.split()
    known = {"--help"} if name == "<command>" else set()
    if name not in {"--help", "--version", "--install-completion", "--show-completion", "<command>"}:
        known |= {
            written for parameter in commands()[name].params for written in [*parameter.opts, *parameter.secondary_opts]
        }
    assert {word for word in words if word.startswith("-")} <= known


def test_an_option_that_is_mentioned_alone_is_one_of_some_command() -> None:
    known = {
        written
        for command in commands().values()
        for parameter in command.params
        for written in [*parameter.opts, *parameter.secondary_opts]
    }
    for path in TEXTS:
        mentioned = {code.split()[0] for code in inline_code(path) if code.startswith("--")}
        assert mentioned <= known, named(path)


@pytest.mark.parametrize(("where", "target"), sorted(set(shown_targets())))
def test_a_make_target_that_is_shown_exists(where: str, target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_a_config_that_is_shown_is_valid(tmp_path: Path) -> None:
    shown = [code for path in TEXTS for code in blocks(path, "yaml") if code.startswith("experiment:")]
    assert len(shown) >= 2
    for code in shown:
        (tmp_path / "shown.yaml").write_text(code, encoding="utf-8")
        dermstack.read_config(tmp_path / "shown.yaml")


def test_a_message_that_is_explained_is_one_that_the_code_gives() -> None:
    sources = [path for package in ("dermstack", "stack", "image_models") for path in (ROOT / package).rglob("*.py")]
    joined = (re.sub(r'"\s+f?"', "", path.read_text(encoding="utf-8")) for path in sources)
    code = "\n".join(joined)
    explained = [message for message in inline_code(ROOT / "docs" / "messages.md") if len(message.split()) > 2]
    assert len(explained) > 20
    for message in explained:
        assert re.search(".*".join(re.escape(part.strip()) for part in message.split("…")), code), message


def test_every_public_name_is_documented() -> None:
    """By the module that defines it, since mkdocstrings reads the source and runs nothing."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    for name in dermstack.__all__:
        assert f"{getattr(dermstack, name).__module__}.{name}" in documented
    for place in documented:
        module, _, name = place.rpartition(".")
        assert getattr(sys.modules[module], name).__doc__, f"{place} has a docstring of its own"


def test_the_notebook_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippets, one after the other, on a small generated data set with two runs, where torch can't be imported."""
    monkeypatch.chdir(tmp_path)
    _write_demo_experiment(tmp_path)
    snippets = blocks(ROOT / "docs" / "notebook.md", "python")
    assert len(snippets) >= 5
    import_module("scipy.stats")  # which asks the torch that it finds for its class of tensors
    for module in ("torch", "timm", "cv2"):
        monkeypatch.setitem(sys.modules, module, None)
    seen: dict[str, Any] = {}
    for snippet in snippets:
        assert len(snippet.splitlines()) <= 12, "ten lines each, or two more"
        exec(compile(snippet, "notebook.md", "exec"), seen)
    assert seen["is_shown"], "a run that knows more, against one that knows less"
    assert seen["gain"].low > 0
    assert set(seen["found"].by_method) == {"rank_mean", "logistic"}
    assert seen["score"][0] < seen["score"][1]


@pytest.mark.slow
def test_the_snippet_of_the_page_on_blends_runs(rng: np.random.Generator) -> None:
    y = (rng.random(200) < 0.3).astype(int)
    P = np.clip(y[:, None] * 0.3 + rng.random((200, 3)) * 0.7, 0, 1)
    seen: dict[str, Any] = {"P": P, "y": y, "groups": np.arange(200), "fold": np.arange(200) % 3, "P_new": P[:5]}
    for snippet in blocks(ROOT / "docs" / "blend.md", "python"):
        exec(compile(snippet, "blend.md", "exec"), seen)
    assert seen["score"].shape == (5,)
    assert seen["found"].chosen in seen["found"].by_method


def test_the_snippet_of_the_page_on_decisions_runs(rng: np.random.Generator) -> None:
    p = rng.random(2000)
    y, patient = (rng.random(2000) < p).astype(int), np.arange(2000) // 2
    seen: dict[str, Any] = {"y": y, "p": p, "patient": patient, "y_new": y, "p_new": p, "patient_new": patient}
    for snippet in blocks(ROOT / "docs" / "decisions.md", "python"):
        exec(compile(snippet, "decisions.md", "exec"), seen)
    assert set(seen["decision"]) == {"negative", "review", "positive"}


@pytest.mark.parametrize("path", [path for path in TEXTS if path not in PAGES], ids=named)
def test_relative_links_outside_docs_lead_to_a_file_and_its_heading(path: Path) -> None:
    """Those in docs/ are followed on the built pages."""
    text = re.sub(r"`[^`\n]+`", "", FENCED.sub("", path.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = urlsplit(link)
        if not target.scheme:
            file = path.parent / target.path if target.path else path
            assert file.exists(), link
            assert not target.fragment or target.fragment in _anchors(file), link


@pytest.mark.slow
def test_the_pages_build_without_a_broken_link_and_fetch_nothing(tmp_path: Path) -> None:
    if not all(find_spec(module) for module in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the extra [docs] is not installed: `make env` brings it")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = {path.name: _Page(path) for path in (tmp_path / "site").glob("*.html")}
    assert {f"{path.stem}.html" for path in PAGES} | {"404.html"} == set(pages)
    for name, page in pages.items():
        assert [url for url in page.fetched if urlsplit(url).scheme or url.startswith("//")] == [], name
        if name == "404.html":  # served from anywhere, so its links begin at the root
            continue
        for link in page.links:
            target = urlsplit(link)
            if target.scheme:
                continue
            file = target.path or name
            assert (tmp_path / "site" / file).exists(), f"{name}: {link}"
            if target.fragment and file in pages:
                assert unquote(target.fragment) in pages[file].ids, f"{name}: {link}"
    for name in dermstack.__all__:
        assert f"{getattr(dermstack, name).__module__}.{name}" in pages["api.html"].ids
    assert "method chosen without this fold" in pages["api.html"].text, "fields say what their comments say"
    assert set(commands()) <= pages["commands.html"].ids
    assert {"data.images", "image_models.epochs", "blend.methods"} <= pages["config.html"].ids


class _Page(HTMLParser):
    """The links, the anchors and what a browser fetches of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in {"canonical", "prev", "next"}:
            self.fetched.append(given["href"])
        elif "src" in given:
            self.fetched.append(given["src"])


def _anchors(path: Path) -> set[str]:
    """Of the headings, as they are made where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _write_demo_experiment(folder: Path) -> None:
    """What `make demo` leaves, in small: the data, and two runs that know the targets more and less well."""
    from dermstack.cli.demo_data import write_demo_data
    from stack.store import prediction_frame, write_run
    from stack.tables.table import read_table

    data = folder / "data" / "demo"
    write_demo_data(data, n_train=400, n_test=20, size=16)
    columns = {"id": "image_name", "group": "patient_id", "target": "target"}
    train = read_table(data / "train.csv", None, columns=columns).train
    fold = dermstack.make_folds(train, k=5, seed=0).frame["fold"].to_numpy()
    rng = np.random.default_rng(0)
    for name, kind, noise in (("lightgbm", "lightgbm", 0.8), ("small_cnn", "image", 2.5)):
        logit = 2.0 * train["target"].to_numpy() - 3 + rng.normal(0, noise, len(train))
        frame = prediction_frame(train["id"], fold, logit).sample(frac=1, random_state=0)  # order means nothing
        write_run(folder / "runs" / "demo" / "models" / name, {"kind": kind}, frames={"oof": frame})
