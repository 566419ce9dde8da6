"""Nothing that is read is executed: no code of ours could, and files that try leave no trace."""

from __future__ import annotations

import ast
import io
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz_seeds_runs import READERS
from fuzzing import OWN_ERRORS, reader_accepts
from sources import source_files

from dermstack.errors import ImageError
from image_models.net import build_net
from image_models.train import read_state
from tabular.gbdt import read_gbdt

# Modules whose loading runs what was saved, and calls that run text.
RUNS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "jsonpickle",
    "code",
    "runpy",
    "imp",
}
CALLS = {"eval", "exec", "compile", "__import__"}
# By the last two parts of a call's name: what it must be told.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}
NEVER = {
    "joblib.load", "joblib.dump", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pd.read_pickle",
    "np.fromregex", "torch.jit.load", "torch.hub.load", "jit.load", "hub.load", "np.genfromtxt", "pd.eval", "os.system",
    "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output",
    "importlib.import_module", "loader.exec_module", "util.spec_from_file_location",
    "import_user_module", "load_user_file",
}  # fmt: skip
# The child process that parses GBDT models runs this Python with a fixed program, and gets data only.
# Three keys of a config name code of the user's own: `backbone`, `features.python` and `objective`. Their modules
# import it through dermstack/user_code.py. A bundle with one of the first two is refused (tests/test_own_backbone.py,
# tests/test_python_features.py), and of the third it has only the name (tests/test_own_metric.py).
ALLOWED = {
    "tabular/gbdt_trial.py": ["subprocess.Popen"],
    "image_models/processes.py": ["subprocess.Popen"],
    "tabular/estimators.py": ["importlib.import_module"],  # of scikit-learn's modules only
    "dermstack/user_code.py": [
        "util.spec_from_file_location",
        "loader.exec_module",
        "importlib.import_module",
        "loader.exec_module",
    ],
    "image_models/own_backbone.py": ["import_user_module"],
    "metrics/own_metric.py": ["import_user_module"],
    "tables/python_features.py": ["load_user_file"],
}
SOURCES = source_files()


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in RUNS:
            yield f"line {node.lineno}: from {node.module} import"
        elif isinstance(node, ast.Import):
            yield from (f"line {node.lineno}: import {a.name}" for a in node.names if a.name in RUNS - {"pickle"})
        elif isinstance(node, ast.Attribute) and dotted(node.value) == "pickle" and node.attr != "UnpicklingError":
            yield f"line {node.lineno}: pickle.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            yield f"line {node.value.lineno}: a shell"
        elif isinstance(node, ast.Call):
            name = ".".join(dotted(node.func).split(".")[-2:])
            if name in NEVER or name in CALLS:
                yield f"line {node.lineno}: {name}"
            if name in MUST_SAY:
                option, value = MUST_SAY[name]
                said = [word.value for word in node.keywords if word.arg == option]
                if not (len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is value):
                    yield f"line {node.lineno}: {name} without {option}={value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_source_loads_what_runs(path: Path) -> None:
    found = [text.partition(": ")[2] for text in offences(ast.parse(path.read_text(encoding="utf-8")))]
    assert found == ALLOWED.get(f"{path.parent.name}/{path.name}", [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.loads(b'')", "from pickle import load", "import dill", "torch.load(x)", "np.load(x)",
        "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=flag)", "joblib.load(x)", "yaml.load(x)",
        "eval(x)", "f(x, shell=True)", "pd.read_pickle(x)",
    ],
)  # fmt: skip
def test_the_test_above_would_find_it(line: str) -> None:
    assert list(offences(ast.parse(line)))


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "trace"
    yield path
    assert not path.exists(), "it ran"


def disguises(trace: Path) -> dict[str, bytes]:
    """The bomb in every container that Python's libraries would open it from."""
    array, saved, zipped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    torch.save({"bomb": Bomb(trace)}, saved)
    np.savez(zipped, a=np.array([Bomb(trace)], dtype=object))
    return {
        "pickle": pickle.dumps(Bomb(trace)), "old pickle": pickle.dumps(Bomb(trace), protocol=0),
        "npy": array.getvalue(), "torch": saved.getvalue(), "npz": zipped.getvalue(),
    }  # fmt: skip


def test_the_bomb_goes_off_where_somebody_unpickles_it(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    pickle.loads(disguises(tmp_path / "trace")["old pickle"])
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_the_place_of_any_file_is_refused(reader: str, trace: Path, tmp_path: Path) -> None:
    for content in disguises(trace).values():
        assert not reader_accepts(READERS[reader], content, tmp_path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.npz", "weights"])
def test_a_pickle_in_the_place_of_pretrained_weights_is_refused(name: str, trace: Path, tmp_path: Path) -> None:
    for content in disguises(trace).values():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match="weights"):
            net(tmp_path / name)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_weights_come_by_no_back_door(name: str, trace: Path, tmp_path: Path) -> None:
    """timm loads what its arguments name."""
    (tmp_path / "x.pth").write_bytes(disguises(trace)["torch"])
    file = str(tmp_path / "x.pth")
    given = {name: file if name == "checkpoint_path" else {"file": file}}
    with pytest.raises(ImageError, match=r"timm_args may not contain .*: set `pretrained:` instead"):
        net(False, timm_args=given)


def net(pretrained: bool | Path, timm_args: dict[str, object] | None = None) -> object:
    return build_net(
        "test_resnet", pretrained=pretrained, frozen=False, timm_args=timm_args or {}, size=32, mean=None, std=None,
        prior=[0.5, 0.5], seed=0,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4 in the checkpoint:UserWarning")  # with a right digest
def test_a_pickle_in_the_place_of_a_training_state_is_refused(trace: Path, tmp_path: Path) -> None:
    for content in disguises(trace).values():
        (tmp_path / "state.pt").write_bytes(sha256(content).digest() + content)
        with pytest.raises(ImageError, match="is damaged"):
            read_state(tmp_path / "state.pt", identity="x")


@pytest.mark.parametrize("name", ["model.txt", "model.ubj", "model.cbm"])
def test_a_pickle_in_the_place_of_a_gbdt_is_refused(name: str, trace: Path, tmp_path: Path) -> None:
    ends = {"model.txt": (b"tree\n", b"pandas_categorical:null\n"), "model.ubj": (b"{", b"}"), "model.cbm": (b"", b"")}
    for content in disguises(trace).values():
        for whole in (content, ends[name][0] + content + ends[name][1]):
            (tmp_path / name).write_bytes(whole)
            with pytest.raises(OWN_ERRORS):
                read_gbdt(tmp_path / name)


def test_a_parquet_whose_type_is_a_pickle_runs_nothing(trace: Path, tmp_path: Path) -> None:
    """Arrow once unpickled an extension type of this name from a file's schema (CVE-2023-47248)."""
    kept = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Bomb(trace))}
    table = pa.table([pa.array([1])], schema=pa.schema([pa.field("id", pa.int64(), metadata=kept)]))
    pq.write_table(table, tmp_path / "a.parquet")
    reader_accepts(READERS["parquet"], (tmp_path / "a.parquet").read_bytes(), tmp_path)


@pytest.mark.slow
def test_a_study_file_or_database_that_holds_a_pickle_runs_nothing(trace: Path, tmp_path: Path) -> None:
    """Optuna's journal file and its tables hold JSON; what it unpickles are snapshots in Redis, none of ours."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    assert not hasattr(JournalFileBackend, "load_snapshot")
    for content in disguises(trace).values():
        (tmp_path / "journal.log").write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=r"\S"):  # of JSON, or of UTF-8
            optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    url = tmp_path / "study.db"
    study = optuna.create_study(storage=f"sqlite:///{url}", study_name="s")
    study.set_user_attr("a", 1)
    with sqlite3.connect(url) as database:
        database.execute(
            "update study_user_attributes set value_json = ?", (disguises(trace)["old pickle"].decode("latin-1"),)
        )
    database.close()
    with pytest.raises(ValueError, match=r"\S"):
        optuna.load_study(storage=f"sqlite:///{url}", study_name="s").user_attrs  # noqa: B018
