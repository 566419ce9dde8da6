"""One YAML an experiment, checked whole at the door: a frozen object, unknown keys refused with the nearest one."""

from __future__ import annotations

import csv
import io
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from stack.errors import ConfigError, DataError
from stack.image_config import ConfigPath, ImageModel, Name, Seed, Strict

MAX_YAML_CHARACTERS = 1 << 22  # characters
MAX_YAML_DEPTH, MAX_YAML_NODES = 64, 200_000  # of a YAML document, each alias counted as what it stands for
MAX_CSV_COLUMNS = 10_000
_MAX_HEADER_BYTES = 1 << 20  # bytes that a csv's header ends within


class _Loader(yaml.SafeLoader):
    """Plain values only, and an end to nesting: PyYAML recurses, and so does what prints the values."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_YAML_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
            if doubled := sorted(key for key, times in keys.items() if times > 1):
                raise yaml.YAMLError(f"{', '.join(doubled)} stands twice in one place, line {node.start_mark.line + 1}")
        return node


def parse_yaml(text: str) -> Any:
    """The values of a YAML document: no object is built, and an alias of aliases of aliases is no way to fill memory.

    Raises yaml.YAMLError for whatever is wrong with it, values that PyYAML stumbles over (``!!int ''``) too.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {MAX_YAML_CHARACTERS:,}")
    try:
        loader = _Loader(text)
        if (node := loader.get_single_node()) is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    # What PyYAML's constructors raise for numbers, dates and tags that aren't what they say.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"a value can't be read ({type(error).__name__}: {str(error)[:200]})") from error


def check_header(path: Path) -> None:
    """Raise DataError where a csv begins with what is no header: pandas ends the process on some millions of columns.

    A file that isn't there is left to the reader.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
        is_all = not file.read(1)
    text = head.decode("utf-8-sig", "replace")
    lines = csv.reader(cells := io.StringIO(text, newline=""))
    try:
        first = next((row for row in lines if len(row) > 1 or "".join(row).strip()), [])
        ends = is_all or cells.tell() < len(text)
    except csv.Error as error:
        raise DataError(f"{path}: not a readable csv in UTF-8 ({error}): save it as one") from error
    if len(first) > MAX_CSV_COLUMNS or not ends:
        found = f"{len(first):,} columns" if ends else f"no end in its first {_MAX_HEADER_BYTES:,} bytes"
        raise DataError(
            f"{path}: its header has {found}, a table has at most {MAX_CSV_COLUMNS:,} columns: check the file"
        )


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values below a node, those of an alias each time; raises YAMLError above `MAX_YAML_NODES` and for a loop."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if (known := sizes.get(id(node))) is not None:
        return known
    sizes[id(node)] = MAX_YAML_NODES + 1  # whoever comes back here while it is counted never ends
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(value,) for value in node.value]
    total = 1 + sum(_expanded_size(value, sizes) for pair in pairs for value in pair)
    if total > MAX_YAML_NODES:
        raise yaml.YAMLError(f"its aliases stand for more than {MAX_YAML_NODES:,} values, or for themselves")
    sizes[id(node)] = total
    return total


_MAX_LISTED, _MAX_ERROR_CHARACTERS = 20, 500  # faults of a config, and characters of each
_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 120


class Columns(Strict):
    """Which csv column holds what; the three first are needed, the rest may be missing."""

    id: str  # of the image, unique; its file is named so
    group: str  # the patient, or the lesion where no patient is known: never torn between folds
    target: str  # 0 or 1
    age: str | None = None  # in years; an empty cell is missing
    sex: str | None = None  # any words, whatever their case; an empty cell is missing
    site: str | None = None  # where on the body, in any words; an empty cell is missing
    diagnosis: str | None = None  # of training rows, for image models with `target: diagnosis`
    source: str | None = None  # hospital, camera or archive; no model sees it, the report has a subgroup for each
    fold: str | None = None  # folds that are decided already, instead of dealing
    width: str | None = None  # of the original picture in pixels, as `shortcuts` may use; the cache knows it too
    height: str | None = None  # of the original picture in pixels
    bytes: str | None = None  # of the original picture's file


class TFRecords(Strict):
    """How the features of TFRecord files are named and coded, where not as Kaggle's."""

    features: dict[str, str] = {}  # by Kaggle's name: image, image_name, patient_id, sex, …
    codes: dict[str, dict[int, str]] = {}  # by Kaggle's name: what each integer means; -1 is missing


class ExternalColumns(Strict):
    """Which column of an external csv holds what; without a group each row is one of its own."""

    id: str  # of the image, unique; its file is named so
    target: str  # 0 or 1; a single class will do
    group: str | None = None  # the patient or the lesion
    age: str | None = None  # in years
    sex: str | None = None  # in the words of the training table
    site: str | None = None  # where on the body, in the words of the training table
    diagnosis: str | None = None  # needed where an image model learns it


class External(Strict):
    """Rows that every fold's image models train on: never scored, never in patient counts, never at level 2."""

    name: Name  # its groups are called `<name>:<group>`
    table: ConfigPath  # csv of its rows
    images: ConfigPath  # a folder of pictures or of shards, or an .hdf5 file, as `data.images`
    columns: ExternalColumns  # which of its columns holds what
    tfrecord: TFRecords = TFRecords()  # as `data.tfrecord`, for its own shards
    swap_red_blue: bool = False  # its pictures were encoded with their channels in the wrong order
    on_collision: Literal["refuse", "drop"] = "refuse"  # an id or a picture that is also in train or test


class Data(Strict):
    """Where the rows and pictures are."""

    name: Name  # of the image cache, shared by experiments on the same data
    train: ConfigPath  # csv of the training rows
    test: ConfigPath | None = None  # csv of the rows to predict; none: an estimate, and no submission
    sample_submission: ConfigPath | None = None  # csv whose columns and order the submission takes
    duplicates: ConfigPath | None = None  # csv of pairs of ids that show the same lesion
    # a folder of `<id>.jpg`, `.png` or `.dcm`, or of `.tfrec` shards, or an `.hdf5` file; none: level 2 on imported
    # predictions
    images: ConfigPath | None = None
    test_images: ConfigPath | None = None  # where test images lie elsewhere
    columns: Columns  # which csv column holds what
    tfrecord: TFRecords = TFRecords()  # names and codes inside TFRecord shards
    swap_red_blue: bool = False  # pictures that were encoded with their channels in the wrong order
    on_unreadable: Literal["refuse", "drop"] = "refuse"  # `drop`: training rows leave the table, on the record
    find_duplicates: bool = True  # near-duplicates among the pictures merge groups, as `duplicates` does
    resize: Literal["square", "short_side"] = "square"  # `short_side` keeps the aspect; networks see the central square
    cache_format: Literal["raw", "jpeg"] = "raw"  # `jpeg`: a tenth of the disk, decoded again each epoch
    external: tuple[External, ...] = ()  # tables from elsewhere that only train


class Folds(Strict):
    """How training rows are dealt into folds."""

    k: int = Field(5, ge=2, le=100)  # number of folds
    seed: Seed = 0  # another deal for another seed
    stratify: tuple[Literal["group_size", "age"], ...] = ()  # besides the target


class Features(Strict):
    """What the level-2 matrix holds."""

    logits: bool = True  # each level-1 run's logit, on the scale of the fold net that made it
    metadata: bool = True  # age, sex and site
    aggregates: bool = True  # per patient: of age and of each run's logit
    cohort: bool = False  # each logit against those of the same age band, sex and site
    neighbours: bool = True  # per patient: how far each run's embedding stands from the others'
    frozen_z: int = Field(0, ge=0)  # principal components of each frozen run's embedding; 0: none
    aligned_z: int = Field(16, ge=0)  # components of each trained run's embedding, aligned across folds; 0: none
    context_counts: bool = False  # images of the group: an artefact of collection, off by default
    shortcuts: bool = False  # width, height and bytes of the picture: an artefact as well


class Stacker(Strict):
    """One level-2 run over all folds: a GBDT, or a logistic regression as the simple second opinion."""

    name: Name  # of the run
    kind: Literal["lightgbm", "xgboost", "catboost", "logistic"]  # catboost is an extra, `dermstack[catboost]`
    params: dict[str, Any] = {}  # of the library, by its own names, over the defaults here; `rounds` and `patience` too
    bags: int = Field(3, ge=1)  # models with seeds of their own, averaged in logits
    negatives: float = Field(1.0, gt=0, le=1)  # share of the negative rows that each of them sees
    positive_weight: float = Field(1.0, gt=0)  # of positive rows in the loss of a GBDT
    monotone: bool = False  # a run's p up, the GBDT's risk never down
    device: Literal["cpu", "gpu"] = "cpu"  # of GBDTs; other bytes, and LightGBM needs a build that has it
    enabled: bool = True  # false: left out, its description kept


class Blend(Strict):
    """How runs become one score."""

    # those among which one is chosen, without the rows that it is scored on
    methods: tuple[Literal["rank_mean", "mean", "logistic", "hill_climb", "optuna"], ...] = Field(
        ("rank_mean", "mean", "logistic", "hill_climb", "optuna"), min_length=1
    )
    trials: int = Field(100, ge=1)  # of `optuna`; the first ones are the simpler methods' weights
    power: bool = False  # `optuna`: each run's ranks to a power of their own
    replacement: bool = True  # `hill_climb`: a run may be added again
    bags: int = Field(5, ge=1)  # `hill_climb`: climbs on halves of the rows, whose weights are averaged


class Ray(Strict):
    """How tasks run on a Ray cluster; runs and cache must lie where every node sees them."""

    address: str | None = None  # of a running cluster, or `auto`; none: one on this machine, for this command
    cpus: float = Field(1, ge=0)  # that a task reserves; usually as many as `threads`
    gpus: float = Field(0, ge=0)  # that a task reserves; a share lets tasks share one, with 0 they use the CPU
    retries: int = Field(3, ge=0)  # of a task whose worker or node was lost; it resumes from its last epoch


class Tuned(Strict):
    """Studies whose result is used, as `dermstack tune` wrote them."""

    blend: ConfigPath | None = None  # the study of blend weights
    gbdt: dict[str, ConfigPath] = {}  # by stacker, the study of its parameters
    image: dict[str, ConfigPath] = {}  # by image model; its number is then "selected on these rows"


class Config(Strict):
    """What it is called, what it is made from, and how."""

    experiment: Name  # what it is called: its results lie in `runs/<experiment>/`
    runs: ConfigPath = Field("../runs", validate_default=True)  # where experiments lie
    cache: ConfigPath = Field("../cache", validate_default=True)  # where decoded images lie
    seed: Seed = 0  # of everything that draws, but the deal of folds
    objective: Literal["auc", "pauc80", "ap", "logloss"] = "auc"  # the aim of blends and studies, and the headline
    threads: int = Field(2, ge=1)  # of each task; a setting, because it changes the bytes
    n_jobs: int = Field(1, ge=1)  # tasks at a time; on GPUs as many as there are GPUs
    backend: Literal["processes", "ray"] = "processes"  # where tasks run
    ray: Ray = Ray()  # for `backend: ray`
    workers: int = Field(0, ge=0)  # loader processes of each image task; 0 serves a CPU best
    device: Literal["auto", "cpu", "cuda"] = "auto"  # of image models; `auto` takes a GPU where there is one
    data: Data  # where the rows and pictures are
    folds: Folds = Folds()  # how training rows are dealt
    image_models: tuple[ImageModel, ...] = ()  # level 1: one run each
    features: Features = Features()  # what level 2 sees
    stackers: tuple[Stacker, ...] = ()  # level 2: one run each
    blend: Blend = Blend()  # how runs become one score
    tuned: Tuned = Tuned()  # studies whose result is used
    storage: str | None = None  # of studies: a database that Optuna knows, for many workers; none: a file in the run

    @property
    def model_names(self) -> list[str]:
        """Of every run that this config describes, also those switched off."""
        return [model.name for model in self.image_models] + [stacker.name for stacker in self.stackers]

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        names = self.model_names
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"{', '.join(doubled)}: the name of more than one model: each run needs its own")
        if strangers := set(self.tuned.gbdt) - {stacker.name for stacker in self.stackers}:
            raise ValueError(f"tuned.gbdt names {', '.join(sorted(strangers))}, which is no stacker of this config")
        if strangers := set(self.tuned.image) - {model.name for model in self.image_models if not model.frozen}:
            raise ValueError(f"tuned.image names {', '.join(sorted(strangers))}, which is no trained image model")
        if self.image_models and self.data.images is None:
            raise ValueError("image_models need data.images: the folder that holds <id>.jpg or <id>.png")
        if self.backend == "ray" and self.device == "cuda" and not self.ray.gpus:
            raise ValueError("device: cuda on a Ray cluster needs ray.gpus: how many a task reserves, such as 1")
        for model in self.image_models:
            needed = dict.fromkeys(model.metadata, "metadata") | (
                {"diagnosis": "target"} if model.target == "diagnosis" else {}
            )
            for name, key in needed.items():
                if getattr(self.data.columns, name) is None:
                    raise ValueError(f"{model.name} has `{key}: {name}`: name the column in data.columns.{name}")
        tables = [external.name for external in self.data.external]
        if doubled := sorted({name for name in tables if tables.count(name) > 1}):
            raise ValueError(f"data.external: {', '.join(doubled)} is the name of more than one table")
        return self


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """The checked config of ``path`` after ``overrides`` such as ``image_models.0.epochs=3``. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such config: see configs/ for examples")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings: it should start with `experiment: <name>`")
    for override in overrides:
        _override(raw, override)
    try:
        return Config.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        more = [f"  … {len(faults):,} faults in all"] if len(faults) > _MAX_LISTED else []
        raise ConfigError("\n".join([f"{path}:", *faults[:_MAX_LISTED], *more])) from error


def _override(raw: dict[str, Any], override: str) -> None:
    """Write one ``key.key.0=value`` into the raw settings, its value read as YAML."""
    keys, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write it as key=value, such as image_models.0.epochs=3")
    *path, last = keys.split(".")
    place: Any = raw
    try:
        for key in path:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[int(last) if isinstance(place, list) else last] = parse_yaml(text)
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--set {override}: the config has no such place ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML ({error})") from error


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if "function-" not in str(part)) or "config"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in {"missing", "value_error"} else f", got {_SHORT_REPR.repr(error['input'])}"
    line = f"  {where}: {message}{given}"
    return line if len(line) <= _MAX_ERROR_CHARACTERS else f"{line[:_MAX_ERROR_CHARACTERS]} …"
