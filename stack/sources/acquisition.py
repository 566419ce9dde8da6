"""Groups training rows by how their images were taken, without targets: stand-ins for sources where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from dermstack.errors import DataError
from stack.console import Out
from stack.experiment import Experiment
from stack.images import file_suffixes, looks_of, smallest_cache_size, with_acquisition, with_images
from stack.tables.cells import read_cells
from stack.tables.keys import keys_as_in

MIN_SHARE = 0.02  # of the rows; a rarer format shares one group with the other rare ones
MAX_CLUSTERS = 6  # parts into which colours divide a format
# Mean silhouette below which a format is not divided; from 0.5 on, Kaufman and Rousseeuw (1990) speak of a structure.
MIN_SILHOUETTE = 0.5
OTHER = "other formats"
_SAMPLE = 2000  # rows on which silhouettes are computed
_STARTS = 10
_FEWEST_OF_PART = 0.05  # of the rows of a format


@dataclass(frozen=True)
class AcquisitionSources:
    """The group of each row, and how the groups were found."""

    source: NDArray[np.object_]  # (n,)
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class FoundSources:
    """The group of each training row (id, source), one row a group (rows, groups, positives, prevalence), remarks."""

    rows: pd.DataFrame
    summary: pd.DataFrame
    remarks: tuple[str, ...]


def acquisition_sources(
    words: pd.DataFrame, numbers: pd.DataFrame, *, clusters: int | None = None, seed: int = 0
) -> AcquisitionSources:
    """Groups rows by formats, the values of ``words`` (n, …), then each format by ``numbers`` (n, …).

    A format with less than `MIN_SHARE` of the rows is one of the `OTHER` formats. Within a format, k-means on the
    standardised numbers finds ``clusters`` parts or, by default, the number from 2 to `MAX_CLUSTERS` with the highest
    mean silhouette; where that is below `MIN_SILHOUETTE`, or a part would have less than 5 % of the format, the format
    stays whole. Targets are not used, so that no group follows from them. Raises DataError without any fact, and for
    numbers that are missing.
    """
    if words.empty and numbers.empty:
        raise DataError("nothing is known of how the images were taken: name columns with --columns, or data.images")
    if len(lacking := [str(name) for name in numbers if not np.isfinite(numbers[name].to_numpy(np.float64)).all()]):
        raise DataError(f"{', '.join(lacking)} has missing values: leave it out, or fill it in")
    made, remarks = _formats(words, len(numbers)), list[str]()
    for name in sorted(set(made)) if numbers.shape[1] else ():
        rows = np.flatnonzero(made == name)
        part, remark = _parts(numbers.iloc[rows].to_numpy(np.float64), clusters, seed)
        remarks.append(f"{name}: {remark}")
        if part is not None:
            made[rows] = [f"{name}, {number + 1} by {_listed(numbers)}" for number in part]
    return AcquisitionSources(made, tuple(remarks))


def find_sources(
    experiment: Experiment, out: Out, *, columns: Sequence[str] = (), clusters: int | None = None, pictures: bool = True
) -> FoundSources:
    """Groups the training rows by what is known of their images.

    Formats are the long and the short side of the original image and, with ``pictures``, the suffix of its file; the
    numbers are the mean colour of the image's outermost pixels, where skin and light matter more than the lesion. Of
    the further csv ``columns``, those of numbers join the colours and the others the formats. Raises DataError for an
    unknown column.
    """
    train, words, numbers = experiment.table.train, pd.DataFrame(), pd.DataFrame()
    if pictures and experiment.config.data.images is not None:
        size = smallest_cache_size(experiment)
        experiment, caches = with_images(experiment, [size], out, ask=False)
        train, cache = experiment.table.train, caches[size]
        index = cache.index.iloc[cache.rows_for(train["id"])]
        sides = index[["source_width", "source_height"]].to_numpy()
        words["size"] = [f"{max(pair)} × {min(pair)}" for pair in sides]
        words["encoding"] = file_suffixes(experiment).loc[train["id"]].to_numpy()
        thumbnails = looks_of(experiment, cache, list(train["id"]), out).thumbnails
        numbers = pd.DataFrame(frame_colours(thumbnails), columns=list(COLOURS))
    elif (known := with_acquisition(experiment)) is not None and "width" in known.table.train:
        sides = known.table.train[["width", "height"]].to_numpy(np.float64)
        words["size"] = [
            f"{max(pair):.0f} × {min(pair):.0f}" if np.isfinite(pair).all() else "size not known" for pair in sides
        ]
    if columns:
        cells = _cells_of(experiment, train["id"], columns)
        for name in columns:
            values = pd.to_numeric(cells[name], errors="coerce")
            if values.notna().all():
                numbers[name] = values.to_numpy(np.float64)
            else:
                words[name] = cells[name].to_numpy(object)
    found = acquisition_sources(words, numbers, clusters=clusters, seed=experiment.config.seed)
    rows = pd.DataFrame({
        "source": found.source, "group": experiment.split_group, "target": experiment.target,
    }).groupby("source")  # fmt: skip
    table = rows.agg(rows=("target", "size"), groups=("group", "nunique"), positives=("target", "sum"))
    table = table.assign(prevalence=rows["target"].mean()).reset_index()
    return FoundSources(pd.DataFrame({"id": train["id"].to_numpy(), "source": found.source}), table, found.remarks)


def frame_colours(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns the mean red, green and blue (n, 3) of the outermost eighth of images (n, side, side, 3)."""
    side = thumbnails.shape[1]
    edge = np.ones((side, side), bool)
    width = max(1, side // 8)
    edge[width:-width, width:-width] = False
    colours: NDArray[np.float64] = thumbnails[:, edge].mean(axis=1, dtype=np.float64)
    return colours


def _cells_of(experiment: Experiment, ids: pd.Series, columns: Sequence[str]) -> pd.DataFrame:
    """Returns the cells of csv columns for the training ``ids``, as text."""
    data = experiment.config.data
    cells = read_cells(data.train)
    if absent := [name for name in columns if name not in cells]:
        raise DataError(f"--columns: {data.train} has no column {', '.join(map(repr, absent))}: check the names")
    names = keys_as_in(cells[data.columns.id].str.strip(), ids, f"{data.train}: id", of="the training table")
    return cells[list(columns)].set_index(pd.Index(names)).loc[list(ids)]


def _listed(numbers: pd.DataFrame) -> str:
    return "colour" if set(numbers) <= set(COLOURS) else ", ".join(map(str, numbers))


COLOURS = ("red", "green", "blue")


def _formats(words: pd.DataFrame, rows: int) -> NDArray[np.object_]:
    """Returns the format of each row: its words joined, or `OTHER` where too few rows have them."""
    if words.empty:
        return np.full(rows, "all", dtype=object)
    text = words.fillna("not known").astype(str).agg(", ".join, axis=1)
    share = text.map(text.value_counts(normalize=True))
    made: NDArray[np.object_] = text.where(share >= MIN_SHARE, OTHER).to_numpy(object)
    return made


def _parts(values: NDArray[np.float64], clusters: int | None, seed: int) -> tuple[NDArray[np.intp] | None, str]:
    """Returns the part of each row, numbered from the largest, or None where it is one whole; and why."""
    spread = values.std(axis=0)
    x = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    tried = [clusters] if clusters else range(2, MAX_CLUSTERS + 1)
    sample = np.random.default_rng(seed).permutation(len(x))[:_SAMPLE]
    best: tuple[float, NDArray[np.intp]] | None = None
    for k in tried:
        if k < 2 or len(np.unique(x, axis=0)) <= k:
            continue
        part = KMeans(k, n_init=_STARTS, random_state=seed).fit_predict(x)
        if len(set(part[sample])) < 2:
            continue
        found = float(silhouette_score(x[sample], part[sample]))
        if best is None or found > best[0]:
            best = found, part
    if best is None:
        return None, "too few different values to divide it"
    silhouette, part = best
    counts = np.bincount(part)
    text = f"{len(counts)} parts with mean silhouette {silhouette:.2f}"
    if clusters is None and (silhouette < MIN_SILHOUETTE or counts.min() < _FEWEST_OF_PART * len(x)):
        return None, f"not divided, at best {text} (from {MIN_SILHOUETTE} on, and 5 % of the rows in each, it would be)"
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    return rank[part], text
