"""Builds the report page of a blend: its performance, the evidence for it, and its parts."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dermstack.report.figures import (
    Estimate,
    bar_figure,
    block_importance_figure,
    column_importance_figure,
    decision_figure,
    feature_importance_figure,
    interval_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    study_figure,
)
from dermstack.report.report_data import (
    Calibration,
    Comparison,
    DataFacts,
    Decision,
    ReportData,
    Training,
)
from dermstack.report.review import (
    band_sentences,
    kept_table,
    per_thousand_table,
    review_subgroup_table,
    sentences_on_tests,
)
from dermstack.report.tables import (
    HtmlTable,
    breakable,
    decision_table,
    head_width,
    heat_table,
    number,
    numbers_table,
    rows_of,
    signed,
    subgroup_table,
    table,
    with_code_spans,
    words_table,
)
from dermstack.report.training import MAX_RUNS, at_the_limit, missing_curves, training_figures, training_tables
from stack.level2_config import UNEXPLAINED
from stack.metrics.intervals import Interval
from stack.metrics.own_metric import is_own_metric, own_label
from stack.metrics.scores import auc, auc_by_fold, average_precision, objective_label
from stack.tune.studies import StudyHistory

_PERCENT = ".1%"


def page_figures(data: ReportData, objective: str) -> dict[str, Any]:
    """Draws the figures, by name; `features`, `training` and `histories` are lists of drawings with their names."""
    headline = Estimate("this blend", data.headline.value, data.headline.low, data.headline.high, strong=True)
    compared = [Estimate(c.label, c.value.value, c.value.low, c.value.high) for c in data.comparisons]
    runs = [Estimate(*row) for row in rows_of(data.runs, "run", data.objective, "low", "high")]
    methods = [
        Estimate(*row)._replace(strong=row[0] == data.chosen)
        for row in rows_of(data.methods, "method", "nested", "low", "high", "tuned")
    ]
    weights = {_weight_label(line): line["weight"] for line in data.weights.to_dict("records")}
    roc = {f"{label}: AUC {auc(data.y, s):.4f}": s for label, s in data.curves.items()}
    recall = {f"{label}: AP {average_precision(data.y, s):.4f}": s for label, s in data.curves.items()}
    drawn: dict[str, Any] = {
        "compared": interval_figure("compared", [headline, *compared], axis=objective, reference=headline.value),
        "roc": roc_figure("roc", data.y, roc, data.fold),
        "recall": precision_recall_figure("recall", data.y, recall, data.fold),
    }
    if runs:
        drawn["runs"] = interval_figure("runs", runs, axis=objective, reference=headline.value)
    if methods:
        drawn["methods"] = interval_figure("methods", methods, axis=objective)
    if weights:
        drawn["weights"] = bar_figure("weights", weights, axis="weight in the blend")
    if data.calibration is not None:
        for when, shown in (("before", data.calibration.before), ("after", data.calibration.after)):
            axis = "score, used as a probability" if when == "before" else "calibrated p"
            drawn[when] = reliability_figure(when, shown, axis=axis)
    if data.decision is not None:
        drawn["decision"] = decision_figure("decision", data.decision.curve)
    if data.subgroups is not None and (measured := _subgroup_estimates(data.subgroups)):
        overall_auc = auc(data.y, next(iter(data.curves.values())))
        drawn["subgroups"] = interval_figure("subgroups", measured, axis="AUC", reference=overall_auc)
    if data.importance is not None:
        drawn["blocks"] = block_importance_figure("blocks", data.importance)
        drawn["features"] = [
            (stacker, feature_importance_figure(f"features{number}", data.importance, stacker))
            for number, stacker in enumerate(data.importance["stacker"].unique())
        ]
        drawn["columns"] = [
            (stacker, column_importance_figure(f"columns{number}", data.importance, stacker))
            for number, stacker in enumerate(data.importance.loc[data.importance["of"] == "column", "stacker"].unique())
        ]
    if data.training is not None:
        drawn["training"] = training_figures(data.training)
    drawn["histories"] = [
        (family, study_figure(f"history{number}", studies, axis=objective))
        for number, (family, studies) in enumerate(_families(data.studies).items())
    ]
    return drawn


def tables(data: ReportData, within: pd.Series[float]) -> dict[str, HtmlTable]:
    """Makes the tables, by name; `within` is the AUC of the blend within each fold."""
    folds = data.folds.merge(within.reset_index(), on="fold", how="left", validate="one_to_one")
    shares = {str(name): _PERCENT for name in folds.columns[5:-1] if name not in {"median age"}}
    # The table by_fold shows every fold, so the lowest and the highest fold are left out here.
    runs = data.runs if data.by_fold is None else data.runs.drop(columns=["min_fold", "max_fold"], errors="ignore")
    runs = runs.drop(columns=[name for name in ("seconds",) if name in runs and runs[name].isna().all()])
    runs = runs.replace({"kind": {"logistic": "logistic stacker"}})
    made = {
        "runs": table(
            runs,
            intervals={data.objective: ("low", "high")},
            heads={data.objective: own_label(data.objective)} if is_own_metric(data.objective) else {},
        ),
        "methods": table(
            _without_own_difference(data.methods),
            intervals={"nested": ("low", "high"), "difference": ("difference_low", "difference_high")},
            tags={data.chosen: "chosen"},
        ),
        "folds": table(folds, formats={"median age": ".0f", **shares}),
    }
    if data.calibration is not None:
        made["calibration"] = table(data.calibration.scores, formats={"mean p": ".2%", "log loss": ".4f"})
        heads = {"p": "predicted", "share": "observed"}
        for when, shown in (("before", data.calibration.before), ("after", data.calibration.after)):
            made[f"reliability_{when}"] = table(
                shown, intervals={"share": ("low", "high")}, heads=heads, formats={"p": _PERCENT, "share": _PERCENT}
            )
    if data.decision is not None:
        made["decision"] = decision_table(data.decision.at_round_thresholds)
        if data.decision.numbers is not None and len(data.decision.numbers):
            made["decision_numbers"] = table(
                data.decision.numbers,
                intervals={"value": ("low", "high")},
                heads={"by_chance": "by chance"},
                formats={"value": ".3g", "by_chance": ".3g"},
            )
    if data.review is not None:
        made["review_decisions"] = per_thousand_table(data.review.decisions, data.unit)
        made["review_kept"] = kept_table(data.review.decisions.kept, data.unit)
        made["review_subgroups"] = review_subgroup_table(data.review.subgroups, data.unit)
    if data.by_fold is not None:
        made["by_fold"] = table(data.by_fold)
    if data.agreement is not None:
        made["agreement"] = heat_table(data.agreement, corner="run")
    if data.subgroups is not None:
        made["subgroups"] = subgroup_table(data.subgroups)
    if data.training is not None:
        made |= training_tables(data.training)
    if data.studies:
        made["studies"] = _study_table(data.studies)
    return made | _data_tables(data.data)


def _without_own_difference(methods: pd.DataFrame) -> pd.DataFrame:
    """Removes the first method's difference to itself, which is no result."""
    shown = methods.copy()
    shown.loc[shown.index[:1], ["difference", "difference_low", "difference_high"]] = np.nan
    return shown


def subgroup_verdicts(subgroups: pd.DataFrame | None) -> list[str]:
    """Returns one sentence for each subgroup that differs from the rest beyond noise."""
    if subgroups is None:
        return []
    return [
        f"{line['by']} {line['subgroup']}: AUC {line['auc']:.3f}, {abs(line['difference']):.3f} "
        f"{'above' if line['difference'] > 0 else 'below'} that of all other images"
        for line in subgroups[subgroups["apart"]].to_dict("records")
    ]


def _weight_label(line: dict[Any, Any]) -> str:
    enters = "enters as" in line and line["weight"] != 0
    return f"{line['run']}, as {line['enters as']}" if enters else str(line["run"])


def _subgroup_estimates(subgroups: pd.DataFrame) -> list[Estimate]:
    known = subgroups[subgroups["auc"].notna()]
    return [
        Estimate(f"{line['by']}: {line['subgroup']}", line["auc"], line["low"], line["high"], strong=line["apart"])
        for line in known.to_dict("records")
    ]


def _families(studies: Sequence[StudyHistory]) -> dict[str, list[StudyHistory]]:
    """Groups the studies that have a value into families: those of one stacker with different folds left out."""
    found: dict[str, list[StudyHistory]] = {}
    for study in studies:
        if np.isfinite(study.values).any():
            found.setdefault(study.name.partition("-without-")[0], []).append(study)
    return found


def _study_table(studies: Sequence[StudyHistory]) -> HtmlTable:
    records = []
    for study in studies:
        known = np.isfinite(study.values).any()
        first = study.values[0] if len(study.values) else np.nan
        best = float(np.nanmax(study.values)) if known else np.nan
        counts = [sum(state == name for state in study.states) for name in ("complete", "pruned", "fail")]
        records.append(
            [study.name, *counts, first, best, best - first, int(np.nanargmax(study.values)) + 1 if known else None]
        )
    columns = ["study", "complete", "pruned", "failed", "first trial", "best", "gain", "best trial"]
    return table(pd.DataFrame(records, columns=columns), formats={"gain": "+.4f", "best trial": ".0f"})


def _data_tables(data: DataFacts) -> dict[str, HtmlTable]:
    made = {}
    if data.missing is not None:
        shares = dict.fromkeys(("train", "negatives", "positives", "test"), _PERCENT)
        heads = {"train": "train", "negatives": "train, negative", "positives": "train, positive", "test": "test"}
        made["missing"] = table(data.missing, formats=shares, heads=heads)
    if data.findings is not None:
        made["findings"] = table(data.findings)
    if data.numbers is not None and len(data.numbers):
        made["numbers"] = numbers_table(data.numbers)
    if data.words is not None and len(data.words):
        made["words"] = words_table(data.words)
    return made


TEMPLATE_FOLDER = Path(__file__).parent


class Section(NamedTuple):
    """One `<section>` of the page; ``style`` goes into the page's style sheet, ``script`` is already in ``markup``."""

    markup: Markup
    style: str = ""
    script: str = ""


def script_policy(*scripts: str) -> str:
    """Returns the `script-src` value of a Content-Security-Policy that lets only these scripts run."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"


def render_template(template: str, **values: object) -> Markup:
    """Renders a template of this folder; text in ``values`` is escaped, and a missing name is an error."""
    templates = environment()
    templates.filters |= {"percent": percent, "count": count, "number": number, "breakable": breakable}
    templates.filters |= {"head_width": head_width, "with_code_spans": with_code_spans}
    return Markup(templates.get_template(template).render(**values))


def environment(*, autoescape: bool = True) -> Environment:
    """Returns the Jinja environment for this folder: missing names are errors, block tags leave no blank lines."""
    return Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def percent(share: float | None) -> str:
    """Formats a share: 0.9021 → 90.2 %; None and NaN are a dash."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def count(number: float) -> str:
    """Formats a count: 1234 → 1,234."""
    return f"{number:,.0f}"


__all__ = ["Calibration", "Comparison", "DataFacts", "Decision", "ReportData", "Training", "report_html"]

# Sections that are rendered elsewhere and passed in with their markup. Below: id and title of all, in page order.
OPTIONAL_SECTIONS = ("participants", "sources", "explorer", "gaps", "hard-cases", "second-look")
_CONTENTS = {
    "result": "Result",
    "participants": "Rows and patients",
    "sources": "Other sources",
    "curves": "Curves",
    "explorer": "Threshold",
    "calibration": "Calibration",
    "decision": "Decision curve",
    "review": "Images for a person",
    "runs": "Runs",
    "methods": "Blend methods",
    "subgroups": "Subgroups",
    "gaps": "Gaps between subgroups",
    "hard-cases": "Most confident errors",
    "second-look": "Labels to check",
    "importance": "Features used",
    "training": "Training",
    "studies": "Studies",
    "data": "Data and folds",
    "settings": "Settings",
}


class _Entry(NamedTuple):
    """A section of the page; if `markup` is None, it is rendered from its template."""

    name: str
    title: str
    markup: Markup | None


def report_html(data: ReportData, sections: Mapping[str, Section] | None = None) -> str:
    """Returns the page as HTML: it needs no network, is the same for the same data, and escapes text in `data`.

    `sections` maps names of OPTIONAL_SECTIONS to a `<section>` whose id is that name, with its style and script. The
    page's policy lets only these scripts run; without them the page has no JavaScript.
    """
    sections = sections or {}
    for place, section in sections.items():
        assert place in OPTIONAL_SECTIONS, f"{place}: the page has places for {', '.join(OPTIONAL_SECTIONS)}"
        assert f'id="{place}"' in section.markup, f"{place}: a section of another id"
    empty = _empty_sections(data) | (set(OPTIONAL_SECTIONS) - set(sections))
    entries = [
        _Entry(name, title, sections[name].markup if name in sections else None)
        for name, title in {**_CONTENTS, "review": f"{data.unit.capitalize()}s for a person"}.items()
        if name not in empty
    ]
    prevalence = float(np.mean(data.y))
    within = auc_by_fold(data.y, next(iter(data.curves.values())), data.fold).rename("auc_of_blend")
    objective = objective_label(data.objective)
    page = (TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8")
    template = templates_of_page().get_template("report.html.j2")
    return template.render(
        data=data,
        entries=entries,
        style=Markup("\n".join(dict.fromkeys([page, *(section.style for section in sections.values())]))),
        scripts=script_policy(*(section.script for section in sections.values())),
        objective=objective,
        prevalence=prevalence,
        prevalence_loss=prevalence * math.log(prevalence) + (1 - prevalence) * math.log(1 - prevalence),
        within=within,
        chosen_alone=_chosen_alone(data),
        worsened=_worsened_log_loss(data.calibration),
        made_of=_made_of(data),
        tables=tables(data, within),
        figures=page_figures(data, objective),
        verdicts=subgroup_verdicts(data.subgroups),
        review_sentences=band_sentences(data.review.band, data.unit) if data.review else [],
        review_tests=sentences_on_tests(data.review.band, data.unit) if data.review else [],
        most_training=MAX_RUNS,
        without_curves=missing_curves(data.training) if data.training else [],
        at_the_limit=at_the_limit(data.training) if data.training else [],
        unexplained=data.runs.loc[data.runs["kind"].isin(UNEXPLAINED), "run"].tolist(),
    )


def _empty_sections(data: ReportData) -> set[str]:
    """Returns the names of the sections that have nothing to show."""
    given = {
        "calibration": data.calibration is not None,
        "decision": data.decision is not None,
        "review": data.review is not None,
        "methods": len(data.methods) > 0,
        "subgroups": data.subgroups is not None and len(data.subgroups) > 0,
        "importance": data.importance is not None,
        "training": data.training is not None,
        "studies": len(data.studies) > 0,
    }
    return {name for name, there in given.items() if not there}


def _chosen_alone(data: ReportData) -> float | None:
    """Returns the nested value of the chosen method in every fold, if it is not the headline itself."""
    own = (
        data.methods.loc[data.methods["method"] == data.chosen, "nested"]
        if len(data.methods)
        else pd.Series(dtype=float)
    )
    differs = len(own) and number(float(own.iloc[0])) != number(data.headline.value)  # as they are shown
    return float(own.iloc[0]) if differs else None


def _worsened_log_loss(calibration: Calibration | None) -> tuple[float, float, str] | None:
    """Returns the log loss of the best probability before calibration, that after it, and which was the best.

    None where the calibration lowered it.
    """
    if calibration is None:
        return None
    scores = calibration.scores
    best = (
        scores.iloc[:-1].sort_values("log loss", kind="stable").iloc[0] if len(scores) > 1 else None
    )  # last: calibrated
    after = float(scores["log loss"].iloc[-1])
    if best is None or after <= best["log loss"] + 5e-5:
        return None
    return float(best["log loss"]), after, str(best["probability"])


def _made_of(data: ReportData) -> str:
    """Lists the runs of the blend with their share of the weights, the largest first."""
    shares = data.weights.set_index("run")["weight"].sort_values(ascending=False)
    total = float(shares.sum())
    named = [
        f"{run} ({100 * share / total:.0f}\N{NO-BREAK SPACE}%)"
        for run, share in shares.items()
        if total and share / total >= 0.005
    ]
    return ", ".join(named)


def templates_of_page() -> Environment:
    """Returns the Jinja environment for the sections of the page, with the filters of their tables."""
    templates = environment()
    templates.filters |= {"number": number, "signed": signed, "verdict": _verdict, "breakable": breakable}
    templates.filters["head_width"] = head_width
    templates.filters["with_code_spans"] = with_code_spans
    return templates


def _verdict(difference: Interval) -> str:
    """Describes a paired difference (this blend minus another score) by its interval."""
    if difference.low > 0:
        return "better, beyond noise"
    return "worse, beyond noise" if difference.high < 0 else "no difference beyond noise"
