"""What lies under runs/ is whole or it isn't there: written aside and renamed, checked when read."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import StoreError
from stack.store import (
    Run,
    prediction_frame,
    read_run,
    read_runs,
    set_aside,
    sha256,
    write_json,
    write_run,
)

META = {"fingerprint": "0123456789ab", "level": 1, "kind": "image"}


def write_small(folder: Path) -> Run:
    """A run of two frames, an array and a weights file."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    oof = prediction_frame([f"id{i}" for i in range(9)], rng.integers(0, 3, 9), rng.normal(size=9))
    test = prediction_frame(["a", "b"], -1, np.array([-2.0, 3.0]))
    z = rng.normal(size=(9, 4)).astype(np.float16)
    return write_run(
        folder,
        META,
        frames={"oof": oof, "test": test},
        arrays={"oof_z": z},
        beside=[folder / "weights.safetensors"],
    )


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written, read = write_small(tmp_path / "run"), read_run(tmp_path / "run")
    assert read is not None
    assert read == written
    assert read.name == "run"
    assert META.items() <= read.meta.items()
    for name in ("oof", "test"):
        pd.testing.assert_frame_equal(read.frame(name), written.frame(name))
    rng = np.random.default_rng(0)
    fold, logit = rng.integers(0, 3, 9), rng.normal(size=9)
    assert read.frame("oof")["id"].tolist() == [f"id{i}" for i in range(9)]
    assert (read.frame("oof")["fold"] == fold).all()
    assert np.array_equal(read.frame("oof")["logit"], logit.astype(np.float32))
    assert np.array_equal(read.array("oof_z"), rng.normal(size=(9, 4)).astype(np.float16))
    assert read.array("oof_z").dtype == np.float16
    assert (read.has("oof"), read.has("oof_z"), read.has("anchor")) == (True, True, False)
    assert not temporaries(tmp_path)


def test_every_file_of_a_run_is_on_record_with_its_sha256(tmp_path: Path) -> None:
    run = write_small(tmp_path)
    lying_there = {path.name for path in tmp_path.iterdir()} - {"run.json"}
    assert set(run.meta["files"]) == lying_there
    for name, digest in run.meta["files"].items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("write", range(4))
def test_a_crash_at_any_write_leaves_no_run_and_no_temporary_file(
    write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two frames, an array and run.json are four writes; run.json is the last of them."""
    real = os.fsync
    done: list[int] = []

    def failing(descriptor: int) -> None:
        if len(done) == write:
            raise OSError("no space left on device")
        done.append(descriptor)
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="no space"):
            write_small(tmp_path)
    assert read_run(tmp_path) is None
    assert not temporaries(tmp_path)
    write_small(tmp_path)
    assert read_run(tmp_path) is not None


def test_a_process_killed_while_it_writes_leaves_no_run(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
import pandas as pd
from stack import store
store.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL)
store.write_run(Path({str(tmp_path / "net")!r}), {{}}, frames={{"oof": pd.DataFrame({{"id": ["a"]}})}})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "net" / "oof.parquet").exists()
    assert read_run(tmp_path / "net") is None
    assert read_runs(tmp_path) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["oof.parquet", "oof_z.npy"])
@pytest.mark.parametrize(("harm", "word"), [(flip, "damaged"), (cut, "damaged"), (Path.unlink, "gone")])
def test_a_file_that_has_changed_is_refused_with_its_name_and_the_next_step(
    tmp_path: Path, name: str, harm: object, word: str
) -> None:
    run = write_small(tmp_path / "run")
    assert callable(harm)
    harm(tmp_path / "run" / name)
    with pytest.raises(StoreError) as error:
        run.frame("oof") if name == "oof.parquet" else run.array("oof_z")
    assert str(error.value).startswith(f"{tmp_path / 'run' / name} is {word}: remove {tmp_path / 'run'} and run")
    run.frame("test")  # the others are as good as before


def test_a_file_that_the_run_did_not_write_is_not_read(tmp_path: Path) -> None:
    run = write_small(tmp_path)
    run.frame("test").to_parquet(tmp_path / "anchor.parquet")
    with pytest.raises(StoreError, match=r"anchor\.parquet is damaged"):
        run.frame("anchor")


def test_a_torn_run_json_is_an_error_at_every_length(tmp_path: Path) -> None:
    write_small(tmp_path)
    whole = (tmp_path / "run.json").read_bytes()
    for length in range(len(whole.rstrip())):
        (tmp_path / "run.json").write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"run\.json is damaged.*remove"):
            read_run(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"files": 3}', '{"files": null}', "\xff"])
def test_a_run_json_of_another_shape_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"run\.json is damaged.*remove"):
        read_run(tmp_path)


def test_a_pickle_in_an_array_is_not_loaded(tmp_path: Path) -> None:
    """Even where its checksum is right: nothing under runs/ executes code."""
    np.save(tmp_path / "z.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    write_json(tmp_path / "run.json", {"files": {"z.npy": sha256(tmp_path / "z.npy")}})
    run = read_run(tmp_path)
    assert run is not None
    with pytest.raises(StoreError, match=r"z\.npy is no array .*Python objects"):
        run.array("z")


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=20))
def test_p_is_the_sigmoid_of_the_logit(logits: list[float]) -> None:
    frame = prediction_frame([str(i) for i in range(len(logits))], 2, np.array(logits))
    assert frame.dtypes.astype(str).to_dict() == {"id": "str", "fold": "int8", "logit": "float32", "p": "float32"}
    assert np.allclose(frame["p"], [1 / (1 + np.exp(-np.float64(x))) for x in logits], rtol=1e-6, atol=0)
    assert (frame["fold"] == 2).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(StoreError, match="1 predictions are not finite"):
        prediction_frame(["a", "b"], 0, np.array([0.0, value]))


def test_only_complete_runs_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_small(tmp_path / name)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "note.txt").write_text("a file")
    assert [run.name for run in read_runs(tmp_path)] == ["a", "b"]
    assert read_runs(tmp_path / "nowhere") == []
    assert read_run(tmp_path / "nowhere") is None


def test_a_stale_run_is_kept_whole_under_its_fingerprint(tmp_path: Path) -> None:
    folder, old = tmp_path / "models" / "net", tmp_path / "old"
    assert set_aside(folder, old) is None
    before = write_small(folder)
    target = set_aside(folder, old)
    assert target == old / "net-0123456789ab"
    assert not folder.exists()
    kept = read_run(target)
    assert kept is not None
    pd.testing.assert_frame_equal(kept.frame("oof"), Run(target, before.meta).frame("oof"))
    folder.mkdir()
    (folder / "half.parquet").write_text("")
    assert set_aside(folder, old) == old / "net-incomplete"
    write_small(folder)
    assert set_aside(folder, old) == target, "the same again takes the place of the same"
    assert sorted(path.name for path in old.iterdir()) == ["net-0123456789ab", "net-incomplete"]
