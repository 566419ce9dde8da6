from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audits.pictures import odd_findings, pair_kinds, picture_findings, published_findings, size_findings
from stack.errors import DataError
from stack.table import Table


@pytest.fixture
def table() -> Table:
    train = pd.DataFrame({"id": list("abcd"), "group": ["p", "p", "q", "r"], "target": [0, 0, 0, 1]})
    return Table(train, pd.DataFrame({"id": ["t"], "group": ["p"]}))


def pairs(*of: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"id_1": [pair[0] for pair in of], "id_2": [pair[1] for pair in of], "turn": "", "distance": 0.1}
    )


def sizes(n: int, width: np.ndarray | int) -> pd.DataFrame:
    return pd.DataFrame({
        "id": [f"i{row}" for row in range(n)], "source_width": width, "source_height": 100, "source_bytes": 5000,
        "encoding": ".jpg",
    })  # fmt: skip


def rows(n: int, target: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"i{row}" for row in range(n)], "target": target})


def test_each_pair_has_the_worst_kind_that_holds(table: Table) -> None:
    made = pair_kinds(pairs("ab", "ac", "cd", "ta", "xa"), table)
    assert made["kind"].tolist() == ["within a group", "across groups", "different targets", "train and test"]
    assert made[["group_1", "group_2"]].iloc[1].tolist() == ["p", "q"]
    assert made[["part_1", "part_2"]].iloc[3].tolist() == ["test", "train"]
    assert np.isnan(made["target_1"].iloc[3]), "a test row has no target"


def test_different_targets_come_first(table: Table) -> None:
    found = picture_findings(
        table,
        table.train["group"],
        pair_kinds(pairs("ab", "cd"), table),
        sizes(0, 1),
        pd.DataFrame({"id": [], "fault": []}),
        pd.DataFrame({"id": ["z"], "reason": ["cut off"]}),
    )
    assert [finding.severity for finding in found] == ["error", "warning", "note"]
    assert found[0].example == "closest c and d"
    assert "cut off" in found[1].example


def test_ids_stand_in_the_example_alone(table: Table) -> None:
    """A page that may leave the house shows all but the example."""
    names = {name: f"secret-{name}" for name in [*table.train["id"], *table.test["id"]]}
    renamed = Table(*(part.assign(id=part["id"].map(names)) for part in (table.train, table.test)))
    known = pairs("ab", "ac", "cd", "ta").replace({"id_1": names, "id_2": names})
    odd = pd.DataFrame({"id": list(names.values())[:2], "fault": ["black", "red and blue swapped"]})
    dropped = pd.DataFrame({"id": ["secret-z"], "reason": ["folder/secret-z.jpg is cut off"]})
    sizes_of = sizes(len(names), 600).assign(id=list(names.values()))
    found = picture_findings(renamed, renamed.train["group"], pair_kinds(known, renamed), sizes_of, odd, dropped)
    assert len(found) == 7
    assert all("secret" in finding.example for finding in found)
    for finding in found:
        assert "secret" not in finding.what + finding.evidence + finding.remedy


def test_a_published_list_is_compared_where_both_pictures_are_at_hand() -> None:
    published = pd.DataFrame([("a", "b"), ("d", "c"), ("a", "gone")])
    (finding,) = published_findings(pairs("ba", "ac"), published, set("abcd"))
    assert finding.evidence == "3 listed, 2 with both pictures at hand: 1 of these found, 1 found that are not listed"
    with pytest.raises(DataError, match="3 columns"):
        published_findings(pairs("ab"), pd.DataFrame([("a", "b", "c")]), set())


def test_a_width_that_goes_with_the_target_is_a_warning_and_one_that_does_not_is_none(rng: np.random.Generator) -> None:
    target = (np.arange(400) % 4 == 0).astype(int)
    groups = pd.Series([f"g{row}" for row in range(400)])
    telling, _ = size_findings(sizes(400, 1000 + 500 * target + rng.integers(0, 300, 400)), rows(400, target), groups)
    assert telling.severity == "warning"
    assert "width differs between the classes" in telling.what
    other, _ = size_findings(sizes(400, rng.integers(500, 900, 400)), rows(400, target), groups)
    assert other.severity == "note"


def test_an_encoding_that_goes_with_the_target_is_found() -> None:
    target = (np.arange(400) % 4 == 0).astype(int)
    made = sizes(400, 100).assign(encoding=np.where(target == 1, ".png", ".jpg"))
    found = size_findings(made, rows(400, target), pd.Series([f"g{row}" for row in range(400)]))
    assert {(finding.what, finding.severity) for finding in found} == {
        ("encoding as .png differs between the classes", "warning"),
        ("encoding as .jpg differs between the classes", "warning"),
    }


def test_a_set_with_swapped_channels_says_which_key_mends_it() -> None:
    odd = pd.DataFrame({"id": ["a", "b", "c"], "fault": "red and blue swapped"})
    assert odd_findings(odd, 4)[0].severity == "error"
    assert "data.swap_red_blue: true" in odd_findings(odd, 4)[0].remedy
    assert odd_findings(odd, 1000)[0].severity == "note", "a few bluish lesions are no fault"
    assert odd_findings(odd.assign(fault="black"), 1000)[0].severity == "warning"
