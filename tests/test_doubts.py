"""Doubts about the predictions of runs: each planted fault is named, and clean runs raise none."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import command_error, import_frames
from plausible_runs import changed, doubts_of, files, patients, scores
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from dermstack.audit.runs import run_findings
from dermstack.errors import DataError
from stack.experiment import Experiment
from stack.predictions.doubts import doubts
from stack.predictions.plausibility import run_facts


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return patients(tmp_path)


def test_clean_runs_raise_no_doubt(experiment: Experiment) -> None:
    for seed in range(1, 21):
        runs = [(f"run{number}", files(experiment, 10 * seed + number)) for number in range(3)]
        assert doubts_of(experiment, *runs) == []


def by_net(change: Callable) -> Callable[[pd.Series], pd.Series]:
    return lambda p: p.groupby(np.arange(len(p)) // 300).transform(change)  # 300 test rows of each net


RANKS: Callable = lambda p: p.rank() / len(p)  # noqa: E731


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"oof": lambda p: 1 - p, "test": lambda p: 1 - p}, "x: its predictions are inverted"),
        ({"oof": RANKS, "test": by_net(RANKS)}, "x: its predictions are ranks, not probabilities"),
        ({"test": by_net(RANKS)}, "x: its test predictions are ranks, its out-of-fold predictions are not"),
        ({"test": lambda p: p / 5}, "x: its test predictions have another distribution than its out-of-fold"),
        ({"test": lambda p: expit(logit(p) * 4 + 5)}, "x: its test predictions have another distribution"),
        ({"oof": lambda p: p.round(1).clip(0.05)}, "x: many of its predictions are equal"),
        ({"oof": lambda p: (p > 0.3) * 0.9 + 0.05}, "x: it has only two different predictions"),
        ({"test": lambda p: 0 * p + 0.5}, "x: all test predictions are equal"),
        ({"oof": lambda p: 0 * p + 0.5}, "x: all out-of-fold predictions are equal"),
        ({"oof": lambda p: expit(logit(p) * 30 - 40).clip(1e-15)}, "x: predictions of 0 or 1 count as certain"),
    ],
)
def test_each_fault_is_named_once(experiment: Experiment, fault: dict[str, Callable], words: str) -> None:
    found = doubts_of(experiment, ("x", changed(files(experiment), **fault)))
    named = [doubt for doubt in found if doubt.title.startswith(words)]
    assert len(named) == 1, found
    assert all(doubt.title.startswith("x: ") and doubt.evidence and doubt.remedy for doubt in found)


def test_a_net_of_its_own_scale_is_named(experiment: Experiment) -> None:
    oof, test = files(experiment)
    test.loc[test["fold"] == 1, "p"] **= 0.2
    (found,) = doubts_of(experiment, ("x", (oof, test)))
    assert "p of net 1 at 5 / 50 / 95 %" in found.evidence


def test_a_collapsed_net_is_named(experiment: Experiment) -> None:
    oof, test = files(experiment)
    oof.loc[oof["fold"] == 2, "p"] = 0.2
    assert "x: all out-of-fold predictions of net 2 are equal" in [
        doubt.title for doubt in doubts_of(experiment, ("x", (oof, test)))
    ]


def test_nearly_perfect_predictions_are_doubted(experiment: Experiment) -> None:
    found = doubts_of(experiment, ("x", files(experiment, skill=7)))
    assert [doubt.title for doubt in found] == ["x: its AUC is nearly perfect"]
    assert f"AUC {roc_auc_score(experiment.target, files(experiment, skill=7)[0]['p']):.4f} [" in found[0].evidence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p, "equal"),
        (lambda p: p.round(3).clip(0.0005, 0.9995), "nearly equal"),
        (lambda p: p**2, "nearly equal"),  # another scale, the same order
        (lambda p: p + 1e-4 * np.random.default_rng(0).random(len(p)), "nearly equal"),
    ],
)
def test_a_run_given_twice_is_named(experiment: Experiment, change: Callable, words: str) -> None:
    a = files(experiment)
    found = doubts_of(experiment, ("a", a), ("b", files(experiment, 2)), ("a2", changed(a, oof=change, test=change)))
    assert [doubt.title for doubt in found if " and " in doubt.title] == [
        f"a and a2: their out-of-fold predictions are {words}"
    ]


def test_advice_fits_stackers_and_a_run_that_the_blend_leaves_out_is_counted_by_no_mean(experiment: Experiment) -> None:
    made = files(experiment)
    rounded = changed(made, oof=lambda p: p.round(1).clip(0.05, 0.95), test=lambda p: p.round(1).clip(0.05, 0.95))
    twice = "means and rank means count it twice"

    def remedies(*kinds: str, blended: str = "ab") -> dict[str, str]:
        runs = [scores(name, rounded, kind) for name, kind in zip("ab", kinds, strict=False)]
        found = doubts(run_facts(experiment, runs), is_blended=lambda run: run in blended)
        return {doubt.title.partition(":")[0]: doubt.remedy for doubt in found}

    assert remedies("imported", "imported") == {
        "a": "write predictions with all their digits", "b": "write predictions with all their digits",
        "a and b": f"remove one of the two: {twice}",
    }  # fmt: skip
    stackers = remedies("lightgbm", "logistic")
    assert "tells few rows apart" in stackers["a"]
    assert "digits" not in stackers["a"]
    assert stackers["a and b"].startswith("their settings, features or runs make no difference")
    assert stackers["a and b"].endswith(twice)
    assert remedies("image", "logistic")["a and b"].startswith("b adds nothing to the other")
    assert remedies("image")["a"] == "train the model again with other settings"
    other_scale = changed(files(experiment), test=lambda p: p**3)
    for kind, words in (("imported", "give test predictions on the scale"), ("image", "compare images and columns")):
        (doubt,) = doubts(run_facts(experiment, [scores("a", other_scale, kind)]))
        assert doubt.what.startswith("its test predictions have another distribution")
        assert doubt.remedy.startswith(words)
        assert doubt.remedy.endswith("the calibrated risks are wrong otherwise")
    for kinds in (("imported", "imported"), ("lightgbm", "logistic")):
        assert twice in remedies(*kinds, blended="ab")["a and b"]
        assert twice not in remedies(*kinds, blended="a")["a and b"]
    inverted = scores("a", changed(made, oof=lambda p: 1 - p, test=lambda p: 1 - p), "lightgbm")
    for is_counted in (True, False):
        (doubt,) = doubts(run_facts(experiment, [inverted]), is_blended=lambda run, is_it=is_counted: is_it)
        assert "it ranks worse than chance" in doubt.remedy
        assert ("count such a run" in doubt.remedy) == is_counted


def test_a_run_and_its_inverse_are_named(experiment: Experiment) -> None:
    a = files(experiment)
    turned = changed(a, oof=lambda p: 1 - p, test=lambda p: 1 - p)
    whats = [doubt.title for doubt in doubts_of(experiment, ("a", a), ("b", turned))]
    assert whats == [
        "a and b: the predictions of one are the inverse of the other's",
        "b: its predictions are inverted",
    ]


def test_test_predictions_of_another_run_are_named(experiment: Experiment) -> None:
    a, b = files(experiment, 1), files(experiment, 2)
    whats = [doubt.title for doubt in doubts_of(experiment, ("a", a), ("b", (b[0], a[1])))]
    assert whats == ["a: its test predictions are those of b", "b: its test predictions are those of a"]


def test_test_rows_in_another_order_are_named(experiment: Experiment) -> None:
    a, b = files(experiment, 1), files(experiment, 2)
    mixed = changed(b, test=lambda p: p.sample(frac=1, random_state=0).to_numpy())
    whats = [doubt.title for doubt in doubts_of(experiment, ("a", a), ("b", mixed))]
    mismatch = "their test predictions do not go together as the out-of-fold ones do"
    assert whats == [f"a and b: {mismatch}"]
    copied = changed(a, test=lambda p: p.sample(frac=1, random_state=0).to_numpy())
    whats = [doubt.title for doubt in doubts_of(experiment, ("a", a), ("copy", copied))]
    assert whats == ["a and copy: their out-of-fold predictions are equal", f"a and copy: {mismatch}"]


@pytest.mark.parametrize("values", [(0, 1), (1, 0), (0.05, 0.95), (0.1, 0.2)])
def test_labels_are_refused_at_import(experiment: Experiment, values: tuple[float, float]) -> None:
    oof, test = files(experiment)
    oof["p"] = np.array(values)[experiment.target]
    with pytest.raises(DataError, match=r"x-oof.csv: x: its predictions are the labels .*--p-column"):
        import_frames(experiment, "x", oof, test)
    oof.loc[oof["p"].index[:2], "p"] = values[::-1]  # two rows relabelled since
    with pytest.raises(DataError, match="its predictions are the labels"):
        import_frames(experiment, "x", oof, test)
    assert not experiment.models.exists()


def test_one_value_is_refused_at_import(experiment: Experiment) -> None:
    oof, test = files(experiment)
    with pytest.raises(DataError, match="all out-of-fold predictions are equal"):
        import_frames(experiment, "x", oof.assign(p=0.3), test)
    with pytest.raises(DataError, match="all test predictions are equal"):
        import_frames(experiment, "x", oof, test.assign(p=0.0))
    assert not experiment.models.exists()


def test_the_audit_repeats_what_the_import_warned_of(experiment: Experiment) -> None:
    a = files(experiment)
    runs = [
        import_frames(experiment, "a", *a),
        import_frames(experiment, "x", *changed(files(experiment, 2), oof=lambda p: 1 - p, test=lambda p: 1 - p)),
    ]
    found = {finding.what: finding for finding in run_findings(experiment, runs)}
    assert found["x: its predictions are inverted"].severity == "warning"


def test_a_run_is_not_called_a_copy_of_the_run_that_it_replaces(experiment: Experiment) -> None:
    a = files(experiment)
    import_frames(experiment, "a", *a)
    out = command_output(experiment, "a", "--replace")
    assert "equal" not in out.partition("Predictions of each run")[0]
    assert "a2 and a: their out-of-fold predictions are equal" in command_output(experiment, "a", name="a2")


def command_output(experiment: Experiment, stem: str, *options: str, name: str = "a") -> str:
    """Output of `import-oof` of the files that `import_frames` wrote."""
    folder, printed = experiment.config_path.parent, io.StringIO()
    arguments = ["--oof", str(folder / f"{stem}-oof.csv"), "--test", str(folder / f"{stem}-test.csv")]
    with contextlib.redirect_stdout(printed):
        assert run_cli("import-oof", name, "-c", str(experiment.config_path), *arguments, *options) == 0
    return " ".join(printed.getvalue().split())


@pytest.mark.slow
def test_import_and_stack_print_the_table(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    import_frames(experiment, "a", *files(experiment))
    inverted = changed(files(experiment, 2), oof=lambda p: 1 - p, test=lambda p: 1 - p)
    for frame, part in zip(inverted, ("oof", "test"), strict=True):
        frame.to_csv(experiment.config_path.parent / f"x-{part}.csv", index=False)
    printed = command_output(experiment, "x", name="x")
    assert "warning: x: its predictions are inverted (AUC 0." in printed
    assert "distinct" in printed
    capsys.readouterr()
    assert run_cli("stack", "--no-report", "-c", str(experiment.config_path), "--set", "stackers=[]") == 0
    shown = capsys.readouterr().out
    assert "warning: x: its predictions are inverted" in shown
    assert "distinct" in shown


def test_labels_are_refused_by_the_command_without_a_traceback(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    oof, test = files(experiment)
    folder = experiment.config_path.parent
    oof.assign(target=experiment.target).to_csv(folder / "k.csv", index=False)
    test.assign(target=test["p"]).to_csv(folder / "k_test.csv", index=False)
    arguments = ["import-oof", "m", "-c", str(experiment.config_path), "--oof", str(folder / "k.csv")]
    message = command_error(capsys, *arguments, "--test", str(folder / "k_test.csv"), "--p-column", "target")
    assert "m: its predictions are the labels" in message
