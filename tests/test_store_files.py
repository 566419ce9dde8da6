"""One file, one lock, one fingerprint: what a run under runs/ is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermstack.errors import StoreError
from stack.store import atomic, fingerprint, frame_fingerprint, locked


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent, "a rename is atomic in one folder only"
        temporary.write_text("old")

    def write_half() -> None:
        with atomic(path) as temporary:
            temporary.write_text("new, ha")
            assert path.read_text() == "old"
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Nothing of that name is there before the last byte is."""
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("all of it")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "all of it"


HOLD = """
import sys, time
from pathlib import Path
from stack.store import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process is working on") as error, locked(tmp_path):
            pass
        assert str(tmp_path) in str(error.value)
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass


def test_a_lock_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "new"):
        raise RuntimeError
    with locked(tmp_path / "new"):
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def backwards(value: object) -> object:
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_a_fingerprint_hangs_on_the_settings_and_not_on_their_order(a: dict[str, object], b: dict[str, object]) -> None:
    turned = backwards(a)
    assert isinstance(turned, dict)
    assert fingerprint(a) == fingerprint(turned)
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # in Python 1 == True, in JSON it isn't
    assert (fingerprint(a) == fingerprint(b)) == same
    assert len(fingerprint(a)) == 12


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    """It is compared with one on the disk: no hash that is seeded anew in every process."""
    frame = pd.DataFrame({"id": ["a", "b"], "p": [0.5, np.nan], "fold": [0, 1]})
    code = """
import numpy as np, pandas as pd
from stack.store import fingerprint, frame_fingerprint
frame = pd.DataFrame({"id": ["a", "b"], "p": [0.5, np.nan], "fold": [0, 1]})
print(fingerprint({"b": 1, "a": "x"}), frame_fingerprint(frame))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert made.stdout.split() == [fingerprint({"a": "x", "b": 1}), frame_fingerprint(frame)]


def test_a_frame_fingerprint_sees_every_cell_name_and_the_order_of_rows() -> None:
    frame = pd.DataFrame({"id": ["a", "b", "c"], "p": [0.5, 0.25, np.nan], "sex": ["f", None, "m"]})
    same = frame_fingerprint(frame)
    assert frame_fingerprint(frame.copy()) == same
    assert frame_fingerprint(frame.set_index(pd.Index([7, 8, 9]))) == same, "the index is no data"
    others = [frame.iloc[[1, 0, 2]], frame.rename(columns={"p": "q"}), frame[["p", "id", "sex"]], frame.iloc[:2]]
    for row in range(3):
        for column, value in (("id", "z"), ("p", 0.75), ("sex", "x")):
            changed = frame.copy()
            changed.loc[row, column] = value
            others.append(changed)
    prints = [frame_fingerprint(other) for other in others]
    assert same not in prints
    assert len(set(prints)) == len(prints)
