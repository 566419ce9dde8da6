"""Table of characteristics ("Table 1"): rows, patients, prevalence, age and missing values by split and subgroup."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.report.tables import HtmlTable, table
from stack.experiment import Experiment
from stack.metrics.subgroups import Subgroup

_COUNTS = ("rows", "groups", "positives", "age_missing", "sex_missing", "site_missing")
_QUARTILES = {"age_low": 0.25, "age": 0.5, "age_high": 0.75}


def characteristics(experiment: Experiment, rows: NDArray[np.intp], parts: Sequence[Subgroup]) -> pd.DataFrame:
    """Returns one line for the scored training rows, the test rows, each fold, each subgroup and each external table.

    ``rows`` are the scored rows in the training table, ``parts`` their subgroups. Columns: by ("split", "fold", or the
    subgroup's column), part, rows, groups (patients, or lesions), positives, prevalence, age (median) with its
    quartiles age_low and age_high, age_missing, sex_missing and site_missing (rows). Missing where not known: groups
    where the table has none, and positives of test rows. Age, sex and site that no scored row has get no column.
    """
    train, test = experiment.table.train.iloc[rows].reset_index(drop=True), experiment.table.test
    fold = experiment.folds.frame["fold"].to_numpy()[rows]
    grouped, test_grouped = experiment.table.groups_known, experiment.table.test_groups_known
    lines = [_line("split", "training rows that are scored", train, grouped=grouped)]
    if len(test):
        lines.append(_line("split", "test rows", test, grouped=grouped and test_grouped))
    for name, of in experiment.external.groupby("source"):
        lines.append(_line("split", f"external {name}", of, grouped=True))
    lines += [_line("fold", str(k), train[fold == k], grouped=grouped) for k in np.unique(fold)]
    lines += [_line(part.by, part.name, train[part.rows], grouped=grouped) for part in parts]
    found = pd.DataFrame(lines)
    known = [name for name in ("age", "sex", "site") if train[name].notna().any()]
    absent = [
        name for name in found for column in ("age", "sex", "site") if name.startswith(column) and column not in known
    ]
    return found.drop(columns=absent).astype({name: "Int64" for name in _COUNTS if name not in absent})


def characteristics_table(found: pd.DataFrame, unit: str = "image") -> HtmlTable:
    """Formats the table for the page; a row is one ``unit``."""
    named = found["part"].where(found["by"] == "split", found["by"] + ": " + found["part"])
    frame = found.drop(columns=["by", "part"])
    frame.insert(0, "rows of", named)
    return table(
        frame,
        intervals={"age": ("age_low", "age_high")} if "age" in frame else {},
        tags={},
        heads={
            "rows": f"rows ({unit}s)", "age": "median age", "age_low": "quartiles of age", "age_missing": "age missing",
            "sex_missing": "sex missing", "site_missing": "site missing",
        },
        formats={"age": ".0f", "prevalence": ".1%"},
    )  # fmt: skip


def _line(by: str, part: str, rows: pd.DataFrame, *, grouped: bool) -> dict[str, object]:
    line: dict[str, object] = {
        "by": by, "part": part, "rows": len(rows), "groups": rows["group"].nunique() if grouped else pd.NA,
        "positives": int(rows["target"].sum()) if "target" in rows else pd.NA,
        "prevalence": float(rows["target"].astype("float64").mean()) if "target" in rows and len(rows) else np.nan,
    }  # fmt: skip
    age = rows["age"].astype("float64") if "age" in rows else pd.Series(np.nan, rows.index)
    line |= {name: float(age.quantile(share)) if age.notna().any() else np.nan for name, share in _QUARTILES.items()}
    missing = {name: int(rows[name].isna().sum()) if name in rows else len(rows) for name in ("age", "sex", "site")}
    ordered = [*[*line][:6], "age", "age_low", "age_high"]
    return {name: line[name] for name in ordered} | {f"{name}_missing": count for name, count in missing.items()}
