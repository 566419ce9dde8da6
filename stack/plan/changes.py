"""Says what differs between a stored run and today's config and rows: the key, its old and its new value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from dermstack.errors import StoreError
from dermstack.listing import counted
from stack.experiment import Experiment
from stack.level1.folds import run_meta
from stack.level2.inputs import made_with
from stack.settings.config import Config
from stack.settings.image_models import ImageModel
from stack.settings.level2 import LATER_STACKER, Features, Stacker
from stack.store import Run, read_frame
from stack.submission import blend_made_with

ABSENT = "absent"
_MAX_SHOWN = 160  # characters of a value


class Change(NamedTuple):
    """A setting or input that differs: its key, the value that a run was made with and the value now."""

    key: str
    old: str
    new: str


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Returns the settings that differ, those inside sections by their full key (`features.relative`)."""
    found = []
    for key in {**old, **new}:
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(before, dict) and isinstance(after, dict):
            found += setting_changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(Change(f"{prefix}{key}", _shown(before), _shown(after)))
    return found


def image_changes(run: Run, model: ImageModel, inputs: Mapping[str, str], experiment: Experiment) -> list[Change]:
    """Returns what differs between a run, fold or net of an image model and ``inputs``, those of today."""
    changes = []
    for name in _differing(run.meta["inputs"], inputs):
        if name == "settings":
            old, new = (
                {key: value for key, value in settings.items() if key not in {"name", *model.unused}}
                for settings in (run.meta["settings"], run_meta(model, {})["settings"])
            )
            changes += setting_changes(old, new) or [_unknown(name)]
        elif name == "rows or folds":
            changes += row_changes(run, experiment)
        else:
            changes += _input_change(name, run, inputs)
    return changes


def stacker_changes(run: Run, stacker: Stacker, inputs: Mapping[str, str], experiment: Experiment) -> list[Change]:
    """Returns what differs between a run of level 2 and ``inputs``, those of today."""
    changes = []
    for name in _differing(run.meta["inputs"], inputs):
        if name == "settings":
            changes += level2_setting_changes(run, stacker, experiment.config)
        elif name == "rows or folds":
            changes += row_changes(run, experiment)
        elif name == "metadata":
            changes += column_changes(experiment)
        elif name != "level-1 runs":  # named by the plan
            changes += _input_change(name, run, inputs)
    return changes


def level2_setting_changes(run: Run, stacker: Stacker, config: Config) -> list[Change]:
    """Returns which settings of a stacker or of the features differ from those that its run was made with."""
    skipped = {"enabled", "features", "name"}
    now = stacker.model_dump(mode="json", exclude=skipped)
    # A key that a later dermstack added has its default in an older run.
    old = {key: Stacker.model_fields[key].default for key in now if key in LATER_STACKER}
    old |= {key: value for key, value in run.meta["settings"].items() if key not in skipped}
    changes = setting_changes(old, now)
    if (noted := run.meta.get("made_with")) is not None:
        noted = {**noted, "features": Features().model_dump(mode="json") | noted["features"]}
        return changes + setting_changes(noted, made_with(stacker, config)) or [_unknown("settings")]
    return changes or [Change("features, seed or tuned parameters", "not noted in the run", "changed")]


def blend_changes(run: Run, inputs: Mapping[str, str], config: Config, experiment: Experiment) -> list[Change]:
    """Returns what differs between the blend and ``inputs``, those of today."""
    changes = []
    for name in _differing(run.meta["inputs"], inputs):
        if name == "settings":
            if (noted := run.meta.get("made_with")) is not None:
                changes += setting_changes(noted, blend_made_with(config)) or [_unknown(name)]
            elif run.meta.get("objective") != config.objective:
                changes.append(Change("objective", str(run.meta.get("objective")), config.objective))
            else:
                changes.append(Change("blend, seed or tuned weights", "not noted in the run", "changed"))
        elif name == "rows or folds":
            changes += row_changes(run, experiment)
        elif name != "runs":  # named by the plan
            changes += _input_change(name, run, inputs)
    return changes


def row_changes(run: Run, experiment: Experiment) -> list[Change]:
    """Returns how the rows of a run differ from the experiment's: ids, test ids, folds, or else targets or groups."""
    frames = {}
    for part in ("oof", "test"):
        try:
            frames[part] = run.frame(part) if run.has(part) else None
        except StoreError as error:
            return [Change("rows or folds", str(error), "changed")]
    now, oof = experiment.folds.frame, frames["oof"]
    changes = []
    for part, known, what in (
        ("oof", now["id"], "training rows"), ("test", experiment.table.test["id"], "test rows"),
    ):  # fmt: skip
        frame = frames[part]
        if frame is None:
            continue
        old_ids = pd.unique(frame["id"])
        gone, added = len(set(old_ids) - set(known)), len(set(known) - set(old_ids))
        if gone or (added and added != run.meta.get("excluded", 0)):
            changes.append(Change(what, f"{len(old_ids):,}", f"{len(known):,} ({added:,} new, {gone:,} gone)"))
    if oof is not None and "fold" in oof:
        fold = now.set_index("id")["fold"].reindex(oof["id"]).to_numpy()
        moved = int(((fold != oof["fold"].to_numpy()) & ~pd.isna(fold)).sum())
        if (before := oof["fold"].nunique()) != experiment.folds.k:
            changes.append(Change("folds.k", str(before), str(experiment.folds.k)))
        elif moved:
            changes.append(
                Change("folds", f"{counted(moved, 'rows')} in other folds", f"seed {experiment.config.folds.seed}")
            )
    return changes or [Change("targets or split groups of the rows", "as the run was made", "changed")]


def column_changes(experiment: Experiment) -> list[Change]:
    """Returns which columns differ from table.parquet, which the last `oof` or `stack` wrote."""
    path = experiment.folder / "table.parquet"
    unknown = [Change("metadata: group, age, sex, site or further columns", "as the run was made", "changed")]
    if not path.exists():
        return unknown
    old = read_frame(path, remedy=experiment.command("stack"))
    new = pd.concat(
        [experiment.table.train.assign(part="train"), experiment.table.test.assign(part="test")], ignore_index=True
    )
    roles = ("group", "age", "sex", "site")
    further = experiment.table.columns.names
    known = {"id", "part", "target", "diagnosis", "source", "fold", "width", "height", "bytes", *roles}
    changes = [Change(f"column {name}", ABSENT, "used") for name in further if name not in old]
    changes += [Change(f"column {name}", "used", ABSENT) for name in old if name not in known and name not in further]
    joined = new.merge(old, on=["id", "part"], suffixes=("", " before"))
    for name in (*roles, *further):
        if f"{name} before" in joined:
            before, after = joined[f"{name} before"], joined[name]
            differ = int(((before != after) & ~(before.isna() & after.isna())).sum())
            if differ:
                changes.append(Change(f"column {name}", f"{counted(differ, 'rows')} with other values", "changed"))
    return changes or unknown


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [name for name in {**new, **old} if old.get(name) != new.get(name)]


def _input_change(name: str, run: Run, inputs: Mapping[str, str]) -> list[Change]:
    old, new = run.meta["inputs"].get(name, ABSENT), inputs.get(name, ABSENT)
    if name == "images":
        return [Change("images", "as the run was made", "other pixels, or another set of images")]
    return [Change(name, _shown(old)[:20], _shown(new)[:20])]


def _unknown(name: str) -> Change:
    return Change(name, "as the run was made", "changed by a key that the run does not note")


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 2] + " …"
