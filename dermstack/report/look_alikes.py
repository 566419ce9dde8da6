"""Builds the page of images that look alike, pair by pair, which `dermstack audit` writes as audit_pairs.html."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from dermstack.audit.pictures import PAIR_KINDS
from dermstack.report.pictures import data_uri
from dermstack.report.report import TEMPLATE_FOLDER, render_template
from stack.experiment import Experiment
from stack.images import existing_cache, smallest_cache_size
from stack.store import atomic

PAIRS_PAGE = "audit_pairs.html"
MAX_PAIRS = 40  # of each kind, the closest first


class _Side(NamedTuple):
    id: str
    words: str
    picture: str
    shape: tuple[int, int]  # height and width


class _Pair(NamedTuple):
    sides: tuple[_Side, _Side]
    turn: str
    distance: float
    is_unmerged: bool  # `data.on_chain` has to decide about it


def write_pairs_page(experiment: Experiment, pairs: pd.DataFrame) -> Path | None:
    """Writes the pairs (`dermstack.audit.pictures.pair_kinds`) with their images; returns None where there are none.

    The page shows ids and groups: it is for whoever has the images, not for publication.
    """
    if pairs.empty:
        return None
    cache = existing_cache(experiment, smallest_cache_size(experiment))
    unmerged = {frozenset(pair) for pair in experiment.curation.unmerged[["id_1", "id_2"]].to_numpy()}
    kinds = []
    for kind in PAIR_KINDS:
        of_kind = pairs[pairs["kind"] == kind]
        asked = [frozenset(pair) in unmerged for pair in of_kind[["id_1", "id_2"]].to_numpy()]
        order = of_kind.assign(asked=asked).sort_values(["asked", "distance"], ascending=[False, True])
        shown = []
        for row in order.head(MAX_PAIRS).to_dict("records"):
            sides = []
            for n in ("1", "2"):
                pixels = cache.image(int(cache.rows_for([row[f"id_{n}"]])[0]))
                target = "" if pd.isna(row[f"target_{n}"]) else f", target {row[f'target_{n}']:.0f}"
                words = f"{row[f'part_{n}']}, group {row[f'group_{n}']}{target}"
                sides.append(_Side(str(row[f"id_{n}"]), words, data_uri(pixels), pixels.shape[:2]))
            shown.append(_Pair((sides[0], sides[1]), str(row["turn"]), float(row["distance"]), bool(row["asked"])))
        if shown:
            kinds.append((kind, len(of_kind), shown))
    style = "\n".join((TEMPLATE_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "cases.css"))
    page = render_template(
        "look_alikes.html.j2", experiment=experiment.name, kinds=kinds, total=len(pairs), style=Markup(style),
        on_chain=experiment.config.data.on_chain, asked=len(unmerged),
    )  # fmt: skip
    path = experiment.folder / PAIRS_PAGE
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
