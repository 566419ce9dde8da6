"""Imports a user's own backbone: a function, named as `package.module:function`, that returns a torch module."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dermstack.errors import ImageError
from dermstack.user_code import USER_ERRORS, import_user_module

_FORM = "write it as package.module:function"
_CODE: dict[str, str] = {}  # fingerprint of the code that this process has imported, by backbone


def find_builder(backbone: str) -> Callable[..., Any]:
    """Imports the function that builds the backbone; modules in the current folder are found too.

    Runs the module's code, again where a file has changed since, as in a notebook. Raises ImageError that names what is
    missing: the module, one that it imports, the function.
    """
    module, name = _module(backbone), backbone.partition(":")[2]
    code = code_fingerprint(backbone)
    if _CODE.setdefault(backbone, code) != code:
        top = module.__name__.partition(".")[0]
        for loaded in [loaded for loaded in sys.modules if loaded == top or loaded.startswith(f"{top}.")]:
            del sys.modules[loaded]
        module, _CODE[backbone] = _module(backbone), code
    found = getattr(module, name, None)
    if found is None:
        raise ImageError(f"backbone {backbone}: {_place(module)} has no {name!r}: define it, or {_FORM}")
    if not callable(found):
        raise ImageError(
            f"backbone {backbone}: {name} in {_place(module)} is a {type(found).__name__}, not a function: name a "
            "function that returns a torch module"
        )
    builder: Callable[..., Any] = found
    return builder


def build_own_backbone(backbone: str, arguments: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    """Calls the function with ``pretrained`` and the arguments, and returns its module. Raises ImageError."""
    builder = find_builder(backbone)
    given = ", ".join(f"{name}={value!r}" for name, value in {"pretrained": pretrained, **arguments}.items())
    called = f"{backbone.partition(':')[2]}({given})"
    try:
        body = builder(pretrained=pretrained, **arguments)
    except USER_ERRORS as error:
        raise ImageError(
            f"backbone {backbone}: {called} failed ({type(error).__name__}: {_short(error)}): correct the function, "
            "which takes `pretrained` and the keys of timm_args"
        ) from error
    if not isinstance(body, nn.Module):
        raise ImageError(
            f"backbone {backbone}: {called} returned a {type(body).__name__}: return a torch.nn.Module that maps "
            "images (n, 3, h, w) to features (n, d)"
        )
    return body


def code_fingerprint(backbone: str) -> str:
    """Returns the SHA-256 of the code: every .py file of the top-level package, or the module's file outside packages.

    Raises ImageError as `find_builder` does, and for a module without a Python file.
    """
    module = _module(backbone)
    top = sys.modules[module.__name__.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    named = [(path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py")]
    if not named and module.__file__ and Path(module.__file__).is_file():
        named = [(Path(module.__file__).name, Path(module.__file__))]
    if not named:
        raise ImageError(f"backbone {backbone}: its module has no .py file, so a change cannot be noticed: use one")
    digest = hashlib.sha256()
    for name, path in sorted(named):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _module(backbone: str) -> ModuleType:
    name = backbone.partition(":")[0]
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that no file there takes the place of an installed module
    try:
        return import_user_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImageError(
                f"backbone {backbone}: there is no module {error.name!r}: run the command in the folder that holds it, "
                f"or name that folder in PYTHONPATH; {_FORM}"
            ) from error
        raise ImageError(
            f"backbone {backbone}: {name} imports {error.name!r}, which is not installed: install it"
        ) from error
    except USER_ERRORS as error:
        raise ImageError(
            f"backbone {backbone}: {name} cannot be imported ({type(error).__name__}: {_short(error)}): correct it"
        ) from error


def _place(module: ModuleType) -> str:
    return str(module.__file__ or module.__name__)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
