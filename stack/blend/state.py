"""Stores a fitted `Blender` as settings for JSON and arrays for npy, and restores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermstack.errors import DataError, StoreError
from stack.blend.blender import Blender
from stack.blend.columns import FINEST_LIMITS, NetScaler, Weighting
from stack.blend.weights import METHODS
from stack.metrics.resolution import checked_limits
from stack.metrics.scores import Floats, is_objective
from stack.predictions.ranks import AVERAGED, Ecdf, NetRanks

State = tuple[dict[str, Any], dict[str, NDArray[Any]]]  # settings for JSON, arrays for npy


def blender_state(blender: Blender) -> State:
    """Returns all that `predict_proba` reads, floats exact to the last bit: settings for JSON, distributions as arrays.

    The arrays `values` and `ranks` hold all distributions one after the other; `distributions` in the settings lists
    their names and lengths.
    """
    columns = blender.scaler_
    distributions: list[tuple[str, Ecdf]] = [
        (f"{run} {net}", ecdf)
        for run, ecdfs in enumerate(columns.ranks_.ecdfs_)
        for net, ecdf in ecdfs.items()
        if net == AVERAGED or ecdf is not ecdfs[AVERAGED]  # nets of one scale share a distribution, stored once
    ]
    if blender.total_ecdf_ is not None:
        distributions.append(("total", blender.total_ecdf_))
    settings = {
        "method": blender.method,
        "objective": blender.objective,
        "classes": blender.classes_.tolist(),
        "weighting": asdict(blender.weighting_),
        "slope": blender.slope_,
        "intercept": blender.intercept_,
        "inside": columns.is_probability_.tolist(),
        "moments": columns.moments_,
        "limits": columns.limits_,
        "nets": [list(ecdfs) for ecdfs in columns.ranks_.ecdfs_],
        "logit_moments": [{str(net): pair for net, pair in moments.items()} for moments in columns.logit_moments_],
        "distributions": [[name, len(ecdf.values_)] for name, ecdf in distributions],
    }
    arrays = {
        "values": np.concatenate([ecdf.values_ for _, ecdf in distributions]),
        "ranks": np.concatenate([ecdf.ranks_ for _, ecdf in distributions]),
    }
    return settings, arrays


def blender_from_state(settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Blender:
    """Returns a Blender that predicts the same as the one saved by `blender_state`.

    Raises StoreError for any other content.
    """
    try:
        found = _distributions(settings["distributions"], arrays["values"], arrays["ranks"])
        if settings["method"] not in METHODS or not is_objective(settings["objective"]):
            raise ValueError(f"method {settings['method']!r:.40} or objective {settings['objective']!r:.40} is unknown")
        blender = Blender(settings["method"], settings["objective"])
        runs = len(settings["inside"])
        columns = NetScaler()
        columns.ranks_ = NetRanks()
        columns.ranks_.ecdfs_ = [
            {int(name.split()[1]): ecdf for name, ecdf in found.items() if name.split()[0] == str(run)}
            for run in range(runs)
        ]
        for ecdfs, nets in zip(columns.ranks_.ecdfs_, settings.get("nets", [[]] * runs), strict=True):
            ecdfs.update({int(net): ecdfs[AVERAGED] for net in nets if int(net) not in ecdfs})  # nets of one scale
        columns.is_probability_ = np.array(settings["inside"], bool)
        columns.moments_ = [(float(mean), float(spread)) for mean, spread in settings["moments"]]
        written = settings.get("limits", [FINEST_LIMITS] * runs)  # absent from what earlier versions wrote
        columns.limits_ = [checked_limits(low, high) for (low, high), _ in zip(written, range(runs), strict=True)]
        columns.logit_moments_ = [
            {int(net): (float(mean), float(spread)) for net, (mean, spread) in moments.items()}
            for moments in settings["logit_moments"]
        ]
        blender.scaler_ = columns
        blender.weighting_ = Weighting.from_dict(settings["weighting"]).checked(runs)
        blender.slope_, blender.intercept_ = _number(settings["slope"]), _number(settings["intercept"])
        blender.total_ecdf_ = found.get("total")
        if not isinstance(settings["classes"], list) or len(settings["classes"]) != 2:
            raise ValueError("it does not have two classes")
        blender.classes_ = np.array(settings["classes"])
        blender.n_features_in_ = runs
        _check_state(blender)
    except (DataError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StoreError(
            f"the stored blend cannot be read ({type(error).__name__}: {error}): run `dermstack stack` again"
        ) from error
    return blender


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _check_state(blender: Blender) -> None:
    """Raises ValueError for numbers that are out of range, with which scores would be NaN or constant."""
    columns = blender.scaler_
    moments = [*columns.moments_, *(pair for nets in columns.logit_moments_ for pair in nets.values())]
    numbers = [*(number for pair in moments for number in pair), blender.slope_, blender.intercept_]
    powers = blender.weighting_.powers
    if len(columns.moments_) != len(columns.logit_moments_) or len(columns.moments_) != blender.n_features_in_:
        raise ValueError("it has moments of another number of runs")
    if (
        not np.isfinite([*numbers, *powers]).all()
        or any(spread <= 0 for _, spread in moments)
        or min(powers, default=1) <= 0
    ):
        raise ValueError("a moment, slope or exponent is out of range")
    for ecdf in filter(None, (*(e for of_run in columns.ranks_.ecdfs_ for e in of_run.values()), blender.total_ecdf_)):
        rising = (np.diff(ecdf.values_) > 0).all() and (np.diff(ecdf.ranks_) > 0).all()
        if not rising or ecdf.ranks_[0] <= 0 or ecdf.ranks_[-1] >= 1 or not np.isfinite(ecdf.values_).all():
            raise ValueError("the ranks of a distribution do not rise inside (0, 1)")


def _distributions(parts: list[tuple[str, int]], values: Floats, ranks: Floats) -> dict[str, Ecdf]:
    found, start = {}, 0
    for name, length in parts:
        ecdf = Ecdf()
        ecdf.values_, ecdf.ranks_ = (np.array(source[start : start + length], np.float64) for source in (values, ranks))
        if not (len(ecdf.values_) == len(ecdf.ranks_) == length > 0):
            raise ValueError(f"expected {length} values of {name}, found {len(ecdf.values_)}")
        found[str(name)], start = ecdf, start + length
    return found
