"""What one column says: the AUC as scikit-learn has it, and a p-value that whole groups decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from audited_experiment import clean_rows
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from dermstack.audit.columns import number_columns
from dermstack.audit.drift import shortcuts
from dermstack.audit.single_column import association_p, column_association, column_auc, one_hot, one_sided_rank_p
from stack.metrics.intervals import Interval, interval
from stack.tables.columns import TableColumns
from stack.tables.table import Table


def test_the_p_value_is_that_of_permutations(rng: np.random.Generator) -> None:
    for shift in (0.0, 0.3, 0.6):
        y = (np.arange(200) % 4 == 0).astype(int)
        x = rankdata(rng.normal(size=200) + shift * y)
        seen = abs(x[y == 1].mean() - x[y == 0].mean())
        drawn = [abs(x[(p := rng.permutation(y)) == 1].mean() - x[p == 0].mean()) for _ in range(4000)]
        assert association_p(y, x, np.arange(200)) == pytest.approx(np.mean(np.array(drawn) >= seen), abs=0.02)


def test_copies_of_a_row_in_its_group_are_no_evidence(rng: np.random.Generator) -> None:
    y, x, group = (rng.random(90) < 0.3).astype(int), rng.normal(size=90), rng.integers(0, 40, 90)
    once, levels = association_p(y, x, group), association_p(y, one_hot(pd.Series(group % 3).astype("str")), group)
    tripled = [np.repeat(values, 3) for values in (y, x, group)]
    assert association_p(*tripled) == pytest.approx(once)
    assert association_p(tripled[0], one_hot(pd.Series(tripled[2] % 3).astype("str")), tripled[2]) == pytest.approx(
        levels
    )
    assert association_p(*tripled[:2], np.arange(270)) < once


def test_a_handful_of_positives_that_are_alike_prove_nothing() -> None:
    y = (np.arange(100) < 4).astype(int)
    x = np.where(np.arange(100) % 2 == 0, 1.0, 0.0)
    x[:4] = 1  # one chance in eight, and no variance at all among positives
    assert association_p(y, x, np.arange(100)) > 0.01


def test_a_higher_score_is_one_sided(rng: np.random.Generator) -> None:
    y = (rng.random(300) < 0.3).astype(int)
    s = y + rng.normal(size=300)
    up, down = one_sided_rank_p(y, s, np.arange(300)), one_sided_rank_p(y, -s, np.arange(300))
    assert up < 1e-6
    assert up + down == pytest.approx(1)
    assert one_sided_rank_p(y, np.ones(300), np.arange(300)) == 1


@pytest.mark.slow
def test_under_the_null_one_p_value_of_a_hundred_is_below_one_hundredth() -> None:
    below = dict.fromkeys(("order", "bytes", "bytes by tenths", "camera", "group size"), 0)
    draws = 800
    for seed in range(draws):
        rows = clean_rows(200, np.random.default_rng(seed))
        y, group = rows["target"], rows["patient"]
        for name, x in {
            "order": np.arange(len(rows)),
            "bytes": rankdata(rows["bytes"]),
            "bytes by tenths": one_hot(rows["bytes"]),
            "camera": one_hot(rows["source"]),
            "group size": rankdata(group.map(group.value_counts())),
        }.items():
            below[name] += association_p(y, x, group) < 0.01
    assert max(below.values()) <= 18, below  # of 8 expected: three standard deviations and a half
    assert sum(below.values()) >= 10, below  # not by keeping silent


def test_aucs_are_those_of_scikit_learn(rng: np.random.Generator) -> None:
    y, fold = (rng.random(400) < 0.3).astype(int), np.arange(400) % 4
    number = pd.Series(rng.normal(size=400) + y)
    number[rng.random(400) < 0.1] = np.nan
    known = number.notna().to_numpy()
    found = column_association("number", number, y, fold, np.arange(400))
    assert found.rank_auc is not None
    assert found.rank_auc.value == pytest.approx(roc_auc_score(y[known], number[known]))
    word = pd.Series(np.where(rng.random(400) < 0.2 + 0.5 * y, "a", "b"))
    rate = np.empty(400)
    for row in range(400):  # by brute force
        other = fold != fold[row]
        alike = y[other & (word == word[row]).to_numpy()]
        rate[row] = (alike.sum() + 2 * y[other].mean()) / (len(alike) + 2)
    found = column_association("word", word, y, fold, np.arange(400))
    assert found.rank_auc is None
    assert found.fitted_auc.value == pytest.approx(roc_auc_score(y, rate))
    assert found.strength == found.fitted_auc.value


def test_a_name_of_each_row_or_group_tells_nothing(rng: np.random.Generator) -> None:
    group = np.repeat(np.arange(100), 4)
    y = np.repeat((rng.random(100) < 0.3).astype(int), 4)
    for name in (group, np.arange(400)):
        found = column_association("name", pd.Series(name).astype("str"), y, group % 5, group)
        assert 0.4 < found.strength < 0.6
        assert found.p > 0.01


def test_a_shape_that_ranks_do_not_see_is_found(rng: np.random.Generator) -> None:
    x = pd.Series(rng.random(600))
    y = (rng.random(600) < np.where((x > 0.4) & (x < 0.6), 0.7, 0.1)).astype(int)
    found = column_association("x", x, y, np.arange(600) % 5, np.arange(600))
    assert found.rank_auc is not None
    assert abs(found.rank_auc.value - 0.5) < 0.1
    assert found.fitted_auc.value > 0.7
    assert found.p < 1e-6
    assert "out of fold" in str(found)


def test_what_is_missing_can_tell(rng: np.random.Generator) -> None:
    y = (rng.random(500) < 0.3).astype(int)
    depth = pd.Series(np.where(y == 1, rng.random(500), np.nan))  # measured of positives alone
    found = column_association("depth", depth, y, np.arange(500) % 5, np.arange(500))
    assert found.rank_auc is None
    assert found.strength > 0.99


def test_of_a_column_that_is_not_shown_no_interval_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*given: Any) -> Interval:
        asked.append(given)
        return column_auc(*given)

    monkeypatch.setattr("dermstack.audit.single_column.column_auc", counted)
    rng = np.random.default_rng(0)
    y = (rng.random(600) < 0.3).astype(np.int8)
    x, group = pd.Series(y + rng.normal(size=600)), np.arange(600) // 2
    found = column_association("x", x, y, group % 5, group)
    assert found.strength == roc_auc_score(y, x)
    assert found.p < 1e-6
    assert asked == []
    assert str(found) == str(found) == f"AUC {column_auc(y, x, group)}"
    assert len(asked) == 1


def test_audit_and_eda_give_one_column_one_auc_and_one_interval(rng: np.random.Generator) -> None:
    y, group = (rng.random(300) < 0.3).astype(np.int8), rng.integers(0, 120, 300)
    split_group = group // 2  # near-duplicates join groups
    size = rng.normal(size=300) - y  # of the file
    train = pd.DataFrame({"target": y, "group": group.astype(str), "size": size})
    (line,) = shortcuts(train, {"file size": size}, split_group).to_dict("records")
    found = column_association("file size", pd.Series(size), y, split_group % 5, split_group)
    shown = Interval(line["auc"], line["low"], line["high"], 0.0)
    assert str(found) == f"AUC {shown}, positives are smaller"
    assert line["direction"] == "smaller"
    table = Table(train, train.iloc[:0], columns=TableColumns({"size": "size"}))
    (of_column,) = number_columns(table, split_group.astype(object), seed=0).to_dict("records")
    assert [1 - of_column[name] for name in ("auc", "high", "low")] == [line[name] for name in ("auc", "low", "high")]
    by_bootstrap = interval("auc", y, size, split_group, draws=4000)
    assert [1 - by_bootstrap.high, 1 - by_bootstrap.low] == pytest.approx([line["low"], line["high"]], abs=0.01)


def test_an_interval_of_one_column_ends_at_1(rng: np.random.Generator) -> None:
    y = np.repeat([0, 1], 20)
    found = column_auc(y, y + 0.3 * rng.normal(size=40), np.arange(40))
    assert found.value > 0.95
    assert found.high == 1
    assert np.isnan(column_auc(y, y, y).low), "one group of each class"
