from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stack.errors import StoreError
from stack.experiment import NOTHING_DECIDED, Decided, read_decided, write_decided


def decided() -> Decided:
    return Decided(
        pd.DataFrame({"id": ["NA", "01"], "source": ["train", "more"], "reason": ["cut off, at byte 3", "a copy"]}),
        pd.DataFrame(
            {"id_1": ["01", "x"], "id_2": ["NA", "y"], "turn": ["mirrored", "as it is"], "distance": [0.1, 0.0]}
        ),
        "fingerprint",
    )


def test_what_was_decided_comes_back_as_it_was(tmp_path: Path) -> None:
    write_decided(tmp_path, decided())
    again = read_decided(tmp_path)
    assert again.looked_at == "fingerprint"
    assert again.dropped.astype(object).to_numpy().tolist() == decided().dropped.to_numpy().tolist(), "ids are text"
    assert again.pairs.astype(object).to_numpy().tolist() == decided().pairs.to_numpy().tolist()


def test_an_experiment_whose_pictures_nobody_saw_has_nothing_decided(tmp_path: Path) -> None:
    assert read_decided(tmp_path) is NOTHING_DECIDED
    write_decided(tmp_path, NOTHING_DECIDED)
    assert read_decided(tmp_path).pairs.empty


@pytest.mark.parametrize(
    "damage", [lambda f: (f / "dropped.csv").unlink(), lambda f: (f / "pictures.json").write_text("{")]
)
def test_damage_is_named_with_the_next_step(tmp_path: Path, damage: object) -> None:
    write_decided(tmp_path, decided())
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(StoreError, match=r"pictures\.json or a csv beside it is damaged.*run `dermstack oof`"):
        read_decided(tmp_path)


def test_a_changed_character_in_either_csv_is_noticed(tmp_path: Path) -> None:
    """Folds are dealt from them: other pairs would be other folds, and another submission."""
    for name in ("dropped.csv", "near_duplicates.csv"):
        write_decided(tmp_path, decided())
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("01", "02"))
        with pytest.raises(StoreError, match=rf"damaged \({name} isn't what it was\): remove .*pictures\.json"):
            read_decided(tmp_path)
