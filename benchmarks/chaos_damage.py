"""Damage to each kind of file: the same bytes in the end, or a refusal that names it and whose advice leads to them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.chaos_faults import Ground, Tally, interrupted
from benchmarks.chaos_world import World, finish, run

DAMAGES = ("cut in half", "one byte flipped", "emptied", "removed")

_OF_EXPERIMENT = (
    "table.parquet", "folds.parquet", "fingerprints.json", "acquisition.parquet", "pictures.json", "dropped.csv",
    "near_duplicates.csv", "predictions.parquet", "submission.csv", "ledger.jsonl",
    *(f"models/tiny/{name}" for name in (
        "run.json", "oof.parquet", "test.parquet", "oof_z.npy", "test_z.npy", "anchor.parquet", "anchor_z.npy",
        "fold_1/run.json", "fold_1/metadata.json", *(f"fold_1/seed_0/{file}" for file in (
            "run.json", "weights.safetensors", "history.csv")),
    )),
    *(f"models/still/{name}" for name in (
        "run.json", "oof.parquet", "oof_z.npy", "backbone.safetensors", "fold_1/run.json", "fold_1/weights.safetensors",
    )),
    *(f"models/gbdt/{name}" for name in (
        "run.json", "oof.parquet", "test.parquet", "probes.parquet", "tiny_turn.npy", "fold_1/run.json",
        "fold_1/model.txt", "fold_1/features.json", "fold_1/still_turn.npy",
    )),
    *(f"blend/{name}" for name in ("run.json", "oof.parquet", "test.parquet", "values.npy", "ranks.npy")),
)  # fmt: skip
_OF_CACHE = tuple(
    f"cache/chaos-32/{name}" for name in ("settings.json", "index.parquet", "unreadable.parquet", "images.bin")
)
_OF_BUNDLE = ("manifest.json", "blend/values.npy", "stackers/gbdt/fold_1/model.txt", "config.yaml",
              "image_models/tiny/fold_1/weights.safetensors")  # fmt: skip
_UNFINISHED = (
    "fold_1/seed_0/state.pt", "fold_0/run.json", "fold_0/seed_0/run.json", "fold_0/seed_0/weights.safetensors",
    "fold_0/parts/run.json", "fold_0/parts/oof.parquet", "fold_0/parts/oof_z.npy",
)  # fmt: skip
_PARTS = "predictions.csv.parts"

# (in which state of the world, the file)
ARTEFACTS: tuple[tuple[str, str], ...] = (
    *(("finished", f"runs/chaos/{name}") for name in _OF_EXPERIMENT),
    *(("finished", name) for name in _OF_CACHE),
    ("finished", "bundle.zip"),
    *(("finished", f"unpacked/{name}") for name in _OF_BUNDLE),
    *(("training", f"runs/chaos/models/tiny/{name}") for name in _UNFINISHED),
    *(("training", f"runs/chaos/models/still/features/train/{name}") for name in ("z.npy", "run.json")),
    *(("training", name) for name in _OF_CACHE),
    *(("predicting", f"{_PARTS}/pixels/32/{name}") for name in ("index.parquet", "images.bin")),
    *(("predicted", f"{_PARTS}/{name}") for name in ("job.json", "part_00000/run.json", "part_00000/made.parquet")),
)


def worlds_to_damage(ground: Ground) -> dict[str, World]:
    """The states of the world in which files are damaged, each made when it is first asked for."""
    return _Worlds(ground)


class _Worlds(dict[str, World]):
    def __init__(self, ground: Ground) -> None:
        super().__init__(finished=ground.finished)
        self._ground = ground

    def __missing__(self, state: str) -> World:
        ground = self._ground
        if state == "training":
            self[state] = interrupted(ground, state, "runs/*/models/tiny/fold_1/seed_0/state.pt")
        elif state == "predicting":
            self[state] = interrupted(ground, state, f"{_PARTS}/pixels/32/index.parquet", command=-1)
        else:  # refused after the last part: the sample is of other rows
            world = self[state] = ground.finished.copy(ground.folder / state)
            sample = ground.folder / "data" / "train.csv"
            run(
                [*world.commands()[-1], "--submission", str(world.folder / "s.csv"), "--sample", str(sample)],
                ground.log,
            )
            (world.folder / "predictions.csv").unlink()
        return self[state]


def damage_studies(ground: Ground, rng: np.random.Generator, tally: Tally) -> None:
    """The journal of a study and what it chose, in a world whose stacker is tuned by it."""
    shutil.rmtree(ground.folder / "tuned", ignore_errors=True)
    world = replace(ground.finished.copy(ground.folder / "tuned"), tuned=True)
    ended = finish(world, ground.log)
    assert ended.status == 0, ended.said
    files = [("tuned", f"runs/chaos/studies/{name}") for name in ("journal.log", "gbdt-gbdt.yaml")]
    damaged(replace(ground, outcome=world.outcome()), rng, tally, worlds={"tuned": world}, files=files)


def damaged(
    ground: Ground,
    rng: np.random.Generator,
    tally: Tally,
    *,
    worlds: dict[str, World],
    files: Sequence[tuple[str, str]],
    damages: Sequence[str] = DAMAGES,
) -> None:
    """Each of ``files`` (world, path in it), in each way: the same bytes, or a refusal whose advice leads to them."""
    for name, file in files:
        for damage in damages:
            shutil.rmtree(ground.folder / "damaged", ignore_errors=True)
            world = worlds[name].copy(ground.folder / "damaged")
            path = world.folder / file
            damage_file(path, damage, rng)
            failure, lost, refused = _judge_damage(ground, world, path)
            tally.add(f"{name}: {file} {damage}", failure, lost=lost, refused=refused)


def damage_file(path: Path, damage: str, rng: np.random.Generator) -> None:
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "one byte flipped":
        place = int(rng.integers(len(content)))
        path.write_bytes(content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut in half" else b"")


def _judge_damage(ground: Ground, world: World, path: Path) -> tuple[str | None, int, bool]:
    commands = world.commands()
    if path.name == "bundle.zip":
        commands = commands[-1:]
    elif "unpacked" in path.parts:
        commands = [[part.replace("bundle.zip", "unpacked") for part in commands[-1]]]
    for arguments in commands:
        ended = run(arguments, ground.log)
        if ended.status:
            break
    if ended.status == 0:
        return (*ground.compare(world), False)
    said = ended.said
    if ended.status != 2 or not ended.clean:
        return f"status {ended.status}, said {said[-3000:]}", 0, False
    if path.name not in said and str(path.parent) not in said:
        return f"the refusal does not name it: {said}", 0, True
    follow_advice(world, said)
    return (*ground.judge(world), True)


def follow_advice(world: World, said: str) -> None:
    """Do what a refusal says: remove what it names, set aside what it says to rebuild."""
    for found in re.findall(r"remove (/\S+?)[,:]? ", said):
        path = Path(found)
        assert world.folder in path.parents, f"{said}: that is none of ours"
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if rebuilt := re.search(r"`dermstack oof --rebuild (\w+)", said):
        run([*world.commands()[0], "--rebuild", rebuilt.group(1)], world.folder / "rebuild.log")
