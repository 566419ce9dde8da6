"""Predictions for new images, made in parts of whole groups that are kept on disk until all are complete."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermstack.errors import ConfigError, DataError, StoreError
from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import (
    FittedEnsemble,
    Level1,
    passes_per_image,
    read_bundled_fallback,
    read_fitted,
    read_level1,
)
from dermstack.serve.expectations import Novelty, cost_notes, read_novelty
from dermstack.serve.local_map import local_note
from dermstack.serve.review import decided, say_decisions
from dermstack.serve.words import known_words, unknown_words
from image_models.cache import ImageCache, build_cache
from image_models.io.folders import printable
from image_models.io.readers import (
    PLAIN_NAMES,
    FileNames,
    Source,
    image_ids,
    image_sources,
    unused_files,
    with_contents,
)
from image_models.saved import NetCache
from image_models.settings import DoneBefore
from stack.columns import empty_values
from stack.console import Out
from stack.fallback import FOLDER, STATE_FILE, Fallback
from stack.keys import words_as_in
from stack.missing_codes import missing_codes, new_code_warnings
from stack.outputs import check_output, check_output_folder, is_stream, output_file
from stack.store import fingerprint, frame_fingerprint, locked, read_run, write_json, write_run
from stack.submission import submission, submission_text
from stack.table import ACQUISITION, read_new_frame

PREDICT_NAMES = FileNames(options=("--similar-names", "--follow-links"))
_MAX_LISTED = 5  # files listed for each reason why they get no prediction
MAX_PART_BYTES = 1 << 30  # bytes of decoded images that a part keeps on disk
MAX_PART_IMAGES, MIN_PART_IMAGES = 16_384, 1_024  # images in a part
_KIND = "predictions"  # the kind of the runs in which finished parts are stored
_WORK_FILES = re.compile(r"\..*|job\.json|pixels|part_\d+")
_CACHE_COLUMNS = ("source_width", "source_height", "source_bytes")  # the cache's names for ACQUISITION


@dataclass(frozen=True)
class NewRows:
    """Rows to predict and their images; ``frame`` has id, group, age, sex and site."""

    frame: pd.DataFrame
    sources: list[Source]
    missing: tuple[str, ...]  # columns that are not known: no values then; without group, each image is its own


def read_new_rows(
    bundle: Bundle, images: Path, metadata: Path | None, *, id_column: str | None = None, files: FileNames = PLAIN_NAMES
) -> NewRows:
    """Reads the rows of the csv ``metadata`` with their images or, without a csv, a row for every image in ``images``.

    ``id_column`` is the csv's name of the id column if it differs from training. Raises DataError, ImageError.
    """
    columns = {name: csv for name, csv in bundle.columns.items() if name != "target"}
    if id_column:
        columns["id"] = id_column
    if metadata is not None:
        frame, missing = read_new_frame(metadata, columns, bundle.column_rules, bundle.table_columns)
        frame = frame.assign(**{name: words_as_in(frame[name], known) for name, known in known_words(bundle).items()})
    else:
        ids = pd.Series(image_ids(images, files=files), dtype="str")
        frame = pd.DataFrame({"id": ids, "group": ids, "age": np.full(len(ids), np.nan, np.float32)})
        frame = frame.assign(**{name: pd.Series(np.nan, index=frame.index, dtype="str") for name in ("sex", "site")})
        frame = pd.concat([frame, empty_values(bundle.table_columns, len(frame))], axis=1)
        missing = [name for name in columns if name != "id"] + list(bundle.table_inputs)
    bits_stored = int(bundle.manifest.get("bits_stored", 0))
    sources = [
        replace(source, bits_stored=bits_stored) for source in image_sources(images, frame["id"].tolist(), files=files)
    ]
    return NewRows(frame, sources, tuple(missing))


def report_unused(rows: NewRows, images: Path, out: Out, *, files: FileNames = PLAIN_NAMES, strict: bool) -> None:
    """Warns of the files in the folder ``images`` that get no prediction, by reason.

    Raises DataError with the same words where ``strict`` is set.
    """
    unused = unused_files(images, rows.frame["id"].tolist(), files=files)
    lines = []
    for reason in dict.fromkeys(skipped.reason for skipped in unused):
        paths = [printable(skipped.path) for skipped in unused if skipped.reason == reason]
        more = f", … {len(paths):,} in all" if len(paths) > _MAX_LISTED else ""
        advice = f" ({files.options[1]} enters it)" if reason == "linked folder" else ""
        lines.append(f"no prediction, {reason}{advice}: {', '.join(paths[:_MAX_LISTED])}{more}")
    if lines and strict:
        raise DataError("--strict: " + "\n".join(lines) + "\nmove these away, or run without --strict")
    for line in lines:
        out.warn(line)


def report_codes(bundle: Bundle, rows: NewRows, path: Path | None, out: Out) -> None:
    """Warns of numbers in the csv ``path`` that look like a code for "unknown"; `unknown_words` names new words."""
    found = missing_codes(rows.frame, few_rows=True, columns=bundle.table_columns)
    codes = [code for code in found if code.is_number and (code.is_further or code.column in bundle.columns)]
    for warning in new_code_warnings(str(path), codes):
        out.warn(warning)


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

    ``work`` holds the predictions of finished parts and the decoded images of the current part, so memory and disk
    space are bounded. The same call after an interruption resumes there; another bundle or other rows start anew.
    ``novelty`` is the share of training images that are nearer to the others than this one; ``far`` means novelty above
    0.99; both are missing without a novelty model. With a review band there is ``decision`` (`stack.review`). Raises
    ImageError listing the unreadable images of a part. With ``on_unreadable`` "drop" these have no row instead; with
    "table" they are predicted from the table alone, and ``basis`` says for each row what it is predicted from:
    "images", "table" or, where a row has no value in the table, "prevalence".
    """
    out = out or Out(quiet=True)
    drop = drops_unreadable(on_unreadable)
    fallback = read_bundled_fallback(bundle) if on_unreadable == "table" else None
    with locked(work):
        job = fingerprint({
            "bundle": bundle.fingerprint,
            "rows": frame_fingerprint(rows.frame),
            "pictures": [(source.name, source.n_bytes) for source in rows.sources],  # a part knows their contents
            "drop": drop,
            **({"table": True} if fallback else {}),
            **({"tolerate": True} if any(source.tolerate for source in rows.sources) else {}),
        })  # fmt: skip
        _start_job(work, job)
        fitted, novelty = read_fitted(bundle), read_novelty(bundle)
        parts = list(_parts(bundle, rows.frame))
        with out.bar("predict", passes_per_image(bundle) * len(rows.frame)) as progress:
            for number, positions in enumerate(parts):
                sources = with_contents([rows.sources[position] for position in positions], n_jobs=n_jobs)
                contents = fingerprint({"contents": [source.content for source in sources]})
                part = read_run(_part_folder(work, number))
                if part is not None and part.meta.get("contents") == contents:
                    progress(DoneBefore(passes_per_image(bundle) * len(positions)))
                    continue
                made = _predict_part(
                    bundle, fitted, novelty, rows.frame.iloc[positions], sources, work, device=device, n_jobs=n_jobs,
                    workers=workers, drop_unreadable=drop, fallback=fallback, progress=progress,
                )  # fmt: skip
                write_run(_part_folder(work, number), {"kind": _KIND, "contents": contents}, frames={"made": made})
        kept = pd.concat([_read_part(work, number) for number in range(len(parts))])
    order = pd.Index(kept["id"]).get_indexer(pd.Index(rows.frame["id"]))
    together: pd.DataFrame = kept.iloc[order[order >= 0]].reset_index(drop=True)
    return decided(bundle, together, rows.frame, rows.missing)


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
        columns = {"id": "str", "score": "float64", "p_calibrated": "float64"}
        seen_columns = {"novelty": "float64", "far": "bool"} if novelty else {}
        return pd.DataFrame(columns=[*columns, *seen_columns]).astype(columns | seen_columns)
    if bundle.manifest["features"].get("shortcuts"):
        frame = _with_acquisition(frame, next(iter(caches.values())))
    seen = novelty.scorer() if novelty else None
    with threadpool_limits(fitted.threads):  # as in training: BLAS rounding depends on the threads
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
    frame: pd.DataFrame,
    sources: list[Source],
    work: Path,
    *,
    device: str,
    n_jobs: int,
    workers: int,
    drop_unreadable: bool,
    fallback: Fallback | None,
    progress: Callable[[int], object],
) -> pd.DataFrame:
    pixels = work / "pixels"
    caches = {
        size: build_cache(
            pixels / str(size),
            frame["id"].tolist(),
            sources,
            size=size,
            resize=bundle.manifest["resize"],
            format=bundle.manifest["cache_format"],
            n_jobs=n_jobs,
            drop_unreadable=drop_unreadable or fallback is not None,
            advice=_ADVICE,
        )
        for size in bundle.sizes
    }
    lost = pd.concat([cache.unreadable for cache in caches.values()])
    seen = frame[~frame["id"].isin(lost["id"])] if len(lost) else frame
    made = score_pictures(bundle, fitted, novelty, caches, seen, device=device, workers=workers, progress=progress)
    shutil.rmtree(pixels)
    return made if fallback is None else with_unreadable(made, frame, fallback, fitted)


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
    max_images = int(np.clip(MAX_PART_BYTES // each, MIN_PART_IMAGES, MAX_PART_IMAGES))
    if len(frame) <= max_images:
        yield np.arange(len(frame))
        return
    codes, _ = pd.factorize(frame["group"])
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


def _read_part(work: Path, number: int) -> pd.DataFrame:
    run = read_run(_part_folder(work, number))
    assert run is not None, "every part is written before it is read"
    return run.frame("made")


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


@dataclass(frozen=True)
class OutputFiles:
    """Output paths: ``csv``, optionally ``submission`` in the order of ``sample``, and ``work`` for the parts."""

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
    files: FileNames = PREDICT_NAMES,
    strict: bool = False,
) -> pd.DataFrame:
    """Predicts every row, writes the files and returns the content of the csv. Raises the errors of `predict_rows`.

    Files in ``images`` without a prediction are named in warnings; with ``strict`` they are a DataError.
    """
    drops_unreadable(on_unreadable)  # refuses other words before any work
    if outputs.sample and not outputs.submission:
        raise ConfigError(f"--sample {outputs.sample} needs --submission: name the submission to write")
    inputs = (images if images.is_file() else None, metadata, outputs.sample)
    check_output(outputs.csv, "--out", inputs=inputs)
    if outputs.submission:
        check_output(outputs.submission, "--submission", inputs=(*inputs, outputs.csv))
        if outputs.submission.absolute() == outputs.csv.absolute():
            raise ConfigError(f"--out and --submission are both {outputs.csv}: name two files")
    if outputs.work:
        check_output_folder(outputs.work, "--work")
    rows = tolerant(read_new_rows(bundle, images, metadata, files=files), on_unreadable)
    report_unused(rows, images, out, files=files, strict=strict)
    report_codes(bundle, rows, metadata, out)
    _introduce(bundle, rows, out)
    streamed = is_stream(outputs.csv)
    beside = Path(tempfile.mkdtemp(prefix="dermstack-predict-")) if streamed else outputs.csv.parent
    work = outputs.work or beside / f"{outputs.csv.name}.parts"
    made = predict_rows(bundle, rows, work, out, device=device, n_jobs=n_jobs, on_unreadable=on_unreadable)
    warn_of_fallback(bundle, made, out)
    say_decisions(bundle, made, rows.frame, rows.missing, out)
    _write_csv(made, outputs.csv)
    if len(lost := rows.frame.loc[~rows.frame["id"].isin(made["id"]), "id"]):
        listed = outputs.csv.with_name(f"{outputs.csv.stem}.dropped.csv")
        if not streamed:
            _write_csv(lost, listed)
        out.warn(f"{len(lost):,} unreadable images have no row" + ("" if streamed else f", see {listed}"))
    if outputs.submission:
        columns = bundle.columns
        frame = submission(
            made["id"], made["score"], id_column=columns["id"], target_column=columns["target"], sample=outputs.sample
        )
        with output_file(outputs.submission) as temporary:
            temporary.write_text(submission_text(frame), encoding="utf-8", newline="\n")
        out.say(f"submission: {outputs.submission}")
    shutil.rmtree(work)
    if streamed:
        shutil.rmtree(beside)
    if "far" in made and made["far"].any():
        out.warn(
            f"{int(made['far'].sum()):,} of {len(made):,} images lie further out than 99 % of the training images "
            "(column far): check them before you trust their score"
        )
    out.say(f"predictions: {outputs.csv}, {len(made):,} rows")
    return made


def _write_csv(rows: pd.DataFrame | pd.Series, path: Path) -> None:
    with output_file(path) as temporary:
        temporary.write_text(rows.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")


def drops_unreadable(on_unreadable: str) -> bool:
    """Returns True for "drop", False for the other choices. Raises ConfigError for other values."""
    if on_unreadable not in UNREADABLE_CHOICES:
        raise ConfigError(f"--on-unreadable {on_unreadable}: choose {', '.join(UNREADABLE_CHOICES)}")
    return on_unreadable == "drop"


def warn_of_fallback(bundle: Bundle, made: pd.DataFrame, out: Out) -> None:
    """Names the rows that are predicted without their image, and how good such predictions are."""
    if "basis" not in made or (made["basis"] == "images").all():
        return
    quality = bundle.json(f"{FOLDER}/{STATE_FILE}")["performance"]
    for basis, what in (("table", "from the table alone"), ("prevalence", "as the prevalence: no value in the table")):
        ids = made.loc[made["basis"] == basis, "id"]
        if len(ids):
            more = f", … {len(ids):,} in all" if len(ids) > _MAX_LISTED else ""
            out.warn(f"{len(ids):,} images cannot be read, predicted {what}: {', '.join(ids[:_MAX_LISTED])}{more}")
    out.warn(f"the training estimate does not apply to these rows; their fallback is {quality} (column basis)")


def tolerant(rows: NewRows, on_unreadable: str) -> NewRows:
    """Returns the rows; with "tolerate", JPEGs with stray bytes after their last pixel are read."""
    tolerate = on_unreadable == "tolerate"
    return replace(rows, sources=[replace(source, tolerate=tolerate) for source in rows.sources])


def _introduce(bundle: Bundle, rows: NewRows, out: Out) -> None:
    """Prints the training estimate of the bundle and the cost of missing columns."""
    manifest, headline = bundle.manifest, bundle.manifest["headline"]
    out.say(
        f"{manifest['experiment']}: {manifest['objective']} {headline['value']:.4f} [{headline['low']:.4f}, "
        f"{headline['high']:.4f}] nested on {manifest['training']['rows']:,} training rows; {len(rows.frame):,} images "
        f"of {rows.frame['group'].nunique():,} groups to predict"
    )
    about = filter(None, (bundle.selection_note, local_note(bundle)))
    for note in [*about, *cost_notes(bundle, rows.missing), *unknown_words(bundle, rows.frame)]:
        out.warn(note)
