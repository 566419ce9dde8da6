"""A nested blend that is killed goes on from the fits it had finished, and ends with the same bytes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from image_models.settings import DoneBefore
from stack.blend.columns import Weighting
from stack.blend.nested import blend_nested, number_of_fits
from stack.blend.stored_fits import StoredFits, data_key
from stack.blend.weights import METHODS, Fitted, Settings

WITHOUT = frozenset({1, 3})
FITTED = set(METHODS) - {"rank_mean", "mean"}  # the means have nothing to fit

# Blends, notes each fit of a method when it begins, and kills itself in the middle of fit number `kill_in` (0: never).
SCRIPT = """
import os, pickle, signal, sys
import numpy as np
from stack.blend import weights
from stack.blend.nested import blend_nested

folder, kill_in, out, n_jobs = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
rng = np.random.default_rng(0)
y = (rng.random(300) < 0.3).astype(int)
P = 1 / (1 + np.exp(-np.outer(y, [1.5, 1, 0.5, 0]) - rng.normal(size=(300, 4))))
fold = np.arange(300) % 4
fitted, begun = weights.WeightFits._fit, 0

def noted(self, method, study):
    global begun
    if method in weights.WITHOUT_TARGETS:
        return fitted(self, method, study)
    begun += 1
    with open(folder + ".log", "a") as log:
        rows = self.columns._rows
        log.write(f"{method} {self.positive.size} {0 if rows is None else (rows.nonzero()[0] ** 2).sum()}\\n")
    if begun == kill_in:
        os.kill(os.getpid(), signal.SIGKILL)
    return fitted(self, method, study)

weights.WeightFits._fit = noted
found = blend_nested(P, y, nets=fold, fold=fold, split_group=np.arange(300), methods=weights.METHODS, trials=10,
                     preselect=True, n_jobs=n_jobs, keep_in=__import__("pathlib").Path(folder))
with open(out, "wb") as file:
    pickle.dump((found.chosen, found.chosen_by_fold, found.score, found.by_method, found.comparable, found.tuned,
                 found.final.weighting_, found.used_runs), file)
"""


def run_script(folder: Path, kill_in: int, out: Path, n_jobs: int = 1) -> int:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(kill_in), str(out), str(n_jobs)]
    return subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=False).returncode


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_killed_inside_the_blend_it_ends_with_the_same_numbers_and_computes_one_fit_twice(tmp_path: Path) -> None:
    assert run_script(tmp_path / "whole", 0, tmp_path / "whole.pkl") == 0
    for number, kills in enumerate(([1], [17], [9, 20, 5], [55])):
        folder = tmp_path / f"killed_{number}"
        for kill_in in kills:
            assert run_script(folder, kill_in, tmp_path / "never.pkl") == -9
        assert run_script(folder, 0, tmp_path / "again.pkl") == 0
        again, whole = (pickle.loads((tmp_path / f"{name}.pkl").read_bytes()) for name in ("again", "whole"))
        np.testing.assert_equal(again, whole)  # to the last bit; pickles also say which objects are the same
        assert stored_bytes(folder) == stored_bytes(tmp_path / "whole")
        begun = Counter((tmp_path / f"killed_{number}.log").read_text().splitlines())
        assert len(begun) == 11 * len(FITTED), "eleven sets of folds and the methods that fit something"
        assert sum(begun.values()) - len(begun) == len(kills), "each kill costs the fit that it interrupted"


def test_fits_found_on_disk_are_told_as_done_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, fold = np.arange(60) % 2, np.arange(60) // 2 % 3
    P = 1 / (1 + np.exp(-np.outer(y, [1, 0.5]) - rng.normal(size=(60, 2))))
    methods = ("rank_mean", "logistic")
    told: list[list[int]] = [[], []]
    for seen in told:
        blend_nested(
            P, y, nets=fold, fold=fold, split_group=np.arange(60), methods=methods, keep_in=tmp_path,
            progress=seen.append,
        )  # fmt: skip
    fits = number_of_fits(3, methods)
    assert sum(told[0]) == sum(told[1]) == fits
    assert not any(isinstance(units, DoneBefore) for units in told[0])
    assert sum(units for units in told[1] if isinstance(units, DoneBefore)) == fits // 2, "all but the rank mean"


@pytest.mark.slow
def test_the_number_of_jobs_changes_no_byte_and_no_stored_fit(tmp_path: Path) -> None:
    for n_jobs in (1, 2):
        assert run_script(tmp_path / f"fits_{n_jobs}", 0, tmp_path / f"{n_jobs}.pkl", n_jobs) == 0
    one, two = (pickle.loads((tmp_path / f"{n_jobs}.pkl").read_bytes()) for n_jobs in (1, 2))
    np.testing.assert_equal(one, two)
    files = stored_bytes(tmp_path / "fits_1")
    assert files == stored_bytes(tmp_path / "fits_2")
    assert len(files) == 11 * len(FITTED)


def stored(tmp_path: Path, data: str = "data") -> StoredFits:
    return StoredFits(tmp_path, data)


FIT = Fitted(Weighting(("rank", "logit"), (0.1, 0.9), (1.0, 1 / 3)), 1.1, -0.7, (0.5, 2 / 3))
USED = np.array([True, False, True])


def test_a_fit_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    stored(tmp_path).write(WITHOUT, "optuna", Settings(), FIT, USED)
    found, used = stored(tmp_path).read(WITHOUT, METHODS, Settings())
    assert found == {"optuna": FIT}
    assert used is not None
    assert used.tolist() == USED.tolist()


def test_a_fit_of_other_data_folds_or_settings_is_not_used(tmp_path: Path) -> None:
    stored(tmp_path).write(WITHOUT, "hill_climb", Settings(), FIT, USED)
    for other in (Settings(bags=3), Settings(seed=1), Settings(objective="ap"), Settings(replacement=False)):
        assert stored(tmp_path).read(WITHOUT, METHODS, other) == ({}, None)
    assert stored(tmp_path, "other").read(WITHOUT, METHODS, Settings()) == ({}, None)
    assert stored(tmp_path).read(frozenset({1}), METHODS, Settings()) == ({}, None)
    (tmp_path / "without_2.hill_climb.json").write_bytes((tmp_path / "without_1_3.hill_climb.json").read_bytes())
    assert stored(tmp_path).read(frozenset({2}), METHODS, Settings()) == ({}, None)
    assert "hill_climb" in stored(tmp_path).read(WITHOUT, METHODS, Settings(trials=7))[0], "it uses no trials"


def test_a_damaged_fit_is_made_again(tmp_path: Path) -> None:
    stored(tmp_path).write(WITHOUT, "forward", Settings(), FIT, USED)
    path = tmp_path / "without_1_3.forward.json"
    state = json.loads(path.read_text())
    state["fit"]["weighting"]["weights"][0] = 0.2
    for content in ("", "[]", "{}", json.dumps(state), path.read_text()[:-20]):
        path.write_text(content)
        assert stored(tmp_path).read(WITHOUT, METHODS, Settings()) == ({}, None)


def test_the_key_of_the_data_changes_with_each_part_of_it() -> None:
    rng = np.random.default_rng(0)
    P, y, fold, group = rng.random((40, 3)), np.arange(40) % 2, np.arange(40) % 4, np.arange(40) // 2
    parts = {"P": P, "y": y, "nets": fold, "fold": fold, "split_group": group, "preselect": True}
    changed = {"P": P + np.eye(40, 3) * 1e-16, "y": 1 - y, "nets": fold + 1, "fold": 3 - fold,
               "split_group": np.arange(40), "preselect": False}  # fmt: skip
    keys = [data_key(**parts), *(data_key(**{**parts, name: value}) for name, value in changed.items())]  # type: ignore[arg-type]
    assert len(set(keys)) == 1 + sum(
        not np.array_equal(np.asarray(parts[name]), np.asarray(value)) for name, value in changed.items()
    )
    assert data_key(**{**parts, "split_group": [f"patient {g}" for g in group]}) == keys[0]  # type: ignore[arg-type]


def test_progress_counts_every_fit(tmp_path: Path) -> None:
    rng, told = np.random.default_rng(0), list[int]()
    y, fold = np.arange(120) % 2, np.arange(120) // 30
    given = {"nets": fold, "fold": fold, "split_group": np.arange(120), "methods": ("rank_mean", "logistic")}
    P = rng.random((120, 3))
    before = blend_nested(P, y, **given, keep_in=tmp_path, progress=told.append)  # type: ignore[arg-type]
    assert sum(told) == number_of_fits(4, ("rank_mean", "logistic")) == 11 * 2
    after = blend_nested(P, y, **given, keep_in=tmp_path, progress=told.append)  # type: ignore[arg-type]
    assert sum(told) == 2 * 11 * 2
    np.testing.assert_array_equal(before.score, after.score)
