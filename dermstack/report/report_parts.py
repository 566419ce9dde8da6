"""The figures and tables of the report page, by name, as the page shows them and as files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermstack.report.figures import (
    Drawing,
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
from dermstack.report.report_data import DataFacts, ReportData
from dermstack.report.review import kept_table, per_thousand_table, review_subgroup_table
from dermstack.report.tables import (
    HtmlTable,
    decision_table,
    heat_table,
    numbers_table,
    rows_of,
    subgroup_table,
    table,
    words_table,
)
from dermstack.report.training import training_figures, training_tables
from stack.metrics.own_metric import is_own_metric, own_label
from stack.metrics.scores import auc, auc_by_fold, average_precision, objective_label
from stack.tune.studies import StudyHistory

_PERCENT = ".1%"


# Names of files, where those of the page say too little alone.
_FILES = {
    "after": "reliability-after",
    "before": "reliability-before",
    "recall": "precision-recall",
    "histories": "study",
}


@dataclass(frozen=True)
class Parts:
    """What the page shows beside its text, made once for the page and for files."""

    objective: str  # in words
    within: pd.Series[float]  # AUC of the blend within each fold
    figures: Mapping[str, Any]  # `blend_figures` and `importance_figures`
    tables: Mapping[str, HtmlTable]  # `page_tables`

    @property
    def drawings(self) -> dict[str, Drawing]:
        """Every figure by the name of its file: of a list, the name of the list and that of the entry."""
        made: dict[str, Drawing] = {}
        for place, drawn in self.figures.items():
            name = _FILES.get(place, place)
            if isinstance(drawn, Drawing):
                made[name] = drawn
            else:
                made |= {f"{name}-{entry[0]}": entry[-1] for entry in drawn}
        return made


def report_parts(data: ReportData, drawn: Mapping[str, Any] | None = None) -> Parts:
    """Draws the figures and makes the tables of the page; ``drawn`` are those of `blend_figures` of the same data."""
    within = auc_by_fold(data.y, next(iter(data.curves.values())), data.fold).rename("auc_of_blend")
    figures = {**(blend_figures(data) if drawn is None else drawn), **importance_figures(data)}
    return Parts(objective_label(data.objective), within, figures, page_tables(data, within))


def blend_figures(data: ReportData) -> dict[str, Any]:
    """Draws all figures but those of importances, by name; `training` and `histories` are lists of named drawings."""
    objective = objective_label(data.objective)
    headline = Estimate("this blend", data.headline.value, data.headline.low, data.headline.high, strong=True)
    compared = [Estimate(c.label, c.value.value, c.value.low, c.value.high) for c in data.comparisons]
    runs = [Estimate(*row) for row in rows_of(data.runs, "run", own_label(data.objective), "low", "high")]
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
    if data.training is not None:
        drawn["training"] = training_figures(data.training)
    drawn["histories"] = [
        (family, study_figure(f"history{number}", studies, axis=objective))
        for number, (family, studies) in enumerate(_families(data.studies).items())
    ]
    return drawn


def importance_figures(data: ReportData) -> dict[str, Any]:
    """Draws the importances, if there are any: `blocks`, and one drawing a stacker in `features` and `columns`."""
    if data.importance is None:
        return {}
    by_column = data.importance.loc[data.importance["of"] == "column", "stacker"]
    return {
        "blocks": block_importance_figure("blocks", data.importance),
        "features": [
            (stacker, feature_importance_figure(f"features{number}", data.importance, stacker))
            for number, stacker in enumerate(data.importance["stacker"].unique())
        ],
        "columns": [
            (stacker, column_importance_figure(f"columns{number}", data.importance, stacker))
            for number, stacker in enumerate(by_column.unique())
        ],
    }


def page_tables(data: ReportData, within: pd.Series[float]) -> dict[str, HtmlTable]:
    """Makes the tables, by name; `within` is the AUC of the blend within each fold."""
    folds = data.folds.merge(within.reset_index(), on="fold", how="left", validate="one_to_one")
    shares = {str(name): _PERCENT for name in folds.columns[5:-1] if name not in {"median age"}}
    # The table by_fold shows every fold, so the lowest and the highest fold are left out here.
    runs = data.runs if data.by_fold is None else data.runs.drop(columns=["min_fold", "max_fold"], errors="ignore")
    runs = runs.drop(columns=[name for name in ("seconds",) if name in runs and runs[name].isna().all()])
    runs = runs.replace({"kind": {"logistic": "logistic stacker"}})
    name = own_label(data.objective)
    made = {
        "runs": table(
            runs,
            intervals={name: ("low", "high")},
            heads={name: name} if is_own_metric(data.objective) else {},
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


def subgroup_verdicts(subgroups: pd.DataFrame | None, unit: str) -> list[str]:
    """Returns one sentence for each subgroup that differs from the rest beyond noise."""
    if subgroups is None:
        return []
    return [
        f"{line['by']} {line['subgroup']}: AUC {line['auc']:.3f}, {abs(line['difference']):.3f} "
        f"{'above' if line['difference'] > 0 else 'below'} that of all other {unit}s"
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
