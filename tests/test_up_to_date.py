"""A complete `stack` costs nothing, and nothing that it read or made can change without being seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import run_cli
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment

import stack.up_to_date
from dermstack import run_stack
from dermstack.pipeline import StackSteps
from image_models.locks import locked
from stack.settings.config import read_config
from stack.store import read_run
from stack.up_to_date import RECORD, Finished, files_in, nothing_to_do

pytestmark = pytest.mark.usefixtures("drift_fitted_once", "module_without_figures")

Capture = pytest.CaptureFixture[str]
STACKERS = [{"name": "line", "kind": "logistic"}]
NOT_READ = {"ledger.jsonl", RECORD, ".lock"}  # of the experiment's folder


def made(folder: Path, **changes: object) -> Path:
    """Writes a config with two imported runs and returns its path."""
    config = write_experiment(folder, stackers=STACKERS, **changes)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = made(tmp_path_factory.mktemp("done"))
    assert run_cli("stack", "-c", str(path), "-q") == 0
    return path


def done(config: Path, *overrides: str, report: bool = True) -> Finished | None:
    return nothing_to_do(read_config(config, overrides), config, shuffle_target=False, report=report)


def experiment_folder(config: Path) -> Path:
    return config.parent / "runs" / "elsewhere"


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and content of every file but those that each command touches."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_READ]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def restored(config: Path) -> Iterator[None]:
    """Puts back the files of the module's experiment that a test has changed, and removes new ones."""
    before = files_of(config.parent) | {path: (0, path.read_bytes()) for path in [experiment_folder(config) / RECORD]}
    yield
    for path, (_, content) in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    for path in set(files_of(config.parent)) - set(before):
        path.unlink()


def test_nothing_to_do_answers_with_the_headline_and_the_paths(config: Path, capsys: Capture) -> None:
    folder = experiment_folder(config)
    before, lines = files_of(config.parent), (folder / "ledger.jsonl").read_text().splitlines()
    assert run_cli("stack", "-c", str(config)) == 0
    shown = capsys.readouterr()
    headline = json.loads((folder / "blend" / "run.json").read_text())["headline"]
    said = shown.out.splitlines()
    assert said[0] == "elsewhere: complete, and nothing that it depends on has changed"
    assert said[1].startswith(f"elsewhere: AUC {headline['value']:.4f} [{headline['low']:.4f}, {headline['high']:.4f}]")
    assert said[2:] == [f"submission: {folder / 'submission.csv'}", f"report: {folder / 'report.html'}"]
    assert shown.err == ""
    assert files_of(config.parent) == before
    after = (folder / "ledger.jsonl").read_text().splitlines()
    assert after[: len(lines)] == lines
    assert len(after) == len(lines) + 1
    assert json.loads(after[-1])["changed"] == {}


def test_nothing_to_do_imports_no_table_and_no_gbdt(config: Path) -> None:
    code = (
        "import sys; sys.argv = ['dermstack', 'stack', '-q', '-c', sys.argv[1]]\n"
        "from dermstack.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'numpy', 'pandas', 'scipy', 'sklearn', 'lightgbm', 'xgboost', 'torch', 'matplotlib', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_byte_of_any_file_that_was_read_or_made_is_seen(config: Path, restored: None) -> None:
    watched = [path for path in files_of(config.parent) if path not in {config} and "net_" not in path.name]
    watched = [path for path in watched if path.parent.name != "cache"]
    assert {"train.csv", "test.csv", "sample.csv", "oof.parquet", "submission.csv", "report.html", "audit.json"} <= {
        path.name for path in watched
    }
    assert done(config) is not None
    for path in watched:
        content = path.read_bytes()
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert done(config) is None, f"{path}: one bit flipped"
        path.unlink()
        if path.suffix != ".csv" or path.parent != config.parent:  # a table that is missing is an error of its own
            assert done(config) is None, f"{path}: removed"
        path.write_bytes(content)
        assert done(config) is not None, f"{path}: put back"


def test_what_was_not_there_is_seen(config: Path, restored: None) -> None:
    import_frames(opened_experiment(config), "net_c", *predictions(opened_experiment(config), seed=7))
    assert done(config) is None


@pytest.mark.parametrize("setting", ["seed=3", "blend.trials=3", "n_jobs=2", "data.sample_submission=null"])
def test_another_setting_is_seen(config: Path, setting: str) -> None:
    assert done(config, setting) is None


def test_a_comment_in_the_config_changes_nothing(config: Path, restored: None) -> None:
    config.write_text(config.read_text() + "# tomorrow: another seed\n")
    assert done(config) is not None


def test_other_code_and_other_libraries_are_seen(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, other in (("_code_digest", "0"), ("library_versions", {"numpy": "9"})):
        with monkeypatch.context() as patched:
            patched.setattr(stack.up_to_date, name, lambda other=other: other)
            assert done(config) is None, name
    assert done(config) is not None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"given": {}, "files": {}, "report": true, "digest": "0"}'])
def test_a_damaged_record_leads_the_whole_way(config: Path, restored: None, content: bytes) -> None:
    (experiment_folder(config) / RECORD).write_bytes(content)
    assert done(config) is None


def test_a_table_that_changes_while_stack_runs_is_seen_the_next_time(tmp_path: Path) -> None:
    config = made(tmp_path)

    def edit(*_: object) -> None:
        table = (tmp_path / "train.csv").read_text().splitlines()
        (tmp_path / "train.csv").write_text("\n".join([table[0], *table[:0:-1]]) + "\n")  # other order of rows

    run_stack(config, steps=StackSteps(level1=edit))
    assert done(config) is None


def test_another_process_that_works_there_is_named(config: Path, capsys: Capture) -> None:
    with locked(experiment_folder(config)):
        assert "another process is working on" in command_error(capsys, "stack", "-c", str(config))


def test_a_lost_submission_comes_back_and_the_report_stays(
    config: Path, restored: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    submission = experiment_folder(config) / "submission.csv"
    before = submission.read_bytes()
    submission.unlink()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the report was made again")

    with monkeypatch.context() as patched:
        patched.setattr("dermstack.report.evidence.write_report", refuse)
        assert run_cli("stack", "-c", str(config)) == 0
    assert "report: complete, skipped" in capsys.readouterr().out
    assert submission.read_bytes() == before
    assert done(config) is not None


def test_without_report_neither_the_page_nor_the_probes_are_made(tmp_path: Path, capsys: Capture) -> None:
    config = made(tmp_path)
    folder = experiment_folder(config)
    assert run_cli("stack", "-c", str(config), "--no-report") == 0
    shown = capsys.readouterr().out
    assert "report:" not in shown
    assert not (folder / "report.html").exists()
    assert not (folder / "report").exists()
    submission = (folder / "submission.csv").read_bytes()
    assert done(config, report=False) is not None
    assert done(config) is None, "the report is wanted and was not made"
    assert run_cli("stack", "-c", str(config)) == 0
    shown = capsys.readouterr().out
    for words in ("line: complete, skipped", "blend: complete, skipped", f"report: {folder / 'report.html'}"):
        assert words in shown
    assert (folder / "submission.csv").read_bytes() == submission
    assert read_run(folder / "report" / "probes") is not None
    assert done(config) is not None
    assert done(config, report=False) is not None
    assert run_cli("stack", "-c", str(config), "--set", "seed=1", "--no-report") == 0
    assert "report.html is of an earlier state" in capsys.readouterr().out


def test_from_python_the_result_is_the_same_as_when_it_was_made(tmp_path: Path) -> None:
    config = made(tmp_path)
    settings = yaml.safe_load(config.read_text()) | {"runs": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")}
    settings["data"] |= {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    settings["data"]["sample_submission"] = str(tmp_path / "sample.csv")
    first = run_stack(settings)
    page = (first.experiment.folder / "report.html").stat().st_mtime_ns
    again = run_stack(settings)
    assert list(again.runs) == list(first.runs) == ["net_a", "net_b", "line"]
    assert again.headline == first.headline
    assert again.findings == first.findings
    assert again.report == first.report
    assert again.oof.equals(first.oof)
    assert (first.experiment.folder / "report.html").stat().st_mtime_ns == page


def test_weights_count_by_size_and_time(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "net" / "fold_0" / "seed_0" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1" * 8)
    before = files_in(tmp_path)
    weights.write_bytes(b"2" * 8)
    assert files_in(tmp_path) != before
