"""Answers on the model: its parts, training, tuning, class imbalance, blend, output, specification and software."""

from __future__ import annotations

from pathlib import Path

from dermstack.report.pack.answer import (
    Answer,
    Fact,
    chosen_inside,
    listed,
    names,
    nets_with_settings,
    number,
    of_kind,
    plural,
    share,
    stackers,
    unknown,
    with_interval,
)
from dermstack.report.pack.run_evidence import Evidence, Model
from dermstack.report.report import count
from dermstack.report.review import band_sentences
from image_models.settings import is_own_backbone
from stack.blend.choice import reference_of
from stack.blend.weights import BY_REGRESSION
from stack.settings.image_models import ImageModel

_STACKERS = {
    "lightgbm": "gradient-boosted trees (LightGBM)",
    "xgboost": "gradient-boosted trees (XGBoost)",
    "catboost": "gradient-boosted trees (CatBoost)",
    "logistic": "ridge logistic regression",
    "set_transformer": "a set transformer over the images of a group",
}
_BLENDS = {
    "rank_mean": "the mean of the runs' ranks",
    "mean": "the mean of the runs' probabilities",
    "backward": "the mean rank of the runs that backward elimination leaves",
    "forward": "the mean rank of the runs that forward selection takes",
    "rank_logistic": "a logistic regression on the ranks of the runs",
    "logistic": "a logistic regression on the logits of the runs",
    "averaged_logistic": "the average of logistic regressions on the ranks and on the logits of the runs",
    "hill_climb": "weights by greedy ensemble selection",
    "optuna": "weights found by a search",
}
# settings of a network that are named where they differ from their default, which is off or without effect
_NET_DETAILS = (
    "mixup", "cutmix", "ema", "dropout", "dropout_samples", "metadata_dropout", "label_smoothing", "layer_decay",
    "clip_norm",
)  # fmt: skip
_CALIBRATIONS = {"platt": "Platt scaling", "beta": "beta calibration", "isotonic": "isotonic regression"}


def study(e: Evidence) -> Answer:
    """Names the study in one sentence: a stacked ensemble, developed and evaluated on the same rows."""
    return Answer(
        "Development of a prediction model and its internal evaluation by cross-validation on the same rows. The model "
        f"is {parts_in_words(e)}.",
        ("result", "runs"),
    )


def parts_in_words(e: Evidence) -> str:
    """Names the parts of the ensemble."""
    parts = []
    if nets := of_kind(e, "image"):
        parts.append(f"{plural(len(nets), 'convolutional or other image network')} ({_backbones(e, nets)})")
    if frozen := of_kind(e, "frozen"):
        parts.append(
            f"{plural(len(frozen), 'logistic head')} on features of a pretrained network ({_backbones(e, frozen)})"
        )
    if imported := of_kind(e, "imported"):
        parts.append(f"{plural(len(imported), 'set')} of predictions made elsewhere ({names(imported)})")
    for run in stackers(e):
        parts.append(f"{_stacker(run)} ({run.name})")
    return f"a stacked ensemble of {listed(parts)}, combined by {blend_words(e)}"


def blend_words(e: Evidence) -> str:
    """Returns the chosen blend method in words; of units with its pooling."""
    pooling, _, method = e.data.chosen.rpartition("/")
    text = _BLENDS.get(method, f"`{e.data.chosen}`")
    return f"{text}, after pooling a unit's images by {pooling}" if pooling else text


def calibration_name(e: Evidence) -> str:
    """Returns the name of the calibration map."""
    chosen = str(e.blend["calibration"]["chosen"])
    return _CALIBRATIONS.get(chosen, chosen)


def building(e: Evidence) -> Answer:
    """Describes the steps from images to the blend."""
    told = [f"The model is {parts_in_words(e)}."]
    if nets := of_kind(e, "image", "frozen", "imported"):
        told.append(f"Level 1 ({names(nets)}): one prediction for each image by the models that did not see its fold.")
    if of := stackers(e):
        told.append(
            f"Level 2 ({names(of)}): models fitted on the out-of-fold predictions of level 1, the table and statistics "
            "over the images of a group."
        )
    methods = _blend_methods(e)
    told.append(
        f"Blend: {blend_words(e)}, chosen from {listed([f'`{name}`' for name in methods])}: {_choice(methods)}. "
        f"Calibration: {calibration_name(e)}."
        if len(methods) > 1
        else f"Blend: {blend_words(e)}. Calibration: {calibration_name(e)}."
    )
    return Answer(" ".join(told), ("runs", "methods", "settings"))


def training(e: Evidence) -> Answer:
    """Lists the settings with which each model was trained."""
    told = [_net_settings(model) for _, model in nets_with_settings(e)]
    for run in stackers(e):
        settings = run.meta.get("settings", {})
        extra = [f"{key} {value}" for key, value in settings.get("params", {}).items()]
        kept = [f"{key} {settings[key]}" for key in ("bags", "repeats", "select") if settings.get(key, 1) not in (0, 1)]
        told.append(f"{run.name}: {_stacker(run)}{', ' + ', '.join([*kept, *extra]) if kept or extra else ''}.")
    if inner := chosen_inside(e):
        told.append(
            f"{names(inner)}: rounds, epochs or ridge strength chosen on an inner part of a fold's training rows."
        )
    if not told:
        told.append("No model was trained in this run.")
    places = tuple(name for name in ("training", "rounds", "settings") if _there(e, name))
    return Answer(" ".join(told), places, unknown(e, "how models elsewhere were trained"))


def initialisation(e: Evidence) -> Answer | None:
    """Says from which weights the networks started, and the seeds."""
    if not (nets := nets_with_settings(e)):
        return None
    told = []
    for _, model in nets:
        if model.pretrained is True:
            start = "weights of timm for this architecture"
        elif model.pretrained is False:
            start = "random weights"
        else:
            start = f"weights of the file {Path(model.pretrained).name}"
        told.append(f"{model.name}: {start}, {'seed' if len(model.seeds) == 1 else 'seeds'} "
                    f"{listed(map(str, model.seeds))}.")  # fmt: skip
    return Answer(" ".join(told), ("settings",))


def tuning(e: Evidence) -> Answer:
    """Says which settings were searched, and on which rows."""
    selected, told = list(e.blend["selected"]), []
    if e.data.studies:
        number_of = len(e.data.studies)
        told.append(f"{number_of} tuning {'study is' if number_of == 1 else 'studies are'} part of the run.")
    else:
        told.append("No tuning study is part of the run.")
    if selected:
        told.append(
            f"The settings of {listed(selected)} were selected on these rows, by a study or by hand, which can make "
            "the results optimistic."
        )
    else:
        told.append("No settings are declared as selected on these rows.")
    places = tuple(name for name in ("studies", "result", "settings") if _there(e, name))
    by_hand = "settings that were chosen by hand or in earlier runs on these rows, if any"
    return Answer(" ".join(told), places, (by_hand,))


def imbalance(e: Evidence) -> Answer:
    """Says which models drew or weighted classes otherwise, and what was corrected afterwards."""
    used = []
    for _, model in nets_with_settings(e):
        if model.frozen:
            continue
        how = [f"rows drawn with `balance: {model.balance}`"] if model.balance != "none" else []
        how += [f"positives weighted by {model.positive_weight:g}"] if model.positive_weight != 1 else []
        how += [f"focal loss with gamma {model.focal_gamma:g}"] if model.focal_gamma else []
        used += [f"{model.name}: {listed(how)}"] if how else []
    for run in stackers(e):
        settings = run.meta.get("settings", {})
        how = [f"{share(settings['negatives'])} of the negatives"] if settings.get("negatives", 1) != 1 else []
        how += [f"{settings['positives']:g} copies of positives"] if settings.get("positives", 1) != 1 else []
        weight = settings.get("positive_weight", 1)
        how += [f"positives weighted by {weight:g}"] if weight != 1 else []
        used += [f"{run.name}: {listed(how)}"] if how else []
    told = [f"Used: {'; '.join(used)}. Draws and weights change the prior, which is corrected in the odds afterwards; "
            "the calibrated probability is fitted on rows as they are."] if used else [
        "No model that was fitted here draws or weights the classes otherwise than they are."]  # fmt: skip
    return Answer(" ".join(told), ("settings",), unknown(e, "methods for class imbalance in models elsewhere"))


def imbalance_in_evaluation(e: Evidence) -> Answer:
    """Says that the evaluation has the rows as they are."""
    return Answer(
        "Resampling and weights, where they are used, concern training rows only. All scored rows count once, at the "
        f"share of positives that the table has ({share(float(e.data.y.mean()))}).",
        ("result", "calibration"),
    )


def _blend_methods(e: Evidence) -> list[str]:
    """Returns the methods among which the blend was chosen."""
    return [str(name) for name in e.data.methods["method"]] if len(e.data.methods) else []


def _choice(methods: list[str]) -> str:
    """Returns by which rule the method was chosen."""
    first = f"`{methods[reference_of(methods)]}`" if methods else "the first method"
    return f"{first}, or of those that gain over it beyond noise the one whose gain has the highest lower bound"


def selection(e: Evidence) -> Answer:
    """Says how epochs, rounds and the blend method were chosen."""
    told = []
    best = [model.name for _, model in nets_with_settings(e) if not model.frozen and model.select == "best"]
    last = [model.name for _, model in nets_with_settings(e) if not model.frozen and model.select == "last"]
    if best:
        told.append(f"{listed(best)}: the epoch with the highest AUC on an inner, grouped part of the training rows.")
    if last:
        told.append(f"{listed(last)}: the last epoch.")
    if inner := chosen_inside(e):
        told.append(f"{names(inner)}: rounds, epochs or ridge strength on an inner, grouped part of the training rows.")
    told.append(
        f"Blend: {_choice(_blend_methods(e))}; for each fold the choice was made on the other folds, on all rows it is "
        f"{blend_words(e)}."
    )
    return Answer(" ".join(told), ("methods", "result"))


def ensembling(e: Evidence) -> Answer:
    """Lists the weights of the runs."""
    weights = e.data.weights.set_index("run")["weight"]
    total = float(weights.sum())
    of = [f"{run} {share(float(weight) / total)}" for run, weight in weights.items() if total and weight]
    without = [str(run) for run, weight in weights.items() if not weight]
    none = f" ({listed(without)} {'has' if len(without) == 1 else 'have'} weight 0)" if without else ""
    text = (
        f"{len(e.runs)} runs are combined by {blend_words(e)}. Weights on all rows: {listed(of)}{none}. Seeds, "
        "test-time views and folds of one run are averaged as logits."
    )
    return Answer(text, ("runs", "methods"))


def predictor_handling(e: Evidence) -> Answer:
    """Says how predictors enter level 2 and the networks."""
    told = []
    if stackers(e):
        features = e.config.all_features
        told.append("Level 2: transforms are fitted on the training rows of each fold.")
        told += ["The logits of level 1 are standardised."] if features.logits else []
        if features.metadata:
            told.append("Of age, sex and site, words are indicators, each column with one for missing values.")
        if features.aggregates and e.groups_known:
            told.append("Statistics over the images of a group: mean, maximum, minimum, spread, rank and z-score.")
        kinds = {run.kind for run in stackers(e)}
        if kinds & {"lightgbm", "xgboost", "catboost"}:
            told.append("Trees take numbers as they are.")
        if "logistic" in kinds:
            told.append("The logistic regression takes all features standardised, and its logit is linear in them.")
    if nets_with_settings(e):
        told.append("Networks take pixels, normalised by fixed means and deviations.")
        if any(model.metadata for _, model in nets_with_settings(e)):
            told.append("Metadata of a network are standardised on the training rows of the fold.")
    if not told:
        told.append("No model was fitted here on predictors.")
    return Answer(" ".join(told), ("settings", "importance"), unknown(e, "how predictors entered models elsewhere"))


def overfitting(e: Evidence) -> Answer:
    """Says what limits overfitting, and how far the in-sample value lies above the estimate."""
    told = []
    if inner := chosen_inside(e):
        told.append(f"{names(inner)}: stopped early, or ridge strength chosen, on an inner part of the training rows.")
    if nets := [model for _, model in nets_with_settings(e) if not model.frozen]:
        told.append(
            f"Networks: weight decay and augmentation ({listed(sorted({n for m in nets for n in m.augment}))})."
        )
    if methods := _blend_methods(e):
        told.append(f"The blend leaves {methods[reference_of(methods)]} only for a gain beyond noise.")
    if e.data.chosen.rpartition("/")[2] in BY_REGRESSION:
        told.append("Its weights are not negative, and shrunk towards equal ones by a penalty that these rows give.")
    told.append(
        f"Tuned in-sample, the blend has {number(float(e.blend['tuned_in_sample']))}, its estimate is "
        f"{with_interval(e.data.headline)}."
    )
    return Answer(" ".join(told), ("methods", "result"))


def output(e: Evidence) -> Answer:
    """Describes the output and any rule of decision."""
    told = [
        f"For each {e.data.unit} a score that ranks, and p_calibrated, the probability of a positive "
        f"({calibration_name(e)})."
    ]
    if e.data.review is not None:
        told += ["A review band decides:", *band_sentences(e.data.review.band, e.data.unit)]
        return Answer(" ".join(told), ("calibration", "review"))
    told.append("No threshold is part of the model: the report shows what follows from each.")
    return Answer(" ".join(told), ("calibration", "explorer", "decision"))


def interaction(e: Evidence) -> Answer | None:
    """Says which images go to a person."""
    if e.data.review is None:
        return None
    of = e.data.review.decisions.review
    return Answer(
        f"{share(of.value)} of {e.data.unit}s like these (95 % interval {share(of.low)} to {share(of.high)}) go to a "
        "person; the ensemble decides the others.",
        ("review", "review-decisions"),
    )


def predictions(e: Evidence) -> Answer:
    """Says how predictions for the evaluation were calculated."""
    return Answer(
        "Each row is predicted by models that were fitted without its fold (out-of-fold), combined with weights and "
        "calibrated with a map that were fitted without its fold; computed by dermstack "
        f"{e.data.versions.get('dermstack', '')}.".replace(" .", "."),
        ("result", "settings"),
    )


def specification(e: Evidence) -> Answer:
    """Says in which form the fitted model exists, or why it cannot be given away as a bundle."""
    told = [f"Fingerprint of the blend: {e.blend['fingerprint']}; all settings are on the page."]
    if reasons := unbundled(e):
        told.append(f"dermstack cannot bundle this model for others: {'; '.join(reasons)}.")
    else:
        told.append(
            "`dermstack bundle` writes all that predicts as one hashed file, which `dermstack predict` applies to new "
            "images."
        )
        if imported := of_kind(e, "imported"):
            told.append(f"The models behind {names(imported)} are not in it: their predictions must be given.")
    return Answer(" ".join(told), ("settings", "runs"))


def unbundled(e: Evidence) -> list[str]:
    """Returns the reasons why an experiment cannot be bundled, as far as its settings tell."""
    reasons = []
    if own := [model.name for _, model in nets_with_settings(e) if is_own_backbone(model.backbone)]:
        reasons.append(f"{listed(own)} {'has' if len(own) == 1 else 'have'} a network of the author's own code")
    if other := [run for run in stackers(e) if run.kind == "sklearn"]:
        reasons.append(f"{names(other)} is a classifier of scikit-learn")
    if e.config.all_features.python is not None:
        reasons.append("features are computed by a function of the author's own")
    return reasons


def software(e: Evidence) -> Answer:
    """Lists the versions of the libraries."""
    of = ", ".join(f"{name} {text}" for name, text in e.data.versions.items())
    return Answer(
        f"Installed when the report was made: {of}.", ("settings",), unknown(e, "software of models elsewhere")
    )


def reproduction(e: Evidence) -> Answer:
    """Says what a repetition needs."""
    prints = e.data.fingerprints.get("training rows, targets and folds")
    rows = f" (fingerprint of rows, targets and folds: {prints})" if prints else ""
    return Answer(
        f"All settings and seeds are on the page{rows}. The same config, data, versions and number of threads give the "
        "same bytes on a CPU.",
        ("settings",),
    )


def updating(e: Evidence) -> Answer:
    """Says that no model was changed after its evaluation."""
    return Answer(
        "The model was not updated after its evaluation in this run. Calibration is a part of it and was fitted for "
        f"each fold without the fold ({calibration_name(e)} on all rows).",
        ("calibration",),
    )


def _net_settings(model: ImageModel) -> str:
    if model.frozen:
        return f"{model.name}: {model.backbone}, {model.size} px, frozen, with a logistic head."
    parts = [
        model.backbone, f"{model.size} px", plural(model.epochs, "epoch"), f"batches of {count(model.batch_size)}",
        f"AdamW with a learning rate of {model.lr:g} and weight decay {model.weight_decay:g}",
        f"a warm-up over {share(model.warmup)} of the steps and a cosine decay",
        f"focal loss with gamma {model.focal_gamma:g}" if model.focal_gamma else "cross-entropy as loss",
        f"augmentation {listed(model.augment)}",
    ]  # fmt: skip
    off = {name: type(model).model_fields[name].default for name in _NET_DETAILS}
    changed = [name for name in _NET_DETAILS if getattr(model, name) != off[name]]
    parts += [f"{name.replace('_', ' ')} {getattr(model, name):g}" for name in changed]
    parts += [f"test-time augmentation {model.tta}"] if model.tta != "none" else []
    parts += ["learning the diagnosis"] if model.target == "diagnosis" else []
    parts += [f"pseudo-labels of {listed(model.pseudo_labels.teachers)}"] if model.pseudo_labels else []
    return f"{model.name}: {', '.join(parts)}."


def _backbones(e: Evidence, runs: list[Model]) -> str:
    known = {run.name: model.backbone for run, model in nets_with_settings(e)}
    return listed(dict.fromkeys(known.get(run.name, run.name) for run in runs))


def _stacker(run: Model) -> str:
    if run.kind == "sklearn":
        return f"a classifier of scikit-learn (`{run.meta.get('settings', {}).get('estimator', '')}`)"
    return _STACKERS.get(run.kind, run.kind)


def _there(e: Evidence, place: str) -> bool:
    return place in e.sections or place in e.tables


FACTS = {
    "study": Fact(study),
    "building": Fact(building),
    "training": Fact(training),
    "initialisation": Fact(initialisation, "initial values of the networks (no network was trained in this run)"),
    "tuning": Fact(tuning),
    "imbalance": Fact(imbalance),
    "imbalance_in_evaluation": Fact(imbalance_in_evaluation),
    "selection": Fact(selection),
    "ensembling": Fact(ensembling),
    "predictor_handling": Fact(predictor_handling),
    "overfitting": Fact(overfitting),
    "output": Fact(output),
    "interaction": Fact(
        interaction, "what users do with input and output (this run has no review band: `review` in the config)"
    ),
    "predictions": Fact(predictions),
    "specification": Fact(specification),
    "software": Fact(software),
    "reproduction": Fact(reproduction),
    "updating": Fact(updating),
}
