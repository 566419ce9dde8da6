"""One YAML, checked whole: nearest keys, overrides, paths relative to the file, a frozen object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from conftest import small_config
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dermstack.errors import ConfigError
from stack.settings.config import Config, ImageModel, read_config
from stack.settings.yaml_text import colon_hint, glued_keys

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A config whose data need not be there: reading it looks at no other file."""
    (tmp_path / "config").mkdir()
    return small_config(Path("data"), tmp_path / "config")


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_config(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid(config: Path) -> None:
    assert read_config(config).experiment == config.stem


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("experimemt", "experiment"),
        ("image_model", "image_models"),
        ("folds.sead", "seed"),
        ("data.columns.grup", "group"),
        ("image_models.0.epoch", "epochs"),
        ("image_models.1.normalise.stdd", "std"),
        ("stackers.0.param", "params"),
        ("tuned.blnd", "blend"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest(path: Path, key: str, near: str) -> None:
    where, _, unknown = key.rpartition(".")
    message = refused(path, f"{key}=1")
    assert f"{where or 'config'}: unknown key {unknown!r}: did you mean {near!r}?" in message
    assert str(path) in message


def test_a_key_that_resembles_none_shows_those_that_there_are(path: Path) -> None:
    assert "unknown key 'zzz': known keys: k, seed" in refused(path, "folds.zzz=1")


@pytest.mark.parametrize(
    ("override", "where", "hint"),
    [
        ("review={sensitivity:0.9}", "review", "write 'sensitivity: 0.9'"),
        ("review={sensitivity:0.9, test:0.2}", "review", "write 'test: 0.2'"),
        ("stackers.0.params={num_leaves:7}", "stackers.0.params", "write 'num_leaves: 7'"),
        ("data.missing={a: [0], b*:'x'}", "data.missing", "write \"b*: 'x'\""),
        ("review=sensitivity:0.9", "review", "write 'sensitivity: 0.9'"),
        ("data.missing=age:0", "data.missing", "write 'age: 0'"),
        ("image_models.0={name: a, backbone:b}", "image_models.0", "write 'backbone: b'"),
    ],
)
def test_a_colon_without_a_blank_is_explained(path: Path, override: str, where: str, hint: str) -> None:
    message = refused(path, override)
    assert f"{where}: YAML needs a blank after the colon: " in message
    assert hint in message


@pytest.mark.parametrize(
    ("glued", "hint"),
    [
        ("review:\n  sensitivity:0.9\n", "review: YAML needs a blank after the colon: write 'sensitivity: 0.9'"),
        ("review: {sensitivity:0.9}\n", "review: YAML needs a blank after the colon: write 'sensitivity: 0.9'"),
        ("review:{sensitivity: 0.9}\n", "config: YAML needs a blank after the colon: write 'review: {sensitivity'"),
        ("threads:2\n", "YAML needs a blank after the colon: write 'threads: 2'"),
        ("folds:\n  k: 5\n  seed:0\n", "YAML needs a blank after the colon: write 'seed: 0'"),
        ("stackers:\n  - name:a\n    kind: lightgbm\n", "write 'name: a'"),
    ],
)
def test_a_colon_without_a_blank_in_a_file_is_explained(tmp_path: Path, glued: str, hint: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("experiment: a\n" + glued, encoding="utf-8")
    assert hint in refused(path)
    path.write_text("experiment:a\n", encoding="utf-8")
    assert "write 'experiment: a'" in refused(path)


def test_colons_in_addresses_and_names_are_no_faults() -> None:
    for value in (
        {"http://host:80": 1},
        {"a:b": "x*2"},
        ["a:b", {"p": "C:\\x"}],
        {"url": "sqlite:///a.db"},
        "http://a",
    ):
        assert list(glued_keys(value)) == []
    assert colon_hint("http://a") == colon_hint("plain") == colon_hint(3) == ""


def test_all_mistakes_are_told_at_once(path: Path) -> None:
    message = refused(path, "folds.k=1", "threads=0", "image_models.0.epoch=1", "image_models.0.sise=1")
    for part in ("folds.k: ", "threads: ", "image_models.0: unknown key 'epoch'", "unknown key 'sise'"):
        assert part in message


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("folds.k=7", ("folds", "k"), 7),
        ("image_models.1.lr=2e-3", ("image_models", 1, "lr"), "2e-3"),
        ("image_models.0.seeds=[0, 1]", ("image_models", 0, "seeds"), [0, 1]),
        ("image_models.0.timm_args.bn_eps=0.1", ("image_models", 0, "timm_args"), {"bn_eps": 0.1}),
        ("stackers.0.params={leaves: 8}", ("stackers", 0, "params"), {"leaves": 8}),
        ("tuned.blend=study.yaml", ("tuned",), {"blend": "study.yaml"}),
        ("data.test=null", ("data", "test"), None),
        ("stackers.0.params.note=a=b", ("stackers", 0, "params", "note"), "a=b"),
    ],
)
def test_set_is_the_same_as_writing_it_into_the_file(
    path: Path, override: str, place: tuple[str | int, ...], value: object
) -> None:
    raw = yaml.safe_load(path.read_text())
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    written = path.with_name("written.yaml")
    written.write_text(yaml.safe_dump(raw))
    assert read_config(path, (override,)) == read_config(written) != read_config(path)


def test_a_later_override_wins(path: Path) -> None:
    assert read_config(path, ("seed=1", "seed=2")).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("folds.k", "write it as key=value"),
        ("image_models.5.epochs=1", "no such place: its list has 2 entries, counted from 0"),
        ("image_models.5={}", "no such place"),
        ("image_models.first.epochs=1", "no such place"),
        ("experiment.name=x", "no such place"),
        ("folds.k.x=1", "no such place"),
        ("folds.k=[1", "not valid YAML"),
        ("folds.k=several", "folds.k: Input should be a valid integer"),
        ("objective=accuracy", "'auc', 'pauc80', 'ap' or 'logloss', got 'accuracy'"),
        (
            "stackers.0.kind=forest",
            "'logistic', 'set_transformer' or 'sklearn', got 'forest'",
        ),
    ],
)
def test_a_bad_override_is_named(path: Path, override: str, message: str) -> None:
    shown = refused(path, override)
    assert message in shown
    assert override.partition("=")[0] in shown


def test_paths_are_relative_to_the_config_wherever_one_stands(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("data.train=../rows/train.csv", "runs=../runs")
    monkeypatch.chdir(tmp_path)
    here = read_config(path.relative_to(tmp_path), overrides)
    monkeypatch.chdir(path.parent)
    there = read_config(Path(path.name), overrides)
    assert here == there
    assert here.data.train == tmp_path / "rows" / "train.csv"
    assert here.runs == tmp_path / "runs"


def test_a_variable_that_is_set_is_relative_to_where_one_stands_its_default_to_the_config(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DERMSTACK_DATA=../data dermstack …` is typed in a shell, the default is written in the file."""
    override = ("data.train=${SKIN_DATA:-../data}/ham/train.csv",)
    monkeypatch.chdir(tmp_path)
    for nothing in (None, ""):
        monkeypatch.delenv("SKIN_DATA", raising=False)
        if nothing is not None:
            monkeypatch.setenv("SKIN_DATA", nothing)
        assert read_config(path, override).data.train == tmp_path / "data" / "ham" / "train.csv"
    monkeypatch.setenv("SKIN_DATA", "elsewhere/skin")
    assert read_config(path, override).data.train == tmp_path / "elsewhere" / "skin" / "ham" / "train.csv"
    monkeypatch.setenv("SKIN_DATA", "/mnt/skin")
    assert read_config(path, override).data.train == Path("/mnt/skin/ham/train.csv")


@pytest.mark.parametrize("key", ["data.train", "image_models.0.pretrained", "tuned.blend"])
def test_a_variable_that_is_not_set_is_named_once(path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKIN_DATA", raising=False)
    message = refused(path, f"{key}=${{SKIN_DATA}}/x")
    assert message.splitlines()[1:] == [
        f"  {key}: the environment variable SKIN_DATA is not set: export SKIN_DATA=path/to/folder"
    ]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_pretrained_is_yes_no_or_a_file(path: Path, text: str, value: bool) -> None:
    assert read_config(path, (f"image_models.0.pretrained={text}",)).image_models[0].pretrained is value
    assert read_config(path, (f"image_models.0.pretrained='{text}'",)).image_models[0].pretrained == path.parent / text


def test_two_models_can_not_share_a_name(path: Path) -> None:
    assert "more than one model is named tiny" in refused(path, "stackers.0.name=tiny")
    assert "more than one model is named tiny" in refused(path, "image_models.1.name=tiny")


@given(st.text(max_size=70))
def test_a_name_is_a_plain_folder_name(name: str) -> None:
    """Whatever is accepted stays one folder under runs/, on every system."""
    try:
        ImageModel(name=name, backbone="x")
    except ValidationError:
        return
    assert name.isascii()
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert name[0] not in ".-_"
    assert len(name) <= 64


@pytest.mark.parametrize("name", ["..", "../up", "a/b", "a\\b", ".hidden", "-option", "", "a b", "a\n", "x" * 65])
def test_a_name_that_would_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        ImageModel(name=name, backbone="x")


def test_image_models_need_images(path: Path) -> None:
    assert "image_models need data.images" in refused(path, "data.images=null")
    assert read_config(path, ("data.images=null", "image_models=[]")).image_models == ()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seed=-1"], "seed: Input should be greater than or equal to 0"),
        (["image_models.0.seeds=[0, -1]"], "image_models.0.seeds.1: Input should be greater"),
        (["image_models.0.seeds=[0, 1, 0]"], "seeds [0, 1, 0] names one twice"),
        (["image_models.0.metadata=[age, age]"], "metadata ['age', 'age'] names one twice"),
        (
            ["image_models.0.metadata=[age]", "data.columns.age=null"],
            "`metadata: age`: name its csv column in data.columns.age",
        ),
        (["backend=ray", "device=cuda"], "device: cuda on a Ray cluster needs ray.gpus"),
        (["stackers=[{name: line, kind: logistic, positive_weight: 2}]"], "kind logistic has no `positive_weight`"),
        (["stackers=[{name: line, kind: logistic, params: {C: 1}}]"], "kind logistic has no `positive_weight` and no"),
        (["stackers=[{name: line, kind: logistic, monotone: true}]"], "`monotone` and `device: gpu` are for GBDTs"),
        (["stackers=[{name: line, kind: logistic, device: gpu}]"], "`monotone` and `device: gpu` are for GBDTs"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(path: Path, overrides: list[str], says: str) -> None:
    assert says in refused(path, *overrides)


def test_a_key_that_stands_twice_is_named(path: Path) -> None:
    """YAML would let the last one win, in silence."""
    text = path.read_text()
    path.write_text(f"{text}\nseed: 1\nthreads: 1\nseed: 2\n")
    first = text.count("\n") + 2
    with pytest.raises(ConfigError, match=f"seed is given twice, in lines {first} and {first + 2}: write it once"):
        read_config(path)


def test_a_key_without_a_colon_is_named_with_its_line(path: Path) -> None:
    text = path.read_text()
    path.write_text(f"{text}\nfolds  # of rows\n  k: 5\n")
    message = refused(path)
    assert f"(line {text.count(chr(10)) + 2}: YAML needs a colon after a key: write 'folds:')" in message
    assert "unicode string" not in message


def test_a_value_near_to_one_of_the_choices_is_suggested(path: Path) -> None:
    assert "got 'lightgmb': did you mean 'lightgbm'?" in refused(path, "stackers=[{name: a, kind: lightgmb}]")
    assert "got 'zzz'" in (far := refused(path, "stackers=[{name: a, kind: zzz}]"))
    assert "did you mean" not in far


def test_a_name_that_cannot_name_a_folder_is_refused_in_words(path: Path) -> None:
    message = refused(path, "experiment=my experiment")
    assert "experiment: a name has 1 to 64 letters (a to z), digits, `_`, `.` or `-`" in message
    assert "got 'my experiment'" in message


def test_a_tuned_stacker_must_be_one_of_the_config(path: Path) -> None:
    assert "tuned.gbdt names gone" in refused(path, "tuned.gbdt.gone=study.yaml")


def test_a_config_does_not_change(path: Path) -> None:
    config = read_config(path)
    for part, key in ((config, "seed"), (config.folds, "k"), (config.image_models[0], "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no settings"), ("- a\n- b\n", "holds no settings"), ("a: [", "not valid YAML"), ("a: \xff", "YAML")],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="latin-1")
    shown = refused(path)
    assert message in shown
    assert str(path) in shown
    assert "no such config" in refused(tmp_path / "gone.yaml")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValidationError) as error:
        Config.model_validate({"experiment": "x", "data": {"name": "d"}}, context={"folder": "."})
    assert {".".join(map(str, e["loc"])) for e in error.value.errors()} == {"data.train", "data.columns"}


def test_a_folder_and_a_stream_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder: name the YAML file in it"):
        read_config(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a stream: save the config as a file"):
        read_config(tmp_path / "pipe")
