"""Small pictures for a page, beside their edges: what the lesions look like, and what else is on the pictures."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.uint8]


class Tile(NamedTuple):
    """One picture and its edges, each as the data URI of a JPEG."""

    id: str
    words: str  # what the table says of it
    picture: str
    edges: str


def pick(train: pd.DataFrame, *, each: int, seed: int) -> list[str]:
    """Ids of at most `each` negatives, then as many positives, at random; of a group one, as long as groups last.

    The same ids whatever the order of the rows.
    """
    rng = np.random.default_rng(seed)
    ids: list[str] = []
    for label in (0, 1):
        rows = train.loc[train["target"] == label, ["id", "group"]].sort_values("id")
        rows = rows.iloc[rng.permutation(len(rows))]
        turn = rows.groupby("group", sort=False).cumcount()  # the first of each group, then the second, …
        ids += rows.iloc[np.argsort(turn.to_numpy(), kind="stable")[:each]]["id"].tolist()
    return ids


def tiles(train: pd.DataFrame, ids: list[str], thumbnails: Pixels) -> list[Tile]:
    """Tiles for pictures (n, h, w, 3) of these `ids` of `train`, in their order."""
    rows = train.set_index("id").loc[ids].reset_index()
    return [
        Tile(row["id"], _words(row), data_uri(picture), data_uri(edges(picture)))
        for (_, row), picture in zip(rows.iterrows(), thumbnails, strict=True)
    ]


def edges(picture: Pixels) -> Pixels:
    """Edges of a picture (h, w, 3) as dark lines on white, (h, w): Sobel's gradient of the smoothed brightness.

    The strongest hundredth of the pixels is black; a picture of one colour stays white.
    """
    grey = ndimage.gaussian_filter(picture.astype(np.float64) @ (0.299, 0.587, 0.114), 1.0)
    strength = np.hypot(ndimage.sobel(grey, axis=0), ndimage.sobel(grey, axis=1))
    # Under a few grey levels it is the noise of the encoding, which should not be stretched to black.
    darkest = max(float(np.quantile(strength, 0.99)), 16.0)
    drawn: Pixels = (255 * (1 - np.clip(strength / darkest, 0, 1))).round().astype(np.uint8)
    return drawn


def data_uri(pixels: Pixels) -> str:
    """A picture (h, w) or (h, w, 3) as a JPEG inside a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _words(row: pd.Series) -> str:
    known = [f"{row['age']:.0f} years"] if pd.notna(row["age"]) else []
    return ", ".join([str(row[name]) for name in ("diagnosis", "sex", "site") if pd.notna(row.get(name))] + known)
