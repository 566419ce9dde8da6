"""Images of single cases on the pages: contact sheets, most confident errors with heat maps, doubtful labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from dermstack.audit.labels import NEIGHBOURS, kept_doubtful_labels
from dermstack.report.pictures import (
    HEAT_OPACITY,
    NO_PICTURES,
    CasePictures,
    Pixels,
    cached_case_pictures,
    colour,
    data_uri,
    has_heat_maps,
)
from dermstack.report.report import TEMPLATE_FOLDER, Section, render_template
from dermstack.report.units import Scored, run_weights
from stack.experiment import Experiment
from stack.history import auc_of
from stack.parallel import Pending, ready, start_together
from stack.store import Run


class Tile(NamedTuple):
    """An image and its edges, each as the data URI of a JPEG."""

    id: str
    words: str  # its metadata
    picture: str
    edges: str


def sample_ids(train: pd.DataFrame, *, each: int, seed: int) -> list[str]:
    """Draws ids of at most `each` negatives, then of as many positives; one per group while there are enough groups.

    The ids do not depend on the order of the rows.
    """
    rng = np.random.default_rng(seed)
    ids: list[str] = []
    for label in (0, 1):
        rows = train.loc[train["target"] == label, ["id", "group"]].sort_values("id")
        rows = rows.iloc[rng.permutation(len(rows))]
        turn = rows.groupby("group", sort=False).cumcount()  # the first of each group, then the second, …
        ids += rows.iloc[np.argsort(turn.to_numpy(), kind="stable")[:each]]["id"].tolist()
    return ids


def tiles(train: pd.DataFrame, ids: list[str], thumbnails: Pixels) -> list[Tile]:
    """Makes the tiles of the images `thumbnails` (n, h, w, 3) of these `ids` of `train`, in their order."""
    rows = train.set_index("id").loc[ids].reset_index()
    return [
        Tile(row["id"], _tile_caption(row), data_uri(picture), data_uri(edges(picture)))
        for (_, row), picture in zip(rows.iterrows(), thumbnails, strict=True)
    ]


def edges(picture: Pixels) -> Pixels:
    """Returns the edges of an image (h, w, 3) as dark lines on white (h, w): Sobel gradient of the smoothed brightness.

    The strongest 1 % of the pixels is black; an image of one colour stays white.
    """
    grey = ndimage.gaussian_filter(picture.astype(np.float64) @ (0.299, 0.587, 0.114), 1.0)
    strength = np.hypot(ndimage.sobel(grey, axis=0), ndimage.sobel(grey, axis=1))
    # A gradient of a few grey levels is noise of the JPEG encoding and must not be stretched to black.
    darkest = max(float(np.quantile(strength, 0.99)), 16.0)
    drawn: Pixels = (255 * (1 - np.clip(strength / darkest, 0, 1))).round().astype(np.uint8)
    return drawn


def _tile_caption(row: pd.Series) -> str:
    known = [f"{row['age']:.0f} years"] if pd.notna(row["age"]) else []
    return ", ".join([str(row[name]) for name in ("diagnosis", "sex", "site") if pd.notna(row.get(name))] + known)


def metadata_words(row: pd.Series) -> list[str]:
    """Returns the known values of diagnosis, sex, site and age of a row of the table."""
    known = [str(row[name]) for name in ("diagnosis", "sex", "site") if pd.notna(row.get(name))]
    return known + ([f"{row['age']:.0f}\N{NO-BREAK SPACE}years"] if pd.notna(row["age"]) else [])


class _HardCase(NamedTuple):
    name: str
    p: float  # calibrated
    p_image_model: float | None  # probability of the image model
    words: list[str]  # known values of diagnosis, sex, site, age
    picture: str | None
    heat: str | None
    shape: tuple[int, int] | None


def hard_cases(
    experiment: Experiment,
    blend: Run,
    runs: Sequence[Run],
    *,
    display_name: Callable[[str], str],
    scored: Scored | None = None,
    no_images: bool = False,
    each: int = 20,
) -> Section:
    """Returns the section with the ``each`` most confident misses and false alarms of the blend of ``runs``.

    Cases are shown with image, heat map and metadata, or as a table with ``no_images`` and if the images or the extra
    `[image]` are not available. ``display_name`` maps an id to the name on the page. ``scored`` are the rows that the
    blend scores, by default the images; of a unit, the image with the highest risk is shown. Raises ImageError if
    weights cannot be read.
    """
    scored = scored or Scored(experiment, runs)
    started = start_hard_cases(
        experiment, blend, runs, display_name=display_name, scored=scored, no_images=no_images, each=each
    )
    return started.finish(lambda done: None)


def start_hard_cases(
    experiment: Experiment,
    blend: Run,
    runs: Sequence[Run],
    *,
    display_name: Callable[[str], str],
    scored: Scored,
    no_images: bool,
    each: int = 20,
) -> Pending[Section]:
    """Starts what `hard_cases` makes: in a worker process, unless all heat maps were kept, as they take seconds."""
    oof = blend.frame("oof")
    rows = scored.experiment.rows_of(oof["id"])
    oof = oof.assign(target=scored.experiment.target[rows], split_group=scored.experiment.split_group[rows])
    missed, alarms = most_wrong(oof, each=each)
    ids = [*missed["id"], *alarms["id"]]
    run = image_run(blend, runs, experiment)
    image_of = {} if run is None else scored.image_of(experiment, run, ids)
    cases = _HardCases(missed, alarms, run, image_of, each, float(oof["target"].mean()))
    if no_images or run is None or not ids:
        note = "The blend has no image model of this experiment, so no images are shown." if run is None else ""
        note = "This report was made without images." if no_images else note
        return ready(_cases_section(cases, scored, display_name, [(NO_PICTURES, note)]))
    task = partial(cached_case_pictures, experiment, run, list(image_of.values()))
    if has_heat_maps(experiment, run, list(image_of.values())):  # no torch is needed
        return Pending(0, lambda progress: _cases_section(cases, scored, display_name, [task()]))
    return start_together([task], experiment.config, partial(_cases_section, cases, scored, display_name))


class _HardCases(NamedTuple):
    """The blend's most confident misses and false alarms, at most ``each`` of both."""

    missed: pd.DataFrame
    alarms: pd.DataFrame
    run: Run | None  # the image model whose images and heat maps are shown
    image_of: Mapping[str, str]  # id of the image that is shown, by id of the case
    each: int
    prevalence: float


def _cases_section(
    cases: _HardCases,
    scored: Scored,
    display_name: Callable[[str], str],
    made: list[tuple[CasePictures, str]],
) -> Section:
    """Returns the section of the cases, with the pictures and the note that one task ``made``."""
    pictures, note = made[0]
    run, image_of = cases.run, cases.image_of
    ids = [*cases.missed["id"], *cases.alarms["id"]]
    p_image_model = None
    if run is not None:
        p_image_model = next(one for one in scored.runs if one.name == run.name).frame("oof").set_index("id")["p"]
    table = scored.experiment.table.train.set_index("id")

    def case(row: pd.Series) -> _HardCase:
        row_id = row["id"]
        return _HardCase(
            name=display_name(row_id),
            p=row["p_calibrated"],
            p_image_model=None if p_image_model is None else float(p_image_model.loc[row_id]),
            words=metadata_words(table.loc[row_id]),
            picture=pictures.picture.get(image_of.get(row_id, row_id)),
            heat=pictures.heat.get(image_of.get(row_id, row_id)),
            shape=pictures.shape.get(image_of.get(row_id, row_id)),
        )

    markup = render_template(
        "hard_cases.html.j2",
        unit=scored.unit,
        coded=display_name is not str,
        lists=[
            ("missed", "Positives with the lowest probability", [case(row) for _, row in cases.missed.iterrows()]),
            (
                "alarms",
                "Negatives with the highest probability",
                [case(row) for _, row in cases.alarms.iterrows()],
            ),
        ],
        each=cases.each,
        run=run.name if run else None,
        note=note,
        described=any(metadata_words(table.loc[row_id]) for row_id in ids),
        shown=bool(pictures.picture),
        heated=bool(pictures.heat),
        stops=", ".join(
            "rgb({:.0f} {:.0f} {:.0f} / {:.2f})".format(*colour(np.array(heat)), HEAT_OPACITY * heat)
            for heat in np.linspace(0, 1, 6)
        ),
        prevalence=cases.prevalence,
    )
    return Section(markup, (TEMPLATE_FOLDER / "cases.css").read_text(encoding="utf-8"))


def most_wrong(oof: pd.DataFrame, *, each: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the positives with the lowest and negatives with the highest `p_calibrated`, one per split_group each.

    ``oof`` has id, target, split_group, score and p_calibrated. Only rows on the wrong side of the prevalence are
    included; ties are ordered by score, then by id.
    """
    prevalence = oof["target"].mean()
    found = []
    for target, rising in ((1, True), (0, False)):
        wrong = oof["p_calibrated"] < prevalence if target else oof["p_calibrated"] > prevalence
        some = oof[wrong & (oof["target"] == target)]
        some = some.sort_values(["p_calibrated", "score", "id"], ascending=[rising, rising, True])
        found.append(some.drop_duplicates("split_group").head(each))
    return found[0], found[1]


def image_run(blend: Run, runs: Sequence[Run], experiment: Experiment) -> Run | None:
    """Returns the blend's image model with the largest weight; ties are decided by AUC."""
    weight = run_weights(blend)
    images = [run for run in runs if run.name in weight and run.meta["kind"] in ("image", "frozen")]
    return max(images, key=lambda run: (weight[run.name], auc_of(experiment, run)), default=None)


TARGET_NAMES = {0: "negative", 1: "positive"}


class _CasePicture(NamedTuple):
    name: str
    target: str
    words: list[str]
    picture: str
    shape: tuple[int, int]


class _DoubtfulCase(NamedTuple):
    name: str
    p: float
    neighbours: float | None  # share of positives
    words: list[str]
    like: str | None
    pictures: list[_CasePicture]  # the row's own, then the nearest row of the other target


def doubtful_labels_section(
    experiment: Experiment,
    runs: Sequence[Run],
    *,
    display_name: Callable[[str], str],
    no_images: bool = False,
    each: int = 12,
) -> Section | None:
    """Returns the section of `doubtful_labels` for level-1 ``runs``, at most ``each`` per target; None without runs.

    ``display_name`` maps an id to the name on the page. The section is a table with ``no_images`` and if no image is
    available.
    """
    if not runs:
        return None
    doubtful = kept_doubtful_labels(experiment, runs)
    group = experiment.folds.frame.set_index("id")["split_group"].loc[doubtful["id"]].to_numpy()
    one_per_group = doubtful[~doubtful.assign(group=group).duplicated(["target", "group"])]
    lists = {target: one_per_group[one_per_group["target"] == target].head(each) for target in (1, 0)}
    shown = pd.concat(lists.values())
    ids = list(dict.fromkeys([*shown["id"], *shown["like"].dropna()]))
    image_runs = [run for run in runs if run.meta["kind"] in ("image", "frozen")]
    pictures, note = NO_PICTURES, ""
    if no_images:
        note = "This report was made without images."
    elif not image_runs:
        note = "The blend has no image model of this experiment, so no images are shown."
    elif ids:
        pictures, note = cached_case_pictures(experiment, image_runs[0], ids, heated=False)
    table = experiment.table.train.set_index("id")
    titles = {1: "Labelled positive, but similar to negatives", 0: "Labelled negative, but similar to positives"}
    cases = {
        target: [_doubtful_case(row, table, pictures, display_name) for _, row in some.iterrows()]
        for target, some in lists.items()
    }
    markup = render_template(
        "second_look.html.j2",
        coded=display_name is not str,
        found=len(doubtful),
        rows=len(experiment.target),
        runs=", ".join(run.name for run in runs),
        neighbours=NEIGHBOURS if any(run.has("oof_z") for run in runs) else None,
        each=each,
        note=note,
        lists=[(TARGET_NAMES[target], titles[target], some) for target, some in cases.items()],
        described=any(case.words for some in cases.values() for case in some),
        shown=bool(pictures.picture),
    )
    return Section(markup, (TEMPLATE_FOLDER / "cases.css").read_text(encoding="utf-8"))


def _doubtful_case(
    row: pd.Series, table: pd.DataFrame, pictures: CasePictures, display_name: Callable[[str], str]
) -> _DoubtfulCase:
    pair = [(row["id"], row["target"])] + ([] if pd.isna(row["like"]) else [(row["like"], 1 - row["target"])])
    return _DoubtfulCase(
        name=display_name(row["id"]),
        p=row["p"],
        neighbours=None if pd.isna(row["neighbours"]) else row["neighbours"],
        words=metadata_words(table.loc[row["id"]]),
        like=display_name(row["like"]) if len(pair) > 1 else None,
        pictures=[
            _CasePicture(
                display_name(one),
                TARGET_NAMES[of],
                metadata_words(table.loc[one]),
                pictures.picture[one],
                pictures.shape[one],
            )
            for one, of in pair
            if one in pictures.picture
        ],
    )
