import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from dermstack.errors import DataError
from stack.metrics.decisions import AIMS, operating_point_at, operating_points
from stack.metrics.scores import score


def rows(rng: np.random.Generator, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = (rng.random(n) < 0.15).astype(int)
    return y, np.round(np.clip(0.2 + 0.2 * y + rng.normal(0, 0.15, n), 0, 1), 2), rng.integers(0, 150, n)


def test_each_threshold_reaches_its_aim_and_none_gives_less_of_the_other_up(rng: np.random.Generator) -> None:
    y, p, group = rows(rng)
    every = [*np.unique(p), 2.0]
    shares = {t: (np.mean(p[y == 1] >= t), np.mean(p[y == 0] < t)) for t in every}
    for point in operating_points(y, p, group):
        own = (point.sensitivity.value, point.specificity.value)
        assert shares[point.threshold] == pytest.approx(own)
        aimed = ("sensitivity", "specificity").index(point.aim)
        assert own[aimed] >= point.level
        assert own[1 - aimed] == max(of[1 - aimed] for of in shares.values() if of[aimed] >= point.level)


def test_on_their_own_rows_they_are_what_the_metrics_say(rng: np.random.Generator) -> None:
    y, p, group = rows(rng)
    for point in operating_points(y, p, group):
        other = "specificity" if point.aim == "sensitivity" else "sensitivity"
        assert getattr(point, other).value == pytest.approx(score(f"{other}@{point.level}", y, p))
    assert len(operating_points(y, p, group)) == len(AIMS)


def test_shares_are_those_of_the_confusion_matrix(rng: np.random.Generator) -> None:
    y, p, group = rows(rng)
    made = operating_point_at(y, p, group, "sensitivity", 0.9, 0.31)
    (tn, fp), (fn, tp) = confusion_matrix(y, p >= 0.31)
    values = [share.value for share in (made.sensitivity, made.specificity, made.ppv, made.npv)]
    assert values == pytest.approx([tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)])
    assert all(share.low < share.value < share.high for share in (made.sensitivity, made.ppv))


def test_where_the_highest_positive_lies_too_low_nothing_is_called() -> None:
    y, p = np.array([0] * 10 + [1, 1]), np.append(np.linspace(0.5, 0.9, 10), [0.1, 0.2])
    point = next(of for of in operating_points(y, p, np.arange(12)) if of.aim == "specificity")
    assert (point.sensitivity.value, point.specificity.value) == (0, 1)
    assert np.isnan(point.ppv.value)


def test_a_single_class_has_no_threshold() -> None:
    with pytest.raises(DataError, match="single class"):
        operating_points([0, 0], [0.1, 0.2], [1, 2])
