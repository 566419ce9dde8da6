"""Tests law 7 on the experiment's own rows: levels 1 and 2, refitted to shuffled targets, must reach AUC 0.5.

The targets of a group are moved together to another split_group of the same size, in a random order within it. So the
targets of a fold that no fit has seen are exchangeable, and the AUC among its rows in groups of equal size is exactly
0.5 on average, whatever the data: also if a size is so rare that its groups keep their own targets, or if the rows of a
group are sorted by target, an order that an exchange without the shuffle within groups would keep. The AUC pooled over
folds would be lower: the more positives a fold holds out, the fewer are left to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t
from sklearn.decomposition import PCA

from dermstack.audit.finding import Finding
from dermstack.errors import ConfigError, DataError
from image_models.frozen_head import fit_head
from stack.console import Out
from stack.experiment import Experiment
from stack.folds import Folds
from stack.images import require_acquisition
from stack.level2.features import early_stopping_rows, fold_matrix
from stack.metrics.scores import Floats
from stack.metrics.shuffle import auc_within_strata, shuffle_targets
from stack.parallel import run_folds, run_with_threads
from stack.predictions.joined import Embedding, Predictions, frozen_embedding, standardised
from stack.store import Run
from stack.tables.table import Table
from tabular.fit_bag import BagSettings, ColumnRoles, fit_bag

COMPONENTS = 128  # principal components of the frozen z, over all rows: AUC 0.838 on HAM10000, 0.847 with 1,280
HEAD_STRENGTHS = (
    1e-2,
)  # ridge strength of every head, as chosen with the real targets of HAM10000; to choose it here costs four more fits
GBDT_PARAMS: dict[str, float | bool] = {"rounds": 60, "patience": 5, "learning_rate": 0.1, "min_data_in_leaf": 10}
MAX_DRAWS = 50  # attempts to draw one usable shuffle
FALSE_ALARM_RATE = 0.01  # a p-value below this is reported as a leak

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class ShuffledAucs:
    """AUCs among groups of equal size, one for each shuffle: (shuffles,)."""

    nested: Floats  # on rows that neither level has seen
    ordinary: Floats  # of level 2 on the same folds as level 1, as in `dermstack stack`

    @property
    def mean(self) -> float:
        """Mean of `nested`: 0.5 apart from noise if there is no leak."""
        return float(self.nested.mean())

    @property
    def se(self) -> float:
        """Standard error of `mean`; shuffles are independent."""
        return _standard_error(self.nested)

    @property
    def z(self) -> float:
        """Difference between `mean` and 0.5 in standard errors."""
        off = self.mean - 0.5
        return off / self.se if self.se else float(np.sign(off) * np.inf) if off else 0.0

    @property
    def p(self) -> float:
        """Two-sided p-value of `z` under no leak: Student's t with one degree of freedom less than shuffles."""
        return float(2 * t.sf(abs(self.z), len(self.nested) - 1))

    @property
    def excess(self) -> float:
        """Excess AUC of ordinary stacking on shuffled targets: the mean of `ordinary` minus 0.5."""
        return float(self.ordinary.mean()) - 0.5

    @property
    def excess_se(self) -> float:
        """Standard error of `excess`."""
        return _standard_error(self.ordinary)


def shuffled_target_aucs(
    experiment: Experiment, run: Run, out: Out, *, shuffles: int = 20, seed: int = 0
) -> ShuffledAucs:
    """Refits heads on the z of the frozen ``run``, and level 2 on these, to ``shuffles`` draws of shuffled targets.

    Nested: each fold is predicted as the test set of an experiment that has only the other folds, with heads and level
    2 fitted on these. Ordinary: level 2 predicts out-of-fold on all folds. Features are those of the config except
    `neighbours`, which is slow and uses only z. Runs in ``n_jobs`` processes; external rows are left out.

    Raises ConfigError for fewer than two shuffles, fewer than three folds or a run that is not frozen; DataError if no
    fold has rows to compare.
    """
    if run.meta["kind"] != "frozen":
        raise ConfigError(f"{run.name} is of kind {run.meta['kind']}, but shuffles need a frozen image model: name one")
    if shuffles < 2:
        raise ConfigError(f"--shuffles {shuffles} gives no standard error: use 20 or more")
    if experiment.folds.k < 3:
        raise ConfigError(f"shuffles need at least 3 folds, folds.k is {experiment.folds.k}: set folds.k to 3 or more")
    features = experiment.config.features
    if features.shortcuts:
        experiment = require_acquisition(experiment)
    config = experiment.config.model_copy(update={"features": features.model_copy(update={"neighbours": False})})
    experiment = replace(experiment, config=config)
    z = run_with_threads(experiment.config.threads, _principal_components, frozen_embedding(experiment, run).oof, seed)
    seeds = np.random.SeedSequence(seed).generate_state(shuffles)
    tasks = [partial(_shuffle_aucs, experiment, run.name, z, int(drawn)) for drawn in seeds]
    nested, ordinary = np.array(run_folds(tasks, "shuffled targets", experiment.config, out, unit="shuffles")).T
    if not (np.isfinite(nested).all() and np.isfinite(ordinary).all()):
        raise DataError("no fold has rows of both classes in groups of equal size: these rows cannot be shuffled")
    return ShuffledAucs(nested, ordinary)


def shuffled_findings(made: ShuffledAucs) -> list[Finding]:
    """Reports whether there is a leak by group, and the excess AUC of ordinary stacking on shuffled targets."""
    low, high = _interval(made.mean, made.nested)
    n = len(made.nested)
    evidence = (
        f"AUC among groups of equal size {made.mean:.4f} [{low:.4f}, {high:.4f}], z = {made.z:.1f} "
        f"(standard error {made.se:.4f}, {n} shuffles, two-sided p {_p_text(made.p)}), fully nested"
    )
    if made.p < FALSE_ALARM_RATE:
        remedy = "a leak by group: look for groups in two folds and for features made from targets of other rows"
        told = Finding("error", "models predict shuffled targets", evidence, remedy)
    else:
        told = Finding("note", "models do not predict shuffled targets", evidence, "none")
    low, high = _interval(made.excess, made.ordinary)
    evidence = f"AUC minus 0.5 on shuffled targets {made.excess:.4f} [{low:.4f}, {high:.4f}], {n} shuffles"
    remedy = "the headline can be too high by this much, because level 2 uses the same folds as level 1"
    return [told, Finding("note", "same-fold excess of ordinary stacking", evidence, remedy)]


def with_shuffled_targets(experiment: Experiment, *, seed: int) -> Experiment:
    """Returns the experiment with its targets shuffled between split_groups of equal size."""
    drawn = shuffle_targets(experiment.table.train, experiment.split_group, seed=seed)
    return replace(experiment, table=Table(drawn, experiment.table.test))


def _shuffle_aucs(experiment: Experiment, name: str, z: Logits, seed: int) -> tuple[float, float]:
    """Returns the AUCs of one shuffle: fully nested, and of ordinary stacking."""
    experiment = _usable_shuffle(experiment, seed)
    fold, nested = experiment.folds.frame["fold"].to_numpy(), np.empty(len(z), np.float32)
    for number in range(experiment.folds.k):
        held = fold == number
        nested[held] = _stacked_logits(_without_fold(experiment, number), name, z[~held], z[held])[1]
    ordinary = _stacked_logits(experiment, name, z, z[:0])[0]
    size = experiment.folds.frame.groupby("split_group")["id"].transform("size").to_numpy()
    stratum = size * experiment.folds.k + fold
    return auc_within_strata(experiment.target, nested, stratum), auc_within_strata(
        experiment.target, ordinary, stratum
    )


def _usable_shuffle(experiment: Experiment, seed: int) -> Experiment:
    """Draws shuffles until both classes are in at least two groups of every set of rows that a model is fitted to.

    Whether a shuffle is usable depends only on which targets come to which fold, not on their order within a fold, so
    the expected AUC stays 0.5. Raises DataError after MAX_DRAWS attempts.
    """
    for state in np.random.SeedSequence(seed).generate_state(MAX_DRAWS):
        drawn = with_shuffled_targets(experiment, seed=int(state))
        fold, group = drawn.folds.frame["fold"].to_numpy(), pd.Series(drawn.split_group)
        if all(
            group[(drawn.target == label) & (fold != one) & (fold != other)].nunique() > 1
            for one in range(drawn.folds.k)
            for other in range(one, drawn.folds.k)
            for label in (0, 1)
        ):
            return drawn
    raise DataError(
        f"{MAX_DRAWS} shuffles in a row left a class in fewer than two groups of the rows that a model is fitted to: "
        "there are too few "
        "groups with this class for these folds; set a larger folds.k"
    )


def _without_fold(experiment: Experiment, fold: int) -> Experiment:
    """Returns an experiment of the other folds whose test rows are those of ``fold``."""
    train, frame = experiment.table.train, experiment.folds.frame
    held = (frame["fold"] == fold).to_numpy()
    others = frame[~held].reset_index(drop=True)
    others = others.assign(fold=others["fold"] - (others["fold"] > fold))
    table = Table(train[~held].reset_index(drop=True), train[held].reset_index(drop=True))
    return replace(experiment, table=table, folds=Folds(others))


def _stacked_logits(experiment: Experiment, name: str, z: Logits, test_z: Logits) -> tuple[Logits, Logits]:
    """Returns level-2 logits, out-of-fold (n,) and of the test rows (m,), made as `run_stackers` does."""
    k, target, threads = experiment.folds.k, experiment.target, experiment.config.threads
    oof, test = np.empty((len(z), 1), np.float32), np.empty((k, len(test_z), 1), np.float32)
    fold = experiment.folds.frame["fold"].to_numpy(np.int8)
    for number, train, held in experiment.folds.pairs():
        head = fit_head(z[train], target[train], np.zeros(len(train), bool), strengths=HEAD_STRENGTHS)  # no search
        oof[held, 0], test[number, :, 0] = head.logit(z[held]), head.logit(test_z)
    predictions = standardised(
        Predictions((name,), np.arange(len(z)), oof, fold[:, None], test, np.arange(k, dtype=np.int8)[:, None])
    )
    embeddings = {name: Embedding(z, (test_z,), None)} if experiment.config.features.frozen_z else {}
    made, of_test = np.empty(len(z), np.float32), np.zeros(len(test_z), np.float32)
    for number in range(k):
        matrix = fold_matrix(experiment, embeddings, predictions, number)
        rows = matrix.train_rows
        bag = fit_bag(
            BagSettings("lightgbm", GBDT_PARAMS, columns=ColumnRoles(categorical=matrix.features.categories)),
            matrix.train,
            target[rows],
            early_stopping_rows(experiment, rows),
            seed=experiment.config.seed,
            threads=threads,
        )
        made[matrix.held_rows] = bag.logit(matrix.held, threads=threads)
        if len(test_z):
            seen = {run: embedding.test_of(number) for run, embedding in embeddings.items()}
            x_test = matrix.features.transform(experiment.table.test, predictions.test[number], seen)
            of_test += bag.logit(x_test, threads=threads) / k
    return made, of_test


def _principal_components(z: NDArray[np.floating], seed: int) -> Logits:
    values = z.astype(np.float32)
    made = PCA(min(COMPONENTS, *values.shape), random_state=seed).fit_transform(values)
    return np.asarray(made, np.float32)


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _interval(centre: float, values: Floats) -> tuple[float, float]:
    half = float(t.ppf(0.975, len(values) - 1)) * _standard_error(values)
    return centre - half, centre + half


def _p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"
