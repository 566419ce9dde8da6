"""Studies that several workers share: no trial lost or doubled, whatever dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import optuna
import pytest
from conftest import run_cli
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from dermstack.errors import ConfigError, StoreError
from stack.console import Out
from stack.experiment import Experiment
from stack.tune.studies import Objective, count_ended, open_study, read_studies, run_study

FIRST = {"x": 0.5}
INPUTS = {"kind": "slow", "predictions of a": "0" * 64}
CURRENT = {"slow": INPUTS, "other": INPUTS}


def slow_objective(told: Path, seconds: float) -> Objective:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        with told.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return -((x - 0.3) ** 2)

    return objective


def study_of(experiment: Experiment, told: Path, *, trials: int, workers: int, seconds: float = 0.0) -> optuna.Study:
    return run_study(
        experiment, "slow", partial(slow_objective, told, seconds), Out(quiet=True), inputs=INPUTS, first=FIRST,
        trials=trials, timeout=None, workers=workers,
    )  # fmt: skip


def test_workers_share_a_journal(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path))
    study = study_of(experiment, tmp_path / "told", trials=8, workers=2, seconds=0.2)
    assert count_ended(study) == len((tmp_path / "told").read_text().split()) >= 8
    assert len(set((tmp_path / "told").read_text().split())) == 2
    assert study.trials[0].params == FIRST
    assert study.best_value > -0.05


def test_sqlite_is_refused_for_several_workers(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path, storage=f"sqlite:///{tmp_path}/studies.db"))
    with pytest.raises(ConfigError, match="SQLite cannot serve several workers"):
        study_of(experiment, tmp_path / "told", trials=2, workers=2)
    assert count_ended(study_of(experiment, tmp_path / "told", trials=2, workers=1)) == 2


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    experiment = opened_experiment(
        write_experiment(tmp_path, storage="postgresql+nodriver://me:secret@127.0.0.1:1/studies")
    )
    with pytest.raises(
        ConfigError, match=r"storage: postgresql\+nodriver://me:\*\*\*@127\.0\.0\.1:1/studies cannot be opened"
    ) as caught:
        open_study(experiment, "slow", INPUTS)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_given_up_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.tune.studies.CONNECT_SECONDS", 0.2)
    with socket.socket() as silent, ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)  # a full queue: further attempts get no answer
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        port = silent.getsockname()[1]
        experiment = opened_experiment(
            write_experiment(tmp_path, storage=f"postgresql+pg8000://me:secret@127.0.0.1:{port}/studies")
        )
        said = rf"{port}/studies cannot be opened \(TimeoutError: no answer from 127\.0\.0\.1 port {port} within"
        with pytest.raises(ConfigError, match=said):
            open_study(experiment, "slow", INPUTS)


@pytest.mark.slow
def test_a_damaged_journal_stops_no_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_experiment(tmp_path)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("a", "b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    journal = experiment.folder / "studies" / "journal.log"
    journal.parent.mkdir()
    for damaged in (b"no json\n{}\n", b'{"op_code": 99}\n', b"\xff\xfe\n{}\n"):
        journal.write_bytes(damaged)
        (experiment.folder / "report.html").unlink(missing_ok=True)
        assert run_cli("stack", "-c", str(config)) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"the report lacks its section on studies: {journal} is damaged" in said
        assert (experiment.folder / "report.html").is_file()
        assert journal.read_bytes() == damaged
    assert "is damaged" in command_error(capsys, "tune", "blend", "-c", str(config), "--trials", "2")


@pytest.mark.skipif(
    "DERMSTACK_TEST_POSTGRESQL" not in os.environ, reason="no PostgreSQL: `source .ci/postgresql` starts one"
)
def test_a_worker_killed_on_postgresql_leaves_its_trial_to_the_others(tmp_path: Path) -> None:
    experiment = opened_experiment(
        write_experiment(
            tmp_path, storage=os.environ["DERMSTACK_TEST_POSTGRESQL"], experiment=f"kill-{uuid4().hex[:8]}"
        )
    )
    told = tmp_path / "told"
    told.touch()
    running = threading.Thread(
        target=study_of, args=(experiment, told), kwargs={"trials": 24, "workers": 4, "seconds": 0.5}
    )
    running.start()
    while len(pids := set(told.read_text().split())) < 4 and running.is_alive():
        time.sleep(0.05)
    os.kill(int(told.read_text().split()[-1]), signal.SIGKILL)  # it has just begun a trial
    running.join()
    study = open_study(experiment, "slow", INPUTS)
    states = [trial.state for trial in study.trials]
    assert len(pids) == 4, states
    assert states.count(TrialState.FAIL) == 1
    assert 24 <= states.count(TrialState.COMPLETE) <= 27, "at most what the others had begun when the last was reached"
    assert states.count(TrialState.RUNNING) == states.count(TrialState.WAITING) == 0
    lost = states.index(TrialState.FAIL)
    again = [t for t in study.trials if RetryHeartbeatStaleTrialCallback.retried_trial_number(t) == lost]
    assert [trial.state for trial in again] == [TrialState.COMPLETE]
    assert again[0].params == study.trials[lost].params
    values = [trial.params["x"] for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(set(values)) == len(values), "no trial is doubled"


def test_histories_are_those_of_these_rows_and_reading_makes_no_file(tmp_path: Path) -> None:
    config = write_experiment(tmp_path)
    experiment = opened_experiment(config)
    assert read_studies(experiment, CURRENT) == []
    assert not (experiment.folder / "studies").exists()
    study_of(experiment, tmp_path / "told", trials=3, workers=1)
    study = open_study(experiment, "other", INPUTS)
    for value in (None, 0.5, 0.25):
        trial = study.ask()
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    other, slow = read_studies(experiment, CURRENT)
    assert (other.name, slow.name) == ("other", "slow")
    assert other.states == ("pruned", "complete", "complete")
    assert np.isnan(other.values[0])
    assert other.best_so_far[1:].tolist() == [0.5, 0.5]
    assert slow.values.tolist() == [trial.value for trial in open_study(experiment, "slow", INPUTS).trials]
    assert read_studies(experiment, {name: INPUTS | {"kind": "x"} for name in CURRENT}) == []


def test_a_torn_line_of_a_running_worker_is_left_alone(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path))
    study_of(experiment, tmp_path / "told", trials=2, workers=1)
    journal = experiment.folder / "studies" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    before = journal.read_bytes()
    assert [len(study.values) for study in read_studies(experiment, CURRENT)] == [2]
    assert journal.read_bytes() == before


def test_a_line_of_the_journal_that_changed_is_noticed(tmp_path: Path) -> None:
    """A trial's value, say: the next trials would be drawn from it."""
    experiment = opened_experiment(write_experiment(tmp_path))
    study_of(experiment, tmp_path / "told", trials=3, workers=1)
    path = experiment.folder / "studies" / "journal.log"
    text = path.read_text()
    no_logs = ('{"op_code": 99}\n', '{"op_code": 4, "trial_id": 12345}\n', "{}\n", "[]\n", "\x00\n")
    changed = (
        text.replace('"values":[-0.', '"values":[-1.', 1),
        text.replace("{", "(", 1),
        *(text + log for log in no_logs),
    )
    for damaged in changed:
        assert damaged != text
        path.write_text(damaged)
        for read in (lambda: open_study(experiment, "slow", INPUTS), lambda: read_studies(experiment, CURRENT)):
            with pytest.raises(StoreError, match=rf"{path} is damaged .*: remove {path} and run `dermstack tune`"):
                read()
