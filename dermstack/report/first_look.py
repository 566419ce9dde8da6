"""`dermstack eda`: an experiment's rows and pictures, gathered for the page of a first look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dermstack.audit.pictures import pair_kinds
from dermstack.report.eda import Pictures, write_eda
from stack.console import Out
from stack.experiment import Experiment
from stack.images import looking_size, with_images

if TYPE_CHECKING:  # the image half is an extra, imported when a command needs it
    from image_models.cache import ImageCache

THUMBNAIL = 112  # pixels a side on the page


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
    from image_models.duplicates import thumbnails_of

    index = cache.index[["id", "source_height", "source_width", "source_bytes"]]
    return Pictures(index, lambda ids: thumbnails_of(cache, cache.rows_for(ids), side=THUMBNAIL))
