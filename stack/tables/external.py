"""Reads tables of extra training rows for level 1, and drops rows whose id or image is also in train or test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from dermstack.errors import DataError
from dermstack.listing import counted
from stack.settings.data import NO_RULES, ColumnRules
from stack.tables.checks import SENTINELS, case_notes
from stack.tables.keys import contained, keys_as_in
from stack.tables.net_columns import external_columns
from stack.tables.table import CASED, Table, read_external_frame, with_words_of

if TYPE_CHECKING:
    from stack.console import Out
    from stack.settings.config import Config

OnCollision = Literal["refuse", "drop"]
_DROP_ADVICE = "set its `on_collision: drop` to leave them out, or remove them from the csv"


@dataclass(frozen=True)
class ExternalRows:
    """Checked rows of an external table: id, group, target, age, sex, site and, where mapped, diagnosis.

    Groups are named ``<table>:<group>``, so that patients of two tables with the same number stay apart. ``collided``
    is the number of rows dropped because their id is in train or test; ``ungrouped`` is the number of rows without a
    group, which became groups of one; ``shared`` is that of rows whose group has the name of one of train or test.
    """

    name: str
    frame: pd.DataFrame
    collided: int
    ungrouped: int
    shared: int = 0
    notes: tuple[str, ...] = ()  # on infinite numbers

    def warnings(self) -> list[str]:
        """Returns its notes, and a warning where groups have the names of groups of train or test."""
        if not self.shared:
            return list(self.notes)
        shared = (
            f"external {self.name}: {counted(self.shared, 'rows', 'have')}"
            " a group with the name of one of train or test. If they are one patient, the rows train the nets that "
            "score this patient, and scores are too good for new ones: remove the rows from its csv"
        )
        return [*self.notes, shared]

    def summary(self) -> str:
        """Returns one line with the numbers of rows, positives, dropped rows and rows without a group."""
        positives = int(self.frame["target"].sum())
        rows = counted(len(self.frame), "rows")
        text = f"external {self.name}: {rows} ({positives:,} positive) for the training of every fold's image models"
        if self.collided:
            text += f"; {self.collided:,} dropped, as their ids are in train or test"
        return text + (f"; {self.ungrouped:,} without a group are groups of one" if self.ungrouped else "")


def read_external(
    path: Path,
    *,
    name: str,
    columns: Mapping[str, str],
    primary: Table,
    on_collision: OnCollision,
    rules: ColumnRules = NO_RULES,
    further: Sequence[str] = (),
) -> ExternalRows:
    """Reads and checks the csv of an external table; ``columns`` maps id, target and the optional columns.

    ``further`` are further columns of ``primary`` that are read too; those that the csv lacks have missing values.

    Raises DataError that lists the faulty rows, and where ids are also in train or test and ``on_collision`` is refuse.
    Raises ConfigError where ``columns`` lacks id or target.
    """
    notes: list[str] = []
    frame = read_external_frame(path, columns, rules, primary.columns, further, notes)
    known = pd.concat([primary.train["id"], primary.test["id"]])
    spelled = keys_as_in(frame["id"], known, f"{path}: id", of="train and test", refuse_doubtful=False)
    taken = pd.Series(contained(spelled, known), index=frame.index)
    if taken.any() and on_collision == "refuse":
        first = ", ".join(frame["id"][taken].iloc[:3])
        raise DataError(f"{path}: {int(taken.sum())} ids are also in train or test, first: {first}: {_DROP_ADVICE}")
    frame = with_words_of(frame[~taken].reset_index(drop=True), primary.train, primary.columns)
    if frame.empty:
        raise DataError(f"{path}: every id is also in train or test: remove the table from data.external")
    is_ungrouped = frame["group"].str.lower().isin(SENTINELS)
    group = frame["group"].where(~is_ungrouped, "id " + frame["id"])
    groups = pd.concat([primary.train["group"], primary.test["group"]], ignore_index=True)
    named = keys_as_in(frame["group"], groups, f"{path}: group", of="train and test", refuse_doubtful=False)
    shared = pd.Series(contained(named, groups), index=frame.index) & ~is_ungrouped
    frame = frame.assign(group=name + ":" + group)
    return ExternalRows(name, frame, int(taken.sum()), int(is_ungrouped.sum()), int(shared.sum()), tuple(notes))


def read_external_tables(config: Config, primary: Table, out: Out) -> tuple[pd.DataFrame, dict[str, int]]:
    """Reads the rows of every external table, with the table's name as `source`; also counts the rows left out."""
    tables = []
    for external in config.data.external:
        columns = external.columns.model_dump(exclude_none=True)
        rows = read_external(
            external.table, name=external.name, columns=columns, primary=primary, on_collision=external.on_collision,
            rules=ColumnRules(missing=config.data.missing_of(columns)),
            further=external_columns(config, primary.columns),
        )  # fmt: skip
        out.say(rows.summary())
        words = {name: columns[name] for name in CASED if name in columns} | dict(primary.columns.categorical)
        for warning in rows.warnings() + case_notes(
            rows.frame, words, external.table, primary.train, config.data.train
        ):
            out.warn(warning)
        tables.append(rows)
    if not tables:
        return pd.DataFrame({"id": [], "source": [], "group": [], "target": []}, dtype="str"), {}
    together = pd.concat([rows.frame.assign(source=rows.name) for rows in tables], ignore_index=True)
    if (doubled := together["id"].duplicated()).any():
        raise DataError(
            f"{int(doubled.sum())} ids are in more than one external table, first: {together['id'][doubled].iloc[0]}: "
            "drop them from one of the tables"
        )
    return together, {rows.name: rows.collided for rows in tables}


def listed_copies(
    external: pd.DataFrame, listed: pd.DataFrame | None, primary: Table, on_collision: Mapping[str, OnCollision]
) -> pd.DataFrame:
    """Returns the external rows that pairs of `data.duplicates` join to a row of train or test: id, source, reason.

    ``listed`` has id_1 and id_2 of each pair; None where the config names no such file. Raises as
    `duplicates_of_primary` does.
    """
    if listed is None or external.empty:
        return pd.DataFrame(columns=["id", "source", "reason"], dtype="str")
    ids = pd.concat([primary.train["id"], primary.test["id"]], ignore_index=True)
    known = contained(listed["id_1"], ids) | contained(listed["id_2"], ids)
    return duplicates_of_primary(external, listed[known], on_collision)


def duplicates_of_primary(
    external: pd.DataFrame, pairs: pd.DataFrame, on_collision: Mapping[str, OnCollision]
) -> pd.DataFrame:
    """Returns the external rows whose image is also in train or test: id, source (the table), reason.

    ``external`` has id and source; ``pairs`` has id_1 and id_2 of the same image; ``on_collision`` has the setting of
    each table. Training level 1 on an image that is scored would be a leak. Raises DataError for such rows of a table
    whose setting is refuse.
    """
    source = external.set_index("id")["source"]
    sides = [pairs[["id_1", "id_2"]], pairs[["id_2", "id_1"]]]
    both = pd.concat([side.set_axis(["id", "of"], axis=1) for side in sides], ignore_index=True)
    is_external = [contained(both[side], external["id"]) for side in ("id", "of")]
    copies = both[is_external[0] & ~is_external[1]].drop_duplicates("id")
    copies = copies.assign(source=copies["id"].map(source)).sort_values("id", ignore_index=True)
    for table, rows in copies.groupby("source"):
        if on_collision[str(table)] == "refuse":
            first = ", ".join(f"{a} (as {b})" for a, b in rows[["id", "of"]].iloc[:3].to_numpy())
            raise DataError(
                f"external {table}: {len(rows)} images are also in train or test, first: {first}: {_DROP_ADVICE}"
            )
    return pd.DataFrame({
        "id": copies["id"],
        "source": copies["source"],
        "reason": "the same image as " + copies["of"].astype("str"),
    })  # fmt: skip
