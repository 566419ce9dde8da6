"""Words that came from data are text on every page, whatever they hold: no element, attribute or script is theirs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from unfitted_ensemble import unfitted_ensemble

from dermstack.serve.app import _Page
from dermstack.serve.patient import Lesion, Reading
from dermstack.serve.questions import Question
from dermstack.serve.standings import Standing

# Ends whatever a page may have put around it. An id has no slash.
ENDS = "</script></style></title></textarea>--> ]]>"
HOSTILE = ENDS + "<evil-tag evil-attr=1 onload=evil()>\"' evil-attr='1' x={{7*7}}&lt;evil-tag>"
NO_SLASH = HOSTILE.replace("/", "")


class Elements(HTMLParser):
    """What a browser would make elements, attributes and scripts of, and what it would show."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.made: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.made += [tag, *(name for name, _ in attributes)]
        self.made += [value or "" for name, value in attributes if name in {"href", "src", "style"}]
        self.text += " ".join(value or "" for _, value in attributes)

    def handle_data(self, data: str) -> None:
        if self._inside in {"script", "style"}:
            self.scripts.append(data)
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_comment(self, data: str) -> None:
        self.scripts.append(data)


def check(page: str, *, shows: bool = True) -> None:
    found = Elements(page)
    assert [name for name in found.made if "evil" in name.lower() or name.startswith("on")] == []
    assert [script for script in found.scripts if "evil" in script.lower()] == []
    assert ("evil-tag" in found.text) is shows, "the word is there, as text"


def test_the_check_finds_what_it_looks_for() -> None:
    for page in (
        f"<p>{HOSTILE}</p>", f"<p title='{HOSTILE}'>", f"<script>var x = '{NO_SLASH}'</script>", f"<!-- {HOSTILE} -->",
        "<a href='javascript:evil()'>evil-tag</a>", "<p onclick=x>evil-tag</p>",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(page)
    check(f"<p title='{HOSTILE.replace('&', '&amp;').replace(chr(39), '&#39;').replace('<', '&lt;')}'>")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment all of whose words are hostile, those of its csv's header too, with a report that shows ids."""
    folder = tmp_path_factory.mktemp("hostile")
    config = write_experiment(folder)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    columns = {name: f"{csv} {HOSTILE}" for name, csv in settings["data"]["columns"].items()}
    columns |= {"source": f"hospital {HOSTILE}", "diagnosis": f"diagnosis {HOSTILE}"}
    rng = np.random.default_rng(1)
    for part in ("train", "test"):
        rows = pd.read_csv(folder / f"{part}.csv", dtype=str, keep_default_na=False)
        rows["isic"] = rows["isic"] + NO_SLASH
        for name in ("patient", "sex", "site"):
            rows[name] = rows[name] + HOSTILE
        words = [f"{word}{HOSTILE}" for word in ("a", "b")]
        rows = rows.assign(source=rng.choice(words, len(rows)), diagnosis=rng.choice(words, len(rows)))
        names = {**settings["data"]["columns"], "source": "source", "diagnosis": "diagnosis"}
        rows.rename(columns={csv: columns[name] for name, csv in names.items()}).to_csv(
            folder / f"{part}.csv", index=False
        )
        if part == "test":
            sample = pd.DataFrame({columns["id"]: rows["isic"], columns["target"]: 0})
            sample.to_csv(folder / "sample.csv", index=False)
    settings["data"]["columns"] = columns
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    experiment = opened_experiment(config)
    for number, name in enumerate(("net", "other")):
        oof, test = predictions(experiment, seed=number)
        import_frames(experiment, name, oof, test)
    assert run_cli("stack", "-c", str(config), "-q") == 0
    assert run_cli("report", "-c", str(config), "-q", "--show-ids") == 0
    assert run_cli("eda", "-c", str(config), "-q") == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["report.html", "eda.html"])
def test_hostile_words_are_text_on_the_pages(page: str, hostile: Path) -> None:
    check((hostile / "runs" / "elsewhere" / page).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_hostile_words_are_text_in_the_model_card(hostile: Path) -> None:
    """As Markdown with all that the documentation's pages allow makes HTML of it."""
    markdown = pytest.importorskip("markdown")
    text = (hostile / "runs" / "elsewhere" / "model_card.md").read_text(encoding="utf-8")
    check(markdown.markdown(text, extensions=["tables", "attr_list"]))


@pytest.mark.slow
def test_hostile_words_write_no_file_that_is_not_ours(hostile: Path) -> None:
    names = [path.name for path in hostile.rglob("*")]
    assert [name for name in names if "evil" in name] == []
    assert {path.name for path in hostile.iterdir()} <= {
        "train.csv", "test.csv", "sample.csv", "elsewhere.yaml", "runs", "cache",
        *(f"{run}-{part}.csv" for run in ("net", "other") for part in ("oof", "test")),
    }  # fmt: skip


def shown_by_the_app(reading: Reading | None, faults: list[str]) -> str:
    ensemble = unfitted_ensemble(
        words=[HOSTILE], questions=[Question(HOSTILE, HOSTILE, [HOSTILE]), Question(HOSTILE, HOSTILE, None, 0.0, 1.0)],
        experiment=HOSTILE, chosen=HOSTILE, selected=[HOSTILE],
        columns={**dict.fromkeys(("id", "target", "age", "sex", "site"), HOSTILE), "group": f"group {HOSTILE}"},
        table={"positive": [HOSTILE]}, predict_per={"columns": [HOSTILE], "target": "any", "pooling": "mean"},
    )  # fmt: skip
    filled = {"age": HOSTILE, "sex": HOSTILE, "site": HOSTILE, "together": True}
    response = _Page(ensemble)._render(filled, reading=reading, faults=faults)
    return bytes(response.body).decode()


def test_hostile_words_are_text_in_the_app() -> None:
    standing = Standing(1, 0.5, 1, (0.1, 0.2), 0.5, HOSTILE)
    lesion = Lesion(HOSTILE, HOSTILE, 0.5, 0.5, 0.995, True, b"jpeg", b"jpeg", standing, unit=HOSTILE)
    for reading, faults in ((None, []), (None, [HOSTILE]), (Reading([lesion, lesion], HOSTILE, [HOSTILE]), [])):
        page = shown_by_the_app(reading, faults)
        check(page)
        assert "{{7*7}}" in Elements(page).text, "nothing that came from data is a template"


def test_hostile_words_are_text_on_the_page_of_a_validation(rng: np.random.Generator) -> None:
    from test_validation import drawn, evaluation_html, judged, promised

    y, p, frame = drawn(rng)
    for name in ("site", "sex"):
        frame[name] = frame[name] + HOSTILE
    page = evaluation_html(judged(promised(rng), y, p, frame), y, p, created=HOSTILE)
    check(page)
    assert re.search("torso.*evil-tag", Elements(page).text)
