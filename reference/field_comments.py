"""A griffe extension: on the Python page, a field's comment in the source becomes its description."""

from __future__ import annotations

from typing import Any

from griffe import Class, Docstring, Extension

from reference.sentences import field_sentences


class FieldComments(Extension):
    """Gives each field without a docstring the sentence of its comment."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Adds the sentences to a class that griffe has read; griffe calls it after the members are read."""
        source = "\n".join(cls.lines_collection[cls.filepath])  # type: ignore[index]
        for name, sentence in field_sentences(source, cls.name).items():
            member = cls.members.get(name)
            if member is not None and member.docstring is None:
                member.docstring = Docstring(sentence, parent=member)  # type: ignore[arg-type]
