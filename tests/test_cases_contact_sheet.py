import base64
import io

import numpy as np
import pandas as pd
from PIL import Image

from dermstack.report.cases import edges, sample_ids, tiles
from dermstack.report.pictures import data_uri


def make_train(n=300):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"i{number:03d}" for number in range(n)],
            "group": [f"p{number}" for number in rng.integers(0, 75, n)],
            "target": (rng.random(n) < 0.2).astype(np.int8),
            "age": np.where(rng.random(n) < 0.5, np.nan, 40),
            "sex": pd.Series("male", index=range(n), dtype="str"),
            "site": pd.Series(np.nan, index=range(n), dtype="str"),
        }
    )


def test_picked_images_are_of_different_groups_while_there_are_any(rng):
    table = make_train()
    ids = sample_ids(table, each=12, seed=3)
    chosen = table.set_index("id").loc[ids]
    assert chosen["target"].tolist() == [0] * 12 + [1] * 12
    assert chosen.groupby("target")["group"].nunique().tolist() == [12, 12]
    assert sample_ids(table.sample(frac=1, random_state=1), each=12, seed=3) == ids
    assert sample_ids(table, each=12, seed=4) != ids
    one_group = table.assign(group="p")
    assert len(set(sample_ids(one_group, each=1000, seed=0))) == len(table)


def test_edges_are_dark_where_the_brightness_changes():
    picture = np.full((64, 64, 3), 200, np.uint8)
    assert (edges(picture) == 255).all()
    picture[:, 32:] = 60
    drawn = edges(picture)
    assert drawn.shape == (64, 64)
    assert (drawn[:, 31:33] < 10).all()
    assert (np.delete(drawn, np.s_[26:38], axis=1) == 255).all()
    assert (edges(np.rot90(picture)) == np.rot90(drawn)).all()


def test_noise_of_a_grey_level_is_no_edge(rng):
    picture = (120 + rng.integers(0, 2, (64, 64, 1))).repeat(3, axis=2).astype(np.uint8)
    assert edges(picture).min() > 200


def test_a_data_uri_holds_the_picture(rng):
    picture = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3)), 16, 0), 16, 1).astype(np.uint8)
    uri = data_uri(picture)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert decoded.shape == (128, 128, 3)
    assert np.abs(decoded.astype(int) - picture)[4:-4:16, 4:-4:16].mean() < 12


def test_a_tile_has_the_picture_of_its_id_and_the_words_of_its_row():
    train = make_train()
    ids = [train.loc[train["age"].notna(), "id"].iloc[3], train.loc[train["age"].isna(), "id"].iloc[2]]
    pictures = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (10, 200)])
    made = tiles(train, ids, pictures)
    assert [tile.id for tile in made] == ids
    assert [tile.words for tile in made] == ["male, 40 years", "male"]
    assert [tile.picture for tile in made] == [data_uri(picture) for picture in pictures]
    assert [tile.edges for tile in made] == [data_uri(edges(picture)) for picture in pictures]
