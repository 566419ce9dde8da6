"""Threads are limited inside and restored after; the libraries are looked up again only when something was imported."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from dermstack import threads
from dermstack.threads import limit_threads


def threads_of(user_api: str) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == user_api}


def test_threads_are_limited_inside_and_restored_after() -> None:
    np.linalg.inv(np.eye(3))  # BLAS is there
    with threadpool_limits(2):
        with limit_threads(1):
            assert threads_of("blas") == {1}
        assert threads_of("blas") == {2}
        with limit_threads(1, user_api="openmp"):
            assert threads_of("blas") == {2}
        decorated = limit_threads(1)(threads_of)
        assert [decorated("blas"), decorated("blas")] == [{1}, {1}]
        assert threads_of("blas") == {2}
        with pytest.raises(ValueError, match="inside"), limit_threads(1):
            raise ValueError("inside")
        assert threads_of("blas") == {2}


def test_an_import_alone_leads_to_another_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []

    class Counted(ThreadpoolController):  # type: ignore[misc]
        def __init__(self) -> None:
            looked_up.append(len(sys.modules))
            super().__init__()

    monkeypatch.setattr(threads, "ThreadpoolController", Counted)
    threads._libraries.cache_clear()
    for _ in range(3):
        with limit_threads(1):
            pass
    assert len(looked_up) == 1
    monkeypatch.setitem(sys.modules, "just_imported", ModuleType("just_imported"))
    with limit_threads(1):
        pass
    assert len(looked_up) == 2
    monkeypatch.delitem(sys.modules, "just_imported")  # another module, and no more of them than before
    monkeypatch.setitem(sys.modules, "imported_instead", ModuleType("imported_instead"))
    with limit_threads(1):
        pass
    assert len(looked_up) == 3
