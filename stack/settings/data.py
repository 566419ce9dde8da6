"""Settings of the tables and images in the config: paths, names of columns, codes, external tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from stack.settings.image_models import ConfigPath, Name, Strict

Wanted = Literal["auto"] | tuple[str, ...]  # names or patterns of columns
Codes = Mapping[str, tuple[str | float, ...]]  # values that mean "unknown", by name or pattern of a column
Code = str | int | float  # a value of a cell that stands for a missing one


def _as_codes(value: object) -> object:
    """Makes a list of one value that stands alone."""
    return (value,) if isinstance(value, str | int | float) else value


def _as_names(value: object) -> object:
    """Makes a list of one name that stands alone; `auto` stays."""
    return (value,) if isinstance(value, str) and value != "auto" else value


class Target(Strict):
    """The column of the target and the values in it that count as 1, where it does not hold 0 and 1."""

    column: str  # name of the csv column
    # the value, or a list of values, of a positive row, in any case of letters; all other values are negative
    positive: Annotated[tuple[Code, ...], BeforeValidator(_as_codes)] = Field(min_length=1)


class Columns(Strict):
    """Names of the csv columns by meaning; id and target are required, the rest are optional."""

    id: str  # unique id of the image, which is also the name of its file
    # the patient, or the lesion where no patient is known: all rows of a group are in one fold; none: each row is its
    # own group, so rows of one patient may be in several folds, which makes the estimate too good
    group: str | None = None
    target: str | Target  # name of a column of 0 and 1, or a section that says which values are positive
    age: str | None = None  # in years, 0 to 120; an empty cell is a missing value, a code such as 999 is refused
    sex: str | None = None  # any words, upper or lower case; an empty cell is a missing value
    site: str | None = None  # location on the body, in any words; an empty cell is a missing value
    diagnosis: str | None = None  # diagnosis of training rows, for image models with `target: diagnosis`
    # hospital, camera, year or archive; not used by models: the report has a subgroup for each and an estimate for
    # sources that were held out
    source: str | None = None
    fold: str | None = None  # existing folds, which are used instead of new ones
    width: str | None = None  # width of the original image in pixels, for `shortcuts`; otherwise taken from the cache
    height: str | None = None  # height of the original image in pixels
    bytes: str | None = None  # size of the original image file
    # columns of numbers that are features of level 2: names, patterns such as `tbp_lv_*`, or `auto` for every column
    # of numbers that train and test share, but for identifiers, constants and proxies of the target
    numeric: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_as_names)] = ()
    # columns of words that are features of level 2: names, patterns or `auto`
    categorical: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_as_names)] = ()

    @property
    def roles(self) -> dict[str, str]:
        """The csv's name of each column that has a role and is mapped, by role; the target as `target`."""
        named = self.model_dump(exclude_none=True, exclude={"target", "numeric", "categorical"})
        found = {"id": self.id, **({"group": self.group} if self.group else {}), "target": self.target_column}
        return found | named

    @property
    def target_column(self) -> str:
        """The csv's name of the target."""
        return self.target if isinstance(self.target, str) else self.target.column

    @property
    def positive(self) -> tuple[str, ...]:
        """The values of the target that count as 1; () where it holds 0 and 1."""
        return () if isinstance(self.target, str) else tuple(map(str, self.target.positive))


@dataclass(frozen=True)
class ColumnRules:
    """What a config says of the columns without a role, of missing values and of the positive class."""

    numeric: Wanted = ()
    categorical: Wanted = ()
    missing: Codes = field(default_factory=dict)  # codes, by column name or pattern
    positive: tuple[str, ...] = ()  # the values of the target column that count as 1; (): it holds 0 and 1
    derived: Mapping[str, str] = field(default_factory=dict)  # expressions of further numeric columns, by name


NO_RULES = ColumnRules()


Pooling = Literal["mean", "maximum", "noisy_or", "learned"]  # simplest first


class PredictPer(Strict):
    """One prediction for each unit, such as a breast or a lesion, instead of one for each image."""

    # `group`, or the columns of the tables whose values together name the unit of an image, joined by `_`; all images
    # of a unit must be in one group. `predict_per: group` and `predict_per: [patient_id, laterality]` are short forms
    columns: Annotated[tuple[str, ...], BeforeValidator(_as_codes)] = Field(min_length=1)
    # target of a unit: `any` is positive if one of its images is; `same` refuses units with images of both targets
    target: Literal["any", "same"] = "any"
    # how the predictions of a unit's images become one, to choose from without the rows that are scored: `mean` and
    # `maximum` of the logits, `noisy_or` of the probabilities, `learned`: a logistic regression on these three
    pooling: tuple[Pooling, ...] = Field(("mean", "maximum", "noisy_or", "learned"), min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_columns(cls, value: Any) -> Any:
        return {"columns": value} if isinstance(value, str | list | tuple) else value

    @field_validator("columns", "pooling")
    @classmethod
    def _check_repeated(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{doubled[0]} is named more than once: name it once")
        return names


class TFRecords(Strict):
    """Names and integer codes of the features in TFRecord files, where they differ from Kaggle's."""

    features: dict[str, str] = {}  # the feature's name, by Kaggle's name: image, image_name, patient_id, sex, …
    codes: dict[str, dict[int, str]] = {}  # the meaning of each integer, by Kaggle's name; -1 is a missing value


class ExternalColumns(Strict):
    """Names of an external csv's columns by meaning; without a group column each row is its own group."""

    id: str  # unique id of the image, which is also the name of its file
    target: str  # 0 or 1; one class alone is allowed
    group: str | None = None  # the patient or the lesion
    age: str | None = None  # in years
    sex: str | None = None  # in the same words as the training table
    site: str | None = None  # location on the body, in the same words as the training table
    diagnosis: str | None = None  # required where an image model has `target: diagnosis`


class External(Strict):
    """Extra training rows for the image models of every fold: never scored, not in patient counts, not in level 2."""

    name: Name  # name of the table; its groups become `<name>:<group>`
    table: ConfigPath  # csv of its rows
    images: ConfigPath  # a folder of images or of shards, or an .hdf5 file, as in `data.images`
    columns: ExternalColumns  # names of its columns
    tfrecord: TFRecords = TFRecords()  # the same as `data.tfrecord`, for the shards of this table
    swap_red_blue: bool = False  # true: its images were encoded with red and blue exchanged, which is undone
    # what to do with an id or image that is also in train or test, as a near-duplicate or in `data.duplicates`
    on_collision: Literal["refuse", "drop"] = "refuse"


class UnlabelledColumns(Strict):
    """Names of an unlabelled csv's columns by meaning; without a group column each row is its own group."""

    id: str  # unique id of the image, which is also the name of its file
    # the patient or the lesion, named as in the training table: a row does not train the fold that holds out its group
    group: str | None = None
    age: str | None = None  # in years
    sex: str | None = None  # in the same words as the training table
    site: str | None = None  # location on the body, in the same words as the training table


class Unlabelled(Strict):
    """Rows without a target, which train image models with `pseudo_labels.rows: unlabelled` or `both`; never scored."""

    name: Name  # name of the table
    table: ConfigPath  # csv of its rows
    images: ConfigPath  # a folder of images or of shards, or an .hdf5 file, as in `data.images`
    columns: UnlabelledColumns  # names of its columns
    tfrecord: TFRecords = TFRecords()  # the same as `data.tfrecord`, for the shards of this table
    swap_red_blue: bool = False  # true: its images were encoded with red and blue exchanged, which is undone
    # what to do with a row whose id is also in train, test or an external table
    on_collision: Literal["refuse", "drop"] = "refuse"


class Data(Strict):
    """Paths of the tables and images, and how they are read."""

    name: Name  # name of the image cache, which experiments on the same data share
    train: ConfigPath  # csv of the training rows
    test: ConfigPath | None = None  # csv of the rows to predict; none: the score is estimated, no submission is written
    sample_submission: ConfigPath | None = None  # csv that sets the columns and the row order of the submission
    # csv or parquet of the sources of training rows, where no column of the table has them: the id column of the
    # training table, and `source`; `dermstack sources` writes one from sizes, encodings and colours of the images
    sources: ConfigPath | None = None
    duplicates: ConfigPath | None = None  # csv of pairs of ids that show the same lesion
    # a folder of `<id>.jpg`, `.png` or `.dcm`, or of `.tfrec` shards, or an `.hdf5` file; none: level 2 on imported
    # predictions
    images: ConfigPath | None = None
    test_images: ConfigPath | None = None  # folder or file of the test images, where it is not `images`
    columns: Columns  # names of the csv columns
    # values that mean "unknown", by column (`age`, or a name or pattern of the csv), such as `{age: [0, 999]}`
    missing: dict[str, Annotated[tuple[Code, ...], BeforeValidator(_as_codes)]] = {}
    tfrecord: TFRecords = TFRecords()  # names and codes inside TFRecord shards
    swap_red_blue: bool = False  # true: the images were encoded with red and blue exchanged, which is undone
    # true: a file whose name differs from the id in case, in Unicode form or in a suffix such as `.jpg` inside the id
    # is its image; false: that is an error which names the file
    similar_names: bool = False
    follow_links: bool = False  # true: also look for images in linked folders below `images`
    # `drop`: leave out unreadable training rows and record them; `tolerate`: use a JPEG with stray bytes after its last
    # pixel, with a warning, and refuse the others
    on_unreadable: Literal["refuse", "drop", "tolerate"] = "refuse"
    # test rows whose image cannot be read, after `on_unreadable: tolerate`: `refuse` names them and stops; `table`
    # predicts them from the columns of the table alone, by a model that is fitted and scored like the others
    on_unreadable_test: Literal["refuse", "table"] = "refuse"
    # bits that the values of 16-bit images use, such as 12; none: 16, and an error where none uses more than 12
    bits_stored: int | None = Field(None, ge=9, le=16)
    find_duplicates: bool = True  # find images that look alike and merge their groups, as `duplicates` does
    # images that look alike and would join more than two groups into one: `refuse` stops and names the groups, `merge`
    # merges them, `ignore` merges none of them
    on_chain: Literal["refuse", "merge", "ignore"] = "refuse"
    resize: Literal["square", "short_side"] = "square"  # `short_side` keeps the aspect; networks see the central square
    cache_format: Literal["raw", "jpeg"] = "raw"  # `jpeg` takes a tenth of the disk, but is decoded in every epoch
    external: tuple[External, ...] = ()  # tables of other data sets, used only to train image models
    # tables of images without targets, which image models label for each other fold by fold: see `pseudo_labels`
    unlabelled: tuple[Unlabelled, ...] = ()

    @property
    def has_sources(self) -> bool:
        """Whether the config says where the source of a training row is."""
        return self.columns.source is not None or self.sources is not None

    @property
    def column_rules(self) -> ColumnRules:
        """What is said of columns without a role, of missing values and of the positive class."""
        missing = self.missing_of(self.columns.roles)
        return ColumnRules(self.columns.numeric, self.columns.categorical, missing, self.columns.positive)

    def missing_of(self, roles: Mapping[str, str]) -> Codes:
        """Returns `missing` for a csv whose columns have these ``roles``: codes of a role are those of its column."""
        made: dict[str, tuple[Code, ...]] = {}
        for name, codes in self.missing.items():
            column = roles.get(name, name)
            made[column] = (*made.get(column, ()), *codes)  # a column may be named by its role and by its own name
        return made
