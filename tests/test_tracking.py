"""Runs are logged where the config asks and nowhere else; what a client does wrong costs no result and tells no secret.

The wiring is tested with a destination that records what it gets; each real client, where it is installed, reads back
what it wrote.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import run_cli
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from pydantic import SecretStr
from sources import ROOT
from test_history_ledger import META
from test_training_curves import finished, history, write_history

from dermstack import tracking
from dermstack.errors import ConfigError
from dermstack.pipeline import run_stack
from dermstack.tracking import Record, check_tracking, log_mlflow, log_tensorboard, log_wandb, make_record, track
from stack.console import Out
from stack.experiment import Experiment
from stack.history import append_ledger, run_table
from stack.settings.config import Mlflow, Wandb, read_config
from stack.store import Run, write_run
from stack.up_to_date import nothing_to_do

pytestmark = pytest.mark.usefixtures("drift_fitted_once")

Capture = pytest.CaptureFixture[str]
BLEND = {**META, "files": {}, "within_folds": 0.8, "weights": {"good": 1.0}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_experiment(tmp_path)


def opened(config: Path, **where: object) -> tuple[Experiment, list[Run]]:
    """The experiment with two imported runs and this `tracking`."""
    experiment = opened_experiment(config, f"tracking={json.dumps(where)}")
    runs = [
        import_frames(experiment, name, *predictions(experiment, seed=seed), replace=True)
        for seed, name in enumerate(("good", "fair"))
    ]
    return experiment, runs


class Recorder:
    """Takes the place of the three clients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, error: BaseException | None = None) -> None:
        self.got: list[tuple[str, Record]] = []
        self.environment: dict[str, str] = {}
        for name in ("mlflow", "tensorboard", "wandb"):
            monkeypatch.setattr(tracking, f"log_{name}", self._writer(name, error))

    def _writer(self, name: str, error: BaseException | None) -> Callable[..., None]:
        def write(record: Record, *rest: object) -> None:
            self.environment = dict(os.environ)
            if error is not None:
                raise error
            self.got.append((name, record))

        return write


def test_nothing_is_logged_unless_it_is_asked_for(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    experiment, runs = opened(config)
    check_tracking(experiment.config)
    track(experiment, runs, Out(quiet=True), command="oof")
    assert recorder.got == []
    assert not (experiment.folder / tracking.TRACKED_FILE).exists()


def test_clients_are_not_imported_unless_they_log() -> None:
    code = (
        "import sys, dermstack.pipeline, dermstack.tracking; print({'mlflow', 'tensorboard', 'wandb'} & {*sys.modules})"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert made.stdout == "set()\n"


def test_every_destination_gets_the_same_record_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    recorder = Recorder(monkeypatch)
    experiment, runs = opened(config, mlflow={}, tensorboard="tb", wandb={})
    for _ in range(2):
        track(experiment, runs, Out(), command="oof")
    assert [name for name, _ in recorder.got] == ["mlflow", "tensorboard", "wandb"]
    assert len({id(record) for _, record in recorder.got}) == 1
    assert capsys.readouterr().out.count("logged to ") == 3
    blend = Run(experiment.folder / "blend", BLEND)
    track(experiment, runs, Out(), command="stack", blend=blend)
    track(experiment, runs, Out(), command="oof")
    assert len(recorder.got) == 6, "one more for stack, none for an oof that has nothing new"
    changed = replace(runs[0], meta={**runs[0].meta, "files": {**runs[0].meta["files"], "more": "of it"}})
    track(experiment, [changed, *runs[1:]], Out(), command="oof")
    assert len(recorder.got) == 9, "other results"


def test_a_record_holds_scores_settings_and_curves(config: Path, tmp_path: Path) -> None:
    experiment, runs = opened(config)
    folder = experiment.models / "net"
    for fold in range(3):
        net = folder / f"fold_{fold}" / "seed_0"
        shown = write_history(net, history([0.7, 0.5 - 0.1 * fold], [0.6, 0.8] if fold == 1 else None))
        write_run(net, {"kind": "net"}, frames={}, existing_files=[shown])
    finished(folder)
    oof = runs[0].frame("oof")
    net_run = write_run(folder, {"kind": "image", "level": 1, "selected": []}, frames={"oof": oof})
    blend = Run(experiment.folder / "blend", BLEND)
    record = make_record(experiment, [net_run, *runs], "stack", "0123", blend=blend)
    table = run_table(experiment, [net_run, *runs]).set_index("run")
    for name in ("net", "good", "fair"):
        for metric in ("auc", "low", "high", "ap", "within_folds"):
            assert record.metrics[f"{name}/{metric}"] == pytest.approx(table.loc[name, metric])
    assert record.metrics["blend/auc"] == 0.9
    assert (record.metrics["blend/low"], record.metrics["blend/high"]) == (0.88, 0.92)
    assert record.metrics["blend/weight/good"] == 1
    assert record.curves == {
        "net/fold_0/seed_0/loss": [(1, 0.7), (2, 0.5)],
        "net/fold_1/seed_0/loss": [(1, 0.7), (2, 0.4)],
        "net/fold_1/seed_0/auc": [(1, 0.6), (2, 0.8)],
        "net/fold_2/seed_0/loss": [(1, 0.7), (2, pytest.approx(0.3))],
    }
    assert record.settings["folds.k"] == "3"
    assert not any(key.startswith(("tracking", "storage", "runs", "cache")) for key in record.settings)
    assert record.name == "elsewhere-stack-0123"


@pytest.mark.parametrize("error", [ConnectionError("refused\nmore"), SystemExit(3), ValueError()])
def test_a_destination_that_fails_is_warned_of_and_tried_again(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException
) -> None:
    with monkeypatch.context() as patch:
        Recorder(patch, error=error)
        experiment, runs = opened(config, mlflow={"uri": "http://127.0.0.1:9"}, wandb={})
        track(experiment, runs, Out(), command="oof")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("warning: tracking.") == 2
    assert f"tracking.mlflow: logging to MLflow at http://127.0.0.1:9 failed: {type(error).__name__}" in shown
    assert "more" not in shown
    assert "The results are complete" in shown
    recorder = Recorder(monkeypatch)
    track(experiment, runs, Out(), command="oof")
    assert [name for name, _ in recorder.got] == ["mlflow", "wandb"]


def test_ctrl_c_is_no_failure_of_a_destination(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch, error=KeyboardInterrupt())
    experiment, runs = opened(config, wandb={})
    with pytest.raises(KeyboardInterrupt):
        track(experiment, runs, Out(quiet=True), command="oof")


def test_no_secret_is_shown_or_kept(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k3y-of-mine")
    Recorder(monkeypatch, error=OSError("no route to http://me:Hu%40sh@host/api with Hu%40sh and k3y-of-mine"))
    experiment, runs = opened(config, mlflow={"uri": "http://me:Hu%40sh@host/api"}, wandb={})
    track(experiment, runs, Out(), command="oof")
    shown = " ".join(capsys.readouterr().out.split())
    append_ledger(experiment, Run(experiment.folder / "blend", META))
    kept = "".join(path.read_text() for path in experiment.folder.glob("*.json*"))
    for text in (shown, kept, repr(experiment.config), experiment.config.model_dump_json()):
        assert "Hu%40sh" not in text
        assert "k3y-of-mine" not in text
    assert "MLflow at http://***@host/api failed: OSError: no route to http://***@host/api with *** and ***" in shown


def test_clients_do_not_report_to_their_makers_and_the_environment_comes_back(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    before = dict(os.environ)
    experiment, runs = opened(config, wandb={})
    track(experiment, runs, Out(quiet=True), command="oof")
    assert dict(os.environ) == before
    seen = recorder.environment
    assert (seen["DO_NOT_TRACK"], seen["MLFLOW_DISABLE_TELEMETRY"]) == ("true", "true")
    assert seen["WANDB_ERROR_REPORTING"] == "false"
    assert seen["WANDB_DATA_DIR"].startswith(str(experiment.config.runs))
    assert seen["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99", "a user's own"


def test_a_missing_client_is_named_with_its_extra_before_anything_is_computed(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for key, value, command in (("mlflow", "{}", "oof"), ("tensorboard", "tb", "stack"), ("wandb", "{}", "oof")):
        message = command_error(capsys, command, "-c", str(config), "--set", f"tracking.{key}={value}")
        assert f"tracking.{key}: {key} is not installed: pip install 'dermstack[tracking]'" in message
    assert not (config.parent / "runs" / "elsewhere" / "table.parquet").exists()


def test_the_config_is_checked(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlfow.*did you mean 'mlflow'"):
        opened(config, mlfow={})
    with pytest.raises(ConfigError, match="offline"):
        opened(config, wandb={"mode": "on"})
    experiment, _ = opened(config, mlflow={"uri": "logs/ml"})
    assert tracking.mlflow_uri(experiment.config.tracking.mlflow, Path("x")) == str(config.parent / "logs" / "ml")  # type: ignore[arg-type]
    assert tracking.mlflow_uri(Mlflow(), Path("runs")) == str(Path("runs") / "mlruns")


@pytest.mark.slow
def test_tracking_changes_no_result_and_the_report_is_logged(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, _ = opened(config)
    before = run_stack(config)
    assert before.report is not None
    page, ledger = before.report.read_bytes(), (experiment.folder / "ledger.jsonl").read_text()
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    where = ("tracking.wandb={}", "tracking.mlflow.uri=http://me:Hush@host")
    with monkeypatch.context() as patch:
        Recorder(patch, error=OSError("the server is down"))
        made = run_stack(config, overrides=where)
    recorder = Recorder(monkeypatch)
    for _ in range(2):  # the first logs what could not be logged before, the second has nothing to do
        made = run_stack(config, overrides=where)
        assert [name for name, _ in recorder.got] == ["mlflow", "wandb"]
    assert nothing_to_do(read_config(config, where), config, shuffle_target=False, report=True)
    assert nothing_to_do(read_config(config), config, shuffle_target=False, report=True)
    assert made.report == recorder.got[0][1].report
    assert made.report is not None
    assert made.report.read_bytes() == page, "it was not even written again"
    assert (made.blend.meta["files"], made.blend.meta["fingerprint"]) == (
        before.blend.meta["files"], before.blend.meta["fingerprint"],
    )  # fmt: skip
    assert recorder.got[0][1].metrics["blend/auc"] == made.headline.value
    lines = (experiment.folder / "ledger.jsonl").read_text().removeprefix(ledger).splitlines()
    assert [json.loads(line)["changed"] for line in lines] == [{}] * 5
    assert "Hush" not in "".join(path.read_text() for path in experiment.folder.glob("*.json*"))
    without = ("tracking.wandb={}", "tracking.report=false")
    assert run_cli("stack", "-c", str(config), "-q", *(word for key in without for word in ("--set", key))) == 0
    assert recorder.got[-1][1].report is None


def some_record(tmp_path: Path) -> Record:
    report = tmp_path / "report.html"
    report.write_text("<p>page</p>")
    curves = {f"net/fold_{fold}/seed_0/loss": [(1, 0.75), (2, 0.5), (3, 0.25 + fold)] for fold in range(2)}
    settings = {"folds.k": "3", "image_models.net.lr": "0.001", "odd key, with (signs)": "x" * 9000}
    metrics = {"blend/auc": 0.75, "blend/low": 0.5, "net/auc": 0.625}
    return Record("mine", "stack", "0123abcd", settings, metrics, curves, report)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses every connection but those inside this machine, and lists them."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError("no network in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    return asked


@pytest.mark.slow
def test_mlflow_reads_back_what_was_logged(tmp_path: Path, no_network: list[Any]) -> None:
    with tracking._environment(tmp_path):
        mlflow = pytest.importorskip("mlflow")
        record = some_record(tmp_path)
        for name in ("first", "second"):
            log_mlflow(replace(record, experiment=name), Mlflow(experiment="study"), tmp_path)
        client = mlflow.MlflowClient(tracking_uri=str(tmp_path / "mlruns"))
        place = client.get_experiment_by_name("study")
        runs = client.search_runs([place.experiment_id])
        assert {run.info.run_name for run in runs} == {"first-stack-0123abcd", "second-stack-0123abcd"}
        for run in runs:
            assert run.info.status == "FINISHED"
            assert record.metrics.items() <= run.data.metrics.items()
            assert run.data.params["image_models.net.lr"] == "0.001"
            points = client.get_metric_history(run.info.run_id, "net/fold_1/seed_0/loss")
            assert [(point.step, point.value) for point in points] == record.curves["net/fold_1/seed_0/loss"]
            assert [found.path for found in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert no_network == []


class MlflowServer(BaseHTTPRequestHandler):
    """As much of an MLflow server as a client that logs one run talks to; keeps what it is sent."""

    got: ClassVar[list[tuple[str, Any]]]

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_json = "json" in (self.headers.get("Content-Type") or "")
        self.got.append((path, json.loads(body or b"{}") if is_json else body))
        place = f"{path.rpartition('/mlflow/')[2]}"
        run = {"info": {"run_id": "r1", "artifact_uri": "mlflow-artifacts:/7/r1/artifacts", "status": "RUNNING"}}
        answers = {"experiments/create": {"experiment_id": "7"}, "runs/create": {"run": run}, "runs/get": {"run": run}}
        missing = place == "experiments/get-by-name"
        content = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST"} if missing else answers.get(place, {})).encode()
        self.send_response(404 if missing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.slow
def test_an_mlflow_server_gets_the_run(tmp_path: Path, no_network: list[Any]) -> None:
    with tracking._environment(tmp_path):
        pytest.importorskip("mlflow")
        MlflowServer.got = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), MlflowServer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            record = some_record(tmp_path)
            uri = SecretStr(f"http://me:Hush@127.0.0.1:{server.server_port}")
            log_mlflow(record, Mlflow(experiment="study").model_copy(update={"uri": uri}), tmp_path)
        finally:
            server.shutdown()
            server.server_close()
    sent = {path.rpartition("/mlflow/")[2]: body for path, body in MlflowServer.got}
    assert sent["experiments/create"]["name"] == "study"
    assert sent["runs/create"]["run_name"] == record.name
    batches = [body for path, body in MlflowServer.got if path.endswith("runs/log-batch")]
    metrics = {point["key"] for body in batches for point in body.get("metrics", [])}
    assert metrics == {*record.metrics, *record.curves}
    assert len({item["key"] for body in batches for item in body.get("params", [])}) == len(record.settings)
    assert any(
        path.endswith("7/r1/artifacts/report.html") and b"<p>page</p>" in body for path, body in MlflowServer.got
    )
    assert sent["runs/update"]["status"] == "FINISHED"
    assert no_network == []


@pytest.mark.slow
def test_tensorboard_reads_back_what_was_logged(tmp_path: Path, no_network: list[Any]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = some_record(tmp_path)
    for _ in range(2):  # the second takes the place of the first
        log_tensorboard(record, tmp_path / "tb")
    place = tmp_path / "tb" / "mine" / "stack-0123abcd"
    read = EventAccumulator(str(place))
    read.Reload()
    found = {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert found == record.curves | {name: [(0, value)] for name, value in record.metrics.items()}
    assert "_hparams_/session_start_info" in read.summary_metadata
    assert (place / "report.html").read_text() == "<p>page</p>"
    assert no_network == []


@pytest.mark.slow
def test_weights_and_biases_writes_offline_and_nothing_about_the_machine(
    tmp_path: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with tracking._environment(tmp_path):
        pytest.importorskip("wandb")
        log_wandb(some_record(tmp_path), Wandb(project="study"), tmp_path)
    written = [path for path in (tmp_path / "wandb").rglob("*.wandb") if "offline-run-" in path.parent.name]
    assert len(written) == 1
    for _ in range(120):  # it is written by a process of its own, some seconds later
        if b"runtime" in (content := written[0].read_bytes()):
            break
        time.sleep(0.5)
    for word in (b"study", b"mine-stack-0123abcd", b"net/fold_1/seed_0/loss", b"image_models.net.lr"):
        assert word in content
    for word in (sys.executable.encode(), b"requirements.txt", b"wandb-metadata.json"):
        assert word not in content
    assert not [path for path in written[0].parent.rglob("*") if path.suffix in (".txt", ".json", ".patch")]
    assert any(
        path.read_bytes() == b"<p>page</p>" for path in (tmp_path / "wandb" / "data").rglob("*") if path.is_file()
    )
    assert no_network == []


@pytest.mark.slow
def test_weights_and_biases_online_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with tracking._environment(tmp_path):
        pytest.importorskip("wandb")
        with pytest.raises(ConfigError, match="nobody is logged in: run `wandb login`"):
            log_wandb(some_record(tmp_path), Wandb(mode="online"), tmp_path)
