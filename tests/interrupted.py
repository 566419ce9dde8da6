"""Trains the image models of a config twice, once without a stop and once stopped by Ctrl-C and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_cli


def trained_twice(
    config: Path, monkeypatch: pytest.MonkeyPatch, *, before_resuming: Callable[[], None] = lambda: None
) -> tuple[list[bytes], list[bytes]]:
    """Returns the weights of the uninterrupted run, which is moved away, and of the resumed run, which stays.

    ``config`` lies beside its folder `runs`. The stop comes after the first epoch; ``before_resuming`` is called
    before the second command.
    """
    import image_models.train as training

    runs = config.parent / "runs"
    assert run_cli("oof", "-c", str(config), "-q") == 0
    weights = sorted(runs.rglob("weights.safetensors"))
    uninterrupted = [path.read_bytes() for path in weights]
    assert uninterrupted
    runs.rename(config.parent / "uninterrupted")
    write = training.write_state

    def stop(path: Path, state: dict[str, object]) -> None:
        write(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "write_state", stop)
        assert run_cli("oof", "-c", str(config), "-q") != 0
    before_resuming()
    assert run_cli("oof", "-c", str(config), "-q") == 0
    return uninterrupted, [path.read_bytes() for path in weights]
