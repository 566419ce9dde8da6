"""Says in a bundle's manifest what a finished experiment is: its estimate, columns, runs, stackers and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from dermstack.serve.imported_runs import imported_entries
from stack.blend.pooling import pooling_and_method
from stack.experiment import Experiment
from stack.settings.config import Config
from stack.settings.level2 import Stacker, is_second_stage, source_names
from stack.store import Run, read_run
from stack.unit_rows import scored_experiment


def manifest_of(
    experiment: Experiment,
    level1: Sequence[Run],
    stackers: Sequence[Run],
    blend: Run,
    shifts: Mapping[str, list[float]],
) -> dict[str, Any]:
    """Returns the manifest of these runs, without the files; ``shifts`` are those of each stacker's logits."""
    image_runs = [run for run in level1 if run.meta["kind"] != "imported"]
    config, scored = experiment.config, scored_experiment(experiment)
    second = [run for run in stackers if is_second_stage(_settings(config, run.name), config.stackers)]
    first = [run for run in stackers if run not in second]
    scales = first[0].meta["scales"] if first else {}
    return {
        "dermstack": version("dermstack"),
        "experiment": experiment.name,
        "objective": blend.meta["objective"],
        "headline": blend.meta["headline"],
        "chosen": blend.meta["chosen"],
        "selected": blend.meta["selected"],
        "folds": experiment.folds.k,
        "threads": config.threads,
        "columns": {role: csv for role, csv in config.data.columns.roles.items() if role not in ("fold", "diagnosis")},
        **_table_entry(experiment),
        "resize": config.data.resize,
        "cache_format": config.data.cache_format,
        **({"bits_stored": config.data.bits_stored} if config.data.bits_stored else {}),
        **({"swap_red_blue": True} if config.data.swap_red_blue else {}),
        "features": config.all_features.inputs(),
        "embeddings": _embedding_kinds(stackers, image_runs),
        "image_runs": [
            {
                "name": run.name,
                "kind": run.meta["kind"],
                "settings": run.meta["settings"],
                "positive": run.meta.get("positive", [False, True]),
                "classes": run.meta.get("classes", ["0", "1"]),
            }
            for run in image_runs
        ],
        **({"imported_runs": imported} if (imported := imported_entries(level1, experiment.folds.k)) else {}),
        "stackers": [_stacker_entry(run, shifts[run.name]) for run in stackers],
        "scales": scales,
        **({"second_stage": _second_stage_entry(config, second)} if second else {}),
        "training": {
            "rows": len(scored.target),
            "positives": int(scored.target.sum()),
            "split_groups": len(np.unique(scored.split_group)),
        },
        **_units_entry(config, blend),
    }


def _stacker_entry(run: Run, shifts: list[float]) -> dict[str, Any]:
    """Returns the manifest's entry on a stacker, with ``shifts`` of its logits by repeat and fold."""
    repeats = run.meta["settings"].get("repeats", 1)
    return {
        "name": run.name, "kind": run.meta["kind"], **({"repeats": repeats} if repeats > 1 else {}), "shifts": shifts
    }  # fmt: skip


def _units_entry(config: Config, blend: Run) -> dict[str, Any]:
    """Returns the manifest's entry on predictions for units, with the pooling that the blend chose; {} for images."""
    if (per := config.predict_per) is None:
        return {}
    pooling, _ = pooling_and_method(blend.meta["chosen"])
    return {"predict_per": {"columns": list(per.columns), "target": per.target, "pooling": pooling}}


def _second_stage_entry(config: Config, stackers: Sequence[Run]) -> dict[str, Any]:
    """Returns which stackers see models of the table alone, which models these are, and the scales of their matrix."""
    tables = source_names(config.stackers)
    return {"stackers": [run.name for run in stackers], "sees": tables, "scales": stackers[0].meta["scales"]}


def _settings(config: Config, name: str) -> Stacker:
    return next(one for one in config.stackers if one.name == name)


def _table_entry(experiment: Experiment) -> dict[str, Any]:
    """Returns the manifest's entry on columns without a role, declared codes and positive targets; {} without any."""
    columns, rules = experiment.table.columns, experiment.config.data.column_rules
    if not (columns.names or rules.missing or rules.positive):
        return {}
    return {
        "table": {
            "numeric": dict(columns.numeric),
            "categorical": dict(columns.categorical),
            "derived": dict(columns.derived),
            "missing": {name: list(codes) for name, codes in rules.missing.items()},
            "positive": list(rules.positive),
        }
    }


def _embedding_kinds(stackers: Sequence[Run], image_runs: Sequence[Run]) -> dict[str, str]:
    """Returns "aligned" or "frozen" for each run whose embedding enters level 2, in the order of the matrix."""
    if not stackers:
        return {}
    fold_run = read_run(stackers[0].folder / "fold_0")
    assert fold_run is not None, "fold 0 has been copied before"
    kinds = {"aligned": stackers[0].meta["files"], "frozen": fold_run.meta["files"]}
    return {run.name: kind for run in image_runs for kind, files in kinds.items() if f"{run.name}_turn.npy" in files}
