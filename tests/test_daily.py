"""The benchmark of the daily loop: its simulated rows, what it measures of a process, and every part on tiny data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import daily
from benchmarks.daily_data import Size, simulate, write_experiment
from benchmarks.daily_experiments import copy_level_1
from benchmarks.daily_measure import HERE, OLD_COMMIT, Cost, measure


def has_old_commit() -> bool:
    command = ["git", "-C", str(HERE), "cat-file", "-e", f"{OLD_COMMIT}^{{commit}}"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_the_best_possible_score_is_above_every_run_and_their_mean() -> None:
    train, fresh = simulate(Size(8, 3000, 5), fresh=30_000)
    best = roc_auc_score(fresh.y, fresh.best)
    assert best > roc_auc_score(fresh.y, fresh.P.mean(axis=1)) + 0.003
    assert best > max(roc_auc_score(fresh.y, p) for p in fresh.P.T) + 0.02
    again, _ = simulate(Size(8, 3000, 5), fresh=30_000)
    np.testing.assert_array_equal(train.P, again.P)


def test_runs_of_one_family_agree_more_than_others_do_and_no_group_sits_in_two_folds() -> None:
    train, _ = simulate(Size(8, 3000, 5))
    agreement = np.corrcoef(train.P[train.y == 0].T)
    inside = [agreement[a, b] for a in range(8) for b in range(a) if a // 4 == b // 4]
    across = [agreement[a, b] for a in range(8) for b in range(a) if a // 4 != b // 4]
    assert np.mean(inside) > np.mean(across) + 0.1 > 0.3
    pairs = pd.DataFrame({"group": train.group, "fold": train.fold}).drop_duplicates()
    assert pairs["group"].is_unique
    assert np.bincount(train.fold, train.y).min() >= 2


def test_the_experiments_files_hold_every_row_of_every_run(tmp_path: Path) -> None:
    config = write_experiment(tmp_path / "a", Size(2, 300, 3))
    train, test = (pd.read_csv(config.parent / f"{name}.csv") for name in ("train", "test"))
    for name in ("run000", "run001"):
        oof, of_test = (pd.read_csv(tmp_path / "a" / "predictions" / f"{name}_{part}.csv") for part in ("oof", "test"))
        assert oof[["image_name", "fold"]].equals(train[["image_name", "fold"]])
        assert set(zip(of_test["image_name"], of_test["fold"], strict=True)) == {
            (name, fold) for name in test["image_name"] for fold in range(3)
        }
        assert len(of_test) == 3 * len(test)


def test_a_copied_experiment_has_its_level_1_runs_and_nothing_of_stack(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    for name, level in (("net", 1), ("gbdt", 2)):
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "run.json").write_text(json.dumps({"level": level, "files": {}}))
    (folder / "models" / "unfinished").mkdir()
    (folder / "blend").mkdir()
    for name in ("table.parquet", "pictures.json", "submission.csv", "up_to_date.json", "blend/run.json"):
        (folder / name).touch()
    copy_level_1(folder, tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == {"table.parquet", "pictures.json", "models/net/run.json"}


def test_seconds_and_memory_of_a_child_process_are_counted() -> None:
    # It works for half a second after it has all of its memory, which takes long on a busy machine.
    child = (
        "import time; a = bytearray(300_000_000); t = time.process_time()\nwhile time.process_time() < t + 0.5: pass"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    cost = measure([sys.executable, "-c", parent])
    assert cost.cpu > 0.5
    assert 0.3 < cost.peak < 0.6
    assert not cost.ended
    here = bytearray(200_000_000)  # of this process
    assert 0.003 < measure([sys.executable, "-c", "import time; time.sleep(0.5)"]).peak < len(here) / 2e9


def test_what_reaches_its_limit_is_ended_and_says_so_and_a_failure_is_raised() -> None:
    cost = measure([sys.executable, "-c", "import time; time.sleep(600)"], limit=0.3)
    assert cost.ended
    assert (cost + Cost(1, 1, 1)).ended
    assert next(iter(daily.cost_cells(cost, Cost(1, 1, 1)))).startswith("> ")
    with pytest.raises(RuntimeError, match="no such thing"):
        measure([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_the_interval_of_paired_differences_is_students() -> None:
    assert daily.mean_interval([0.0, 0.1, 0.2]) == "+0.10000 [-0.14841, +0.34841]"  # 4.3027 · 0.1 / √3


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["import"], ["blend", "score", "big"], ["stack", "nothing"], ["peers"]])
def test_every_part_runs_on_tiny_data_and_leaves_nothing(
    parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not has_old_commit():
        pytest.skip(f"this checkout has no commit {OLD_COMMIT}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["daily", *parts, "--quick"])
    daily.main()
    tables = capsys.readouterr().out.strip().split("\n\n")[1:-1]
    assert len(tables) == len(parts)
    for table in tables:
        head, rule, *rows = table.splitlines()
        assert rows
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    assert not any(tmp_path.iterdir())
    worktrees = subprocess.run(["git", "-C", str(HERE), "worktree", "list"], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in worktrees.stdout
