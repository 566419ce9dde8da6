"""Every command that README and docs show is executed, as it stands there, on small generated data.

The words that stand for a user's files (CONFIG, FOLDER, mine.yaml, ham.zip, y.csv, …) are names of real files in the
folder where the commands run. What is not executed is listed with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from test_docs import ROOT, blocks, shown_commands, shown_targets
from test_import_metadata import write_dicom, write_records

NET = {"backbone": "test_resnet", "pretrained": False, "size": 32, "batch_size": 16}
FEWER = {"--trials": "2", "--shuffles": "2"}  # options whose number is only lowered, so that a command ends soon
TARGETS_NOT_RUN = {
    "demo": "makes an environment with network; its steps are run by test_end_to_end.py",
    "oof": "real data under data/ (configs/ham10000.yaml); `dermstack oof` is run here",
    "stack": "real data under data/ (configs/ham10000.yaml); `dermstack stack` is run here",
    "tune": "real data under data/ (configs/ham10000.yaml); `dermstack tune` is run here",
    "test": "runs this suite",
    "test-ci": "runs this suite",
    "test-all": "runs this suite",
    "lint": "ruff, mypy and lint-imports, which run before every commit",
    "docs": "test_docs.py builds the pages",
    "dashboard": "optuna-dashboard, a server of another package",
    "fuzz": "runs for minutes without an end of its own; test_fuzz_readers.py runs its body",
    "chaos": "kills commands for an hour; test_chaos.py runs a part of it",
    "audit-deps": "asks a vulnerability service on the network",
}


def test_every_target_that_is_shown_is_run_elsewhere_or_has_a_reason() -> None:
    assert {target for _, target in shown_targets()} == set(TARGETS_NOT_RUN)


# Which of the shown commands a folder of `_worlds` runs, in this order; each pattern is a whole command.
ORDER = {
    "ham": [
        "--help", "init .*", "plan .*",
        "eda .*", "audit .*", "report .*", "bundle .*", "predict .*", "evaluate .*", "recalibrate .*", "tune blend .*",
        "tune gbdt .*", "tune image .*", "app .*",
    ],
    "tutorial": [
        "import-dicom .*", "import-tfrecord .*", "init .*", "plan .*", "eda .*", "audit -c mine.yaml( --no-pictures)?",
        "oof -c mine.yaml", "oof -c mine.yaml --set .*",
        "audit .*--shuffles .*", "compare mine/effnet .*", "stack -c mine.yaml", "compare.*",
        "tune gbdt .*", "tune blend .*",
        "oof .*--shuffle-target",
        "stack .*--shuffle-target",
    ],
    "imported": ["import-oof .*", "stack .*", "report .*", "forensics .*"],
    "sources": ["plan -c mine.yaml", "oof -c mine.yaml", "stack -c mine.yaml", "sources .*"],
}  # fmt: skip
REAL_DATA = {"docs/isic2024.md": "needs the files of ISIC 2024; import-oof and stack are run on generated ones"}
PAGES = {
    "README.md": "ham", "docs/blend.md": "ham", "docs/new_images.md": "ham", "docs/validation.md": "ham",
    "docs/tutorial.md": "tutorial", "docs/imported_predictions.md": "imported", "docs/audit.md": "tutorial",
    "docs/compare.md": "tutorial", "docs/forensics.md": "imported", "docs/sources.md": "sources",
    "docs/reporting.md": "imported",
}  # fmt: skip


def commands_of(world: str) -> list[str]:
    """The commands of a world's pages, without their comments, each once, in an order in which they can run."""
    shown = [
        shlex.join(shlex.split(line, comments=True))
        for where, line in shown_commands()
        if where not in REAL_DATA and ("imported" if line.startswith("import-oof") else PAGES[where]) == world
    ]
    place = {line: [bool(re.fullmatch(pattern, line)) for pattern in ORDER[world]] for line in shown}
    assert all(any(fits) for fits in place.values()), "a new command needs a place in ORDER"
    return sorted(dict.fromkeys(shown), key=lambda line: place[line].index(True))


def test_every_command_that_is_shown_is_run_in_one_of_the_folders() -> None:
    assert {where for where, _ in shown_commands()} == {*PAGES, *REAL_DATA}
    assert sum(len(commands_of(world)) for world in ORDER) >= 25


def run_all(commands: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    failed = []
    for line in commands:
        words = shlex.split(line)
        for option, number in FEWER.items():
            if option in words:
                words[words.index(option) + 1] = number
        if words[:2] == ["tune", "image"] or words[:2] == ["tune", "blend"]:
            words += ["--trials", FEWER["--trials"]]
        if words[0] == "bundle":
            words.append("--replace")  # the same file is made by several pages
        if words[0] == "app":
            _ask_the_page(words)
        elif run_cli(*words) != 0:
            failed.append(f"dermstack {line}: {''.join(capsys.readouterr())[-2000:]}")
        capsys.readouterr()
    assert not failed, "\n".join(failed)


def _ask_the_page(words: list[str]) -> None:
    """Starts the page on a free port, asks it for its form and stops it as Ctrl-C does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "dermstack", *words, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert started.stdout is not None
        said = next(line for line in started.stdout if "http://" in line)
        address = re.search(r"http://\S+/", said)
        assert address is not None, said
        with urllib.request.urlopen(address[0]) as answer:
            assert b"Research software, not a medical device" in answer.read()
    finally:
        started.terminate()
        started.wait()


def demo(folder: Path, n_train: int = 150, n_test: int = 24) -> pd.DataFrame:
    """Writes a small data set with images to ``folder`` and returns its training rows."""
    from dermstack.cli.demo_data import write_demo_data

    write_demo_data(folder, n_train=n_train, n_test=n_test, size=32, seed=1)
    (folder / "images").rename(folder / "jpeg")
    return pd.read_csv(folder / "train.csv", dtype={"image_name": str})


def config(text: str, **changes: object) -> str:
    """The shown config, with the small nets and studies of these tests."""
    settings = yaml.safe_load(text)
    settings.update(threads=1, folds={"k": 3}, blend={"trials": 3}, **changes)
    return yaml.safe_dump(settings)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


TUTORIAL = next(code for code in blocks(ROOT / "docs" / "tutorial.md", "yaml") if code.startswith("experiment:"))
NETS = [{**NET, "name": "frozen", "frozen": True}, {**NET, "name": "effnet", "epochs": 1}]
GBDT = {"name": "lightgbm", "kind": "lightgbm", "params": {"rounds": 20, "patience": 5}, "bags": 1}


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dicom(here / "data" / "mine" / "dicom" / "a.dcm", PatientID="p", PatientSex="F", PatientAge="050Y")
    (here / "data" / "mine" / "shards").mkdir()
    record = {"image": (b"x", "byte"), "image_name": (b"a", "byte"), "target": (1, "int")}
    write_records(here / "data" / "mine" / "shards" / "a.tfrec", [record])
    first = [line for line in commands_of("tutorial") if line.startswith("import-")]
    assert len(first) == 2
    for line in first:  # both write the same file
        run_all([line], capsys)
        assert pd.read_csv(here / "data" / "mine" / "train.csv")["image_name"].tolist() == ["a"]
        (here / "data" / "mine" / "train.csv").unlink()
    shutil.rmtree(here / "data" / "mine")
    demo(here / "data" / "mine", n_train=240)
    drafts = [line for line in commands_of("tutorial") if line.startswith("init ")]
    run_all(drafts, capsys)  # each writes mine.yaml, which the commands after it use with fewer and smaller models
    (here / "mine.yaml").write_text(config(TUTORIAL, image_models=NETS, stackers=[GBDT]))
    rest = [line for line in commands_of("tutorial") if line not in first + drafts]
    run_all(rest, capsys)
    assert (here / "runs" / "mine" / "submission.csv").is_file()


@pytest.mark.slow
def test_the_commands_on_a_finished_ensemble_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CONFIG is the name of the file; the shown results of HAM10000 need its images."""
    rows = demo(here / "data" / "mine")
    (here / "CONFIG").write_text(config(TUTORIAL, image_models=NETS, stackers=[GBDT]))
    assert run_cli("oof", "-c", "CONFIG", "-q") == 0
    assert run_cli("stack", "-c", "CONFIG", "-q") == 0
    shutil.copytree(here / "data" / "mine" / "jpeg", here / "FOLDER")
    rows.drop(columns="target").to_csv(here / "new.csv", index=False)
    rows.drop(columns="target").to_csv(here / "patients.csv", index=False)
    rows[["image_name", "target"]].to_csv(here / "y.csv", index=False)
    kept = set(rows["image_name"])
    for path in (here / "FOLDER").iterdir():
        if path.stem not in kept:
            path.unlink()
    lines = commands_of("ham")
    drafts = [line for line in lines if line.startswith("init ")]
    rows.to_csv(here / "FOLDER" / "train.csv", index=False)
    run_all(drafts, capsys)
    (here / "FOLDER" / "train.csv").unlink()
    # Bundles of the table and of imported runs: tests/test_table_bundle.py and tests/test_imported_bundle.py.
    others = [line for line in lines if "table.zip" in line or "isic.zip" in line]
    lines = [line for line in lines if line not in (*drafts, *others)]
    lines = [f"{line} --replace" if line.startswith("evaluate ") else line for line in lines]  # pages name one folder
    if not find_spec("onnx"):
        lines = [line for line in lines if "--onnx" not in line]  # an extra of its own
    run_all(lines, capsys)
    for made in ("predictions.csv", "validation/evaluation.html", "ham.zip"):
        assert (here / made).exists(), made


@pytest.mark.slow
def test_the_commands_on_sources_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = demo(here / "data" / "mine", n_train=240)
    rows["hospital"] = [f"h{number % 3}" for number in pd.factorize(rows["patient_id"])[0]]
    rows.to_csv(here / "data" / "mine" / "train.csv", index=False)
    settings = yaml.safe_load(config(TUTORIAL, image_models=NETS[:1], stackers=[GBDT]))
    settings["data"]["columns"]["source"] = "hospital"
    settings["estimate"] = {"train_by_source": True}
    (here / "mine.yaml").write_text(yaml.safe_dump(settings))
    lines = commands_of("sources")
    run_all(lines, capsys)
    assert set(pd.read_csv(here / "sources.csv")) == {"image_name", "source"}
    page = (here / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    assert "sources held out, everything trained again" in page
    assert "Image models trained twice" in page
    off = "--set estimate.train_by_source=false -q"
    run_all([f"oof -c mine.yaml --by-source {off}", f"stack -c mine.yaml --by-source {off}"], capsys)
    run_all([f"stack -c mine.yaml {off}"], capsys)
    page = (here / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    assert "sources held out, everything trained again" in page, "of the experiment NAME-by-source"
    assert "Image models trained twice" not in page


@pytest.mark.slow
def test_the_commands_on_imported_predictions_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, rng = demo(here / "data"), np.random.default_rng(0)
    rows["my_fold"] = pd.factorize(rows["patient_id"])[0] % 3
    rows.to_csv(here / "train.csv", index=False)
    test = pd.read_csv(here / "data" / "test.csv", dtype={"image_name": str})
    test.to_csv(here / "test.csv", index=False)
    shown = next(code for code in blocks(ROOT / "docs" / "imported_predictions.md", "yaml"))
    (here / "mine.yaml").write_text(config(shown, stackers=[GBDT]))
    for name in ("a", "b"):
        logits = {
            fold: 2.0 * rows["target"] - 3 + rng.normal(0, 1 if name == "a" else 2, len(rows)) for fold in range(3)
        }
        p = pd.DataFrame({f"net_{name}_fold{fold}": 1 / (1 + np.exp(-logit)) for fold, logit in logits.items()})
        p.insert(0, "image_name", rows["image_name"])
        p.to_parquet(here / f"{name}_all.parquet", index=False)
        own = np.choose(rows["my_fold"], [p[f"net_{name}_fold{fold}"] for fold in range(3)])
        frame = pd.DataFrame({"image_name": rows["image_name"], "p": own, "fold": rows["my_fold"]})
        frame.to_csv(here / f"{name}.csv", index=False)
        frame.to_csv(here / f"{name}_oof.csv", index=False)  # its name on the page on forensics
        frame.drop(columns="fold").to_csv(here / "blend.csv", index=False)
        folds = range(3) if name == "a" else [0]
        made = [test[["image_name"]].assign(p=1 / (1 + np.exp(3 - rng.normal(0, 1, len(test)))), fold=f) for f in folds]
        together = pd.concat(made) if name == "a" else made[0].drop(columns="fold")
        together.to_csv(here / f"{name}_test.csv", index=False)
    (here / "nets").mkdir()
    for part in ("", "_test"):  # the shown folder has runs of other names than those that are shown one by one
        made = pd.read_csv(here / f"a{part}.csv", dtype={"image_name": str})
        made.assign(p=made["p"] * rng.uniform(0.5, 1, len(made))).to_csv(here / f"nets/c{part}.csv", index=False)
    lines = commands_of("imported")
    again = [line for line in lines if "--all-rows" in line]  # of the page on the audit: the same run with more
    run_all([line for line in lines if line.startswith("import-oof") and line not in again], capsys)
    run_all([f"{line} --replace" for line in again], capsys)
    run_all([line for line in lines if not line.startswith("import-oof")], capsys)
    assert (here / "runs" / "mine" / "report.html").is_file()
    assert (here / "forensics.html").is_file()
    assert (here / "paper" / "checklist_claim.html").is_file()
