"""docs/architecture.md names files and tests that exist, every small module, and is not stale where it is generated."""

from __future__ import annotations

import re

import pytest
from sources import PACKAGES, ROOT, source_files

from reference.pages import stale_pages

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_generated_parts_of_the_docs_are_what_the_code_says() -> None:
    assert [str(page) for page in stale_pages()] == [], "run `python -m reference` and commit what it writes"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py::\w+)`", PAGE))))
def test_a_test_that_guards_a_law_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_every_law_is_named_with_module_and_test() -> None:
    rows = re.findall(r"^\| (\d+)b?\. .* \| (.*) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert {int(number) for number, _, _ in rows} == set(range(1, 15))
    for _, modules, tests in rows:
        assert "`" in modules
        assert "::" in tests


def test_paths_that_are_named_exist() -> None:
    named = re.findall(r"`((?:dermstack|stack|image_models|tabular|tests|benchmarks|docs|reference)/[\w/.*]*)`", PAGE)
    assert named
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


def test_no_module_is_too_long_and_small_ones_are_listed_with_their_reason() -> None:
    listed = set(re.findall(r"`([\w/]+\.py)`", PAGE.partition("for a reason:")[2].partition("## Laws")[0]))
    small = set()
    for path in source_files():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        name = str(path.relative_to(ROOT))
        assert lines <= 450, f"{name} has {lines} lines: split it by idea"
        if lines < 60 and name.split("/")[0] in PACKAGES and (path.name != "__init__.py" or lines > 5):
            small.add(name)
    assert listed == small
