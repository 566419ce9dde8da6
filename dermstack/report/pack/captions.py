"""Reads the captions of tables and figures, and the ids that links can lead to, out of a finished page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_FIGURE_ID = re.compile(r"(.+)-figure_1")  # matplotlib's first id, after the name that `page_svg` puts before it


@dataclass
class Captions:
    """What a page says of its tables and figures."""

    tables: dict[str, str] = field(default_factory=dict)  # by the id of the table: its caption
    figures: dict[str, tuple[str, str]] = field(default_factory=dict)  # by the name of the drawing: title, caption
    anchors: set[str] = field(default_factory=set)  # all ids


def captions_of(html: str) -> Captions:
    """Returns the captions of a page, so that files of its tables and figures carry the same words."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Captions()
        self._name = self._title = ""
        self._inside: str | None = None  # h3, caption or figcaption, whose text is read
        self._table = ""
        self._words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("id") or ""
        if name:
            self.found.anchors.add(name)
        if tag == "figure":
            self._name = self._title = ""
        if not self._name and (match := _FIGURE_ID.fullmatch(name)):
            self._name = match[1]
        if tag in ("h3", "caption", "figcaption"):
            self._inside, self._words = tag, []
            self._table = name.removesuffix("-caption") if tag == "caption" else ""

    def handle_endtag(self, tag: str) -> None:
        if tag != self._inside:
            return
        text = " ".join("".join(self._words).split())
        if tag == "h3":
            self._title = text
        elif tag == "caption" and self._table:
            self.found.tables[self._table] = text
        elif tag == "figcaption" and self._name:
            self.found.figures[self._name] = (self._title, text)
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._words.append(data)
