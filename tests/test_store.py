"""What lies under runs/ is whole or it isn't there: written aside and renamed, checked when read."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermstack.errors import StoreError
from stack.store import (
    Run,
    atomic,
    prediction_frame,
    read_frame,
    read_run,
    read_runs,
    read_verified_run,
    set_aside,
    sha256,
    write_frame,
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
        existing_files=[folder / "weights.safetensors"],
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
@pytest.mark.parametrize(("harm", "word"), [(flip, "damaged"), (cut, "damaged"), (Path.unlink, "missing")])
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
    with pytest.raises(StoreError, match=r"z\.npy is not a readable array .*Python objects"):
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
    for number in (1, 2):
        folder.mkdir()
        (folder / "half.parquet").write_text("")
        assert set_aside(folder, old) == old / f"net-incomplete-{number}", "what was begun may be hours of work"
    write_small(folder)
    assert set_aside(folder, old) == target, "the same again takes the place of the same"
    assert sorted(path.name for path in old.iterdir()) == ["net-0123456789ab", "net-incomplete-1", "net-incomplete-2"]


@given(st.data())
def test_no_byte_of_a_run_json_can_change_unnoticed(data: st.DataObject) -> None:
    """A blend's weights and a stacker's shift stand in it: refused, or what it says is the same."""
    with TemporaryDirectory() as name:
        run = write_small(Path(name) / "run")
        path = run.folder / "run.json"
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            again = read_run(run.folder)
        except StoreError as error:
            assert str(path) in str(error)  # noqa: PT017  # a changed space says the same
        else:
            assert again is not None
            assert again.meta.items() >= run.meta.items()


@pytest.mark.parametrize("damage", ["half", "flipped", "empty"])
def test_a_frame_that_was_damaged_is_named_with_the_command(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rows.parquet"
    frame = pd.DataFrame({"id": ["a", "b"], "age": [40.0, np.nan]})
    write_frame(path, frame)
    pd.testing.assert_frame_equal(read_frame(path, remedy="dermstack oof"), frame, check_dtype=False)
    content = path.read_bytes()
    place = content.index(np.float64(40).tobytes())
    flipped = content[:place] + b"\x01" + content[place + 1 :]
    path.write_bytes({"half": content[: len(content) // 2], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(StoreError, match=rf"{path} is damaged.*: remove it and run `dermstack oof`"):
        read_frame(path, remedy="dermstack oof")


def test_a_full_disk_names_the_file_whoever_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's error of a short write has neither number nor file."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))

    def write() -> None:
        with atomic(tmp_path / "z.npy") as temporary:
            temporary.touch()
            raise OSError("800 requested and 0 written")

    with pytest.raises(OSError, match="0 written") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "z.npy"))
    assert not list(tmp_path.iterdir())


def test_a_damaged_run_can_be_set_aside(tmp_path: Path) -> None:
    run = write_small(tmp_path / "run")
    (run.folder / "run.json").write_text("{")
    assert set_aside(run.folder, tmp_path / "old") == tmp_path / "old" / "run-damaged-1"


def test_a_whole_run_is_one_whose_folds_files_are_whole_too(tmp_path: Path) -> None:
    assert read_verified_run(tmp_path / "net") is None
    (tmp_path / "net" / "fold_1").mkdir(parents=True)
    weights = tmp_path / "net" / "fold_1" / "weights.safetensors"
    weights.write_bytes(b"weights")
    write_run(tmp_path / "net" / "fold_1", {"kind": "image"}, frames={}, existing_files=[weights])
    write_run(tmp_path / "net", {"kind": "image"}, frames={"oof": prediction_frame(["a"], 0, np.zeros(1))})
    assert read_verified_run(tmp_path / "net") is not None
    weights.write_bytes(b"weighty")
    with pytest.raises(StoreError, match=r"weights.safetensors is damaged: remove .*net and run `dermstack oof` again"):
        read_verified_run(tmp_path / "net")
