"""Fits the nested blend to simulated rows with the code on PYTHONPATH: one process that daily.py measures.

python -P benchmarks/daily_blend.py DATA.npz OUT.npz '{"n_jobs": 2}' [METHOD]

Writes the nested scores, the final blend's scores of fresh rows and what was chosen. With METHOD, a blend by this
method is also fitted once to all rows and timed.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

try:
    from stack.blend.blender import Blender
    from stack.blend.nested import blend_nested
except ImportError:  # commit b103a11
    from stack.nested import blend_nested

    from stack.blend import Blender


def main() -> None:
    data, out, settings = np.load(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    rows = {name: data[name] for name in ("P", "y", "fold", "group")}
    fit_seconds = np.nan
    for method in sys.argv[4:]:
        started = time.perf_counter()
        Blender(method).fit(rows["P"], rows["y"], nets=rows["fold"])
        fit_seconds = time.perf_counter() - started
    started = time.perf_counter()
    blend = blend_nested(
        rows["P"], rows["y"], nets=rows["fold"], fold=rows["fold"], split_group=rows["group"], **settings
    )
    seconds = time.perf_counter() - started
    fresh = blend.final.predict_proba(data["fresh_P"], nets=data["fresh_fold"])[:, 1]
    np.savez(
        out, score=blend.score, fresh=fresh, seconds=fit_seconds, nested_seconds=seconds,
        tuned=blend.tuned[blend.chosen], chosen=blend.chosen,
        chosen_by_fold=[blend.chosen_by_fold[k] for k in sorted(blend.chosen_by_fold)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
