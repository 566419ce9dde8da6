"""Imports a user's own Python file as it is now, never an older compiled file of it.

Python takes a compiled file (`__pycache__`) where time, in whole seconds, and size of the source are those it was
compiled from. So a change within a second that keeps the size would not be seen, while the hash of the source, which
names the code in every fingerprint, would be the new one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

# What a user's code may raise, of which a message tells: anything but Ctrl-C. `sys.exit()` in it must not end a command
# as if it had succeeded.
USER_ERRORS = (Exception, SystemExit)


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def import_user_module(name: str) -> ModuleType:
    """Imports the module ``name`` (`package.module`) as `importlib.import_module` does, from its source.

    The packages around it and what it imports are imported as always. A module that is loaded already is returned as
    it is: remove it from `sys.modules` first where it may have changed.
    """
    if name in sys.modules:
        return sys.modules[name]
    importlib.invalidate_caches()  # the file may be younger than what Python remembers of its folder
    spec = importlib.util.find_spec(name)  # imports the packages around it
    if spec is None or type(spec.loader) is not SourceFileLoader:
        return importlib.import_module(name)  # raises where there is none
    if name in sys.modules:  # imported by a package around it
        return sys.modules[name]
    spec.loader = _FromSource(name, spec.loader.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as Python does: it may import what imports it
    try:
        spec.loader.exec_module(module)
    except BaseException:  # Ctrl-C too: nothing half-imported stays
        del sys.modules[name]
        raise
    module = sys.modules[name]  # it may have put another object there
    package, _, last = name.rpartition(".")
    if package:
        setattr(sys.modules[package], last, module)
    return module


def load_user_file(name: str, path: Path) -> ModuleType:
    """Runs the file ``path`` and returns its module, which is called ``name`` and which no import finds."""
    loader = _FromSource(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # a loader is given
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
