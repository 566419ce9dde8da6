"""A fitted blend as plain values and arrays, and back: it scores new rows away from those that it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.blend.blender import Blender
from stack.blend.columns import NetColumns, Weighting
from stack.errors import DataError, StoreError
from stack.metrics.curve import Floats
from stack.ranks import Ecdf, NetRanks

State = tuple[dict[str, Any], dict[str, NDArray[Any]]]  # for JSON, and for npy


def blender_state(blender: Blender) -> State:
    """Everything that `predict_proba` reads, floats to the last bit: settings for JSON, distributions as arrays.

    Arrays: `values` and `ranks` of all distributions end to end; the settings say which part is whose.
    """
    columns = blender.columns_
    distributions: list[tuple[str, Ecdf]] = [
        (f"{run} {net}", ecdf) for run, ecdfs in enumerate(columns.ranks_.ecdfs_) for net, ecdf in ecdfs.items()
    ]
    if blender.distribution_ is not None:
        distributions.append(("total", blender.distribution_))
    settings = {
        "method": blender.method,
        "objective": blender.objective,
        "classes": blender.classes_.tolist(),
        "weighting": asdict(blender.weighting_),
        "slope": blender.slope_,
        "intercept": blender.intercept_,
        "inside": columns.inside_.tolist(),
        "moments": columns.moments_,
        "logit_moments": [{str(net): pair for net, pair in moments.items()} for moments in columns.logit_moments_],
        "distributions": [[name, len(ecdf.values_)] for name, ecdf in distributions],
    }
    arrays = {
        "values": np.concatenate([ecdf.values_ for _, ecdf in distributions]),
        "ranks": np.concatenate([ecdf.ranks_ for _, ecdf in distributions]),
    }
    return settings, arrays


def blender_of(settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Blender:
    """A Blender that predicts what the one of this `blender_state` did. Raises StoreError for anything else."""
    try:
        found = _distributions(settings["distributions"], arrays["values"], arrays["ranks"])
        blender = Blender(str(settings["method"]), str(settings["objective"]))
        runs = len(settings["inside"])
        columns = NetColumns()
        columns.ranks_ = NetRanks()
        columns.ranks_.ecdfs_ = [
            {int(name.split()[1]): ecdf for name, ecdf in found.items() if name.split()[0] == str(run)}
            for run in range(runs)
        ]
        columns.inside_ = np.array(settings["inside"], bool)
        columns.moments_ = [(float(mean), float(spread)) for mean, spread in settings["moments"]]
        columns.logit_moments_ = [
            {int(net): (float(mean), float(spread)) for net, (mean, spread) in moments.items()}
            for moments in settings["logit_moments"]
        ]
        blender.columns_ = columns
        blender.weighting_ = Weighting.from_dict(settings["weighting"]).checked(runs)
        blender.slope_, blender.intercept_ = float(settings["slope"]), float(settings["intercept"])
        blender.distribution_ = found.get("total")
        blender.classes_ = np.array(settings["classes"])
        blender.n_features_in_ = runs
    except (DataError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StoreError(f"no fitted blend ({type(error).__name__}: {error}): run `dermstack stack` again") from error
    return blender


def _distributions(parts: list[tuple[str, int]], values: Floats, ranks: Floats) -> dict[str, Ecdf]:
    found, start = {}, 0
    for name, length in parts:
        ecdf = Ecdf()
        ecdf.values_, ecdf.ranks_ = (np.array(whole[start : start + length], np.float64) for whole in (values, ranks))
        if not (len(ecdf.values_) == len(ecdf.ranks_) == length > 0):
            raise ValueError(f"{length} values of {name} expected, {len(ecdf.values_)} there")
        found[str(name)], start = ecdf, start + length
    return found
