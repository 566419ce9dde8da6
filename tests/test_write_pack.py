"""The reporting pack: all that the report shows as files, links that lead somewhere, no id, nothing by halves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from conftest import run_cli
from html_page import Page
from imported_experiment import (
    COLUMNS,
    command_error,
    import_frames,
    opened_experiment,
    predictions,
    write_experiment,
)
from sourced_experiment import write_sourced
from unit_experiment import import_readers, write_breasts

from dermstack.errors import ConfigError
from dermstack.report.evidence import WrittenReport, written_report
from dermstack.report.pack import write_pack as module
from stack.console import Out
from stack.store import sha256

SINGLE_CASES = {"hard-cases", "second-look"}  # of which the pack has no csv: a row is one patient's image


def with_marked_ids(folder: Path) -> None:
    """Names that no number contains, so that one that leaves is found."""
    for name in ("train.csv", "test.csv", "sample.csv"):
        frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        frame["isic"] = "img_" + frame["isic"]
        if "patient" in frame:
            frame["patient"] = "person_" + frame["patient"]
        frame.to_csv(folder / name, index=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment of two imported runs, without metadata, with a review band."""
    folder = tmp_path_factory.mktemp("packed")
    bare = {key: COLUMNS[key] for key in ("id", "group", "target")}
    data = {
        "name": "generated", "train": "train.csv", "test": "test.csv", "sample_submission": "sample.csv",
        "columns": bare,
    }  # fmt: skip
    config = write_experiment(folder, data=data, review={"sensitivity": 0.8, "confidence": 0.8})
    with_marked_ids(folder)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    return config


@pytest.fixture(scope="module")
def pack(config: Path) -> Path:
    folder = config.parent / "papers" / "pack"
    assert run_cli("report", "-c", str(config), "--pack", str(folder), "-q") == 0
    return folder


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in place of figures, which take most of the time."""

    def empty(drawn: object, folder: Path, name: str, title: str) -> list[str]:
        for form in ("svg", "pdf"):
            (folder / f"{name}.{form}").touch()
        return []

    monkeypatch.setattr(module, "write_figure", empty)


def assert_complete(pack: Path) -> None:
    """Every table and figure of the report has its files, every link leads somewhere, every file its hash."""
    html = (pack / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    tables = {name.removesuffix("-caption") for name in page.ids if name and name.endswith("-caption")}
    named = {re.sub(r"^gaps-\d+$", "gaps", name) for name in tables} - SINGLE_CASES
    files = {path.stem for path in (pack / "tables").glob("*.csv")}
    assert named <= files
    assert all(len(pd.read_csv(path)) for path in (pack / "tables").glob("*.csv"))
    drawn = html.count('<svg class="plot"') + 1  # the page shows the flow of the rows as a list
    flow = "".join(ElementTree.parse(pack / "figures/row-flow.svg").getroot().itertext()).replace("\n", " ")
    assert f"{pd.read_csv(pack / 'tables/row-flow.csv')['rows'][0]:,} rows in the training" in flow
    for form in ("svg", "pdf"):
        assert len(list((pack / "figures").glob(f"*.{form}"))) == drawn > 5
    for path in (pack / "figures").glob("*.svg"):
        ElementTree.parse(path)
        assert "var(--" not in path.read_text(encoding="utf-8")
    for path in (pack / "figures").glob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"FontFile2" in content
        assert b"/Type3" not in content
    assert {path.stem for path in pack.glob("checklist_*.html")} == {f"checklist_{name}" for name in module.CHECKLISTS}
    anchors = set(page.ids)
    for path in pack.glob("checklist_*.html"):
        links = [attrs["href"] or "" for tag, attrs in Page(path.read_text(encoding="utf-8")).tags if tag == "a"]
        assert sum("#" in link for link in links) > 20
        for link in links:
            file, _, anchor = link.partition("#")
            assert (pack / file).exists() if file else True, link
            assert anchor in anchors if file == "report.html" and anchor else True, link
        assert len(pd.read_csv(path.with_suffix(".csv"))) == len(module.CHECKLISTS[path.stem[10:]].items)
    record = json.loads((pack / "pack.json").read_text(encoding="utf-8"))["files"]
    found = {path.relative_to(pack).as_posix(): sha256(path) for path in pack.rglob("*") if path.is_file()}
    assert record == {name: digest for name, digest in found.items() if name != "pack.json"}
    listing = (pack / "README.md").read_text(encoding="utf-8")
    shown = [path for form in ("figures/*.svg", "tables/*.csv", "*.html") for path in pack.glob(form)]
    assert [path for path in shown if f"`{path.relative_to(pack).as_posix()}`" not in listing] == []


def test_all_that_the_report_shows_is_in_the_pack(pack: Path) -> None:
    assert_complete(pack)
    assert not [path for path in pack.parent.iterdir() if path != pack]


def test_the_tables_and_the_text_have_the_numbers_of_the_blend(config: Path, pack: Path) -> None:
    meta = json.loads((config.parent / "runs/elsewhere/blend/run.json").read_text(encoding="utf-8"))
    methods = pd.read_csv(pack / "tables/methods.csv").set_index("method")
    assert methods["nested"].to_dict() == {line["method"]: line["nested"] for line in meta["methods"]}
    text = (pack / "methods.md").read_text(encoding="utf-8")
    of = meta["headline"]
    assert f"{of['value']:.3f} (95 % interval {of['low']:.3f} to {of['high']:.3f}) (nested from level 2 up" in text
    train = pd.read_csv(config.parent / "train.csv")
    assert f"{len(train)} images were scored, of which {train['malignant'].sum()} (" in text


@pytest.fixture(scope="module")
def report(config: Path) -> WrittenReport:
    """The report with the ids on its page, as `--show-ids` makes it."""
    return written_report(opened_experiment(config), Out(quiet=True), show_ids=True)


def test_no_id_leaves_with_the_pack(pack: Path, report: WrittenReport, tmp_path: Path, without_figures: None) -> None:
    for path in pack.rglob("*"):
        if path.is_file():
            assert not re.search(rb"img_|person_", path.read_bytes()), path
    shown = module.write_pack(report, tmp_path / "shown", [], Out(quiet=True))
    files = [path for path in shown.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"img_" in path.read_bytes()] == ["report.html"]


def test_an_earlier_pack_is_replaced_and_an_authors_work_is_not(
    report: WrittenReport, tmp_path: Path, without_figures: None
) -> None:
    pack, out = tmp_path / "pack", Out(quiet=True)
    module.write_pack(report, pack, [], out)
    module.write_pack(report, pack, [module.CHECKLISTS["claim"]], out)
    assert [path.name for path in pack.glob("checklist_*.html")] == ["checklist_claim.html"]
    text = pack / "methods.md"
    text.write_text(text.read_text(encoding="utf-8").replace("[origin", "[a clinic"), encoding="utf-8")
    (pack / "mine.docx").touch()
    with pytest.raises(ConfigError, match=r"methods\.md, mine\.docx was changed or added"):
        module.write_pack(report, pack, [], out)
    assert "[a clinic" in text.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_pack_that_fails_leaves_nothing_and_keeps_the_earlier_one(
    report: WrittenReport, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_figure", full)
    kept = {path: path.read_bytes() for path in pack.rglob("*") if path.is_file()}
    for folder in (pack, tmp_path / "new"):
        with pytest.raises(OSError, match=re.escape(str(folder))):
            module.write_pack(report, folder, [], Out(quiet=True))
    assert {path: path.read_bytes() for path in pack.rglob("*") if path.is_file()} == kept
    assert [path.name for path in pack.parent.iterdir()] == ["pack"]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_a_pack_is_refused_before_anything_is_made(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("")
    arguments = ("report", "-c", str(config), "-q")
    assert "is a file: name a folder" in command_error(capsys, *arguments, "--pack", str(tmp_path / "file"))
    assert "holds other files" in command_error(capsys, *arguments, "--pack", str(tmp_path / "other"))
    error = command_error(capsys, *arguments, "--checklist", "consort")
    assert "unknown checklist 'consort': choose tripod-ai, claim or probast-ai" in error


def test_a_checklist_alone_is_written_beside_the_report(config: Path) -> None:
    folder = config.parent / "runs/elsewhere"
    assert run_cli("report", "-c", str(config), "--checklist", "probast-ai", "-q") == 0
    page = Page((folder / "checklist_probast-ai.html").read_text(encoding="utf-8"))
    assert "Judgement of the assessor" in page.text
    assert "tables/" not in str(page.tags)
    assert len(pd.read_csv(folder / "checklist_probast-ai.csv")) == 34
    assert [path.name for path in folder.glob("checklist_*.html")] == ["checklist_probast-ai.html"]


def test_a_table_as_csv_has_full_precision_and_no_formula() -> None:
    frame = pd.DataFrame({"run": ["=1+1", "a,b", None], "auc": [1 / 3, -0.1, float("nan")], "rows": [1, 2, 3]})
    made = module.csv_bytes(frame).decode()
    assert made == f'run,auc,rows\n\'=1+1,{1 / 3!r},1\n"a,b",-0.1,2\n,,3\n'


@pytest.mark.slow
@pytest.mark.parametrize("world", ["sources held out", "units", "images"])
def test_the_pack_of_every_kind_of_experiment_is_complete(
    world: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if world == "images":
        config = request.getfixturevalue("bundled_experiment") / "small.yaml"
    elif world == "units":
        config = write_breasts(tmp_path)
        import_readers(config)
        assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    else:
        config = write_sourced(tmp_path)
        assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    pack = tmp_path / "pack"
    assert run_cli("report", "-c", str(config), "--pack", str(pack), "--no-images", "-q") == 0
    assert_complete(pack)
    text = (pack / "methods.md").read_text(encoding="utf-8")
    claim = pd.read_csv(pack / "checklist_claim.csv").set_index("item")
    if world == "sources held out":
        assert "typical source" in text
        assert "4 sources: Barcelona (" in claim.loc[7, "answer"]
        assert (pack / "figures/by-source.pdf").exists()
        estimates = pd.read_csv(pack / "tables/source-estimates.csv")
        assert 0 < estimates["next_low"].iloc[1] < estimates["typical"].iloc[1] < estimates["next_high"].iloc[1] < 1
    elif world == "units":
        assert "units were scored" in text
    else:
        assert "test_resnet" in text
        assert "random weights" in claim.loc[24, "answer"]
        assert "dermstack bundle" in claim.loc[43, "answer"]
