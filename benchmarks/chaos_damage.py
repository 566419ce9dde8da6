"""Damages each kind of file: the result must have the same bytes, or a refusal must name the file and the remedy."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.chaos_faults import Baseline, Tally, interrupted
from benchmarks.chaos_world import PipelineFolder, finish, run

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
        "run.json", "oof.parquet", "test.parquet", "tiny_turn.npy", "fold_1/run.json",
        "fold_1/model.txt", "fold_1/features.json", "fold_1/still_turn.npy",
    )),
    "report/probes/run.json", "report/probes/probes.parquet", "up_to_date.json",
    "report/heat_maps/run.json", "report/heat_maps/heat_maps.parquet",
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

# (state of the world, file in it)
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


def worlds_to_damage(baseline: Baseline) -> dict[str, PipelineFolder]:
    """Returns the worlds whose files are damaged, by state; each is made at its first use."""
    return _Worlds(baseline)


class _Worlds(dict[str, PipelineFolder]):
    def __init__(self, baseline: Baseline) -> None:
        super().__init__(finished=baseline.finished)
        self._ground = baseline

    def __missing__(self, state: str) -> PipelineFolder:
        baseline = self._ground
        if state == "training":
            self[state] = interrupted(baseline, state, "runs/*/models/tiny/fold_1/seed_0/state.pt")
        elif state == "predicting":
            self[state] = interrupted(baseline, state, f"{_PARTS}/pixels/32/index.parquet", command=-1)
        else:  # every part is predicted, but the csv is not yet written
            world = self[state] = baseline.finished.copy(baseline.folder / state)
            _predict_parts(world)
            (world.folder / "predictions.csv").unlink()
        return self[state]


def _predict_parts(world: PipelineFolder) -> None:
    """Predicts the parts of the last command, which takes them over when it runs."""
    from dermstack.serve.bundle import read_bundle
    from dermstack.serve.new_rows import PREDICT_NAMES, read_new_rows
    from dermstack.serve.predict import predict_rows

    bundle, data = read_bundle(world.folder / "bundle.zip"), world.folder.parent / "data"
    rows = read_new_rows(bundle, data / "images", data / "test.csv", files=PREDICT_NAMES)
    predict_rows(bundle, rows, world.folder / _PARTS)


def damage_studies(baseline: Baseline, rng: np.random.Generator, tally: Tally) -> None:
    """Damages a study's journal and its chosen parameters, in a world whose stacker it tunes."""
    shutil.rmtree(baseline.folder / "tuned", ignore_errors=True)
    world = replace(baseline.finished.copy(baseline.folder / "tuned"), tuned=True)
    ended = finish(world, baseline.log)
    assert ended.status == 0, ended.output
    files = [("tuned", f"runs/chaos/studies/{name}") for name in ("journal.log", "gbdt-gbdt.yaml")]
    damage_files(replace(baseline, outcome=world.outcome()), rng, tally, worlds={"tuned": world}, files=files)


def damage_files(
    baseline: Baseline,
    rng: np.random.Generator,
    tally: Tally,
    *,
    worlds: dict[str, PipelineFolder],
    files: Sequence[tuple[str, str]],
    damages: Sequence[str] = DAMAGES,
) -> None:
    """Damages each of ``files`` (world, path in it) in each way; adds to ``tally`` whether the world recovers."""
    for name, file in files:
        for damage in damages:
            shutil.rmtree(baseline.folder / "damaged", ignore_errors=True)
            world = worlds[name].copy(baseline.folder / "damaged")
            path = world.folder / file
            damage_file(path, damage, rng)
            failure, lost, refused = _judge_damage(baseline, world, path)
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


def _judge_damage(baseline: Baseline, world: PipelineFolder, path: Path) -> tuple[str | None, int, bool]:
    commands = world.commands()
    if path.name == "bundle.zip":
        commands = commands[-1:]
    elif "unpacked" in path.parts:
        commands = [[part.replace("bundle.zip", "unpacked") for part in commands[-1]]]
    for arguments in commands:
        ended = run(arguments, baseline.log)
        if ended.status:
            break
    if ended.status == 0:
        return (*baseline.compare(world), False)
    output = ended.output
    if ended.status != 2 or not ended.clean:
        return f"status {ended.status}, output {output[-3000:]}", 0, False
    if path.name not in output and str(path.parent) not in output:
        return f"the refusal does not name the file: {output}", 0, True
    follow_advice(world, output)
    return (*baseline.judge(world), True)


def follow_advice(world: PipelineFolder, output: str) -> None:
    """Follows the advice of a refusal: removes the files it names and rebuilds the runs it names."""
    for found in re.findall(r"remove (/\S+?)[,:]? ", output):
        path = Path(found)
        assert world.folder in path.parents, f"the refusal names a path outside the world: {output}"
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if rebuilt := re.search(r"`dermstack oof --rebuild (\w+)", output):
        run([*world.commands()[0], "--rebuild", rebuilt.group(1)], world.folder / "rebuild.log")
