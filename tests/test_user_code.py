"""A user's Python file is run as it is now, whatever Python has compiled or loaded of it before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dermstack.user_code import import_user_module, load_user_file
from image_models.own_backbone import find_builder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder on Python's path, in a process that writes compiled files; its modules are forgotten after."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, code: str) -> Path:
    """Writes a file whose time never changes, as those of edits within a second."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def compiled(name: str) -> None:
    """Imports a module as Python does, which leaves a compiled file, and forgets it."""
    __import__(name)
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name.partition(".")[0]]:
        del sys.modules[loaded]


@pytest.mark.parametrize("name", ["mine", "parts.mine", "whole"])
def test_a_compiled_file_of_the_same_time_and_size_is_not_taken(folder: Path, name: str) -> None:
    path = folder / ("whole/__init__.py" if name == "whole" else f"{name.replace('.', '/')}.py")
    write(path, "import os\nNUMBER = 1\n")
    compiled(name)
    assert list(path.parent.glob("__pycache__/*.pyc")), "the premise: there is a compiled file"
    write(path, "import os\nNUMBER = 2\n")
    module = import_user_module(name)
    assert module.NUMBER == 2
    assert sys.modules[name] is module
    assert import_user_module(name) is module
    assert (module.__file__, module.__package__) == (str(path), name if name == "whole" else name.rpartition(".")[0])
    if name == "parts.mine":
        assert sys.modules["parts"].mine is module
    assert load_user_file("of_its_own", path).NUMBER == 2
    assert "of_its_own" not in sys.modules


def test_what_fails_is_not_left_half_imported(folder: Path) -> None:
    path = write(folder / "mine.py", "NUMBER = 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_user_module("mine")
    write(path, "NUMBER = 3\n")
    assert import_user_module("mine").NUMBER == 3
    for name in ("no_such_module", "no_such_package.part", "mine.part"):
        with pytest.raises(ModuleNotFoundError):
            import_user_module(name)


def test_a_backbone_is_built_by_its_code_as_it_is_now(folder: Path) -> None:
    """As in a notebook after an edit: its fingerprint is that of the files, so the code must be theirs, too."""
    net = write(folder / "nets" / "net.py", "from .layers import WIDTH\ndef build(pretrained): return WIDTH, 1\n")
    write(folder / "nets" / "layers.py", "WIDTH = 8\n")
    assert find_builder("nets.net:build")(pretrained=False) == (8, 1)
    write(net, "from .layers import WIDTH\ndef build(pretrained): return WIDTH, 2\n")
    assert find_builder("nets.net:build")(pretrained=False) == (8, 2)
    write(folder / "nets" / "layers.py", "WIDTH = 16\n")
    assert find_builder("nets.net:build")(pretrained=False) == (16, 2)
