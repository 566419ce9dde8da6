"""Every figure and table of the report, by the name that the page calls it; what has nothing to show is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dermstack.report.curves import decision_figure, precision_recall_figure, reliability_figure, roc_figure
from dermstack.report.figures import Estimate, bar_figure, interval_figure
from dermstack.report.model_figures import block_figure, feature_figure, history_figure
from dermstack.report.report_data import DataFacts, ReportData
from dermstack.report.tables import Table, heat_table, rows_of, table
from stack.metrics.scores import auc, average_precision
from stack.tune.studies import StudyHistory

OBJECTIVES = {
    "auc": "AUC",
    "pauc80": "partial AUC",
    "ap": "average precision",
    "logloss": "log loss, negated",
}
_PERCENT = ".1%"


def panels(data: ReportData, objective: str) -> dict[str, Any]:
    """Drawings by name; `features` is a list of a stacker and its drawing, `histories` of a family and its drawing."""
    headline = Estimate("this blend", data.headline.value, data.headline.low, data.headline.high, strong=True)
    compared = [Estimate(c.label, c.value.value, c.value.low, c.value.high) for c in data.comparisons]
    runs = [Estimate(*row) for row in rows_of(data.runs, "run", data.objective, "low", "high")]
    methods = [
        Estimate(*row)._replace(strong=row[0] == data.chosen)
        for row in rows_of(data.methods, "method", "nested", "low", "high", "tuned")
    ]
    weights = {_entering(line): line["weight"] for line in data.weights.to_dict("records")}
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
            axis = "score, read as a probability" if when == "before" else "calibrated p"
            drawn[when] = reliability_figure(when, shown, axis=axis)
    if data.decision is not None:
        drawn["decision"] = decision_figure("decision", data.decision.curve)
    if data.subgroups is not None and (measured := _measured(data.subgroups)):
        whole = auc(data.y, next(iter(data.curves.values())))
        drawn["subgroups"] = interval_figure("subgroups", measured, axis="AUC", reference=whole)
    if data.importance is not None:
        drawn["blocks"] = block_figure("blocks", data.importance)
        drawn["features"] = [
            (stacker, feature_figure(f"features{number}", data.importance, stacker))
            for number, stacker in enumerate(data.importance["stacker"].unique())
        ]
    drawn["histories"] = [
        (family, history_figure(f"history{number}", studies, axis=objective))
        for number, (family, studies) in enumerate(_families(data.studies).items())
    ]
    return drawn


def tables(data: ReportData, within: pd.Series[float]) -> dict[str, Table]:
    """Tables by name; `within` is the AUC of the blend within each fold."""
    folds = data.folds.merge(within.reset_index(), on="fold", how="left", validate="one_to_one")
    shares = {str(name): _PERCENT for name in folds.columns[5:-1] if name not in {"median age"}}
    # Where each fold has its column, the lowest and the highest need none.
    runs = data.runs if data.by_fold is None else data.runs.drop(columns=["min_fold", "max_fold"], errors="ignore")
    made = {
        "runs": table(runs, intervals={data.objective: ("low", "high")}),
        "methods": table(
            data.methods,
            intervals={"nested": ("low", "high"), "difference": ("difference_low", "difference_high")},
            tags={data.chosen: "chosen"},
        ),
        "folds": table(folds, formats={"median age": ".0f", **shares}),
    }
    if data.calibration is not None:
        made["calibration"] = table(data.calibration.scores, formats={"mean p": ".2%", "log loss": ".4f"})
        heads = {"p": "told", "share": "was positive"}
        for when, shown in (("before", data.calibration.before), ("after", data.calibration.after)):
            made[f"reliability_{when}"] = table(
                shown, intervals={"share": ("low", "high")}, heads=heads, formats={"p": _PERCENT, "share": _PERCENT}
            )
    if data.decision is not None:
        made["decision"] = _decision_table(data.decision.at)
    if data.by_fold is not None:
        made["by_fold"] = table(data.by_fold)
    if data.agreement is not None:
        made["agreement"] = heat_table(data.agreement, corner="run")
    if data.subgroups is not None:
        made["subgroups"] = _subgroup_table(data.subgroups)
    if data.studies:
        made["studies"] = _study_table(data.studies)
    return made | _data_tables(data.data)


def subgroup_verdicts(subgroups: pd.DataFrame | None) -> list[str]:
    """One sentence for each subgroup that differs from the rest beyond noise."""
    if subgroups is None:
        return []
    return [
        f"{line['by']} {line['subgroup']}: AUC {line['auc']:.3f}, {abs(line['difference']):.3f} "
        f"{'above' if line['difference'] > 0 else 'below'} that of all other rows"
        for line in subgroups[subgroups["apart"]].to_dict("records")
    ]


def _entering(line: dict[Any, Any]) -> str:
    return f"{line['run']}, as {line['enters as']}" if "enters as" in line else str(line["run"])


def _measured(subgroups: pd.DataFrame) -> list[Estimate]:
    known = subgroups[subgroups["auc"].notna()]
    return [
        Estimate(f"{line['by']}: {line['subgroup']}", line["auc"], line["low"], line["high"], strong=line["apart"])
        for line in known.to_dict("records")
    ]


def _subgroup_table(subgroups: pd.DataFrame) -> Table:
    named = subgroups["by"] + ": " + subgroups["subgroup"]
    frame = subgroups.drop(columns=["by", "subgroup", "apart"])
    frame.insert(0, "subgroup", named)
    return table(
        frame,
        intervals={"auc": ("low", "high"), "difference": ("wide_low", "wide_high")},
        tags=dict.fromkeys(named[subgroups["apart"]], "differs"),
        heads={"difference": "less the rest", "wide_low": "interval for all comparisons"},
        formats={"auc": ".3f", "difference": "+.3f", "prevalence": _PERCENT},
    )


def _decision_table(curve: pd.DataFrame) -> Table:
    frame = pd.DataFrame({
        "threshold": curve["threshold"],
        "called": 1000 * curve["called"],
        "sensitivity": curve["sensitivity"],
        "net_benefit": curve["net_benefit"], "low": curve["low"], "high": curve["high"],
        "treat_all": curve["treat_all"],
        "gain": curve["gain"], "gain_low": curve["gain_low"], "gain_high": curve["gain_high"],
    })  # fmt: skip
    return table(
        frame,
        intervals={"net_benefit": ("low", "high"), "gain": ("gain_low", "gain_high")},
        heads={
            "called": "called positive of 1,000",
            "treat_all": "acting on all",
            "gain": "gain on the better of all and nobody",
        },
        formats={"called": ".0f", "sensitivity": _PERCENT, "gain": "+.4f"},
    )


def _families(studies: Sequence[StudyHistory]) -> dict[str, list[StudyHistory]]:
    """Studies that have a value, by what they are about: those of one stacker without each fold are one family."""
    found: dict[str, list[StudyHistory]] = {}
    for study in studies:
        if np.isfinite(study.values).any():
            found.setdefault(study.name.partition("-without-")[0], []).append(study)
    return found


def _study_table(studies: Sequence[StudyHistory]) -> Table:
    records = []
    for study in studies:
        known = np.isfinite(study.values).any()
        first = study.values[0] if len(study.values) else np.nan
        best = float(np.nanmax(study.values)) if known else np.nan
        counts = [sum(state == name for state in study.states) for name in ("complete", "pruned", "fail")]
        records.append(
            [study.name, *counts, first, best, best - first, int(np.nanargmax(study.values)) + 1 if known else None]
        )
    columns = ["study", "complete", "pruned", "failed", "first trial", "best", "gained", "in trial"]
    return table(pd.DataFrame(records, columns=columns), formats={"gained": "+.4f", "in trial": ".0f"})


def _data_tables(data: DataFacts) -> dict[str, Table]:
    made = {}
    if data.missing is not None:
        shares = dict.fromkeys(("train", "negatives", "positives", "test"), _PERCENT)
        heads = {"train": "of train", "negatives": "of the negative", "positives": "of the positive", "test": "of test"}
        made["missing"] = table(data.missing, formats=shares, heads=heads)
    if data.findings is not None:
        made["findings"] = table(data.findings)
    return made
