"""Writes the methods text of a run: paragraphs for a paper with the numbers filled in, and what the author must add."""

from __future__ import annotations

from typing import NamedTuple

from dermstack.report.pack import answers_data, answers_model, answers_results
from dermstack.report.pack.answer import (
    listed,
    plural,
    scored,
    share,
    stackers,
    with_interval,
)
from dermstack.report.pack.run_evidence import Evidence
from dermstack.report.report import count
from stack.metrics.scores import objective_label


class Reference(NamedTuple):
    """A source of a method, and whether a run uses it."""

    text: str
    used: bool


def methods_text(e: Evidence) -> str:
    """Returns the text as Markdown: paragraphs to paste, results, what is left to the author, and references."""
    parts = [
        f"# Methods of {e.data.experiment}",
        "Written by dermstack from the run. Square brackets name what the author adds; nothing else was made up.",
        "## Methods",
        _data(e),
        _folds(e),
        _models(e),
        _evaluation(e),
        f"**Software.** {answers_model.software(e).text}",
        "## Results of the evaluation",
        _results(e),
        "## For the author",
        "\n".join(f"- {blank}" for blank in _blanks(e)),
        "## References",
        "\n".join(f"- {reference.text}" for reference in _references(e) if reference.used),
    ]
    return "\n\n".join(parts) + "\n"


def _data(e: Evidence) -> str:
    rows, positives = scored(e)
    columns = e.config.data.columns
    of = f" of {count(e.counts.groups)} [patients or lesions]" if e.groups_known else ""
    text = (
        f"**Data.** The data set {e.config.data.name} [origin, dates, setting, eligibility] has "
        f"{count(e.counts.train)} images{of} with a known outcome. {answers_data.exclusions(e).text} "
        f"{count(rows)} {e.data.unit}s were scored, of which {count(positives)} ({share(positives / rows)}) were "
        f"positive (`{columns.target_column}` [definition and reference standard]). "
    )
    missing = e.data.data.missing
    if missing is not None and len(missing):
        shares = [f"{line['column']} in {share(line['train'])}" for line in missing.to_dict("records") if line["rows"]]
        text += f"Values were missing: {listed(shares)} of the images. " if shares else ""
    if e.counts.test:
        text += f"{count(e.counts.test)} further images without a known outcome were predicted only. "
    return text.strip()


def _folds(e: Evidence) -> str:
    return f"**Cross-validation.** {answers_data.split(e).text} {answers_data.leakage(e).text}"


def _models(e: Evidence) -> str:
    text = f"**Models.** The model is {answers_model.parts_in_words(e)}. {answers_model.training(e).text} "
    start = answers_model.initialisation(e)
    if start is not None:
        text += f"Networks started from: {start.text} "
    if stackers(e):
        text += answers_model.predictor_handling(e).text + " "
    text += f"{answers_model.imbalance(e).text} {answers_model.ensembling(e).text}"
    text += f" {answers_model.tuning(e).text}"
    if e.data.review is not None:
        text += f" {answers_model.output(e).text}"
    return text


def _evaluation(e: Evidence) -> str:
    told = [f"Measures: {answers_results.measure_names(e)}.", answers_results.uncertainty(e).text]
    told.append(
        f"The estimate is {e.data.headline_label}: for each fold, the choice of the blend method and its weights used "
        "the other folds only."
    )
    maps = {*e.blend["calibration"]["chosen_by_fold"].values(), e.blend["calibration"]["chosen"]}
    name = answers_model.calibration_name(e)
    how = f"by {name}" if len(maps) == 1 else f"by a map chosen for each fold (on all rows: {name})"
    told.append(f"Probabilities were calibrated {how}; the map of each fold was fitted without it.")
    if e.blend["selected"]:
        told.append(f"The settings of {listed(e.blend['selected'])} had been selected on these rows.")
    return f"**Evaluation.** {' '.join(told)}"


def _results(e: Evidence) -> str:
    label = objective_label(e.data.objective)
    told = [
        f"The {label} of the blend was {with_interval(e.data.headline)} ({e.data.headline_label}), on "
        f"{count(len(e.data.y))} {e.data.unit}s in {plural(len(e.data.folds), 'fold')}."
    ]
    for made in (
        answers_results.comparisons(e), answers_results.calibration(e), answers_results.operating(e),
        answers_results.subgroups(e), answers_results.clusters(e), answers_model.interaction(e),
    ):  # fmt: skip
        if made is not None:
            told.append(made.text)
    return "\n\n".join(told)


def _blanks(e: Evidence) -> list[str]:
    """Returns what the text needs from the author: what no run knows, and what its parts leave open."""
    blanks = [
        "origin of the data: design, setting, dates, eligibility, and how images were taken",
        "the reference standard: what a positive is, who established it, and how disagreement was settled",
        "ethics, consent, funding, registration and protocol",
        "the intended use, and why this size of the data suffices",
        "hardware and time of computation",
        "external testing",
    ]
    if not e.groups_known:
        blanks.append("whether rows of one patient may be in several folds: the table names no patient")
    if e.sources is None:
        blanks.append(answers_results.FACTS["clusters"].lacking)
    shown = (
        answers_data.preparation(e), answers_data.predictors(e), answers_data.missing(e), answers_data.leakage(e),
        answers_model.training(e), answers_model.imbalance(e), answers_model.tuning(e), answers_model.software(e),
    )  # fmt: skip
    return list(dict.fromkeys([*blanks, *(blank for answer in shown for blank in answer.author)]))


def _references(e: Evidence) -> list[Reference]:
    kinds = {run.kind for run in e.runs}
    maps = {*e.blend["calibration"]["chosen_by_fold"].values(), e.blend["calibration"]["chosen"]}
    return [
        Reference("Stacking: Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1", True),
        Reference("Bias of a choice on the scored rows: Varma and Simon 2006, doi:10.1186/1471-2105-7-91", True),
        Reference("LightGBM: Ke et al. 2017, NeurIPS 30, 3146-3154", "lightgbm" in kinds),
        Reference("XGBoost: Chen and Guestrin 2016, doi:10.1145/2939672.2939785", "xgboost" in kinds),
        Reference("CatBoost: Prokhorenkova et al. 2018, arXiv:1706.09516", "catboost" in kinds),
        Reference("Set transformer: Lee et al. 2019, arXiv:1810.00825", "set_transformer" in kinds),
        Reference("timm: Wightman 2019, doi:10.5281/zenodo.4414861", bool(kinds & {"image", "frozen"})),
        Reference("TreeSHAP: Lundberg et al. 2020, doi:10.1038/s42256-019-0138-9", e.data.importance is not None),
        Reference("Platt scaling: Platt 1999, Advances in Large Margin Classifiers", "platt" in maps),
        Reference("Beta calibration: Kull, Silva Filho and Flach 2017, PMLR 54:623-631", "beta" in maps),
        Reference("Isotonic calibration: Zadrozny and Elkan 2002, doi:10.1145/775047.775151", "isotonic" in maps),
        Reference("Net benefit: Vickers and Elkin 2006, doi:10.1177/0272989X06295361", e.data.decision is not None),
        Reference("Learn then Test: Angelopoulos et al. 2021, arXiv:2110.01052", e.data.review is not None),
        Reference("Intervals over few sources: Hartung and Knapp 2001, doi:10.1002/sim.1009", e.sources is not None),
    ]  # fmt: skip
