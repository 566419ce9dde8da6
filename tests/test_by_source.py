from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from stack.metrics.by_source import auc_over_sources, difference_over_sources, logit_auc
from stack.metrics.intervals import clustered_auc


@pytest.fixture
def rows(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Four sources of 60 rows in 30 groups."""
    group = np.repeat(np.arange(120), 2)
    y = rng.random(240) < 0.3
    return {"y": y, "s": rng.normal(size=240) + y, "split_group": group, "source": np.repeat(list("abcd"), 60)}


def test_the_auc_of_a_source_is_that_of_its_rows_alone(rows: dict[str, np.ndarray]) -> None:
    found = auc_over_sources(**rows).sources.set_index("source")
    for name in "abcd":
        part = rows["source"] == name
        assert found.loc[name, "auc"] == pytest.approx(roc_auc_score(rows["y"][part], rows["s"][part]), abs=2e-3)
        assert found.loc[name, "low"] < found.loc[name, "auc"] < found.loc[name, "high"]
        assert found.loc[name, "positives"] == rows["y"][part].sum()


def test_shifts_and_scales_of_the_scores_between_sources_do_not_count(rows: dict[str, np.ndarray]) -> None:
    factor = {"a": 1.0, "b": 20.0, "c": 0.1, "d": 3.0}
    moved = np.array([factor[name] for name in rows["source"]]) * rows["s"] + 7 * (rows["source"] == "c")
    before, after = auc_over_sources(**rows), auc_over_sources(**rows | {"s": moved})
    assert (after.mean, after.low, after.next_high) == pytest.approx((before.mean, before.low, before.next_high))


def test_a_source_without_both_classes_is_named_and_left_out(rows: dict[str, np.ndarray]) -> None:
    y = rows["y"] & (rows["source"] != "b")
    found = auc_over_sources(**rows | {"y": y})
    line = found.sources.set_index("source").loc["b"]
    assert np.isnan(line["auc"])
    assert line["note"] == "too few to say: no group holds a positive, 5 are needed"
    assert found.used == 3
    without = rows["source"] != "b"
    same = auc_over_sources(**{name: values[without] for name, values in (rows | {"y": y}).items()})
    assert found.mean == same.mean


def test_one_source_alone_has_no_summary(rows: dict[str, np.ndarray]) -> None:
    found = auc_over_sources(**rows | {"source": np.full(240, "only")})
    assert found.used == 1
    assert np.isnan([found.mean, found.low, found.next_low, found.p_same]).all()


def test_scores_that_separate_a_source_still_have_a_finite_variance() -> None:
    y = np.repeat([True, False], 10)
    value, variance = logit_auc(y, y.astype(float), np.arange(20))
    assert expit(value) == pytest.approx(100.5 / 101)
    assert 0 < variance < np.inf
    wider = logit_auc(y[5:15], y[5:15].astype(float), np.arange(10))
    assert wider[1] * (expit(wider[0]) * expit(-wider[0])) ** 2 > variance * (expit(value) * expit(-value)) ** 2


def test_the_variance_of_a_source_is_de_longs_by_group(rows: dict[str, np.ndarray]) -> None:
    value, variance = logit_auc(rows["y"], rows["s"], rows["split_group"])
    found = clustered_auc(rows["y"], rows["s"], rows["split_group"])
    assert value == pytest.approx(logit(found.auc[0]), abs=1e-2)
    assert variance == pytest.approx(found.covariance[0, 0] / (found.auc[0] * (1 - found.auc[0])) ** 2, rel=1e-2)


def test_the_difference_is_paired_within_sources(rows: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    worse = rows["s"] + rng.normal(size=240)
    rest = {name: rows[name] for name in ("y", "split_group", "source")}
    found = difference_over_sources(a=worse, b=rows["s"], **rest)
    back = difference_over_sources(a=rows["s"], b=worse, **rest)
    assert found is not None
    assert back is not None
    assert found.mean == pytest.approx(-back.mean)
    own = [
        roc_auc_score(rows["y"][part], worse[part]) - roc_auc_score(rows["y"][part], rows["s"][part])
        for part in (rows["source"] == name for name in "abcd")
    ]
    assert min(own) <= found.mean <= max(own)
    assert difference_over_sources(a=rows["s"], b=rows["s"], **rest) is None, "no source has a difference"
