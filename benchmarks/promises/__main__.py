"""Writes docs/promises.md: nominal and observed coverage of every promise, from simulations with known truth.

    python -m benchmarks.promises [--repetitions 400] [--seed 0] [TOPIC ...]

With topics, only their rows are printed and nothing is written. A topic is a module of this folder with a function
``simulate(repetitions, seed)`` that returns `Promise` rows; `tests/test_promises.py` runs each with few repetitions.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from benchmarks.promises.promise import Promise, Simulation

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "promises.md"
NO_TOPICS = {"__init__", "__main__", "promise"}
HEAD = """# Promises

What dermstack promises with a frequency, and how often it held in simulations with known truth. This page is written by
`python -m benchmarks.promises --repetitions {repetitions} --seed {seed}`.
"Observed" is followed by its 95 % interval (Clopper-Pearson) over the repetitions. A promise of "at
least" may be exceeded.

"""


def topics() -> list[str]:
    """Returns the names of the modules that simulate promises."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NO_TOPICS)


def simulation(topic: str) -> Simulation:
    """Returns the function that simulates a topic."""
    found: Simulation = importlib.import_module(f"benchmarks.promises.{topic}").simulate
    return found


def as_table(promises: list[Promise]) -> str:
    """Returns promises as a Markdown table."""
    lines = ["| promise | simulated | nominal | observed | repetitions | kept |", "|---|---|---|---|---|---|"]
    for promise in promises:
        low, high = promise.interval
        nominal = ("≥ " if promise.at_least else "") + f"{promise.nominal:.3f}"
        observed = f"{promise.held / promise.repetitions:.3f} [{low:.3f}, {high:.3f}]"
        kept = ("yes" if promise.is_kept else "**no**") + (f": {promise.note}" if promise.note else "")
        cells = [promise.statement, promise.setting, nominal, observed, f"{promise.repetitions:,}", kept]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"default: all, {', '.join(topics())}")
    options = parser.parse_args()
    if strange := set(options.topics) - set(topics()):
        parser.error(f"no topic {', '.join(sorted(strange))}: choose from {', '.join(topics())}")
    page, kept = HEAD.format(repetitions=options.repetitions, seed=options.seed), True
    for topic in options.topics or topics():
        started = time.monotonic()
        promises = simulation(topic)(options.repetitions, options.seed)
        kept &= all(promise.is_kept for promise in promises)
        page += f"## {topic.replace('_', ' ').capitalize()}\n\n{as_table(promises)}\n"
        print(f"{topic}: {time.monotonic() - started:.0f} s\n{as_table(promises)}", flush=True)
    if not options.topics:
        PAGE.write_text(page.rstrip() + "\n", encoding="utf-8")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
