"""Findings of an audit (severity, statement, evidence, remedy) and their files audit.json and audit.csv."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pandas as pd

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.store import atomic, write_json

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the worst first


@dataclass(frozen=True)
class Finding:
    """One result of the audit: its severity, what was found, the evidence and what to do.

    An estimate in ``evidence`` comes with its interval. Only ``example`` may name rows.
    """

    severity: Severity
    what: str
    evidence: str
    remedy: str
    example: str = ""  # ids and their details; a page that may be given to others leaves it out


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sorts findings by severity; findings of equal severity keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


FINDING_COLUMNS = ("severity", "what", "evidence", "remedy", "example")


def read_part_findings(experiment: Experiment, part: str, inputs: str) -> list[Finding] | None:
    """Returns the stored findings of ``part``; None if it was never audited or had other ``inputs``."""
    known = _read(experiment).get(part)
    if known is None or known["inputs"] != inputs:
        return None
    return [Finding(**finding) for finding in known["findings"]]


def write_part_findings(experiment: Experiment, parts: Mapping[str, tuple[str, list[Finding]]]) -> list[Finding]:
    """Writes the inputs and findings of each part to audit.json, and all findings, the worst first, to audit.csv.

    Stored parts that are not among ``parts`` stay unchanged. Returns the findings of all parts, the worst first.
    """
    known = _read(experiment) | {
        part: {"inputs": inputs, "findings": [asdict(finding) for finding in findings]}
        for part, (inputs, findings) in parts.items()
    }
    write_json(experiment.folder / "audit.json", known)
    findings = _all_findings(known)
    with atomic(experiment.folder / "audit.csv") as temporary:
        pd.DataFrame(findings, columns=list(FINDING_COLUMNS)).to_csv(temporary, index=False)
    return findings


def read_findings(experiment: Experiment) -> list[Finding] | None:
    """Returns all stored findings, the worst first; None if no audit was made."""
    known = _read(experiment)
    return _all_findings(known) if known else None


def is_audited(experiment: Experiment, part: str) -> bool:
    """Whether ``part`` has been audited, on any inputs."""
    return part in _read(experiment)


def _all_findings(known: Mapping[str, Any]) -> list[Finding]:
    return worst_first(Finding(**finding) for part in known.values() for finding in part["findings"])


def _read(experiment: Experiment) -> dict[str, Any]:
    path = experiment.folder / "audit.json"
    if not path.exists():
        return {}
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known.pop("rows and runs", None)  # of earlier versions, which had one part for both
        _all_findings(known)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): remove it and run `dermstack audit` again") from error
    return known
