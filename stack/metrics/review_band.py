"""The review band: risks that the ensemble decides with a guarantee, risks that go to a person, and how this works out.

The unit of every guarantee and interval is the group (a patient). A person is assumed to be right about each image that
goes to them, so that a reviewed positive counts as found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from stack.metrics.intervals import Z95, Interval, proportion
from stack.metrics.risk_control import UPPER_AIMS, Guarantee, guaranteed_threshold
from stack.metrics.scores import checked
from stack.metrics.subgroups import MIN_GROUPS, Subgroup

NEGATIVE, REVIEW, POSITIVE = "negative", "review", "positive"
HELD, FAILED, UNDECIDED, TOO_FEW = "held", "failed", "cannot be told", "too few to say"
Words = NDArray[np.object_]


@dataclass(frozen=True)
class Band:
    """Thresholds of the calibrated p and their guarantees; risks from ``below`` up to ``above`` go to a person."""

    low: Guarantee
    high: Guarantee | None  # None where no image is to be decided as positive
    confidence: float  # in at least this share of samples of patients, all guarantees hold
    below: float  # p < below is decided as negative; 0: none is
    above: float | None  # p >= above is decided as positive; None: none is

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        """The guarantees, the low end's first."""
        return (self.low,) if self.high is None else (self.low, self.high)


def choose_band(
    y: ArrayLike,
    p: ArrayLike,
    group: ArrayLike,
    low: tuple[str, float],
    high: tuple[str, float] | None = None,
    *,
    confidence: float = 0.9,
    exact: bool = True,
) -> Band:
    """Chooses the thresholds of calibrated, held-out `p` (n,) for targets `y` (n,) by `guaranteed_threshold`.

    ``low`` is ("sensitivity" or "npv", level), ``high`` ("specificity" or "ppv", level). With both, each end gets half
    of 1 - ``confidence``. Where the two ends would overlap, no risk goes to a person: one threshold between them keeps
    both guarantees.
    """
    each = 1 - (1 - confidence) / (1 if high is None else 2)
    below = guaranteed_threshold(y, p, group, *low, each, exact=exact)
    above = None if high is None else guaranteed_threshold(y, p, group, *high, each, exact=exact)
    cut_low, cut_high = below.threshold or 0.0, None if above is None else above.threshold
    if cut_high is not None and cut_high < cut_low:
        # A predictive value was shown only from its first threshold on.
        least = max(cut_high, 1 - below.level if below.aim == "npv" else 0.0)
        most = min(cut_low, above.level if above is not None and above.aim == "ppv" else 1.0)
        cut_low = cut_high = float(np.clip((least + most) / 2, cut_high, cut_low))
    return Band(below, above, confidence, cut_low, cut_high)


def decide(p: ArrayLike, band: Band, *, certain: ArrayLike | None = None) -> Words:
    """Returns "negative", "review" or "positive" for each calibrated `p` (n,).

    Rows that are not ``certain`` (n,) go to a person: the guarantee is not about them.
    """
    risk = np.asarray(p, np.float64)
    made = np.full(risk.shape, REVIEW, dtype=object)
    made[risk < band.below] = NEGATIVE
    if band.above is not None:
        made[risk >= band.above] = POSITIVE
    if certain is not None:
        made[~np.asarray(certain, bool)] = REVIEW
    return made


def cross_fitted_decisions(
    y: ArrayLike,
    p: ArrayLike,
    group: ArrayLike,
    fold: ArrayLike,
    low: tuple[str, float],
    high: tuple[str, float] | None = None,
    *,
    confidence: float = 0.9,
    exact: bool = True,
) -> tuple[Words, int]:
    """Returns the decision of each row (n,) by a band that was chosen on the other folds, and how many had no band.

    These are fewer rows, so that these bands decide a little less than that of all rows.
    """
    y, p, group, fold = (np.asarray(values) for values in (y, p, group, fold))
    made, without = np.full(len(y), REVIEW, dtype=object), 0
    for k in np.unique(fold):
        others = fold != k
        band = choose_band(y[others], p[others], group[others], low, high, confidence=confidence, exact=exact)
        without += all(of.threshold is None for of in band.guarantees)
        made[~others] = decide(p[~others], band)
    return made, without


@dataclass(frozen=True)
class Kept:
    """How a guarantee worked out on rows with known targets."""

    aim: str
    level: float
    value: Interval  # the aim on these rows, with its 95 % interval over groups
    rows: int  # rows that the aim is a share of
    groups: int
    errors: int
    verdict: str  # HELD, FAILED, UNDECIDED, or TOO_FEW groups for an interval


@dataclass(frozen=True)
class Decisions:
    """What became of rows with known targets, with 95 % intervals over groups."""

    rows: int
    groups: int
    positives: int
    negative: Interval  # share of all rows that was decided as negative
    review: Interval
    positive: Interval
    missed: int  # positives that were decided as negative
    false_alarms: int  # negatives that were decided as positive
    kept: tuple[Kept, ...]

    def per_thousand(self, count: float) -> float:
        """Returns a number of rows as a number among 1,000."""
        return 1000 * count / self.rows


def measure_decisions(
    y: ArrayLike, decision: Words, group: ArrayLike, guarantees: Sequence[Guarantee], *, z: float = Z95
) -> Decisions:
    """Counts decisions (n,) against targets `y` (n,), and compares each guarantee's aim with what it promises.

    It held where the interval over groups lies above the level, and failed where it lies below; ``z`` widens the
    interval that the verdict comes from, for several verdicts together.
    """
    positive, _ = checked(y, np.zeros(len(decision)))
    groups = np.asarray(group, dtype=object)
    shares = {name: proportion(decision == name, groups) for name in (NEGATIVE, REVIEW, POSITIVE)}
    return Decisions(
        rows=len(positive),
        groups=len(set(groups.tolist())),
        positives=int(positive.sum()),
        negative=shares[NEGATIVE],
        review=shares[REVIEW],
        positive=shares[POSITIVE],
        missed=int((positive & (decision == NEGATIVE)).sum()),
        false_alarms=int((~positive & (decision == POSITIVE)).sum()),
        kept=tuple(_kept(positive, decision, groups, of, z) for of in guarantees),
    )


def _kept(positive: NDArray[np.bool_], decision: Words, group: Words, of: Guarantee, z: float) -> Kept:
    decided = decision == (POSITIVE if of.aim in UPPER_AIMS else NEGATIVE)
    class_ = ~positive if of.aim in UPPER_AIMS else positive
    counted = decided if of.aim in ("npv", "ppv") else class_
    right = ~(class_ & decided)
    value = proportion(right[counted], group[counted])
    groups, wide = len(set(group[counted].tolist())), proportion(right[counted], group[counted], z=z)
    verdict = UNDECIDED
    if groups < MIN_GROUPS:
        verdict = TOO_FEW
    elif wide.low >= of.level:
        verdict = HELD
    elif wide.high < of.level:
        verdict = FAILED
    return Kept(of.aim, of.level, value, int(counted.sum()), groups, int((~right[counted]).sum()), verdict)


@dataclass(frozen=True)
class SubgroupDecisions:
    """Decisions in one subgroup; its verdicts allow for the number of subgroups."""

    by: str
    subgroup: str
    found: Decisions


def decisions_by_subgroup(
    y: ArrayLike, decision: Words, group: ArrayLike, guarantees: Sequence[Guarantee], parts: Sequence[Subgroup]
) -> tuple[SubgroupDecisions, ...]:
    """Returns the decisions in each subgroup; all verdicts together are wrong in at most 5 % of data sets."""
    y, group = np.asarray(y), np.asarray(group, dtype=object)
    z = float(-ndtri(0.025 / max(len(parts) * len(guarantees), 1)))
    return tuple(
        SubgroupDecisions(
            part.by, part.name, measure_decisions(y[part.rows], decision[part.rows], group[part.rows], guarantees, z=z)
        )
        for part in parts
        if part.rows.any()
    )


def band_from_record(record: Mapping[str, Any]) -> Band:
    """Returns the band that `stack.metrics.measures.jsonable` stored.

    Raises KeyError for a key that is missing; others are ignored.
    """
    names = [field.name for field in fields(Guarantee)]
    ends = [record["low"], record["high"]]
    low, high = (None if of is None else Guarantee(**{name: of[name] for name in names}) for of in ends)
    assert low is not None, "a band has a low end"
    return Band(low, high, record["confidence"], record["below"], record["above"])


AIM_WORDS = {
    "sensitivity": "sensitivity",
    "npv": "negative predictive value",
    "specificity": "specificity",
    "ppv": "positive predictive value",
}
_END_WORDS = {"sensitivity": NEGATIVE, "npv": NEGATIVE, "specificity": POSITIVE, "ppv": POSITIVE}


def percent_text(share: float) -> str:
    """Formats a level or a threshold in percent with the digits that it has: 0.95 → 95 %, 0.0123 → 1.23 %."""
    return f"{100 * share:.10g}\N{NO-BREAK SPACE}%"


def guarantee_text(of: Guarantee, cut: float | None, where: Literal["rule", "promise"], unit: str = "image") -> str:
    """Returns in words what is decided at the threshold ``cut`` ("rule"), or what is promised about it ("promise").

    A risk is that of a ``unit``. Where no threshold has the guarantee, both say why.
    """
    name, aim = _END_WORDS[of.aim], f"{AIM_WORDS[of.aim]} of at least {percent_text(of.level)}"
    if of.threshold is None or cut is None:
        return f"no {unit} is decided as {name}, because {_why_none(of, aim, unit)}"
    if where == "rule":
        side = "below" if of.aim not in UPPER_AIMS else "of at least"
        return f"{unit}s with a calibrated risk {side} {percent_text(cut)} are decided as {name}"
    wrong, most = percent_text(1 - of.level), "at most"
    class_ = "positive" if name == NEGATIVE else "negative"
    if of.aim in ("sensitivity", "specificity"):
        meaning = f"{most} {wrong} of all {class_} {unit}s are among them"
    else:
        meaning = f"{most} {wrong} of them are {class_}"
    kind = " (approximately)" if of.test == "approximate" else ""
    return f"{meaning}: a {aim}, with confidence {percent_text(of.confidence)}{kind} over patients"


def _why_none(of: Guarantee, aim: str, unit: str) -> str:
    """Returns why no threshold has a guarantee, and what would be needed."""
    class_ = "positive" if _END_WORDS[of.aim] == NEGATIVE else "negative"
    shown = f"with confidence {percent_text(of.confidence)}"
    if of.aim in ("sensitivity", "specificity"):
        return (
            f"{of.groups:,} patients with a {class_} {unit} are too few to show a {aim} {shown}: at least "
            f"{of.needed or of.groups + 1:,} are needed, even if none of their {unit}s is decided wrongly" + _advice(of)
        )
    edge = 1 - of.level if of.aim == "npv" else of.level
    side = "below" if of.aim == "npv" else "of at least"
    if not of.rows:
        return f"no {unit} has a calibrated risk {side} {percent_text(edge)}, from where a {aim} is tested"
    found = f"of the {of.rows:,} {unit}s of {of.groups:,} patients with a calibrated risk {side} {percent_text(edge)}, "
    found += f"{of.errors:,} {'is' if of.errors == 1 else 'are'} {class_}"
    if of.needed is not None:
        return f"{found}: to show a {aim} {shown}, at least {of.needed:,} such patients are needed{_advice(of)}"
    return f"{found}: too many to show a {aim} {shown}{_advice(of)}"


def _advice(of: Guarantee) -> str:
    if of.test != "betting":
        return ""
    return f" (a patient has up to {of.most:,} of them; `review.test: approximate` needs fewer patients)"


@dataclass(frozen=True)
class ReviewCheck:
    """The decisions of a bundle on new rows with known targets."""

    band: Band
    found: Decisions
    subgroups: tuple[SubgroupDecisions, ...]
    expected_review: float  # share of training rows that went to a person
    lacking: tuple[str, ...]  # columns that the band was chosen with, and that no row has here

    def sentences(self, unit: str = "image") -> list[str]:
        """Says of each guarantee, in words, whether it held on these rows, of which each is a ``unit``."""
        if self.lacking:
            return [
                f"No {unit} is decided, as these lack {' and '.join(self.lacking)}, which the band was chosen with: "
                "nothing can be said about its promise."
            ]
        return [
            kept_text(kept, is_decided=of.threshold is not None, unit=unit)
            for of, kept in zip(self.band.guarantees, self.found.kept, strict=True)
        ]


def an(unit: str) -> str:
    """Returns a word with its article: "an image", "a unit"."""
    return f"{'an' if unit == 'image' else 'a'} {unit}"


def kept_text(kept: Kept, *, is_decided: bool = True, unit: str = "image") -> str:
    """Says in words whether a guarantee held."""
    name = _END_WORDS[kept.aim]
    if not is_decided:
        return f"No {unit} is decided as {name}, so nothing is promised about such decisions."
    promised = f"at least {percent_text(kept.level)} was promised"
    class_ = "positive" if name == NEGATIVE else "negative"
    what = class_ if kept.aim in ("sensitivity", "specificity") else f"decided as {name}"
    found = (
        f"{AIM_WORDS[kept.aim]} {100 * kept.value.value:.1f} % [{100 * kept.value.low:.1f}, "
        f"{100 * kept.value.high:.1f}], {promised}; {kept.errors:,} wrong of {kept.rows:,} {unit}s that are {what}, of "
        f"{kept.groups:,} patients"
    )
    if kept.verdict == HELD:
        return f"The promise held here: {found}."
    if kept.verdict == FAILED:
        return (
            f"The promise failed here: {found}. Let a person see all {unit}s of this kind, until the band is "
            f"chosen again on such {unit}s."
        )
    if kept.verdict == TOO_FEW:
        return (
            f"Too few to say whether the promise holds here: {kept.groups:,} patients with {an(unit)} that is {what}, "
            f"an interval needs {MIN_GROUPS}."
        )
    return f"Whether the promise holds here cannot be told, as the interval includes its level: {found}."
