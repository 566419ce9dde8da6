"""The product's source files and what each of them imports."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("stack", "image_models", "tabular", "dermstack")


def source_files() -> list[Path]:
    """Every module of the installed packages and of reference/."""
    return [path for package in (*PACKAGES, "reference") for path in sorted((ROOT / package).rglob("*.py"))]


def imported_names(path: Path) -> list[str]:
    """Every module that the file imports, also inside functions, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(str(node.module))
    return found
