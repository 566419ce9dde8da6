"""The cases that the blend is most surely wrong about: what a reader learns most from looking at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dermstack.report.cases import COVER, NO_PICTURES, colour, pictures_at_hand, words_of
from dermstack.report.section import HERE, Section, rendered
from stack.experiment import Experiment
from stack.history import auc_of
from stack.store import Run


class _Case(NamedTuple):
    name: str
    p: float  # calibrated
    alone: float | None  # p of the image run
    words: list[str]  # diagnosis, sex, site, age, as far as they are known
    picture: str | None
    heat: str | None
    shape: tuple[int, int] | None


def hard_cases(
    experiment: Experiment,
    blend: Run,
    runs: Sequence[Run],
    *,
    name_of: Callable[[str], str],
    no_images: bool = False,
    each: int = 20,
) -> Section:
    """The ``each`` most confident misses and false alarms of the blend of ``runs``, with picture, heat and metadata.

    ``name_of`` makes of an id what the page shows. With ``no_images``, and where the pictures or the image half are
    not at hand, the cases are a table. Raises ImageError for weights that can't be read.
    """
    oof = blend.frame("oof")
    rows = experiment.rows_of(oof["id"])
    oof = oof.assign(target=experiment.target[rows], split_group=experiment.split_group[rows])
    missed, alarms = most_wrong(oof, each=each)
    ids = [*missed["id"], *alarms["id"]]
    run = image_run(blend, runs, experiment)
    pictures, note = NO_PICTURES, ""
    if no_images:
        note = "Made without pictures."
    elif run is None:
        note = "No image model of this experiment is in the blend: there are no pictures to show."
    elif ids:
        pictures, note = pictures_at_hand(experiment, run, ids)
    alone = run.frame("oof").set_index("id")["p"] if run else None
    table = experiment.table.train.set_index("id")

    def case(row: pd.Series) -> _Case:
        row_id = row["id"]
        return _Case(
            name=name_of(row_id),
            p=row["p_calibrated"],
            alone=None if alone is None else float(alone.loc[row_id]),
            words=words_of(table.loc[row_id]),
            picture=pictures.picture.get(row_id),
            heat=pictures.heat.get(row_id),
            shape=pictures.shape.get(row_id),
        )

    markup = rendered(
        "hard_cases.html.j2",
        lists=[
            ("missed", "Positives that were given the lowest probability", [case(row) for _, row in missed.iterrows()]),
            (
                "alarms",
                "Negatives that were given the highest probability",
                [case(row) for _, row in alarms.iterrows()],
            ),
        ],
        each=each,
        run=run.name if run else None,
        note=note,
        shown=bool(pictures.picture),
        heated=bool(pictures.heat),
        stops=", ".join(
            "rgb({:.0f} {:.0f} {:.0f} / {:.2f})".format(*colour(np.array(heat)), COVER * heat)
            for heat in np.linspace(0, 1, 6)
        ),
        prevalence=float(oof["target"].mean()),
    )
    return Section(markup, (HERE / "cases.css").read_text(encoding="utf-8"))


def most_wrong(oof: pd.DataFrame, *, each: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Positives with the lowest `p_calibrated`, negatives with the highest; of a split_group one of each at most.

    ``oof`` has id, target, split_group, score and p_calibrated. Only what lies on the wrong side of the prevalence is
    wrong; ties go by score, then by id.
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
    """Of the blend's image models the one with the largest weight, of equal weights the one with the best AUC."""
    weight = blend.meta["weights"]
    images = [run for run in runs if run.name in weight and run.meta["kind"] in ("image", "frozen")]
    return max(images, key=lambda run: (weight[run.name], auc_of(experiment, run)), default=None)
