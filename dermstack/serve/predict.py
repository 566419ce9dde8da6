"""Predictions for new images, made in parts of whole groups that are kept on disk until all are complete."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, StoreError
from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import FittedEnsemble, read_bundled_fallback, read_fitted
from dermstack.serve.image_runs import Level1, bundle_passes, read_level1
from dermstack.serve.new_rows import NewRows
from dermstack.serve.novelty import Novelty, read_novelty
from dermstack.serve.review import decided
from dermstack.threads import limit_threads
from image_models.cache import ImageCache, build_cache
from image_models.io.readers import Source, with_contents
from image_models.saved import NetCache
from image_models.settings import DoneBefore
from stack.console import Out
from stack.fallback import Fallback
from stack.store import Run, fingerprint, frame_fingerprint, locked, read_run, write_json, write_run
from stack.tables.table import ACQUISITION
from stack.tables.units import UNIT

MAX_PART_BYTES = 1 << 30  # bytes of decoded images that a part keeps on disk
MAX_PART_IMAGES, MIN_PART_IMAGES = 16_384, 1_024  # images in a part
_KIND = "predictions"  # the kind of the runs in which finished parts are stored
_WORK_FILES = re.compile(r"\..*|job\.json|pixels|part_\d+")
_CACHE_COLUMNS = ("source_width", "source_height", "source_bytes")  # the cache's names for ACQUISITION


def predict_rows(
    bundle: Bundle,
    rows: NewRows,
    work: Path,
    out: Out | None = None,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    workers: int = 0,
    on_unreadable: str = "refuse",
) -> pd.DataFrame:
    """Returns id, score, p_calibrated, novelty and far for each row, in the order of ``rows``.

    A bundle that predicts units has a row for each unit instead, in the order of their first image, with the number of
    its ``images`` that could be read; novelty is then the highest of these images, and far whether one of them is.

    ``work`` holds the predictions of finished parts and the decoded images of the current part, so memory and disk
    space are bounded. The same call after an interruption resumes there; another bundle or other rows start anew.
    ``novelty`` is the share of training images that are nearer to the others than this one; ``far`` means novelty above
    0.99; both are missing without a novelty model. With a review band there is ``decision`` (`stack.review`). Raises
    ImageError listing the unreadable images of a part. With ``on_unreadable`` "drop" these are left out instead; with
    "table" they are predicted from the table alone, and ``basis`` says for each row what it is predicted from:
    "images", "table" or, where a row has no value in the table, "prevalence".
    """
    return predict_with_dropped(bundle, rows, work, out, PredictOptions(device, n_jobs, workers, on_unreadable)).made


@dataclass(frozen=True)
class PredictOptions:
    """Where images are predicted, in how many processes, and what becomes of unreadable ones, as in `predict_rows`."""

    device: str = "auto"
    n_jobs: int = 1
    workers: int = 0
    on_unreadable: str = "refuse"


class Predicted(NamedTuple):
    """Predictions of new images, and the ids of the images that are left out as they cannot be read."""

    made: pd.DataFrame
    dropped: list[str]


def predict_with_dropped(
    bundle: Bundle, rows: NewRows, work: Path, out: Out | None, options: PredictOptions
) -> Predicted:
    """Returns the predictions of `predict_rows`, and which images of ``rows`` were left out."""
    out = out or Out(quiet=True)
    drop = drops_unreadable(options.on_unreadable)
    fallback = read_bundled_fallback(bundle) if options.on_unreadable == "table" else None
    with locked(work):
        job = fingerprint({
            "bundle": bundle.fingerprint,
            "rows": frame_fingerprint(rows.frame),
            "pictures": [(source.name, source.n_bytes) for source in rows.sources],  # a part knows their contents
            "drop": drop,
            **({"table": True} if fallback else {}),
            **({"tolerate": True} if any(source.tolerate for source in rows.sources) else {}),
            **({"swap_red_blue": True} if any(source.swap_red_blue for source in rows.sources) else {}),
        })  # fmt: skip
        _start_job(work, job)
        models = _Models(bundle, read_fitted(bundle), read_novelty(bundle), fallback)
        parts = list(_parts(bundle, rows.frame))
        passes = bundle_passes(bundle) if bundle.takes_images else 1
        with out.bar("predict", passes * len(rows.frame), "images" if bundle.takes_images else "rows") as progress:
            for number, positions in enumerate(parts):
                of_part = [rows.sources[position] for position in positions] if bundle.takes_images else []
                sources = with_contents(of_part, n_jobs=options.n_jobs)
                contents = fingerprint({"contents": [source.content for source in sources]})
                part = read_run(_part_folder(work, number))
                if part is not None and part.meta.get("contents") == contents and "lost" in part.meta:
                    progress(DoneBefore(passes * len(positions)))
                    continue
                made, lost = _predict_part(models, rows.frame.iloc[positions], sources, work, options, progress)
                meta = {"kind": _KIND, "contents": contents, "lost": lost}
                write_run(_part_folder(work, number), meta, frames={"made": made})
        finished = [_read_part(work, number) for number in range(len(parts))]
    kept = pd.concat([part.frame("made") for part in finished])
    lost_ids = {name for part in finished for name in part.meta["lost"]}
    ids = rows.frame["id"] if bundle.predict_per is None else rows.frame[UNIT].drop_duplicates()
    order = pd.Index(kept["id"]).get_indexer(pd.Index(ids))
    together: pd.DataFrame = kept.iloc[order[order >= 0]].reset_index(drop=True)
    dropped = [name for name in rows.frame["id"] if name in lost_ids]
    return Predicted(decided(bundle, together, rows.frame, rows.missing), dropped)


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
    """Returns the columns of `predict_rows` for whole groups (``frame``: id, group, age, sex, site) in the caches.

    ``store`` may keep networks for the next call; ``on_level1`` is called with the level-1 predictions, in the order of
    ``frame``.
    """
    frame = frame.reset_index(drop=True)
    if frame.empty:  # no image of these groups can be read
        count = {"images": "int64"} if bundle.predict_per is not None else {}
        columns = {"id": "str", **count, "score": "float64", "p_calibrated": "float64"}
        seen_columns = {"novelty": "float64", "far": "bool"} if novelty else {}
        return pd.DataFrame(columns=[*columns, *seen_columns]).astype(columns | seen_columns)
    if bundle.manifest["features"].get("shortcuts"):
        frame = _with_acquisition(frame, next(iter(caches.values())))
    seen = novelty.scorer() if novelty else None
    with limit_threads(fitted.threads):  # as in training: BLAS rounding depends on the threads
        level1 = read_level1(
            bundle, caches, frame, store=store, device=device, workers=workers, progress=progress,
            **({"see": seen.see} if seen else {}),
        )  # fmt: skip
        on_level1(level1)
        made = fitted.score(frame, level1)
    if seen is None:
        return made
    of_images = pd.DataFrame({"novelty": seen.novelty(), "far": seen.far()})
    if bundle.predict_per is None:
        return pd.concat([made, of_images], axis=1)
    return pd.concat([made, of_images.groupby(frame[UNIT], sort=False).max().reset_index(drop=True)], axis=1)


@dataclass(frozen=True)
class _Models:
    """A bundle and what it predicts with, in memory."""

    bundle: Bundle
    fitted: FittedEnsemble
    novelty: Novelty | None
    fallback: Fallback | None


def _predict_part(
    models: _Models,
    frame: pd.DataFrame,
    sources: list[Source],
    work: Path,
    options: PredictOptions,
    progress: Callable[[int], object],
) -> tuple[pd.DataFrame, list[str]]:
    """Returns the predictions of a part, and the ids of its images that are left out."""
    bundle, fallback, pixels = models.bundle, models.fallback, work / "pixels"
    if not bundle.takes_images:
        made = score_pictures(bundle, models.fitted, None, {}, frame)
        progress(len(frame))
        return made, []
    caches = {
        size: build_cache(
            pixels / str(size),
            frame["id"].tolist(),
            sources,
            size=size,
            resize=bundle.manifest["resize"],
            format=bundle.manifest["cache_format"],
            n_jobs=options.n_jobs,
            drop_unreadable=options.on_unreadable in ("drop", "table"),
            advice=_ADVICE,
        )
        for size in bundle.sizes
    }
    lost = set(pd.concat([cache.unreadable for cache in caches.values()])["id"])
    seen = frame[~frame["id"].isin(lost)] if lost else frame
    made = score_pictures(
        bundle, models.fitted, models.novelty, caches, seen, device=options.device, workers=options.workers,
        progress=progress,
    )  # fmt: skip
    shutil.rmtree(pixels)
    return (made, sorted(lost)) if fallback is None else (with_unreadable(made, frame, fallback, models.fitted), [])


def with_unreadable(
    made: pd.DataFrame, frame: pd.DataFrame, fallback: Fallback, fitted: FittedEnsemble
) -> pd.DataFrame:
    """Returns the predictions ``made`` from images, and of the other rows of ``frame`` (whole groups) the fallback's.

    Rows are in the order of ``frame``; the column ``basis`` says what each is predicted from.
    """
    rest = ~frame["id"].isin(made["id"]).to_numpy(bool)
    others = pd.concat([frame["id"], fallback.score(frame, fitted.calibrator, fitted.local)], axis=1)[rest]
    if "far" in made:
        others = others.assign(novelty=np.nan, far=False)
    together = pd.concat([made.assign(basis="images"), others], ignore_index=True) if len(made) else others
    return together.set_index("id").loc[frame["id"]].reset_index()


def _parts(bundle: Bundle, frame: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Yields the row positions of each part: whole groups up to the part size (a larger group makes a larger part).

    If all rows fit in one part, they keep their order, so that batches equal those of the test rows in training.
    """
    each = sum(size * size * 3 for size in bundle.sizes)
    max_images = int(np.clip(MAX_PART_BYTES // each, MIN_PART_IMAGES, MAX_PART_IMAGES)) if each else MAX_PART_IMAGES
    if len(frame) <= max_images:
        yield np.arange(len(frame))
        return
    # Without groups in the table each image is a group, but a unit must be in one part.
    whole = UNIT if UNIT in frame and frame["group"].nunique() >= frame[UNIT].nunique() else "group"
    codes, _ = pd.factorize(frame[whole])
    order = np.argsort(codes, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(codes[order])) + 1, len(order))  # the end of each group
    start = 0
    while start < len(order):
        fits = ends[(ends > start) & (ends <= start + max_images)]
        end = int(fits[-1]) if len(fits) else int(ends[ends > start][0])
        yield order[start:end]
        start = end


def _part_folder(work: Path, number: int) -> Path:
    return work / f"part_{number:05}"


def _read_part(work: Path, number: int) -> Run:
    run = read_run(_part_folder(work, number))
    assert run is not None, "every part is written before it is read"
    return run


def _start_job(work: Path, job: str) -> None:
    """Removes the parts of another job from ``work``. Raises StoreError if ``work`` holds any other file."""
    path = work / "job.json"
    foreign_files = sorted(file.name for file in work.iterdir() if not _WORK_FILES.fullmatch(file.name))
    if foreign_files or work.is_symlink():  # the callers delete this folder in the end
        found = foreign_files[0] if foreign_files else "a link"
        raise StoreError(
            f"{work} must hold only parts of predictions but holds {found}: move it away, or write elsewhere"
        )
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
    """Adds width, height and bytes of the original images where the csv lacks these columns."""
    known = cache.index.iloc[cache.rows_for(frame["id"])][list(_CACHE_COLUMNS)].astype(np.float32).to_numpy()
    own = {name: known[:, column] for column, name in enumerate(ACQUISITION) if name not in frame}
    return frame.assign(**own)


UNREADABLE_CHOICES = ("refuse", "drop", "tolerate", "table")
_ADVICE = (
    "restore them, or choose `--on-unreadable drop` (no row) or `--on-unreadable table` (predicted from the table "
    "alone, where the bundle has such a model)"
)


def drops_unreadable(on_unreadable: str) -> bool:
    """Returns True for "drop", False for the other choices. Raises ConfigError for other values."""
    if on_unreadable not in UNREADABLE_CHOICES:
        raise ConfigError(f"--on-unreadable {on_unreadable}: choose {', '.join(UNREADABLE_CHOICES)}")
    return on_unreadable == "drop"
