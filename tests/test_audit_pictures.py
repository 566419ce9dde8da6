from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from dermstack.audit.pictures import (
    odd_findings,
    pair_kinds,
    part_findings,
    picture_findings,
    published_duplicate_findings,
)
from dermstack.errors import DataError
from stack.tables.table import Table


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


def lesions(rng: np.random.Generator, n: int = 80) -> np.ndarray:
    """Noise with a dark spot right of the middle and a bright top: no symmetry in the mean."""
    y, x = np.mgrid[:32, :32]
    scene = 200 - 2 * y - 120 * np.exp(-((x - 22) ** 2 + (y - 12) ** 2) / 50)
    noisy = scene + rng.normal(0, 30, (n, 32, 32)) + rng.normal(0, 10, (n, 1, 1))
    return np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[..., None], 3, axis=3)


PARTS = pd.DataFrame({"encoding": [".png"] * 60 + [".tif"] * 20})


@pytest.mark.parametrize(
    ("fault", "damage"),
    [
        ("negative", lambda images: 255 - images),
        ("turned by", lambda images: np.rot90(images, 1, (1, 2))),
        ("turned by", lambda images: np.rot90(images, 3, (1, 2))),
        ("turned by 180°", lambda images: np.rot90(images, 2, (1, 2))),
    ],
)
def test_a_part_of_the_images_that_is_negative_or_turned_is_found(
    rng: np.random.Generator, fault: str, damage: Callable[[np.ndarray], np.ndarray]
) -> None:
    images = lesions(rng)
    assert part_findings(images, PARTS) == []
    images[60:] = damage(images[60:])
    (finding,) = part_findings(images, PARTS)
    assert finding.severity == "error"
    assert fault in finding.what
    assert "20 of 80 images" in finding.evidence


def test_parts_of_pure_noise_raise_no_alarm(rng: np.random.Generator) -> None:
    for _ in range(20):
        images = rng.integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
        assert part_findings(images, PARTS) == []


@pytest.mark.parametrize(("bits", "found"), [([16] * 60 + [12] * 20, True), ([16] * 80, False), ([0] * 80, False)])
def test_images_of_fewer_bits_among_others_are_found(rng: np.random.Generator, bits: list[int], found: bool) -> None:
    names = [finding.what for finding in part_findings(lesions(rng), pd.DataFrame({"bits": bits}))]
    assert names == (["images of different depth"] if found else [])
