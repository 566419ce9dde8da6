"""Kills the pipeline, fills its disk and damages its files: `make chaos` prints a Markdown table of what it survived.

    python -m benchmarks.chaos [--seed 0] [--kills 60] [--only FAULT …] [--quick]

After every fault the same commands run again until the pipeline is complete: the submission, the predictions of the
bundle and every run's out-of-fold and test files must have the bytes of the undisturbed world, and no row may be lost.
The exit status is 1 if a fault was not survived. The same seed draws the same moments, places and bytes.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.chaos_damage import ARTEFACTS, DAMAGES, damage_files, damage_studies, worlds_to_damage
from benchmarks.chaos_disk import full_disk, may_mount, no_write_permission, read_only
from benchmarks.chaos_faults import (
    Baseline,
    Tally,
    kill_at_random,
    run_baseline,
    run_twice_at_once,
    shared_cache,
    stale_lock,
    terminate,
)

Fault = Callable[[Baseline, np.random.Generator, Tally], None]


def faults(baseline: Baseline, kills: int, *, quick: bool, every_damage: bool) -> dict[str, Fault]:
    """Returns the faults by name, each bound to its number of trials."""
    some = 1 if quick else 4
    among = {"group": kills * 3 // 4, "group with workers": kills // 10, "main": kills // 12}
    among["worker"] = kills - sum(among.values())
    chosen: dict[str, Fault] = {
        "SIGKILL, one process": lambda g, rng, t: kill_at_random(
            g, rng, t, kills=among["group"], victim="group", n_jobs=1
        ),
        "SIGKILL, with its workers": lambda g, rng, t: kill_at_random(
            g, rng, t, kills=among["group with workers"], victim="group", n_jobs=2
        ),
        "SIGKILL, all but its workers": lambda g, rng, t: kill_at_random(
            g, rng, t, kills=among["main"], victim="main", n_jobs=2
        ),
        "SIGKILL, one of its workers": lambda g, rng, t: kill_at_random(
            g, rng, t, kills=among["worker"], victim="worker", n_jobs=2
        ),
        "SIGTERM": lambda g, rng, t: terminate(g, rng, t, times=2 * some, number=signal.SIGTERM),
        "Ctrl-C": lambda g, rng, t: terminate(g, rng, t, times=2 * some, number=signal.SIGINT),
        "no right to write": lambda g, rng, t: no_write_permission(g, t),
        "the same command twice at once": lambda g, rng, t: run_twice_at_once(g, rng, t, times=some),
        "two experiments, one cache": lambda g, rng, t: shared_cache(g, t),
        "locks of a killed process": lambda g, rng, t: stale_lock(g, t, times=some),
    }
    if may_mount(baseline.folder):
        chosen["disk full"] = lambda g, rng, t: full_disk(g, rng, t, times=2 * some)
        chosen["file system read-only"] = lambda g, rng, t: read_only(g, t, commands=some)
    else:
        print("disk full, file system read-only: skipped, because this user may not mount a tmpfs", file=sys.stderr)
    files = ARTEFACTS[::9] if quick else ARTEFACTS
    worlds = worlds_to_damage(baseline)
    for number, damage in enumerate(DAMAGES):
        those = files if every_damage else files[number :: len(DAMAGES)]
        chosen[f"a file {damage}"] = partial(damage_files, worlds=worlds, files=those, damages=[damage])
    if not quick:
        chosen["a study's file damaged"] = damage_studies
    return chosen


def main() -> None:
    """Tries the faults and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=60, help="number of SIGKILLs, divided among the four kinds")
    parser.add_argument("--only", nargs="*", help="only faults whose name begins with one of these")
    parser.add_argument("--quick", action="store_true", help="a quarter of most trials, a ninth of the artefacts")
    parser.add_argument(
        "--every-damage", action="store_true", help="damage each artefact in each of the four ways, not in one"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dermstack-chaos-") as folder:
        baseline = run_baseline(Path(folder))
        print(f"undisturbed: {sum(baseline.seconds.values()):.0f} s", file=sys.stderr, flush=True)
        tallies = []
        for name, fault in faults(
            baseline, arguments.kills, quick=arguments.quick, every_damage=arguments.every_damage
        ).items():
            if arguments.only and not name.startswith(tuple(arguments.only)):
                continue
            tally, started = Tally(name), time.monotonic()
            try:
                fault(baseline, np.random.default_rng([arguments.seed, *name.encode()]), tally)
            except AssertionError as error:  # no trial can follow: counts as not survived
                tally.add("stopped", str(error))
            tallies.append(tally)
            print(
                f"{name}: {tally.survived} of {tally.tried}, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(table(tallies))
    print(f"\n`python -m benchmarks.chaos {' '.join(sys.argv[1:])}`, seed {arguments.seed}")
    sys.exit(any(tally.survived < tally.tried or tally.lost for tally in tallies))


def table(tallies: list[Tally]) -> str:
    """Formats the tallies as Markdown, one row per fault."""
    lines = ["| fault | tried | survived | of these after a refusal | lost rows |", "|---|---|---|---|---|"]
    lines += [f"| {one.fault} | {one.tried} | {one.survived} | {one.refused} | {one.lost} |" for one in tallies]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
