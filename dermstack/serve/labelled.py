"""New rows whose targets are known: labels, metadata and pictures, joined by id."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dermstack.serve.bundle import Bundle
from dermstack.serve.predict import NewRows, read_new_rows
from stack.errors import DataError
from stack.metrics.measures import check_classes
from stack.table import read_cells, read_external_frame

_SHOWN = 5  # ids named of each fault


def read_labelled_rows(
    bundle: Bundle,
    images: Path,
    labels: Path,
    metadata: Path | None = None,
    *,
    id_column: str | None = None,
    target_column: str | None = None,
) -> tuple[NewRows, pd.Series]:
    """The rows of ``labels`` with their pictures, and their targets (0 or 1) by id.

    Group, age, sex and site come from ``metadata`` where it is given, else from ``labels``, named as in training; the
    columns of id (in both files) and target may be named otherwise. ``images`` may hold more pictures than there are
    labels. Raises DataError for ids that are doubled or not in both files, for targets other than 0 and 1, and for
    a class that fewer than two groups hold; ImageError for labels without a picture.
    """
    for path in filter(None, (labels, metadata)):
        if not path.is_file():
            raise DataError(f"{path}: no such file: name the csv of the labels, and that of the metadata")
    called = {"id": id_column or bundle.columns["id"], "target": target_column or bundle.columns["target"]}
    header = list(read_cells(labels).columns)
    for name, csv in called.items():
        if csv not in header:
            raise DataError(
                f"{labels}: no column {csv!r}, it has {', '.join(map(repr, header))}: name the one that holds the "
                f"{name} with --{name}-column"
            )
    targets = read_external_frame(labels, called).set_index("id")["target"]
    rows = read_new_rows(bundle, images, metadata or labels, id_column=called["id"])
    if metadata:
        _check_same_ids(targets.index, pd.Index(rows.frame["id"]), labels, metadata)
    y = targets_of(rows, targets)
    check_classes(y, rows.frame["group"])
    return rows, targets


def targets_of(rows: NewRows, labels: pd.Series) -> pd.Series:
    """The targets of these rows, in their order, joined by id. Raises DataError where an id has none, or several."""
    if labels.index.has_duplicates:
        raise DataError(f"labels: {_named(labels.index[labels.index.duplicated()].unique())} more than once: keep one")
    _check_same_ids(labels.index, pd.Index(rows.frame["id"]), "labels", "the rows")
    y = labels.loc[rows.frame["id"]]
    if len(odd := y[~y.isin([0, 1])]):
        raise DataError(f"labels: {odd.iloc[0]!r} (of {odd.index[0]}) is not 0 or 1: {len(odd)} such, correct them")
    return y.astype(int)


def _check_same_ids(labelled: pd.Index, described: pd.Index, labels: Path | str, metadata: Path | str) -> None:
    faults = [
        f"{there} has no row for {_named(missing)} of {here}"
        for missing, here, there in (
            (labelled.difference(described, sort=False), labels, metadata),
            (described.difference(labelled, sort=False), metadata, labels),
        )
        if len(missing)
    ]
    if faults:
        raise DataError(f"{'; '.join(faults)}: give both the same ids, each once")


def _named(ids: pd.Index) -> str:
    more = f", … {len(ids):,} in all" if len(ids) > _SHOWN else ""
    return ", ".join(map(repr, ids[:_SHOWN])) + more
