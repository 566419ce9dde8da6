"""`dermstack predict`: from a folder of pictures to a csv, and what a reader of that csv should know."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dermstack.serve.bundle import Bundle
from dermstack.serve.expectations import cost_notes
from dermstack.serve.predict import NewRows, predict_rows, read_new_rows
from stack.console import Out
from stack.errors import ConfigError
from stack.store import atomic
from stack.submit import submission, submission_text

HANDLINGS = ("refuse", "drop")


@dataclass(frozen=True)
class Wanted:
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
    wanted: Wanted,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    on_unreadable: str = "refuse",
) -> pd.DataFrame:
    """Predict every row and write the files; returns what the csv holds. Raises what `predict_rows` does."""
    drop = drops_unreadable(on_unreadable)
    if wanted.sample and not wanted.submission:
        raise ConfigError(f"--sample {wanted.sample}: name the file to write with --submission")
    rows = read_new_rows(bundle, images, metadata)
    _introduce(bundle, rows, out)
    work = wanted.work or wanted.csv.with_name(f"{wanted.csv.name}.parts")
    made = predict_rows(bundle, rows, work, out, device=device, n_jobs=n_jobs, drop_unreadable=drop)
    with atomic(wanted.csv) as temporary:
        temporary.write_text(made.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")
    if len(lost := rows.frame.loc[~rows.frame["id"].isin(made["id"]), "id"]):
        listed = wanted.csv.with_name(f"{wanted.csv.stem}.dropped.csv")
        with atomic(listed) as temporary:
            temporary.write_text(lost.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")
        out.warn(f"{len(lost):,} images can't be read and have no row: {listed}")
    if wanted.submission:
        columns = bundle.columns
        frame = submission(
            made["id"], made["score"], id_column=columns["id"], target_column=columns["target"], sample=wanted.sample
        )
        with atomic(wanted.submission) as temporary:
            temporary.write_text(submission_text(frame), encoding="utf-8", newline="\n")
        out.say(f"submission: {wanted.submission}")
    shutil.rmtree(work)
    if "far" in made and made["far"].any():
        out.warn(
            f"{int(made['far'].sum()):,} of {len(made):,} images lie further out than 99 % of the training images "
            "(column far): look at them before believing their score"
        )
    out.say(f"predictions: {wanted.csv}, {len(made):,} rows")
    return made


def drops_unreadable(on_unreadable: str) -> bool:
    """Whether images that can't be read are left out. Raises ConfigError for what is none of HANDLINGS."""
    if on_unreadable not in HANDLINGS:
        raise ConfigError(f"--on-unreadable {on_unreadable}: choose {' or '.join(HANDLINGS)}")
    return on_unreadable == "drop"


def _introduce(bundle: Bundle, rows: NewRows, out: Out) -> None:
    """What was promised, and what the missing columns take of it."""
    manifest, headline = bundle.manifest, bundle.manifest["headline"]
    out.say(
        f"{manifest['experiment']}: {manifest['objective']} {headline['value']:.4f} [{headline['low']:.4f}, "
        f"{headline['high']:.4f}] nested on {manifest['training']['rows']:,} training rows; {len(rows.frame):,} images "
        f"of {rows.frame['group'].nunique():,} groups to predict"
    )
    for note in [*([bundle.flattered] if bundle.flattered else []), *cost_notes(bundle, rows.missing)]:
        out.warn(note)
