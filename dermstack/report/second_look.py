"""Labels worth a second look, with their pictures beside the most alike ones of the other target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from dermstack.audit.labels import NEIGHBOURS, second_look
from dermstack.report.cases import NO_PICTURES, CasePictures, pictures_at_hand, words_of
from dermstack.report.section import HERE, Section, rendered
from stack.experiment import Experiment
from stack.store import Run

WORDS = {0: "negative", 1: "positive"}


class _Shown(NamedTuple):
    name: str
    target: str
    words: list[str]
    picture: str
    shape: tuple[int, int]


class _Case(NamedTuple):
    name: str
    p: float
    neighbours: float | None  # share of positives
    words: list[str]
    like: str | None
    pictures: list[_Shown]  # its own, then that of the nearest of the other target


def second_look_section(
    experiment: Experiment,
    runs: Sequence[Run],
    *,
    name_of: Callable[[str], str],
    no_images: bool = False,
    each: int = 12,
) -> Section | None:
    """What `second_look` finds with the level-1 ``runs``, ``each`` of either target at most; None without runs.

    ``name_of`` makes of an id what the page shows. With ``no_images``, and where no picture is at hand, a table.
    """
    if not runs:
        return None
    look = second_look(experiment, runs)
    group = experiment.folds.frame.set_index("id")["split_group"].loc[look["id"]].to_numpy()
    one_each = look[~look.assign(group=group).duplicated(["target", "group"])]
    lists = {target: one_each[one_each["target"] == target].head(each) for target in (1, 0)}
    shown = pd.concat(lists.values())
    ids = list(dict.fromkeys([*shown["id"], *shown["like"].dropna()]))
    image_runs = [run for run in runs if run.meta["kind"] in ("image", "frozen")]
    pictures, note = NO_PICTURES, ""
    if no_images:
        note = "Made without pictures."
    elif not image_runs:
        note = "No image model of this experiment is in the blend: there are no pictures to show."
    elif ids:
        pictures, note = pictures_at_hand(experiment, image_runs[0], ids, heated=False)
    table = experiment.table.train.set_index("id")
    titles = {1: "Labelled positive, and like negatives", 0: "Labelled negative, and like positives"}
    cases = {
        target: [_case(row, table, pictures, name_of) for _, row in some.iterrows()] for target, some in lists.items()
    }
    markup = rendered(
        "second_look.html.j2",
        found=len(look),
        rows=len(experiment.target),
        runs=", ".join(run.name for run in runs),
        neighbours=NEIGHBOURS if any(run.has("oof_z") for run in runs) else None,
        each=each,
        note=note,
        lists=[(WORDS[target], titles[target], some) for target, some in cases.items()],
        shown=bool(pictures.picture),
    )
    return Section(markup, (HERE / "cases.css").read_text(encoding="utf-8"))


def _case(row: pd.Series, table: pd.DataFrame, pictures: CasePictures, name_of: Callable[[str], str]) -> _Case:
    pair = [(row["id"], row["target"])] + ([] if pd.isna(row["like"]) else [(row["like"], 1 - row["target"])])
    return _Case(
        name=name_of(row["id"]),
        p=row["p"],
        neighbours=None if pd.isna(row["neighbours"]) else row["neighbours"],
        words=words_of(table.loc[row["id"]]),
        like=name_of(row["like"]) if len(pair) > 1 else None,
        pictures=[
            _Shown(name_of(one), WORDS[of], words_of(table.loc[one]), pictures.picture[one], pictures.shape[one])
            for one, of in pair
            if one in pictures.picture
        ],
    )
