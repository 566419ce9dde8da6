"""What is installed is known: pinned, under a licence that is written down, for a reason."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sources import PACKAGES, ROOT, imported_names, source_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    assert len({canonicalize_name(name) for name, _ in found}) == len(found), "each once"
    return {canonicalize_name(name): version for name, version in found}


def table() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    return {canonicalize_name(row[0]): row[1:] for row in rows[2:]}


@pytest.mark.parametrize("need", DIRECT, ids=str)
def test_what_is_asked_for_is_pinned_at_a_version_that_will_do(need: Requirement) -> None:
    pinned = pins().get(canonicalize_name(need.name))
    assert pinned, f"constraints.txt has no {need.name}"
    assert need.specifier.contains(Version(pinned), prereleases=True)


def test_what_is_asked_for_has_a_licence_and_a_reason_and_nothing_else_is_listed() -> None:
    known = table()
    assert set(known) == {canonicalize_name(need.name) for need in DIRECT}
    for name, (licence, extras, why) in known.items():
        of = {
            extra for extra, lines in EXTRAS.items() if name in {canonicalize_name(Requirement(x).name) for x in lines}
        }
        assert set(filter(None, extras.split(", "))) == of, name
        assert licence, name
        assert why, name
        assert not re.search(r"\bA?GPL", licence), name


def test_what_they_need_in_turn_is_pinned_too() -> None:
    pinned = pins()
    waiting = [(canonicalize_name(need.name), frozenset(need.extras)) for need in DIRECT]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        if (asked := waiting.pop()) in seen:
            continue
        seen.add(asked)
        assert asked[0] in pinned, f"constraints.txt has no {asked[0]}"
        try:
            requires = distribution(asked[0]).requires or []
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        needs = [Requirement(line) for line in requires]
        waiting += [
            (canonicalize_name(need.name), frozenset(need.extras))
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *asked[1]))
        ]
    assert len(seen) > len(DIRECT)


def test_what_is_imported_is_asked_for() -> None:
    """Not only brought along by another, which may one day do without."""
    asked = {canonicalize_name(need.name) for need in DIRECT}
    own = {*PACKAGES, "reference"}
    known = packages_distributions()
    for path in source_files():
        for name in {name.split(".")[0] for name in imported_names(path)} - own - set(sys.stdlib_module_names):
            of = {canonicalize_name(distribution) for distribution in known.get(name, [])}
            assert of & asked or not of, f"{path.name} imports {name} of {', '.join(of)}: pyproject.toml asks for none"


def test_the_promises_name_tests_that_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert {"make fuzz", "make audit-deps"} <= set(re.findall(r"`(make [a-z-]+)`", text))


def test_the_limits_in_the_promises_are_those_of_the_code() -> None:
    from dermstack.serve.admission import MAX_UPLOAD_BYTES
    from dermstack.serve.bundle import MAX_COMPRESSION_RATIO
    from dermstack.serve.connections import IDLE_SECONDS, MAX_CONNECTIONS
    from image_models.io.decode import MAX_ENCODED_BYTES, MAX_PIXELS
    from image_models.io.tfrecord import MAX_VALUES
    from stack.settings.yaml_text import MAX_YAML_NODES
    from stack.tables.cells import MAX_CSV_COLUMNS

    text = " ".join(Path(ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    for said in (
        f"at most {MAX_PIXELS // 10**6} million pixels and {MAX_ENCODED_BYTES >> 20} MiB",
        f"a table {MAX_CSV_COLUMNS:,} columns",
        f"{MAX_YAML_NODES:,} values", f"at most {MAX_UPLOAD_BYTES >> 20} MiB in all requests together",
        f"at most {MAX_CONNECTIONS} connections",
        f"{IDLE_SECONDS:.0f} seconds",
    ):  # fmt: skip
        assert said in text
    assert (MAX_COMPRESSION_RATIO, MAX_VALUES) == (20, 1 << 20)  # "twenty times", "a million"
