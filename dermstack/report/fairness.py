"""Makes the report's sections on rows, patients and gaps between subgroups, and writes their tables as csv files."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.report.characteristics import characteristics, characteristics_table
from dermstack.report.flow_figure import NAME as FLOW
from dermstack.report.flow_figure import flow_figure
from dermstack.report.gaps import gaps_section
from dermstack.report.report import TEMPLATE_FOLDER, Section, render_template
from dermstack.report.row_flow import Flow, flow_table, merged_groups, row_flows
from dermstack.report.units import Scored
from stack.experiment import Experiment
from stack.metrics.gaps import Gaps, gaps
from stack.metrics.subgroups import Subgroup, shown_subgroups
from stack.store import Run, atomic

FOLDER = "report"  # in the experiment's folder


def fairness_sections(experiment: Experiment, blend: Run, runs: list[Run], scored: Scored) -> dict[str, Section | None]:
    """Returns the sections `participants` and `gaps`; writes row_flow.csv, characteristics.csv and gaps.csv.

    ``runs`` are those of the blend, ``scored`` the images or units that it scores.
    Without subgroups there is no section `gaps`, and gaps.csv has no lines.
    """
    rows = scored.experiment.rows_of(blend.frame("oof")["id"])
    parts, _ = blend_subgroups(scored.experiment, rows)
    row_of = np.arange(len(experiment.table.train)) if scored.units is None else scored.units.of_train
    flows = row_flows(experiment, np.isin(row_of, rows), runs, units=None if scored.units is None else len(rows))
    made, found = characteristics(scored.experiment, rows, parts), blend_gaps(scored.experiment, blend, parts)
    for name, frame in (("row_flow", flow_table(flows)), ("characteristics", made), ("gaps", found.table)):
        with atomic(experiment.folder / FOLDER / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    source = f"{FOLDER}/gaps.csv"
    return {
        "participants": _participants(experiment, flows, made, scored.unit),
        "gaps": gaps_section(found, thresholds=f"were chosen on these {scored.unit}s", source=source, unit=scored.unit),
    }


def _participants(experiment: Experiment, flows: list[Flow], made: pd.DataFrame, unit: str) -> Section:
    markup = render_template(
        "participants.html.j2",
        flows=flows,
        table=characteristics_table(made, unit),
        merged_groups=merged_groups(experiment),
        groups_known=experiment.table.groups_known,
        files=FOLDER,
    )
    style = (TEMPLATE_FOLDER / "participants.css").read_text(encoding="utf-8")
    tables = {"row-flow": flow_table(flows), "characteristics": made}
    return Section(markup, style, tables=tables, figures={FLOW: flow_figure(flows)})


def blend_gaps(experiment: Experiment, blend: Run, parts: list[Subgroup]) -> Gaps:
    """Returns the gaps between these subgroups of the blend's rows, from its nested score and calibrated p."""
    oof = blend.frame("oof")
    rows = experiment.rows_of(oof["id"])
    return gaps(
        experiment.target[rows], oof["score"], oof["p_calibrated"], experiment.split_group[rows], parts,
        seed=experiment.config.seed,
    )  # fmt: skip


def blend_subgroups(experiment: Experiment, rows: NDArray[np.intp]) -> tuple[list[Subgroup], int]:
    """Returns the subgroups of these training rows, and the number of columns of words without subgroups."""
    columns = experiment.table.columns
    table: pd.DataFrame = experiment.table.train.iloc[rows]
    return shown_subgroups(table, columns.shown_categorical, columns.shown_numeric)
