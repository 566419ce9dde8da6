"""The copy of an experiment whose folds hold out whole sources, in which leave-source-out trains and fits again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.console import Out
from stack.experiment import BY_SOURCE, Experiment
from stack.fold_needs import check_fold_needs
from stack.folds import Folds
from stack.settings.config import Config, Tuned
from stack.source_folds import folds_by_source, main_sources, source_units, torn_units
from stack.tuned import enabled_models


@dataclass(frozen=True)
class Sources:
    """The sources of the training rows, by id."""

    named: pd.Series  # as the table names them
    unit: pd.Series  # what is held out as a whole
    kept: pd.Series  # whether a row is used: False for rows of another source than their group's main one
    joined: tuple[str, ...]
    shared_groups: int
    held_out: bool  # whether the experiment's own folds keep sources apart


def trains_by_source(experiment: Experiment) -> bool:
    """Whether the config asks to train the image models again with folds of sources; never for shuffled targets."""
    return trains_again(experiment.config) and not experiment.shuffled


def trains_again(config: Config) -> bool:
    """Whether the config asks to train image models again with folds of sources, and names sources and such models."""
    estimate = config.estimate
    return estimate.leave_source_out and estimate.train_by_source and config.data.has_sources


def rebuild_name(experiment: Experiment, run: str) -> str:
    """Returns how `oof --rebuild` names an image run: in a copy by source with its folder."""
    return run if experiment.copy_of is None else f"{BY_SOURCE}/{run}"


def units_of_sources(experiment: Experiment, rows: NDArray[np.intp] | None = None) -> Sources:
    """Returns the units: joined sources where the experiment's folds hold these out, else each group's main source.

    ``rows`` are the training rows that are scored, by default all. Raises DataError where a row has no source.
    """
    train, group = experiment.table.train, experiment.split_group
    units = source_units(train["source"], group)
    named = train["source"].astype(str).to_numpy(object)
    rows = np.arange(len(train)) if rows is None else rows
    held_out = not torn_units(named[rows], experiment.folds.frame["fold"].to_numpy()[rows])
    if held_out:
        unit, kept = units.unit, np.ones(len(named), bool)
        joined, shared = units.joined, units.shared_groups
    else:
        main = main_sources(train["source"], group)
        unit, kept, joined, shared = main.unit, ~main.left_out, (), main.groups
    by_id = pd.Index(train["id"])
    return Sources(
        pd.Series(named, index=by_id), pd.Series(unit, index=by_id), pd.Series(kept, index=by_id), joined, shared,
        held_out,
    )  # fmt: skip


def sources_of_rows(experiment: Experiment, sources: Sources) -> Sources:
    """Returns the sources by what has a score: by image, or by unit where predictions are for units (`predict_per`).

    All images of a unit are in one group, which is held out with one source: that of the unit. A unit is kept if one of
    its images is.
    """
    if experiment.table.units is None:
        return sources
    images = pd.DataFrame({"named": sources.named, "unit": sources.unit, "kept": sources.kept})
    images["of"] = experiment.table.units.loc[images.index].to_numpy(object)
    first = images.sort_values("kept", ascending=False, kind="stable").drop_duplicates("of").set_index("of")
    return replace(sources, named=first["named"], unit=first["unit"], kept=first["kept"])


def experiment_by_source(experiment: Experiment, sources: Sources, out: Out) -> Experiment:
    """Returns the copy of the experiment, in its folder leave_source_out, whose folds hold out whole ``sources``.

    Rows of a group outside its main source are ``left_out``: nothing is fitted on them and they are not scored, so that
    each fold holds out whole sources and whole groups. There are no test rows, as only the score on the training rows
    is wanted, and no results of studies, which were chosen with other folds; tuned settings of image models stay, and
    their runs are labelled as selected. Raises DataError where sources or their groups are too few.
    """
    config, table = experiment.config, experiment.table
    train = table.train.assign(source=sources.unit.to_numpy(object))
    kept, settings = sources.kept.to_numpy(bool), config.folds
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        some = folds_by_source(
            Folds(experiment.folds.frame[kept]), train[kept], k=experiment.folds.k, seed=settings.seed,
            stratify=settings.stratify,
        )  # fmt: skip
    for warning in caught:
        out.warn(f"leave-source-out: {warning.message}")
    number = some.frame["fold"].groupby(train["source"].to_numpy()[kept]).first()
    folds = Folds(experiment.folds.frame.assign(fold=train["source"].map(number).to_numpy(np.int8)))
    settings = settings.model_copy(update={"by": "source", "file": None})
    name, columns = f"{experiment.name}/{BY_SOURCE}", config.data.columns.model_copy(update={"fold": None})
    models = {model.name: model for model in enabled_models(experiment)}
    config = config.model_copy(update={
        "experiment": name, "folds": settings, "data": config.data.model_copy(update={"columns": columns}),
        "image_models": tuple(models.get(model.name, model) for model in config.image_models), "tuned": Tuned(),
        "review": None,
    })  # fmt: skip
    table = replace(table, train=train, test=table.test.iloc[:0])
    by_source = replace(
        experiment, name=name, config=config, folds=folds, table=table, as_read=table,
        left_out=None if kept.all() else ~kept, copy_of=experiment.models,
    )  # fmt: skip
    check_fold_needs(by_source)
    return by_source
