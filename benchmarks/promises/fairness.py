"""Gaps between subgroups: do all simultaneous intervals contain the true gaps, and is a gap of the stated size seen?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from benchmarks.promises.promise import Promise
from stack.metrics.decisions import operating_point_at
from stack.metrics.gaps import AUC, DIFFERS, POWER, RATIO, SENSITIVITY, Gaps, gaps
from stack.metrics.subgroups import Subgroup

_SITES = ("torso", "head", "arm", "palm")
_SHARES = np.array([0.5, 0.3, 0.15, 0.05])
_SEXES = ("female", "male")
_OWN, _SHARED = 1.0, 0.25  # variance of the score within a class, and of a patient's share in it
_SPREAD = np.sqrt(_OWN + _SHARED)
_NODES, _WEIGHTS = hermegauss(60)
_PILOTS = 20  # data sets without a gap, of which the mean size of a gap that would be seen is taken
_SUBGROUP = ("site", "head")  # in which the power is tested
_THRESHOLD = float(expit(1.8 / _SPREAD**2 * (0.9 - 1.2815515655446004 * _SPREAD) + np.log(0.2 / 0.8)))  # finds 90 %


@dataclass(frozen=True)
class World:
    """A population: patients of one sex with images of several sites; the score and p depend on sex, site and target.

    Sexes differ in ``men``, the distance between the classes of men less that of women; sites in ``moved`` (distance
    of the classes less 1.8), ``prevalence``, and ``factor``, by which p is too low where the site differs.
    """

    patients: int
    men: float = 0.0
    moved: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    prevalence: tuple[float, ...] = (0.2, 0.2, 0.2, 0.2)
    factor: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def distance(self, sex: NDArray[np.intp], site: NDArray[np.intp]) -> NDArray[np.float64]:
        """Distance between the mean scores of both classes."""
        made: NDArray[np.float64] = 1.8 + np.asarray(self.moved)[site] + np.where(sex == 1, self.men, 0.0)
        return made

    def p(self, score: NDArray[np.float64], site: NDArray[np.intp]) -> NDArray[np.float64]:
        """The probability that a model gives, right for a distance of 1.8 and a prevalence of 0.2."""
        slope = 1.8 / _SPREAD**2
        made: NDArray[np.float64] = expit(slope * (score - 0.9) + np.log(0.2 / 0.8)) / np.asarray(self.factor)[site]
        return made

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int8], NDArray[np.float64], pd.DataFrame]:
        """Returns targets, scores, and a frame of p, group, sex and site."""
        group = np.repeat(np.arange(self.patients), rng.integers(1, 5, self.patients))
        sex = rng.integers(0, 2, self.patients)[group]
        site = rng.choice(len(_SITES), len(group), p=_SHARES)
        y = (rng.random(len(group)) < np.asarray(self.prevalence)[site]).astype(np.int8)
        shared = rng.normal(0, np.sqrt(_SHARED), self.patients)[group]
        score = y * self.distance(sex, site) + shared + rng.normal(0, np.sqrt(_OWN), len(group))
        return y, score, pd.DataFrame({"p": self.p(score, site), "group": group, "sex": sex, "site": site})

    def truth(self, by: str, level: int, measure: str, threshold: float) -> float:
        """Returns the true gap between a subgroup and the rest; of RATIO, the true ratio."""
        inside, outside = (self._value(by, level, measure, threshold, rest=rest) for rest in (False, True))
        return inside / outside if measure == RATIO else inside - outside

    def _value(self, by: str, level: int, measure: str, threshold: float, *, rest: bool) -> float:
        sex, site = (axis.ravel() for axis in np.meshgrid(np.arange(2), np.arange(len(_SITES)), indexing="ij"))
        of = (site if by == "site" else sex) == level
        share = np.where(of != rest, 0.5 * _SHARES[site], 0.0)
        prevalence, distance = np.asarray(self.prevalence)[site], self.distance(sex, site)
        positive, negative = share * prevalence, share * (1 - prevalence)
        if measure == AUC:  # pairs of one patient, which share a part of the score, are left out
            ordered = ndtr((distance[:, None]) / (np.sqrt(2) * _SPREAD)) @ np.ones((1, len(sex)))
            return float(positive @ ordered @ negative / positive.sum() / negative.sum())
        nodes = _SPREAD * _NODES
        scores = [distance[:, None] + nodes, np.zeros((len(sex), 1)) + nodes]
        given = [self.p(of_class.ravel(), np.repeat(site, len(nodes))).reshape(len(sex), -1) for of_class in scores]
        if measure == RATIO:
            weights = _WEIGHTS / _WEIGHTS.sum()
            expected = sum(part @ (p @ weights) for part, p in zip((positive, negative), given, strict=True))
            return float(expected / positive.sum())
        # p rises with the score: the share beyond the threshold follows from the score at the threshold.
        slope, factor = 1.8 / _SPREAD**2, np.asarray(self.factor)[site]
        at = np.clip(threshold * factor, 1e-12, 1 - 1e-12)
        cut = 0.9 + (np.log(at / (1 - at)) - np.log(0.2 / 0.8)) / slope
        if measure == SENSITIVITY:
            return float(positive @ ndtr((distance - cut) / _SPREAD) / positive.sum())
        return float(negative @ ndtr(cut / _SPREAD) / negative.sum())


def _found(world: World, rng: np.random.Generator, *, threshold: float | None = None) -> Gaps:
    """Returns the gaps of one data set; with a ``threshold``, at this one instead of those chosen on its rows."""
    y, score, rows = world.draw(rng)
    parts = [
        Subgroup(by, name, (rows[by] == level).to_numpy(bool))
        for by, names in (("sex", _SEXES), ("site", _SITES))
        for level, name in enumerate(names)
    ]
    points = None
    if threshold is not None:
        points = [operating_point_at(y, rows["p"], rows["group"], "sensitivity", 0.9, threshold)]
    return gaps(y, score, rows["p"], rows["group"], parts, points=points, seed=int(rng.integers(2**31)))


def all_hold(world: World, found: Gaps) -> bool:
    """Returns whether every interval contains its true gap."""
    names = {name: level for of in (_SEXES, _SITES) for level, name in enumerate(of)}
    for line in found.table[found.table["gap"].notna()].to_dict("records"):
        truth = world.truth(line["by"], names[line["subgroup"]], line["measure"], line["threshold"])
        if not line["low"] <= truth <= line["high"]:
            return False
    return True


def _line(found: Gaps, measure: str) -> pd.Series:
    of = found.table
    chosen = (of["by"] == _SUBGROUP[0]) & (of["subgroup"] == _SUBGROUP[1]) & (of["measure"] == measure)
    return of[chosen].iloc[0]


def _with_gap(world: World, measure: str, size: float) -> World:
    """Returns the world in which the subgroup is worse by ``size``; found by halving."""
    level = _SITES.index(_SUBGROUP[1])

    def changed(by: float) -> World:
        place = tuple(by if site == level else 0.0 for site in range(len(_SITES)))
        if measure == RATIO:
            return replace(world, factor=tuple(1 + change for change in place))
        return replace(world, moved=tuple(-change for change in place))

    def apart(by: float) -> float:
        gap = changed(by).truth("site", level, measure, _THRESHOLD)
        return 1 / gap - 1 / size if measure == RATIO else -gap - size

    low, high = 0.0, 20.0 if measure == RATIO else 1.8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if apart(middle) < 0 else (low, middle)
    return changed(low)


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Simulates the coverage of all intervals together, and how often a gap of the stated size is seen."""
    rng = np.random.default_rng(seed)
    return _coverage(repetitions, rng) + _power(repetitions, rng)


def _coverage(repetitions: int, rng: np.random.Generator) -> list[Promise]:
    made = []
    differing = {"men": 0.2, "moved": (0.0, -0.5, 0.3, -0.8), "prevalence": (0.15, 0.25, 0.2, 0.35)}
    factor = (1.0, 1.3, 0.8, 1.6)
    for name, world in (
        ("600 patients, subgroups alike", World(600)),
        ("600 patients, subgroups differ", World(600, **differing, factor=factor)),
        ("150 patients, subgroups differ", World(150, **differing, factor=factor)),
    ):
        held = sum(all_hold(world, _found(world, rng)) for _ in range(repetitions))
        made.append(Promise("all simultaneous 95 % intervals contain their gaps", name, 0.95, held, repetitions))
    return made


def _power(repetitions: int, rng: np.random.Generator) -> list[Promise]:
    made, alike = [], World(600)
    pilots = [_found(alike, rng, threshold=_THRESHOLD) for _ in range(_PILOTS)]
    for measure in (AUC, SENSITIVITY, RATIO):
        size = float(np.mean([_line(found, measure)["seen"] for found in pilots]))
        world = _with_gap(alike, measure, size)
        flagged = [
            _line(_found(world, rng, threshold=_THRESHOLD), measure)["verdict"] == DIFFERS for _ in range(repetitions)
        ]
        setting = f"600 patients, 6 subgroups; {measure} of one " + (
            f"{size:.2f} of that of the rest" if measure == RATIO else f"lower by {size:.2f}"
        )
        seen = sum(flagged)
        made.append(Promise("a gap of the size stated for 80 % is seen", setting, POWER, seen, repetitions))
        missed = repetitions - seen  # a size that is always seen would be true, and of no use
        made.append(Promise("and missed in 10 % or more", setting, 0.10, missed, repetitions))
    return made
