"""Any number of runs are ranked on the rows that all cover; the choice of the best is allowed for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import average_precision_score, roc_auc_score

from dermstack.errors import ConfigError, DataError, StoreError
from stack.experiment import Experiment
from stack.history import compare
from stack.leaderboard import (
    BEST,
    NOT_WORSE,
    WORSE,
    Entry,
    choice_note,
    csv_table,
    find_names,
    leaderboard,
    read_entries,
    same_rows,
)
from stack.metrics.intervals import bootstrap_scores, paired_difference
from stack.store import Run


def rows(n_groups: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), rng.integers(1, 4, n_groups))
    return pd.DataFrame({
        "id": [f"r{number:04}" for number in range(len(group))],
        "target": (rng.random(len(group)) < 0.3).astype(np.int8),
        "split_group": [f"g{number}" for number in group],
    })  # fmt: skip


def entry(name: str, of: pd.DataFrame, *, noise: float = 1.0, seed: int = 0, **changes: object) -> Entry:
    rng = np.random.default_rng(seed)
    settings = changes.pop("settings", {})
    meta = {"kind": "blend", "objective": "auc", "files": {}} | changes
    scores = of.assign(score=of["target"] + rng.normal(0, noise, len(of)))[["id", "score", "target", "split_group"]]
    return Entry(name, Run(Path(name), meta), scores, settings)  # type: ignore[arg-type]


def test_scores_and_differences_are_those_of_an_independent_implementation() -> None:
    of = rows()
    entries = [entry(f"e{number}", of, noise=0.8 + number / 10, seed=number) for number in range(4)]
    board = leaderboard(entries)
    aucs = {one.name: roc_auc_score(of["target"], one.scores["score"]) for one in entries}
    assert board.names == sorted(aucs, key=lambda name: -aucs[name])
    assert board.table["auc"].tolist() == pytest.approx(sorted(aucs.values(), reverse=True))
    best = entries[int(board.names[0][1:])].scores["score"]
    for line in board.table.iloc[1:].to_dict("records"):
        own = entries[int(line["run"][1:])].scores["score"]
        alone = paired_difference("auc", of["target"], own, best, of["split_group"])
        got = (line["difference"], line["difference_low"], line["difference_high"])
        assert got == pytest.approx((alone.value, alone.low, alone.high), abs=1e-12)
        assert line["simultaneous_low"] < alone.low
        assert line["simultaneous_high"] > alone.high
    assert (board.rows, board.positives, board.groups) == (len(of), of["target"].sum(), 120)


def test_rows_are_joined_by_id_and_only_common_ones_count() -> None:
    of = rows()
    a = entry("a", of.iloc[10:], seed=1)
    shuffled = of.sample(frac=1, random_state=3).iloc[:-20]
    b = entry("b", shuffled, seed=2)
    board = leaderboard([a, b])
    both = a.scores.merge(b.scores, on="id")
    assert board.rows == len(both) < min(len(a.scores), len(b.scores))
    expected = {
        "a": roc_auc_score(both["target_x"], both["score_x"]),
        "b": roc_auc_score(both["target_x"], both["score_y"]),
    }
    assert dict(zip(board.table["run"], board.table["auc"], strict=True)) == pytest.approx(expected)
    whole = dict(zip(board.table["run"], board.table["all_rows"], strict=True))
    assert whole["a"] == pytest.approx(roc_auc_score(a.scores["target"], a.scores["score"]))
    assert "are covered by all" in " ".join(board.remarks)


def test_the_best_of_many_equal_runs_is_not_called_better() -> None:
    of = rows(200)
    board = leaderboard([entry(f"e{number:02}", of, seed=200 + number) for number in range(16)], draws=400)
    assert set(board.table["verdict"]) == {BEST, NOT_WORSE}
    assert (board.table["difference_high"].iloc[1:] < 0).any(), "a comparison of two alone is deceived by the choice"


def test_a_run_that_is_much_worse_is_called_worse() -> None:
    of = rows()
    board = leaderboard([entry("good", of, noise=0.5), entry("poor", of, noise=5, seed=1)])
    assert board.table["verdict"].tolist() == [BEST, WORSE]


def test_optimism_is_the_mean_largest_error_of_the_runs_that_may_be_best() -> None:
    of = rows(400)
    entries = [entry(f"e{number}", of, seed=number) for number in range(5)]
    board = leaderboard(entries)
    y, groups = of["target"], of["split_group"]
    drawn = np.column_stack([bootstrap_scores("auc", y, one.scores["score"], groups)[:, 0] for one in entries])
    errors = drawn - drawn.mean(axis=0)
    assert board.optimism == pytest.approx(np.max(errors, axis=1).mean())
    poor = [entry(f"p{number}", of, noise=30, seed=50 + number) for number in range(10)]
    assert leaderboard(entries + poor).optimism == pytest.approx(board.optimism), "they could not have been chosen"
    assert f"{board.optimism:.4f}" in choice_note(board)
    assert "optimistic" in choice_note(board)


def test_where_all_others_are_worse_no_optimism_is_told() -> None:
    of = rows(400)
    poor = [entry(f"p{number}", of, noise=30, seed=50 + number) for number in range(2)]
    board = leaderboard([entry("good", of, seed=1), *poor])
    assert board.table["verdict"].tolist() == [BEST, WORSE, WORSE]
    assert board.optimism == pytest.approx(0, abs=1e-12)
    assert "each other one is shown to be worse, so the choice makes its AUC hardly optimistic" in choice_note(board)
    assert "-0.0000" not in choice_note(board)


def test_copies_are_no_choice_at_all() -> None:
    of = rows()
    board = leaderboard([entry(name, of, seed=4) for name in ("a", "b", "c")])
    assert board.names == ["a", "b", "c"]
    assert (board.table["difference"] == 0).all()
    assert board.table["verdict"].tolist() == [BEST, NOT_WORSE, NOT_WORSE]
    assert board.optimism == pytest.approx(0, abs=1e-12)
    assert board.best.low == pytest.approx(board.table.loc[0, "low"], abs=0.01)


@pytest.mark.slow
def test_the_interval_of_the_best_covers_its_true_value_though_it_was_chosen() -> None:
    """Twelve equally good runs with common errors; the plain interval of the best is too optimistic."""
    rng, true = np.random.default_rng(0), 0.8410  # AUC of unit normals 1.412 apart
    joint, alone, optimism, stated = [], [], [], []
    for _ in range(40):
        of = rows(150, seed=int(rng.integers(1 << 30)))
        shared = rng.normal(size=len(of))
        entries = []
        for number in range(12):
            noise = 0.6 * shared + 0.8 * rng.normal(size=len(of))
            scores = of.assign(score=1.412 * of["target"] + noise)[["id", "score", "target", "split_group"]]
            entries.append(Entry(f"e{number}", Run(Path("e"), {"kind": "blend"}), scores, {}))
        board = leaderboard(entries, draws=200)
        joint.append(board.best.low <= true <= board.best.high)
        alone.append(board.table.loc[0, "low"] <= true <= board.table.loc[0, "high"])
        optimism.append(board.table.loc[0, "auc"] - true)
        stated.append(board.optimism)
    assert np.mean(joint) >= 0.88
    assert np.mean(alone) < np.mean(joint)
    assert np.mean(stated) == pytest.approx(np.mean(optimism), rel=0.35), "all are equally good, so it is reached"


def test_groups_that_any_run_joins_are_one() -> None:
    of = rows()
    joined = of.assign(split_group=of["split_group"].replace({"g1": "g0", "g3": "g2"}))
    large = of["split_group"].value_counts().drop(["g0", "g1", "g2", "g3"]).index[0]
    parted = of.assign(split_group="only here " + of["split_group"].where(of["split_group"] != large, of["id"]))
    board = leaderboard([entry("a", of, seed=1), entry("b", joined, seed=2), entry("c", parted, seed=3)])
    assert board.groups == 118
    assert "split groups of b, c differ" in " ".join(board.remarks)
    renamed = of.assign(split_group="x" + of["split_group"])
    board = leaderboard([entry("a", of, seed=1), entry("b", renamed, seed=2)])
    assert board.groups == 120
    assert board.remarks == ()


def test_other_targets_are_refused_and_make_boards_of_their_own() -> None:
    of = rows()
    a, b = entry("a", of), entry("b", of.assign(target=1 - of["target"]))
    far = entry("far", of.assign(id="x" + of["id"]))
    with pytest.raises(DataError, match=rf"a and b disagree on the target of {len(of)} rows, first id r0000"):
        leaderboard([a, b])
    with pytest.raises(DataError, match="a and far have no id in common"):
        leaderboard([a, far])
    assert [[one.name for one in board] for board in same_rows([a, b, far, a])] == [["a", "a"], ["b"], ["far"]]


def test_no_row_of_all_is_an_error() -> None:
    of = rows()
    parts = [entry("ab", of.iloc[:200]), entry("a", of.iloc[:100]), entry("b", of.iloc[100:200])]
    with pytest.raises(DataError, match="no id is covered by all of ab, a, b"):
        leaderboard(parts)


def test_the_objective_is_that_of_most_or_the_given_one() -> None:
    of = rows()
    entries = [entry("a", of, objective="ap"), entry("b", of, objective="ap", seed=1), entry("c", of, seed=2)]
    board = leaderboard(entries)
    assert board.objective == "ap"
    scores = {one.name: average_precision_score(of["target"], one.scores["score"]) for one in entries}
    assert dict(zip(board.table["run"], board.table["ap"], strict=True)) == pytest.approx(scores)
    assert "objectives differ (auc too): all are scored by ap" in " ".join(board.remarks)
    assert leaderboard(entries, objective="pauc80").objective == "pauc80"
    assert leaderboard([entry("run", of, objective=None, kind="imported")]).objective == "auc"
    with pytest.raises(ConfigError, match="unknown objective 'accuracy'"):
        leaderboard(entries, objective="accuracy")


def test_what_each_score_is_and_what_was_selected_is_said() -> None:
    of = rows()
    board = leaderboard([entry("blend", of, noise=0.5), entry("blend/net", of, kind="image", selected=["lr"])])
    assert board.table["estimate"].tolist() == ["nested", "out-of-fold"]
    assert board.table["note"].tolist() == ["", "selected on these rows"]


def test_an_unknown_record_of_settings_is_said() -> None:
    of = rows()
    board = leaderboard([entry("a", of, settings=None), entry("b", of, seed=1, settings={"seed": "1"})])
    assert "no record of the settings of a was kept" in " ".join(board.remarks)
    assert board.settings.empty


def test_a_csv_has_a_row_a_run_and_a_column_a_key() -> None:
    of = rows()
    entries = [
        entry("a", of, noise=0.5, settings={"seed": "1", "threads": "2"}),
        entry("b", of, seed=1, settings={"seed": "2", "threads": "2"}),
    ]
    board = leaderboard(entries)
    frame = csv_table([board])
    assert frame["run"].tolist() == ["a", "b"]
    assert frame["place"].tolist() == [1, 2]
    assert frame["config.seed"].tolist() == ["1", "2"]
    assert "config.threads" not in frame
    assert (frame["common_rows"] == len(of)).all()
    assert csv_table([board, leaderboard([entry("c", of)])])["board"].tolist() == [1, 1, 2]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    made = opened_experiment(write_experiment(tmp_path))
    import_frames(made, "good", *predictions(made, noise=0.8, seed=1))
    import_frames(made, "fair", *predictions(made, noise=1.5, seed=2))
    return made


def test_two_runs_differ_as_compare_says(experiment: Experiment) -> None:
    names = ["elsewhere/good", "elsewhere/fair"]
    board = leaderboard(read_entries(experiment.config.runs, names))
    made = compare(experiment.config.runs, "elsewhere/fair", "elsewhere/good").difference
    line = board.table.iloc[1]
    assert line["run"] == "elsewhere/fair"
    got = (line["difference"], line["difference_low"], line["difference_high"])
    assert got == pytest.approx((made.value, made.low, made.high), abs=1e-12)


def test_wildcards_find_runs_and_match_no_slash(experiment: Experiment) -> None:
    runs = experiment.config.runs
    assert find_names(runs, ["elsewhere/*"])[0] == ["elsewhere/fair", "elsewhere/good"]
    assert find_names(runs, ["elsewhere/g*", "elsewhere/good", "*/fair"])[0] == ["elsewhere/good", "elsewhere/fair"]
    for nothing in ("else*", "elsewhere/old/*", "nowhere/*"):
        with pytest.raises(StoreError, match="no complete run has such a name"):
            find_names(runs, [nothing])


def test_without_names_every_experiment_with_a_blend_is_taken_and_the_others_are_named(experiment: Experiment) -> None:
    runs = experiment.config.runs
    with pytest.raises(StoreError, match="holds no experiment with a complete blend"):
        find_names(runs, [])
    opened_experiment(experiment.config_path, shuffle_target=True)
    blend = runs / "elsewhere" / "blend"
    (runs / "elsewhere" / "models" / "good").rename(blend)
    opened_experiment(experiment.config_path, "experiment=empty")
    names, remarks = find_names(runs, [])
    assert names == ["elsewhere"]
    assert [remark.partition(":")[0] for remark in remarks] == [
        "elsewhere-shuffled-0 is left out", "empty is left out",
    ]  # fmt: skip
