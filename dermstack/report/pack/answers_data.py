"""Answers on data: rows, exclusions, outcome, predictors, missing values, folds, leakage and sample size."""

from __future__ import annotations

import pandas as pd

from dermstack.report.pack.answer import (
    Answer,
    Fact,
    group_words,
    listed,
    names,
    nets_with_settings,
    of_kind,
    plural,
    scored,
    share,
    stackers,
    unknown,
    with_interval,
)
from dermstack.report.pack.run_evidence import Evidence
from dermstack.report.report import count
from dermstack.report.row_flow import UNREADABLE
from stack.metrics.gaps import TOO_FEW


def outcome(e: Evidence) -> Answer:
    """Says which column is the target, which values are positive and how many rows are."""
    rows, positives = scored(e)
    columns = e.config.data.columns
    value = listed([f"`{one}`" for one in columns.positive], "or") if columns.positive else "1"
    text = (
        f"The outcome is the column `{columns.target_column}`; a row is positive where it is {value}. Of {count(rows)} "
        f"{e.data.unit}s that are scored, {count(positives)} ({share(positives / rows)}) are positive."
    )
    if e.config.predict_per is not None:
        text += " A unit is positive if one of its images is."
    return Answer(text, ("result", "characteristics"))


def data_set(e: Evidence) -> Answer:
    """Says how many rows, groups and tables there are."""
    data = e.config.data
    text = f"Data set `{data.name}`: {count(e.counts.train)} training images"
    if e.groups_known:
        text += f" of {count(e.counts.groups)} {group_words(e)}"
    text += ", which develop and evaluate the model."
    if e.counts.test:
        text += f" {count(e.counts.test)} further images have no outcome here and are only predicted."
    for word, tables in (("with an outcome", data.external), ("without an outcome", data.unlabelled)):
        if tables:
            text += (
                f" {plural(len(tables), 'further table')} {word} ({listed([f'`{one.name}`' for one in tables])}) only "
                "train image models and are never scored."
            )
    return Answer(text, ("participants", "data"))


def centres(e: Evidence) -> Answer | None:
    """Says which sources are named and how many rows each has."""
    facts = e.tables.get("source-facts")
    if facts is None:
        return None
    rows = e.tables["source-aucs"][["source", "rows"]].itertuples(index=False, name=None)
    named = listed([f"{name} ({count(number)} {e.data.unit}s)" for name, number in rows])
    return Answer(f"{plural(len(facts), 'source')}: {named}.", ("sources", "source-facts"))


def exclusions(e: Evidence) -> Answer:
    """Says which rows of the given tables were left out, and why."""
    flow = e.tables["row-flow"]
    out = flow[(flow["excluded"] > 0)]
    if out.empty:
        text = "No row of the given tables was left out."
    else:
        reasons = [
            f"{count(line['excluded'])} of the table {line['table']} ({line['reason']})"
            for line in out.to_dict("records")
        ]
        text = f"Rows of the given tables that were left out: {'; '.join(reasons)}."
    if merged := e.counts.merged_groups:
        text += f" Duplicates were not left out: {count(merged)} groups were joined with others in their fold."
    return Answer(f"{text} A table with a missing outcome or a doubled id is refused.", ("participants", "row-flow"))


def flow(e: Evidence) -> Answer:
    """Gives the number of rows at each step of each table."""
    told = []
    for table, steps in e.tables["row-flow"].groupby("table", sort=False):
        step = steps.drop_duplicates("step")
        ways = [f"{count(line['rows'])} {line['step']}" for line in step.to_dict("records")]
        told.append(f"{table}: {', then '.join(ways)}".replace("this page", "the report"))
    return Answer(f"{'. '.join(told)}.", ("participants", "row-flow"))


def characteristics(e: Evidence) -> Answer:
    """Says what the table of characteristics holds."""
    found = e.tables["characteristics"]
    by = [str(name) for name in dict.fromkeys(found["by"]) if name not in ("split", "fold")]
    line = found.iloc[0]
    text = f"Scored rows: {count(line['rows'])}"
    if not pd.isna(line["groups"]):
        text += f" of {count(line['groups'])} groups"
    text += f", {count(line['positives'])} positive ({share(float(line['prevalence']))})"
    if "age" in found and not pd.isna(line["age"]):
        text += f", median age {line['age']:.0f} (quartiles {line['age_low']:.0f} to {line['age_high']:.0f})"
    of = ["split", "fold", *[f"`{name}`" for name in by]]
    return Answer(f"{text}. The table gives the same by {listed(of)}.", ("participants", "characteristics"))


def preparation(e: Evidence) -> Answer:
    """Says how images were read, scaled and checked for duplicates, where images were read at all."""
    data, told = e.config.data, []
    if data.images is None:
        told.append("No image was read in this run.")
    else:
        if used := sorted({model.size for _, model in nets_with_settings(e)}):
            kept = "the aspect kept and the central square taken" if data.resize == "short_side" else "to a square"
            told.append(f"Images were scaled to {listed([f'{size}' for size in used])} pixels, {kept}.")
        if e.counts.look_alikes is not None:
            pairs = listed([f"{count(number)} {kind}" for kind, number in e.counts.look_alikes.items()])
            told.append(f"Pairs of images that look alike: {pairs}.")
        rule = {"refuse": "stops the run", "drop": "is left out and counted", "tolerate": "is used where only bytes "
                "after its last pixel are wrong, and otherwise stops the run"}  # fmt: skip
        told.append(f"An image that cannot be read {rule[data.on_unreadable]}.")
    if data.missing:
        codes = [f"{column}: {listed([str(one) for one in given], 'or')}" for column, given in data.missing.items()]
        told.append(f"Codes that count as missing: {'; '.join(codes)}.")
    return Answer(" ".join(told), ("data", "settings"), unknown(e, "how images were prepared for models elsewhere"))


def cropping(e: Evidence) -> Answer:
    """Says which part of an image the networks see."""
    if not nets_with_settings(e):
        text = "No network of this run saw an image."
    elif e.config.data.resize == "short_side":
        text = "Apart from augmentation, networks see the central square of each image, by rule and not by hand."
    else:
        text = "Apart from augmentation, networks see each image as a whole: no part of it was chosen."
    return Answer(text, ("settings",), unknown(e, "which images and parts of images models elsewhere were given"))


def quality(e: Evidence) -> Answer | None:
    """Counts the findings of the audit."""
    found = e.data.data.findings
    if found is None:
        return None
    counted = [plural(int(number), str(name)) for name, number in found["severity"].value_counts().items()]
    text = f"The audit of rows, folds and predictions has {listed(counted)}." if counted else "The audit found nothing."
    if e.data.data.audit_command:
        text += " The images were not audited."
    return Answer(text, ("data", "findings") if counted else ("data",))


def predictors(e: Evidence) -> Answer:
    """Lists what the models are given."""
    found = e.tables["characteristics"]
    known = [name for name in ("age", "sex", "site") if f"{name}_missing" in found]
    columns = e.config.data.columns
    csv = listed([f"`{getattr(columns, name)}` ({name})" for name in known if getattr(columns, name)])
    told = []
    metadata = {run.name: model.metadata for run, model in nets_with_settings(e)}
    for run in of_kind(e, "image", "frozen"):
        given = listed([f"`{name}`" for name in metadata.get(run.name, ())])
        told.append(f"{run.name} sees the image{f' with {given}' if given else ''}.")
    if of := stackers(e):
        parts = ["the predictions of the runs of level 1"] if e.config.all_features.logits else []
        if e.config.all_features.metadata and csv:
            parts.append(csv)
        if e.config.all_features.columns:
            parts += [f"{count(number)} {kind}" for kind, number in e.counts.columns.items()]
        if parts:
            told.append(f"Level 2 ({names(of)}) may use {listed(parts)}.")
        if e.config.all_features.shortcuts:
            told.append("It also uses width, height and file size of the original image (`features.shortcuts`).")
    places = ("data", *(name for name in ("numbers", "words") if name in e.tables), "importance")
    if not told:
        told.append("No model was fitted here on predictors: only predictions made elsewhere are blended.")
    return Answer(" ".join([*told, *e.data.data.column_notes]), places, unknown(e, "what models elsewhere were given"))


def missing(e: Evidence) -> Answer:
    """Gives the share of missing values and how models take them."""
    shares, told = e.data.data.missing, []
    if shares is not None and len(shares):
        lines = shares.to_dict("records")
        of = [f"{line['column']} {share(line['train'])}" for line in lines if line["rows"]]
        full = [str(line["column"]) for line in lines if not line["rows"]]
        told += [f"Missing in the training rows: {listed(of)}."] if of else []
        told += [f"Complete in the training rows: {listed(full)}."] if full else []
    told.append("No row was left out for a missing predictor.")
    if stackers(e):
        kinds = {run.kind for run in stackers(e)}
        told.append("At level 2, columns with missing values have an indicator for them.")
        if kinds & {"lightgbm", "xgboost", "catboost"}:
            told.append("Gradient-boosted trees take missing numbers as such.")
        if kinds & {"logistic", "set_transformer"}:
            told.append("In a logistic regression or a set transformer a missing number counts as the mean.")
    if any(model.metadata for _, model in nets_with_settings(e)):
        told.append("An image model with metadata takes a missing number as the mean, with an indicator.")
    places = [name for name in ("missing", "numbers", "words", "characteristics") if name in e.tables]
    return Answer(" ".join(told), ("data", *places), unknown(e, "how models elsewhere handled missing values"))


def split(e: Evidence) -> Answer:
    """Says how the folds were made and what is disjoint between them."""
    folds, columns = e.config.folds, e.config.data.columns
    k = len(e.data.folds)
    given = f"the column `{columns.fold}`" if columns.fold else "a file" if folds.file is not None else ""
    text = f"{plural(k, 'fold')}, {f'taken from {given}' if given else f'drawn with seed {folds.seed}'}. "
    if folds.by == "source":
        text += "Each fold holds out whole sources (hospitals, cameras). "
    elif e.groups_known:
        text += f"Each fold holds out whole {group_words(e)}: no group has rows in two folds. "
    else:
        text += (
            "The table names no patient or lesion, so each row counts as its own group: rows of one patient may be in "
            "several folds, which makes the estimate too good. "
        )
    if not given and folds.by == "group":
        text += f"They are balanced by the outcome{''.join(f' and {name}' for name in folds.stratify)}. "
    return Answer(
        f"{text}There is no separate test set with outcomes: each row is scored by models that were fitted on the "
        "other folds.",
        ("data", "folds"),
    )


def leakage(e: Evidence) -> Answer:
    """Says what was done against leaks between the folds, and what is believed."""
    told = []
    if e.counts.look_alikes is None:
        told.append("The images were not checked for duplicates in this run.")
    else:
        told.append("Images were compared, and groups that share a picture were joined in one fold.")
    if merged := e.counts.merged_groups:
        told.append(f"{count(merged)} groups were joined with others because of duplicates.")
    if shared := e.counts.shared_groups:
        told.append(f"{count(shared)} groups have rows in the training and in the test table.")
    told.append("Transforms, weights and calibration that score a fold were fitted without its rows.")
    told += [line for line in e.data.diagnostics if "shortcut" in line.lower()]
    return Answer(
        " ".join(told),
        ("data", "result", *(["findings"] if "findings" in e.tables else [])),
        unknown(e, "evidence that models elsewhere did not see the rows that they predict, as was declared at import"),
    )


def sample_size(e: Evidence) -> Answer:
    """Gives the sizes and the precision that they reached."""
    rows, positives = scored(e)
    groups = int(e.tables["folds"]["groups"].sum()) if "groups" in e.tables["folds"] else None
    of = f" of {count(groups)} groups" if groups and e.groups_known else ""
    text = (
        f"{count(rows)} {e.data.unit}s{of}, {count(positives)} of them positive, are scored. The run contains no "
        f"calculation of sample size. Precision reached: {with_interval(e.data.headline)}."
    )
    gaps = e.tables.get("gaps")
    if gaps is not None:
        few = int((gaps["verdict"] == TOO_FEW).sum())
        text += f" Of {count(len(gaps))} comparisons of subgroups, {count(few)} have too few rows to say."
    return Answer(text, ("result", "folds", "gaps"))


def analyses(e: Evidence) -> Answer:
    """Gives rows and positives of each fold."""
    folds = e.tables["folds"].to_dict("records")
    held = [f"fold {line['fold']}: {count(line['rows'])} images, {count(line['positives'])} positive" for line in folds]
    total, positive = sum(line["rows"] for line in folds), sum(line["positives"] for line in folds)
    rows, positives = scored(e)
    text = (
        f"The models that score a fold are developed on the other folds, of {count(total)} images and "
        f"{count(positive)} positives in all ({'; '.join(held)}). {count(rows)} {e.data.unit}s, {count(positives)} of "
        "them positive, are scored in the evaluation."
    )
    if e.data.studies:
        text += " Tuning studies used rows of the training folds, apart from what the report says to be of all rows."
    return Answer(text, ("data", "folds"))


def train_vs_eval(e: Evidence) -> Answer:
    """Says that development and evaluation share their rows, and what is known of test rows."""
    text = (
        "Development and evaluation use the same rows by cross-validation, so setting, eligibility, outcome and "
        "predictors are the same."
    )
    if e.config.folds.by == "source":
        text += " Each fold is another source than those it was developed on."
    places: tuple[str, ...] = ("data",)
    if e.counts.test:
        places += tuple(name for name in ("characteristics", "missing", "numbers", "words") if name in e.tables)
        text += " The test rows, which have no outcome here, are described beside the training rows."
    return Answer(text, places)


def pseudonyms(e: Evidence) -> Answer:
    """Says that ids do not stand on the pages."""
    return Answer(
        "Pages and files for readers name no patient and no image by its id unless `--show-ids` was given: single "
        "cases have codes that only the key in the experiment's folder resolves.",
        tuple(name for name in ("hard-cases", "second-look") if name in e.sections),
    )


def label_doubts(e: Evidence) -> Answer | None:
    """Points to the labels that all models contradict."""
    if "second-look" not in e.sections:
        return None
    text = "Labels that every model of level 1 contradicts are listed for a second look; no label was changed."
    return Answer(text, ("second-look",))


def bad_input(e: Evidence) -> Answer:
    """Says what becomes of unreadable images and missing columns at prediction."""
    told = []
    if e.config.data.images is not None:
        fallback = e.config.data.on_unreadable_test == "table"
        told.append(
            "A new image that cannot be read is "
            + ("predicted from the table alone, as declared, and marked." if fallback else "refused by name.")
        )
    told.append("A column that new rows lack counts as missing; `dermstack predict` says what this costs.")
    if UNREADABLE in e.tables["row-flow"]["reason"].astype(str).tolist():
        told.append("Unreadable training images are counted in the flow of rows.")
    if of_kind(e, "imported"):
        return Answer(
            "dermstack cannot predict new rows, as the blend has imported runs.",
            ("runs",),
            unknown(e, "how poor or missing input is recognised and handled where the models are used"),
        )
    return Answer(" ".join(told), ("participants",))


FACTS = {
    "outcome": Fact(outcome),
    "data_set": Fact(data_set),
    "centres": Fact(
        centres,
        "number and names of centres or devices (this run has no estimate by source: name it in `data.columns.source`)",
    ),
    "exclusions": Fact(exclusions),
    "flow": Fact(flow),
    "characteristics": Fact(characteristics),
    "preparation": Fact(preparation),
    "cropping": Fact(cropping),
    "quality": Fact(quality, "checks of the data (this run has no audit: `dermstack audit` makes one)"),
    "predictors": Fact(predictors),
    "missing": Fact(missing),
    "split": Fact(split),
    "leakage": Fact(leakage),
    "sample_size": Fact(sample_size),
    "analyses": Fact(analyses),
    "train_vs_eval": Fact(train_vs_eval),
    "pseudonyms": Fact(pseudonyms),
    "label_doubts": Fact(
        label_doubts, "doubtful labels (this run lists none: several runs of level 1 are needed to find them)"
    ),
    "bad_input": Fact(bad_input),
}
