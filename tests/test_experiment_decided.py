from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dermstack.errors import StoreError
from stack.experiment import NO_CURATION, Curation, read_curation, write_curation


def curation() -> Curation:
    return Curation(
        pd.DataFrame({"id": ["NA", "01"], "source": ["train", "more"], "reason": ["cut off, at byte 3", "a copy"]}),
        pd.DataFrame(
            {"id_1": ["01", "x"], "id_2": ["NA", "y"], "turn": ["mirrored", "as it is"], "distance": [0.1, 0.0]}
        ),
        "fingerprint",
    )


def test_what_was_decided_comes_back_as_it_was(tmp_path: Path) -> None:
    write_curation(tmp_path, curation())
    again = read_curation(tmp_path)
    assert again.images_fingerprint == "fingerprint"
    assert again.dropped.astype(object).to_numpy().tolist() == curation().dropped.to_numpy().tolist(), "ids are text"
    assert again.pairs.astype(object).to_numpy().tolist() == curation().pairs.to_numpy().tolist()


def test_an_experiment_whose_pictures_nobody_saw_has_nothing_decided(tmp_path: Path) -> None:
    assert read_curation(tmp_path) is NO_CURATION
    write_curation(tmp_path, NO_CURATION)
    assert read_curation(tmp_path).pairs.empty


@pytest.mark.parametrize(
    "damage", [lambda f: (f / "dropped.csv").unlink(), lambda f: (f / "pictures.json").write_text("{")]
)
def test_damage_is_named_with_the_next_step(tmp_path: Path, damage: object) -> None:
    write_curation(tmp_path, curation())
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(StoreError, match=r"pictures\.json or a csv beside it is damaged.*run `dermstack oof`"):
        read_curation(tmp_path)


def test_a_changed_character_in_either_csv_is_noticed(tmp_path: Path) -> None:
    """Folds are dealt from them: other pairs would be other folds, and another submission."""
    for name in ("dropped.csv", "near_duplicates.csv"):
        write_curation(tmp_path, curation())
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("01", "02"))
        with pytest.raises(StoreError, match=rf"damaged \({name} has changed\): remove .*pictures\.json"):
            read_curation(tmp_path)
