"""A part of a page that brings its own look and script: what the page must carry for it, and what its policy allows."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


class Section(NamedTuple):
    """One `<section>`; ``style`` belongs into the page's style sheet, ``script`` stands inside ``markup`` already."""

    markup: Markup
    style: str = ""
    script: str = ""


def script_policy(*scripts: str) -> str:
    """What a Content-Security-Policy says after `script-src` to let these very texts run and no others."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"


def rendered(template: str, **values: object) -> Markup:
    """A template of this folder; text in ``values`` is escaped, a name that is missing is an error."""
    templates = environment()
    templates.filters |= {"percent": percent, "count": count}
    return Markup(templates.get_template(template).render(**values))


def environment(*, autoescape: bool = True) -> Environment:
    """The templates of this folder: what is missing is an error, and blocks leave no lines behind."""
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def percent(share: float | None) -> str:
    """0.9021 → 90.2 %; what is unknown is a dash."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def count(number: float) -> str:
    """1234 → 1,234."""
    return f"{number:,.0f}"
