"""Answers on evaluation: validation, measures, uncertainty, performance, subgroups, sources, explanations, limits."""

from __future__ import annotations

from dermstack.report.pack.answer import (
    Answer,
    Fact,
    listed,
    names,
    number,
    of_kind,
    plural,
    share,
    stackers,
    unknown,
    with_interval,
)
from dermstack.report.pack.run_evidence import Evidence
from dermstack.report.report import count
from stack.metrics.gaps import BOUNDED, DIFFERS, TOO_FEW
from stack.metrics.scores import objective_label
from stack.sources.estimates import headline_note, source_sentences

_PLOTS = ("curves", "calibration", "decision", "subgroups", "gaps", "sources", "explorer", "review")
_MOST_PREDICTIVE = 5  # features of each stacker that an answer names


def internal_validation(e: Evidence) -> Answer:
    """Says how the estimate was made, and from which level on it is nested."""
    k = len(e.data.folds)
    told = [
        f"{k}-fold cross-validation, {e.data.headline_label}: for each fold, the blend method was chosen and its "
        "weights were fitted on the other folds only, and the choice is repeated for each fold."
    ]
    if stackers(e):
        told.append("Level-2 models of a fold were fitted without it.")
        if of_kind(e, "image", "frozen", "imported"):
            told.append(
                "The predictions that they were fitted on are of models that had seen the fold's images in training; "
                "with shuffled outcomes this gives slightly more than chance."
            )
    open_ = unknown(e, "that each prediction made elsewhere is by a model that had not seen the row, as was declared")
    return Answer(" ".join(told), ("result", "methods"), open_)


def replicated(e: Evidence) -> Answer:
    """Says which steps were repeated without each fold, and which were not."""
    level2 = "encodings and transforms, level-2 fits with their inner choices, " if stackers(e) else ""
    told = [f"Repeated without each fold: {level2}blend method, weights and calibration."]
    if nets := of_kind(e, "image", "frozen"):
        told.append(f"{names(nets)} {'was' if len(nets) == 1 else 'were'} trained without each fold.")
    told.append(
        "Not repeated: predictions of level 1 are taken as given, and settings were chosen once, on all rows or "
        "elsewhere."
    )
    if e.blend["selected"]:
        told.append(f"Declared as selected on these rows: {listed(e.blend['selected'])}.")
    return Answer(" ".join(told), ("result", "methods", "settings"))


def apparent(e: Evidence) -> Answer:
    """Says that the headline is no apparent performance."""
    return Answer(
        f"The headline, {with_interval(e.data.headline)}, is {e.data.headline_label}. The value tuned in-sample, "
        f"{number(float(e.blend['tuned_in_sample']))}, stands beside it under that name only.",
        ("result", "methods"),
    )


def measure_names(e: Evidence) -> str:
    """Lists what was measured."""
    of = [objective_label(e.data.objective), "its value within each fold", "precision and recall"]
    of += ["calibration slope, expected calibration error, Brier score and log loss"] if e.data.calibration else []
    if e.data.decision is not None:
        of.append("net benefit at thresholds")
        if e.data.decision.numbers is not None:
            of.append("images reviewed and biopsies for each cancer found")
    if "gaps" in e.tables:
        of.append("sensitivity, specificity and expected / observed in subgroups")
    return listed(of)


def measures(e: Evidence) -> Answer:
    """Lists measures and plots."""
    plots = [e.sections[name] for name in _PLOTS if name in e.sections]
    return Answer(
        f"Measures: {measure_names(e)}. Sections with plots or tables: {listed(plots)}.",
        tuple(name for name in _PLOTS if name in e.sections),
    )


def uncertainty(e: Evidence) -> Answer:
    """Says how intervals and comparisons were made."""
    unit = "groups (joined where they share a picture)" if e.groups_known else "rows"
    told = [
        f"95 % intervals by bootstrap of whole {unit}, stratified by groups with and without a positive (1,000 draws); "
        "paired differences share their draws."
    ]
    if e.data.subgroups is not None and len(e.data.subgroups):
        told.append("Differences of subgroups: Bonferroni-corrected intervals.")
    if "gaps" in e.tables:
        told.append("Gaps between subgroups: simultaneous intervals (max-T).")
    if e.sources is not None:
        told.append("Over sources: Hartung–Knapp, with a prediction interval for the next source.")
    return Answer(" ".join(told), ("result", "subgroups", "gaps"))


def statistics(e: Evidence) -> Answer:
    """Names the software that computes measures and intervals, with versions."""
    of = [f"{name} {e.data.versions[name]}" for name in ("dermstack", "numpy", "pandas") if name in e.data.versions]
    return Answer(f"Computed by {listed(of or ['dermstack'])}, as installed when the report was made.", ("settings",))


def comparisons(e: Evidence) -> Answer | None:
    """Gives the paired differences to other scores."""
    if not e.data.comparisons:
        return None
    of = [
        f"{other.label}: {with_interval(other.value)}, the blend minus it {with_interval(other.difference, 4)}"
        for other in e.data.comparisons
        if (other.difference.low, other.difference.high) != (0, 0)
    ] or ["the blend is the same as what it is compared with"]
    return Answer(f"On the same rows: {'; '.join(of)}.", ("result",))


def performance(e: Evidence) -> Answer:
    """Gives the headline and what it is measured on."""
    label = objective_label(e.data.objective)
    text = (
        f"{label[0].upper()}{label[1:]} of the blend: {with_interval(e.data.headline)}, {e.data.headline_label}, on "
        f"{count(len(e.data.y))} {e.data.unit}s, {count(e.data.y.sum())} of them positive."
    )
    return Answer(text, ("result", "curves", "by-fold"))


def calibration(e: Evidence) -> Answer | None:
    """Gives the calibration of p_calibrated, where each row's map was fitted without its fold."""
    if e.data.calibration is None:
        return None
    last = e.data.calibration.scores.iloc[-1]
    return Answer(
        "Calibrated probability, each row by a map that was fitted without its fold: mean "
        f"{share(float(last['mean p']))} at a prevalence of {share(float(e.data.y.mean()))}, slope "
        f"{number(float(last['slope']), 2)}, Brier score "
        f"{number(float(last['brier']), 4)}, expected calibration error {number(float(last['ece']), 4)}.",
        ("calibration", "reliability-after"),
    )


def operating(e: Evidence) -> Answer | None:
    """Gives specificity at a sensitivity of 90 %, from the table of thresholds."""
    aims = e.tables.get("explorer-aims")
    if aims is None:
        return None
    found = []
    for line in aims.to_dict("records"):
        if line["aim"] in ("sensitivity 90 %", "specificity 90 %"):
            other = "specificity" if line["aim"].startswith("sens") else "sensitivity"
            found.append(
                f"at the threshold for {line['aim']} {other} {share(line[other])} (95 % interval "
                f"{share(line[f'{other}_low'])} to {share(line[f'{other}_high'])})"
            )
    return Answer(f"Thresholds were chosen on these rows: {'; '.join(found)}.", ("explorer", "explorer-aims"))


def decision(e: Evidence) -> Answer | None:
    """Gives net benefit at round thresholds."""
    if e.data.decision is None:
        return None
    lines = e.data.decision.at_round_thresholds.to_dict("records")
    of = [
        f"{share(line['threshold'])}: {number(line['net_benefit'], 4)} (95 % interval {number(line['low'], 4)} to "
        f"{number(line['high'], 4)}), acting on all {number(line['treat_all'], 4)}"
        for line in lines
    ]
    return Answer(f"Net benefit by the risk at which one acts: {'; '.join(of)}.", ("decision",))


def subgroups(e: Evidence) -> Answer | None:
    """Says in which subgroups the AUC differs beyond noise."""
    found = e.data.subgroups
    if found is None or found.empty:
        return None
    by = listed([f"`{name}`" for name in dict.fromkeys(found["by"])])
    told = [f"AUC with interval in {plural(len(found), 'subgroup')} of {by}."]
    apart = [
        f"{line['by']} {line['subgroup']}, AUC {number(line['auc'])} (95 % interval {number(line['low'])} to "
        f"{number(line['high'])}), {number(line['difference'])} from all others (corrected interval "
        f"{number(line['wide_low'])} to {number(line['wide_high'])})"
        for line in found[found["apart"]].to_dict("records")
    ]
    told += [f"Beyond noise: {'; '.join(apart)}."] if apart else ["None differs from the rest beyond noise."]
    return Answer(" ".join([*told, *_gap_counts(e)]), ("subgroups", "gaps"))


def fairness(e: Evidence) -> Answer | None:
    """Says which subgroups were compared, and that the model is the same for all."""
    if not (counted := _gap_counts(e)):
        return None
    by = listed([f"`{name}`" for name in dict.fromkeys(e.tables["gaps"]["by"])])
    return Answer(
        f"The model and its thresholds are the same for all; subgroups of {by} are compared in AUC, sensitivity, "
        f"specificity and expected / observed. {' '.join(counted)}",
        ("gaps", "subgroups"),
    )


def clusters(e: Evidence) -> Answer | None:
    """Gives the estimate with sources held out, and what it means; without advice, as the text goes into a paper."""
    if e.sources is None:
        return None
    told = source_sentences(e.sources, advice=False)
    return Answer(" ".join([headline_note(e.sources), *told]), ("sources", "source-aucs"))


def robustness(e: Evidence) -> Answer | None:
    """Gives the checks of level 2."""
    if not e.data.diagnostics:
        return None
    return Answer(" ".join(line.rstrip(".") + "." for line in e.data.diagnostics), ("result",))


def predictive(e: Evidence) -> Answer | None:
    """Names the features that contribute most at level 2."""
    if e.data.importance is None:
        return None
    features = e.data.importance[e.data.importance["of"] == "feature"]
    told = []
    for stacker, rows in features.groupby("stacker", sort=False):
        largest = rows[rows["size"] > 0].nlargest(_MOST_PREDICTIVE, "size")
        told.append(f"{stacker}: {listed([f'`{name}`' for name in largest['name']]) or 'none'}")
    return Answer(
        f"Features with the largest mean contribution to the logits of held-out rows at level 2: {'; '.join(told)}.",
        ("importance",),
    )


def explanation(e: Evidence) -> Answer | None:
    """Says which explanations the page holds."""
    told = []
    if e.data.importance is not None:
        told.append(
            "Contributions of features to the logits of held-out rows at level 2 (TreeSHAP for trees, exact terms for "
            "logistic regressions)."
        )
    if e.shows_images and "hard-cases" in e.sections and of_kind(e, "image", "frozen"):
        told.append("Grad-CAM maps of single images, which show where a network reacts and not why.")
    return Answer(" ".join(told), ("importance", "hard-cases")) if told else None


def external(e: Evidence) -> Answer:
    """Says what was held out beside groups, where sources are known; this is no external testing."""
    text = "No external testing is part of this run (`dermstack evaluate` makes one with a bundle)."
    if e.sources is None or e.sources.strictest.held_out == "in training":
        return Answer(text, ("result",))
    return Answer(f"{text} Sources were held out instead: {headline_note(e.sources)}", ("sources",))


def failures(e: Evidence) -> Answer | None:
    """Points to the most confident errors."""
    if "hard-cases" not in e.sections:
        return None
    return Answer("The most confident misses and false alarms are listed by code.", ("hard-cases", "explorer"))


def limitations(e: Evidence) -> Answer:
    """Repeats the limits that the page states."""
    return Answer(" ".join(e.data.notes), ("result",))


def _gap_counts(e: Evidence) -> list[str]:
    gaps = e.tables.get("gaps")
    if gaps is None or gaps.empty:
        return []
    counts = {verdict: int((gaps["verdict"] == verdict).sum()) for verdict in (DIFFERS, BOUNDED, TOO_FEW)}
    return [
        f"Of {plural(len(gaps), 'gap')} with simultaneous intervals: {count(counts[DIFFERS])} beyond noise, "
        f"{count(counts[BOUNDED])} without a large gap, {count(counts[TOO_FEW])} with too few rows to say."
    ]


FACTS = {
    "internal_validation": Fact(internal_validation),
    "replicated": Fact(replicated),
    "apparent": Fact(apparent),
    "measures": Fact(measures),
    "uncertainty": Fact(uncertainty),
    "statistics": Fact(statistics),
    "comparisons": Fact(comparisons, "comparison with other models (this run has one score only)"),
    "performance": Fact(performance),
    "calibration": Fact(calibration, "calibration (this run has none)"),
    "operating": Fact(operating, "sensitivity and specificity at thresholds (this run has no table of them)"),
    "decision": Fact(decision, "net benefit (this run has none)"),
    "subgroups": Fact(subgroups, "performance in subgroups (the table of this run has none)"),
    "fairness": Fact(fairness, "approaches to fairness (the table of this run has no subgroups to compare)"),
    "clusters": Fact(
        clusters,
        "heterogeneity between hospitals or devices (this run has no estimate by source: name it in "
        "`data.columns.source`)",
    ),
    "robustness": Fact(robustness, "robustness or sensitivity analyses (this run has no level 2 to probe)"),
    "predictive": Fact(predictive, "which variables were predictive (this run has no level 2 to explain)"),
    "explanation": Fact(explanation, "explanations (this run has no level 2 and no image model to explain)"),
    "external": Fact(external),
    "failures": Fact(failures, "analysis of errors (this run has no list of cases)"),
    "limitations": Fact(limitations),
}
