"""Makes sure that `stack`, `image_models` and `tabular` are dermstack's, whatever lies in the working folder.

Python looks for modules in the working folder first, in a notebook, a script or ``python -m``. A user's own
``stack.py`` there would take the place of our package of that name. Importing dermstack therefore puts a finder before
all others that answers for these three names only, and finds them where dermstack itself is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OWN = ("stack", "image_models", "tabular")
INSTALLED = Path(__file__).resolve().parents[1]  # the folder that holds dermstack and the three beside it


class OwnPackagesFinder(MetaPathFinder):
    """Finds the three packages beside dermstack, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package's location, or None for any other name. Raises ImportError where it was not installed."""
        if fullname not in OWN:
            return None
        spec = PathFinder.find_spec(fullname, [str(INSTALLED)])
        if spec is None:
            raise ImportError(f"dermstack's package `{fullname}` is not in {INSTALLED}: install dermstack again")
        return spec


def find_own_packages() -> None:
    """Install the finder. Raises ImportError, naming the file, where another module of such a name is loaded."""
    for name in OWN:
        loaded = sys.modules.get(name)
        if loaded is not None and INSTALLED / name not in _locations(loaded):
            where = ", ".join(map(str, _locations(loaded))) or "an unknown place"
            raise ImportError(
                f"dermstack has a package named `{name}`, and another one was imported before it, from {where}: import "
                "dermstack first, or rename that file or folder"
            )
    if not any(isinstance(finder, OwnPackagesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnPackagesFinder())


def _locations(module: ModuleType) -> list[Path]:
    """The folders of a package, or the file of a module."""
    places = list(getattr(module, "__path__", [])) or [getattr(module, "__file__", None)]
    return [Path(place).resolve() for place in places if place]
