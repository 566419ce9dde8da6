"""Searches the weights of runs by a study of random changes, stored by Optuna."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from dermstack.errors import DataError
from stack.blend.columns import Weighting, standard_rank
from stack.metrics.scores import Floats, scorer

POWER_RANGE = (0.25, 4.0)

_ZERO_WEIGHT_BELOW = 0.2  # a run's parameter, in [0, 1], means a weight of zero up to this value
_FIRST_STEP, _MIN_STEP, _MAX_STEP = 0.2, 0.01, 0.5
_STEP_GROWTH = 1.5  # factor of the step after a success; after a failure it shrinks, so that 1 success in 5 keeps it


Trials = list[tuple[Mapping[str, Any], float]]  # parameters and value of each completed trial, oldest first
Columns = Mapping[str, Floats] | Callable[[str, int], Floats]  # (n, runs) for each transform, or a function of both


def search_trials(
    columns: Columns,
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
) -> Trials:
    """Searches the weighting whose weighted sum of ``columns`` scores best on targets `y` (n,), and returns all trials.

    ``columns`` holds an array (n, runs) for each transform, or is a function of transform and run that returns a column
    (n,); ``allowed`` are the transforms that each run may use. Each of ``warm_starts`` is called for one of the first
    trials, simplest first. With ``ranks`` (n, runs) in (0, 1), each run's rank also has an exponent. A given ``study``
    (direction "maximize", any storage, with ``columns`` as arrays) is continued until it holds ``trials`` completed
    trials; DataError where its trials are of other columns, targets or objective. Interruptions do not change the
    result: each trial depends only on ``seed`` and the completed trials before it, and is stored whole or not at all.
    Without a study the same trials are held in memory. After ``timeout`` seconds no trial starts except the first.

    After the warm starts, a trial is the best one so far with some parameters moved, by a step that grows after a
    success and shrinks otherwise (the (1 + 1) evolution strategy of Rechenberg 1973, with the one-fifth rule). On the
    12 to 30 parameters of a blend it finds better weights in the same number of trials than Optuna's TPE sampler, which
    takes ten times as long to draw a trial as the trial itself takes (benchmarks/blend.py).
    """
    if study is not None:
        assert not callable(columns)
        _check_study(study, _noted(columns, allowed, y, objective, ranks))
    deadline = None if timeout is None else time.monotonic() + timeout
    space = _space(allowed, power=ranks is not None)
    if callable(columns):
        column = columns
    else:
        arrays = {kind: np.asfortranarray(values) for kind, values in columns.items()}

        def column(kind: str, run: int) -> Floats:
            return arrays[kind][:, run]

    value_of = scorer(objective, y)
    total, part = np.empty((2, np.size(y)))  # the same arrays for each trial

    def value(weighting: Weighting) -> float:
        total.fill(0.0)
        for run, (kind, weight) in enumerate(zip(weighting.transforms, weighting.weights, strict=True)):
            if weight == 0:  # adds nothing
                continue
            if ranks is not None and kind == "rank":
                values = standard_rank(ranks[:, run], weighting.powers[run])
            else:
                values = column(kind, run)
            np.multiply(values, weight, out=part)
            np.add(total, part, out=total)
        return value_of(total)

    with quiet_optuna():
        done = [] if study is None else completed(study)
        climb = _Climb(len(warm_starts))
        for trial in done:
            climb.add(trial.params, float(trial.values[0]))
        while (number := len(climb.trials)) < trials and (
            number == 0 or deadline is None or time.monotonic() < deadline
        ):
            parameters = (
                _parameters(warm_starts[number](), space)
                if number < len(warm_starts)
                else climb.mutated(space, np.random.default_rng([seed, number]))
            )
            score = value(weighting_from_parameters(parameters, allowed))
            if study is not None:
                study.add_trial(optuna.trial.create_trial(params=parameters, distributions=dict(space), value=score))
            climb.add(parameters, score)
    return climb.trials


def best_weighting(history: Trials, allowed: Sequence[Sequence[str]]) -> Weighting:
    """Returns the weighting of the best trial of `search_trials`, of equal ones the first."""
    return weighting_from_parameters(history[_best(history)][0], allowed)


_NOTED = "fitted on"  # user attribute of a study: what its trials are about


def _noted(
    columns: Mapping[str, Floats], allowed: Sequence[Sequence[str]], y: ArrayLike, objective: str, ranks: Floats | None
) -> dict[str, str]:
    """Returns what the values of a study's trials depend on, by name."""
    n, runs = next(iter(columns.values())).shape
    arrays = [columns[kind] for kind in sorted(columns)] + ([] if ranks is None else [ranks])
    return {
        "runs": f"{runs}",
        "rows": f"{n}",
        "objective": objective,
        "powers": "no" if ranks is None else "yes",
        "predictions": _sha256(*arrays, *(np.array(list(kinds)) for kinds in allowed)),
        "targets": _sha256(np.asarray(y, np.float64)),
    }


def _sha256(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _check_study(study: optuna.Study, noted: dict[str, str]) -> None:
    """Notes in a new study what it is about. Raises DataError where its trials are about something else."""
    if len(study.directions) != 1 or study.direction != optuna.study.StudyDirection.MAXIMIZE:
        raise DataError(
            f"the study {study.study_name} does not maximise one value: create it with direction='maximize'"
        )
    before = study.user_attrs.get(_NOTED)
    if before is None and not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        study.set_user_attr(_NOTED, noted)
        return
    if before is None:
        raise DataError(
            f"the study {study.study_name} does not say which predictions its trials are about: give a new study"
        )
    changed = [
        f"{name} ({before.get(name)}, now {noted[name]})" if len(noted[name]) < 12 else name
        for name in noted
        if before.get(name) != noted[name]
    ]
    if changed:
        raise DataError(
            f"the study {study.study_name} has trials on other {', '.join(changed)}: give a new study, or fit the "
            "same data"
        )


def weighting_from_parameters(parameters: Mapping[str, Any], allowed: Sequence[Sequence[str]]) -> Weighting:
    """Returns the weighting of one trial, with weights that sum to 1.

    Each run's parameter minus 0.2 is its weight before the division by the sum. The lowest fifth of the range is a
    weight of zero, so that a search can leave a run out.
    """
    runs = len(allowed)
    above = np.maximum(np.array([parameters[f"weight_{run}"] for run in range(runs)]) - _ZERO_WEIGHT_BELOW, 0)
    transforms = [parameters.get(f"transform_{run}", kinds[0]) for run, kinds in enumerate(allowed)]
    plain = Weighting.of(transforms, above)
    if "power_0" not in parameters:
        return plain
    return Weighting(plain.transforms, plain.weights, tuple(parameters[f"power_{run}"] for run in range(runs)))


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the study's completed trials, oldest first."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Limits Optuna's log to warnings inside the context and restores its verbosity afterwards."""
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


class _Climb:
    """The trials so far, the best of them, and by how much the next one moves its parameters."""

    def __init__(self, warm_starts: int) -> None:
        self.trials: Trials = []
        self.step = _FIRST_STEP
        self._warm_starts, self._best = warm_starts, 0

    def add(self, parameters: Mapping[str, Any], value: float) -> None:
        """Takes a finished trial. After the warm starts, the step grows with a success and shrinks otherwise."""
        number = len(self.trials)
        self.trials.append((parameters, value))
        better = number == 0 or value > self.trials[self._best][1]
        if number >= self._warm_starts:
            step = self.step * (_STEP_GROWTH if better else _STEP_GROWTH**-0.25)
            self.step = min(max(step, _MIN_STEP), _MAX_STEP)
        if better:  # of equal values the first is the best, which is the simplest
            self._best = number

    def mutated(self, space: Mapping[str, BaseDistribution], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the best parameters so far with one of them moved and, on average, nearly two more."""
        parameters, names = dict(self.trials[self._best][0]), list(space)
        moved = rng.random(len(names)) < 2 / len(names)
        moved[rng.integers(len(names))] = True
        for index in np.flatnonzero(moved):
            name, distribution = names[index], space[names[index]]
            if isinstance(distribution, CategoricalDistribution):
                others = [kind for kind in distribution.choices if kind != parameters[name]]
                parameters[name] = others[rng.integers(len(others))]
            elif name.startswith("power"):
                exponent = np.log2(parameters[name]) + 4 * self.step * rng.normal()
                parameters[name] = float(2 ** np.clip(exponent, *np.log2(POWER_RANGE)))
            else:
                parameters[name] = float(_reflected(parameters[name] + self.step * rng.normal()))
        return parameters


def _best(history: Sequence[tuple[Mapping[str, Any], float]]) -> int:
    return int(np.argmax([value for _, value in history]))  # of equal values the first, which is the simplest


def _reflected(value: float) -> float:
    folded = abs(value) % 2
    return 2 - folded if folded > 1 else folded
