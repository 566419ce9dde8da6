"""Logs runs to MLflow, TensorBoard and Weights & Biases through their own clients, where the config asks for it.

Nothing is logged, imported or sent unless `tracking` names a destination. A destination that fails is warned of: the
results are on disk before anything is logged, and the same command logs what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from dermstack.errors import ConfigError, DermstackError, StoreError
from dermstack.masking import MASK, mask_secrets
from stack.console import Out
from stack.experiment import Experiment
from stack.history import run_table
from stack.ledger import flat_settings, ledger_settings
from stack.level1.training_curves import training_curves
from stack.metrics.own_metric import own_label
from stack.run_settings import by_name
from stack.settings.config import Config, Mlflow, Wandb, without_login
from stack.store import Run, fingerprint, read_json, write_json

CLIENTS = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb"}  # key under `tracking`, and its module
TRACKED_FILE = "tracked.json"  # what was logged where, so that a command with nothing to do logs nothing
_NOT_IN_A_NAME = re.compile(r"[^\w\-. /]")  # MLflow refuses other characters in names
# A server that is down must not hold up a finished command: no client waits longer than about a minute.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
_WANDB_SECONDS = 30
_MOST_CHARACTERS = 300  # of a client's error
# The clients would report to their makers how they are used.
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_ERROR_REPORTING": "false"}
_SECRET_VARIABLES = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

Command = Literal["oof", "stack"]
Destination = tuple[
    str, str, Callable[["Record"], None]
]  # its key under `tracking`, its place in words, and its writer


@dataclass(frozen=True)
class Record:
    """What one command logs; the same for every destination."""

    experiment: str
    command: Command
    fingerprint: str  # of the runs
    settings: dict[str, str]  # by config key, as `dermstack compare` names them, with secrets masked
    metrics: dict[str, float]  # by `<run>/<metric>`; finite
    curves: dict[str, list[tuple[int, float]]] = field(
        repr=False
    )  # by `<run>/fold_<k>/seed_<s>/<metric>`: epoch, value
    report: Path | None = None

    @property
    def name(self) -> str:
        """Name of the run at the destination."""
        return f"{self.experiment}-{self.command}-{self.fingerprint}"


def check_tracking(config: Config) -> None:
    """Raises ConfigError where a client that the config asks for is not installed, before hours are computed."""
    for key, _, _ in _destinations(config):
        if find_spec(CLIENTS[key]) is None:
            raise ConfigError(
                f"tracking.{key}: {CLIENTS[key]} is not installed: pip install 'dermstack[tracking]', or remove the key"
            )


def track(
    experiment: Experiment,
    runs: Sequence[Run],
    out: Out,
    *,
    command: Command,
    blend: Run | None = None,
    report: Path | None = None,
) -> bool:
    """Logs these runs to each destination that the config names and that does not have them yet.

    Returns whether all have them. Never raises for a destination that fails: it prints a warning that names the
    destination and its error.
    """
    destinations = _destinations(experiment.config)
    if not destinations or not runs:
        return True
    is_complete = True
    report = report if experiment.config.tracking.report else None
    made = fingerprint({run.name: run.meta["files"] for run in [*runs, *([blend] if blend else [])]})
    record = None
    for key, place, write in destinations:
        done = fingerprint({"to": place, "runs": made, "report": report is not None})
        if _tracked(experiment).get(key, {}).get(command) == done:
            continue
        try:
            record = record or make_record(experiment, runs, command, made, blend=blend, report=report)
            with _environment(experiment.config.runs):
                write(record)
        except KeyboardInterrupt:
            raise
        # A client may raise anything, some even SystemExit; the results are complete whatever it does.
        except BaseException as error:  # noqa: BLE001
            is_complete = False
            out.warn(
                f"tracking.{key}: logging to {place} failed: {_told(error, experiment.config)}. The results are "
                f"complete; `dermstack {command}` with the same config logs them later"
            )
        else:
            _remember(experiment, key, command, done)
            out.say(f"logged to {place}")
    return is_complete


def make_record(
    experiment: Experiment,
    runs: Sequence[Run],
    command: Command,
    made: str,
    *,
    blend: Run | None = None,
    report: Path | None = None,
) -> Record:
    """Collects settings, the scores of all runs and the curves of their nets."""
    metrics: dict[str, float] = {}
    for line in run_table(experiment, runs).to_dict("records"):
        metrics |= {f"{line['run']}/{name}": value for name, value in line.items() if name not in ("run", "level")}
    for run in runs:
        if rounds := [number for of_fold in _rounds(run) for number in of_fold]:
            metrics[f"{run.name}/rounds"] = float(np.mean(rounds))
    if blend is not None:
        headline = blend.meta["headline"]
        metrics |= {
            f"blend/{own_label(blend.meta['objective'])}": headline["value"],
            "blend/low": headline["low"],
            "blend/high": headline["high"],
            "blend/within_folds": blend.meta["within_folds"],
            "blend/tuned_in_sample": blend.meta["tuned_in_sample"],
        }
        metrics |= {f"blend/weight/{name}": weight for name, weight in blend.meta["weights"].items()}
    curves = {}
    for run in runs:
        for curve in training_curves(run):
            for metric in ("loss", "auc"):
                known = curve.epochs[["epoch", metric]].dropna()
                if len(known):
                    name = f"{run.name}/fold_{curve.fold}/seed_{curve.seed}/{metric}"
                    curves[name] = list(zip(known["epoch"].tolist(), known[metric].tolist(), strict=True))
    settings = by_name(flat_settings(ledger_settings(experiment.config)))
    objective = own_label(experiment.config.objective)
    shown = objective.replace(":", ".")  # destinations take no `:` in the name of a metric
    numbers = {
        name.replace(objective, shown): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }
    return Record(
        experiment.name, command, made, settings,
        {name: value for name, value in numbers.items() if np.isfinite(value)}, curves, report,
    )  # fmt: skip


def log_mlflow(record: Record, settings: Mlflow, runs: Path) -> None:
    """Logs one MLflow run, in the experiment that ``settings`` names, which is made where it is missing."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    uri = mlflow_uri(settings, runs)
    if "://" not in uri:
        Path(uri).mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(settings.experiment)
    place = known.experiment_id if known else client.create_experiment(settings.experiment)
    tags = {"dermstack.experiment": record.experiment, "dermstack.command": record.command}
    run_id = client.create_run(place, run_name=record.name, tags=tags).info.run_id
    now = int(time.time() * 1000)
    points = [Metric(_plain(name), value, now, 0) for name, value in record.metrics.items()]
    for name, curve in record.curves.items():
        points += [Metric(_plain(name), value, now, epoch) for epoch, value in curve]
    params = [Param(_plain(key), value[:500]) for key, value in record.settings.items()]
    for start in range(0, len(points), 1000):  # the largest batches that MLflow takes
        client.log_batch(run_id, metrics=points[start : start + 1000])
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    if record.report is not None:
        client.log_artifact(run_id, str(record.report))
    client.set_terminated(run_id)


def log_tensorboard(record: Record, folder: Path) -> None:
    """Writes event files with scalars and settings (hparams) below ``folder``, and the report beside them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    place = folder / record.experiment / f"{record.command}-{record.fingerprint}"
    if place.exists():  # left by an interrupted command; two event files would show every value twice
        shutil.rmtree(place)
    writer = EventFileWriter(str(place))
    try:
        now = time.time()
        writer.add_event(Event(wall_time=now, summary=hparams_pb(record.settings, trial_id=record.name)))
        points = [(name, 0, value) for name, value in record.metrics.items()]
        points += [(name, epoch, value) for name, curve in record.curves.items() for epoch, value in curve]
        for name, step, value in points:
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=now, step=step, summary=summary))
    finally:
        writer.close()
    if record.report is not None:
        shutil.copyfile(record.report, place / record.report.name)


def log_wandb(record: Record, settings: Wandb, runs: Path) -> None:
    """Logs one run of Weights & Biases; offline unless ``settings`` say otherwise.

    Only what the record holds is logged: no source code, git state, console output, installed packages or facts about
    the machine.
    """
    import wandb

    if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ConfigError("nobody is logged in: run `wandb login`, or set WANDB_API_KEY")
    runs.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, disable_code=True, host="", program="",
        x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        init_timeout=_WANDB_SECONDS, finish_timeout=_WANDB_SECONDS, finish_timeout_raises=True,
    )  # fmt: skip
    run = wandb.init(
        project=settings.project, entity=settings.entity, mode=settings.mode, dir=str(runs), reinit="create_new",
        name=record.name, group=record.experiment, job_type=record.command, config=record.settings, settings=quiet,
    )  # fmt: skip
    try:
        run.define_metric("epoch")
        for name in record.curves:
            run.define_metric(name, step_metric="epoch")
        for epoch in sorted({epoch for curve in record.curves.values() for epoch, _ in curve}):
            at = {name: value for name, curve in record.curves.items() for step, value in curve if step == epoch}
            run.log({"epoch": epoch, **at})
        run.summary.update(record.metrics)
        if record.report is not None:
            artifact = wandb.Artifact(f"{record.experiment}-report", type="report")
            artifact.add_file(str(record.report))
            run.log_artifact(artifact)
    finally:
        run.finish()


def mlflow_uri(settings: Mlflow, runs: Path) -> str:
    """Returns the address or folder that MLflow logs to."""
    return str(runs / "mlruns") if settings.uri is None else settings.uri.get_secret_value()


def _destinations(config: Config) -> list[Destination]:
    tracking, found = config.tracking, list[Destination]()
    if (mlflow := tracking.mlflow) is not None:
        place = f"MLflow at {mlflow.shown_uri or mlflow_uri(mlflow, config.runs)}"
        found.append(("mlflow", place, lambda record: log_mlflow(record, mlflow, config.runs)))
    if (folder := tracking.tensorboard) is not None:
        found.append(("tensorboard", f"TensorBoard in {folder}", lambda record: log_tensorboard(record, folder)))
    if (wandb := tracking.wandb) is not None:
        where = f"in {config.runs / 'wandb'}" if wandb.mode == "offline" else "online"
        place = f"Weights & Biases {where}, project {wandb.project}"
        found.append(("wandb", place, lambda record: log_wandb(record, wandb, config.runs)))
    return found


@contextmanager
def _environment(runs: Path) -> Iterator[None]:
    """Switches the clients' reports to their makers off while they log, and limits how long they wait.

    Files that wait for an upload lie below ``runs``, not in the user's home.
    """
    wanted = {**_NO_TELEMETRY, "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    unless_set = {**_PATIENCE, **{name: str(runs / "wandb" / "data") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")}}
    wanted |= {name: value for name, value in unless_set.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tracked(experiment: Experiment) -> Mapping[str, Any]:
    """Returns what was logged, by destination and command; nothing where the file is missing or damaged."""
    try:
        known = read_json(experiment.folder / TRACKED_FILE)
    except (OSError, ValueError, StoreError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(value, dict) for value in known.values()) else {}


def _remember(experiment: Experiment, key: str, command: Command, done: str) -> None:
    known = _tracked(experiment)
    write_json(experiment.folder / TRACKED_FILE, {**known, key: {**known.get(key, {}), command: done}})


def _rounds(run: Run) -> list[list[int]]:
    chosen = run.meta.get("chosen")
    return chosen if isinstance(chosen, list) and all(isinstance(of_fold, list) for of_fold in chosen) else []


def _plain(name: str) -> str:
    return _NOT_IN_A_NAME.sub("_", name)[:250]


def _told(error: BaseException, config: Config) -> str:
    """Returns the first line of a client's error, without the secrets that the client was given."""
    first_line = str(error).strip().partition("\n")[0]
    kind = "" if isinstance(error, DermstackError) else type(error).__name__
    text = ": ".join(filter(None, (kind, first_line)))
    uri = config.tracking.mlflow.uri.get_secret_value() if config.tracking.mlflow and config.tracking.mlflow.uri else ""
    login = urlsplit(uri) if "://" in uri else None
    secrets = [os.environ.get(name) for name in _SECRET_VARIABLES]
    secrets += [uri and uri.rpartition("@")[0].rpartition("/")[2], login.password if login else None]
    for secret in filter(None, secrets):
        text = text.replace(secret, MASK)
    text = without_login(mask_secrets(text))
    return text.rstrip(". ") if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
