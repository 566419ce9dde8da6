"""What every part of a config is made of: strict values, names that become folders, paths relative to the file."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

_NO_PATH = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ENVIRONMENT = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}(.*)")


def resolve_path(value: object, info: ValidationInfo) -> object:
    """A path of the config is relative to the config file; that of a set ``${NAME:-default}/…`` to where one stands."""
    if isinstance(value, bool) or not isinstance(value, str | Path):
        return value
    assert info.context is not None, "read_config says where the config file lies"
    text, base = str(value), Path(info.context["folder"])
    if _NO_PATH.search(text):
        raise ValueError("a path holds no control characters")
    if match := _ENVIRONMENT.fullmatch(text):
        name, default, rest = match.groups()
        if os.environ.get(name):
            text, base = os.environ[name] + rest, Path.cwd()
        elif default is None:
            raise ValueError(f"the environment variable {name} is not set: export {name}=path/to/folder")
        else:
            text = default + rest
    try:
        return Path(os.path.normpath(base / Path(text).expanduser()))
    except RuntimeError as error:  # ~name of nobody on this machine
        raise ValueError(f"{text}: {error}") from error


ConfigPath = Annotated[Path, BeforeValidator(resolve_path)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # names become folders
Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # what every library's generator takes


class Strict(BaseModel):
    """Frozen, and an unknown key is an error that suggests the nearest one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _suggest_nearest_key(cls, values: Any) -> Any:
        unknown = []
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key)[:100], cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(cls.model_fields)}"
                unknown.append(f"unknown key {key!r}: {hint}")
        if unknown:
            raise ValueError("; ".join(unknown))
        return values
