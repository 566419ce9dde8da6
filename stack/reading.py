"""Text files that others wrote, as plain values, at a cost that their size bounds: YAML, and what a csv begins with."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from stack.errors import DataError

MOST_YAML = 1 << 22  # characters
MOST_DEEP, MOST_NODES = 64, 200_000  # of a YAML document, each alias counted as what it stands for
MOST_COLUMNS = 10_000
_HEADER = 1 << 20  # bytes that a csv's header ends within


class _Loader(yaml.SafeLoader):
    """Plain values only, and an end to nesting: PyYAML recurses, and so does what prints the values."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MOST_DEEP:
            raise yaml.YAMLError(f"it is nested more than {MOST_DEEP} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
            if doubled := sorted(key for key, times in keys.items() if times > 1):
                raise yaml.YAMLError(f"{', '.join(doubled)} stands twice in one place, line {node.start_mark.line + 1}")
        return node


def parse_yaml(text: str) -> Any:
    """The values of a YAML document: no object is built, and an alias of aliases of aliases is no way to fill memory.

    Raises yaml.YAMLError for whatever is wrong with it, values that PyYAML stumbles over (``!!int ''``) too.
    """
    if len(text) > MOST_YAML:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {MOST_YAML:,}")
    try:
        loader = _Loader(text)
        if (node := loader.get_single_node()) is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    # What PyYAML's constructors raise for numbers, dates and tags that aren't what they say.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"a value can't be read ({type(error).__name__}: {str(error)[:200]})") from error


def check_header(path: Path) -> None:
    """Raise DataError where a csv begins with what is no header: pandas ends the process on some millions of columns.

    A file that isn't there is left to the reader.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_HEADER)
        is_all = not file.read(1)
    text = head.decode("utf-8-sig", "replace")
    lines = csv.reader(cells := io.StringIO(text, newline=""))
    try:
        first = next((row for row in lines if len(row) > 1 or "".join(row).strip()), [])
        ends = is_all or cells.tell() < len(text)
    except csv.Error as error:
        raise DataError(f"{path}: not a readable csv in UTF-8 ({error}): save it as one") from error
    if len(first) > MOST_COLUMNS or not ends:
        found = f"{len(first):,} columns" if ends else f"no end in its first {_HEADER:,} bytes"
        raise DataError(f"{path}: its header has {found}, a table has at most {MOST_COLUMNS:,} columns: check the file")


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values below a node, those of an alias each time; raises YAMLError above `MOST_NODES` and for a loop."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (known := sizes.get(id(node))) is not None:
        return known
    sizes[id(node)] = MOST_NODES + 1  # whoever comes back here while it is counted never ends
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(value,) for value in node.value]
    total = 1 + sum(_expanded(value, sizes) for pair in pairs for value in pair)
    if total > MOST_NODES:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES:,} values, or for themselves")
    sizes[id(node)] = total
    return total
