"""Findings about the images: near-duplicates by kind, odd images and odd parts, unreadable images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.audit.finding import Finding, Severity, worst_first
from dermstack.errors import DataError
from dermstack.listing import counted
from stack.tables.table import Table

PAIR_KINDS = ("different targets", "train and test", "across groups", "within a group")
SYSTEMATIC_SHARE = 0.5  # above this share of images with one fault, the whole data set has it


def picture_findings(
    pairs: pd.DataFrame,
    ids: Sequence[str],
    odd: pd.DataFrame,
    dropped: pd.DataFrame,
    published: pd.DataFrame | None = None,
    odd_parts: Sequence[Finding] = (),
) -> list[Finding]:
    """Returns all findings about the images, the worst first.

    ``pairs`` comes from `pair_kinds`; ``ids`` are those of all images; ``odd`` has id and fault, ``dropped`` has id and
    reason; ``published`` is a list of known duplicates, two columns of ids; ``odd_parts`` comes from
    `part_findings`.
    """
    found = [
        *duplicate_findings(pairs),
        *published_duplicate_findings(pairs, published, set(ids)),
        *odd_findings(odd, len(ids)),
        *odd_parts,
    ]
    if len(dropped):
        example = f"{dropped['id'].iloc[0]}: {dropped['reason'].iloc[0]}"
        remedy = "restore the files, or report that these rows are missing"
        found.append(
            Finding(
                "warning", "dropped rows", f"{counted(len(dropped), 'rows')} left out of the table", remedy, example
            )
        )
    return worst_first(found)


def pair_kinds(pairs: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Adds part, group and target of both images to ``pairs`` (id_1, id_2, turn, distance), and their worst kind.

    Kinds, worst first, are in PAIR_KINDS. Pairs with an id that is in neither train nor test (an external row) are left
    out.
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


def count_kinds(pairs: pd.DataFrame) -> dict[str, int]:
    """Counts pairs of `pair_kinds` by their kind, worst first; kinds without a pair are 0."""
    counts = pairs["kind"].value_counts()
    return {kind: int(counts.get(kind, 0)) for kind in PAIR_KINDS}


def chain_finding(unmerged: pd.DataFrame, table: Table) -> Finding:
    """Reports pairs that look alike and would join more than two groups, which `data.on_chain` has to decide."""
    group_of = table.train.set_index("id")["group"]
    groups = pd.unique(pd.concat([unmerged[side].map(group_of) for side in ("id_1", "id_2")]))
    evidence = f"{len(unmerged)} pairs of {len(groups)} groups"
    remedy = "look at the pairs, then set data.on_chain: merge or ignore; `oof` refuses until then"
    example = f"groups {', '.join(map(str, groups[:3]))}"
    return Finding("error", "images that look alike would join more than two groups", evidence, remedy, example)


def duplicate_findings(pairs: pd.DataFrame) -> list[Finding]:
    """Returns one finding for each kind of pair that occurs."""
    says: dict[str, tuple[Severity, str]] = {
        PAIR_KINDS[0]: ("error", "check both: one target is wrong, or the images only look alike"),
        PAIR_KINDS[1]: ("warning", "the model has seen these test images, so a test score is optimistic"),
        PAIR_KINDS[2]: (
            "warning",
            "their groups count as one split_group; data.find_duplicates: false undoes it",
        ),
        PAIR_KINDS[3]: ("note", "harmless: all rows of a group are in one fold"),
    }
    found = []
    for kind in PAIR_KINDS:
        some = pairs[pairs["kind"] == kind]
        if len(some):
            severity, remedy = says[kind]
            closest = some.sort_values("distance").iloc[0]
            example = f"closest {closest['id_1']} and {closest['id_2']}"
            found.append(
                Finding(
                    severity, f"images that look alike, {_where(kind)}", counted(len(some), "pairs"), remedy, example
                )
            )
    return found


def published_duplicate_findings(
    pairs: pd.DataFrame, published: pd.DataFrame | None, picture_ids: set[str]
) -> list[Finding]:
    """Compares the pairs found with a published list of duplicates (two columns of ids).

    A listed pair counts only if both images are available. Raises DataError if the list has other than two columns.
    """
    if published is None:
        return []
    if published.shape[1] != 2:
        raise DataError(f"the published duplicates have {published.shape[1]} columns: keep the two columns of ids")
    listed = {frozenset(pair) for pair in published.astype("str").to_numpy()}
    seen = {pair for pair in listed if pair <= picture_ids}
    found = {frozenset(pair) for pair in pairs[["id_1", "id_2"]].astype("str").to_numpy()}
    evidence = (
        f"{len(listed)} listed, {len(seen)} with both images available: {len(seen & found)} of these "
        f"found, {len(found - listed)} found that are not listed"
    )
    return [Finding("note", "published duplicates", evidence, "none: pairs of both lists merge groups")]


def odd_findings(odd: pd.DataFrame, n: int) -> list[Finding]:
    """Returns one finding for each fault in ``odd`` (id, fault), of ``n`` images in all."""
    found = []
    for fault, rows in odd.groupby("fault"):
        evidence, example = f"{len(rows)} of {n} images", f"first {', '.join(rows['id'].iloc[:3])}"
        if len(rows) > SYSTEMATIC_SHARE * n:
            swapped = fault == "red and blue swapped"
            remedy = "set `data.swap_red_blue: true`" if swapped else "check how the image files were written"
            found.append(Finding("error", f"most images: {fault}", evidence, remedy, example))
        else:
            severity: Severity = "note" if fault == "red and blue swapped" else "warning"
            found.append(Finding(severity, str(fault), evidence, "check these images", example))
    return found


MIN_PART = 10  # images: their mean shows what they share
MIN_TURN_GAIN = 0.3  # correlation: a turned part fits the other images so much better than as it is
DEPTH_GAP = 2  # bits between the largest values of two parts of 16-bit images
TURNS = ((4, "mirrored along the diagonal"), (5, "turned by 90°"), (6, "turned by 270°"), (3, "turned by 180°"))


def part_findings(thumbnails: NDArray[np.uint8], parts: pd.DataFrame) -> list[Finding]:
    """Returns a finding for each part of the images that is negative, turned or of another depth than the others.

    ``thumbnails`` (n, s, s, 3) are compared as means, since single images differ too much: those with one value of a
    column of ``parts`` (n rows: encoding, depth, size of the file's image, …) with all others. ``bits`` in ``parts``
    are those of `Picture`.
    """
    grey = thumbnails.astype(np.float32).mean(axis=3)
    found = _depth_findings(parts)
    seen: list[NDArray[np.bool_]] = []
    for column in parts:
        codes, values = pd.factorize(parts[column])
        for code, value in enumerate(values):
            inside = codes == code
            small = inside if 2 * inside.sum() <= len(grey) else ~inside
            if small.sum() < MIN_PART or any((small == known).all() for known in seen):
                continue
            fault = _part_fault(grey[small].mean(axis=0), grey[~small].mean(axis=0))
            if fault:
                seen.append(small)
                evidence = f"{int(small.sum())} of {len(grey)} images, told apart by {column} {value}"
                remedy = "look at some of them; write these files again as the others, or correct their tags"
                found.append(Finding("error", f"a part of the images is {fault}", evidence, remedy))
    return found


def _part_fault(part: NDArray[np.float32], others: NDArray[np.float32]) -> str:
    """Says what is wrong with the mean image of a part: "" where it resembles the mean of the others as it is."""
    fits = {name: float(np.corrcoef(_turned(part, turn).ravel(), others.ravel())[0, 1]) for turn, name in TURNS}
    as_it_is = float(np.corrcoef(part.ravel(), others.ravel())[0, 1])
    best = max(fits, key=lambda name: fits[name])
    if as_it_is < -0.5 and -as_it_is > fits[best]:
        return "negative"
    return best if fits[best] - as_it_is > MIN_TURN_GAIN and fits[best] > 0.5 else ""


def _turned(image: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    turned = image.T if turn >= 4 else image
    turned = turned[:, ::-1] if turn in (1, 3, 5, 7) else turned
    return turned[::-1] if turn in (2, 3, 6, 7) else turned


def _depth_findings(parts: pd.DataFrame) -> list[Finding]:
    """Returns a finding where some 16-bit images use all their bits and many others, by folder or size, do not."""
    bits = parts["bits"].to_numpy() if "bits" in parts else np.empty(0, int)
    deep = bits[bits > 0]
    dark = deep[deep <= deep.max() - DEPTH_GAP] if deep.size else deep
    if len(dark) < MIN_PART or len(dark) < 0.02 * len(deep):
        return []
    evidence = f"{len(dark)} of {len(deep)} images with 16 bits use at most {dark.max()}, others {deep.max()}"
    remedy = "write those of fewer bits again, scaled like the others; they appear almost black beside them"
    return [Finding("warning", "images of different depth", evidence, remedy)]


def _where(kind: str) -> str:
    return {PAIR_KINDS[0]: "with different targets", PAIR_KINDS[1]: "across train and test"}.get(kind, kind)
