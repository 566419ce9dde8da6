"""What new images are compared with: a bundle's nested training estimate, and the measured cost of missing columns."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from dermstack.errors import BundleError
from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import FittedEnsemble, read_fitted
from dermstack.serve.image_runs import fold_folder, net_encoder
from dermstack.serve.manifest import ImageRun
from dermstack.serve.stages import SeenRows
from dermstack.serve.words import known_words
from image_models.net_files import WEIGHTS
from image_models.saved import head_logits
from stack.console import Out
from stack.experiment import Experiment
from stack.level2.features import metadata_of_models
from stack.metrics.intervals import Z95, Interval, paired_difference
from stack.metrics.measures import jsonable
from stack.metrics.subgroups import columns_to_cut, with_skin_tone
from stack.metrics.validation import InternalValidation, internal_validation, internal_validation_from_json
from stack.predictions.joined import predictions_of, read_embeddings
from stack.predictions.repeats import repeated
from stack.store import Run, row_positions
from stack.tables.columns import fits
from stack.unit_rows import scored_experiment, unit_rows

PROMISE_FILE = "promise.json"


def measure_promise(experiment: Experiment, blend: Run) -> InternalValidation:
    """Returns the training estimate, measured on the nested scores and the nested calibrated p.

    For each row, both were fitted without the row's fold; the method behind the score was chosen without it too, the
    method behind p on all rows.
    """
    oof, scored = blend.frame("oof"), scored_experiment(experiment)
    row_positions = scored.rows_of(oof["id"])
    columns = experiment.table.columns
    rows, tones = with_skin_tone(scored.table.train.iloc[row_positions].reset_index(drop=True), columns.shown_numeric)
    return internal_validation(
        experiment.config.objective,
        scored.target[row_positions],
        oof["score"].to_numpy(np.float64),
        oof["p_calibrated"].to_numpy(np.float64),
        scored.split_group[row_positions],
        rows,
        further=columns_to_cut(rows, {**tones, **columns.shown_categorical}),
    )


def write_promise(promise: InternalValidation, bundle: Path) -> None:
    """Writes the training estimate into the folder of an unfinished bundle."""
    (bundle / PROMISE_FILE).write_text(json.dumps(jsonable(promise), indent=1), encoding="utf-8")


def read_promise(bundle: Bundle) -> InternalValidation:
    """Reads the training estimate. Raises BundleError for a bundle of an earlier dermstack, which has none."""
    if PROMISE_FILE not in bundle:
        raise BundleError(
            f"{bundle.place} has no {PROMISE_FILE} to compare with, because an earlier dermstack made it: bundle the "
            "experiment again with `dermstack bundle`"
        )
    content = bundle.json(PROMISE_FILE)
    try:
        promise = internal_validation_from_json(content)
        _PROMISE_TYPE.validate_python(asdict(promise))
        for entry in promise.subgroups:
            _SUBGROUP_TYPE.validate_python(entry)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        fault = " ".join(str(error).split())[:300]
        raise BundleError(f"{bundle.place}: {PROMISE_FILE} cannot be read ({fault}): bundle again") from error
    return promise


# The types of what promise.json holds; JSON gives none of them by itself.
_PROMISE_TYPE = TypeAdapter(InternalValidation)
_SUBGROUP_TYPE = TypeAdapter(dict[str, bool | float | Annotated[str, Field(max_length=1000)] | None])


COSTS_FILE = "costs.json"
OPTIONAL_COLUMNS = ("age", "sex", "site", "group")  # columns with a role that new images may lack
MAX_MEASURED = 12  # further columns whose cost is measured one by one: those that the models use most
MAX_COST_ROWS = 60_000  # rows, of whole groups, on which the cost of further columns is measured
_MAX_NAMED = 6  # columns that a sentence names


def measure_costs(experiment: Experiment, bundle: Bundle, runs: list[Run], out: Out) -> list[dict[str, Any]]:
    """Measures the objective without each column, and without all, minus the objective with all; interval by group.

    Every row is scored by the fold models that did not see it, with the blend of the bundle. For a network that takes
    metadata, the head is applied again to the stored embedding (a mean over views, rounded to float16: this changes
    its logit a little, equally with and without the column). Without ``group``, each image is its own group.

    Of the columns without a role, those that the models use most are measured one by one and the rest together, in at
    most `MAX_COST_ROWS` rows; the first entries are those of the columns with a role. Columns that name units cannot be
    missing.
    """
    fitted = read_fitted(bundle)
    predictions = predictions_of(experiment, runs)
    further = experiment.table.columns
    used = metadata_of_models(experiment.config, further)
    needed = {csv for name, parts in further.made_of.items() if name in used for csv in parts}
    inputs = {
        name: csv for name, csv in bundle.table_inputs.items() if csv in needed and csv not in bundle.unit_columns
    }
    places = _cost_rows(experiment.split_group[predictions.rows]) if inputs else np.arange(len(predictions.rows))
    rows = predictions.rows[places]
    frame = experiment.table.train.iloc[rows].reset_index(drop=True)
    unit, places_of_units, scored = _units_of_rows(experiment, rows)
    y, groups = scored.target[places_of_units], scored.split_group[places_of_units]
    logits, nets = predictions.oof[places], predictions.nets[places]
    folds = np.stack(
        [repeated(experiment, repeat).folds.frame["fold"].to_numpy()[rows] for repeat in range(fitted.repeats)]
    )
    z = {name: embedding.oof[rows] for name, embedding in read_embeddings(experiment, runs).items()}
    of_all = np.column_stack([nets, *(folds[0] for _ in fitted.stackers)])

    def scores(frame: pd.DataFrame, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the scores of rows or units, each by the models that held it out."""
        return fitted.score_held_out(fitted.logits(SeenRows(frame, logits, nets, z), folds), of_all, unit)

    optional = [name for name in OPTIONAL_COLUMNS if bundle.columns.get(name) not in bundle.unit_columns]
    with_role = [name for name in optional if name == "group" or (name in used and frame[name].notna().any())]
    full = scores(frame, logits)
    order = _most_used_first(bundle, fitted, inputs)
    first, rest = tuple(order[:MAX_MEASURED]), tuple(order[MAX_MEASURED:])
    possible = [
        *((name,) for name in with_role), tuple(with_role),
        *((name,) for name in first), rest, tuple(order), (*with_role, *order),
    ]  # fmt: skip
    column_sets = list(dict.fromkeys(names for names in possible if names))
    changes = _logit_changes(bundle, runs[: len(bundle.image_runs)], nets, frame, column_sets)
    costs = []
    with out.bar("cost of missing columns", len(column_sets), "sets") as progress:
        for names, change in zip(column_sets, changes, strict=True):
            reduced = scores(_drop_columns(frame, names, bundle), logits + change)
            cost = paired_difference(experiment.config.objective, y, reduced, full, groups)
            costs.append({"without": list(names), "cost": cost.value, "low": cost.low, "high": cost.high})
            progress(1)
    return costs


def _units_of_rows(
    experiment: Experiment, rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp] | None, NDArray[np.intp], Experiment]:
    """Returns the unit 0, 1, … of training ``rows`` (n,), and the rows of these units in the experiment of units.

    Where predictions are for images there are no units, and the rows are the given ones of the experiment itself.
    """
    if experiment.config.predict_per is None:
        return None, rows, experiment
    units = unit_rows(experiment)
    of_units, unit = np.unique(units.of_train[rows], return_inverse=True)
    return unit, of_units, units.experiment


def _cost_rows(groups: NDArray[np.object_]) -> NDArray[np.intp]:
    """Returns the positions of all rows or, of many, of random whole groups with at most `MAX_COST_ROWS` rows."""
    codes, names = pd.factorize(groups)
    if len(codes) <= MAX_COST_ROWS:
        return np.arange(len(codes))
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.bincount(codes)[order]
    taken = np.zeros(len(names), bool)
    taken[order[np.cumsum(sizes) <= MAX_COST_ROWS]] = True
    return np.flatnonzero(taken[codes])


def _most_used_first(bundle: Bundle, fitted: FittedEnsemble, inputs: Mapping[str, str]) -> list[str]:
    """Orders columns without a role by their share of what stackers gain from features, and of nets' metadata."""
    share = dict.fromkeys(inputs, 0.0)
    names = {csv: name for name, csv in inputs.items()}
    of_field = {
        field: [names[csv] for csv in parts if csv in names] for field, parts in bundle.table_columns.made_of.items()
    }
    for stage in fitted.stages:
        for models in stage.models.values():
            for features, bags in zip(stage.features, models, strict=False):  # a stage has the most repeats of them
                for of_fold, bag in zip(features, bags, strict=True):
                    for feature, gain in bag.gains.items():
                        for name in of_field.get(of_fold.field_.get(feature, feature), ()):
                            share[name] += gain / (len(models) * len(bags))
    for run in bundle.image_runs:
        asked = [str(name) for name in run.settings["metadata"]]
        taken = [name for name, csv in inputs.items() if any(fits(csv, pattern) for pattern in asked)]
        for name in taken:
            share[name] += 1 / len(taken)
    return sorted(share, key=lambda name: -share[name])  # stable: columns of one share in the order of the csv


@dataclass(frozen=True)
class Costs:
    """The measured costs of a bundle by the set of columns that are missing; {} for a bundle without them."""

    by_columns: dict[tuple[str, ...], Interval]

    def of(self, names: Collection[str]) -> Interval | None:
        """Returns the cost of being without exactly these columns; None where it was not measured."""
        return next((cost for known, cost in self.by_columns.items() if set(known) == set(names)), None)

    @property
    def order(self) -> list[str]:
        """The columns without a role, the most used first."""
        return [name for name in max(self.by_columns, key=len, default=()) if name not in OPTIONAL_COLUMNS]

    @property
    def unused(self) -> set[str]:
        """Columns whose measured cost, alone or with others, is exactly 0: no model uses them."""
        return {name for names, cost in self.by_columns.items() if cost.low == cost.high == 0 for name in names}


def read_costs(bundle: Bundle) -> Costs:
    """Reads the measured costs. Raises BundleError where they cannot be read."""
    if COSTS_FILE not in bundle:
        return Costs({})
    try:
        entries = bundle.json(COSTS_FILE)
        if not isinstance(entries, list):
            raise TypeError("it is no list")
        return Costs({tuple(map(str, entry["without"])): _cost(entry) for entry in entries})
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{bundle.place}: {COSTS_FILE} cannot be read ({error}): bundle again") from error


def lacking_columns(bundle: Bundle, frame: pd.DataFrame, missing: Sequence[str]) -> tuple[list[str], Interval | None]:
    """Returns the columns that the expectation was made with and no row has, and the measured cost of being without.

    These are `unknown_columns`. A column whose measured cost is exactly 0 is used by no model and does not count. The
    cost is None where it was not measured for these columns together. Columns without a role are named as in the csv.
    """
    inputs, costs = bundle.table_inputs, read_costs(bundle)
    lacking = unknown_columns(bundle, frame, missing)
    if not costs.by_columns:
        return [
            inputs.get(name, name) for name in lacking if name in inputs or (name != "group" and name in bundle.columns)
        ], None
    measured = {name for names in costs.by_columns for name in names}
    lacking = [name for name in lacking if name in measured and name not in costs.unused]
    found = (cost for names, cost in costs.by_columns.items() if set(names) - costs.unused == set(lacking))
    return [inputs.get(name, name) for name in lacking], next(found, None) if lacking else None


def takes_age(bundle: Bundle) -> bool:
    """Says whether an age changes a prediction: of a network, of level 2, or of an image that cannot be read."""
    age, costs = bundle.columns.get("age"), read_costs(bundle)
    is_part = any(age in parts for parts in bundle.table_columns.made_of.values())
    measured = {name for names in costs.by_columns for name in names} - costs.unused
    return age is not None and (
        not costs.by_columns or "age" in measured or is_part or bool(bundle.manifest.get("fallback"))
    )


def unknown_columns(bundle: Bundle, frame: pd.DataFrame, missing: Sequence[str]) -> list[str]:
    """Returns the columns that are known for no row, by their name among missing columns.

    ``missing`` names the columns that the table lacks. A column without a value in any row counts too, and a column of
    words of which training has none: models take them as no known category.
    """
    words = known_words(bundle)

    def is_known(name: str) -> bool:
        values = frame[name].dropna()
        return bool(values.isin(words[name]).any() if words.get(name) else len(values))

    return [
        name
        for name in (*OPTIONAL_COLUMNS, *bundle.table_inputs)
        if name in missing or (name in frame and not is_known(name))
    ]


def _cost(entry: dict[str, Any]) -> Interval:
    value, low, high = (float(entry[name]) for name in ("cost", "low", "high"))
    if not np.isfinite([value, low, high]).all():
        raise ValueError(f"a cost of {value} [{low}, {high}]")
    return Interval(value, low, high, (high - low) / (2 * Z95))


def cost_notes(bundle: Bundle, missing: Sequence[str]) -> list[str]:
    """Returns sentences on ``missing`` columns (`unknown_columns`) with their measured cost; [] if none is missing.

    A column with a role has a sentence of its own, if its cost was measured and a model uses it; all others share one,
    which names those first that the models use most.
    """
    inputs, costs = bundle.table_inputs, read_costs(bundle)
    lacking = [name for name in OPTIONAL_COLUMNS if name in missing]
    used = [name for name in lacking if name not in costs.unused]
    further = [name for name in costs.order or inputs if name in missing and name in inputs]  # the most used first
    whole = (*lacking, *further)
    of_roles = [names for names in costs.by_columns if not set(names) & set(inputs)]
    everything = max(of_roles, key=len, default=())
    reported = (
        [everything]
        if len(everything) > 1 and set(lacking) >= set(everything) and not costs.unused.issuperset(everything)
        else [(name,) for name in used if (name,) in of_roles]
    )
    changes = f"{bundle.objective} on the training rows changes by"
    notes = [
        f"no {' and no '.join(names)}{_csv_names(bundle, names)}: without {'it' if len(names) == 1 else 'them'}, "
        f"{changes} {_shown(costs.by_columns[names])}"
        for names in reported
    ]
    if further:
        text = f"{len(further):,} of the {len(inputs):,} further columns of training are missing: "
        text += _listed([inputs[name] for name in further])
        if cost := costs.of(further):
            text += f"; without {'it' if len(further) == 1 else 'them'}, {changes} {_shown(cost)}"
        else:
            alone = [(name, one) for name in costs.order if name in further and (one := costs.of([name]))]
            told = [f"{_shown(one)} without {inputs[name]!r} alone" for name, one in alone[:_MAX_NAMED]]
            text += f"; {changes} {', '.join(told)}" if told else ""
            text += "; the change without all of them was not measured" if costs.by_columns else ""
        notes.append(text)
        if lacking and (cost := costs.of(whole)):
            notes.append(f"without all of these, {changes} {_shown(cost)}")
    return notes


def _shown(change: Interval) -> str:
    return f"{change.value:+.4f} (95 % interval {change.low:+.4f} to {change.high:+.4f})"


def _listed(names: Sequence[str]) -> str:
    more = f", … {len(names):,} in all" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + more


def _csv_names(bundle: Bundle, names: Sequence[str]) -> str:
    """Returns the columns' names in a csv, in brackets; an empty text if they have none."""
    called = [bundle.columns[name] for name in names if name in bundle.columns]
    return f" (column {', '.join(called)})" if called else ""


def _drop_columns(frame: pd.DataFrame, names: Collection[str], bundle: Bundle) -> pd.DataFrame:
    """Returns the rows without the values of these columns and of the derived columns that need them."""
    reduced = frame.copy()
    known = bundle.columns | bundle.table_inputs
    gone = {known[name] for name in names if name in known}
    lost = {name for name, parts in bundle.table_columns.made_of.items() if gone.intersection(parts)}
    for name in [*(name for name in names if name in frame), *sorted(lost - set(names))]:
        if name == "group":
            reduced["group"] = reduced["id"]
        else:
            reduced[name] = pd.Series(np.nan, index=reduced.index, dtype=reduced[name].dtype)
    return reduced


def _logit_changes(
    bundle: Bundle, runs: list[Run], nets: NDArray[np.int8], frame: pd.DataFrame, column_sets: Sequence[Sequence[str]]
) -> list[NDArray[np.float32]]:
    """Returns (n, runs) for each set of columns: the logits without these columns minus those with all metadata."""
    changes = [np.zeros(nets.shape, np.float32) for _ in column_sets]
    for place, (run, stored) in enumerate(zip(bundle.image_runs, runs, strict=True)):
        if not run.settings["metadata"]:
            continue
        oof_z = stored.array("oof_z")[row_positions(frame["id"], stored.frame("oof")["id"], f"the rows of {run.name}")]
        for fold in range(bundle.folds):
            rows = np.flatnonzero(nets[:, place] == fold)
            of_fold = frame.iloc[rows]
            reduced = (_drop_columns(of_fold, names, bundle) for names in column_sets)
            known, *others = _head_logits(bundle, run, fold, oof_z[rows], chain([of_fold], reduced))
            for change, logit in zip(changes, others, strict=True):
                change[rows, place] = logit - known
    return changes


def _head_logits(
    bundle: Bundle, run: ImageRun, fold: int, z: NDArray[np.float16], frames: Iterable[pd.DataFrame]
) -> list[NDArray[np.float32]]:
    """Returns the logits (n,) for each frame's metadata: the network's head applied to stored embeddings (n, d)."""
    encoder = net_encoder(bundle, run, fold)
    assert encoder is not None, "the network takes metadata"
    metadata = [encoder.transform(frame) for frame in frames]
    weights = fold_folder(bundle, run, fold) / WEIGHTS
    return head_logits(weights, run.settings, z, metadata, positive=run.positive, read=bundle.read_path)
