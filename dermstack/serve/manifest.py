"""What a bundle's manifest may say, checked at the door: names that are no paths, numbers that are numbers."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stack.image_config import ImageModel
from stack.settings import Name

_SHA256 = r"^[0-9a-f]{64}$"
# Names of devices on Windows, whatever follows the first point.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}

Short = Annotated[str, Field(max_length=200)]


class _Said(BaseModel):
    """Values of the very types that JSON has; what else stands there is of no concern."""

    model_config = ConfigDict(strict=True, frozen=True)


class _File(_Said):
    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=0)


class _Interval(_Said):
    value: float
    low: float
    high: float


class _ImageRun(_Said):
    name: Name
    kind: Literal["image", "frozen"]
    settings: dict[str, Any]
    positive: list[bool] = Field(min_length=2)

    @field_validator("settings")
    @classmethod
    def _as_in_a_config(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return run_settings(settings)


class _Stacker(_Said):
    name: Name
    kind: Literal["lightgbm", "xgboost", "catboost", "logistic"]
    shifts: list[float]


class _Training(_Said):
    rows: int = Field(ge=1)
    positives: int = Field(ge=0)


class Manifest(_Said):
    """Every key that is read somewhere; see `dermstack.serve.write_bundle` for what writes it."""

    dermstack: Short
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    objective: Literal["auc", "pauc80", "ap", "logloss"]
    headline: _Interval
    chosen: Short
    selected: list[Short]
    folds: int = Field(ge=2, le=100)
    threads: int = Field(ge=1, le=1024)
    columns: dict[Short, Short]
    resize: Literal["square", "short_side"]
    cache_format: Literal["raw", "jpeg"]
    features: dict[Short, bool | int]
    embeddings: dict[Name, Literal["aligned", "frozen"]]
    image_runs: list[_ImageRun] = Field(min_length=1)
    stackers: list[_Stacker]
    scales: dict[Name, dict[str, list[float]]]
    training: _Training
    files: dict[str, _File]

    @model_validator(mode="after")
    def _parts_fit(self) -> Manifest:
        names = [*(run.name for run in self.image_runs), *(stacker.name for stacker in self.stackers)]
        if len(set(names)) < len(names) or not set(self.embeddings) <= set(names):
            raise ValueError("runs that are named twice, or embeddings of none")
        if any(len(stacker.shifts) != self.folds for stacker in self.stackers):
            raise ValueError(f"a stacker of other folds than {self.folds}")
        if lacking := {"id", "target"} - set(self.columns):
            raise ValueError(f"no column of {', '.join(sorted(lacking))}")
        return self


def run_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """An image run's settings as a config would hold them. Raises ValidationError for what no config may."""
    model = ImageModel.model_validate({**settings, "pretrained": False}, context={"folder": "."})
    return model.model_dump(mode="json", exclude={"pretrained", "enabled"})


def is_inside(name: str) -> bool:
    """Whether a name leads to a place below the folder, on any system."""
    parts = PurePosixPath(name).parts
    odd = any(sign in name for sign in '\\:*?"<>|') or not name.isprintable() or name != str(PurePosixPath(name))
    hidden = any(part.startswith(".") or part[-1:] in ". " or part.split(".")[0].lower() in _DEVICES for part in parts)
    return bool(parts) and not odd and not hidden and not name.startswith("/")
