"""Settings of one image model in the config, and the field types that all config models share."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from image_models.settings import AugmentOn, Balance, Network, Precision, Select, Training, is_own_backbone

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ENVIRONMENT_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}(.*)")


def resolve_path(value: object, info: ValidationInfo) -> object:
    """Resolves a path relative to the config's folder; ``${NAME:-default}/…`` takes an environment variable.

    The value of a variable that is set is relative to the current folder. Raises ValueError for an unset variable
    without default, control characters and an unknown user (``~name``).
    """
    if isinstance(value, bool) or not isinstance(value, str | Path):
        return value
    assert info.context is not None, "read_config passes the config's folder as context"
    text, base = str(value), Path(info.context["folder"])
    if _CONTROL_CHARACTERS.search(text):
        raise ValueError("the path holds control characters: remove them")
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
    except RuntimeError as error:  # ~name of an unknown user
        raise ValueError(f"{text}: {error}") from error


ConfigPath = Annotated[Path, BeforeValidator(resolve_path)]
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # names are also names of folders
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # the range that the generator of every library accepts


class Strict(BaseModel):
    """Base of the config models: frozen, and an unknown key is an error that suggests the nearest known key."""

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


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Normalise(Strict):
    """Mean and standard deviation with which pixels in [0, 1] are normalised."""

    mean: tuple[float, float, float]  # means of red, green and blue, which are subtracted
    std: tuple[float, float, float]  # standard deviations of red, green and blue, which the result is divided by


class Diagnosis(Strict):
    """Classes of a model with `target: diagnosis`; all rows of a class must have the same target."""

    classes: dict[str, str] = {}  # the class of each diagnosis; a diagnosis that is not listed is its own class
    unknown: Literal["class", "target"] = "class"  # a missing diagnosis is its own class, or any class of its target


class PseudoLabels(Strict):
    """Rows without a target as further training rows, labelled by other runs fold by fold (Lee 2013)."""

    # image models listed earlier, or, for test rows, imported runs with test predictions of each fold model; their
    # logits are averaged
    teachers: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)] = Field(min_length=1)
    # `soft`: the label is the teachers' probability; `hard`: the likelier target
    labels: Literal["soft", "hard"] = "soft"
    confidence: float = Field(0.5, ge=0.5, lt=1)  # least probability of the likelier target; rows below are left out
    rows: Literal["test", "unlabelled", "both"] = "test"  # the rows that are labelled: of data.test, of data.unlabelled

    @property
    def test(self) -> bool:
        """Whether test rows are labelled."""
        return self.rows != "unlabelled"

    @property
    def unlabelled(self) -> bool:
        """Whether rows of `data.unlabelled` are labelled."""
        return self.rows != "test"


DEFAULT = Training()
LATER_MODEL = ("metadata_dropout", "pseudo_labels")  # keys of an image model that dermstack 0.2.0 did not have


class ImageModel(Strict):
    """One level-1 run: a timm backbone, fine-tuned or frozen, over all folds."""

    name: Name  # name of the run
    # name of the backbone in timm, or `package.module:function`: a function of your own that returns a torch module,
    # which cannot be bundled
    backbone: str
    pretrained: Annotated[bool | Path, BeforeValidator(resolve_path)] = True  # timm's weights, none, or a weights file
    frozen: bool = False  # true: only a logistic head is fitted, on features that are computed once
    size: int = Field(128, ge=16, le=2048)  # width and height of the input image in pixels
    timm_args: dict[str, Any] = {}  # further arguments of `timm.create_model`, or of a function of your own
    normalise: Normalise | None = None  # mean and std of the pixels; none: those that the backbone was trained with
    target: Literal["binary", "diagnosis"] = "binary"  # `diagnosis`: learn its classes; p sums those of target 1
    diagnosis: Diagnosis = Diagnosis()  # how diagnoses are mapped to classes
    # columns that the network gets with the image: age, sex, site, and names or patterns (`tbp_lv_*`) of the columns of
    # numbers and words in data.columns, and of features.derived
    metadata: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    pseudo_labels: PseudoLabels | None = None  # none: only labelled rows train the model
    tta: Literal["none", "flips", "d4"] = "none"  # test-time augmentation: logits averaged over 1, 4 or 8 views

    # Training settings; image_models/settings.py documents each key and holds its default.

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
    metadata_dropout: float = Field(DEFAULT.metadata_dropout, ge=0, lt=1)
    accumulate: int = Field(DEFAULT.accumulate, ge=1)
    clip_norm: float = Field(DEFAULT.clip_norm, ge=0)
    precision: Precision = DEFAULT.precision
    compile: bool = DEFAULT.compile
    select: Select = DEFAULT.select
    # recipes, applied one after the other: `none`, `light`, `standard`, `heavy`; `microscope`, `hair`
    augment: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = DEFAULT.augment
    augment_on: AugmentOn = DEFAULT.augment_on  # `device`: light or standard, a batch at a time, where the network runs

    seeds: tuple[Seed, ...] = Field((0,), min_length=1)  # each fold has a net for each seed; their logits are averaged
    enabled: bool = True  # false: the model is not used, but its settings stay in the config
    selected: bool = False  # true: its settings were chosen by scores on these rows, which is noted beside its scores

    def settings(self, *, without: Collection[str] = (), as_json: bool = False) -> dict[str, Any]:
        """Returns the settings for fingerprints and run.json, without the keys ``without``.

        Keys that were added later are left out at their defaults, so that runs made before them stay fresh.
        """
        later = {name for name in LATER_MODEL if getattr(self, name) == type(self).model_fields[name].default}
        made = self.model_dump(mode="json" if as_json else "python", exclude={*without, *later})
        if (pseudo := made.get("pseudo_labels")) and pseudo["rows"] == PseudoLabels.model_fields["rows"].default:
            pseudo.pop("rows")
        return made

    @property
    def network(self) -> Network:
        """The settings of the network, as `image_models` takes them."""
        mean, std = (self.normalise.mean, self.normalise.std) if self.normalise else (None, None)
        return Network(self.backbone, self.pretrained, self.timm_args, mean, std)

    @property
    def training(self) -> Training:
        """The settings of the training, as `image_models` takes them."""
        return Training(**{field.name: getattr(self, field.name) for field in fields(Training)})

    @property
    def unused(self) -> set[str]:
        """Names of the settings that have no effect: those of training, where the backbone is frozen."""
        if not self.frozen:
            return set()
        return {field.name for field in fields(Training)} - {"batch_size"} | {"target", "diagnosis", "metadata"}

    @field_validator("backbone")
    @classmethod
    def _check_import_path(cls, backbone: str) -> str:
        if is_own_backbone(backbone) and not _IMPORT_PATH.fullmatch(backbone):
            raise ValueError(
                f"backbone {backbone!r} is neither a name of timm nor the import path of a function: write it as "
                "package.module:function"
            )
        return backbone

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        for what, listed in (("seeds", self.seeds), ("metadata", self.metadata)):
            if len(set(listed)) < len(listed):
                raise ValueError(f"{self.name}: {what} {list(listed)} names one twice: name each once")
        if self.metadata_dropout and not self.metadata:
            raise ValueError(f"{self.name}: metadata_dropout {self.metadata_dropout} needs `metadata`, such as [age]")
        if self.frozen and (self.target == "diagnosis" or self.metadata):
            raise ValueError(
                f"{self.name} is frozen, but only trained models have `target: diagnosis` or `metadata`: remove these "
                "keys (level 2 gets the metadata in any case)"
            )
        if self.pseudo_labels is not None:
            self._check_pseudo_labels(self.pseudo_labels)
        if self.dropout_samples > 1 and not self.dropout:
            raise ValueError(f"{self.name}: dropout_samples {self.dropout_samples} needs a `dropout` above 0")
        if self.augment_on == "device" and (odd := set(self.augment) - {"none", "light", "standard"}):
            raise ValueError(
                f"{self.name}: `augment_on: device` has no recipe {', '.join(sorted(odd))}: use light or standard, or "
                "`augment_on: cpu`"
            )
        return self

    def _check_pseudo_labels(self, settings: PseudoLabels) -> None:
        if self.frozen:
            raise ValueError(f"{self.name} is frozen, but only trained models have `pseudo_labels`: remove it")
        if self.name in settings.teachers or len(set(settings.teachers)) < len(settings.teachers):
            raise ValueError(f"{self.name}: pseudo_labels.teachers must name other runs, each once")
        if self.balance != "none" or self.positive_weight != 1:
            raise ValueError(
                f"{self.name}: pseudo_labels needs `balance: none` and `positive_weight: 1`, since a row without a "
                "known target belongs to no class"
            )
