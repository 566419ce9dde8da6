"""Generates the reference of the config from the pydantic models: type, bounds, default and sentence of every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from image_models.settings import Training
from reference.sentences import sentences
from stack.settings.config import Config
from stack.settings.image_models import NAME_PATTERN, ImageModel

_WORDS = {"boolean": "true / false", "integer": "whole number", "number": "number", "string": "text"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """The description of one key of a section."""

    name: str
    value_type: str  # type and bounds of a value, in words
    default: str  # the default, "required" or "optional"
    sentence: str
    section: type[BaseModel] | None  # the model of the section under this key


@dataclass(frozen=True)
class Section:
    """A model and its place in the config, such as `data.columns`; entries of a list have the place of the list."""

    place: str
    model: type[BaseModel]
    keys: tuple[Key, ...]


def sections(model: type[BaseModel] = Config) -> list[Section]:
    """Returns the section of `model` and those under it, in the order of keys; each model once, at its first place.

    Raises LookupError for a key without a sentence.
    """
    found: dict[type[BaseModel], Section] = {}

    def walk(model: type[BaseModel], place: str) -> None:
        found[model] = Section(place, model, tuple(_keys(model)))
        for key in found[model].keys:
            if key.section is not None and key.section not in found:
                walk(key.section, f"{place}.{key.name}".lstrip("."))

    walk(model, "")
    return list(found.values())


def config_page() -> str:
    """Returns all sections as Markdown, with a heading for each section and each key, whose anchor is its place."""
    found = sections()
    place_of = {section.model: section.place for section in found}
    lines: list[str] = []
    for section in found:
        title = f"`{section.place}` {{ #{section.place} }}" if section.place else "The experiment { #the-experiment }"
        lines += [f"### {title}", "", (section.model.__doc__ or "").strip(), ""]
        for key in section.keys:
            anchor = f"{section.place}.{key.name}".lstrip(".")
            if anchor in place_of.values():
                anchor += "-key"  # the anchor itself is the section's heading
            lines += [f"#### `{key.name}` {{ #{anchor} }}", "", _described(key, place_of), ""]
    return "\n".join(lines)


def key_sentences(model: type[BaseModel]) -> dict[str, str]:
    """Returns the sentence of each key; for an image model, also the sentences of the training loop's settings."""
    shared = sentences(Training) if model is ImageModel else {}
    return {**shared, **sentences(model)}


def _keys(model: type[BaseModel]) -> Iterator[Key]:
    schema = model.model_json_schema()
    descriptions = key_sentences(model)
    for name, field in model.model_fields.items():
        if name not in descriptions:
            raise LookupError(f"{model.__name__}.{name} has no sentence: write a comment at the end of its line")
        entry = schema["properties"][name]
        yield Key(name, _value_type(entry), _default(field, entry), descriptions[name], _section(field.annotation))


def _described(key: Key, place_of: dict[type[BaseModel], str]) -> str:
    value_type = key.value_type
    if key.section is not None:
        value_type = value_type.replace("section", f"[section](#{place_of[key.section]})")
    return f"*{value_type}, {key.default}* — {key.sentence}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """Returns the model in an annotation: the annotation itself, or a part of it such as a tuple's entry; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _default(field: FieldInfo, entry: dict[str, Any]) -> str:
    if field.is_required():
        return "required"
    if "$ref" in entry or entry["default"] is None:
        return "optional"
    value = entry["default"]
    written = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return f"default `{written}`"


def _value_type(entry: dict[str, Any]) -> str:
    """Describes in words the values that a JSON schema entry allows."""
    if "$ref" in entry:
        return "section"
    if "enum" in entry:
        return _either([f"`{value}`" for value in entry["enum"]])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        return " or ".join(_value_type(part) for part in entry["anyOf"] if part.get("type") != "null")
    if entry.get("type") == "array":
        if "prefixItems" in entry:
            return f"list of {len(entry['prefixItems'])}: {_value_type(entry['prefixItems'][0])}"
        least = f", at least {entry['minItems']}" if "minItems" in entry else ""
        return f"list: {_value_type(entry['items'])}{least}"
    if entry.get("type") == "object":
        values = entry["additionalProperties"]
        return "mapping" if values is True else f"mapping: {_value_type(values)}"
    if entry.get("format") == "path":
        return "path"
    if entry.get("pattern") == NAME_PATTERN:
        return "name"
    bounds = [f"{sign} {entry[bound]:g}" for bound, sign in _BOUNDS.items() if bound in entry]
    return " ".join([_WORDS[entry["type"]], " and ".join(bounds)]).strip()


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
