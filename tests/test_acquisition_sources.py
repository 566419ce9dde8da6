from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import DataError
from stack.sources.acquisition import COLOURS, MIN_SHARE, OTHER, acquisition_sources, frame_colours

NO_NUMBERS, NO_WORDS = pd.DataFrame(), pd.DataFrame()


def colours(rng: np.random.Generator, centres: list[float], each: int = 60) -> pd.DataFrame:
    return pd.DataFrame(np.repeat(centres, each)[:, None] + rng.normal(size=(len(centres) * each, 3)), columns=COLOURS)


def test_frequent_formats_are_groups_and_rare_ones_share_one() -> None:
    sizes = ["1024 × 768"] * 60 + ["600 × 450"] * 38 + ["7 × 7", "8 × 8"]
    found = acquisition_sources(pd.DataFrame({"size": sizes}), NO_NUMBERS)
    assert pd.Series(found.source).value_counts().to_dict() == {"1024 × 768": 60, "600 × 450": 38, OTHER: 2}
    assert 1 / len(sizes) < MIN_SHARE <= 2 / len(sizes)


def test_colours_divide_a_format_where_they_have_a_structure(rng: np.random.Generator) -> None:
    numbers = colours(rng, [0, 30, 90])
    found = acquisition_sources(NO_WORDS, numbers)
    made = pd.Series(found.source)
    assert made.nunique() == 3
    assert made.groupby(np.repeat([0, 1, 2], 60)).nunique().tolist() == [1, 1, 1]
    assert "3 parts with mean silhouette 0.9" in found.remarks[0]


def test_colours_without_structure_divide_nothing_unless_a_number_is_given(rng: np.random.Generator) -> None:
    numbers = colours(rng, [0, 0, 0])
    found = acquisition_sources(NO_WORDS, numbers)
    assert set(found.source) == {"all"}
    assert "not divided" in found.remarks[0]
    assert len(set(acquisition_sources(NO_WORDS, numbers, clusters=4).source)) == 4


def test_the_groups_do_not_depend_on_the_scale_of_a_number(rng: np.random.Generator) -> None:
    numbers = colours(rng, [0, 40])
    other = numbers.assign(red=1000 * numbers["red"])
    assert (acquisition_sources(NO_WORDS, numbers).source == acquisition_sources(NO_WORDS, other).source).all()


def test_each_format_is_divided_by_itself(rng: np.random.Generator) -> None:
    words = pd.DataFrame({"size": np.repeat(["a", "b"], 120)})
    numbers = pd.concat([colours(rng, [0, 50]), colours(rng, [0, 0])], ignore_index=True)
    made = pd.Series(acquisition_sources(words, numbers).source)
    assert made.groupby(words["size"]).nunique().to_dict() == {"a": 2, "b": 1}


def test_the_frame_is_what_surrounds_the_lesion() -> None:
    images = np.full((2, 32, 32, 3), 200, np.uint8)
    images[:, 4:-4, 4:-4] = 10
    images[1, :, :, 2] = 50
    assert frame_colours(images).tolist() == [[200, 200, 200], [200, 200, 50]]


def test_nothing_known_and_missing_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="nothing is known of how the images were taken"):
        acquisition_sources(NO_WORDS, NO_NUMBERS)
    with pytest.raises(DataError, match="red has missing values"):
        acquisition_sources(NO_WORDS, pd.DataFrame({"red": [1.0, np.nan]}))


@pytest.mark.slow
def test_the_command_reads_the_images(config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conftest import run_cli

    out = tmp_path / "sources.csv"
    assert run_cli("sources", "-c", str(config_path), "--clusters", "2", "--out", str(out)) == 0
    (named,) = re.findall("`sources: (.*?)` below `data:`", " ".join(capsys.readouterr().out.split()))
    assert (config_path.parent / named).resolve() == out.resolve(), "as a path in the config is read"
    made = pd.read_csv(out)
    assert len(made) == 240
    assert made["source"].str.contains("by colour").all()
    assert made["source"].nunique() == 2
