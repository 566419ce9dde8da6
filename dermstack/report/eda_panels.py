"""Every figure of the first look at a data set, by the name that the page calls it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dermstack.audit.survey import AGE_EDGES, PICTURE_FACTS, age_histograms, age_rates, age_shares, level_counts
from dermstack.report.eda_figures import (
    age_rows_figure,
    count_figure,
    distance_figure,
    outline_figure,
    paired_figure,
    rate_figure,
    sizes_figure,
)
from dermstack.report.figures import Drawing
from stack.table import Table


def panels(
    table: Table, by: list[str], groups: pd.DataFrame, sizes: pd.DataFrame | None, apart: pd.DataFrame | None
) -> dict[str, Drawing]:
    """The figures by name; one that has nothing to show is left out.

    `by`: the columns that ages are split by; `groups`, `sizes` and `apart` come from `survey.group_sizes`,
    `survey.picture_sizes` and `drift.drift`.
    """
    train, positive = table.train, table.train["target"] == 1
    with_positive = train.loc[positive, "group"].nunique()
    balance = {
        "images: negative": int((~positive).sum()),
        "images: positive": int(positive.sum()),
        "groups: none positive": train["group"].nunique() - with_positive,
        "groups: with a positive": with_positive,
    }
    labels = groups["images"].map(_images).tolist()
    drawn = {
        "balance": count_figure("balance", list(balance), list(balance.values()), axis="images or groups"),
        "groups": count_figure("groups", labels, groups["groups"].tolist(), axis="groups"),
        "groups_positive": count_figure("groups_positive", labels, groups["with_positive"].tolist(), axis="groups"),
    }
    ages = [*AGE_EDGES.tolist(), int(AGE_EDGES[-1]) + 5]
    if train["age"].notna().any():
        shares = {
            "negative": age_shares(train.loc[~positive, "age"]),
            "positive": age_shares(train.loc[positive, "age"]),
        }
        drawn["age"] = outline_figure("age", ages, shares, axis="age in years")
        rates = age_rates(train)
        columns = (rates[column].tolist() for column in ("ages", "prevalence", "images"))
        drawn["age_rate"] = rate_figure("age_rate", *columns, axis="positive of the images")
        for column in by:
            rows = age_histograms(train, column)
            for of in ("all", "positive"):
                drawn[f"age_{column}_{of}"] = age_rows_figure(f"age_{column}_{of}", rows, of=of)
    if sizes is not None:
        drawn["sizes"] = sizes_figure("sizes", sizes, column="rows")
        drawn["sizes_positive"] = sizes_figure("sizes_positive", sizes, column="positives")
    if apart is not None:
        drawn["drift"] = distance_figure("drift", apart)
        drawn |= _drift_figures(table, apart, ages)
    return drawn


def _drift_figures(table: Table, apart: pd.DataFrame, ages: list[int]) -> dict[str, Drawing]:
    train, test, drawn = table.train, table.test, {}
    if "age" in set(apart["column"]):
        shares = {"train": age_shares(train["age"]), "test": age_shares(test["age"])}
        drawn["drift_age"] = outline_figure("drift_age", ages, shares, axis="age in years")
    for column in [column for column in ("sex", "site") if column in set(apart["column"])]:
        both = pd.concat([train.assign(target=0), test.assign(target=1)])[[column, "target"]]
        counts = level_counts(both, column)
        parts = {"train": counts["negatives"] / len(train), "test": counts["positives"] / len(test)}
        drawn[f"drift_{column}"] = paired_figure(
            f"drift_{column}",
            counts["level"].tolist(),
            {part: share.to_numpy() for part, share in parts.items()},
            axis="share of images",
        )
    width = PICTURE_FACTS["source_width"]
    if width in set(apart["column"]):
        values = [part["source_width"].to_numpy(np.float64) for part in (train, test)]
        low, high = np.min(np.concatenate(values)), np.max(np.concatenate(values))
        if high > low:  # pictures of one width have nothing to draw
            edges = np.linspace(low, high, 25)
            shares = {
                part: np.histogram(v, edges)[0] / len(v) for part, v in zip(("train", "test"), values, strict=True)
            }
            drawn["drift_width"] = outline_figure("drift_width", edges.tolist(), shares, axis="picture width in pixels")
    return drawn


def _images(size: str) -> str:
    return f"{size} image" if size == "1" else f"{size} images"
