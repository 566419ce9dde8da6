"""A user's own Python features: what they see, where they go, and what is refused with what words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from dermstack.errors import ConfigError, DataError
from stack.experiment import Experiment
from stack.settings.config import Features
from stack.store import read_run

GOOD = """
def features(table):
    assert not {"target", "diagnosis", "source", "fold"} & set(table.columns)
    size = table["size"]
    return table.assign(
        square=size**2, above_patient=size - size.groupby(table["group"]).transform("median"), old=table["age"] > 60,
    )[["square", "above_patient", "old"]]
"""


def experiment_with(folder: Path, code: str, **features: object) -> Path:
    """The imported experiment with a column of numbers and my_features.py beside the config."""
    (folder / "my_features.py").write_text(code)
    config = write_experiment(
        folder,
        stackers=[{"name": "lr", "kind": "logistic"}],
        features={"python": "my_features.py", "outliers": False, **features},
    )
    rng = np.random.default_rng(3)
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        frame["size"] = rng.normal(5, 2, len(frame)).round(4).astype(str)
        frame.loc[::9, "size"] = ""
        frame.to_csv(folder / name, index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"] |= {"numeric": ["size"]}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def stacked(config: Path) -> tuple[Experiment, dict[str, object]]:
    experiment = opened_experiment(config)
    if read_run(experiment.models / "net") is None:
        import_frames(experiment, "net", *predictions(experiment, noise=4.0))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    run = read_run(experiment.models / "lr")
    assert run is not None
    return experiment, run.meta


def test_the_columns_are_those_of_train_and_test_and_enter_level_2(tmp_path: Path) -> None:
    experiment, meta = stacked(experiment_with(tmp_path, GOOD))
    assert experiment.table.columns.numbers == ["size", "square", "above_patient", "old"]
    for frame in (experiment.table.train, experiment.table.test):
        size = frame["size"].astype(float)
        by_group: dict[str, list[float]] = {}
        for group, value in zip(frame["group"], size, strict=True):
            by_group.setdefault(group, []).append(value)
        median = np.array([pd.Series(by_group[group]).median() for group in frame["group"]])
        np.testing.assert_allclose(frame["above_patient"], size - median, atol=1e-5)
        np.testing.assert_allclose(frame["square"], size**2, rtol=1e-5)
        np.testing.assert_array_equal(frame["old"], (frame["age"] > 60).astype(float))
    assert isinstance(meta["features"], list)
    assert {"square", "square_group_z", "above_patient", "old"} <= set(meta["features"])


def test_the_content_of_the_file_is_in_the_fingerprint_and_its_place_is_not(tmp_path: Path) -> None:
    config = experiment_with(tmp_path, GOOD)
    _, first = stacked(config)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other_name.py").write_text(GOOD)
    text = config.read_text().replace("python: my_features.py", "python: elsewhere/other_name.py")
    config.write_text(text)
    assert stacked(config)[1]["fingerprint"] == first["fingerprint"]
    (tmp_path / "elsewhere" / "other_name.py").write_text(GOOD + "# the same values\n")
    assert stacked(config)[1]["fingerprint"] != first["fingerprint"]
    assert "python" not in Features().inputs()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def features(table): return table[['size']] - table['size'].mean()", "the column name 'size' is a name of"),
        ("def features(t): return t[['size']].rename(columns={'size': 'age'})", "the column name 'age' is a name of"),
        ("def features(t): return t[['size']].rename(columns={'size': 'years'})", "^$"),
        (
            "def features(t): return (t[['size']] - t['size'].mean()).add_prefix('c_')",
            "column 'c_size' looks at rows of other groups, or draws random numbers",
        ),
        (
            "def features(t): return t[['size']].rank().add_prefix('r_')",
            "column 'r_size' looks at rows of other groups",
        ),
        (
            "import numpy as np\ndef features(t): return t[['age']].assign(x=np.random.rand(len(t)))[['x']]",
            "or draws random numbers",
        ),
        ("def features(t): raise SystemExit(0)", "features failed on .* rows of .* groups .SystemExit in line 1: 0"),
        ("raise SystemExit", "cannot be imported .SystemExit"),
        ("def features(t): return t[['size']].add_prefix('x_') * 1j", "column 'x_size' is of type complex"),
        ("def features(t): return t[['size']].add_prefix('x_')[::-1]", "or in another order: return a frame"),
        ("def features(t): return t[['size']].add_prefix('x_')[1:]", "with the index of the table"),
        ("def features(t): return t[['site']].add_prefix('x_')", "column 'x_site' is of type"),
        ("def features(t): return t[['age']].add_prefix('x_') / 0.0", "values that are not finite: return NaN there"),
        ("def features(t): return t['age']", "returned a Series: return a pandas DataFrame"),
        ("def features(t): return t[[]]", "returned no column"),
        ("def features(t):\n    x = 1\n    return t['none']", "KeyError in line 3"),
        ("def feature(t): return t", "it has no function `features`"),
        ("def features(t: return t", "cannot be imported .SyntaxError"),
        ("def features(t): return t[['target']].add_prefix('x_')", "KeyError"),
        (
            "def features(t): return t[['size']].add_prefix('x_' if len(t) > 99 else 'y_')",
            "return the same columns for any rows",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, code: str, said: str) -> None:
    config = experiment_with(tmp_path, code)
    if said == "^$":  # a csv name is free where the table calls the column otherwise
        assert "years" in opened_experiment(config).table.columns.numbers
        return
    with pytest.raises(ConfigError, match=r"features\.python .*my_features\.py: .*" + said):
        opened_experiment(config)


def test_a_feature_of_the_group_needs_groups_in_test(tmp_path: Path) -> None:
    off = {"aggregates": False, "neighbours": False, "relative": []}
    config = experiment_with(tmp_path, GOOD, **off)
    test = pd.read_csv(tmp_path / "test.csv", dtype=str, keep_default_na=False).drop(columns="patient")
    test.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(ConfigError, match="compares a row with the other rows of its group"):
        opened_experiment(config)
    (tmp_path / "my_features.py").write_text("def features(t): return t[['size']].add_prefix('x_') ** 2")
    assert "x_size" in opened_experiment(config).table.test


@pytest.mark.parametrize("block", ["relative", "relative_site", "outliers"])
def test_own_columns_relative_to_the_group_need_groups_in_test(tmp_path: Path, block: str) -> None:
    """Else they would be those of a group of one in test, whatever the patients are."""
    off: dict[str, object] = {"aggregates": False, "neighbours": False, "relative": [], "outliers": False}
    on: object = True if block == "outliers" else ["z"]
    code = "def features(t): return t[['age']].add_prefix('my_') ** 2"
    config = experiment_with(tmp_path, code, **off | {block: on})
    settings = yaml.safe_load(config.read_text())
    del settings["data"]["columns"]["numeric"]  # no other column of numbers
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    test = pd.read_csv(tmp_path / "test.csv", dtype=str, keep_default_na=False).drop(columns="patient")
    test.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match=f"features.{block} compare a test row with the other rows of its group"):
        opened_experiment(config)
    assert "my_age" in opened_experiment(config, f"features.{block}={str(off.get(block, [])).lower()}").table.test


def test_the_file_is_common_to_all_stackers_and_must_exist(tmp_path: Path) -> None:
    config = experiment_with(tmp_path, GOOD)
    (tmp_path / "my_features.py").unlink()
    with pytest.raises(ConfigError, match="no such file: correct the path"):
        opened_experiment(config)
    with pytest.raises(ConfigError, match="common to all stackers"):
        opened_experiment(config, "stackers.0.features.python=other.py")


@pytest.mark.slow
def test_bundle_refuses_them_with_the_reason(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import small_config

    (tmp_path / "mine.py").write_text("def features(t): return t[['age']].add_prefix('my_') ** 2")
    config = small_config(small_data, tmp_path, features={"python": str(tmp_path / "mine.py"), "outliers": False})
    fused = yaml.safe_load(config.read_text())
    fused["image_models"] = [fused["image_models"][0] | {"metadata": ["my_*"]}]  # a net takes it as any other column
    config.write_text(yaml.safe_dump(fused))
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    capsys.readouterr()
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "bundle"), "-q") == 2
    assert "features.python mine.py is your own code, which a bundle does not contain" in capsys.readouterr().err
