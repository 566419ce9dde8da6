"""Measures how much pseudo-labels of all folds raise an out-of-fold AUC above that on fresh rows; audits each run.

python benchmarks/pseudo_labels.py 20    # generated data sets

Two first-round models (a small net and a logistic regression) label test rows; a second-round net learns the labels of
its own fold's models (disciplined), the mean of all folds' (leaky), or none. Targets are shuffled in the last columns.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

from dermstack.audit.second_round import NetScores, second_round

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]  # features to logits

FEATURES, INFORMATIVE = 60, 10
TEACHERS = ("net", "line")
LABELS = {"none": "no pseudo-labels", "own fold": "labels of its own fold's models", "all folds": "labels of all folds"}


@dataclass(frozen=True)
class DataSet:
    """Generated rows: features (n, 60) and targets, of which ten features tell with noise; rows are independent."""

    train: Floats
    y: NDArray[np.int8]
    fold: NDArray[np.intp]
    test: Floats
    fresh: Floats
    fresh_y: NDArray[np.int8]


@dataclass(frozen=True)
class Predicted:
    """The logits of one model: out-of-fold, of each fold's net for test rows, and for fresh rows."""

    nets: NetScores
    fresh: Floats  # (k, f)

    def aucs(self, data: DataSet) -> tuple[float, float]:
        """Returns the mean AUC within folds, and the mean AUC of the nets on the fresh rows."""
        held = [data.fold == fold for fold in range(len(self.fresh))]
        return (
            float(np.mean([roc_auc_score(data.y[rows], self.nets.oof[rows]) for rows in held])),
            float(np.mean([roc_auc_score(data.fresh_y, net) for net in self.fresh])),
        )


def generate(seed: int, *, train: int, test: int, fresh: int, folds: int) -> DataSet:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=INFORMATIVE)
    weights *= 1.5 / np.linalg.norm(weights)

    def rows(n: int) -> tuple[Floats, NDArray[np.int8]]:
        X = rng.normal(size=(n, FEATURES))
        risk = X[:, :INFORMATIVE] @ weights + 0.7 * X[:, 0] * X[:, 1] - 1.2
        return X, (rng.random(n) < expit(risk)).astype(np.int8)

    (X, y), (T, _), (F, fresh_y) = rows(train), rows(test), rows(fresh)
    return DataSet(X, y, rng.permutation(np.arange(train) % folds), T, F, fresh_y)


def fitted_net(X: Floats, y: Floats, seed: int, *, width: int = 32) -> Score:
    """Fits a net of one hidden layer that overfits, as image models do, on targets and soft labels alike."""
    net = MLPRegressor(hidden_layer_sizes=(width,), alpha=1e-2, max_iter=40, learning_rate_init=3e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        net.fit(X, y)
    return lambda rows: logit(np.clip(net.predict(rows), 0.01, 0.99))


def fitted_line(X: Floats, y: Floats, seed: int) -> Score:
    return LogisticRegression(C=0.05, random_state=seed).fit(X, y).decision_function


def predicted(data: DataSet, fit: Callable[[Floats, Floats, int], Score], labels: Floats | None = None) -> Predicted:
    """Fits a model in each fold; ``labels`` (k, m): probabilities of the test rows, which the nets then learn too."""
    k = int(data.fold.max()) + 1
    oof, test, fresh = np.empty(len(data.y)), [], []
    for fold in range(k):
        held = data.fold == fold
        X, y = data.train[~held], data.y[~held].astype(float)
        if labels is not None:
            X, y = np.concatenate([X, data.test]), np.concatenate([y, labels[fold]])
        score = fit(X, y, fold)
        oof[held] = score(data.train[held])
        test.append(score(data.test))
        fresh.append(score(data.fresh))
    return Predicted(NetScores(oof, np.array(test)), np.array(fresh))


def first_round(data: DataSet) -> dict[str, Predicted]:
    return {"net": predicted(data, fitted_net), "line": predicted(data, fitted_line)}


def pseudo_labels(teachers: dict[str, Predicted], kind: str) -> Floats | None:
    """Returns the labels (k, m) that the nets of each fold learn; None for the kind `none`."""
    by_fold = np.mean([one.nets.test for one in teachers.values()], axis=0)
    made = {"none": None, "own fold": by_fold, "all folds": np.broadcast_to(by_fold.mean(axis=0), by_fold.shape)}[kind]
    return None if made is None else expit(made)


def second_rounds(data: DataSet, teachers: dict[str, Predicted]) -> dict[str, Predicted]:
    """Returns the second-round net of each kind of labels; its seeds are not those of the first round."""

    def fit(X: Floats, y: Floats, seed: int) -> Score:
        return fitted_net(X, y, 100 + seed, width=48)

    return {kind: predicted(data, fit, pseudo_labels(teachers, kind)) for kind in LABELS}


def verdict(data: DataSet, run: Predicted, teachers: dict[str, Predicted]) -> str:
    others = [one.nets for one in teachers.values()]
    made = second_round(run.nets, others, data.fold, np.arange(len(data.y)), np.arange(len(data.test)))
    return "not tested" if made is None else made.labels


def shuffled(data: DataSet, seed: int) -> DataSet:
    """Returns the data set with shuffled targets, also of the fresh rows: nothing can be learned."""
    rng = np.random.default_rng(seed)
    return replace(data, y=rng.permutation(data.y), fresh_y=rng.permutation(data.fresh_y))


def main(sets: int) -> None:
    excess: dict[str, list[float]] = {kind: [] for kind in LABELS}
    scores: dict[str, list[tuple[float, float]]] = {kind: [] for kind in LABELS}
    null: dict[str, list[float]] = {kind: [] for kind in LABELS}
    verdicts: dict[str, Counter[str]] = {kind: Counter() for kind in LABELS}
    for seed in range(sets):
        data = generate(seed, train=1500, test=1000, fresh=5000, folds=5)
        teachers = first_round(data)
        for kind, run in second_rounds(data, teachers).items():
            scores[kind].append(run.aucs(data))
            excess[kind].append(scores[kind][-1][0] - scores[kind][-1][1])
            verdicts[kind][verdict(data, run, teachers)] += 1
        mixed = shuffled(data, seed)
        for kind, run in second_rounds(mixed, first_round(mixed)).items():
            null[kind].append(run.aucs(mixed)[0])
        print(f"data set {seed + 1} of {sets}", file=sys.stderr, flush=True)
    print("| second round | out-of-fold AUC | AUC on fresh rows | difference | AUC, targets shuffled | audit |")
    print("|---|---|---|---|---|---|")
    for kind, words in LABELS.items():
        means = np.mean(scores[kind], axis=0)
        said = ", ".join(f"{what}: {count}" for what, count in verdicts[kind].most_common())
        print(
            f"| {words} | {means[0]:.3f} | {means[1]:.3f} | {_mean(excess[kind], sign=True)} | {_mean(null[kind])} | "
            f"{said} |"
        )
    pay = np.array([one[1] for one in scores["own fold"]]) - [one[1] for one in scores["none"]]
    print(f"\nThe disciplined labels change the AUC on fresh rows by {_mean(pay.tolist(), sign=True)}.")


def _mean(values: list[float], *, sign: bool = False) -> str:
    """Returns the mean with its 95 % interval over data sets (Student's t)."""
    mean, n = float(np.mean(values)), len(values)
    reach = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    form = "+.3f" if sign else ".3f"
    return f"{mean:{form}} [{mean - reach:{form}}, {mean + reach:{form}}]"


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdigit() or int(sys.argv[1]) < 2:
        raise SystemExit(__doc__)
    main(int(sys.argv[1]))
