"""The words of each categorical column that a bundle's models know, and notes on words in new rows that they do not."""

from __future__ import annotations

import json

import pandas as pd

from dermstack.errors import BundleError
from dermstack.listing import counted
from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import CONTENT_ERRORS
from dermstack.serve.image_runs import net_encoder, short_text
from dermstack.serve.stages import FEATURES
from stack.fallback import FOLDER
from tabular.encode import MetadataEncoder

WORDS = ("sex", "site")  # columns with a role whose values are categories
_MAX_LISTED = 5  # values in a message


def known_words(bundle: Bundle) -> dict[str, list[str]]:
    """Returns the values of each column of words that level 2 or a network knows, sorted; [] where none uses it.

    The columns are `WORDS` and the table's categorical ones. Raises BundleError if an encoder cannot be read.
    """
    folds = range(bundle.folds)
    nets = [net_encoder(bundle, run, fold) for run in bundle.image_runs for fold in folds]
    words = [net.words for net in nets if net is not None]
    with_metadata = bool(bundle.manifest["features"]["metadata"])
    for folder, takes_metadata in ((FEATURES, with_metadata), (FOLDER, True)):
        for name in (f"{folder}/fold_{fold}/features.json" for fold in folds):
            state = bundle.json(name) if name in bundle else {}
            try:
                parts = [state["metadata"]] if takes_metadata and state else []
                parts += [state["table"]] if state.get("table") else []
                words += [MetadataEncoder.from_json(json.dumps(part)).words for part in parts]
            except CONTENT_ERRORS as error:
                raise BundleError(
                    f"{bundle.place}: {name} cannot be read ({short_text(error)}): bundle again"
                ) from error
    return {
        column: sorted({word for known in words for word in known.get(column, ())})
        for column in (*WORDS, *bundle.table_columns.categorical)
    }


def unknown_words(bundle: Bundle, frame: pd.DataFrame) -> list[str]:
    """Returns a note for each column of words that has values in ``frame`` which do not occur in the training rows."""
    notes = []
    for column, known in known_words(bundle).items():
        values = frame[column].dropna()
        counts = values[~values.isin(known)].value_counts()
        if not known or counts.empty:
            continue
        listed = ", ".join(f"{word!r} in {counted(rows, 'rows')}" for word, rows in counts.iloc[:_MAX_LISTED].items())
        more = f", … {len(counts)} values in all" if len(counts) > _MAX_LISTED else ""
        notes.append(
            f"{column} has values that do not occur in training: {listed}{more}. They count as no known category; if "
            f"they are other words for {', '.join(map(repr, known[:_MAX_LISTED]))}"
            f"{', …' if len(known) > _MAX_LISTED else ''}, use these words"
        )
    return notes
