"""External rows: images and targets from elsewhere that level 1 trains on, in every fold, and that nothing scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from stack.errors import DataError
from stack.table import SENTINELS, Table, read_external_frame

OnCollision = Literal["refuse", "drop"]
_DROP = "set `on_collision: drop` to leave them out, or remove them from the csv"


@dataclass(frozen=True)
class ExternalRows:
    """Checked rows (id, group, target, age, sex, site, where mapped diagnosis), and what was done to them.

    Groups are named ``<table>:<group>``, so that a patient number used twice never becomes one patient. ``collided``
    rows were dropped because their id is one of train or test; ``lone`` rows had no group and became one each.
    """

    name: str
    frame: pd.DataFrame
    collided: int
    lone: int

    def summary(self) -> str:
        """One line that says what comes in."""
        positives = int(self.frame["target"].sum())
        text = (
            f"external {self.name}: {len(self.frame):,} rows ({positives:,} positive) train every fold's image models"
        )
        if self.collided:
            text += f"; {self.collided:,} dropped, their ids are in train or test"
        return text + (f"; {self.lone:,} without a group are one each" if self.lone else "")


def read_external(
    path: Path, *, name: str, columns: Mapping[str, str], primary: Table, on_collision: OnCollision
) -> ExternalRows:
    """Read and check the csv of an external table; ``columns`` maps id, target and what else there is.

    Raises DataError naming every bad row, and where ids are also in train or test and ``on_collision`` is refuse.
    """
    frame = read_external_frame(path, columns)
    taken = frame["id"].isin(primary.train["id"]) | frame["id"].isin(primary.test["id"])
    if taken.any() and on_collision == "refuse":
        first = ", ".join(frame["id"][taken].iloc[:3])
        raise DataError(f"{path}: {int(taken.sum())} ids are also in train or test, first: {first}: {_DROP}")
    frame = frame[~taken].reset_index(drop=True)
    if frame.empty:
        raise DataError(f"{path}: every id is also in train or test: take the table out of data.external")
    is_lone = frame["group"].str.lower().isin(SENTINELS)
    group = frame["group"].where(~is_lone, "id " + frame["id"])
    return ExternalRows(name, frame.assign(group=name + ":" + group), int(taken.sum()), int(is_lone.sum()))


def duplicates_of_primary(
    external: pd.DataFrame, pairs: pd.DataFrame, on_collision: Mapping[str, OnCollision]
) -> pd.DataFrame:
    """External rows whose picture is also in train or test: id, source (the table), reason.

    ``external`` has id and source; ``pairs`` has id_1 and id_2 of the same picture; ``on_collision`` speaks for each
    table. A picture that trains level 1 and is scored would be a leak. Raises DataError where a table says refuse.
    """
    source = external.set_index("id")["source"]
    sides = [pairs[["id_1", "id_2"]], pairs[["id_2", "id_1"]]]
    both = pd.concat([side.set_axis(["id", "of"], axis=1) for side in sides], ignore_index=True)
    copies = both[both["id"].isin(source.index) & ~both["of"].isin(source.index)].drop_duplicates("id")
    copies = copies.assign(source=copies["id"].map(source)).sort_values("id", ignore_index=True)
    for table, rows in copies.groupby("source"):
        if on_collision[str(table)] == "refuse":
            first = ", ".join(f"{a} (as {b})" for a, b in rows[["id", "of"]].iloc[:3].to_numpy())
            raise DataError(
                f"external {table}: {len(rows)} pictures are also in train or test, first: {first}: {_DROP}"
            )
    return pd.DataFrame({
        "id": copies["id"],
        "source": copies["source"],
        "reason": "the same picture as " + copies["of"].astype("str"),
    })  # fmt: skip
