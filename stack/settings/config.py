"""Reads the YAML config of an experiment into one validated, frozen object."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from dermstack.errors import ConfigError
from dermstack.masking import MASK, mask_secrets
from stack.metrics.objective import OBJECTIVES
from stack.settings.data import Data, PredictPer
from stack.settings.faults import fault_of_value
from stack.settings.image_models import ConfigPath, ImageModel, Name, Seed, Strict, resolve_path
from stack.settings.level2 import Features, Stacker, check_own_features, check_sources, union
from stack.settings.review import Review
from stack.settings.yaml_text import colon_hint, fault_hint, glued_keys, parse_yaml

_MAX_LISTED = 20  # faults shown of a config


class Folds(Strict):
    """How training rows are assigned to folds."""

    k: int = Field(5, ge=2, le=100)  # number of folds
    seed: Seed = 0  # seed of the assignment
    # what is held out as a whole: `group` (the patient), or `source` (data.columns.source or data.sources), so that the
    # estimate is for sources that the models have not seen; there are at most as many folds as sources
    by: Literal["group", "source"] = "group"
    # `by: source`: groups with rows of several sources. `join` holds these sources out together; `drop` leaves out the
    # group's rows outside the source of most of them, so that sources stay apart
    shared_groups: Literal["join", "drop"] = "join"
    stratify: tuple[Literal["group_size", "age"], ...] = ()  # what to balance over folds besides the target
    # csv or parquet of existing folds, such as an out-of-fold file: the id column of the training table, and `fold`
    file: ConfigPath | None = None


class Estimate(Strict):
    """Which estimates `stack` makes beside the headline."""

    # where sources are known and the folds hold out groups: fit level 2 and the blend again with folds that hold out
    # whole sources; the report shows both estimates and what to expect of the next source
    leave_source_out: bool = True
    # also train the image models again with these folds, beside those of groups, so that the second estimate is not
    # optimistic: `oof` trains as many further nets as there are folds of sources; `plan` says how long that takes
    train_by_source: bool = False

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `train_by_source` where it is off, so that what is written of other configs stays as it was."""
        return {name: value for name, value in handler(self).items() if name != "train_by_source" or value}


# Increase it when the blend of the same rows with the same settings becomes another one.
BLEND_VERSION = 3
BlendMethod = Literal[  # simplest first
    "rank_mean", "mean", "backward", "forward", "rank_logistic", "logistic", "averaged_logistic", "hill_climb", "optuna"
]


class Blend(Strict):
    """How runs are combined into one score."""

    # methods to choose from; the choice never uses the rows that it is scored on. With `tuned.blend`, `optuna` is one
    # of them
    methods: tuple[BlendMethod, ...] = Field(("rank_mean", "mean", "averaged_logistic"), min_length=1)
    # names or patterns of the runs that are blended, of both levels; none: all
    runs: tuple[str, ...] | None = Field(None, min_length=1)
    trials: int = Field(100, ge=1)  # `optuna`: number of trials; the first ones are the weights of the simpler methods
    power: bool = False  # `optuna`: also fit an exponent for the ranks of each run
    replacement: bool = True  # `hill_climb`: a run may be added more than once
    bags: int = Field(5, ge=1)  # `hill_climb`: climbs averaged, one on all rows, the others on random halves
    # leave out runs whose AUC is not shown to be above 0.5, if the rank mean is better without them
    preselect: bool = True


class Ray(Strict):
    """How tasks run on a Ray cluster; every node must be able to read and write the folders of runs and cache."""

    address: str | None = None  # address of a running cluster, or `auto`; none: a temporary one on this machine
    cpus: float = Field(1, ge=0)  # CPUs that a task reserves, usually as many as `threads`
    gpus: float = Field(0, ge=0)  # GPUs that a task reserves; with a fraction tasks share one, with 0 they use the CPU
    retries: int = Field(3, ge=0)  # restarts of a task whose worker or node was lost; it resumes from its last epoch


class Tuned(Strict):
    """Results of `dermstack tune` that the experiment uses."""

    blend: ConfigPath | None = None  # result of the study of blend weights
    gbdt: dict[str, ConfigPath] = {}  # result of the parameter study of each GBDT, by stacker
    image: dict[str, ConfigPath] = {}  # result of the study of each image model; its score is "selected on these rows"


def without_login(text: str) -> str:
    """Returns text with user name and password of each address in it masked."""
    return re.sub(r"(?<=://)[^/\s]*@", f"{MASK}@", text)


class Mlflow(Strict):
    """Logging to MLflow."""

    # address of a server, which may hold a password, or a folder; none: the folder `mlruns` in `runs`
    uri: SecretStr | None = None
    experiment: str = Field("dermstack", min_length=1)  # MLflow's experiment, under which each command is a run

    @field_validator("uri", mode="before")
    @classmethod
    def _resolve_folder(cls, uri: Any, info: ValidationInfo) -> Any:
        is_folder = isinstance(uri, str | Path) and "://" not in str(uri) and str(uri) != "databricks"
        return str(resolve_path(uri, info)) if is_folder else uri

    @property
    def shown_uri(self) -> str | None:
        """The address without user name and password."""
        return None if self.uri is None else without_login(self.uri.get_secret_value())


class Wandb(Strict):
    """Logging to Weights & Biases."""

    project: str = Field("dermstack", min_length=1)  # project of Weights & Biases, in which each command is a run
    entity: str | None = None  # team or user of the project; none: the default of who is logged in
    # `offline` writes into `wandb` in `runs`, from where `wandb sync` can upload it; `online` uploads at once
    mode: Literal["offline", "online"] = "offline"


class Tracking(Strict):
    """Where `oof` and `stack` log settings, scores, training curves and the report; nowhere unless it is named here."""

    mlflow: Mlflow | None = None  # `{}` logs to a folder
    tensorboard: ConfigPath | None = None  # folder of TensorBoard's event files
    wandb: Wandb | None = None  # `{}` logs offline
    report: bool = True  # also log the report page, which may show images


class Config(Strict):
    """The settings of one experiment."""

    experiment: Name  # name of the experiment; its results are in `runs/<experiment>/`
    runs: ConfigPath = Field("../runs", validate_default=True)  # folder of the experiments
    cache: ConfigPath = Field("../cache", validate_default=True)  # folder of the decoded images
    seed: Seed = 0  # seed of everything random except the assignment to folds
    # metric of the headline, of blends and of studies: `auc`, `pauc80`, `ap`, `logloss`, or `module:function`, which is
    # in a .py file beside the config, takes targets and scores and returns a number, higher is better
    objective: str = "auc"
    # threads of each task; a setting, because their number changes the output bytes. More than 1 is many times slower
    # where other work has the cores, as threads wait actively for each other: leave 1, and raise `n_jobs`
    threads: int = Field(1, ge=1)
    # number of parallel tasks, at most the cores to use; where there are GPUs, image tasks run one on each GPU
    n_jobs: int = Field(1, ge=1)
    backend: Literal["processes", "ray"] = "processes"  # where image tasks run
    ray: Ray = Ray()  # settings of `backend: ray`
    workers: int = Field(0, ge=0)  # data loader processes of each image task; 0 is fastest on a CPU
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device of image models; `auto` is a GPU where there is one
    data: Data  # paths of the tables and images
    folds: Folds = Folds()  # how training rows are assigned to folds
    estimate: Estimate = Estimate()  # which estimates `stack` makes beside the headline
    image_models: tuple[ImageModel, ...] = ()  # level 1: one run each
    features: Features = Features()  # features of the level-2 matrix
    stackers: tuple[Stacker, ...] = ()  # level 2: one run each
    blend: Blend = Blend()  # how runs are combined into one score
    review: Review | None = None  # which images the ensemble decides and which go to a person; none: no such decision
    # `group`, a column or a list of columns: one prediction for each of their values (a breast, a lesion) instead of
    # one for each image, in metrics, report, submission and bundle; or a section with these keys
    predict_per: PredictPer | None = None
    tuned: Tuned = Tuned()  # results of studies that the experiment uses
    # URL of an Optuna database of studies, for many workers; none: a file in the experiment's folder
    storage: SecretStr | None = None
    tracking: Tracking = Tracking()  # logging to MLflow, TensorBoard, Weights & Biases; changes no result

    @property
    def all_features(self) -> Features:
        """Features with every block that the config or an enabled stacker has switched on.

        The level-2 matrix is built once with these, and each stacker takes its columns of it (stack/views.py).
        """
        own = [stacker for stacker in self.stackers if stacker.enabled and stacker.features]
        views = [self.features, *(stacker.features_with(self.features) for stacker in own)]
        return self.features.model_copy(
            update={name: union([getattr(view, name) for view in views]) for name in Features.model_fields}
        )

    def experiment_name(self, *, shuffled: bool) -> str:
        """Returns the name of the experiment, or of its copy with shuffled targets."""
        return f"{self.experiment}-shuffled-{self.seed}" if shuffled else self.experiment

    @property
    def name_by_source(self) -> str:
        """Name of the experiment whose image models are trained again with folds of sources."""
        return f"{self.experiment}-by-source"

    @property
    def _existing_folds(self) -> dict[str, bool]:
        return {"folds.file": self.folds.file is not None, "data.columns.fold": self.data.columns.fold is not None}

    @property
    def model_names(self) -> list[str]:
        """Names of all image models and stackers of this config, also of those with `enabled: false`."""
        return [model.name for model in self.image_models] + [stacker.name for stacker in self.stackers]

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, objective: str, info: ValidationInfo) -> str:
        if objective in OBJECTIVES:
            return objective
        from stack.metrics.own_metric import is_import_path, own_metric  # needs NumPy, which most configs do not

        if not is_import_path(objective):
            names = [repr(name) for name in OBJECTIVES]
            raise ValueError(
                f"choose {', '.join(names[:-1])} or {names[-1]}, got {objective!r}; a function of your own is written "
                "as module:function"
            )
        folder = (info.context or {}).get("folder", Path.cwd())
        try:
            return own_metric(objective, Path(folder), may_take_groups=False)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @model_serializer(mode="wrap")
    def _without_absent_review(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out a `review` that is not there, so that what is written of other configs stays as it was."""
        return {name: value for name, value in handler(self).items() if name != "review" or value is not None}

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, storage: SecretStr | None) -> SecretStr | None:
        if storage is not None:
            from sqlalchemy import make_url  # slow to import, and few configs name a database
            from sqlalchemy.exc import ArgumentError

            advice = "write it as postgresql+pg8000://user@host:5432/database or sqlite:///studies.db"
            try:
                url = make_url(storage.get_secret_value())
            except ArgumentError:
                raise ValueError(f"it is not the URL of a database: {advice}") from None
            except ValueError:
                raise ValueError(
                    f"the port of {mask_secrets(storage.get_secret_value())} is no number: {advice}"
                ) from None
            if url.port is not None and not 0 < url.port < 2**16:
                raise ValueError(f"its port {url.port} is not between 1 and 65535: {advice}")
        return storage

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        """Raises ValueError where two parts of the config contradict each other, or one names what the other lacks."""
        self._check_names()
        self._check_folds_and_sources()
        self._check_image_models()
        for stacker in self.stackers:
            check_own_features(stacker, self.features)
        check_sources(self.stackers)
        self._check_units()
        if self.estimate.train_by_source:
            self._check_training_by_source()
        self._check_further_tables()
        return self

    def _check_names(self) -> None:
        """Raises ValueError for two models of one name, and for a study of no model or of one with `repeats`."""
        names = self.model_names
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"more than one model is named {', '.join(doubled)}: give each a name of its own")
        if strangers := set(self.tuned.gbdt) - {stacker.name for stacker in self.stackers}:
            raise ValueError(f"tuned.gbdt names {', '.join(sorted(strangers))}, which is not a stacker of this config")
        if strangers := set(self.tuned.image) - {model.name for model in self.image_models if not model.frozen}:
            raise ValueError(f"tuned.image names {', '.join(sorted(strangers))}, which is not a trained image model")
        if both := [
            stacker.name for stacker in self.stackers if stacker.repeats > 1 and stacker.name in self.tuned.gbdt
        ]:
            raise ValueError(
                f"{both[0]} has `repeats` and a study in tuned.gbdt, which chose parameters on rows that other repeats "
                "hold out: remove one of the two"
            )

    def _check_folds_and_sources(self) -> None:
        """Raises ValueError where folds or sources come from two places, or `folds.by: source` from none."""
        if all(self._existing_folds.values()):
            raise ValueError("data.columns.fold and folds.file both name existing folds: remove one of them")
        if self.data.columns.source and self.data.sources:
            raise ValueError("data.columns.source and data.sources both name sources: remove one of them")
        if self.folds.by == "source":
            if not self.data.has_sources:
                raise ValueError(
                    "folds.by: source needs sources: name their column in data.columns.source, or a file in "
                    "data.sources (`dermstack sources` writes one from how the images were taken)"
                )
            if own := [key for key, there in self._existing_folds.items() if there]:
                raise ValueError(f"folds.by: source makes new folds, but {own[0]} names existing ones: remove one")

    def _check_image_models(self) -> None:
        """Raises ValueError where image models lack their images, a GPU of the cluster, or a column of the table."""
        if self.image_models and self.data.images is None:
            raise ValueError("image_models need data.images: the folder that holds <id>.jpg or <id>.png")
        if self.backend == "ray" and self.device == "cuda" and not self.ray.gpus:
            raise ValueError("device: cuda on a Ray cluster needs ray.gpus: set how many a task reserves, such as 1")
        for model in self.image_models:
            needed = {name: "metadata" for name in model.metadata if name in ("age", "sex", "site")}
            needed |= {"diagnosis": "target"} if model.target == "diagnosis" else {}
            for name, key in needed.items():
                if getattr(self.data.columns, name) is None:
                    raise ValueError(f"{model.name} has `{key}: {name}`: name its csv column in data.columns.{name}")

    def _check_further_tables(self) -> None:
        """Raises ValueError for two further tables of one name, and for unlabelled rows that lack images or a table."""
        external = [table.name for table in self.data.external]
        for key, tables in (
            ("external", external),
            ("unlabelled", [*external, *(table.name for table in self.data.unlabelled)]),
        ):
            if doubled := sorted({name for name in tables if tables.count(name) > 1}):
                raise ValueError(f"data.{key}: more than one table is named {', '.join(doubled)}: rename one of them")
        if self.data.unlabelled and self.data.images is None:
            raise ValueError(
                "data.unlabelled needs data.images: without images there is no model to label its rows for"
            )
        for model in self.image_models:
            if model.pseudo_labels is not None and model.pseudo_labels.unlabelled and not self.data.unlabelled:
                raise ValueError(
                    f"{model.name}: pseudo_labels.rows is {model.pseudo_labels.rows!r}, but data.unlabelled names no "
                    "table: add one, or set pseudo_labels.rows: test"
                )

    def _check_training_by_source(self) -> None:
        """Raises ValueError where there is nothing that `estimate.train_by_source` could train, or it would mislead."""
        key, models = "estimate.train_by_source", [model for model in self.image_models if model.enabled]
        if not self.estimate.leave_source_out:
            raise ValueError(f"{key} trains for estimate.leave_source_out, which is false: set one of them otherwise")
        if not self.data.has_sources:
            raise ValueError(
                f"{key} needs sources: name their column in data.columns.source, or a file in data.sources (`dermstack "
                "sources` writes one from how the images were taken)"
            )
        if self.folds.by == "source":
            raise ValueError(f"{key} is of no use with folds.by: source, whose folds hold out sources: remove it")
        if not models:
            raise ValueError(f"{key} has no image model to train: enable one of image_models, or remove the key")
        if labelled := [model.name for model in models if model.pseudo_labels is not None]:
            raise ValueError(
                f"{key} and pseudo_labels exclude each other, as rows without a target may come from the source that "
                f"is held out: disable {', '.join(labelled)}, or remove {key}"
            )

    def _check_units(self) -> None:
        """Raises ValueError where `predict_per` names no unit, or meets a setting that is made for single images."""
        if (per := self.predict_per) is None:
            return
        columns = self.data.columns
        if "group" in per.columns and columns.group is None:
            raise ValueError("predict_per: group needs data.columns.group: name the csv column of the groups there")
        if columns.target_column in per.columns:
            raise ValueError(f"predict_per names {columns.target_column}, the target: name the columns of the unit")
        if self.data.on_unreadable_test == "table":
            raise ValueError(
                "predict_per and data.on_unreadable_test: table exclude each other, as the fallback predicts single "
                "images: set data.on_unreadable_test to refuse, or remove predict_per"
            )
        if self.tuned.blend is not None:
            raise ValueError(
                "predict_per and tuned.blend exclude each other, as the study tuned weights for single images: remove "
                "tuned.blend (`blend.methods` with optuna searches weights for units), or remove predict_per"
            )


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Reads and checks the config in ``path``, with ``overrides`` such as ``image_models.0.epochs=3``.

    Raises ConfigError.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name the YAML file in it, such as {path / 'config.yaml'}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is a stream: save the config as a file, as its paths are relative to its folder")
    if not path.is_file():
        raise ConfigError(f"{path}: no such config: check the path; `dermstack demo-data FOLDER` writes an example")
    text = ""
    try:
        raw = parse_yaml(text := path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}{fault_hint(text, error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings: {colon_hint(raw) or 'start it with `experiment: <name>`'}")
    return config_of(raw, overrides, folder=path.resolve().parent, name=str(path))


def config_of(
    settings: Mapping[str, Any],
    overrides: tuple[str, ...] = (),
    *,
    folder: Path | None = None,
    name: str = "the settings",
) -> Config:
    """Checks the settings of a config, given as a mapping with the keys of the YAML file, with ``overrides``.

    Relative paths start at ``folder``, by default the current one; ``name`` is used in messages. Raises ConfigError.
    """
    raw = copy.deepcopy(dict(settings)) if overrides else dict(settings)
    for override in overrides:
        _override(raw, override)
    if glued := list(glued_keys(raw)):
        raise ConfigError("\n".join([f"{name}:", *(f"  {hint}" for hint in glued[:_MAX_LISTED])]))
    try:
        return Config.model_validate(raw, context={"folder": folder or Path.cwd()})
    except ValidationError as error:
        faults = [fault_of_value(fault) for fault in error.errors()]
        more = [f"  … {len(faults):,} faults in all"] if len(faults) > _MAX_LISTED else []
        raise ConfigError("\n".join([f"{name}:", *faults[:_MAX_LISTED], *more])) from error


def _override(raw: dict[str, Any], override: str) -> None:
    """Writes one ``key.key.0=value`` into the raw settings; the value is read as YAML."""
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
        full = isinstance(error, IndexError)
        why = f"its list has {len(place)} entries, counted from 0" if full else "check the names before the `=`"
        raise ConfigError(f"--set {override}: the config has no such place: {why}") from error
    except yaml.YAMLError as error:
        hint = fault_hint(text, error)
        raise ConfigError(f"--set {override}: the value is not valid YAML ({error}){hint}") from error
