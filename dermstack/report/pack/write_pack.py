"""Writes the reporting pack: report, checklists, methods text, every figure and every table of a run in one folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from dermstack.errors import ConfigError
from dermstack.report.evidence import WrittenReport
from dermstack.report.figures import Drawing
from dermstack.report.flow_figure import NAME as ROW_FLOW
from dermstack.report.pack.captions import Captions, captions_of
from dermstack.report.pack.checklist import CHECKLISTS, Checklist, answered, checklist_table
from dermstack.report.pack.checklist_page import PAGE, checklist_html
from dermstack.report.pack.figure_files import FORMATS, write_figure
from dermstack.report.pack.methods import methods_text
from dermstack.report.pack.run_evidence import Evidence, evidence_of
from stack.console import Out
from stack.outputs import check_output_folder
from stack.store import atomic, error_with_path, read_json, sha256, with_digest, write_json

RECORD = "pack.json"  # SHA-256 of every file of a pack; written last


def write_checklists(report: WrittenReport, checklists: Sequence[Checklist]) -> list[Path]:
    """Writes checklist_<name>.html and .csv beside the report, and returns the pages."""
    evidence, anchors, made = evidence_of(report), captions_of(report.html).anchors, []
    for checklist in checklists:
        for name, content in _checklist_files(evidence, checklist, anchors, tables=()).items():
            with atomic(report.path.with_name(name)) as temporary:
                temporary.write_bytes(content)
        made.append(report.path.with_name(f"checklist_{checklist.name}.html"))
    return made


def check_pack_folder(folder: Path) -> None:
    """Raises ConfigError where ``folder`` cannot become a pack: a file, other files, or a pack with changed files.

    Called before anything is computed.
    """
    check_output_folder(folder, "--pack")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / RECORD).is_file():
        raise ConfigError(
            f"--pack {folder}: the folder holds other files and no {RECORD}, so it is no pack that could be replaced: "
            "name a new folder"
        )
    if changed := _changed_files(folder):
        raise ConfigError(
            f"--pack {folder}: {', '.join(changed[:5])}{', …' if len(changed) > 5 else ''} was changed or added since "
            "the pack was written, and would be lost: name another folder, or move these files away"
        )


def write_pack(report: WrittenReport, folder: Path, checklists: Sequence[Checklist], out: Out) -> Path:
    """Writes the pack as a whole: a folder that is incomplete never has the name ``folder``.

    An earlier pack is replaced. Raises ConfigError as `check_pack_folder` does.
    """
    check_pack_folder(folder)
    target = Path(os.path.realpath(folder))
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    earlier = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        _write(report, partial, checklists or list(CHECKLISTS.values()), out)
        if target.exists():
            target.rename(earlier)
        partial.rename(target)
    except OSError as error:
        raise error_with_path(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if earlier.exists() and not target.exists():
            earlier.rename(target)
        shutil.rmtree(earlier, ignore_errors=True)
    return folder


def pack_tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Returns every table of the report by the name of its csv, in full precision and without ids."""
    data, made = evidence.data, dict(evidence.tables)
    made["runs"], made["weights"] = data.runs, data.weights
    made["compared"] = pd.DataFrame([
        {
            "compared_with": other.label, "value": other.value.value, "low": other.value.low, "high": other.value.high,
            "difference": other.difference.value, "difference_low": other.difference.low,
            "difference_high": other.difference.high,
        }
        for other in data.comparisons
    ])  # fmt: skip
    if "findings" in made:  # the report shows ids only on demand; a file that may be given away never has any
        made["findings"] = made["findings"].drop(columns="example", errors="ignore")
    if data.decision is not None:
        made["decision-curve"] = data.decision.curve
    if data.importance is not None:
        made["importance"] = data.importance
    lists = {"table": data.facts, "duplicates": data.data.duplicates, "seeds": data.seeds,
             "fingerprints": data.fingerprints, "versions": data.versions}  # fmt: skip
    made["facts"] = pd.DataFrame(
        [(name, key, value) for name, values in lists.items() for key, value in values.items()],
        columns=["list", "name", "value"],
    )
    return {name: frame for name, frame in made.items() if len(frame)}


def _write(report: WrittenReport, folder: Path, checklists: Sequence[Checklist], out: Out) -> None:
    evidence, captions = evidence_of(report), captions_of(report.html)
    tables = pack_tables(evidence)
    drawings = report.parts.drawings
    for section in report.sections.values():
        drawings |= section.figures
    drawings = {_file_name(name): drawn for name, drawn in drawings.items()}
    (folder / "tables").mkdir()
    (folder / "figures").mkdir()
    with out.bar("pack", len(drawings) + len(tables) + len(checklists), "files") as progress:
        for name, frame in tables.items():
            (folder / "tables" / f"{name}.csv").write_bytes(csv_bytes(frame))
            progress(1)
        for name, drawn in drawings.items():
            title, _ = _caption(name, drawn, captions)
            if lacking := write_figure(drawn, folder / "figures", name, title):
                out.warn(
                    f"figures/{name}.pdf: the font lacks {len(lacking)} characters of its labels, which are empty "
                    "boxes there; the svg has them as text"
                )
            progress(1)
        for checklist in checklists:
            for path, content in _checklist_files(evidence, checklist, captions.anchors, tables=tuple(tables)).items():
                (folder / path).write_bytes(content)
            progress(1)
    (folder / PAGE).write_text(report.html, encoding="utf-8")
    (folder / "methods.md").write_text(methods_text(evidence), encoding="utf-8")
    (folder / "README.md").write_text(_readme(evidence, captions, tables, drawings, checklists), encoding="utf-8")
    record = {
        "made_by": f"dermstack {version('dermstack')}",
        "experiment": evidence.data.experiment,
        "blend": evidence.blend["fingerprint"],
        "files": _hashes(folder),
    }
    write_json(folder / RECORD, with_digest(record))


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """Returns a table as csv: UTF-8, numbers in full precision, missing values empty.

    Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    return frame.map(_cell).rename(columns=_cell).to_csv(index=False, lineterminator="\n").encode()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _checklist_files(
    evidence: Evidence, checklist: Checklist, anchors: set[str], *, tables: tuple[str, ...]
) -> dict[str, bytes]:
    """Returns the page and the csv of a checklist, by their names."""
    lines = answered(checklist, evidence)
    page = checklist_html(checklist, lines, evidence, anchors=anchors, tables=tables)
    name = f"checklist_{checklist.name}"
    return {f"{name}.html": page.encode(), f"{name}.csv": csv_bytes(checklist_table(lines))}


def _file_name(name: str) -> str:
    """Returns a name of a figure as the name of a file; two names stay two."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _readme(
    evidence: Evidence,
    captions: Captions,
    tables: dict[str, pd.DataFrame],
    drawings: dict[str, Drawing],
    checklists: Sequence[Checklist],
) -> str:
    lines = [
        f"# Reporting pack of {evidence.data.experiment}",
        "",
        f"Made by dermstack {version('dermstack')} from the report of {evidence.data.created}; blend "
        f"{evidence.blend['fingerprint']}. Patients and images are named as in `{PAGE}`: by codes, unless `--show-ids` "
        f"was given. `{PAGE}` {'may show images of single cases' if evidence.shows_images else 'shows no images'}; all "
        "other files hold counts, scores and settings only.",
        "",
        f"- `{PAGE}`: the report, to which the checklists link",
        "- `methods.md`: methods and results as text with the numbers filled in, and what the author adds",
    ]
    lines += [
        f"- `checklist_{one.name}.html`, `.csv`: {one.title}, answered from the run (doi:{one.doi})"
        for one in checklists
    ]
    lines += [f"- `{RECORD}`: SHA-256 of every file", "", "## Figures", ""]
    for name, drawn in drawings.items():
        title, caption = _caption(name, drawn, captions)
        lines.append(f"- `figures/{name}.{FORMATS[0]}`, `.{FORMATS[1]}`: **{title}.** {caption}")
    lines += ["", "## Tables", "", "Numbers have full precision; an empty cell is a missing value.", ""]
    for name in tables:
        lines.append(f"- `tables/{name}.csv`: {captions.tables.get(name, _TABLES.get(name, name.replace('-', ' ')))}")
    return "\n".join(lines) + "\n"


def _caption(name: str, drawn: Drawing, captions: Captions) -> tuple[str, str]:
    """Returns title and caption of a figure: those of the page, or of `_FIGURES`."""
    return captions.figures.get(drawn.name, _FIGURES.get(name, (name, "")))


_FIGURES = {  # drawn for a file only: its title and caption
    ROW_FLOW: (
        "Flow of the rows",
        "Rows of each table from the file to their use; those excluded leave to the right.",
    ),
}
_TABLES = {
    "row-flow": "Rows at each step from the file to their use, with those excluded and why",
    "gaps": "Gaps between each subgroup and all others, with simultaneous intervals and verdicts",
    "weights": "Weights of the runs in the final blend",
    "decision-curve": "Net benefit at a fine grid of thresholds: the figure decision",
    "importance": "Contributions of features, columns and blocks at level 2: the figures blocks, features and columns",
    "facts": "Sizes of the table, duplicates, seeds, fingerprints and versions",
}


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _changed_files(folder: Path) -> list[str]:
    """Returns the files of a pack that were changed or added; also its record, where that cannot be read."""
    try:
        known = dict(read_json(folder / RECORD)["files"])
    except (LookupError, TypeError, ValueError, RecursionError):
        return [RECORD]
    return [name for name, digest in _hashes(folder).items() if known.get(name) != digest]
