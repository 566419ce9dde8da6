"""An experiment's images: finds and caches them, drops unreadable rows, finds near-duplicates, stores their sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dermstack.errors import DataError
from dermstack.listing import counted, first_of
from image_models.locks import in_use
from stack.console import Out
from stack.experiment import DROPPED_COLUMNS, NO_CURATION, PAIR_COLUMNS, Curation, Experiment, open_experiment
from stack.settings.config import Config
from stack.settings.data import Data, External, TFRecords, Unlabelled
from stack.store import frame_fingerprint, read_frame, write_frame
from stack.tables.external import duplicates_of_primary
from stack.tables.keys import contained
from stack.tables.table import ACQUISITION
from stack.tuned import enabled_models

if TYPE_CHECKING:
    from image_models.cache import ImageCache
    from image_models.duplicates import HashedImages
    from image_models.io.readers import Source


DEFAULT_CACHE_SIZE = 128  # pixels a side of the cache that is used where the config has no image model


def with_images(
    experiment: Experiment, sizes: Sequence[int], out: Out, *, ask: bool = True
) -> tuple[Experiment, dict[int, ImageCache]]:
    """Caches the images at each of ``sizes`` and curates the rows; returns the new experiment and the caches by size.

    Unreadable rows are refused or dropped, groups of near-duplicates are merged, external rows that show an image of
    train or test are refused or dropped. An earlier curation of the same images is kept. Writes only the caches. Raises
    ImageError for missing and unreadable images, DataError for rows that the config refuses and merges of more than two
    groups; without ``ask`` these merges are left out instead.
    """
    if not sizes:
        return experiment, {}
    ids, sources = sources_of(experiment)
    sources = _hashed(sources, experiment.config.n_jobs, out)
    caches = {size: _cache(experiment, ids, sources, size, out) for size in sorted(set(sizes))}
    _check_depth(experiment, caches[min(caches)], ids, out)
    _warn_of_tolerated(caches[min(caches)], ids, out)
    curation = _curate(experiment, caches[min(caches)], ids, out, ask=ask)
    if curation is not experiment.curation:
        experiment = open_experiment(
            experiment.config,
            experiment.config_path,
            out,
            overrides=experiment.overrides,
            shuffle_target=experiment.shuffled,
            curation=curation,
        )
    return experiment, caches


@contextmanager
def caches_in_use(config: Config) -> Iterator[None]:
    """Keeps `dermstack clean --cache` of other processes from removing the caches of the config's data set."""
    folder = cache_users_folder(config)
    if config.data.images is None or (config.cache.exists() and not os.access(config.cache, os.W_OK)):
        yield  # nothing to remove, or nobody who may
        return
    with in_use(folder):
        yield


def cache_users_folder(config: Config) -> Path:
    """Returns the folder in which the processes that use the caches of the config's data set are marked."""
    return config.cache / f".{config.data.name}"


def existing_cache(experiment: Experiment, size: int) -> ImageCache:
    """Opens the cache at ``size`` as it is, without adding missing images: pages can be made without some of them."""
    from image_models.cache import open_cache

    data = experiment.config.data
    return open_cache(_cache_folder(experiment, size), size=size, resize=data.resize, format=data.cache_format)


def smallest_cache_size(experiment: Experiment) -> int:
    """Returns the size of the cache that audit and eda use: the smallest that an image model needs."""
    return min((model.size for model in enabled_models(experiment)), default=DEFAULT_CACHE_SIZE)


def looks_of(experiment: Experiment, cache: ImageCache, ids: Sequence[str], out: Out) -> HashedImages:
    """Computes thumbnails and perceptual hashes of these images, with a progress bar."""
    from image_models.duplicates import read_hashed_images

    with out.bar("perceptual hashes", len(ids)) as progress:
        return read_hashed_images(cache, cache.rows_for(ids), n_jobs=experiment.config.n_jobs, progress=progress)


def file_suffixes(experiment: Experiment) -> pd.Series[str]:
    """Returns the suffix of the file that holds each image, by id."""
    ids, sources = sources_of(experiment)
    return pd.Series([source.path.suffix.lower() for source in sources], index=ids)


def sources_of(experiment: Experiment) -> tuple[list[str], list[Source]]:
    """Returns the ids of all rows as read (train, test, external, unlabelled) and the source of each image."""
    data, table = experiment.config.data, experiment.as_read
    if data.images is None:
        raise DataError(f"{experiment.config_path} names no images: set data.images")
    found = _find(data, data.images, table.train["id"], data.tfrecord, swap=data.swap_red_blue)
    if len(table.test):
        found += _find(data, data.test_images or data.images, table.test["id"], data.tfrecord, swap=data.swap_red_blue)
    ids = [*table.train["id"], *table.test["id"]]
    tables: list[tuple[External | Unlabelled, pd.DataFrame]] = [
        *((one, experiment.external_as_read) for one in data.external),
        *((one, experiment.unlabelled_as_read) for one in data.unlabelled),
    ]
    for of_table, frame in tables:
        rows = frame["id"][frame["source"] == of_table.name]
        found += _find(data, of_table.images, rows, of_table.tfrecord, swap=of_table.swap_red_blue)
        ids += list(rows)
    return ids, found


def _hashed(sources: list[Source], n_jobs: int, out: Out) -> list[Source]:
    """Returns the sources with the hashes of their contents, which tell cached images from changed ones."""
    from image_models.io.readers import with_contents

    with out.bar("contents of the images", len(sources)) as progress:
        return with_contents(sources, n_jobs=n_jobs, progress=progress)


def _find(data: Data, place: Path, ids: pd.Series, tfrecord: TFRecords, *, swap: bool) -> list[Source]:
    from image_models.io.readers import FileNames, TFRecordNames, image_sources

    features = tfrecord.features
    names = TFRecordNames(image=features.get("image", "image"), id=features.get("image_name", "image_name"))
    files = FileNames(similar=data.similar_names, follow_links=data.follow_links)
    found = image_sources(place, ids.tolist(), names=names, swap_red_blue=swap, files=files)
    tolerate = data.on_unreadable == "tolerate"
    return [replace(source, bits_stored=data.bits_stored or 0, tolerate=tolerate) for source in found]


def _cache_folder(experiment: Experiment, size: int) -> Path:
    from image_models.cache import cache_name

    data = experiment.config.data
    return experiment.config.cache / cache_name(data.name, size, data.resize, data.cache_format)


def _cache(experiment: Experiment, ids: list[str], sources: list[Source], size: int, out: Out) -> ImageCache:
    from image_models.cache import DROP_ADVICE, build_cache

    config, data = experiment.config, experiment.config.data
    folder = _cache_folder(experiment, size)
    with out.bar(f"image cache {size} px", len(ids)) as progress:
        return build_cache(
            folder,
            ids,
            sources,
            size=size,
            resize=data.resize,
            format=data.cache_format,
            n_jobs=config.n_jobs,
            drop_unreadable=data.on_unreadable == "drop" or data.on_unreadable_test == "table",
            advice=f"{DROP_ADVICE} for training rows, `data.on_unreadable_test: table` for test rows (predicted from "
            "the table alone)",
            progress=progress,
        )


MAX_DARK_BITS = 12  # of 16: what such values leave is 16 grey levels or fewer, from which nothing can be learned
SOME_DARK_BITS = 14  # of 16: 64 grey levels


def _check_depth(experiment: Experiment, cache: ImageCache, ids: list[str], out: Out) -> None:
    """Raises DataError where no 16-bit image uses more than 12 bits: detectors of 12 bits are often saved like that.

    One image alone may be dark, and each image must be scaled alike, so this is decided for all of them together.
    """
    if experiment.config.data.bits_stored is not None:
        return
    bits = cache.index["bits"].to_numpy()[cache.rows_for(sorted(set(ids) - set(cache.unreadable["id"])))]
    if not (deep := bits[bits > 0]).size or deep.max() > SOME_DARK_BITS:
        return
    text = (
        f"no value of the {len(deep):,} images with 16 bits a channel takes more than {deep.max()} bits, which leaves "
        f"{2 ** max(0, int(deep.max()) - 8)} of 256 grey levels: set `data.bits_stored: {max(9, int(deep.max()))}` (or "
        "12, 14: the bits of the camera or detector), or `data.bits_stored: 16` if they are meant to be that dark"
    )
    if deep.max() <= MAX_DARK_BITS:
        raise DataError(text)
    out.warn(text)


def _warn_of_tolerated(cache: ImageCache, ids: list[str], out: Out) -> None:
    tolerated = cache.index[(cache.index["note"] != "") & cache.index["id"].isin(ids)]
    if len(tolerated):
        first = "; ".join(f"{row.id}: {row.note}" for row in tolerated.head(3).itertuples())
        out.warn(
            f"{len(tolerated)} damaged images decode to the end and are used (on_unreadable: tolerate), first: {first}"
        )


def _curate(experiment: Experiment, cache: ImageCache, ids: list[str], out: Out, *, ask: bool) -> Curation:
    """Returns the earlier curation where the images are the same, else a new one."""
    from image_models.duplicates import near_duplicates
    from image_models.io.decode import DECODER_VERSION

    data = experiment.config.data
    unreadable = _unreadable(experiment, cache)
    seen = sorted(set(ids) - set(unreadable["id"]))
    columns = ["id", "source_height", "source_width", "source_bytes"]
    pictures = cache.index.iloc[cache.rows_for(seen)][[*columns, "stamp"]].reset_index(drop=True)
    asked = pictures.assign(find=data.find_duplicates)
    if data.on_chain != "refuse":
        asked = asked.assign(on_chain=data.on_chain)
    images_fingerprint = frame_fingerprint(asked.assign(decoder=DECODER_VERSION))
    if experiment.curation.images_fingerprint == images_fingerprint:
        return experiment.curation
    if experiment.curation.images_fingerprint == frame_fingerprint(asked.drop(columns="stamp")):
        # Made by an earlier dermstack, which knew no contents: kept once, so that folds and trained nets stay valid.
        return replace(experiment.curation, images_fingerprint=images_fingerprint)
    pairs, unmerged = NO_CURATION.pairs, NO_CURATION.unmerged
    if data.find_duplicates:
        found = near_duplicates(looks_of(experiment, cache, seen, out))
        names = pd.Series(seen)
        pairs = pd.DataFrame({
            "id_1": names.iloc[found["a"]].to_numpy(),
            "id_2": names.iloc[found["b"]].to_numpy(),
            "turn": found["turn"].to_numpy(),
            "distance": found["distance"].round(4).to_numpy(),
        })[PAIR_COLUMNS]  # fmt: skip
        out.say(
            f"near-duplicates: {counted(len(pairs), 'pairs')} of images that look alike but for size, encoding, "
            "rotation, reflection; `dermstack audit` shows them, `data.find_duplicates: false` switches the search off"
        )
        if data.on_chain != "merge":
            pairs, unmerged = without_chains(pairs, experiment.as_read.train)
            if len(unmerged) and data.on_chain == "refuse" and ask:
                raise DataError(_question(unmerged, experiment))
    no_target = experiment.unlabelled_as_read["id"]
    labelled = pairs[~(contained(pairs["id_1"], no_target) | contained(pairs["id_2"], no_target))]
    copies = duplicates_of_primary(
        experiment.external_as_read, labelled, {table.name: table.on_collision for table in data.external}
    )
    dropped = pd.concat([unreadable, copies], ignore_index=True)[DROPPED_COLUMNS]
    for source, rows in dropped[~contained(dropped["id"], experiment.as_read.test["id"])].groupby("source"):
        out.warn(f"{counted(len(rows), 'rows')} of {source} left out, see dropped.csv")
    if len(unmerged) and data.on_chain == "refuse":  # not decided yet: the next step must ask
        images_fingerprint = ""
    return Curation(dropped, pairs, images_fingerprint, unmerged)


def without_chains(pairs: pd.DataFrame, train: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the pairs that join at most two groups of training rows, and those that would join more into one."""
    group_of = train.set_index("id")["group"]
    ends = [pairs[side].map(group_of) for side in ("id_1", "id_2")]
    across = (ends[0].notna() & ends[1].notna() & (ends[0] != ends[1])).to_numpy(bool)
    codes, names = pd.factorize(pd.concat([end[across] for end in ends], ignore_index=True))
    half = int(across.sum())
    graph = coo_array((np.ones(half), (codes[:half], codes[half:])), shape=(len(names), len(names)))
    _, joined = connected_components(graph, directed=False)
    is_chain = np.zeros(len(pairs), bool)
    is_chain[across] = np.bincount(joined)[joined[codes[:half]]] > 2
    return pairs[~is_chain].reset_index(drop=True), pairs[is_chain].reset_index(drop=True)


def _question(unmerged: pd.DataFrame, experiment: Experiment) -> str:
    """Returns the message that asks whether groups that look alike are to be merged."""
    group_of = experiment.as_read.train.set_index("id")["group"]
    groups = pd.unique(pd.concat([unmerged[side].map(group_of) for side in ("id_1", "id_2")]))
    listed = first_of(map(repr, groups))
    first = unmerged.iloc[0]
    return (
        f"{len(unmerged)} pairs of images look alike and would join more than two groups into one: {listed}; first "
        f"pair {first['id_1']} and {first['id_2']}. Are they the same patients? See the pairs with "
        f"`{experiment.command('audit')}`, then set data.on_chain: merge if they are, or data.on_chain: ignore to "
        "merge none of them (data.find_duplicates: false switches the search off)"
    )


def _unreadable(experiment: Experiment, cache: ImageCache) -> pd.DataFrame:
    """Returns the rows to drop because their image cannot be read: id, source, reason.

    Raises DataError for test rows, since a submission needs all of them, unless the config declares a fallback, and
    ImageError for other rows where the config refuses them.
    """
    from image_models.cache import unreadable_error

    data, lost = experiment.config.data, cache.unreadable
    is_test = contained(lost["id"], experiment.as_read.test["id"])
    if is_test.any() and data.on_unreadable_test == "refuse":
        first = lost[is_test].sort_values("id").iloc[0]
        reason = str(first["reason"]).removesuffix(": restore the file or drop its row from the csv")
        raise DataError(
            f"{int(is_test.sum())} test images cannot be read, first: {first['id']} ({reason}): restore them, since a "
            "submission needs every row, or set `data.on_unreadable_test: table`, which predicts them from the table "
            "alone (data.on_unreadable: drop applies to training rows only; tolerate also to test rows, for a JPEG "
            "that decodes to the end)"
        )
    if not is_test.all() and data.on_unreadable != "drop":
        raise unreadable_error(lost[~is_test])
    further = pd.concat(
        [experiment.external_as_read[["id", "source"]], experiment.unlabelled_as_read[["id", "source"]]]
    )
    source_of = dict(zip(further["id"], further["source"], strict=True))
    source = [
        "test" if of_test else source_of.get(row_id, "train")
        for row_id, of_test in zip(lost["id"], is_test, strict=True)
    ]
    return pd.DataFrame({"id": lost["id"], "source": source, "reason": lost["reason"]})


ACQUISITION_FILE = "acquisition.parquet"
_CACHE_COLUMNS = {"source_width": "width", "source_height": "height", "source_bytes": "bytes"}


def write_acquisition(experiment: Experiment, cache: ImageCache) -> None:
    """Writes id, width, height and bytes of the original images, for steps that read no images."""
    ids = pd.concat([experiment.table.train["id"], experiment.table.test["id"]], ignore_index=True)
    known = cache.index.iloc[cache.rows_for(ids)][list(_CACHE_COLUMNS)].rename(columns=_CACHE_COLUMNS)
    frame = known.astype("float32").assign(id=ids.to_numpy())
    write_frame(experiment.folder / ACQUISITION_FILE, frame)


def with_acquisition(experiment: Experiment) -> Experiment | None:
    """Returns the experiment with columns width, height and bytes, from the csv or from the images.

    Returns None where neither has any of them.
    """
    tables = [experiment.table.train, experiment.table.test]
    missing = [name for name in ACQUISITION if name not in tables[0]]
    path = experiment.folder / ACQUISITION_FILE
    if len(missing) == len(ACQUISITION) and not path.is_file():
        return None
    known = pd.DataFrame(columns=list(ACQUISITION))
    if path.is_file():
        known = read_frame(path, remedy="dermstack oof").set_index("id")
    joined = []
    for table in tables:
        of_rows = known.reindex(table["id"])
        extra = {
            name: of_rows[name].to_numpy("float32", na_value=float("nan")) for name in ACQUISITION if name not in table
        }
        joined.append(table.assign(**extra))
    return replace(experiment, table=replace(experiment.table, train=joined[0], test=joined[1]))


def require_acquisition(experiment: Experiment) -> Experiment:
    """Does the same as `with_acquisition`, but raises DataError where it would return None."""
    if (known := with_acquisition(experiment)) is None:
        # Only `oof` with an image model reads the images; without one it would change nothing.
        step = f"run `{experiment.command('oof')}`, or " if enabled_models(experiment) else ""
        raise DataError(
            f"features.shortcuts needs width, height and bytes of the images: {step}name the csv's columns in "
            "data.columns.width, height and bytes"
        )
    return known
