"""Settings of level 2 in the config: the features of its matrix, and the stackers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dermstack.errors import ImageError, TabularError
from image_models.settings import set_transformer_settings
from stack.settings.image_models import Name, Strict, resolve_path

LATER_FEATURES = (
    "columns",
    "native_categories",
    "target_encoding",
    "category_min_rows",
    "relative",
    "relative_site",
    "outliers",
    "cohort_columns",
    "probability_ratio",
    "derived",
    "python",
)  # keys of `features` that dermstack 0.2.0 did not have


Statistic = Literal["median_diff", "mean_diff", "mean_ratio", "z", "rank", "spread"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)  # those of `tabular.relative`, which imports pandas


def _resolved(value: object, info: ValidationInfo) -> object:
    """Resolves a path as `resolve_path` does; it is resolved already where there is no context."""
    return value if info.context is None else resolve_path(value, info)


class Features(Strict):
    """Which features the level-2 matrix holds."""

    # logit of each level-1 run, standardised by the rows of all its nets, or by those of each net where these differ in
    # scale
    logits: bool = True
    metadata: bool = True  # age, sex and site
    aggregates: bool = True  # statistics of age and of each run's logit over the rows of the group
    cohort: bool = False  # z-score of each logit among rows of the same age band, sex and site
    neighbours: bool = True  # distance of each run's embedding to those of the other rows of the group
    frozen_z: int = Field(0, ge=0)  # principal components of each frozen run's embedding; 0: none
    aligned_z: int = Field(16, ge=0)  # components of each trained run's embedding, aligned across folds; 0: none
    context_counts: bool = False  # images and visits of the group: an artefact of data collection, so off by default
    shortcuts: bool = False  # width, height and bytes of the image file: also an artefact of data collection
    columns: bool = True  # values of the numeric and categorical columns of `data.columns`
    # GBDTs split categorical columns of more than 20 words by sets of words; false: they see what other stackers see,
    # an indicator for each of the 20 most frequent words
    native_categories: bool = True
    # true: every stacker sees a categorical column of more than 20 words as the log odds of the target among other
    # patients' rows with the word, fitted within the stacker's fit; `native_categories` then has no effect
    target_encoding: bool = False
    # `native_categories`, `target_encoding`: words with fewer training rows in the fold share one code, which new words
    # get too; 1: each word has its own
    category_min_rows: int = Field(1, ge=1)
    # numeric columns relative to the rows of the group: any of median_diff, mean_diff, mean_ratio, z, rank, spread
    relative: tuple[Statistic, ...] = ("mean_diff", "z", "rank")
    relative_site: tuple[Statistic, ...] = ()  # the same, relative to the rows of the group with the same site
    # distance to the nearest rows of the group in the standardised numeric columns, and local outlier factor
    outliers: bool = True
    cohort_columns: bool = False  # z-score of each numeric column among rows of the same age band, sex and site
    probability_ratio: bool = False  # probability of each run divided by its mean over the group
    # further numeric columns, as expressions of the csv's columns with + - * / **, comparisons, log, log1p, sqrt, abs,
    # where, clip, min and max, such as `{colour_ratio: "tbp_lv_A / tbp_lv_Aext"}`
    derived: dict[str, str] = {}
    # file with a function of your own, `features(table)`, that returns further numeric columns for the rows of a table
    # without target; it runs with your rights, each group must be computed alone, and it cannot be bundled
    python: Annotated[Path | None, BeforeValidator(_resolved)] = None

    @field_validator("relative", "relative_site")
    @classmethod
    def _in_order(cls, given: tuple[Statistic, ...]) -> tuple[Statistic, ...]:
        return tuple(name for name in STATISTICS if name in given)

    @field_validator("derived")
    @classmethod
    def _check_expressions(cls, derived: dict[str, str]) -> dict[str, str]:
        for name, text in derived.items():
            from tabular.expressions import parse  # imports pandas, which a config without expressions does not need

            try:
                parse(text)
            except TabularError as error:
                raise ValueError(f"{name}: {error}") from error
        return derived

    def inputs(self) -> dict[str, Any]:
        """Returns what the features depend on, for fingerprints and bundles.

        Keys that were added later are left out at their defaults, so that runs made before them stay fresh.
        """
        later = {name for name in LATER_FEATURES if getattr(self, name) == type(self).model_fields[name].default}
        made = self.model_dump(mode="json", exclude=later)
        if self.python is not None:  # its content counts, not its place
            made["python"] = hashlib.sha256(self.python.read_bytes()).hexdigest()
        return made


LATER_STACKER = (
    "runs",
    "features",
    "estimator",
    "positives",
    "repeats",
    "select",
)  # keys of a stacker that dermstack 0.2.0 did not have


# Blocks of features that describe a row's group, switched off.
WITHOUT_GROUP: dict[str, Any] = {
    "aggregates": False, "neighbours": False, "relative": (), "relative_site": (), "outliers": False,
    "probability_ratio": False,
}  # fmt: skip
MAX_REPEATS = 50
UNEXPLAINED = ("set_transformer", "sklearn")  # kinds without exact contributions of features


class Stacker(Strict):
    """One level-2 run over all folds: a GBDT, a logistic regression, a set transformer or one of scikit-learn."""

    name: Name  # name of the run
    # catboost needs the extra `dermstack[catboost]`; `set_transformer` is a network that sees a row together with the
    # others of its group and needs the extra `dermstack[image]`; `sklearn` is a classifier of scikit-learn, which
    # cannot be bundled
    kind: Literal["lightgbm", "xgboost", "catboost", "logistic", "set_transformer", "sklearn"]
    # `sklearn`: import path of a classifier with predict_proba, such as `sklearn.ensemble.ExtraTreesClassifier`;
    # nothing outside scikit-learn is imported
    estimator: str = ""
    # parameters of the library, which replace our defaults; of a GBDT also `rounds` and `patience`; of a set
    # transformer those that docs/level2.md lists; `logistic` has none
    params: dict[str, Any] = {}
    bags: int = Field(3, ge=1)  # number of models with different seeds, whose logits are averaged
    negatives: float = Field(1.0, gt=0, le=1)  # share of the negative rows that each of these models is trained on
    # copies of each positive row; 2.5: two copies, three of a random half of the positive rows
    positives: float = Field(1.0, ge=1, le=1000)
    # repetitions over other folds with other seeds, whose logits are averaged
    repeats: int = Field(1, ge=1, le=MAX_REPEATS)
    positive_weight: float = Field(1.0, gt=0)  # weight of positive rows in the loss; not for `logistic`
    monotone: bool = False  # constrain a GBDT so that its risk never falls where the p of a run rises
    # largest number of columns that it is fitted on: those of the largest gain in a first LightGBM fit to each fold's
    # training rows; 0: all
    select: int = Field(0, ge=0)
    device: Literal["cpu", "gpu"] = "cpu"  # device of GBDTs; `gpu` gives other bytes, and LightGBM needs a GPU build
    # names or patterns of the level-1 runs that it sees; none: all; `[]`: it is a model of the table alone, which other
    # stackers see as they see a level-1 run where their `runs` name it in full
    runs: tuple[str, ...] | None = None
    # keys of `features` that differ for this stacker, such as `{aggregates: false}`; frozen_z and aligned_z may only be
    # lower than the common value; a set transformer gets no statistics of the group (`aggregates`, `neighbours`,
    # `relative`, …) unless they are named here; `derived`, `python` and `category_min_rows` are common to all stackers
    features: dict[str, Any] = {}
    enabled: bool = True  # false: the stacker is not used, but its settings stay in the config

    @model_validator(mode="after")
    def _check_estimator(self) -> Self:
        if (self.kind == "sklearn") != bool(self.estimator):
            raise ValueError(
                f"{self.name}: kind sklearn needs `estimator`, such as sklearn.ensemble.ExtraTreesClassifier"
                if self.kind == "sklearn"
                else f"{self.name}: `estimator` is for kind sklearn, not for {self.kind}: remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _check_options_of_gbdts(self) -> Self:
        if not self.is_gbdt and (self.monotone or self.device == "gpu"):
            raise ValueError(f"{self.name}: `monotone` and `device: gpu` are for GBDTs: remove them")
        return self

    @model_validator(mode="after")
    def _check_logistic(self) -> Self:
        if self.kind == "logistic" and (self.positive_weight != 1 or self.params):
            raise ValueError(
                f"{self.name}: kind logistic has no `positive_weight` and no `params`: remove them; `positives` gives "
                "positive rows more weight"
            )
        return self

    @model_validator(mode="after")
    def _check_set_transformer(self) -> Self:
        if self.kind != "set_transformer":
            return self
        if self.negatives != 1 or self.positives != 1:
            raise ValueError(
                f"{self.name}: a set_transformer sees whole groups, so it has no `negatives` and `positives`: remove "
                "them; `positive_weight` gives positive rows more weight"
            )
        try:
            set_transformer_settings(self.params)
        except ImageError as error:
            raise ValueError(f"{self.name}: params: {error}") from error
        return self

    def inputs(self) -> dict[str, Any]:
        """Returns what the stacker's own settings are, for fingerprints; later keys are left out at their defaults."""
        later = {name for name in LATER_STACKER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude={"enabled", "features", *later})

    @property
    def is_gbdt(self) -> bool:
        """Whether the stacker is a GBDT, which takes native categories."""
        return self.kind in ("lightgbm", "xgboost", "catboost")

    def features_with(self, common: Features) -> Features:
        """Returns the features of this stacker: the ``common`` ones with its own changes.

        A set transformer sees the other rows of the group themselves, so it gets no statistics of them by default.
        """
        own = WITHOUT_GROUP | self.features if self.kind == "set_transformer" else self.features
        return Features.model_validate(common.model_dump() | own) if own else common


def union(values: list[Any]) -> Any:
    """Returns the largest of several switches or numbers, or all entries of several lists."""
    if isinstance(values[0], tuple):
        return tuple(name for name in STATISTICS if any(name in value for value in values))
    if values[0] is None or isinstance(values[0], dict | Path):  # common to all
        return values[0]
    return max(values)


def check_own_features(stacker: Stacker, common: Features) -> None:
    """Raises ValueError for a key of a stacker's features that is unknown, of the wrong type or too large."""
    try:
        own = Features.model_validate(common.model_dump() | stacker.features)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, ("features", *fault["loc"])))
        raise ValueError(f"{stacker.name}: {where}: {fault['msg'].removeprefix('Value error, ')}") from None
    if own.derived != common.derived:
        raise ValueError(f"{stacker.name}: features.derived is common to all stackers: move it to `features`")
    if own.python != common.python:
        raise ValueError(f"{stacker.name}: features.python is common to all stackers: move it to `features`")
    if own.category_min_rows != common.category_min_rows:
        raise ValueError(f"{stacker.name}: features.category_min_rows is common to all stackers: move it to `features`")
    for name in ("frozen_z", "aligned_z"):
        if getattr(own, name) > getattr(common, name):
            raise ValueError(
                f"{stacker.name}: features.{name} is {getattr(own, name)}, more than the common "
                f"{getattr(common, name)}: raise features.{name}, which is fitted once for all stackers"
            )


def source_names(stackers: Iterable[Stacker]) -> list[str]:
    """Returns the names of the enabled stackers that another enabled one sees, in the order of the config."""
    enabled = [stacker for stacker in stackers if stacker.enabled]
    named = {name for stacker in enabled for name in stacker.runs or ()}
    return [stacker.name for stacker in enabled if stacker.name in named]


def is_second_stage(stacker: Stacker, stackers: Iterable[Stacker]) -> bool:
    """Returns whether it sees another stacker, so that it is fitted after all that see none."""
    return not {one.name for one in stackers}.isdisjoint(stacker.runs or ())


def check_sources(stackers: Iterable[Stacker]) -> None:
    """Raises ValueError where the `runs` of an enabled stacker name a stacker that it cannot see."""
    by_name = {stacker.name: stacker for stacker in stackers}
    for stacker in (one for one in by_name.values() if one.enabled):
        for source in (by_name[name] for name in stacker.runs or () if name in by_name):
            if source is stacker:
                raise ValueError(
                    f"{stacker.name}: `runs` names the stacker itself: remove {stacker.name} from its runs"
                )
            if source.runs != ():
                raise ValueError(
                    f"{stacker.name}: `runs` names the stacker {source.name}, which sees runs itself, and only a model "
                    f"of the table alone can be seen: set `runs: []` for {source.name}, or remove it from the runs of "
                    f"{stacker.name}"
                )
            if not source.enabled:
                raise ValueError(
                    f"{stacker.name}: `runs` names the stacker {source.name}, which is not enabled: enable it, or "
                    f"remove it from the runs of {stacker.name}"
                )
