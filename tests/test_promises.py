"""Each promise of coverage holds in a small version of its simulation."""

from __future__ import annotations

import pytest

from benchmarks.promises.__main__ import as_table, simulation, topics
from benchmarks.promises.promise import Promise

REPETITIONS = 40


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("topic", topics())
def test_the_promises_are_kept(topic: str) -> None:
    promises = simulation(topic)(REPETITIONS, 1)
    assert promises
    assert not [promise for promise in promises if not promise.is_kept]


def test_a_promise_that_is_broken_more_often_than_chance_allows_is_not_kept() -> None:
    broken = Promise("contains the truth", "", 0.95, held=80, repetitions=100)
    assert not broken.is_kept
    assert "**no**" in as_table([broken])
    assert Promise("contains the truth", "", 0.95, held=92, repetitions=100).is_kept
    assert Promise("contains the truth", "", 0.5, held=100, repetitions=100).is_kept, "at least"
    assert not Promise("contains the truth", "", 0.5, held=100, repetitions=100, at_least=False).is_kept
