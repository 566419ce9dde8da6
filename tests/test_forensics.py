"""Forensics of out-of-fold files: each planted fault is named, clean files raise none, a claim meets its estimate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from forensic_world import OPTIONS, World, make_world, words
from html_page import Page
from imported_experiment import command_error
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from dermstack.audit.forensics import ClaimedBlend, run_forensics
from dermstack.errors import DataError
from dermstack.report.forensics import forensics_html, forensics_json, named_findings, verdict
from stack.console import Out
from stack.forensics.files import NamedColumns
from stack.imported.files import column_sources


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "files")


@pytest.mark.parametrize("seed", range(12))
def test_clean_files_have_no_finding(tmp_path: Path, seed: int) -> None:
    world = make_world(tmp_path / "files", seed)
    world.write(a_oof=world.oof(), a_test=world.test(), b_oof=world.oof(), b_test=world.test(), c_oof=world.oof())
    found = world.examine()
    assert words(found) == []
    assert found.reference == "the folds of a, b, c"
    assert [one.folds_from for one in found.examined] == ["fold column"] * 3


def on_p(change: Callable[[pd.Series], pd.Series]) -> Callable[[World, pd.DataFrame], pd.DataFrame]:
    return lambda _, frame: frame.assign(pred=change(frame["pred"]))


def labels_of(world: World, frame: pd.DataFrame) -> np.ndarray:
    return world.labels.set_index("image")["target"].loc[frame["image"]].to_numpy()


def with_labels(share: float) -> Callable[[World, pd.DataFrame], pd.DataFrame]:
    """Copies the label into the predictions of a part of the rows."""

    def change(world: World, frame: pd.DataFrame) -> pd.DataFrame:
        copied = np.random.default_rng(1).random(len(frame)) < share
        return frame.assign(pred=np.where(copied, labels_of(world, frame), frame["pred"].clip(0.001, 0.98)))

    return change


def shifted_nets(_: World, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(pred=expit(logit(frame["pred"]) + 1.5 * frame["fold"]))


def random_folds(_: World, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(fold=np.random.default_rng(3).integers(0, 5, len(frame)))


def other_folds(world: World, frame: pd.DataFrame) -> pd.DataFrame:
    patient = world.labels.set_index("image")["patient_id"]
    names = patient.unique()
    deal = dict(zip(names, np.random.default_rng(4).permutation(len(names)) % 5, strict=True))
    return frame.assign(fold=patient.loc[frame["image"]].map(deal).to_numpy())


def shuffled_ids(_: World, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(image=frame["image"].sample(frac=1, random_state=5).to_numpy())


def with_targets_of_other_rows(world: World, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(target=np.roll(labels_of(world, frame), 1))


FAULTS: dict[str, tuple[Callable[[World, pd.DataFrame], pd.DataFrame], str]] = {
    "labels": (lambda w, f: f.assign(pred=labels_of(w, f)), "error: a: its predictions are the labels"),
    "copied": (with_labels(0.1), "error: a: the labels are copied into its predictions in"),
    "mixed with labels": (
        lambda w, f: f.assign(pred=0.2 * f["pred"] + 0.8 * labels_of(w, f)), "warning: a: its AUC is nearly perfect"
    ),
    "inverted": (on_p(lambda p: 1 - p), "warning: a: its predictions are inverted"),
    "ranked": (on_p(lambda p: p.rank() / len(p)), "warning: a: its predictions are ranks, not probabilities"),
    "ranks from 1": (on_p(lambda p: p.rank()), "warning: a: its predictions are ranks, not probabilities"),
    "logits": (on_p(logit), "warning: a: its predictions are logits, not probabilities"),
    "percentages": (on_p(lambda p: 100 * p), "warning: a: its predictions are percentages, not probabilities"),
    "rounded": (on_p(lambda p: p.round(1)), "warning: a: many of its predictions are equal"),
    "constant": (on_p(lambda p: 0 * p + 0.2), "error: a: all out-of-fold predictions are equal"),
    "nets of other scales": (shifted_nets, "warning: a: its fold models have different scales"),
    "torn groups": (random_folds, "error: a: its folds split groups"),
    "other folds": (other_folds, "note: a: its folds are not the folds of b, c"),
    "no folds": (lambda _, f: f.drop(columns="fold"), "note: a: its folds cannot be inferred"),
    "shuffled ids": (shuffled_ids, "warning: a: no relation to the target is shown"),
    "other targets": (with_targets_of_other_rows, "error: a: "),
    "few lacking": (lambda _, f: f.iloc[5:], "note: a: 5 labelled rows have no prediction"),
    "many lacking": (lambda _, f: f.iloc[100:], "warning: a: 100 labelled rows have no prediction"),
    "strange ids": (
        lambda _, f: pd.concat([f, f.iloc[:7].assign(image="x" + f["image"])]), "warning: a: 7 rows have an id without"
    ),
    "repeated": (lambda _, f: pd.concat([f, f.iloc[:4]]), "note: a: 4 rows repeat an id with the same prediction"),
    "contradicting": (
        lambda _, f: pd.concat([f, f.iloc[:4].assign(pred=0.5)]), "error: a: 4 rows repeat an id with another"
    ),
    "missing values": (
        lambda _, f: f.assign(pred=f["pred"].where(f.index > 2)), "error: a: 3 rows have no number as prediction"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_and_the_other_files_are_not(world: World, fault: str) -> None:
    change, expected = FAULTS[fault]
    world.write(a_oof=change(world, world.oof()), b_oof=world.oof())
    if fault in ("other folds", "constant", "shuffled ids"):  # most files are right, and b is like one of the others
        world.write(c_oof=world.oof())
    found = world.examine(claimed="0.8")  # so that the files without errors are blended, also where only one is left
    assert any(one.startswith(expected) for one in words(found)), words(found)
    assert {one.runs for one in found.findings} <= {("a",), ()}
    assert all(one.finding.evidence and one.finding.remedy for one in found.findings)
    if expected.startswith("error"):
        assert found.left_out_of_blend == ("a",)
    page, numbers = forensics_html(found), json.loads(forensics_json(found))
    assert found.findings[0].finding.what.partition(": ")[2].split("'")[0] in page
    assert len(numbers["findings"]) == len(found.findings)
    assert not any(name in page for name in world.labels["image"])


@pytest.mark.parametrize("name", ["labels", "blend"])
def test_a_run_may_have_the_name_of_something_else_that_is_examined(world: World, name: str) -> None:
    world.labels.drop(columns="patient_id").to_csv(world.path, index=False)  # a finding about the labels
    with_error = world.oof().assign(pred=0.2)
    world.write(**{f"{name}_oof": with_error}, b_oof=world.oof(), c_oof=world.oof())
    found = world.examine(claimed="0.999")
    assert found.left_out_of_blend == (name,)
    assert verdict(found).startswith(f"Do not use run {name} before")
    world.write(**{f"{name}_oof": world.oof()})
    corrected = world.examine(weights="b=1,c=1", claimed="0.999")
    assert {one.finding.what for one in corrected.findings if one.finding.severity == "error"} == {
        "blend: the claimed AUC is not that of the blend"
    }
    assert corrected.left_out_of_blend == ()
    assert verdict(corrected).startswith("No file has an error")
    rows = [row for row in Page(forensics_html(found)).rows if row[1] in ("error", "warning", "note")]
    assert {row[0] for row in rows} == {"labels", "blend", f"run {name}"}
    said = [finding.what for finding in named_findings(found)]
    assert said == [f"{row[0]}: {row[2]}" for row in rows], "the terminal says what the page says"
    assert [one["what"] for one in json.loads(forensics_json(found))["findings"]] == said


def test_no_run_has_the_errors_of_one_whose_name_begins_alike(world: World) -> None:
    wide = world.oof().rename(columns={"pred": "net"})
    wide["net: small"] = 0.2  # an error, of which the text begins with "net: "
    world.write(all=wide)
    sources = column_sources(world.folder / "all.csv", None, "net*", OPTIONS, without=())
    found = run_forensics(world.path, sources, Out(quiet=True), named=NamedColumns(), blend=ClaimedBlend(claimed="0.9"))
    assert found.left_out_of_blend == ("net: small",)
    assert ["net: small", "error"] in [row[:2] for row in Page(forensics_html(found)).rows]


TEST_FAULTS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "other scale": (lambda f: f.assign(pred=f["pred"] / 6), "warning: a: its test predictions have another"),
    "ranks": (
        lambda f: f.assign(pred=f.groupby("fold")["pred"].rank(pct=True)), "warning: a: its test predictions are ranks"
    ),
    "percentages": (
        lambda f: f.assign(pred=100 * f["pred"]),
        "warning: a: its test predictions are percentages, its out-of-fold predictions are probabilities",
    ),
    "constant": (lambda f: f.assign(pred=0.5), "error: a: all test predictions are equal"),
    "lacking": (lambda f: f[f["image"] != "te0003"], "warning: a: 1 test rows have no prediction"),
    "repeated": (lambda f: pd.concat([f, f.iloc[:2]]), "warning: a: its test file is not examined"),
    "labelled": (lambda f: f.replace({"image": {"te0001": "im00007"}}), "error: a: 1 of its test rows are labelled"),
}  # fmt: skip


@pytest.mark.parametrize("fault", TEST_FAULTS)
def test_each_fault_of_a_test_file_is_named(world: World, fault: str) -> None:
    change, expected = TEST_FAULTS[fault]
    world.write(a_oof=world.oof(), a_test=change(world.test()), b_oof=world.oof(), b_test=world.test())
    assert any(one.startswith(expected) for one in words(world.examine()))


def test_copies_are_named_once(world: World) -> None:
    first = world.oof()
    world.write(a_oof=first, b_oof=first.assign(pred=first["pred"].round(4)), c_oof=world.oof())
    found = words(world.examine())
    assert sum("their out-of-fold predictions are" in one for one in found) == 1
    assert "note: blend: some files are near copies of others" in found


def every_net(world: World, memory: float, seen: np.ndarray) -> np.ndarray:
    """Logits (n, 5) of nets that remember the rows that they were trained on."""
    y = world.labels["target"].to_numpy()
    return world.logits()[:, None] + memory * seen * np.where(y == 1, 1, -0.3)[:, None] + world.rng.normal(
        0, 0.4, (len(y), 5)
    )  # fmt: skip


@pytest.mark.parametrize("form", ["wide", "long", "wide beside"])
def test_nets_that_held_out_other_rows_are_found(tmp_path: Path, form: str) -> None:
    world = make_world(tmp_path / "files", patients=400)
    n, ids = len(world.fold), world.labels["image"]
    for name, claim in (("good", world.fold), ("bad", (world.fold + 1) % 5)):
        nets = every_net(world, 1.5, world.fold[:, None] != np.arange(5))
        wide = pd.DataFrame({f"net{k}": expit(nets[:, k]) for k in range(5)}).assign(image=ids)
        oof = pd.DataFrame({"image": ids, "pred": expit(nets[np.arange(n), claim]), "fold": claim})
        long = wide.melt("image", var_name="fold", value_name="pred")
        long["fold"] = long["fold"].str[-1]
        if form == "wide":
            world.write(**{name: wide.assign(fold=claim)})
        else:
            world.write(**{f"{name}_oof": oof, f"{name}_all_rows": long if form == "long" else wide})
    options = replace(OPTIONS, all_rows_prefix="net" if form == "wide beside" else None)
    named = NamedColumns(nets="net" if form == "wide" else None)
    found = world.examine(options=options, named=named)
    assert "error: bad: its models held out other rows than it claims" in words(found)
    assert "note: good: its models held out the rows that it claims" in words(found)
    assert found.claim is None  # one file is left, and nothing is claimed


def test_a_file_of_every_net_is_no_out_of_fold_file(world: World) -> None:
    one = world.oof()
    world.write(a_oof=pd.concat([one.assign(fold=k) for k in range(5)]), b_oof=world.oof())
    found = world.examine()
    assert words(found) == ["error: a: not examined"]
    assert "a row for each id and net (5 nets)" in found.not_read["a"]


@pytest.mark.slow
def test_a_blend_of_weights_chosen_on_its_rows_is_optimistic(tmp_path: Path) -> None:
    world = make_world(tmp_path / "files", patients=40)
    y = world.labels["target"].to_numpy()
    noise = world.rng.normal(0, 1, (len(y), 10))
    frames = {f"n{number:02}_oof": world.oof(0.25 * y + column - 2) for number, column in enumerate(noise.T)}
    world.write(**frames)
    P = np.column_stack([frame.set_index("image")["pred"].loc[world.labels["image"]] for frame in frames.values()])
    weights = np.linalg.lstsq(np.column_stack([logit(P), np.ones(len(y))]), y, rcond=None)[0][:-1]
    given = logit(P) @ weights
    world.write(blend=pd.DataFrame({"image": world.labels["image"], "pred": given}))
    auc = roc_auc_score(y, given)
    found = world.examine(blend="blend", claimed=f"{auc:.4f}")
    assert found.claim is not None
    assert found.claim.given is not None
    assert found.claim.given.value == pytest.approx(auc)
    assert "warning: blend: its AUC is higher than its files give, nested" in words(found)
    assert found.claim.optimism is not None
    assert found.claim.optimism.value == pytest.approx(auc - found.claim.nested.value)


def test_a_claim_is_compared_with_the_blend_and_the_nested_estimate(world: World) -> None:
    files = {"a_oof": world.oof(), "b_oof": world.oof()}
    world.write(**files)
    honest = world.examine(weights="a=2,b=1", weights_of="logits")
    assert words(honest) == []
    a, b = (logit(one.set_index("image")["pred"].loc[world.labels["image"]]) for one in files.values())
    assert honest.claim is not None
    assert honest.claim.given is not None
    assert honest.claim.given.value == pytest.approx(roc_auc_score(world.labels["target"], 2 * a + b), abs=1e-6)
    stated = f"{honest.claim.given.value:.3f}"
    assert words(world.examine(weights="a=2,b=1", weights_of="logits", claimed=stated)) == []
    assert words(world.examine(weights="a=2,b=1", weights_of="logits", claimed="0.999")) == [
        "error: blend: the claimed AUC is not that of the blend",
        "warning: blend: the claim lies above the interval of the nested AUC",
    ]
    assert words(world.examine(claimed="0.999")) == [
        "warning: blend: the claim lies above the interval of the nested AUC"
    ]


def test_a_blend_of_other_files_is_named(world: World) -> None:
    third = world.oof(world.signal + world.rng.normal(0, 3, len(world.signal)))
    world.write(a_oof=world.oof(), b_oof=world.oof(), blend=third)
    assert "warning: blend: it is no blend of these files alone" in words(world.examine(blend="blend"))


def test_no_file_that_can_be_read_is_an_error(world: World) -> None:
    world.write(a_oof=world.oof().assign(image="x"), b_oof=world.oof().drop(columns="pred"))
    with pytest.raises(DataError, match="none of the files can be examined"):
        world.examine()


def test_without_patients_it_says_so(world: World) -> None:
    world.labels.drop(columns="patient_id").to_csv(world.path, index=False)
    world.write(a_oof=world.oof())
    found = world.examine()
    assert words(found) == ["warning: labels: each row is a group of its own"]
    assert not found.has_groups
    world.labels.rename(columns={"patient_id": "study_code"}).to_csv(world.path, index=False)
    asked = [one.finding for one in world.examine().findings if one.finding.severity == "note"]
    assert [(one.evidence, one.remedy) for one in asked] == [
        ("do rows with one value of 'study_code' show one patient?", "name the column with --group")
    ]


def test_a_word_that_may_be_positive_is_asked_for_with_a_step_that_decides_it(world: World) -> None:
    world.labels.assign(target=world.labels["target"].map({0: "NV", 1: "MEL"})).to_csv(world.path, index=False)
    world.write(a_oof=world.oof(), b_oof=world.oof())
    found = [one.finding for one in world.examine().findings]
    (asked,) = [one for one in found if one.what == "labels: a column could not be decided"]
    assert asked.evidence.startswith("is 'MEL' the positive class of 'target'")
    assert asked.remedy == "if not, write 0 and 1 into the column, or name another one with --target"


def test_the_command_writes_page_and_numbers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    blend = world.oof()
    world.write(a_oof=world.oof(), a_test=world.test(), b_oof=world.oof(fold=world.fold + 1), mix=blend)
    at = world.folder
    run_cli(
        "forensics", "--oof", str(at / "a_oof.csv"), str(at / "b_oof.csv"), "--test", str(at / "a_test.csv"),
        "--labels", str(world.path), "--blend", str(at / "mix.csv"), "--claimed", "0.99",
        "--out", str(at / "page.html"), "--json", str(at / "numbers.json"),
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "forensics: 1 error" in said
    page, numbers = (at / "page.html").read_text(), json.loads((at / "numbers.json").read_text())
    assert "the claimed AUC is not that of the blend" in page
    assert [one["run"] for one in numbers["runs"]] == ["a", "b"]
    truth = roc_auc_score(world.labels["target"], blend.set_index("image")["pred"].loc[world.labels["image"]])
    assert numbers["blend"]["given"]["value"] == pytest.approx(truth)
    assert numbers["runs"][0]["test_predictions"] == 5 * 250


def test_columns_of_one_file_are_runs(world: World) -> None:
    wide = world.oof().rename(columns={"pred": "net_a"})
    wide["net_b"] = world.oof().set_index("image")["pred"].loc[wide["image"]].to_numpy()
    world.write(all=wide)
    at = world.folder
    run_cli(
        "forensics", "--oof", str(at / "all.csv"), "--labels", str(world.path), "--run-columns", "net_*",
        "--out", str(at / "page.html"), "--json", str(at / "numbers.json"), "--quiet",
    )  # fmt: skip
    numbers = json.loads((at / "numbers.json").read_text())
    assert [one["run"] for one in numbers["runs"]] == ["net_a", "net_b"]
    assert numbers["findings"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no file to examine"),
        (["--oof", "{at}/none.csv"], "no such file or folder"),
        (["--oof", "{at}/a_oof.csv", "--claimed", "95"], "--claimed 95: give the AUC as a number from 0 to 1"),
        (["--oof", "{at}/a_oof.csv", "--weights", "x=1"], "no file is the run 'x'; they are a"),
        (["--oof", "{at}/a_oof.csv", "--weights", "a"], "--weights 'a': give a name and a number, such as a=0.5"),
        (["--oof", "{at}/a_oof.csv", "--weights", "a=1", "--weights-of", "z"], "--weights-of z: choose from p, logits"),
        (["--oof", "{at}/a_oof.csv", "--weights", "a=1", "--blend", "{at}/a_oof.csv"], "--blend and --weights both"),
        (["--oof", "{at}/a_oof.csv", "--target", "nope"], "no column 'nope' (--target)"),
        (["--oof", "{at}/a_oof.csv", "--group", "patient"], "did you mean patient_id?"),
        (["--oof", "{at}/a_oof.csv", "--out", "{at}/page.txt"], "name a file that ends with .html"),
        (["--oof", "{at}/a_oof.csv", "--out", "{at}/labels.csv.html", "--json", "{at}/labels.csv"], "is also an input"),
    ],
)
def test_mistakes_end_with_one_message(
    world: World, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    world.write(a_oof=world.oof())
    given = [word.format(at=world.folder) for word in arguments]
    out = [] if "--out" in given else ["--out", str(world.folder / "page.html")]
    said = command_error(capsys, "forensics", "--labels", str(world.path), *given, *out)
    assert message in " ".join(said.split())
    assert not (world.folder / "page.html").exists()
