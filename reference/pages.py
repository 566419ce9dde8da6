"""The parts of the documentation that are generated from the code, and committed: `python -m reference` writes them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

from reference.command_line import commands_page
from reference.config_keys import config_page

ROOT = Path(__file__).parents[1]
PACKAGES = ("dermstack", "stack", "image_models", "tabular")


def modules_page() -> str:
    """A table for each package: its modules with the first sentence of their docstrings."""
    lines: list[str] = []
    folders = sorted({path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")})
    for folder in sorted(folders, key=lambda folder: PACKAGES.index(folder.relative_to(ROOT).parts[0])):
        name = str(folder.relative_to(ROOT))
        lines += [
            f"**`{name}/`** {_first_sentence(folder / '__init__.py')}",
            "",
            "| module | what it does |",
            "|---|---|",
        ]
        lines += [
            f"| `{path.name}` | {_first_sentence(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        lines.append("")
    return "\n".join(lines)


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {  # by page: the name of its generated part, and who makes it
    "docs/commands.md": ("commands", commands_page),
    "docs/config.md": ("config keys", config_page),
    "docs/architecture.md": ("modules", modules_page),
}


def stale_pages() -> dict[Path, str]:
    """The pages whose generated part is not what the code says, with the text that they should have."""
    stale = {}
    for page, (name, make) in GENERATED.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        begin, end = f"<!-- {name}: written by `python -m reference` -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        assert found, f"{page} has no line {begin}"
        assert found_end, f"{page} has no line {end}"
        current = f"{before}{begin}\n\n{make().strip()}\n\n{end}{after}"
        if current != text:
            stale[ROOT / page] = current
    return stale


def _first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line, as a table takes it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0].replace("|", "\\|")
