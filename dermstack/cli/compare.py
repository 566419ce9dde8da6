"""The command compare: the paired difference of two runs, or a leaderboard of any number, as table, csv and page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # these import pandas, which is slow and would delay `--help`
    import pandas as pd

    from stack.console import Out
    from stack.leaderboard import Leaderboard

commands = typer.Typer()
_MOST_COLUMNS = 4  # with more runs, the terminal shows the runs that share a value instead of a column for each run
_MOST_NAMES = 5  # runs named beside a value


@commands.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="<experiment> (its blend), <experiment>/<run> or <experiment>/old/<run>; any number, also with "
            "wildcards in quotes, such as 'mine/old/*'. Default: all experiments of the folder."
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(help="The folder with the experiments.")] = Path("runs"),
    objective: Annotated[
        str | None,
        typer.Option(
            help="auc, pauc80, ap, logloss, or decisions: reviews@0.9 (images reviewed per positive found at this "
            "sensitivity), nnb@0.05 (number needed to biopsy at this risk), net_benefit@0.05, top@3 (sensitivity of "
            "each patient's top images); default: the experiments' objective."
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Also write the leaderboard to this file: .csv or .html. Repeatable."),
    ] = None,
) -> None:
    """Compare runs or blends by paired differences.

    Of two runs, prints A minus B on the rows that both cover, with the 95 % interval by group. Of any other number,
    prints a leaderboard on the rows that all cover: scores, differences to the best, and the settings that differ.
    """
    from stack.console import Out
    from stack.leaderboard import find_names, leaderboard, read_entries, same_rows

    said, files = Out(), _checked_files(out or [])
    is_pair = names is not None and len(names) == 2 and not any(set(name) & set("*?[") for name in names)
    if is_pair and names is not None:
        _show_pair(said, folder, *names, objective=objective)
        if not files:
            return
    found, remarks = find_names(folder, names or [])
    for remark in remarks:
        said.say(remark)
    entries = read_entries(folder, found)
    together = [entries] if names else same_rows(entries)
    with said.bar("bootstrap", len(entries), unit="runs") as progress:
        boards = [leaderboard(some, objective=objective, progress=progress) for some in together]
    if not is_pair:
        if len(boards) > 1:
            said.say(f"{len(boards)} leaderboards, as the experiments are of {len(boards)} sets of rows or targets")
        for board in boards:
            _show_board(said, board)
    for path in files:
        _write(path, boards)
        said.say(f"written: {path}")


def _checked_files(paths: list[Path]) -> list[Path]:
    from dermstack.errors import ConfigError
    from stack.outputs import check_output

    for path in paths:
        if path.suffix.lower() not in (".csv", ".html"):
            raise ConfigError(f"--out {path}: name a file that ends with .csv or .html")
        check_output(path, "--out")
    return paths


def _write(path: Path, boards: list[Leaderboard]) -> None:
    from stack.leaderboard import csv_table
    from stack.outputs import output_file

    if path.suffix.lower() == ".csv":
        text = csv_table(boards).to_csv(index=False, lineterminator="\n")
    else:
        from dermstack.report.leaderboard import leaderboard_html

        text = leaderboard_html(boards)
    with output_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _show_pair(out: Out, folder: Path, a: str, b: str, *, objective: str | None) -> None:
    """Prints the difference of two runs, what it means, and which of the two is optimistic."""
    from stack.history import compare
    from stack.metrics.scores import objective_label

    made = compare(folder, a, b, objective=objective)
    difference = made.difference
    verdict = (
        "the interval contains zero: no difference is shown"
        if difference.low <= 0 <= difference.high
        else (f"{a if difference.low > 0 else b} is better, by more than noise")
    )
    delong = "" if made.p is None else f", p {made.p:.3g} (DeLong, clustered by group)"
    out.say(
        f"{objective_label(made.objective)} of {a} minus {b}: {difference.value:+.4f} "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]{delong} on {made.rows:,} rows; {verdict}"
    )
    for name in dict.fromkeys(made.selected):
        out.warn(f"{name}: selected on these rows, by a study or by hand, so its score is optimistic")


def _show_board(out: Out, board: Leaderboard) -> None:
    """Prints a leaderboard, the cost of the choice among its runs, and the settings that differ."""
    import pandas as pd

    from stack.leaderboard import choice_note
    from stack.metrics.scores import objective_label

    table, label = board.table, objective_label(board.objective)
    shown = pd.DataFrame({
        "place": range(1, len(table) + 1),
        "run": table["run"],
        label: table[board.column],
        "95 % interval": _intervals(table["low"], table["high"], ".4f"),
        "to the best": [f"{value:+.4f}" if place else "" for place, value in enumerate(table["difference"])],
        "paired interval": ["", *_intervals(table["difference_low"], table["difference_high"], "+.4f")[1:]],
        "verdict": table["verdict"],
        "rows": table["rows"],
        "estimate": table["estimate"] + table["note"].map(lambda note: f", {note}" if note else ""),
    })  # fmt: skip
    if "other_sources" in table:
        shown["AUC in held-out sources"] = table["other_sources"]
    if (table["rows"] != board.rows).any():
        shown.insert(8, "on all its rows", table["all_rows"])
    if len(table) == 1:
        shown = shown.drop(columns=["to the best", "paired interval", "verdict"])
    covered = f"all {len(table)} cover" if len(table) > 1 else "it covers"
    out.table(
        shown,
        f"{label} on the {board.rows:,} rows that {covered} ({board.positives:,} positive, "
        f"{board.groups:,} groups); intervals by group",
    )
    if len(table) > 1:
        out.say(choice_note(board))
    for remark in board.remarks:
        out.warn(remark)
    if len(board.settings):
        out.table(_shown_settings(board.settings), "settings that differ")
    elif len(table) > 1:
        out.say("no setting on record differs")


def _intervals(low: pd.Series, high: pd.Series, form: str) -> list[str]:
    return [f"{a:{form}} – {b:{form}}" for a, b in zip(low, high, strict=True)]


def _shown_settings(settings: pd.DataFrame) -> pd.DataFrame:
    """Returns a column a run where they are few; else a row for each value, with the runs that have it."""
    import pandas as pd

    if settings.shape[1] <= _MOST_COLUMNS:
        return settings.reset_index()
    rows = []
    for key, values in settings.iterrows():
        for value, of in values.groupby(values, sort=False):
            names = list(of.index)
            more = f", … {len(names)} in all" if len(names) > _MOST_NAMES else ""
            rows.append((key, value, ", ".join(names[:_MOST_NAMES]) + more))
    return pd.DataFrame(rows, columns=["key", "value", "runs"])
