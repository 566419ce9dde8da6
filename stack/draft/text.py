"""Writes a drafted config as YAML with comments: each choice with its reason, and questions beside what is doubtful."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_WIDTH = 110


@dataclass(frozen=True)
class Draft:
    """The values of a config as the sections of the YAML file, with comments by key (`data.columns.id`)."""

    experiment: str
    values: Mapping[str, Any]
    comments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # above the key
    questions: tuple[tuple[str, str], ...] = ()  # above the key, as `question:`; the key need not be in the values


def scalar(value: object) -> str:
    """Returns a value as YAML on one line, quoted where it has to be."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**20, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def draft_text(draft: Draft, title: str) -> str:
    """Returns the YAML text of a config."""
    lines = [f"# {part}" for part in textwrap.wrap(title, _WIDTH)]
    lines += [f"experiment: {scalar(draft.experiment)}"]
    asked: set[str] = set()
    for key, value in draft.values.items():
        lines += _lines(key, value, "", 0, draft, asked)
    return "\n".join(lines) + "\n"


def _lines(key: str, value: object, above: str, depth: int, draft: Draft, asked: set[str]) -> list[str]:
    path, indent = f"{above}{key}", "  " * depth
    made = [f"{indent}# {line}" for text in draft.comments.get(path, ()) for line in _wrapped(text, indent)]
    made += _questions(draft, [path], indent, asked)
    if isinstance(value, dict) and depth < 2 and (key in ("data", "columns")):
        made.append(f"{indent}{key}:")
        for name, inner in value.items():
            made += _lines(name, inner, f"{path}.", depth + 1, draft, asked)
        inside = [asked_of for asked_of, _ in draft.questions if asked_of.rpartition(".")[0] == path]
        made += _questions(draft, inside, indent + "  ", asked)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        made.append(f"{indent}{key}:")
        for entry in value:
            made += [
                f"{indent}  {'- ' if n == 0 else '  '}{name}: {scalar(v)}" for n, (name, v) in enumerate(entry.items())
            ]
    elif isinstance(value, list) and len(scalar(value)) > _WIDTH:
        made.append(f"{indent}{key}:")
        made += [f"{indent}  - {scalar(entry)}" for entry in value]
    else:
        made.append(f"{indent}{key}: {scalar(value)}")
    return made


def _questions(draft: Draft, paths: Iterable[str], indent: str, asked: set[str]) -> list[str]:
    made = []
    for path in paths:
        for key, question in draft.questions:
            if key == path and question not in asked:
                asked.add(question)
                shown = f"question ({key.rpartition('.')[2]}): {question}"
                made += [f"{indent}# {line}" for line in _wrapped(shown, indent)]
    return made


def _wrapped(text: str, indent: str) -> list[str]:
    printable = "".join(sign if sign.isprintable() else " " for sign in text)  # a line break would end the comment
    return textwrap.wrap(printable, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)


def path_in_config(path: Path, folder: Path) -> str:
    """Returns a path as the config in ``folder`` names it: relative where it is near, else absolute."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return str(path.resolve()) if relative.startswith(os.path.join("..", "..")) else relative  # noqa: PTH118
