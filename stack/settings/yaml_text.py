"""Reads YAML that may come from anyone: plain values only, with limits on size, nesting and aliases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

MAX_YAML_CHARACTERS = 1 << 22  # characters
_MAX_SHOWN = 60  # characters of a key and its value that a hint shows
MAX_YAML_DEPTH, MAX_YAML_NODES = 64, 200_000  # levels of nesting, and values with every alias expanded

_GLUED = re.compile(r"""\s*(?:-\s)?\s*["']?(?P<key>[\w.*-]+)["']?:(?P<value>[^\s:/\\].*)""", re.DOTALL)


class _Loader(yaml.SafeLoader):
    """Loads plain values only and limits nesting, because PyYAML and the printing of values are recursive."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_YAML_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, list[int]] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    lines.setdefault(key.value, []).append(key.start_mark.line + 1)
            for key, (first, *again) in sorted(lines.items()):
                if again:
                    raise yaml.YAMLError(f"{key} is given twice, in lines {first} and {again[0]}: write it once")
        return node


def parse_yaml(text: str) -> Any:
    """Returns the values of a YAML document; builds no Python objects and limits what its aliases expand to.

    Raises yaml.YAMLError for every fault, including values on which PyYAML fails with another error (``!!int ''``).
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {MAX_YAML_CHARACTERS:,}")
    try:
        loader = _Loader(text)
        loader.name = "the text"  # what PyYAML's messages say before the number of a line
        if (node := loader.get_single_node()) is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    # PyYAML's constructors raise these for malformed numbers, dates and tags.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__}: {str(error)[:200]})") from error


def glued_keys(values: Any, place: str = "") -> Iterator[str]:
    """Yields a hint for each key such as `k:5` of these values, which YAML reads as a key without a value."""
    if isinstance(values, list):
        for number, value in enumerate(values):
            yield from glued_keys(value, f"{place}.{number}" if place else str(number))
    elif isinstance(values, dict):
        for key, value in values.items():
            found = _GLUED.fullmatch(key) if isinstance(key, str) else None
            if found is not None and (value is None or found["value"][0] in "{["):
                yield f"{place or 'config'}: {colon_hint(key)}"
            yield from glued_keys(value, f"{place}.{key}" if place else str(key))


def colon_hint(text: object) -> str:
    """Returns what is missing in a text such as `k:5` where a mapping is meant; "" for any other value."""
    found = _GLUED.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return ""
    shown = f"{found['key']}: {found['value']}"
    shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
    return f"YAML needs a blank after the colon: write {shown!r}"


def fault_hint(text: str, error: Exception) -> str:
    """Returns a hint at a colon that is missing or has no blank where YAML stumbled, "" where there is none."""
    lines = text.splitlines()
    marks = [getattr(error, name, None) for name in ("context_mark", "problem_mark")]
    for number in [mark.line - back for mark in marks if mark is not None for back in (0, 1)]:
        if 0 <= number < len(lines) and (hint := colon_hint(lines[number].split(" #")[0].rstrip())):
            return f" (line {number + 1}: {hint})"
    start = getattr(error, "context_mark", None)
    if start is not None and "expected ':'" in str(getattr(error, "problem", "")) and 0 <= start.line < len(lines):
        key = lines[start.line].split(" #")[0].strip()
        if re.fullmatch(r"[\w.*-]+", key):
            return f" (line {start.line + 1}: YAML needs a colon after a key: write {key + ':'!r})"
    return ""


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Counts the values below a node, with every alias expanded.

    Raises YAMLError above `MAX_YAML_NODES` and for an alias that contains itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (known := sizes.get(id(node))) is not None:
        return known
    sizes[id(node)] = MAX_YAML_NODES + 1  # found again while it is being counted: the node contains itself
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(value,) for value in node.value]
    total = 1 + sum(_expanded_size(value, sizes) for pair in pairs for value in pair)
    if total > MAX_YAML_NODES:
        raise yaml.YAMLError(f"its aliases expand to more than {MAX_YAML_NODES:,} values, or contain themselves")
    sizes[id(node)] = total
    return total
