"""Report section on rows and patients: the flow of rows from the tables to the results, and their characteristics."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dermstack.report.characteristics import characteristics_table
from dermstack.report.report import TEMPLATE_FOLDER, Section, render_template
from dermstack.report.row_flow import Flow


def participants(
    flows: Sequence[Flow], found: pd.DataFrame, *, merged_groups: int, groups_known: bool, files: str
) -> Section:
    """Returns the section for `row_flow.row_flows` and `characteristics.characteristics`.

    ``merged_groups`` is the number of groups that share duplicates with another; ``files`` names the folder of the csv
    files with the same numbers.
    """
    markup = render_template(
        "participants.html.j2",
        flows=flows,
        table=characteristics_table(found),
        merged_groups=merged_groups,
        groups_known=groups_known,
        files=files,
    )
    return Section(markup, (TEMPLATE_FOLDER / "participants.css").read_text(encoding="utf-8"))
