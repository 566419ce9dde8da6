"""Writes the model card: intended use, data, performance and limits of the ensemble."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment

from dermstack.listing import first_of
from dermstack.report.report import count, environment, percent
from dermstack.report.tables import code_span
from dermstack.report.tables import number as formatted
from dermstack.report.units import Scored, run_weights, scored_rows
from stack.experiment import Experiment
from stack.metrics.intervals import Interval, interval
from stack.metrics.own_metric import own_label
from stack.metrics.scores import objective_label
from stack.metrics.subgroups import SKIN_TONE
from stack.sources.estimates import estimate_table, stored_leave_source_out
from stack.store import Run, atomic
from stack.tables.columns import TableColumns
from stack.tuned import enabled_models
from stack.views import all_runs

_MAX_COLUMNS = 50  # columns of the table of each kind that the card names; a bundle's manifest has all
_MAX_RUNS = 12  # imported runs that the list of inputs names
_OPERATING_POINTS = {  # operating points that clinical readers look for
    "sensitivity at a specificity of 90 %": "sensitivity@0.9",
    "specificity at a sensitivity of 90 %": "specificity@0.9",
}


def write_model_card(experiment: Experiment, text: str) -> Path:
    """Writes the text of `model_card` to runs/<experiment>/model_card.md."""
    path = experiment.folder / "model_card.md"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def model_card(
    experiment: Experiment,
    blend: Run,
    *,
    runs: pd.DataFrame,
    subgroups: pd.DataFrame,
    notes: Sequence[str],
    decisions: Sequence[str] = (),
    scored: Scored | None = None,
) -> str:
    """Returns the card as Markdown, with the headings of Mitchell et al. 2019 (doi:10.1145/3287560.3287596).

    ``runs`` is `stack.history.run_table` of the blend's runs; ``subgroups`` has subgroup, level, rows, positives, auc,
    low, high and note, NaN where a number is not available; ``notes`` are those of the report's headline; ``decisions``
    are the sentences of the review band, if there is one. ``scored`` are the rows that the blend scores, by default the
    images.
    """
    scored = scored or scored_rows(experiment, blend, [])
    oof = blend.frame("oof")
    train = experiment.table.train
    rows = scored.experiment.rows_of(oof["id"])
    y, split_group = scored.experiment.target[rows], scored.experiment.split_group[rows]
    images = rows if scored.units is None else np.flatnonzero(np.isin(scored.units.of_train, rows))
    sizes = train["group"].iloc[images].value_counts()
    template = _templates().get_template("model_card.md.j2")
    return template.render(
        name=experiment.name,
        decisions=decisions,
        version=version("dermstack"),
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        fingerprint=blend.meta["fingerprint"],
        chosen=blend.meta["chosen"],
        selected=blend.meta["selected"],
        objective=blend.meta["objective"],
        metric=own_label(blend.meta["objective"]),
        runs=runs.to_dict("records"),
        weights=run_weights(blend),
        backbones=_backbones(experiment, blend),
        target=plain(experiment.config.data.columns.target),
        inputs=_inputs(
            train,
            experiment.table.columns,
            imported := runs["run"][runs["kind"] == "imported"].tolist(),
            takes_images=(takes_images := bool(((runs["level"] == 1) & (runs["kind"] != "imported")).any())),
        ),
        takes_images=takes_images,
        imported=bool(imported),
        looked_at=(looked_at := list(dict.fromkeys(subgroups["subgroup"]))),
        has_skin_tone=any(SKIN_TONE.search(str(column)) for column in looked_at),
        unit=scored.unit,
        facts=_facts(experiment, y, split_group, images, scored.unit),
        folds=experiment.folds.k,
        external=experiment.external["source"].value_counts().to_dict(),
        unlabelled=experiment.unlabelled["source"].value_counts().to_dict(),
        headline=Interval(**blend.meta["headline"]),
        tuned=blend.meta["tuned_in_sample"],
        within_folds=blend.meta["within_folds"],
        at={words: interval(objective, y, oof["score"], split_group) for words, objective in _OPERATING_POINTS.items()},
        calibration=blend.meta["calibration"],
        prevalence=float(y.mean()),
        subgroups=subgroups.to_dict("records"),
        notes=notes,
        sources=_sources(experiment, blend),
        ones=int((sizes == 1).sum()),
        groups=len(sizes),
        rows=len(images),
    )


def _sources(experiment: Experiment, blend: Run) -> list[dict[str, str]]:
    """Returns one row an estimate by source, as text; [] where there is none."""
    found = stored_leave_source_out(experiment.folder, blend.meta["fingerprint"])
    if found is None:
        return []
    table = estimate_table(found).rename(columns={objective_label(found.objective): "pooled"})
    return [{str(key): str(value) for key, value in row.items()} for row in table.to_dict("records")]


def plain(text: object) -> str:
    """Escapes text of the data for Markdown and joins its lines; missing text is empty."""
    if text is None or text is pd.NA or (isinstance(text, float) and math.isnan(text)):
        return ""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _inputs(train: pd.DataFrame, columns: TableColumns, imported: Sequence[str], *, takes_images: bool) -> str:
    """Lists what the ensemble is given of each row: the columns that are known in no training row are left out.

    ``imported`` are the runs whose predictions were made elsewhere.
    """
    known = [name for name in ("age", "sex", "site") if train[name].notna().any()]
    listed = ", ".join(known[:-1]) + (" and " if len(known) > 1 else "") + "".join(known[-1:])
    if takes_images:
        text = "an image" + (f" and, if known, {listed}" if known else "")
    else:
        text = "a row of the table, without an image" + (f": {listed}, if known" if known else "")
    counts = [(columns.numeric, "numbers"), (columns.categorical, "words")]
    further = [f"{len(names):,} column{'s' * (len(names) > 1)} of {kind}" for names, kind in counts if names]
    text += f", with {' and '.join(further)} of the table, listed below" if further else ""
    if imported:
        more = f", … {len(imported)} in all" if len(imported) > _MAX_RUNS else ""
        runs = ", ".join(f"`{name}`" for name in imported[:_MAX_RUNS]) + more
        text += f"; the prediction{'s' * (len(imported) > 1)} of {runs}, made elsewhere"
    return text


def _backbones(experiment: Experiment, blend: Run) -> list[str]:
    names = [model.backbone for model in enabled_models(experiment) if model.name in all_runs(blend)]
    return list(dict.fromkeys(names))


def _facts(
    experiment: Experiment, y: np.ndarray, split_group: np.ndarray, rows: np.ndarray, unit: str
) -> dict[str, str]:
    train = experiment.table.train.iloc[rows]
    facts = {
        "data set": plain(experiment.config.data.name),
        **({} if unit == "image" else {"images": count(len(rows))}),
        "rows" if unit == "image" else f"{unit}s": count(len(y)),
        "positives": f"{count(y.sum())} ({percent(float(y.mean()))})",
        "groups": count(train["group"].nunique()),
        "split groups (duplicates merged)": count(len(np.unique(split_group))),
        "training rows not covered by the blend": count(len(experiment.table.train) - len(rows)),
        "rows dropped, image unreadable": count(experiment.unreadable_train),
        "test rows predicted from the table alone, image unreadable": count(len(experiment.unreadable_test)),
    }
    known = [name for name in ("age", "sex", "site") if train[name].notna().any()]
    for name in ("age", "sex", "site"):
        facts[f"{name} known"] = percent(float(train[name].notna().mean())) if name in known else "in no row"
    if "age" in known:
        low, middle, high = train["age"].quantile([0.05, 0.5, 0.95])
        facts["age, median (5 % to 95 %)"] = f"{middle:.0f} ({low:.0f} to {high:.0f})"
    columns = experiment.table.columns
    for kind, names in (("numbers", columns.numeric), ("words", columns.categorical)):
        if names:
            facts[f"columns of {kind} ({len(names):,})"] = first_of(map(code_span, names.values()), _MAX_COLUMNS)
    if columns.derived:
        derived = [f"{code_span(name)} = {code_span(text)}" for name, text in columns.derived.items()]
        facts[f"derived columns ({len(derived):,})"] = first_of(derived, _MAX_COLUMNS)
    return facts


@cache
def _templates() -> Environment:
    templates = environment(autoescape=False)  # Markdown: `plain` escapes text of the data
    templates.filters |= {"plain": plain, "number": _number, "percent": percent, "count": count}
    templates.globals["bounds"] = _bounds
    return templates


def _number(value: float | None, digits: int) -> str:
    return formatted(None if value is None else float(value), f".{digits}f")


def _bounds(low: float, high: float, digits: int = 4) -> str:
    return f" ({_number(low, digits)} to {_number(high, digits)})" if math.isfinite(low) else ""
