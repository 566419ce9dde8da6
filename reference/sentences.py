"""Reads the sentence that describes a field of a class from its comment in the source."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path


def sentences(model: type) -> dict[str, str]:
    """Returns the sentence of each commented field in the body of `model` itself, by name.

    The sentence is the comment at the end of the field's last line, else the comment lines directly above the field. A
    comment that is followed by an empty line is a heading and belongs to no field.
    """
    file = inspect.getsourcefile(model)
    assert file is not None, "a class of a module has a file"
    return field_sentences(Path(file).read_text(encoding="utf-8"), model.__name__)


def field_sentences(source: str, class_name: str) -> dict[str, str]:
    """Returns the `sentences` of a class in this source text, without running it."""
    comments = _comments(source)
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    sentence = _sentence(field, comments)
                    if sentence:
                        found[field.target.id] = sentence
    return found


@dataclass(frozen=True)
class _Comment:
    text: str
    own_line: bool  # the comment is alone on its line


def _sentence(field: ast.AnnAssign, comments: dict[int, _Comment]) -> str:
    last = comments.get(field.end_lineno or field.lineno)
    if last:
        return last.text
    above: list[str] = []
    line = field.lineno - 1
    while line in comments and comments[line].own_line:
        above.insert(0, comments[line].text)
        line -= 1
    return " ".join(above)


def _comments(source: str) -> dict[int, _Comment]:
    """Returns every comment by its line number."""
    return {
        token.start[0]: _Comment(token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
