"""An experiment without images: its rows, its config, and predictions as another pipeline would make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from scipy.special import expit

from dermstack.errors import DermstackError
from stack.console import Out
from stack.experiment import Experiment, open_experiment, write_rows
from stack.imported.prediction_files import ImportedColumns, Part
from stack.imported.run import ImportOptions, Source, import_source
from stack.settings.config import read_config
from stack.store import Run

Files = tuple[pd.DataFrame, pd.DataFrame]
COLUMNS = {"id": "isic", "group": "patient", "target": "malignant", "age": "years", "sex": "sex", "site": "site"}


def write_experiment(folder: Path, **changes: object) -> Path:
    """train.csv (about 200 rows of 80 patients), test.csv, sample.csv and elsewhere.yaml, whose path is returned."""
    rng = np.random.default_rng(0)
    train, test = _rows(80, "", rng), _rows(15, "T", rng)
    train.loc[5, "isic"] = "NA"  # an id like any other
    train["malignant"] = (rng.random(len(train)) < 0.3).astype(int)
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    pd.DataFrame({"isic": test["isic"], "malignant": 0}).to_csv(folder / "sample.csv", index=False)
    settings = {
        "experiment": "elsewhere",
        "runs": "runs",
        "cache": "cache",
        "threads": 1,
        "data": {
            "name": "generated",
            "train": "train.csv",
            "test": "test.csv",
            "sample_submission": "sample.csv",
            "columns": COLUMNS,
        },
        "folds": {"k": 3},
        "blend": {"methods": ["rank_mean", "mean"], "trials": 2},
    }
    settings.update(changes)
    path = folder / "elsewhere.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def opened_experiment(config: Path, *overrides: str, shuffle_target: bool = False) -> Experiment:
    """The experiment, its table and folds written to disk."""
    experiment = open_experiment(read_config(config, overrides), config, Out(quiet=True), shuffle_target=shuffle_target)
    write_rows(experiment)
    return experiment


def predictions(experiment: Experiment, *, noise: float = 1.5, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Out-of-fold (isic, p, fold) and test predictions by each fold net, of a made-up model that knows the targets."""
    rng = np.random.default_rng(seed)
    folds, test = experiment.folds, experiment.table.test["id"]
    logit = 2.0 * experiment.target - 1 + rng.normal(0, noise, len(folds.frame))
    oof = pd.DataFrame({"isic": folds.frame["id"], "p": expit(logit), "fold": folds.frame["fold"]})
    nets = [pd.DataFrame({"isic": test, "p": rng.random(len(test)), "fold": net}) for net in range(folds.k)]
    return oof, pd.concat(nets, ignore_index=True)


def import_frames(
    experiment: Experiment, name: str, oof: pd.DataFrame, test: pd.DataFrame | None, **options: Any
) -> Run:
    """Imports these frames by `import_paths`, which takes the options, by way of csv files beside the config."""
    folder = experiment.config_path.parent
    paths = [folder / f"{name}-oof.csv", folder / f"{name}-test.csv"]
    oof.to_csv(paths[0], index=False)
    if test is not None:
        test.to_csv(paths[1], index=False)
    return import_paths(experiment, name, paths[0], None if test is None else paths[1], **options)


def import_paths(
    experiment: Experiment,
    name: str,
    oof: Path,
    test: Path | None,
    out: Out | None = None,
    *,
    columns: ImportedColumns | None = None,
    test_columns: ImportedColumns | None = None,
    replace: bool = False,
    all_rows: Path | None = None,
    **options: Any,
) -> Run:
    """Imports these files with the columns isic, p and fold, and every other option at its default."""
    columns = columns or ImportedColumns("isic", "p", "fold")
    read = ImportOptions(columns, test_columns or columns, **options)
    source = Source(name, (Part(oof),), () if test is None else (Part(test),), read, all_rows)
    return import_source(experiment, source, out or Out(quiet=True), replace=replace)


def stored(run: Run, part: str) -> pd.Series:
    """The probabilities of a run, by id and fold."""
    return run.frame(part).set_index(["id", "fold"])["p"].sort_index()


def expected(frame: pd.DataFrame, *, p: str = "p") -> pd.Series:
    """The probabilities of a frame of predictions as `stored` returns them."""
    made = frame.rename(columns={"isic": "id", p: "p"}).assign(id=frame["isic"].astype("str"))
    return made.astype({"fold": "int8"}).set_index(["id", "fold"])["p"].sort_index()


def import_error(experiment: Experiment, files: tuple[pd.DataFrame, pd.DataFrame | None], **options: object) -> str:
    """The message of an import that must fail; nothing may have been written."""
    with pytest.raises(DermstackError) as error:
        import_frames(experiment, "net", *files, **options)  # type: ignore[arg-type]
    assert not experiment.models.exists()
    return str(error.value)


def by_id(frame: pd.DataFrame, column: str) -> dict[str, float]:
    return dict(zip(frame.iloc[:, 0], frame[column], strict=True))


def command_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail: the one message that it leaves on stderr."""
    capsys.readouterr()
    assert run_cli(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("error: ") == 1
    assert "Traceback" not in shown.err + shown.out
    return shown.err


def unexpected_files(folder: Path) -> list[str]:
    """What lies under runs/ beside the checked table and folds."""
    known = {"table.parquet", "folds.parquet", "fingerprints.json", ".lock"}
    return [path.name for path in (folder / "runs").rglob("*") if path.is_file() and path.name not in known]


def _rows(groups: int, mark: str, rng: np.random.Generator) -> pd.DataFrame:
    patient = np.repeat([f"{mark}P{number}" for number in range(groups)], rng.integers(1, 5, groups))
    n = len(patient)
    return pd.DataFrame({
        "isic": [f"{mark}{number:04}" for number in range(n)],  # "0007", which a careless reader makes 7
        "patient": patient,
        "years": rng.integers(20, 90, n),
        "sex": rng.choice(["male", "female", ""], n),
        "site": rng.choice(["torso", "head/neck", "Lower Extremity"], n),
    })  # fmt: skip
