"""The manifest of a bundle: its keys, their types and limits, its runs, and which names of files it may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from image_models.settings import is_own_backbone
from stack.metrics.own_metric import NAME_PATTERN
from stack.metrics.resolution import Limits, checked_limits
from stack.metrics.risk_control import LOWER_AIMS, UPPER_AIMS
from stack.metrics.scores import Objective
from stack.settings.data import Pooling
from stack.settings.image_models import ImageModel, Name
from stack.settings.level2 import MAX_REPEATS, Features
from stack.tables.units import GROUP

MAX_NAME, MAX_PATH = 200, 400  # bytes of a file's name and of its path inside the bundle
MAX_SEEDS, MAX_NETS = 1_000, 100  # of an imported run
_MOST_LOGIT, _LEAST_SPREAD = 1e6, 1e-30  # no logits come near; beyond, float32 has infinite numbers
_SHA256 = r"^[0-9a-f]{64}$"
# Device names that Windows reserves, with any extension.
_WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)),
}

ShortText = Annotated[str, Field(max_length=200)]
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Share01 = Annotated[float, Field(ge=0, le=1)]


class _StrictModel(BaseModel):
    """Validates JSON values without type conversion; ignores unknown keys."""

    model_config = ConfigDict(strict=True, frozen=True)


class _File(_StrictModel):
    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=0)


class _Interval(_StrictModel):
    value: float
    low: float
    high: float


class _ImageRun(_StrictModel):
    name: Name
    kind: Literal["image", "frozen"]
    settings: dict[str, Any]
    positive: list[bool] = Field(min_length=2)

    @field_validator("settings")
    @classmethod
    def _validate_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return run_settings(settings)


class _ImportedRun(_StrictModel):
    """Predictions that a user gives for new rows, in files like the test file that was imported."""

    name: Name
    columns: dict[Literal["id", "p", "fold", "seed"], ShortText] = Field(min_length=4)
    net_prefix: ShortText | None  # of one column for each net, instead of one with predictions and one with folds
    average_seeds: bool
    # seed and column, of runs as columns
    parts: list[Annotated[list[ShortText], Field(min_length=2, max_length=2)]] = Field(max_length=MAX_SEEDS)
    averaged: bool  # the test file had one row for each id, of no particular net
    nets: dict[ShortText, int]  # fold of each net by its name in the file; none where the mean of all nets is taken
    mean_of: int = Field(0, ge=0, le=MAX_NETS)  # nets of other folds, whose mean is taken; 0: not known
    range: Annotated[list[_Share01], Field(min_length=2, max_length=2)]  # 98 % of the out-of-fold predictions
    # lowest and highest probability that is used, as in the test file; none: half of the new file's resolution
    clip: Annotated[list[_Fraction], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> _ImportedRun:
        seeds, columns = ({part[place] for part in self.parts} for place in (0, 1))
        if "" in columns or not len(seeds) == len(columns) == len(self.parts):
            raise ValueError(f"the columns of {self.name} have no name, or two have the same name or seed")
        if len(self.parts) > 1 and not self.average_seeds:
            raise ValueError(f"{self.name} has several columns, but does not average seeds")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"the limits of {self.name} are reversed")
        if (self.averaged or self.mean_of) and self.nets:
            raise ValueError(f"{self.name} has nets, but takes a mean of them")
        if self.range[0] > self.range[1]:
            raise ValueError(f"the range of {self.name} ends before it begins")
        return self


class _Stacker(_StrictModel):
    name: Name
    kind: Literal["lightgbm", "xgboost", "catboost", "logistic", "set_transformer"]
    repeats: int = Field(1, ge=1, le=MAX_REPEATS)  # assignments of the groups to folds that it was fitted over
    # of the logits, one for each fold, those of the first repeat first
    shifts: list[Annotated[float, Field(ge=-_MOST_LOGIT, le=_MOST_LOGIT)]]


_Scales = dict[Name, dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]]


class _SecondStage(_StrictModel):
    """Stackers that see others, which these others are, and the scales of all runs that they see."""

    stackers: list[Name] = Field(min_length=1)
    sees: list[Name] = Field(min_length=1)
    scales: _Scales


class _Table(_StrictModel):
    """Columns without a role by their name in the table, codes for missing values, and the positive targets."""

    numeric: dict[ShortText, ShortText] = {}
    categorical: dict[ShortText, ShortText] = {}
    derived: dict[ShortText, str] = {}
    missing: dict[ShortText, list[str | int | float]] = {}
    positive: list[ShortText] = []


class _Training(_StrictModel):
    rows: int = Field(ge=1)
    positives: int = Field(ge=0)


class _Recalibration(_StrictModel):
    """The line that moves risks for other patients than those of training, and what it was made from."""

    parent: str = Field(pattern=r"^[0-9a-f]{12}$")
    kind: Literal["intercept", "slope", "prevalence"]
    slope: FiniteFloat = Field(gt=0)
    intercept: FiniteFloat
    se: FiniteFloat = Field(ge=0)
    effect: FiniteFloat = Field(ge=0)
    rows: int = Field(ge=0)
    positives: int = Field(ge=0)
    groups: int = Field(ge=0)
    prevalence: float | None = Field(None, gt=0, lt=1)
    labels: str | None = Field(None, max_length=100)


_Count = Annotated[int, Field(ge=0, le=1 << 40)]


class _Guarantee(_StrictModel):
    aim: Literal["sensitivity", "npv", "specificity", "ppv"]
    level: _Fraction
    confidence: _Fraction
    threshold: float | None = Field(ge=0, le=1 + 1e-9)
    groups: _Count
    rows: _Count
    errors: _Count
    most: _Count
    test: Literal["binomial", "betting", "approximate"]
    needed: _Count | None


class _Share(_StrictModel):
    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class _Shares(_StrictModel):
    """What share of the training images each decision had, by bands that were chosen without the image's fold."""

    negative: _Share
    review: _Share
    positive: _Share


class _ReviewBand(_StrictModel):
    """Risks that are decided with a guarantee, and risks that go to a person."""

    low: _Guarantee
    high: _Guarantee | None
    confidence: _Fraction
    below: float = Field(ge=0, le=1 + 1e-9)
    above: float | None = Field(ge=0, le=1 + 1e-9)
    shares: _Shares

    @model_validator(mode="after")
    def _check_ends(self) -> _ReviewBand:
        if self.low.aim in UPPER_AIMS or (self.high is not None and self.high.aim in LOWER_AIMS):
            raise ValueError("`review` has a guarantee at the wrong end")
        for of, cut, nothing in ((self.low, self.below, 0.0), (self.high, self.above, None)):
            if (of is None or of.threshold is None) and cut != nothing:
                raise ValueError("`review` decides images without a guarantee")
        if self.below > (self.low.threshold or 0.0):
            raise ValueError("`review` decides risks above the threshold of its guarantee")
        if self.above is not None and self.high is not None and self.above < (self.high.threshold or 0.0):
            raise ValueError("`review` decides risks below the threshold of its guarantee")
        if self.above is not None and self.above < self.below:
            raise ValueError("`review` decides the same risk as negative and as positive")
        return self


class _Units(_StrictModel):
    """What gets one prediction instead of each image, and how the predictions of its images become one."""

    columns: list[ShortText] = Field(min_length=1, max_length=20)
    target: Literal["any", "same"]
    pooling: Pooling


class Manifest(_StrictModel):
    """The keys of manifest.json that some code reads; `dermstack.serve.write_bundle` writes them."""

    dermstack: ShortText
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    objective: Objective | Annotated[str, Field(pattern=NAME_PATTERN)]  # a user's own metric is a name, never imported
    headline: _Interval
    chosen: ShortText
    selected: list[ShortText]
    folds: int = Field(ge=2, le=100)
    threads: int = Field(ge=1, le=1024)
    columns: dict[ShortText, ShortText]
    table: _Table = _Table()
    resize: Literal["square", "short_side"]
    cache_format: Literal["raw", "jpeg"]
    bits_stored: int = Field(0, ge=0, le=16)  # bits that 16-bit values use; 0: all
    swap_red_blue: bool = False  # whether red and blue of the training images were exchanged, which was undone
    features: dict[ShortText, bool | int | list[ShortText] | dict[ShortText, str]]
    embeddings: dict[Name, Literal["aligned", "frozen"]]
    image_runs: list[_ImageRun]  # none: it reads no images
    imported_runs: list[_ImportedRun] = []  # whose predictions for new rows must be given
    stackers: list[_Stacker]
    scales: _Scales
    second_stage: _SecondStage | None = None
    training: _Training
    recalibration: _Recalibration | None = None  # of a bundle that `dermstack recalibrate` made
    fallback: bool = False  # whether it can predict from the table alone where an image cannot be read
    review: _ReviewBand | None = None  # which risks are decided, and which go to a person
    predict_per: _Units | None = None  # one prediction for each unit; none: for each image
    files: dict[str, _File]

    @model_validator(mode="after")
    def _check_consistency(self) -> Manifest:
        names = [one.name for of_kind in (self.image_runs, self.imported_runs, self.stackers) for one in of_kind]
        if len(set(names)) < len(names) or not set(self.embeddings) <= set(names):
            raise ValueError("a run is named twice, or `embeddings` names an unknown run")
        if not names:
            raise ValueError("it names no model")
        if any(len(stacker.shifts) != self.folds * stacker.repeats for stacker in self.stackers):
            raise ValueError(f"a stacker does not have {self.folds} shifts for each repeat, one for each fold")
        if any(run.nets and sorted(run.nets.values()) != list(range(self.folds)) for run in self.imported_runs):
            raise ValueError(f"an imported run does not have {self.folds} nets, one for each fold")
        features = Features.model_validate(self.features)
        if features.python is not None:
            raise ValueError("features.python names code, which a bundle may not")
        if not self.image_runs and features.shortcuts:
            raise ValueError("features.shortcuts are those of images, but there is no image model")
        later = self.second_stage
        stackers = {stacker.name for stacker in self.stackers}
        if later and not (set(later.stackers) < stackers and set(later.sees) <= stackers - set(later.stackers)):
            raise ValueError("`second_stage` names stackers that are not there, or that see each other")
        every = [self.scales, *([later.scales] if later else [])]
        moments = [of_net for scales in every for nets in scales.values() for of_net in nets.values()]
        if any(spread < _LEAST_SPREAD for _, spread in moments):
            raise ValueError("`scales` has a spread that is not positive")
        if any(max(abs(mean), spread) > _MOST_LOGIT for mean, spread in moments):
            raise ValueError("`scales` has a mean or a spread beyond every logit")
        if lacking := {"id", "target"} - set(self.columns):
            raise ValueError(f"`columns` lacks {', '.join(sorted(lacking))}")
        if (per := self.predict_per) is not None:
            if len(set(per.columns)) < len(per.columns) or self.columns["target"] in per.columns:
                raise ValueError("`predict_per` names a column twice, or the target")
            if GROUP in per.columns and GROUP not in self.columns:
                raise ValueError("`predict_per` names the group, but `columns` does not")
            if self.fallback:
                raise ValueError("a `fallback` predicts images, not units")
        if self.fallback and not self.image_runs:
            raise ValueError("a `fallback` stands in for images, but there is no image model")
        return self


def run_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns an image run's settings as a config holds them. Raises ValidationError for invalid settings."""
    model = ImageModel.model_validate({**settings, "pretrained": False}, context={"folder": "."})
    if is_own_backbone(model.backbone):  # it would be imported, and a bundle must not run code
        raise ValueError(f"{model.name}: the backbone {model.backbone} names code, which a bundle may not")
    return model.model_dump(mode="json", exclude={"pretrained", "enabled"})


def is_inside(name: str) -> bool:
    """Returns True if ``name`` is a relative path that stays inside its folder on every operating system."""
    parts = PurePosixPath(name).parts
    odd = any(sign in name for sign in '\\:*?"<>|') or not name.isprintable() or name != str(PurePosixPath(name))
    hidden = any(
        part.startswith(".") or part[-1:] in ". " or part.split(".")[0].lower() in _WINDOWS_DEVICES for part in parts
    )
    too_long = len(name.encode("utf-8", "replace")) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in parts)
    return bool(parts) and not odd and not hidden and not name.startswith("/") and not too_long


@dataclass(frozen=True)
class ImageRun:
    """One image model of a bundle: its settings as in the config, and which of its classes are positive."""

    name: str
    kind: str  # "image": trained networks for each fold; "frozen": one backbone with a head for each fold
    settings: dict[str, Any]
    positive: tuple[bool, ...]  # for each class


@dataclass(frozen=True)
class ImportedRun:
    """A run whose predictions for new rows must be given, in files like the test file that was imported."""

    name: str
    columns: dict[str, str]  # of the file: id, p, fold and seed
    net_prefix: str | None  # of one column for each net
    average_seeds: bool
    parts: tuple[tuple[str, str], ...]  # seed and column of each part, where runs are columns of one file
    averaged: bool  # training had one prediction for each test row, of no particular net
    nets: dict[str, int]  # fold of each net; none where the mean of all nets is taken
    range: tuple[float, float]  # 98 % of the out-of-fold predictions
    mean_of: int = 0  # nets of other folds than the experiment's, whose mean is taken; 0: not known
    clip: Limits | None = None  # at which predictions are clipped, as in the test file; none: by the new file


def image_runs(manifest: Mapping[str, Any]) -> list[ImageRun]:
    """Returns the image runs of a checked manifest."""
    return [
        ImageRun(run["name"], run["kind"], run_settings(run["settings"]), tuple(run["positive"]))
        for run in manifest["image_runs"]
    ]


def imported_runs(manifest: Mapping[str, Any]) -> list[ImportedRun]:
    """Returns the imported runs of a checked manifest; none for a bundle of an earlier dermstack."""
    return [
        ImportedRun(
            run["name"], dict(run["columns"]), run["net_prefix"], run["average_seeds"],
            tuple((seed, column) for seed, column in run["parts"]), run["averaged"], dict(run["nets"]),
            (run["range"][0], run["range"][1]), run.get("mean_of", 0),
            None if run.get("clip") is None else checked_limits(*run["clip"]),
        )
        for run in manifest.get("imported_runs", ())
    ]  # fmt: skip
