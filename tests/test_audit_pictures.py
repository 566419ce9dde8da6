from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dermstack.audit.pictures import odd_findings, pair_kinds, picture_findings, published_duplicate_findings
from dermstack.errors import DataError
from stack.table import Table


@pytest.fixture
def table() -> Table:
    train = pd.DataFrame({"id": list("abcd"), "group": ["p", "p", "q", "r"], "target": [0, 0, 0, 1]})
    return Table(train, pd.DataFrame({"id": ["t"], "group": ["p"]}))


def pairs(*of: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"id_1": [pair[0] for pair in of], "id_2": [pair[1] for pair in of], "turn": "", "distance": 0.1}
    )


def test_each_pair_has_the_worst_kind_that_holds(table: Table) -> None:
    made = pair_kinds(pairs("ab", "ac", "cd", "ta", "xa"), table)
    assert made["kind"].tolist() == ["within a group", "across groups", "different targets", "train and test"]
    assert made[["group_1", "group_2"]].iloc[1].tolist() == ["p", "q"]
    assert made[["part_1", "part_2"]].iloc[3].tolist() == ["test", "train"]
    assert np.isnan(made["target_1"].iloc[3]), "a test row has no target"


def test_different_targets_come_first(table: Table) -> None:
    found = picture_findings(
        pair_kinds(pairs("ab", "cd"), table),
        [],
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
    found = picture_findings(pair_kinds(known, renamed), list(names.values()), odd, dropped)
    assert len(found) == 7
    assert all("secret" in finding.example for finding in found)
    for finding in found:
        assert "secret" not in finding.what + finding.evidence + finding.remedy


def test_a_published_list_is_compared_where_both_pictures_are_at_hand() -> None:
    published = pd.DataFrame([("a", "b"), ("d", "c"), ("a", "gone")])
    (finding,) = published_duplicate_findings(pairs("ba", "ac"), published, set("abcd"))
    assert finding.evidence == "3 listed, 2 with both images available: 1 of these found, 1 found that are not listed"
    with pytest.raises(DataError, match="3 columns"):
        published_duplicate_findings(pairs("ab"), pd.DataFrame([("a", "b", "c")]), set())


def test_a_set_with_swapped_channels_says_which_key_mends_it() -> None:
    odd = pd.DataFrame({"id": ["a", "b", "c"], "fault": "red and blue swapped"})
    assert odd_findings(odd, 4)[0].severity == "error"
    assert "data.swap_red_blue: true" in odd_findings(odd, 4)[0].remedy
    assert odd_findings(odd, 1000)[0].severity == "note", "a few bluish lesions are no fault"
    assert odd_findings(odd.assign(fault="black"), 1000)[0].severity == "warning"
