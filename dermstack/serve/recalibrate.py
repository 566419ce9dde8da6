"""`dermstack recalibrate`: moves a bundle's risks to other patients, by few labels or by a prevalence alone.

The new bundle has the networks, scores and thresholds (as ranks) of its parent; only what turns a score into a risk is
another. Nothing is evaluated on the rows that it was fitted to: in each of up to ten parts of the groups, the whole
procedure, the choice of an update included, is repeated without that part.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dermstack.errors import BundleError, ConfigError, DataError
from dermstack.listing import counted
from dermstack.serve.bundle import Bundle, write_manifest, zip_bundle
from dermstack.serve.ensemble import read_calibrator
from dermstack.serve.evaluate import rows_and_targets, targets_of
from dermstack.serve.expectations import PROMISE_FILE, lacking_columns, read_promise, write_promise
from dermstack.serve.local_map import PREVALENCE, labels_fingerprint, local_note
from dermstack.serve.new_rows import NewRows, table_notes
from dermstack.serve.predict import PredictOptions, predict_with_dropped
from dermstack.serve.units import rows_to_predict
from dermstack.serve.write_bundle import staging_folder
from stack.blend.calibration import Platt, Rescaled, calibrator_state, rescaled
from stack.console import Out
from stack.metrics.calibration import recalibration
from stack.metrics.closed_test import NONE, ClosedTest, closed_test
from stack.metrics.decisions import net_benefit_change, round_thresholds
from stack.metrics.expected_positives import calibration_noise, noise_of
from stack.metrics.intervals import Interval, interval, paired_difference
from stack.metrics.labels_needed import LabelsNeeded, labels_needed
from stack.metrics.measures import jsonable
from stack.metrics.prior_shift import PrevalenceShift, estimate_prevalence, given_prevalence
from stack.metrics.scores import Bools, Floats
from stack.outputs import check_output_folder
from stack.store import write_json

RECORD_FILE = "recalibration.json"
CARD = "model_card.md"
MAX_PARTS = 10  # of the groups, for the estimate of the recalibrated risks
_AUTO = "auto"


@dataclass(frozen=True)
class Performance:
    """Risks before and after recalibration on the labelled rows, after without the rows that it was fitted to."""

    parts: int  # of the groups, each recalibrated without itself
    chosen: dict[str, int]  # in how many parts each update was chosen
    log_loss: tuple[Interval, Interval]
    log_loss_change: Interval  # after minus before; below 0 is better
    level: tuple[Interval, Interval]  # constant that would have to be added to every logit; 0 is right
    slope: tuple[Interval, Interval]  # 1 is right
    net_benefit: tuple[dict[str, Any], ...]  # the columns of `net_benefit_change`


@dataclass(frozen=True)
class Recalibrated:
    """Result of a recalibration; `jsonable` converts it for JSON."""

    entry: dict[str, Any] | None  # of the new bundle's manifest; None where nothing is changed
    test: ClosedTest | None = None
    performance: Performance | None = None
    shift: PrevalenceShift | None = None
    needed: tuple[LabelsNeeded, ...] = ()


def check_parent(bundle: Bundle, target: Path | None) -> None:
    """Raises BundleError for a bundle that is itself recalibrated, and where ``target`` exists already."""
    if entry := bundle.manifest.get("recalibration"):
        raise BundleError(
            f"{bundle.place} is itself recalibrated: give its parent, bundle {entry['parent']}, with all labels at once"
        )
    if target is None:
        return
    if target.exists() or target.is_symlink():
        raise BundleError(f"{target} exists already: choose another name for the recalibrated bundle")
    check_output_folder(target, "--out", closed=[bundle.folder])


def read_prevalence(text: str) -> float | None:
    """Returns the number of ``--prevalence``, or None for "auto". Raises ConfigError for other words and numbers."""
    if text == _AUTO:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise ConfigError(f"--prevalence {text}: give auto, or a share above 0 and below 1, such as 0.02 for 2 %")
    return value


def recalibrate_to_bundle(
    bundle: Bundle,
    target: Path,
    out: Out,
    *,
    rows: NewRows | None,
    labels: pd.Series | None = None,
    prevalence: float | None = None,
    options: PredictOptions,
) -> Recalibrated:
    """Recalibrates by ``labels`` or, without them, by a prevalence, prints what was found and writes ``target``.

    Writes nothing where the closed test keeps the risks as they are, and where a prevalence that was estimated is not
    shown to differ from that of training. An interrupted call resumes in ``<target>.parts``.
    """
    check_parent(bundle, target)
    work = target.with_name(f"{target.name}.parts")
    if rows is not None:
        _warn_of_table(bundle, rows, out)
    if labels is not None and rows is not None:
        found = recalibrate_by_labels(bundle, rows, labels, work, out, options)
    else:
        found = recalibrate_by_prevalence(bundle, prevalence, rows, work, out, options)
    show_recalibrated(found, out, bundle.unit)
    if found.entry is None:
        out.say(
            f"no new bundle: these {bundle.unit}s do not show that the risks are wrong for them; use the bundle as it "
            f"is, or label more {bundle.unit}s"
        )
    else:
        made = write_recalibrated(bundle, found, target)
        out.say(f"{target}: id {made.fingerprint}, parent {bundle.fingerprint}; {local_note(made)}")
        if bundle.manifest.get("review"):
            out.warn(
                "the new bundle has no review band: the band of its parent is guaranteed for patients of training, not "
                "for those that the risks are recalibrated for"
            )
        out.say(f"next: {made.predict_command(target)}")
    shutil.rmtree(work, ignore_errors=True)
    return found


def show_numbers_alone(bundle: Bundle, rows: NewRows, out: Out, options: PredictOptions) -> list[LabelsNeeded]:
    """Predicts ``rows`` without labels, and prints how many labels a recalibration needs. Leaves no files."""
    _warn_of_table(bundle, rows, out)
    with TemporaryDirectory(prefix="dermstack-recalibrate-") as work:
        made, _ = _predicted(bundle, rows, Path(work), out, options)
    needed = labels_needed(made["p_calibrated"])
    show_needed(needed, out, bundle.unit)
    out.say(
        f"several {bundle.unit}s of a patient count for less than as many patients: label {bundle.unit}s of many "
        "patients"
    )
    return needed


def recalibrate_by_labels(
    bundle: Bundle, rows: NewRows, labels: pd.Series, work: Path, out: Out, options: PredictOptions
) -> Recalibrated:
    """Predicts ``rows`` and chooses the update of their risks by ``labels``, 0 or 1 by id.

    Rows that are predicted without their image are left out. Raises DataError for labels that don't match the rows, for
    a class in fewer than two groups, and for labels that the risks rank in reverse.
    """
    every, y = rows_and_targets(bundle, rows, labels, "recalibration")
    made, frame = _predicted(bundle, rows, work, out, options)
    targets = y[every["id"].isin(frame["id"]).to_numpy()]
    p, group = made["p_calibrated"].to_numpy(np.float64), frame["group"].to_numpy(object)
    test = closed_test(targets, p, group)
    if test.reverses:
        raise DataError(
            f"higher risks have fewer positives among these {len(p):,} {bundle.unit}s (slope {test.slope:.2f}): check "
            f"whether the labels are inverted or belong to other {bundle.unit}s; a recalibration would turn the "
            "ranking round"
        )
    held_out, chosen = cross_fitted(targets, p, group)
    performance = _performance(targets, p, held_out, group, chosen)
    moved = Rescaled(_IDENTITY, test.slope, test.intercept).line(p)
    needed = tuple(labels_needed(moved, design_effect=test.design_effect))
    if test.chosen == NONE:
        return Recalibrated(None, test, performance, needed=needed)
    noise = calibration_noise(targets, moved, group)
    entry = {
        "parent": bundle.fingerprint, "kind": test.chosen, "slope": test.slope, "intercept": test.intercept,
        "se": noise.se, "effect": noise.effect, "rows": len(p), "positives": int(targets.sum()),
        "groups": len(pd.unique(group)), "labels": labels_fingerprint(targets_of(rows, labels)),
    }  # fmt: skip
    return Recalibrated(entry, test, performance, needed=needed)


def recalibrate_by_prevalence(
    bundle: Bundle, prevalence: float | None, rows: NewRows | None, work: Path, out: Out, options: PredictOptions
) -> Recalibrated:
    """Moves the odds of all risks to ``prevalence``, or to that estimated on ``rows`` without labels where it is None.

    Where it is given, ``rows`` serve to compare it with the estimate. Raises DataError as `estimate_prevalence` does.
    """
    training = bundle.manifest["training"]
    reference = training["positives"] / training["rows"]
    if not 0 < reference < 1:
        raise BundleError(f"{bundle.place}: its manifest names no training rows of both classes: bundle again")
    estimate, n_rows, groups = None, 0, 0
    if rows is not None:
        made, frame = _predicted(bundle, rows, work, out, options)
        n_rows, groups = len(made), int(frame["group"].nunique())
        estimate = estimate_prevalence(made["p_calibrated"], reference, frame["group"].to_numpy(object))
    if prevalence is None:
        assert estimate is not None, "the command asks for rows"
        shift = estimate
    else:
        shift = given_prevalence(prevalence, reference)
        if estimate and not estimate.interval.low <= prevalence <= estimate.interval.high:
            out.warn(
                f"the risks of these {n_rows:,} {bundle.unit}s fit a prevalence of {estimate.interval}, not "
                f"{prevalence:.3g}: {bundle.unit}s of a class may not look as in training here; a recalibration "
                "by labels needs no such assumption"
            )
    if prevalence is None and not shift.is_shown:
        return Recalibrated(None, shift=shift)
    noise = noise_of(read_promise(bundle).measures)
    entry = {
        "parent": bundle.fingerprint, "kind": PREVALENCE, "slope": 1.0, "intercept": shift.intercept,
        "se": float(np.hypot(noise.se, shift.se_logit)), "effect": noise.effect, "rows": n_rows, "positives": 0,
        "groups": groups, "prevalence": shift.interval.value,
    }  # fmt: skip
    return Recalibrated(entry, shift=shift)


_IDENTITY = Platt(1.0, 0.0)


def cross_fitted(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> tuple[Floats, list[str]]:
    """Returns risks (n,), each recalibrated without the rows of its part of the groups, and each part's choice.

    A part whose other rows have too few of a class keeps the risks as they are, as the command would refuse them.
    """
    targets, risks, groups = np.asarray(y), np.asarray(p, np.float64), np.asarray(group, dtype=object)
    part, made, chosen = parts_of_groups(targets == 1, groups), risks.copy(), []
    for number in range(int(part.max()) + 1):
        held = part == number
        try:
            test = closed_test(targets[~held], risks[~held], groups[~held])
        except DataError:
            chosen.append(NONE)
            continue
        usable = not test.reverses
        chosen.append(test.chosen if usable else NONE)
        if usable and test.chosen != NONE:
            made[held] = Rescaled(_IDENTITY, test.slope, test.intercept).line(risks[held])
    return made, chosen


def parts_of_groups(positive: Bools, group: ArrayLike) -> np.ndarray:
    """Deals groups to parts (n,), those with a positive row first, so that each part has as many."""
    codes, names = pd.factorize(np.asarray(group, dtype=object))
    has_positive = np.bincount(codes, positive, len(names)) > 0
    has_negative = np.bincount(codes, ~positive, len(names)) > 0
    parts = min(MAX_PARTS, int(has_positive.sum()), int(has_negative.sum()))
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(~has_positive[order], kind="stable")]
    of_group = np.empty(len(names), np.intp)
    of_group[order] = np.arange(len(names)) % parts
    return of_group[codes]


def _performance(y: np.ndarray, before: Floats, after: Floats, group: np.ndarray, chosen: list[str]) -> Performance:
    lines = [recalibration(y, p, group) for p in (before, after)]
    losses = [interval("logloss", y, p, group) for p in (before, after)]  # negated
    change = paired_difference("logloss", y, before, after, group)  # of negated losses: after minus before
    benefit = net_benefit_change(y, before, after, group, thresholds=round_thresholds(y))
    return Performance(
        len(chosen), {kind: chosen.count(kind) for kind in dict.fromkeys(chosen)},
        (_negated(losses[0]), _negated(losses[1])), change,
        (lines[0].in_the_large, lines[1].in_the_large), (lines[0].slope, lines[1].slope),
        tuple({str(name): value for name, value in row.items()} for row in benefit.to_dict("records")),
    )  # fmt: skip


def _negated(of: Interval) -> Interval:
    return Interval(-of.value, -of.high, -of.low, of.se)


def _warn_of_table(bundle: Bundle, rows: NewRows, out: Out) -> None:
    """Warns of what the models do not know of the rows, as the risks of images with it may be wrong in another way."""
    for note in table_notes(bundle, rows):
        out.warn(note)
    if unknown := lacking_columns(bundle, rows.frame, rows.missing)[0]:
        out.warn(
            f"no {' and no '.join(unknown)}: what is found here holds only for {bundle.unit}s that lack this, as these "
            "do"
        )


def _predicted(
    bundle: Bundle, rows: NewRows, work: Path, out: Out, options: PredictOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns predictions of the rows (images, or units) that have a readable image, and these rows, in one order."""
    made, dropped = predict_with_dropped(bundle, rows, work, out, options)
    unread = len(dropped)
    if "basis" in made:
        made, of_table = made[made["basis"] == "images"].reset_index(drop=True), made["basis"] != "images"
        unread += int(of_table.sum())
    every = rows_to_predict(rows)
    frame = every[every["id"].isin(made["id"])].reset_index(drop=True)
    if unread:
        out.warn(f"{counted(unread, 'unreadable images', 'are')} left out of the recalibration")
    assert made["id"].tolist() == frame["id"].tolist()
    return made, frame


def write_recalibrated(bundle: Bundle, found: Recalibrated, target: Path) -> Bundle:
    """Writes ``target``, a folder or .zip: the bundle with another map to risks, complete or not at all.

    Thresholds of the training estimate move with the risks, so that they call the same images positive as before.
    Raises BundleError if ``target`` exists.
    """
    entry = found.entry
    assert entry is not None, "nothing is written where nothing is changed"
    check_parent(bundle, target)
    single = read_calibrator(bundle)
    moved = rescaled(single, entry["slope"], entry["intercept"])
    local = Rescaled(moved.of, entry["slope"], entry["intercept"])
    with staging_folder(target) as staging:
        folder = staging / "bundle"
        for name in bundle.manifest["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / name, folder / name)
        kept = write_manifest(folder, _content(bundle)).manifest["files"]
        if changed := [name for name, file in kept.items() if file != bundle.manifest["files"][name]]:
            raise BundleError(f"{bundle.place}: {changed[0]} changed while it was copied: run the command again")
        write_json(folder / "blend" / "calibration.json", calibrator_state(moved))
        if PROMISE_FILE in bundle:
            promise = read_promise(bundle)
            points = tuple(replace(of, threshold=float(local.line(of.threshold))) for of in promise.points)
            write_promise(replace(promise, points=points), folder)
        record = {"entry": entry, **{name: value for name, value in asdict(found).items() if name != "entry"}}
        (folder / RECORD_FILE).write_text(json.dumps(jsonable(record), indent=1), encoding="utf-8")
        made = write_manifest(folder, _content(bundle) | {"recalibration": entry})
        if CARD in bundle:
            text = (folder / CARD).read_bytes().decode("utf-8", "replace").rstrip()  # the parent may be anyone's
            note = (
                f"{text}\n\n## Recalibrated\n\nThis bundle's {local_note(made)}. The numbers above are the parent's.\n"
            )
            (folder / CARD).write_text(note, encoding="utf-8")
            made = write_manifest(folder, _content(bundle) | {"recalibration": entry})
        finished = folder
        if target.suffix == ".zip":
            finished = staging / target.name
            zip_bundle(made, finished)
        if target.exists():
            raise BundleError(f"{target} exists already: choose another name for the recalibrated bundle")
        finished.replace(target)
    return Bundle(target, made.manifest)


def _content(bundle: Bundle) -> dict[str, Any]:
    """Returns the manifest without what depends on the files, and without the review band.

    The band's guarantee is about patients of training; its predictive values fail at another prevalence.
    """
    return {key: value for key, value in bundle.manifest.items() if key not in ("format", "files", "review")}


def show_needed(needed: tuple[LabelsNeeded, ...] | list[LabelsNeeded], out: Out, unit: str) -> None:
    """Prints how many labels of images, units or rows, as ``unit`` says, are needed for what."""
    table = pd.DataFrame([[of.purpose, of.images, of.positives] for of in needed])
    out.table(
        table.set_axis(["purpose", f"labelled {unit}s", "of them positive"], axis=1),
        f"Labels needed, if {unit}s are like these and their risks about right",
    )


def show_recalibrated(found: Recalibrated, out: Out, unit: str) -> None:
    """Prints the test, the update and what it changes; ``unit`` is what a prediction is of: an image, unit or row."""
    if found.shift is not None:
        of = found.shift
        how = "given" if of.se_logit == 0 else "estimated without labels"
        out.say(f"prevalence {of.interval} ({how}); the risks were made for {of.reference:.3f}")
        out.say(
            f"assumption: {unit}s of each class look as in training, only their shares differ; no label checks this"
        )
    if (test := found.test) is not None:
        out.say(
            f"closed test: level and slope differ from those of the bundle with p = {test.p_any:.2g}"
            + (f", the slope beside the level with p = {test.p_slope:.2g}" if test.p_slope == test.p_slope else "")
            + f"; chosen: {test.chosen} (design effect of the groups {test.design_effect:.1f})"
        )
        out.say(f"level {test.level_found} to add to every logit (0: right); slope {test.slope_found} (1: right)")
    if (of_rows := found.performance) is not None:
        names = ["log loss", "level (0: right)", "slope (1: right)"]
        pairs = [of_rows.log_loss, of_rows.level, of_rows.slope]
        out.table(
            pd.DataFrame([[name, str(old), str(new)] for name, (old, new) in zip(names, pairs, strict=True)]).set_axis(
                ["", "before", "after"], axis=1
            ),
            f"On these {unit}s, after: recalibrated without their part of the groups ({of_rows.parts} parts; chosen "
            f"{', '.join(f'{kind} in {n}' for kind, n in of_rows.chosen.items())}); log loss changes by "
            f"{of_rows.log_loss_change.value:+.4f} [{of_rows.log_loss_change.low:+.4f}, "
            f"{of_rows.log_loss_change.high:+.4f}]",
        )
        if of_rows.net_benefit:
            benefit = pd.DataFrame(of_rows.net_benefit)
            scaled = benefit.assign(**{str(name): 1000 * benefit[name] for name in benefit if name != "threshold"})
            out.table(scaled, f"Net benefit per 1,000 {unit}s of acting from a risk on, before and after, likewise")
    if found.needed:
        show_needed(found.needed, out, unit)
