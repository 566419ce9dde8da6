"""Reads the settings that finished runs were made with, and finds the config keys in which they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from dermstack.masking import mask_secrets
from stack.ledger import LEDGER, flat_settings, read_lines
from stack.settings.config import Config
from stack.settings.image_models import ImageModel
from stack.settings.level2 import Stacker
from stack.store import Run

ABSENT = "–"
_NAMED = re.compile(r"(image_models|stackers|data\.external|data\.unlabelled)\.(\d+)\.name")
_OF_LIST = re.compile(r"(.+)\.(\d+)")
_ITEM_DEFAULTS: dict[str, type[BaseModel]] = {"image_models": ImageModel, "stackers": Stacker}
_PLAIN = (str, int, float, type(None))
_OF_ONE_RUN = {*ImageModel.model_fields, *Stacker.model_fields} - {*Config.model_fields}  # keys of no blend's record
_TWO_MEANINGS = {"runs", "device"}  # keys of an experiment that mean something else as a key of one of its runs
_NO_SETTINGS = {"experiment", "name"}  # names, which differ in any case


def settings_of(runs: Path, name: str, run: Run) -> dict[str, str] | None:
    """Returns the settings of a run by config key; None where no record of them was kept.

    Those of a blend are the experiment's, from the last line of its ledger with the blend's fingerprint. Image models
    and stackers note their own (``lr``) and those of the features that they used.
    """
    if run.meta["kind"] == "blend":
        folder = runs / name.partition("/")[0]
        path = folder / LEDGER
        made = _ledger(folder, path.stat().st_mtime_ns if path.exists() else 0).get(run.meta["fingerprint"])
        return None if made is None else by_name(made)
    noted = {**(run.meta.get("settings") or {}), **(run.meta.get("made_with") or {})}
    return by_name(flat_settings(noted)) if noted else None


@lru_cache(maxsize=8)
def _ledger(folder: Path, changed_ns: int) -> dict[str, dict[str, Any]]:
    """Returns the settings of each blend by its fingerprint; read once for all blends of an experiment."""
    return {str(line.get("fingerprint")): line["settings"] for line in read_lines(folder)}


def by_name(flat: Mapping[str, Any]) -> dict[str, str]:
    """Returns flat settings with list items by name instead of number, plain lists as one value, and values as text.

    >>> by_name({"stackers.0.name": "gbdt", "stackers.0.bags": 2, "blend.methods.0": "mean"})
    {'stackers.gbdt.bags': '2', 'blend.methods': 'mean'}
    """
    items = {
        f"{match[1]}.{match[2]}.": f"{match[1]}.{value}."
        for key, value in flat.items()
        if (match := _NAMED.fullmatch(key))
    }
    named: dict[str, Any] = {}
    for key, value in flat.items():
        if not _NAMED.fullmatch(key):
            item = next((prefix for prefix in items if key.startswith(prefix)), "")
            named[items.get(item, "") + key.removeprefix(item)] = value
    made: dict[str, str] = {}
    for key, value in named.items():
        if match := _OF_LIST.fullmatch(key):
            made[match[1]] = f"{made[match[1]]}, {_text(value)}" if match[1] in made else _text(value)
        else:
            made[key] = _text(value)
    return {key: mask_secrets(value) for key, value in made.items()}


def differing_settings(settings: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Returns a row for each key that differs and a column for each run: its value, or a dash where it has none.

    A key that a run's record lacks has its default: a later version added it. A model that only some runs have is one
    row, present or absent. The record of a blend holds its experiment's keys, that of another run its own: a key is
    compared among the runs whose kind of record has it, and is a dash in the others.
    """
    items = {name: {_item_of(key) for key in of} - {None} for name, of in settings.items()}
    of_one_run = {name: any(key.partition(".")[0] in _OF_ONE_RUN for key in of) for name, of in settings.items()}
    keys = dict.fromkeys(key for of in settings.values() for key in of if key not in _NO_SETTINGS)
    rows: dict[str, list[str]] = {}
    for key in keys:
        kinds = {of_one_run[name] for name, of in settings.items() if key in of}
        if key in _TWO_MEANINGS and len(kinds) > 1:
            kinds = {True}
        compared = [of_one_run[name] in kinds for name in settings]
        if (item := _item_of(key)) is not None:
            present = ["present" if item in items[name] else "absent" for name in settings]
            if len(set(compress(present, compared))) > 1:
                rows.setdefault(item, _dashed(present, compared))
        found = [
            ABSENT if item is not None and item not in items[name] else of.get(key, _default(key))
            for name, of in settings.items()
        ]
        if len(set(compress(found, compared)) - ({ABSENT} if item is not None else set())) > 1:
            rows[key] = _dashed(found, compared)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(settings)).rename_axis("key")


def _dashed(values: Sequence[str], compared: Sequence[bool]) -> list[str]:
    return [value if is_compared else ABSENT for value, is_compared in zip(values, compared, strict=True)]


def _item_of(key: str) -> str | None:
    """Returns the model that a key belongs to, as ``image_models.effnet``; None for other keys."""
    match = re.match(r"(?:image_models|stackers)\.(?=\D)", key)
    if match is None:
        return None
    known = _ITEM_DEFAULTS[key.partition(".")[0]].model_fields
    parts = key.split(".")
    # Names of models may hold dots: the field begins at the first part that is one.
    end = next((n for n in range(2, len(parts)) if parts[n] in known), len(parts) - 1)
    return ".".join(parts[:end])


def _default(key: str) -> str:
    """Returns the default of a config key as text, a dash where it has none."""
    if (item := _item_of(key)) is not None:
        field = _ITEM_DEFAULTS[key.partition(".")[0]].model_fields.get(key.removeprefix(f"{item}.").partition(".")[0])
        return ABSENT if field is None or not isinstance(field.default, _PLAIN) else _text(field.default)
    return _section_defaults().get(key, ABSENT)


@cache
def _section_defaults() -> dict[str, str]:
    plain = {
        name: field.default.model_dump(mode="json") if isinstance(field.default, BaseModel) else field.default
        for name, field in Config.model_fields.items()
        if isinstance(field.default, (BaseModel, *_PLAIN))
    }
    # A list that is empty has no key in the record: a missing key of a list is no sign of its default.
    return {key: _text(value) for key, value in flat_settings(plain).items() if not _OF_LIST.fullmatch(key)}


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
