"""`dermstack audit` and `dermstack eda`: an experiment's pictures and rows looked at before a model is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pages.eda import Pictures, write_eda
from stack.audit import Finding, audit, pair_kinds
from stack.console import Out
from stack.experiment import Experiment, published_duplicates
from stack.images import encodings, looking_size, looks_of, with_images
from stack.store import atomic

if TYPE_CHECKING:  # the image half is an extra, imported when a command needs it
    from image_models.cache import ImageCache

THUMBNAIL = 112  # pixels a side on the page


@dataclass(frozen=True)
class Review:
    """The experiment as its pictures leave it, its pairs of near-duplicates by kind, what the audit found."""

    experiment: Experiment
    pairs: pd.DataFrame
    findings: list[Finding]


def run_audit(experiment: Experiment, out: Out) -> Review:
    """Look at every picture; write audit.csv and audit_pairs.csv into the experiment's folder, and nothing else."""
    from image_models.looks import strange

    size = looking_size(experiment)
    experiment, caches = with_images(experiment, [size], out)
    cache, table = caches[size], experiment.table
    ids = [*table.train["id"], *table.test["id"]]
    odd = strange(looks_of(experiment, cache, ids, out))
    odd = pd.DataFrame({"id": [ids[position] for position in odd["position"]], "fault": odd["fault"]})
    pairs = pair_kinds(experiment.decided.pairs, table)
    sizes = cache.index.iloc[cache.rows_for(ids)][["id", "source_height", "source_width", "source_bytes"]]
    sizes = sizes.assign(encoding=encodings(experiment).loc[sizes["id"]].to_numpy())
    split_group = experiment.folds.frame["split_group"]
    published = published_duplicates(experiment.config.data.duplicates)
    findings = audit(table, split_group, pairs, sizes, odd, experiment.decided.dropped, published)
    for name, frame in (("audit", pd.DataFrame(findings)), ("audit_pairs", pairs)):
        with atomic(experiment.folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    return Review(experiment, pairs, findings)


def run_eda(experiment: Experiment, out: Out, *, sheet: int) -> Path:
    """Write eda.html into the experiment's folder; with ``sheet`` pictures of each class, 0 for none on the page."""
    pictures = pairs = None
    if experiment.config.data.images is not None:
        size = looking_size(experiment)
        experiment, caches = with_images(experiment, [size], out)
        pictures = _pictures(caches[size])
        pairs = pair_kinds(experiment.decided.pairs, experiment.table)
    return write_eda(
        experiment.folder / "eda.html",
        name=experiment.config.data.name,
        table=experiment.table,
        folds=experiment.folds,
        pictures=pictures,
        pairs=pairs,
        sheet=sheet,
        seed=experiment.config.seed,
    )


def _pictures(cache: ImageCache) -> Pictures:
    from image_models.looks import thumbnails_of

    index = cache.index[["id", "source_height", "source_width", "source_bytes"]]
    return Pictures(index, lambda ids: thumbnails_of(cache, cache.rows_for(ids), side=THUMBNAIL))
