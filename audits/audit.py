"""`dermstack audit`: everything that is looked for, in one list of findings, written beside the experiment's rows."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from audits.acquisition import acquisition_findings
from audits.finding import Finding, worst_first
from audits.pictures import pair_kinds, picture_findings
from stack.console import Out
from stack.experiment import Experiment, published_duplicates
from stack.images import encodings, looking_size, looks_of, with_images
from stack.store import atomic


@dataclass(frozen=True)
class Review:
    """The experiment as its pictures leave it, its pairs of near-duplicates by kind, what the audit found."""

    experiment: Experiment
    pairs: pd.DataFrame
    findings: list[Finding]


def run_audit(experiment: Experiment, out: Out) -> Review:
    """Look at every picture; write audit.csv and audit_pairs.csv into the experiment's folder, and nothing else."""
    from image_models.looks import strange

    size = looking_size(experiment)
    experiment, caches = with_images(experiment, [size], out)
    cache, table = caches[size], experiment.table
    ids = [*table.train["id"], *table.test["id"]]
    odd = strange(looks_of(experiment, cache, ids, out))
    odd = pd.DataFrame({"id": [ids[position] for position in odd["position"]], "fault": odd["fault"]})
    pairs = pair_kinds(experiment.decided.pairs, table)
    sizes = cache.index.iloc[cache.rows_for(ids)][["id", "source_height", "source_width", "source_bytes"]]
    sizes = sizes.assign(encoding=encodings(experiment).loc[sizes["id"]].to_numpy())
    published = published_duplicates(experiment.config.data.duplicates)
    findings = worst_first(
        [
            *picture_findings(pairs, ids, odd, experiment.decided.dropped, published),
            *acquisition_findings(experiment, sizes),
        ]
    )
    for name, frame in (("audit", pd.DataFrame(findings)), ("audit_pairs", pairs)):
        with atomic(experiment.folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    return Review(experiment, pairs, findings)
