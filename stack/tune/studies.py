"""Named studies that survive and continue: in a journal file or any database of Optuna's, by one worker or several."""

from __future__ import annotations

import json
import multiprocessing
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import yaml
from filelock import FileLock
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from image_models.processes import exit_with_parent, own_packages_first
from stack.console import Out
from stack.errors import ConfigError, StoreError
from stack.experiment import Experiment
from stack.metrics.scores import Floats
from stack.store import LOCK_FILE, atomic
from stack.tuned import digest_line


class Journal(JournalFileBackend):
    """The same lines, each with a key `crc` that other readers of the file ignore; older lines come without."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=cast(Any, _Lock(path.with_name(LOCK_FILE))))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write a line for each."""
        super().append_logs([{**log, "crc": _crc(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # narrower
        """Every line from this number on. Raises StoreError for one that isn't what was written."""
        try:
            for log in super().read_logs(log_number_from):
                if not isinstance(log, dict) or log.pop("crc", _crc(log)) != _crc(log):
                    raise ValueError("a line isn't what its checksum says")
                yield log
        except ValueError as error:  # of JSON and UTF-8 too
            raise StoreError(
                f"{self._path} is damaged ({error}): remove {self._path} and run `dermstack tune` again, which starts "
                "the studies anew"
            ) from error


class _Lock:
    """The lock of the journal file. Optuna's own is a symbolic link that outlives a killed process by half a minute."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let go of the lock."""
        self._lock.release()


def _crc(log: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps({key: value for key, value in log.items() if key != "crc"}).encode())


ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT, GRACE = 5, 20  # seconds between a database worker's signs of life, and without them until it counts as dead

Objective = Callable[[optuna.Trial], float]


def run_study(
    experiment: Experiment,
    name: str,
    make_objective: Callable[[], Objective],
    out: Out,
    *,
    first: dict[str, Any],
    trials: int,
    timeout: float | None,
    workers: int,
    progress: Callable[[int], object] = lambda done: None,
) -> optuna.Study:
    """Bring the study to ``trials`` ended trials (pruned ones count), unless ``timeout`` seconds are over before.

    The first trial is ``first``. With one worker an interrupted study goes on with the same result (law 9): what a
    trial was doing when its process was killed is forgotten, and the sampler is seeded anew before each trial
    from the config's seed and the number that have ended. Several workers share the study, each in a process with an
    objective of its own; one that dies leaves its trial to the others (at once marked failed and tried again
    where the storage is a database, when the command is run again where it is a file).
    """
    refuse_sqlite(experiment, workers)
    study = open_study(experiment, name)
    if experiment.config.storage is None:  # in a database others may be at them
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    if not study.get_trials(deepcopy=False, states=(*ENDED, TrialState.WAITING)):
        study.enqueue_trial(first)
    deadline = None if timeout is None else time.time() + timeout
    progress(min(count_ended(study), trials))
    if workers == 1:
        objective = make_objective()
        while count_ended(study) < trials and (deadline is None or time.time() < deadline):
            _run_trial(study, objective, seed=experiment.config.seed + count_ended(study))
            progress(1)
        return study
    context = multiprocessing.get_context("spawn")
    arguments = (experiment, name, make_objective, trials, deadline)
    worker_processes = [
        context.Process(target=exit_with_parent(_run_worker), args=(*arguments, number)) for number in range(workers)
    ]
    try:
        with own_packages_first():
            for process in worker_processes:
                process.start()
        done = count_ended(study)
        while any(process.is_alive() for process in worker_processes):
            time.sleep(0.5)
            progress((now := count_ended(study)) - done)
            done = now
    finally:
        for process in worker_processes:  # interrupted: the others' trials are tried again with the next command
            if process.is_alive():
                process.kill()
    for number, process in enumerate(worker_processes):
        if process.exitcode:
            out.warn(f"{name}: worker {number} died (exit status {process.exitcode}); the others went on")
    return study


def open_study(experiment: Experiment, name: str, *, shared: bool = False) -> optuna.Study:
    """A study of these rows and this objective, made or continued.

    A journal file that is not ``shared`` with running workers is repaired first: what a crash left of a last line goes.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=f"{experiment.name}-{name}-{experiment.config.objective}-{experiment.rows_fingerprint}",
        storage=_storage(experiment, shared=shared),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
        load_if_exists=True,
    )


@dataclass(frozen=True)
class StudyHistory:
    """A study so far: its name, and of each trial in order the value (NaN where it has none) and the state."""

    name: str
    values: Floats  # (trials,)
    states: tuple[str, ...]  # "complete", "pruned", "fail", …

    @property
    def best_so_far(self) -> Floats:
        """The best value up to each trial (trials,); NaN before the first."""
        best: Floats = np.fmax.accumulate(self.values)
        return best


def read_studies(experiment: Experiment) -> list[StudyHistory]:
    """The studies of these rows and this objective that the storage holds, by name; opens nothing that is not there.

    Raises ConfigError where the config names a database that can't be opened.
    """
    if experiment.config.storage is None and not (experiment.folder / "studies" / "journal.log").exists():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(experiment, shared=True)
    prefix, suffix = f"{experiment.name}-", f"-{experiment.config.objective}-{experiment.rows_fingerprint}"
    found = []
    for full in sorted(optuna.get_all_study_names(storage)):
        if not (full.startswith(prefix) and full.endswith(suffix)):
            continue
        # A pruned trial's value is that of its first folds: no value of the study.
        trials = optuna.load_study(study_name=full, storage=storage).get_trials(deepcopy=False)
        values = [trial.value if trial.state == TrialState.COMPLETE else None for trial in trials]
        states = tuple(trial.state.name.lower() for trial in trials)
        name = full.removeprefix(prefix).removesuffix(suffix)
        found.append(StudyHistory(name, np.array(values, np.float64), states))
    return found


def refuse_sqlite(experiment: Experiment, workers: int) -> None:
    """Raise ConfigError where several workers would share an SQLite file."""
    if workers > 1 and (experiment.config.storage or "").startswith("sqlite"):
        raise ConfigError("storage: SQLite can't serve several workers: leave `storage` out, or name a PostgreSQL")


def count_ended(study: optuna.Study) -> int:
    """How many trials have a value or were pruned."""
    return len(study.get_trials(deepcopy=False, states=ENDED))


def write_study(experiment: Experiment, name: str, result: dict[str, Any]) -> Path:
    """What a study chose, as the yaml that the config names under `tuned`."""
    path = experiment.folder / "studies" / f"{name}.yaml"
    origin = {"objective": experiment.config.objective, "rows_or_folds": experiment.rows_fingerprint}
    text = yaml.safe_dump({**origin, **result}, sort_keys=False)
    with atomic(path) as temporary:
        temporary.write_text(f"{digest_line(text)}\n{text}", encoding="utf-8")
    return path


def _run_trial(study: optuna.Study, objective: Objective, *, seed: int, shared: bool = False) -> None:
    # constant_liar counts what others are at: for one worker that would be trials whose process was killed.
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=shared)
    study.optimize(objective, n_trials=1)


def _run_worker(
    experiment: Experiment,
    name: str,
    make_objective: Callable[[], Objective],
    trials: int,
    deadline: float | None,
    worker: int,
) -> None:
    study, objective = open_study(experiment, name, shared=True), make_objective()
    while deadline is None or time.time() < deadline:
        optuna.storages.fail_stale_trials(study)  # of a database: a trial whose worker is gone waits to be tried again
        done = count_ended(study)
        waiting, running = (
            len(study.get_trials(deepcopy=False, states=(state,))) for state in (TrialState.WAITING, TrialState.RUNNING)
        )
        if waiting or done + running < trials:
            _run_trial(study, objective, seed=experiment.config.seed + 1000 * (worker + 1) + done, shared=True)
        elif running == 0 or experiment.config.storage is None:
            return  # a file has no signs of life, so nobody can wait there for the others' last trials
        else:
            time.sleep(0.5)


def _storage(experiment: Experiment, *, shared: bool) -> BaseStorage:
    # Heartbeats have been experimental since 2021; the version is pinned.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = experiment.config.storage
    if url is None:
        path = experiment.folder / "studies" / "journal.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not shared:  # a line that another process is just writing looks torn too
            _drop_torn_line(path)
        return JournalStorage(Journal(path))
    try:
        return RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
        )
    except (ImportError, OSError, SQLAlchemyError, OptunaError) as error:
        raise ConfigError(f"storage: {url.split('@')[-1]} can't be opened: {type(error).__name__}: {error}") from error


def _drop_torn_line(path: Path) -> None:
    """A crash can leave half a line at the end, which the next append would glue to its own and make unreadable."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with atomic(path) as temporary:
            temporary.write_bytes(content[: content.rfind(b"\n") + 1])
