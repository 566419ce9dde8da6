"""Runs, stores and reads named Optuna studies that can be continued, in a journal file or a database."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import socket
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import yaml
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from dermstack.errors import ConfigError, StoreError
from dermstack.masking import MASK, mask_secrets
from image_models.processes import exit_with_parent, own_packages_first
from image_models.settings import DoneBefore
from stack.console import Out
from stack.experiment import Experiment
from stack.metrics.scores import Floats
from stack.store import LOCK_FILE, atomic, fingerprint, sha256
from stack.study_inputs import Inputs, changed_inputs
from stack.tuned import digest_line, noted_inputs


class Journal(JournalFileBackend):
    """Optuna's journal file with a checksum in each line, under the key `crc`, which other readers of the file ignore.

    Lines without a checksum, written by older versions, are accepted.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=cast(Any, _Lock(path.with_name(LOCK_FILE))))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes one line for each log."""
        super().append_logs([{**log, "crc": _crc(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # narrower
        """Yields every log from this line number on; raises StoreError for a damaged line."""
        try:
            for log in super().read_logs(log_number_from):
                if not isinstance(log, dict) or log.pop("crc", _crc(log)) != _crc(log):
                    raise ValueError("a line does not match its checksum")
                yield log
        except ValueError as error:  # includes the errors of JSON and UTF-8
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> StoreError:
        """Returns the error that names the file and the next step."""
        return StoreError(
            f"{self._path} is damaged ({type(error).__name__}: {error}): remove {self._path} and run `dermstack tune` "
            "again, which restarts all studies"
        )


class _Lock:
    """Lock of the journal file; Optuna's own, a symbolic link, blocks for 30 seconds after a process is killed."""

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
HEARTBEAT, GRACE = 5, 20  # seconds between heartbeats of a database worker, and without one until it counts as dead

CONNECT_SECONDS = 5.0  # for the address of a database to answer
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "oracle": 1521, "mssql": 1433}

_NOTED = "inputs"  # user attribute of a study: all that it depends on
_SHORTEST_SECRET = 4  # shorter passwords are not searched for in the text of a driver's error, as words hold them

Objective = Callable[[optuna.Trial], float]


def run_study(
    experiment: Experiment,
    name: str,
    make_objective: Callable[[], Objective],
    out: Out,
    *,
    inputs: Inputs,
    first: dict[str, Any],
    trials: int,
    timeout: float | None,
    workers: int,
    progress: Callable[[int], object] = lambda done: None,
) -> optuna.Study:
    """Runs the study until it has ``trials`` ended trials (completed or pruned) or ``timeout`` seconds have passed.

    ``inputs`` are all that the study depends on, and a part of its name: with others, a new study begins. The first
    trial has the parameters ``first``. With one worker an interrupted study continues with the same result
    (law 9): an unfinished trial is marked as failed, and the sampler is seeded before each trial from the config's seed
    and the number of ended trials. Several workers share the study, each in its own process with its own objective. The
    trial of a worker that dies is marked as failed: with a database another worker repeats it, with a file the next run
    of the command replaces it by a new trial.
    """
    refuse_sqlite(experiment, workers)
    study = open_study(experiment, name, inputs)
    with storage_errors(experiment):
        if experiment.config.storage is None:  # in a database, other processes may be running these trials
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
        if not study.get_trials(deepcopy=False, states=(*ENDED, TrialState.WAITING)):
            study.enqueue_trial(first)
        deadline = None if timeout is None else time.time() + timeout
        progress(DoneBefore(min(count_ended(study), trials)))
        if workers > 1:
            _run_workers((experiment, name, inputs, make_objective, trials, deadline), workers, study, out, progress)
            return study
        objective = make_objective()
        while count_ended(study) < trials and (deadline is None or time.time() < deadline):
            _run_trial(study, objective, seed=experiment.config.seed + count_ended(study))
            progress(1)
    return study


def _run_workers(
    arguments: tuple[Any, ...], workers: int, study: optuna.Study, out: Out, progress: Callable[[int], object]
) -> None:
    """Runs `_run_worker` with ``arguments`` in ``workers`` processes and waits for them; warns of those that died."""
    context = multiprocessing.get_context("spawn")
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
        for process in worker_processes:  # after an interruption; the next command replaces their trials
            if process.is_alive():
                process.kill()
    for number, process in enumerate(worker_processes):
        if process.exitcode:
            out.warn(
                f"{arguments[1]}: worker {number} died ({_how_ended(process.exitcode)}); the other workers continued"
            )


def _how_ended(status: int) -> str:
    """Names the signal that ended a process, or its exit status."""
    try:
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
    except ValueError:  # a real-time signal
        return f"signal {-status}"


def open_study(experiment: Experiment, name: str, inputs: Inputs, *, shared: bool = False) -> optuna.Study:
    """Creates or opens the study of this name for this objective and these inputs, which it notes in the study.

    A journal file that is not ``shared`` with running workers is repaired first: an incomplete last line is dropped.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = experiment.config.objective
    with storage_errors(experiment):
        study = optuna.create_study(
            study_name=f"{experiment.name}-{name}-{objective}-{fingerprint({**inputs, 'objective': objective})}",
            storage=_storage(experiment, shared=shared),
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
            load_if_exists=True,
        )
        if _NOTED not in study.user_attrs:
            study.set_user_attr(_NOTED, dict(inputs))
    return study


@dataclass(frozen=True)
class StudyHistory:
    """Trials of a study so far, in order."""

    name: str
    values: Floats  # (trials,), NaN for a trial that is not complete
    states: tuple[str, ...]  # "complete", "pruned", "fail", …

    @property
    def best_so_far(self) -> Floats:
        """Best value up to each trial (trials,); NaN before the first complete trial."""
        best: Floats = np.fmax.accumulate(self.values)
        return best


def read_studies(experiment: Experiment, current: Mapping[str, Inputs]) -> list[StudyHistory]:
    """Returns the stored studies that are not stale, sorted by name; creates no journal file.

    ``current`` has the inputs of now by the first part of a study's name, such as "blend" or "gbdt-lightgbm". Of
    studies of one name the latest is returned. Raises ConfigError where the config's database cannot be opened.
    """
    if experiment.config.storage is None and not (experiment.folder / "studies" / "journal.log").exists():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, tuple[datetime, StudyHistory]] = {}
    with storage_errors(experiment):
        storage = _storage(experiment, shared=True)
        for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
            noted, started = summary.user_attrs.get(_NOTED), summary.datetime_start
            name = _name_in(experiment, summary.study_name)
            inputs = next((inputs for first, inputs in current.items() if name and _is_of(first, name)), None)
            if noted is None or inputs is None or started is None or changed_inputs(noted, inputs):
                continue
            if name in found and found[name][0] > started:
                continue
            # A pruned trial's value is the mean of its first steps only, so it is left out.
            trials = optuna.load_study(study_name=summary.study_name, storage=storage).get_trials(deepcopy=False)
            values = [trial.value if trial.state == TrialState.COMPLETE else None for trial in trials]
            states = tuple(trial.state.name.lower() for trial in trials)
            found[name] = started, StudyHistory(name, np.array(values, np.float64), states)
    return [found[name][1] for name in sorted(found)]


def _name_in(experiment: Experiment, full: str) -> str:
    """Returns the name of a study in its full name; "" where that is of another experiment or objective."""
    match = re.fullmatch(
        rf"{re.escape(experiment.name)}-(.+)-{re.escape(experiment.config.objective)}-[0-9a-f]{{12}}", full
    )
    return match.group(1) if match else ""


def _is_of(first: str, name: str) -> bool:
    """Returns whether ``first`` is the first part of a study's name: `gbdt-a` is not that of `gbdt-a-b-without-0`."""
    return name == first or re.fullmatch(rf"{re.escape(first)}(-weighting)?-without-(none|[\d-]+)", name) is not None


@contextmanager
def storage_errors(experiment: Experiment, *, opening: bool = False) -> Iterator[None]:
    """Raises ConfigError, with secrets masked, for errors of the database inside the context.

    When ``opening``, also for those of its driver, which may be absent, out of reach or lack an option of the URL.
    """
    of_driver = (ImportError, OSError, TypeError, ValueError) if opening else ()
    kinds = (SQLAlchemyError, StorageInternalError, *of_driver)
    try:
        yield
    except kinds as error:
        if experiment.config.storage is None:
            raise
        url = make_url(experiment.config.storage.get_secret_value())
        told = mask_secrets(f"{type(error).__name__}: {error}")
        for secret in (url.password, *url.query.values()):  # a driver repeats them in forms of its own
            if isinstance(secret, str) and len(secret) >= _SHORTEST_SECRET:
                told = told.replace(secret, MASK)
        # The driver's own error, which may hold the password, is not kept as the cause.
        fault = "opened" if opening else "used"
        raise ConfigError(
            f"storage: {url.render_as_string(hide_password=True)} cannot be {fault} ({told}): start the database or "
            "correct `storage`"
        ) from None


def refuse_sqlite(experiment: Experiment, workers: int) -> None:
    """Raises ConfigError where several workers would share an SQLite file."""
    storage = experiment.config.storage
    if workers > 1 and storage is not None and storage.get_secret_value().startswith("sqlite"):
        raise ConfigError(
            "storage: SQLite cannot serve several workers: remove `storage` or set it to the URL of a PostgreSQL "
            "database"
        )


def count_ended(study: optuna.Study) -> int:
    """Returns the number of completed and pruned trials."""
    return len(study.get_trials(deepcopy=False, states=ENDED))


def tell_stale(experiment: Experiment, name: str, inputs: Inputs, out: Out) -> None:
    """Says by name what has changed since the result ``studies/<name>.yaml`` was tuned, if anything has."""
    path = _result_file(experiment, name)
    if not path.is_file() or (noted := noted_inputs(path)) == inputs:
        return
    if noted is None:
        why = "does not say what it was tuned on"
    elif changed := changed_inputs(noted, inputs):
        why = f"is stale, it was tuned with other {'; '.join(changed)}"
    else:
        why = "began from other settings of the model"
    out.warn(f"{name}: {path} {why}; a new study begins, and this result will be kept as {_aside(path)}")


def write_study(experiment: Experiment, name: str, inputs: Inputs, result: dict[str, Any]) -> Path:
    """Writes the result of a study as the yaml that the config names under `tuned`, and returns its path.

    A result of other inputs is kept beside it, under a name that ends in the first digits of its SHA-256.
    """
    path = _result_file(experiment, name)
    if path.is_file() and noted_inputs(path) != inputs:
        kept = path.read_bytes()
        with atomic(_aside(path)) as temporary:
            temporary.write_bytes(kept)
    origin = {"objective": experiment.config.objective, "rows_or_folds": experiment.rows_fingerprint}
    text = yaml.safe_dump({**origin, **result, "inputs": dict(inputs)}, sort_keys=False)
    with atomic(path) as temporary:
        temporary.write_text(f"{digest_line(text)}\n{text}", encoding="utf-8")
    return path


def _result_file(experiment: Experiment, name: str) -> Path:
    return experiment.folder / "studies" / f"{name}.yaml"


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-{sha256(path)[:12]}.yaml")


def _run_trial(study: optuna.Study, objective: Objective, *, seed: int, shared: bool = False) -> None:
    # constant_liar takes running trials into account: with one worker these would be trials of killed processes.
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=shared)
    study.optimize(objective, n_trials=1)


def _run_worker(
    experiment: Experiment,
    name: str,
    inputs: Inputs,
    make_objective: Callable[[], Objective],
    trials: int,
    deadline: float | None,
    worker: int,
) -> None:
    study, objective = open_study(experiment, name, inputs, shared=True), make_objective()
    while deadline is None or time.time() < deadline:
        optuna.storages.fail_stale_trials(study)  # only with a database: requeues trials of dead workers
        done = count_ended(study)
        waiting, running = (
            len(study.get_trials(deepcopy=False, states=(state,))) for state in (TrialState.WAITING, TrialState.RUNNING)
        )
        if waiting or done + running < trials:
            _run_trial(study, objective, seed=experiment.config.seed + 1000 * (worker + 1) + done, shared=True)
        elif running == 0 or experiment.config.storage is None:
            return  # a file has no heartbeats, so waiting for the last trials of other workers might never end
        else:
            time.sleep(0.5)


def _storage(experiment: Experiment, *, shared: bool) -> BaseStorage:
    # Heartbeats have been experimental since 2021; the version is pinned.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = experiment.config.storage
    if url is None:
        path = experiment.folder / "studies" / "journal.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not shared:  # a line that another process is still writing looks incomplete too
            _drop_torn_line(path)
        journal = Journal(path)
        try:
            return JournalStorage(journal)  # which replays all of it
        except (OSError, KeyError, IndexError, AttributeError, TypeError, ValueError, AssertionError) as error:
            # A line without a checksum may be valid JSON and still be no log of Optuna.
            raise journal.damaged(error) from error
    with storage_errors(experiment, opening=True):
        _check_answers(make_url(url.get_secret_value()))
        return RDBStorage(
            url.get_secret_value(),
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
        )


def _check_answers(url: URL) -> None:
    """Raises TimeoutError where nothing answers at the database's address, for which drivers wait for minutes.

    Their own options for this differ, and that of pg8000 limits each query too.
    """
    port = url.port or _PORTS.get(url.get_backend_name())
    if not url.host or "," in url.host or port is None:  # a file, a socket, several hosts
        return
    try:
        socket.create_connection((url.host, port), timeout=CONNECT_SECONDS).close()
    except TimeoutError as error:
        raise TimeoutError(f"no answer from {url.host} port {port} within {CONNECT_SECONDS:g} seconds") from error


def _drop_torn_line(path: Path) -> None:
    """Drops an incomplete last line left by a crash; the next append would continue it and make it unreadable."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with atomic(path) as temporary:
            temporary.write_bytes(content[: content.rfind(b"\n") + 1])
