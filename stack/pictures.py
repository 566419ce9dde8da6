"""What the pictures decided about the rows, once, and written down: which can't be read, which are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stack.errors import StoreError
from stack.store import atomic, read_json, sha256, signed, write_json

DROPPED_COLUMNS = ["id", "source", "reason"]
PAIR_COLUMNS = ["id_1", "id_2", "turn", "distance"]


@dataclass(frozen=True)
class Decided:
    """Rows that leave the table (id, source, reason) and near-duplicates (id_1, id_2, turn, distance).

    Folds are dealt from them, so `oof` decides them once and they stay as long as the pictures do. ``looked_at`` is a
    fingerprint of the pictures that were looked at; "" where nobody has looked yet.
    """

    dropped: pd.DataFrame
    pairs: pd.DataFrame
    looked_at: str = ""


NOTHING_DECIDED = Decided(
    pd.DataFrame(columns=DROPPED_COLUMNS, dtype="str"), pd.DataFrame(columns=PAIR_COLUMNS).astype({"id_1": "str"})
)


def read_decided(folder: Path) -> Decided:
    """What lies in the experiment's ``folder``; nothing where its pictures were never looked at."""
    path = folder / "pictures.json"
    if not path.exists():
        return NOTHING_DECIDED
    try:
        noted = read_json(path)
        looked_at = noted["looked_at"]
        for file, digest in noted.get("files", {}).items():  # {}: of an earlier dermstack
            if sha256(folder / file) != digest:
                raise ValueError(f"{file} isn't what it was")
        dropped, pairs = (
            pd.read_csv(folder / file, dtype={"id": str, "id_1": str, "id_2": str}, keep_default_na=False)
            for file in ("dropped.csv", "near_duplicates.csv")
        )
        return Decided(dropped[DROPPED_COLUMNS], pairs[PAIR_COLUMNS], str(looked_at))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} or a csv beside it is damaged ({error}): remove {path} and run `dermstack oof`"
        ) from error


def write_decided(folder: Path, decided: Decided) -> None:
    """dropped.csv and near_duplicates.csv, to be read by people too; pictures.json last."""
    files = {}
    for name, frame in (("dropped", decided.dropped), ("near_duplicates", decided.pairs)):
        with atomic(path := folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
        files[path.name] = sha256(path)
    summary = {"looked_at": decided.looked_at, "dropped": len(decided.dropped), "pairs": len(decided.pairs)}
    write_json(folder / "pictures.json", signed(summary | {"files": files}))
