"""A template is compiled once for all pages of a process, and again when its text has changed."""

from __future__ import annotations

from typing import Any

from jinja2 import DictLoader, Environment

from dermstack.report.compiled_templates import CompiledTemplates


def test_a_template_is_compiled_once_and_again_after_a_change() -> None:
    compiled = []

    class Counted(Environment):
        def _generate(self, *arguments: Any, **options: Any) -> str:
            compiled.append(arguments[1])
            return super()._generate(*arguments, **options)

    kept, texts = CompiledTemplates(), {"page": "{% include 'part' %} of {{ x }}", "part": "one"}

    def page(x: int) -> str:
        return Counted(loader=DictLoader(texts), bytecode_cache=kept).get_template("page").render(x=x)

    assert [page(1), page(2)] == ["one of 1", "one of 2"]
    assert compiled == ["page", "part"]
    texts["part"] = "two"
    assert page(3) == "two of 3"
    assert compiled == ["page", "part", "part"]
