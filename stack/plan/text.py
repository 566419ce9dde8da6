"""Prints a plan in lines of at most 80 characters: one paragraph for each step."""

from __future__ import annotations

import textwrap

from dermstack.listing import counted
from stack.plan.steps import WHAT, Plan, Step

WIDTH = 80
_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def plan_lines(plan: Plan) -> list[str]:
    """Returns the lines that describe a plan."""
    lines = _wrapped(
        f"{plan.experiment}: {plan.train_rows:,} training rows ({plan.positive:,} positive) in {plan.groups:,} groups, "
        f"{plan.test_rows:,} test rows, {plan.folds} folds",
        "",
    )
    for step in plan.steps:
        lines += _step_lines(step)
    if all(step.state == "skip" for step in plan.steps) and not plan.problems:
        return [*lines, "everything is complete: `oof` and `stack` would make nothing"]
    total = plan.total
    known = [f"time about {duration(total.seconds or 0)}", f"disk about {size(total.disk_bytes or 0)}"]
    known += [f"memory about {size(total.memory_bytes)}"] if total.memory_bytes else []
    lines += _wrapped(
        f"all together: {', '.join(known)} ({size(plan.free_disk_bytes)} of disk free); without the time of "
        "steps that were not measured",
        "",
    )
    for problem in plan.problems:
        lines += _wrapped(f"warning: {problem}", "")
    return [*lines, f"next: {plan.next}"]  # a command stays on one line, so that it can be copied


def _step_lines(step: Step) -> list[str]:
    lines = _wrapped(f"{step.state:<7}{step.name} ({step.kind}): {WHAT[step.state]}", "       ")
    lines += _wrapped(step.why, "       ", first=True) if step.why else []
    for change in step.changes:
        lines += _wrapped(f"- {change.key}: {change.old} -> {change.new}", "         ", first=True)
    if step.state == "skip":
        return lines
    facts = []
    if step.nets:
        facts.append(f"{counted(step.nets, 'nets')} to train")
    for number, word in ((step.images, "images"), (step.rows, "rows"), (step.features, "features")):
        if number is not None and (word != "rows" or step.kind not in ("images", "image", "frozen")):
            facts.append(f"{number:,} {word}")
    cost = step.cost
    if cost.seconds is not None:
        facts.append(f"time about {duration(cost.seconds)}")
    if cost.disk_bytes:
        facts.append(f"disk about {size(cost.disk_bytes)}")
    if cost.memory_bytes:
        facts.append(f"memory about {size(cost.memory_bytes)}")
    return lines + (_wrapped(", ".join(facts), "       ", first=True) if facts else [])


def duration(seconds: float) -> str:
    """Returns a duration in the unit that reads best."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(n_bytes: float) -> str:
    """Returns a number of bytes in the unit that reads best."""
    for unit, name in _UNITS:
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{int(n_bytes)} bytes"


def _wrapped(text: str, indent: str, *, first: bool = False) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent if first else "", subsequent_indent=indent)
