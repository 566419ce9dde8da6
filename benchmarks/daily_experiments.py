"""Makes the experiments that daily.py measures, once for each version of the code, up to complete level-1 runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks import siim_oof
from benchmarks.daily_data import Size, write_experiment
from benchmarks.daily_measure import Tree
from stack.settings.config import read_config
from stack.store import read_run

OF_STACK = {
    "blend", "report", "report.html", "model_card.md", "predictions.parquet", "submission.csv", "ledger.jsonl", "old",
    "audit.json", "audit.csv", "audit_pairs.csv", "second_look", "second_look.csv", "up_to_date.json",
}  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """An experiment whose level-1 runs are complete, and its `stack` command."""

    folder: Path
    command: list[str]

    @classmethod
    def of(cls, config: Path, name: str) -> Stack:
        """Returns the experiment of a config that lies beside its runs."""
        return cls(config.parent / "runs" / name, ["stack", "-q", "-c", str(config)])

    @property
    def headline(self) -> float:
        """The nested AUC of the finished blend."""
        run = json.loads((self.folder / "blend" / "run.json").read_text(encoding="utf-8"))
        return float(run["headline"]["value"])


def finished_level_1(
    trees: tuple[Tree, Tree], folder: Path, *, siim: Path | None, ham: Path | None, size: Size, rounds: int
) -> dict[str, dict[str, Stack]]:
    """Returns the experiments by data set and version: of SIIM's nets, of a config, or of neither, then simulated."""
    stacks: dict[str, dict[str, Stack]] = {}
    for tree in trees:
        made: dict[str, Stack] = {}
        if siim:
            config, imports = siim_oof.write_experiment(siim.resolve(), folder / f"siim-{tree.name}")
            for arguments in imports:
                tree.run(*arguments, "-q")
            made["SIIM-ISIC 2020, two CNNs"] = Stack.of(config, "siim2020-oof")
        if ham:
            settings = read_config(ham)
            runs = folder / f"copied-{tree.name}"
            copy_level_1(settings.runs / settings.experiment, runs / settings.experiment)
            command = ["stack", "-q", "-c", str(ham.resolve()), "--set", f"runs={runs}"]
            made[settings.experiment] = Stack(runs / settings.experiment, command)
        if not made:
            config = write_experiment(folder / f"stack-{tree.name}", size, rounds=rounds)
            for command in import_commands(tree, config):
                tree.measure(command)
            made[f"simulated, {size}"] = Stack.of(config, "daily")
        for name, stack in made.items():
            stacks.setdefault(name, {})[tree.name] = stack
    return stacks


def import_commands(tree: Tree, config: Path) -> list[list[str]]:
    """Returns the commands that import every simulated run: one where the version imports a folder, else one each."""
    folder = config.parent / "predictions"
    shown = subprocess.run(
        tree.command("import-oof", "--help"), env={**os.environ, "PYTHONPATH": str(tree.folder)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "--list" in shown:
        return [tree.command("import-oof", str(folder), "-q", "-c", str(config))]
    commands = []
    for oof in sorted(folder.glob("*_oof.csv")):
        name = oof.stem.removesuffix("_oof")
        files = ["--oof", str(oof), "--test", str(folder / f"{name}_test.csv")]
        commands.append(tree.command("import-oof", name, "-q", "-c", str(config), *files))
    return commands


def copy_level_1(source: Path, target: Path) -> None:
    """Copies an experiment without what `stack` makes."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        at = Path(folder)
        if at == source:
            return [name for name in names if name in OF_STACK]
        if at == source / "models":
            return [name for name in names if (run := read_run(at / name)) is None or run.meta["level"] != 1]
        return []

    shutil.copytree(source, target, ignore=left_out)
