"""An Optuna study of how to weigh runs: warm-started, continued with the same result, with a draw that costs little."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.optimize import minimize
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from stack.blend.columns import Weighting, standard_rank, weighted_sum
from stack.metrics.scores import Floats, scorer

POWER_RANGE = (0.25, 4.0)

_ZERO_WEIGHT_BELOW = 0.2  # a run's parameter, in [0, 1], that is not above this is a weight of zero
_FIRST_STEP, _MIN_STEP, _MAX_STEP = 0.2, 0.01, 0.5
_STEP_GROWTH = 1.5  # of the step with each success; it shrinks so that one success in five keeps it


def tune_weights(
    columns: Mapping[str, Floats],
    allowed: Sequence[Sequence[str]],
    y: ArrayLike,
    *,
    objective: str = "auc",
    trials: int = 100,
    timeout: float | None = None,
    seed: int = 0,
    warm_starts: Sequence[Callable[[], Weighting]] = (),
    ranks: Floats | None = None,
    study: optuna.Study | None = None,
) -> Weighting:
    """The weighting whose weighted sum of ``columns`` scores best on targets `y` (n,).

    ``columns`` are (n, runs) by transform, ``allowed`` each run's transforms out of them, ``warm_starts`` makes the
    first trials, simplest first and each when its turn comes. With ``ranks`` (n, runs) in (0, 1), each run's rank has a
    power too. ``study`` (to be maximised; any storage) is continued until it holds ``trials`` completed trials, with
    the same result however often it was interrupted: each trial is drawn from ``seed`` and the completed ones before
    it, and stored whole or not at all. Its first trial apart, none begins when ``timeout`` seconds are over.

    After the beginning a trial is the best so far with some of its parameters moved, by a step that grows with
    success and shrinks without (the (1 + 1) evolution strategy of Rechenberg 1973, with the one-fifth rule). Over the
    twelve to thirty parameters of a blend it gets further in as many trials than Optuna's TPE, whose draw takes ten
    times as long as the trial (benchmarks/blend.py).
    """
    study = study or study_in_memory()
    deadline = None if timeout is None else time.monotonic() + timeout
    space = _space(allowed, power=ranks is not None)
    columns = {kind: np.asfortranarray(values) for kind, values in columns.items()}
    value_of = scorer(objective, y)

    def value(weighting: Weighting) -> float:
        runs = [
            standard_rank(ranks[:, run], weighting.powers[run])
            if ranks is not None and kind == "rank"
            else columns[kind][:, run]
            for run, kind in enumerate(weighting.transforms)
        ]
        return value_of(weighted_sum(np.stack(runs).T, weighting.weights))

    with quiet_optuna():
        done = completed(study)
        history = [(trial.params, float(trial.values[0])) for trial in done]
        while (number := len(history)) < trials and (number == 0 or deadline is None or time.monotonic() < deadline):
            parameters = (
                _parameters(warm_starts[number](), space)
                if number < len(warm_starts)
                else _mutated(history, len(warm_starts), space, np.random.default_rng([seed, number]))
            )
            score = value(weighting_from_parameters(parameters, allowed))
            study.add_trial(optuna.trial.create_trial(params=parameters, distributions=dict(space), value=score))
            history.append((parameters, score))
    return weighting_from_parameters(history[_best(history)][0], allowed)


def weighting_from_parameters(parameters: Mapping[str, Any], allowed: Sequence[Sequence[str]]) -> Weighting:
    """The weighting of one trial, its weights on the simplex.

    One parameter a run, divided by their sum. The lowest fifth of its range is a weight of zero, so that
    leaving a run out is something that a search finds.
    """
    runs = len(allowed)
    above = np.maximum(np.array([parameters[f"weight_{run}"] for run in range(runs)]) - _ZERO_WEIGHT_BELOW, 0)
    transforms = [parameters.get(f"transform_{run}", kinds[0]) for run, kinds in enumerate(allowed)]
    plain = Weighting.of(transforms, above)
    if "power_0" not in parameters:
        return plain
    return Weighting(plain.transforms, plain.weights, tuple(parameters[f"power_{run}"] for run in range(runs)))


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials that have a value, oldest first."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def study_in_memory() -> optuna.Study:
    """A study that ends with the process."""
    with quiet_optuna():
        return optuna.create_study(direction="maximize")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna says only what is wrong; its verbosity is as before afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _space(allowed: Sequence[Sequence[str]], *, power: bool) -> dict[str, BaseDistribution]:
    space: dict[str, BaseDistribution] = {f"weight_{run}": FloatDistribution(0, 1) for run in range(len(allowed))}
    space |= {f"transform_{run}": CategoricalDistribution(kinds) for run, kinds in enumerate(allowed) if len(kinds) > 1}
    if power:
        space |= {f"power_{run}": FloatDistribution(*POWER_RANGE, log=True) for run in range(len(allowed))}
    return space


def _parameters(weighting: Weighting, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    weights = np.asarray(weighting.weights)
    chosen = np.where(weights > 0, _ZERO_WEIGHT_BELOW + (1 - _ZERO_WEIGHT_BELOW) * (weights / weights.max()), 0)
    parameters: dict[str, Any] = {f"weight_{run}": float(parameter) for run, parameter in enumerate(chosen)}
    for run, kind in enumerate(weighting.transforms):
        parameters |= {f"transform_{run}": kind, f"power_{run}": weighting.powers[run] if weighting.powers else 1.0}
    return {name: parameters[name] for name in space}


def _mutated(
    history: Sequence[tuple[Mapping[str, Any], float]],
    n_warm_starts: int,
    space: Mapping[str, BaseDistribution],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The best parameters so far with about two of them moved."""
    parameters, step = dict(history[_best(history)][0]), _step(history, n_warm_starts)
    names = list(space)
    mutated = rng.random(len(names)) < 2 / len(names)
    mutated[rng.integers(len(names))] = True
    for name in np.array(names)[mutated]:
        distribution = space[name]
        if isinstance(distribution, CategoricalDistribution):
            others = [kind for kind in distribution.choices if kind != parameters[name]]
            parameters[name] = others[rng.integers(len(others))]
        elif name.startswith("power"):
            exponent = np.log2(parameters[name]) + 4 * step * rng.normal()
            parameters[name] = float(2 ** np.clip(exponent, *np.log2(POWER_RANGE)))
        else:
            parameters[name] = float(_reflected(parameters[name] + step * rng.normal()))
    return parameters


def _step(history: Sequence[tuple[Mapping[str, Any], float]], n_warm_starts: int) -> float:
    step, best = _FIRST_STEP, max((value for _, value in history[:n_warm_starts]), default=-np.inf)
    for _, value in history[n_warm_starts:]:
        step *= _STEP_GROWTH if value > best else _STEP_GROWTH**-0.25
        step, best = min(max(step, _MIN_STEP), _MAX_STEP), max(best, value)
    return step


def _best(history: Sequence[tuple[Mapping[str, Any], float]]) -> int:
    return int(np.argmax([value for _, value in history]))  # of equals the first: the simplest


def _reflected(value: float) -> float:
    folded = abs(value) % 2
    return 2 - folded if folded > 1 else folded


PATIENCE = 20  # steps without a new best after which a climb ends: a share of steps gets finer the longer it climbs
MIN_GAIN = 1e-9  # below it, two scores are the same up to rounding


def hill_climb(
    V: Floats,
    y: ArrayLike,
    *,
    objective: str = "auc",
    replacement: bool = True,
    bags: int = 5,
    steps: int = 200,
    seed: int = 0,
) -> Floats:
    """Weights (runs,) on the simplex, by ensemble selection over the columns of `V` (n, runs) for targets `y` (n,).

    Forward selection from the best run alone, of which the best prefix is kept; ``replacement`` lets a run be added
    again, so that weights are shares of steps, and without it the chosen runs weigh the same (Caruana,
    Niculescu-Mizil, Crew & Ksikes 2004). ``bags`` > 1 adds climbs on random halves of each class's rows and
    averages the weights, which keeps a run that fits by luck from taking all (Bühlmann & Yu 2002; Caruana draws
    halves of hundreds of models, which would leave some bags of a blend of five with noise alone).
    """
    y = np.asarray(y)
    rng = np.random.default_rng(seed)
    weights = _climb(V, y, objective, replacement, steps)
    for _ in range(bags - 1 if V.shape[1] > 1 else 0):
        halves = [
            rng.choice(rows, size=(len(rows) + 1) // 2, replace=False) for rows in map(np.flatnonzero, (y, y == 0))
        ]
        rows = np.sort(np.concatenate(halves))
        weights = weights + _climb(V[rows], y[rows], objective, replacement, steps)
    return weights / bags if V.shape[1] > 1 else weights


def _climb(V: Floats, y: NDArray[Any], objective: str, replacement: bool, steps: int) -> Floats:
    """Shares (runs,) of the best prefix of one climb."""
    columns = [np.ascontiguousarray(column) for column in V.T]
    value_of = scorer(objective, y)
    counts, best_counts = np.zeros(len(columns)), np.zeros(len(columns))
    total, best, steps_since_best = np.zeros_like(columns[0]), -np.inf, 0
    remaining = list(range(len(columns)))
    for step in range(1, steps + 1):
        # Of a sum, not of a mean: a curve's value doesn't change with the scale. Log loss needs the mean.
        scale = 1 / step if objective == "logloss" else 1.0
        values = [value_of((total + columns[run]) * scale if scale != 1 else total + columns[run]) for run in remaining]
        added = remaining[int(np.argmax(values))]
        total = total + columns[added]
        counts[added] += 1
        if max(values) > best + MIN_GAIN:
            best, best_counts, steps_since_best = max(values), counts.copy(), 0
        else:
            steps_since_best += 1
        if not replacement:
            remaining.remove(added)
        if steps_since_best == PATIENCE or not remaining:
            break
    share: Floats = best_counts / best_counts.sum()
    return share


RIDGE = 1.0  # of the summed log likelihood, as scikit-learn's C = 1; on columns of spread 1
ZERO_RIDGE = 0.01  # of that ridge about zero: where the columns part the classes, the coefficients have an end


def logistic_weights(V: Floats, y: ArrayLike) -> tuple[Floats, float]:
    """Coefficients (runs,), none negative, and intercept of log odds on the columns of `V` (n, runs), spread 1 each.

    The ridge is about equal coefficients, not about zero: runs of one strength share their weight, and
    without evidence the blend is their mean.
    """
    n, runs = V.shape
    positive = np.asarray(y) == 1

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = V @ theta[:-1] + theta[-1]
        deviation = theta[:-1] - theta[:-1].mean()
        gradient = np.append(
            V.T @ (expit(z) - positive) + RIDGE * (deviation + ZERO_RIDGE * theta[:-1]), np.sum(expit(z) - positive)
        )
        penalty = RIDGE / 2 * (deviation @ deviation + ZERO_RIDGE * theta[:-1] @ theta[:-1])
        return float((np.sum(np.logaddexp(0, z) - positive * z) + penalty) / n), gradient / n

    share = positive.mean()
    start = np.append(np.full(runs, 1 / runs), logit(share))
    bounds = [(0, None)] * runs + [(None, None)]
    options = {"maxiter": 500, "gtol": 1e-9}
    with threadpool_limits(1):  # small products, whose last bits shall not depend on the cores of the machine
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x[:-1], float(found.x[-1])
