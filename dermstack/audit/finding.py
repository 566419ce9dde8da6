"""A finding: what an audit says of one thing, with its evidence and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing found: how bad it is, what, by which evidence, and what to do.

    A number in ``evidence`` names its interval. What names a row stands in ``example`` alone.
    """

    severity: Severity
    what: str
    evidence: str
    remedy: str
    example: str = ""  # ids and what belongs to them: what a page that may leave the house must not show


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """By severity, otherwise in their order."""
    order = get_args(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))
