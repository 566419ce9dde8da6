"""What should be known of the pictures before a number is believed: duplicates by kind, odd pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dermstack.audit.finding import Finding, Severity, worst_first
from stack.errors import DataError
from stack.table import Table

PAIR_KINDS = ("different targets", "train and test", "across groups", "within a group")
SYSTEMATIC_SHARE = 0.5  # share of odd pictures from which the whole set is odd


def picture_findings(
    pairs: pd.DataFrame,
    ids: Sequence[str],
    odd: pd.DataFrame,
    dropped: pd.DataFrame,
    published: pd.DataFrame | None = None,
) -> list[Finding]:
    """All findings, the worst first.

    ``pairs`` is of `pair_kinds`; ``ids`` those of all pictures; ``odd`` has id and fault, ``dropped`` id and reason.
    """
    found = [
        *duplicate_findings(pairs),
        *published_duplicate_findings(pairs, published, set(ids)),
        *odd_findings(odd, len(ids)),
    ]
    if len(dropped):
        example = f"{dropped['id'].iloc[0]}: {dropped['reason'].iloc[0]}"
        remedy = "restore the files, or keep the loss in mind"
        found.append(Finding("warning", "dropped rows", f"{len(dropped)} rows left the table", remedy, example))
    return worst_first(found)


def pair_kinds(pairs: pd.DataFrame, table: Table) -> pd.DataFrame:
    """``pairs`` (id_1, id_2, turn, distance) with part, group, target of both and the worst kind that holds.

    Pairs that name an id of neither train nor test (an external row) have no kind and are left out.
    """
    train, test = table.train[["id", "group", "target"]], table.test[["id", "group"]]
    rows = pd.concat([train.assign(part="train"), test.assign(part="test", target=np.nan)]).set_index("id")
    known = pairs[pairs["id_1"].isin(rows.index) & pairs["id_2"].isin(rows.index)].reset_index(drop=True)
    sides = [rows.loc[known[f"id_{n}"]].reset_index(drop=True).add_suffix(f"_{n}") for n in (1, 2)]
    made = pd.concat([known, *sides], axis=1)
    both_train = (made["part_1"] == "train") & (made["part_2"] == "train")
    kind = np.select(
        [
            both_train & (made["target_1"] != made["target_2"]),
            made["part_1"] != made["part_2"],
            made["group_1"] != made["group_2"],
        ],
        list(PAIR_KINDS[:3]),
        PAIR_KINDS[3],
    )
    return made.assign(kind=kind.astype(object))


def duplicate_findings(pairs: pd.DataFrame) -> list[Finding]:
    """One finding for each kind of pair that is there."""
    says: dict[str, tuple[Severity, str]] = {
        PAIR_KINDS[0]: ("error", "look at both: one target is wrong, or the pictures only look alike"),
        PAIR_KINDS[1]: ("warning", "a score on these test rows is not of unseen pictures; drop them where that counts"),
        PAIR_KINDS[2]: ("warning", "their groups count as one split_group in folds and intervals"),
        PAIR_KINDS[3]: ("note", "harmless: a group never sits in two folds"),
    }
    found = []
    for kind in PAIR_KINDS:
        some = pairs[pairs["kind"] == kind]
        if len(some):
            severity, remedy = says[kind]
            closest = some.sort_values("distance").iloc[0]
            example = f"closest {closest['id_1']} and {closest['id_2']}"
            found.append(Finding(severity, f"near-duplicates {_where(kind)}", f"{len(some)} pairs", remedy, example))
    return found


def published_duplicate_findings(
    pairs: pd.DataFrame, published: pd.DataFrame | None, picture_ids: set[str]
) -> list[Finding]:
    """How the pairs found agree with a published list (two columns of ids), where both pictures are at hand."""
    if published is None:
        return []
    if published.shape[1] != 2:
        raise DataError(f"the published duplicates have {published.shape[1]} columns: keep the two that hold ids")
    listed = {frozenset(pair) for pair in published.astype("str").to_numpy()}
    seen = {pair for pair in listed if pair <= picture_ids}
    found = {frozenset(pair) for pair in pairs[["id_1", "id_2"]].astype("str").to_numpy()}
    evidence = (
        f"{len(listed)} listed, {len(seen)} with both pictures at hand: {len(seen & found)} of these found, "
        f"{len(found - listed)} found that are not listed"
    )
    return [Finding("note", "published duplicates", evidence, "both lists merge groups")]


def odd_findings(odd: pd.DataFrame, n: int) -> list[Finding]:
    """Pictures that can't be what they should (id, fault), of ``n`` in all."""
    found = []
    for fault, rows in odd.groupby("fault"):
        evidence, example = f"{len(rows)} of {n} pictures", f"first {', '.join(rows['id'].iloc[:3])}"
        if len(rows) > SYSTEMATIC_SHARE * n:
            swapped = fault == "red and blue swapped"
            remedy = "set `data.swap_red_blue: true`" if swapped else "look at how the pictures were written"
            found.append(Finding("error", f"most pictures: {fault}", evidence, remedy, example))
        else:
            severity: Severity = "note" if fault == "red and blue swapped" else "warning"
            found.append(Finding(severity, str(fault), evidence, "look", example))
    return found


def _where(kind: str) -> str:
    return {PAIR_KINDS[0]: "with different targets", PAIR_KINDS[1]: "across train and test"}.get(kind, kind)
