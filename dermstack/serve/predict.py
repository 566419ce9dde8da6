"""Predictions for new images: whole groups at a time, each part kept on disk until all are there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import FittedEnsemble, Level1, passes_per_image, read_fitted, read_level1
from dermstack.serve.expectations import Novelty, cost_notes, read_novelty
from image_models.cache import ImageCache, build_cache
from image_models.io.readers import Source, image_ids, image_sources
from image_models.saved import NetCache
from stack.console import Out
from stack.errors import ConfigError, StoreError
from stack.store import atomic, fingerprint, frame_fingerprint, locked, read_run, write_json, write_run
from stack.submission import submission, submission_text
from stack.table import ACQUISITION, read_new_frame

MAX_PART_BYTES = 1 << 30  # bytes of decoded pictures that a part keeps on disk
MAX_PART_IMAGES, MIN_PART_IMAGES = 16_384, 1_024  # images of a part
_KIND = "predictions"  # of the runs that finished parts are kept as
_WORK_FILES = re.compile(r"\..*|job\.json|pixels|part_\d+")
_CACHE_COLUMNS = ("source_width", "source_height", "source_bytes")  # what ACQUISITION is called in the cache


@dataclass(frozen=True)
class NewRows:
    """Rows to predict and their pictures: frame has id, group, age, sex, site."""

    frame: pd.DataFrame
    sources: list[Source]
    missing: tuple[str, ...]  # columns that nothing is known of: each image then has no such value, or group


def read_new_rows(bundle: Bundle, images: Path, metadata: Path | None, *, id_column: str | None = None) -> NewRows:
    """The rows of a csv with their pictures or, without a csv, every picture in ``images`` on its own.

    ``id_column`` is what the csv calls the id, where that isn't training's name. Raises DataError, ImageError.
    """
    columns = {name: csv for name, csv in bundle.columns.items() if name != "target"}
    if id_column:
        columns["id"] = id_column
    if metadata is not None:
        frame, missing = read_new_frame(metadata, columns)
    else:
        ids = pd.Series(image_ids(images), dtype="str")
        frame = pd.DataFrame({"id": ids, "group": ids, "age": np.full(len(ids), np.nan, np.float32)})
        frame = frame.assign(**{name: pd.Series(np.nan, index=frame.index, dtype="str") for name in ("sex", "site")})
        missing = [name for name in columns if name != "id"]
    return NewRows(frame, image_sources(images, frame["id"].tolist()), tuple(missing))


def predict_rows(
    bundle: Bundle,
    rows: NewRows,
    work: Path,
    out: Out | None = None,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    workers: int = 0,
    drop_unreadable: bool = False,
) -> pd.DataFrame:
    """id, score, p_calibrated, novelty and far of each row, in the order of ``rows``; one image or a million.

    ``work`` holds what is finished: decoded pictures of the part in hand, predictions of the parts before it. A call
    that was killed goes on there when it is made again; another bundle or other rows start anew. ``novelty`` is the
    share of training images that lie nearer to the rest than this one, ``far`` where hardly one lies further.

    Raises ImageError listing the unreadable images of a part, unless ``drop_unreadable``: they then have no row.
    """
    out = out or Out(quiet=True)
    with locked(work):
        job = fingerprint({
            "bundle": bundle.fingerprint,
            "rows": frame_fingerprint(rows.frame),
            "pictures": [(source.name, source.n_bytes, source.stamp) for source in rows.sources],
            "drop": drop_unreadable,
        })  # fmt: skip
        _start_job(work, job)
        fitted, novelty = read_fitted(bundle), read_novelty(bundle)
        parts = list(_parts(bundle, rows.frame))
        with out.bar("predict", passes_per_image(bundle) * len(rows.frame)) as progress:
            for number, positions in enumerate(parts):
                if read_run(_part_folder(work, number)) is not None:
                    progress(passes_per_image(bundle) * len(positions))
                    continue
                made = _predict_part(
                    bundle, fitted, novelty, rows, positions, work, device=device, n_jobs=n_jobs, workers=workers,
                    drop_unreadable=drop_unreadable, progress=progress,
                )  # fmt: skip
                write_run(_part_folder(work, number), {"kind": _KIND}, frames={"made": made})
        kept = pd.concat([_read_part(work, number) for number in range(len(parts))])
    order = pd.Index(kept["id"]).get_indexer(pd.Index(rows.frame["id"]))
    together: pd.DataFrame = kept.iloc[order[order >= 0]].reset_index(drop=True)
    return together


def score_pictures(
    bundle: Bundle,
    fitted: FittedEnsemble,
    novelty: Novelty | None,
    caches: dict[int, ImageCache],
    frame: pd.DataFrame,
    *,
    store: NetCache | None = None,
    device: str = "auto",
    workers: int = 0,
    on_level1: Callable[[Level1], object] = lambda level1: None,
    progress: Callable[[int], object] = lambda done: None,
) -> pd.DataFrame:
    """The columns of `predict_rows` for whole groups (``frame``: id, group, age, sex, site), from cached pictures.

    ``store`` may keep the nets for the next call; ``on_level1`` is told what the nets said, in the order of ``frame``.
    """
    frame = frame.reset_index(drop=True)
    if bundle.manifest["features"]["shortcuts"]:
        frame = _with_acquisition(frame, next(iter(caches.values())))
    seen = novelty.scorer() if novelty else None
    with threadpool_limits(fitted.threads):  # as in training: BLAS rounds by how many threads share its rows
        level1 = read_level1(
            bundle, caches, frame, store=store, device=device, workers=workers, progress=progress,
            **({"see": seen.see} if seen else {}),
        )  # fmt: skip
        on_level1(level1)
        made = pd.concat([frame[["id"]], fitted.score(frame, level1)], axis=1)
    if seen:
        made["novelty"], made["far"] = seen.novelty(), seen.far()
    return made


def _predict_part(
    bundle: Bundle,
    fitted: FittedEnsemble,
    novelty: Novelty | None,
    rows: NewRows,
    positions: NDArray[np.intp],
    work: Path,
    *,
    device: str,
    n_jobs: int,
    workers: int,
    drop_unreadable: bool,
    progress: Callable[[int], object],
) -> pd.DataFrame:
    frame = rows.frame.iloc[positions]
    pixels = work / "pixels"
    caches = {
        size: build_cache(
            pixels / str(size),
            frame["id"].tolist(),
            [rows.sources[position] for position in positions],
            size=size,
            resize=bundle.manifest["resize"],
            format=bundle.manifest["cache_format"],
            n_jobs=n_jobs,
            drop_unreadable=drop_unreadable,
        )
        for size in bundle.sizes
    }
    lost = pd.concat([cache.unreadable for cache in caches.values()])
    if len(lost):
        frame = frame[~frame["id"].isin(lost["id"])]
    made = score_pictures(bundle, fitted, novelty, caches, frame, device=device, workers=workers, progress=progress)
    shutil.rmtree(pixels)
    return made


def _parts(bundle: Bundle, frame: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Rows of whole groups, at most what fits at once (a larger group makes a larger part).

    What fits at once stays in its order, so that nets see the batches that they saw in training's test rows.
    """
    each = sum(size * size * 3 for size in bundle.sizes)
    max_images = int(np.clip(MAX_PART_BYTES // each, MIN_PART_IMAGES, MAX_PART_IMAGES))
    if len(frame) <= max_images:
        yield np.arange(len(frame))
        return
    codes, _ = pd.factorize(frame["group"])
    order = np.argsort(codes, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(codes[order])) + 1, len(order))  # of each group
    start = 0
    while start < len(order):
        fits = ends[(ends > start) & (ends <= start + max_images)]
        end = int(fits[-1]) if len(fits) else int(ends[ends > start][0])
        yield order[start:end]
        start = end


def _part_folder(work: Path, number: int) -> Path:
    return work / f"part_{number:05}"


def _read_part(work: Path, number: int) -> pd.DataFrame:
    run = read_run(_part_folder(work, number))
    assert run is not None, "a part is written before it is read"
    return run.frame("made")


def _start_job(work: Path, job: str) -> None:
    """Keep what belongs to this job, and nothing of another. Raises StoreError where there is something else."""
    path = work / "job.json"
    foreign_files = sorted(file.name for file in work.iterdir() if not _WORK_FILES.fullmatch(file.name))
    if foreign_files or work.is_symlink():  # whoever asked for the predictions removes the folder when they are there
        found = foreign_files[0] if foreign_files else "a link"
        raise StoreError(f"{work} is for parts of predictions and holds {found}: move it away, or write elsewhere")
    try:
        same = json.loads(path.read_text(encoding="utf-8")).get("job") == job
    except (OSError, ValueError, AttributeError):
        same = False
    if same:
        return
    path.unlink(missing_ok=True)
    for part in [*work.glob("part_*"), work / "pixels"]:
        shutil.rmtree(part, ignore_errors=True)
    write_json(path, {"job": job})


def _with_acquisition(frame: pd.DataFrame, cache: ImageCache) -> pd.DataFrame:
    """Width, height and bytes of the originals, where the csv hasn't them."""
    known = cache.index.iloc[cache.rows_for(frame["id"])][list(_CACHE_COLUMNS)].astype(np.float32).to_numpy()
    own = {name: known[:, column] for column, name in enumerate(ACQUISITION) if name not in frame}
    return frame.assign(**own)


UNREADABLE_CHOICES = ("refuse", "drop")


@dataclass(frozen=True)
class OutputFiles:
    """Which files to write: ``csv``, perhaps a ``submission`` in the order of a ``sample``; parts wait in ``work``."""

    csv: Path
    submission: Path | None = None
    sample: Path | None = None
    work: Path | None = None


def predict_to_files(
    bundle: Bundle,
    images: Path,
    metadata: Path | None,
    out: Out,
    outputs: OutputFiles,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    on_unreadable: str = "refuse",
) -> pd.DataFrame:
    """Predict every row and write the files; returns what the csv holds. Raises what `predict_rows` does."""
    drop = drops_unreadable(on_unreadable)
    if outputs.sample and not outputs.submission:
        raise ConfigError(f"--sample {outputs.sample}: name the file to write with --submission")
    rows = read_new_rows(bundle, images, metadata)
    _introduce(bundle, rows, out)
    work = outputs.work or outputs.csv.with_name(f"{outputs.csv.name}.parts")
    made = predict_rows(bundle, rows, work, out, device=device, n_jobs=n_jobs, drop_unreadable=drop)
    with atomic(outputs.csv) as temporary:
        temporary.write_text(made.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")
    if len(lost := rows.frame.loc[~rows.frame["id"].isin(made["id"]), "id"]):
        listed = outputs.csv.with_name(f"{outputs.csv.stem}.dropped.csv")
        with atomic(listed) as temporary:
            temporary.write_text(lost.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")
        out.warn(f"{len(lost):,} images can't be read and have no row: {listed}")
    if outputs.submission:
        columns = bundle.columns
        frame = submission(
            made["id"], made["score"], id_column=columns["id"], target_column=columns["target"], sample=outputs.sample
        )
        with atomic(outputs.submission) as temporary:
            temporary.write_text(submission_text(frame), encoding="utf-8", newline="\n")
        out.say(f"submission: {outputs.submission}")
    shutil.rmtree(work)
    if "far" in made and made["far"].any():
        out.warn(
            f"{int(made['far'].sum()):,} of {len(made):,} images lie further out than 99 % of the training images "
            "(column far): look at them before believing their score"
        )
    out.say(f"predictions: {outputs.csv}, {len(made):,} rows")
    return made


def drops_unreadable(on_unreadable: str) -> bool:
    """Whether images that can't be read are left out. Raises ConfigError for what is none of UNREADABLE_CHOICES."""
    if on_unreadable not in UNREADABLE_CHOICES:
        raise ConfigError(f"--on-unreadable {on_unreadable}: choose {' or '.join(UNREADABLE_CHOICES)}")
    return on_unreadable == "drop"


def _introduce(bundle: Bundle, rows: NewRows, out: Out) -> None:
    """What was promised, and what the missing columns take of it."""
    manifest, headline = bundle.manifest, bundle.manifest["headline"]
    out.say(
        f"{manifest['experiment']}: {manifest['objective']} {headline['value']:.4f} [{headline['low']:.4f}, "
        f"{headline['high']:.4f}] nested on {manifest['training']['rows']:,} training rows; {len(rows.frame):,} images "
        f"of {rows.frame['group'].nunique():,} groups to predict"
    )
    for note in [*([bundle.selection_note] if bundle.selection_note else []), *cost_notes(bundle, rows.missing)]:
        out.warn(note)
