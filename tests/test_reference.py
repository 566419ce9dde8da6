"""What the documentation says of commands and config keys is the code's, and nothing is left out."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, Literal, get_args

import pytest
import typer
from pydantic import BaseModel, Field

from dermstack.cli.main import app
from image_models.settings import Training
from reference.command_line import commands_page
from reference.config_keys import config_page, key_sentences, sections
from reference.sentences import field_sentences, sentences
from stack.settings.config import Config
from stack.settings.image_models import Strict

SOURCE = '''
class Other:
    a: int  # of another class

class Model:
    """A docstring with a # in it."""

    a: int  # at the end of its line
    b: str = "# no comment"
    # above, and
    # in two lines
    c: int = 3
    # a heading, as an empty line follows

    d: int = 4
    e: tuple[int, ...] = (
        1,  # of a part, and not of the field
        2,
    )  # at the end of the last line
    f: int = 5  # its own
    g: int = 6
'''


def models(annotation: object = Config) -> set[type[BaseModel]]:
    """Every model that the config can hold, by its annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inside = [models(field.annotation) for field in annotation.model_fields.values()]
        return {annotation}.union(*inside)
    return set().union(*(models(part) for part in get_args(annotation)))


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_a_sentence_is_the_comment_at_the_end_or_right_above() -> None:
    assert field_sentences(SOURCE, "Model") == {
        "a": "at the end of its line",
        "c": "above, and in two lines",
        "e": "at the end of the last line",
        "f": "its own",
    }


@pytest.mark.parametrize("model", sorted(models(), key=lambda model: model.__name__), ids=lambda model: model.__name__)
def test_every_key_of_the_config_has_a_sentence(model: type[BaseModel]) -> None:
    assert set(model.model_fields) - set(key_sentences(model)) == set()
    assert model.__doc__, "and what stands together has one too"


def test_every_setting_of_the_training_loop_has_a_sentence() -> None:
    assert {field.name for field in fields(Training)} == set(sentences(Training))


def test_the_config_page_names_every_key_once_at_its_place() -> None:
    described = [section.model for section in sections()]
    assert len(described) == len(set(described))
    assert set(described) == models()
    anchors = re.findall(r"^#+ .*\{ #(\S+) \}$", config_page(), flags=re.MULTILINE)
    assert len(anchors) == len(set(anchors))
    for section in sections():
        for key in section.model.model_fields:
            assert f"{section.place}.{key}".lstrip(".") in anchors


def test_the_config_page_says_what_is_taken_and_what_is_so_anyway() -> None:
    class Inner(Strict):
        """Inner."""

        x: int  # an x

    class Outer(Strict):
        """Outer."""

        share: float = Field(0.5, gt=0, le=1)  # a share
        kind: Literal["a", "b", "c"] = "b"  # a kind
        many: tuple[Literal["a", "b"], ...] = Field(("a",), min_length=1)  # some kinds
        by_name: dict[str, int] = Field({})  # numbers
        switch: bool = False  # a switch
        maybe: str | None = None  # a text, perhaps
        inner: Inner  # what stands under it
        inners: tuple[Inner, ...] = ()  # a list of the same

    outer, inner = sections(Outer)
    said = {key.name: (key.value_type, key.default) for key in outer.keys}
    assert said == {
        "share": ("number > 0 and ≤ 1", "default `0.5`"),
        "kind": ("`a`, `b` or `c`", "default `b`"),
        "many": ("list: `a` or `b`, at least 1", "default `[a]`"),
        "by_name": ("mapping: whole number", "default `{}`"),
        "switch": ("true / false", "default `false`"),
        "maybe": ("text", "optional"),
        "inner": ("section", "required"),
        "inners": ("list: section", "default `[]`"),
    }
    assert (inner.place, [key.name for key in inner.keys]) == ("inner", ["x"])


def test_a_key_without_a_sentence_is_an_error_that_names_it() -> None:
    class Silent(Strict):
        loud: int = 1  # has one
        mute: int = 2

    with pytest.raises(LookupError, match=r"Silent\.mute"):
        sections(Silent)


@pytest.mark.parametrize("name", commands())
def test_every_command_and_each_of_its_options_has_help(name: str) -> None:
    command = commands()[name]
    assert (command.help or "").strip()
    mute = [parameter.name for parameter in command.params if not (parameter.help or "").strip()]
    assert mute == []


def test_the_page_of_commands_names_every_command_with_each_of_its_options() -> None:
    sections = dict(re.findall(r"^## `(\S+)` \{ #\1 \}\n(.*?)(?=^## |\Z)", commands_page(), re.MULTILINE | re.DOTALL))
    assert list(sections) == list(commands())
    for name, command in commands().items():
        for parameter in command.params:
            for written in parameter.opts:
                assert re.search(
                    rf"^`([^`]*[ /])?{re.escape(written)}(?:\.\.\.)?[ ,`]", sections[name], re.MULTILINE
                ), written


def test_help_is_shown_as_it_is_written_and_defaults_beside_it() -> None:
    page = commands_page()
    assert "&lt;experiment&gt;/&lt;run&gt;" in page
    assert (
        "`--trials <int>` *default: 30; ≥ 1*\n:   Number of ended trials that each study reaches; pruned ones count."
        in page
    )
    assert "`-c, --config <path>` *required*" in page
