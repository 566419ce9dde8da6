"""Builds the EDA page: an overview of a data set before any model is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from dermstack.audit.columns import number_columns, word_columns
from dermstack.audit.drift import (
    AGE_EDGES,
    SIZE_LABELS,
    age_histograms,
    age_rates,
    age_shares,
    drift,
    group_sizes,
    level_counts,
    missing_values,
    picture_sizes,
    shortcuts,
)
from dermstack.audit.pictures import pair_kinds
from dermstack.audit.single_column import column_association
from dermstack.errors import DataError
from dermstack.report.cases import sample_ids, tiles
from dermstack.report.eda_figures import (
    age_rows_figure,
    count_figure,
    drift_figure,
    histogram_figure,
    paired_figure,
    rate_figure,
    sizes_figure,
)
from dermstack.report.eda_tables import (
    drift_table,
    duplicate_table,
    fold_summary_table,
    group_size_table,
    level_table,
    missing_table,
    number_table,
    picture_size_table,
    shortcut_table,
    word_table,
)
from dermstack.report.figures import Drawing
from dermstack.report.pictures import data_uri
from dermstack.report.report import TEMPLATE_FOLDER, page_templates, script_policy
from stack.console import Out
from stack.experiment import Experiment
from stack.folds import Folds
from stack.images import smallest_cache_size, with_images
from stack.store import atomic
from stack.tables.columns import number_warnings
from stack.tables.table import Table

if TYPE_CHECKING:
    from image_models.cache import ImageCache


def page_figures(
    table: Table, by: list[str], groups: pd.DataFrame, sizes: pd.DataFrame | None, drift_frame: pd.DataFrame | None
) -> dict[str, Drawing]:
    """Draws the figures, by name; a figure with nothing to show is left out.

    `by` are the columns that ages are split by; `groups`, `sizes` and `drift_frame` come from `group_sizes`,
    `picture_sizes` and `drift` of `dermstack.audit.drift`.
    """
    train, positive = table.train, table.train["target"] == 1
    with_positive = train.loc[positive, "group"].nunique()
    balance = {
        "negative images": int((~positive).sum()),
        "positive images": int(positive.sum()),
        "groups without a positive": train["group"].nunique() - with_positive,
        "groups with a positive": with_positive,
    }
    labels = groups["images"].map(_image_count_label).tolist()
    drawn = {
        "balance": count_figure("balance", list(balance), list(balance.values()), axis="number of images or groups"),
        "groups": count_figure("groups", labels, groups["groups"].tolist(), axis="groups"),
        "groups_positive": count_figure("groups_positive", labels, groups["with_positive"].tolist(), axis="groups"),
    }
    ages = [*AGE_EDGES.tolist(), int(AGE_EDGES[-1]) + 5]
    if train["age"].notna().any():
        shares = {
            "negative": age_shares(train.loc[~positive, "age"]),
            "positive": age_shares(train.loc[positive, "age"]),
        }
        drawn["age"] = histogram_figure("age", ages, shares, axis="age in years")
        rates = age_rates(train)
        columns = (rates[column].tolist() for column in ("ages", "prevalence", "images"))
        drawn["age_rate"] = rate_figure("age_rate", *columns, axis="share of positive images")
        for column in by:
            rows = age_histograms(train, column)
            for of in ("all", "positive"):
                drawn[f"age_{column}_{of}"] = age_rows_figure(f"age_{column}_{of}", rows, of=of)
    if sizes is not None:
        drawn["sizes"] = sizes_figure("sizes", sizes, column="rows")
        drawn["sizes_positive"] = sizes_figure("sizes_positive", sizes, column="positives")
    if drift_frame is not None:
        drawn["drift"] = drift_figure("drift", drift_frame)
        drawn |= _drift_figures(table, drift_frame, ages)
    return drawn


def _drift_figures(table: Table, drift_frame: pd.DataFrame, ages: list[int]) -> dict[str, Drawing]:
    train, test, drawn = table.train, table.test, {}
    if "age" in set(drift_frame["column"]):
        shares = {"train": age_shares(train["age"]), "test": age_shares(test["age"])}
        drawn["drift_age"] = histogram_figure("drift_age", ages, shares, axis="age in years")
    for column in [column for column in ("sex", "site") if column in set(drift_frame["column"])]:
        both = pd.concat([train.assign(target=0), test.assign(target=1)])[[column, "target"]]
        counts = level_counts(both, column)
        parts = {"train": counts["negatives"] / len(train), "test": counts["positives"] / len(test)}
        drawn[f"drift_{column}"] = paired_figure(
            f"drift_{column}",
            counts["level"].tolist(),
            {part: share.to_numpy() for part, share in parts.items()},
            axis="share of images",
        )
    width = SIZE_LABELS["source_width"]
    if width in set(drift_frame["column"]):
        values = [part["source_width"].to_numpy(np.float64) for part in (train, test)]
        low, high = np.min(np.concatenate(values)), np.max(np.concatenate(values))
        if high > low:  # nothing to draw if all images have one width
            edges = np.linspace(low, high, 25)
            shares = {
                part: np.histogram(v, edges)[0] / len(v) for part, v in zip(("train", "test"), values, strict=True)
            }
            drawn["drift_width"] = histogram_figure("drift_width", edges.tolist(), shares, axis="image width in pixels")
    return drawn


def _image_count_label(size: str) -> str:
    return f"{size} image" if size == "1" else f"{size} images"


_MAX_SHOWN_PAIRS = 8  # pairs of near-duplicates whose images are shown


@dataclass(frozen=True)
class EdaPictures:
    """What the page needs of the images.

    `index` has a row for each image: id, source_height, source_width (pixels), source_bytes; ids that are not in the
    table are ignored. `thumbnails` returns the images of n ids, in their order: (n, s, s, 3) uint8, s about 112.
    """

    index: pd.DataFrame
    thumbnails: Callable[[list[str]], NDArray[np.uint8]]


def write_eda(
    path: Path,
    *,
    name: str,
    table: Table,
    folds: Folds | None = None,
    pictures: EdaPictures | None = None,
    pairs: pd.DataFrame | None = None,
    sheet: int = 24,
    seed: int = 0,
    unlabelled: int = 0,
) -> Path:
    """Writes the page to `path`. It is self-contained: no network; text of the data is escaped.

    Its only script sorts the tables of columns without a role; a page without such columns has none.

    `name` is that of the data set. `pairs` are near-duplicates with columns id_1, id_2, distance, kind, or None if they
    were not searched. `sheet` images of each class are shown beside their edges, 0 for none. `unlabelled` is the number
    of further images without a target. Sections without input are left out. Raises DataError if `pictures.index` lacks
    an id of the table or has one twice.
    """
    with atomic(path) as temporary:
        page = eda_html(
            name, table, folds=folds, pictures=pictures, pairs=pairs, sheet=sheet, seed=seed, unlabelled=unlabelled
        )
        temporary.write_text(page, encoding="utf-8")
    return path


def eda_html(
    name: str,
    table: Table,
    *,
    folds: Folds | None,
    pictures: EdaPictures | None,
    pairs: pd.DataFrame | None,
    sheet: int,
    seed: int,
    unlabelled: int = 0,
) -> str:
    """Returns the page of `write_eda` as HTML, the same for the same data and seed."""
    table = replace(table, train=_with_sizes(table.train, pictures), test=_with_sizes(table.test, pictures))
    train = table.train
    by = [column for column in ("sex", "site", "diagnosis") if column in train and train[column].notna().any()]
    drift_frame = _drift(table, seed=seed) if len(table.test) else None
    sizes = picture_sizes(train) if pictures else None
    groups = group_sizes(train)
    ranking = _shortcut_aucs(train, folds)
    group = train["group"] if folds is None else folds.frame["split_group"]
    numbers = number_columns(table, group.to_numpy(object), seed=seed)
    words = word_columns(table, folds, seed=seed)
    sorting = (TEMPLATE_FOLDER / "sort.js").read_text(encoding="utf-8") if len(numbers) or len(words) else ""
    template = page_templates().get_template("eda.html.j2")
    return template.render(
        style="".join((TEMPLATE_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "sort.css")),
        name=name,
        by=by,
        facts=_facts(table) | ({"images without a target": f"{unlabelled:,}"} if unlabelled else {}),
        counts=_counts(table),
        figures=page_figures(table, by, groups, sizes, drift_frame),
        crossed={column: level_table(level_counts(train, column), column) for column in reversed(by)},
        groups=group_size_table(groups),
        ranking=shortcut_table(ranking),
        missing=missing_table(missing_values(table)),
        sizes=None if sizes is None else picture_size_table(sizes),
        n_sizes=0 if sizes is None else len(sizes),
        duplicates=None if pairs is None else duplicate_table(pairs),
        pairs=_pair_tiles(pairs, pictures) if pairs is not None and pictures and sheet else [],
        sheet=_contact_sheet(train, pictures, each=sheet, seed=seed) if pictures and sheet else [],
        drift=None if drift_frame is None else drift_table(drift_frame),
        numbers=number_table(numbers) if len(numbers) else None,
        words=word_table(words) if len(words) else None,
        number_warnings=number_warnings(table.columns),
        left_out=[(choice.shown, choice.reason) for choice in table.columns.choices if choice.kind is None],
        script=Markup(sorting),
        scripts=script_policy(sorting),
        folds=None if folds is None else fold_summary_table(folds.summary(train["target"])),
    )


class _Counts(NamedTuple):
    rows: int
    positives: int
    groups: int
    test: int
    ages: int  # known
    positive_ages: int


def _counts(table: Table) -> _Counts:
    train = table.train
    positive = train["target"] == 1
    return _Counts(
        rows=len(train),
        positives=int(positive.sum()),
        groups=int(train["group"].nunique()),
        test=len(table.test),
        ages=int(train["age"].count()),
        positive_ages=int(train.loc[positive, "age"].count()),
    )


def _facts(table: Table) -> dict[str, str]:
    train, test = table.train, table.test
    counts = train.groupby("group").size()
    facts = {
        "training images": f"{len(train):,}",
        "groups (patients or lesions)": f"{len(counts):,}",
        "groups with a positive": f"{train.loc[train['target'] == 1, 'group'].nunique():,}",
        "images per group, median": f"{counts.median():g}",
        "images per group, largest": f"{counts.max():,}",
    }
    if train["age"].notna().any():
        facts["median age"] = f"{train['age'].median():.0f}"
    if len(test):
        facts |= {"test images": f"{len(test):,}", "test groups": f"{test['group'].nunique():,}"}
        facts["groups in both train and test"] = f"{table.shared_groups:,}"
    return facts


def _drift(table: Table, *, seed: int) -> pd.DataFrame:
    train, test = table.train, table.test
    compared = []
    for part in (train, test):
        columns = {column: part[column] for column in ("age", "sex", "site")}
        compared.append(columns | {"images in the group": pd.Series(_group_size(part))} | _size_facts(part))
    known = [column for column in compared[0] if all(part[column].notna().any() for part in compared)]
    first, second = ({column: part[column] for column in known} for part in compared)
    return drift(first, second, train["group"], test["group"], seed=seed)


def _with_sizes(rows: pd.DataFrame, pictures: EdaPictures | None) -> pd.DataFrame:
    """Adds the sizes of the original images to `rows`, if there are images."""
    if pictures is None:
        return rows
    index = pictures.index
    if index["id"].duplicated().any():
        doubled = index.loc[index["id"].duplicated(), "id"].iloc[0]
        raise DataError(f"the image index has the id {doubled!r} twice: build the image cache again")
    lacking = rows.loc[~rows["id"].isin(index["id"]), "id"]
    if len(lacking):
        raise DataError(
            f"the image index lacks {len(lacking)} of {len(rows)} ids, first {lacking.iloc[0]!r}: "
            "build the image cache for this table, or use the table alone with --no-images"
        )
    return rows.merge(index[["id", *SIZE_LABELS]], on="id", how="left", validate="one_to_one")


def _group_size(rows: pd.DataFrame) -> NDArray[np.float64]:
    return rows.groupby("group")["id"].transform("size").to_numpy(np.float64)


def _size_facts(rows: pd.DataFrame) -> dict[str, Any]:
    return {words: rows[column] for column, words in SIZE_LABELS.items() if column in rows}


def _shortcut_aucs(train: pd.DataFrame, folds: Folds | None) -> pd.DataFrame:
    """Returns `shortcuts`, with folds also `shape_auc`, `shape_low`, `shape_high`: AUC of a relation of any shape."""
    facts = {"images in the group": _group_size(train), **_size_facts(train)}
    table = shortcuts(train, facts, train["group"] if folds is None else folds.frame["split_group"])
    if folds is None or table["low"].isna().any():  # no interval: too few groups have a positive
        return table
    fold, group = folds.frame["fold"], folds.frame["split_group"]
    shape_aucs = [
        column_association(fact, pd.Series(values), train["target"], fold, group).fitted_auc
        for fact, values in facts.items()
    ]
    return table.assign(
        shape_auc=[one.value for one in shape_aucs],
        shape_low=[one.low for one in shape_aucs],
        shape_high=[one.high for one in shape_aucs],
    )


def _contact_sheet(train: pd.DataFrame, pictures: EdaPictures, *, each: int, seed: int) -> list[tuple[str, list[Any]]]:
    ids = sample_ids(train, each=each, seed=seed)
    made = tiles(train, ids, pictures.thumbnails(ids))
    label = train.set_index("id")["target"]
    return [(words, [tile for tile in made if label[tile.id] == y]) for y, words in ((0, "negative"), (1, "positive"))]


class _PairTile(NamedTuple):
    ids: tuple[str, str]
    kind: str
    distance: str
    pictures: tuple[str, str]


def _pair_tiles(pairs: pd.DataFrame, pictures: EdaPictures) -> list[_PairTile]:
    """Selects pairs of each kind in turn, the least similar first: these need a person's judgement most."""
    seen = set(pictures.index["id"])
    shown = pairs[pairs["id_1"].isin(seen) & pairs["id_2"].isin(seen)]
    shown = shown.sort_values(["distance", "id_1", "id_2"], ascending=[False, True, True])
    turn = shown.groupby("kind", sort=False).cumcount()
    shown = shown.iloc[np.argsort(turn.to_numpy(), kind="stable")[:_MAX_SHOWN_PAIRS]]
    found = []
    for pair in shown.to_dict("records"):
        ids = (str(pair["id_1"]), str(pair["id_2"]))
        one, two = pictures.thumbnails(list(ids))
        distance = f", distance {pair['distance']:.3g}" if pd.notna(pair["distance"]) else ""
        found.append(_PairTile(ids, str(pair["kind"]), distance, (data_uri(one), data_uri(two))))
    return found


THUMBNAIL = 112  # pixels a side on the page


def run_eda(experiment: Experiment, out: Out, *, sheet: int) -> Path:
    """Writes eda.html into the experiment's folder, with ``sheet`` images of each class (0: no images)."""
    pictures = pairs = None
    if experiment.config.data.images is not None:
        size = smallest_cache_size(experiment)
        experiment, caches = with_images(experiment, [size], out)
        pictures = _pictures(caches[size])
        pairs = pair_kinds(experiment.curation.pairs, experiment.table)
    return write_eda(
        experiment.folder / "eda.html",
        name=experiment.config.data.name,
        table=experiment.table,
        folds=experiment.folds,
        pictures=pictures,
        pairs=pairs,
        sheet=sheet,
        seed=experiment.config.seed,
        unlabelled=len(experiment.unlabelled),
    )


def _pictures(cache: ImageCache) -> EdaPictures:
    from image_models.duplicates import thumbnails_of

    index = cache.index[["id", "source_height", "source_width", "source_bytes"]]
    return EdaPictures(index, lambda ids: thumbnails_of(cache, cache.rows_for(ids), side=THUMBNAIL))
