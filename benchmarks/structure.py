"""Counts how the code is structured: modules by package, imports between folders, modules on the way to a submission.

    python benchmarks/structure.py [TREE]

TREE is a checkout, by default this one. The last number comes from a run of `oof` and `stack` on the demo's images (two
minutes): the modules of which a function is called, without those of audit and report.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

NOT_PRODUCT = {"tests", "benchmarks", "reference", "docs", "build"}
OFF_THE_WAY = ("audits/", "pages/", "dermstack/audit/", "dermstack/report/")  # in the old and in the new layout

TRACED = """
import importlib, os, sys, threading
tree, entry, folder = sys.argv[1:]
called = set()
def look(frame, event, argument):
    if event == "call":
        called.add(frame.f_code.co_filename + ("" if frame.f_code.co_name != "<module>" else "?"))
main = getattr(importlib.import_module(entry.split(":")[0]), entry.split(":")[1])
def run(*arguments):
    sys.argv = ["dermstack", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, arguments
run("demo-data", folder + "/data", "-q")
threading.setprofile(look)
sys.setprofile(look)
run("oof", "-c", folder + "/demo.yaml", "-q")
run("stack", "-c", folder + "/demo.yaml", "-q")
sys.setprofile(None)
own = {path.removeprefix(tree + "/") for path in called if path.startswith(tree + "/") and not path.endswith("?")}
print("\\n".join(sorted(own)), file=open(folder + "/called.txt", "w"))
"""


def modules(tree: Path) -> list[Path]:
    """Every module of the product but the empty `__init__`s."""
    return sorted(
        path
        for path in tree.glob("*/**/*.py")
        if path.relative_to(tree).parts[0] not in NOT_PRODUCT
        and not path.relative_to(tree).parts[0].startswith(".")
        and (path.name != "__init__.py" or len(path.read_text(encoding="utf-8").splitlines()) > 5)
    )


def folder_imports(tree: Path, found: list[Path]) -> set[tuple[str, str]]:
    """Pairs of folders of which one imports from the other."""
    folder_of = {
        ".".join(path.relative_to(tree).with_suffix("").parts): str(path.parent.relative_to(tree)) for path in found
    }
    folder_of |= {folder.replace("/", "."): folder for folder in folder_of.values()}
    pairs = set()
    for path in found:
        own = str(path.parent.relative_to(tree))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            pairs |= {(own, folder_of[name]) for name in names if name in folder_of and folder_of[name] != own}
    return pairs


def modules_called(tree: Path) -> list[str]:
    """The modules of which `oof` and `stack` call a function, without those of audit and report."""
    entry = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["dermstack"]
    with tempfile.TemporaryDirectory() as folder:
        config = (tree / "configs" / "demo.yaml").read_text(encoding="utf-8").replace("../data/demo", "data")
        config = (
            config.replace("n_jobs: 2", "n_jobs: 1").replace("epochs: 8", "epochs: 1").replace("size: 64", "size: 32")
        )
        (Path(folder) / "demo.yaml").write_text(config, encoding="utf-8")
        subprocess.run(
            [sys.executable, "-c", TRACED, str(tree), entry, folder],
            check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        called = (Path(folder) / "called.txt").read_text(encoding="utf-8").split()
    return [name for name in called if not name.startswith((".", *OFF_THE_WAY))]  # .venv/ may lie in the tree


def main() -> None:
    tree = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    found = modules(tree)
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in found}
    print(f"{len(found)} modules, {sum(lines.values()):,} lines")
    for folder, count in sorted(Counter(str(path.parent.relative_to(tree)) for path in found).items()):
        print(f"  {folder:20} {count:3} modules")
    print(f"{sum(n < 60 for n in lines.values())} under 60 lines, {sum(n > 450 for n in lines.values())} over 450")
    pairs = folder_imports(tree, found)
    packages = {(a.split("/")[0], b.split("/")[0]) for a, b in pairs}
    between = sum(a != b for a, b in packages)
    print(f"imports between {len(pairs)} pairs of folders, between {between} pairs of installed packages")
    print(f"{len(modules_called(tree))} modules called from csv to submission (audit and report left out)")


if __name__ == "__main__":
    main()
