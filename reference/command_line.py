"""Generates the reference of the commands from the Typer app that runs them."""

from __future__ import annotations

import html
from typing import Any

import typer

from dermstack.cli.main import app


def commands_page() -> str:
    """Returns a Markdown section for each command, in the order of `dermstack --help`: usage, help text, parameters."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("dermstack", [], resilient_parsing=True)
    lines: list[str] = []
    for name, command in group.commands.items():
        inside = command.make_context(name, [], parent=context, resilient_parsing=True)
        usage = " ".join(["dermstack", name, *command.collect_usage_pieces(inside)])
        lines += [f"## `{name}` {{ #{name} }}", "", _text(command.help), "", f"    {usage}", ""]
        for parameter in command.params:
            term, text = parameter.get_help_record(inside)
            term = term.replace(" range>", ">").replace("list[str]", "str").replace("list[Path]", "path")
            help_text = parameter.help or ""
            given = text.removeprefix(help_text).strip(" []").replace("x>=", "≥ ")  # required; default: 30; x>=1
            lines += [f"`{term}`" + (f" *{_text(given)}*" if given else ""), f":   {_text(help_text)}", ""]
    return "\n".join(lines)


def _text(text: str) -> str:
    """Escapes help, which is plain text: `<experiment>` is not a tag."""
    return html.escape(text, quote=False)
