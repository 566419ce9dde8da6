from __future__ import annotations

import numpy as np
import pytest

from dermstack.serve.heat_maps import heat_overlay
from dermstack.serve.standings import percent, standings


def unlike_the_rest(z: np.ndarray) -> list[float]:
    """1 less the cosine between each row and the mean direction of the others, one row after the other."""
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    made = []
    for row in range(len(z)):
        mean = np.delete(unit, row, axis=0).mean(axis=0)
        made.append(1 - unit[row] @ mean / np.linalg.norm(mean))
    return made


def test_the_distance_is_that_to_the_others_mean_direction_over_folds_and_runs(rng: np.random.Generator) -> None:
    folds = [{"a": rng.normal(size=(5, 8)), "b": rng.normal(size=(5, 3))} for _ in range(3)]
    made = standings(rng.random(5), folds)
    expected = np.mean([unlike_the_rest(z) for fold in folds for z in fold.values()], axis=0)
    np.testing.assert_allclose([one.distance for one in made], expected, atol=1e-5)
    assert [one.place for one in made] == (np.argsort(np.argsort(-expected)) + 1).tolist()
    for row, one in enumerate(made):
        rest = np.delete(expected, row)
        np.testing.assert_allclose(one.others_distance_range, (rest.min(), rest.max()), atol=1e-5)


def test_without_embeddings_only_risks_are_compared() -> None:
    for one in standings(np.array([0.1, 0.2]), [{}]):
        assert one.distance is None
        assert one.sentence.startswith("No model here combines embeddings, so the similarity of the lesions is not")


def test_the_odd_one_is_told_and_its_risk_set_against_the_others() -> None:
    z = np.array([[1.0, 0.05], [1.0, 0.0], [1.0, -0.05], [-1.0, 0.3]])
    made = standings(np.array([0.01, 0.02, 0.03, 0.5]), [{"run": z}])
    assert made[3].sentence == (
        "Of these 4 lesions, this one is the least similar to the others (distance 1.96, the others' 0.00 to 0.01). "
        "Its risk is 50 %, the mean of the others is 2.0 %."
    ).replace("0.00 to 0.01", f"{made[3].others_distance_range[0]:.2f} to {made[3].others_distance_range[1]:.2f}")
    assert made[3].others_mean_risk == pytest.approx(0.02)
    assert [one.place for one in made].index(1) == 3
    assert made[0].sentence.startswith("Number ")
    assert [one.others for one in made] == [3] * 4


def test_one_picture_has_no_others_and_of_two_neither_is_odd() -> None:
    (alone,) = standings(np.array([0.3]), [{"run": np.ones((1, 2))}])
    assert (alone.others, alone.distance, alone.place, alone.others_mean_risk) == (0, None, None, None)
    assert "no others of this patient" in alone.sentence
    pair = standings(np.array([0.3, 0.1]), [{"run": np.array([[1.0, 0.0], [0.0, 1.0]])}])
    assert [one.place for one in pair] == [None, None]
    assert [one.distance for one in pair] == pytest.approx([1.0, 1.0])
    assert pair[0].sentence == (
        "Its distance to the other lesion is 1.00; of only two, neither can be the unusual one. "
        "Its risk is 30 %, that of the other lesion is 10 %."
    )


def test_without_embeddings_only_the_risk_is_compared() -> None:
    made = standings(np.array([0.3, 0.1, 0.2]), [{}, {}])
    assert [one.distance for one in made] == [None] * 3
    assert made[0].others_mean_risk == pytest.approx(0.15)
    assert "not measured" in made[0].sentence


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.0 %"),
        (0.0004, "under 0.1 %"),
        (0.012, "1.2 %"),
        (0.123, "12 %"),
        (0.995, "99.5 %"),
        (0.9999, "over 99.9 %"),
    ],
)
def test_a_risk_is_never_rounded_to_nothing_or_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


def test_heat_is_painted_where_the_network_looked() -> None:
    image = np.full((40, 80, 3), 200, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:, 6:] = 1  # the right quarter of what the network saw
    squeezed = (heat_overlay(image, heat, squeezed=True) != image).any(axis=2)
    assert squeezed[:, 65:].all()
    assert not squeezed[:, :50].any()
    middle = (heat_overlay(image, heat, squeezed=False) != image).any(axis=2)  # of columns 20 to 60
    assert middle[:, 53:60].all()
    assert not middle[:, :45].any()
    assert not middle[:, 60:].any()
    assert (heat_overlay(image, np.zeros((8, 8), np.float32), squeezed=True) == image).all()
