"""One image model of a config: backbone, what it learns from, how it is trained."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from image_models.settings import AugmentOn, Balance, Network, Precision, Select, Training

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ENVIRONMENT_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}(.*)")


def resolve_path(value: object, info: ValidationInfo) -> object:
    """A path of the config is relative to the config file; that of a set ``${NAME:-default}/…`` to where one stands."""
    if isinstance(value, bool) or not isinstance(value, str | Path):
        return value
    assert info.context is not None, "read_config says where the config file lies"
    text, base = str(value), Path(info.context["folder"])
    if _CONTROL_CHARACTERS.search(text):
        raise ValueError("a path holds no control characters")
    if match := _ENVIRONMENT_VARIABLE.fullmatch(text):
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
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # names become folders
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
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


class Normalise(Strict):
    """What is taken off pixels in [0, 1], and what they are divided by."""

    mean: tuple[float, float, float]  # of red, green and blue
    std: tuple[float, float, float]  # of red, green and blue


class Diagnosis(Strict):
    """How diagnoses become the classes of a model with `target: diagnosis`; each class is of one target."""

    classes: dict[str, str] = {}  # class by diagnosis; what is not named is a class of its own
    unknown: Literal["class", "target"] = "class"  # a missing diagnosis is its own class, or any class of its target


DEFAULT = Training()


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class ImageModel(Strict):
    """One level-1 run: a timm backbone, fine-tuned or frozen, over all folds."""

    name: Name  # of the run
    backbone: str  # timm's name for it
    pretrained: Annotated[bool | Path, BeforeValidator(resolve_path)] = True  # timm's own weights, none, or a file's
    frozen: bool = False  # only a logistic head is fitted, on features that are stored once
    size: int = Field(128, ge=16, le=2048)  # pixels a side
    timm_args: dict[str, Any] = {}  # what else `timm.create_model` is told
    normalise: Normalise | None = None  # of the pixels; otherwise as the backbone was trained
    target: Literal["binary", "diagnosis"] = "binary"  # `diagnosis`: its classes are learned, p is that of the target
    diagnosis: Diagnosis = Diagnosis()  # how diagnoses become classes
    metadata: tuple[Literal["age", "sex", "site"], ...] = ()  # what is learned beside the image
    tta: Literal["none", "flips", "d4"] = "none"  # views averaged in logits: 1, 4 or 8

    # How it is trained: image_models/settings.py says what each key means, and holds its default.

    epochs: int = Field(DEFAULT.epochs, ge=1)
    batch_size: int = Field(DEFAULT.batch_size, ge=2)
    lr: float = Field(DEFAULT.lr, gt=0)
    weight_decay: float = Field(DEFAULT.weight_decay, ge=0)
    warmup: float = Field(DEFAULT.warmup, ge=0, le=1)
    layer_decay: float = Field(DEFAULT.layer_decay, gt=0, le=1)
    balance: Balance = DEFAULT.balance
    positive_weight: float = Field(DEFAULT.positive_weight, gt=0)
    label_smoothing: float = Field(DEFAULT.label_smoothing, ge=0, lt=1)
    focal_gamma: float = Field(DEFAULT.focal_gamma, ge=0)
    mixup: float = Field(DEFAULT.mixup, ge=0)
    cutmix: float = Field(DEFAULT.cutmix, ge=0)
    ema: float = Field(DEFAULT.ema, ge=0, lt=1)
    dropout: float = Field(DEFAULT.dropout, ge=0, lt=1)
    dropout_samples: int = Field(DEFAULT.dropout_samples, ge=1)
    accumulate: int = Field(DEFAULT.accumulate, ge=1)
    clip_norm: float = Field(DEFAULT.clip_norm, ge=0)
    precision: Precision = DEFAULT.precision
    compile: bool = DEFAULT.compile
    select: Select = DEFAULT.select
    # recipes, one after the other: `none`, `light`, `standard`, `heavy`; `microscope`, `hair`
    augment: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = DEFAULT.augment
    augment_on: AugmentOn = DEFAULT.augment_on  # `device`: light or standard, a batch at a time, on the GPU

    seeds: tuple[Seed, ...] = Field((0,), min_length=1)  # several seeds are one run: logits averaged, spread reported
    enabled: bool = True  # false: left out, its description kept
    selected: bool = False  # its settings were chosen by how they do on these rows: said wherever its number stands

    @property
    def network(self) -> Network:
        """Which network it is, as the fit takes it."""
        mean, std = (self.normalise.mean, self.normalise.std) if self.normalise else (None, None)
        return Network(self.backbone, self.pretrained, self.timm_args, mean, std)

    @property
    def training(self) -> Training:
        """How it is trained, as the training loop takes it."""
        return Training(**{field.name: getattr(self, field.name) for field in fields(Training)})

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        for what, listed in (("seeds", self.seeds), ("metadata", self.metadata)):
            if len(set(listed)) < len(listed):
                raise ValueError(f"{self.name}: {what} {list(listed)} names one twice")
        if self.frozen and (self.target == "diagnosis" or self.metadata):
            raise ValueError(
                f"{self.name} is frozen: `target: diagnosis` and `metadata` are of trained models (metadata reaches "
                "level 2 anyway)"
            )
        if self.dropout_samples > 1 and not self.dropout:
            raise ValueError(f"{self.name}: dropout_samples {self.dropout_samples} needs `dropout` above 0")
        if self.augment_on == "device" and (odd := set(self.augment) - {"none", "light", "standard"}):
            raise ValueError(
                f"{self.name}: `augment_on: device` has no {', '.join(sorted(odd))}: take light or standard, or the cpu"
            )
        return self
