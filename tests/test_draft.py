"""`dermstack init`: what is guessed of tables, columns and images, and that a drafted config opens as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from table_layouts import write_clinic, write_image, write_png_folders

from dermstack.errors import DataError
from stack.console import Out
from stack.draft.codes import numeric_codes
from stack.draft.draft import draft_config
from stack.draft.roles import find_roles, id_columns, label_columns, name_words
from stack.draft.text import Draft, draft_text
from stack.experiment import open_experiment
from stack.settings.config import read_config


def drafted(start: Path, folder: Path | None = None, **options: Any) -> dict[str, Any]:
    """Returns the values of the config drafted for ``start``; they must open as an experiment."""
    config = (start if folder is None else folder) / "config.yaml"
    made = draft_config(start, config, **options)
    assert not made.faults
    config.write_text(made.text, encoding="utf-8")
    open_experiment(read_config(config), config, Out(quiet=True))
    values: dict[str, Any] = yaml.safe_load(made.text)
    return values


def write_table(folder: Path, n: int = 120, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Writes train.csv with ids, patients, targets and further columns; a function is called with the targets."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    frame = pd.DataFrame({"image": [f"i{k}" for k in range(n)], "patient_id": [f"P{k // 2}" for k in range(n)]})
    frame["target"] = y
    for name, made in columns.items():
        frame[name] = made(y, rng) if callable(made) else made
    frame.to_csv(folder / "train.csv", index=False)
    return frame


def test_the_roles_of_a_table_and_its_patients_are_found(tmp_path: Path) -> None:
    write_table(
        tmp_path, Sex=lambda y, rng: rng.choice(["F", "M"], len(y)),
        AgeYears=lambda y, rng: rng.integers(1, 90, len(y)),
        anatom_site=lambda y, rng: rng.choice(["arm", "leg"], len(y)), size=lambda y, rng: rng.normal(size=len(y)),
    )  # fmt: skip
    columns = drafted(tmp_path)["data"]["columns"]
    assert columns == {
        "id": "image", "target": "target", "group": "patient_id", "age": "AgeYears", "sex": "Sex",
        "site": "anatom_site", "numeric": "auto", "categorical": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "positive"),
    [(("malignant", "benign"), "malignant"), (("Melanoma", "nevus"), "Melanoma"), (("benign", "weird"), "weird"),
     (("POS", "NEG"), "POS"), ((2, 1), 2)],
)  # fmt: skip
def test_the_positive_word_is_guessed_and_asked(tmp_path: Path, words: tuple[Any, Any], positive: object) -> None:
    frame = write_table(tmp_path).rename(columns={"target": "label"})
    frame["label"] = np.where(frame["label"] == 1, *map(str, words))
    frame.to_csv(tmp_path / "train.csv", index=False)
    values = drafted(tmp_path)
    assert str(values["data"]["columns"]["target"]["positive"]) == str(positive)
    assert "# question (target): is" in (tmp_path / "config.yaml").read_text(encoding="utf-8")


def test_of_two_unknown_words_the_rarer_one_is_positive() -> None:
    label = label_columns(pd.DataFrame({"label": ["x"] * 3 + ["y"] * 7}), set())[0]
    assert label.positive == ("x",)
    assert "rarer" in label.question


@pytest.mark.parametrize("values", [("1", "0"), ("True", "False"), ("yes", "no"), ("1.0", "0.0")])
def test_booleans_need_no_positive_word(values: tuple[str, str]) -> None:
    assert label_columns(pd.DataFrame({"malignant": values * 3}), set())[0].positive == ()


def test_a_target_of_the_sample_submission_goes_before_a_better_name() -> None:
    cells = pd.DataFrame({"label": ["0", "1"] * 4, "odd": ["1", "0"] * 4})
    assert [label.column for label in label_columns(cells, {"odd"})] == ["odd", "label"]


def test_ids_are_the_names_of_the_images() -> None:
    cells = pd.DataFrame({"id": ["1", "2"], "picture": ["A.JPG", "b.jpg"], "size": ["1.5", "2.5"]})
    assert id_columns(cells, frozenset({"a", "b"}), set())[0] == "picture"
    assert id_columns(cells, frozenset(), set()) == ["id"]


@pytest.mark.parametrize(("name", "words"), [("PatientID", ["patient", "id"]), ("age_approx", ["age", "approx"])])
def test_words_of_names(name: str, words: list[str]) -> None:
    assert name_words(name) == words


def test_a_group_column_with_empty_cells_is_asked_about_and_not_used() -> None:
    train = pd.DataFrame({"patient_id": ["a", "a", "", "b"] * 5, "lesion_id": ["x", "x", "y", "z"] * 5})
    roles = find_roles(train, None, taken=())
    assert roles.columns["group"] == "lesion_id"
    assert any("patient_id" in question for _, question in roles.questions)


def test_a_role_that_test_rows_lack_is_asked_about_and_not_used(tmp_path: Path) -> None:
    frame = write_table(tmp_path, age=50, size=lambda y, rng: rng.normal(size=len(y)))
    test = frame.drop(columns=["target", "age"]).assign(image=lambda f: "t" + f["image"])
    test.to_csv(tmp_path / "test.csv", index=False)
    values = drafted(tmp_path)
    assert "age" not in values["data"]["columns"]
    assert values["data"]["test"] == "test.csv"
    assert "# question (age): 'age' is only in the training table" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["pid", "PID", "patientid", "Patient #", "pat_id", "PtID", "subjectid", "MRN", "lesionid", "Person Nr."]
)
def test_short_and_joined_names_of_patients_are_groups(tmp_path: Path, name: str) -> None:
    frame = write_table(tmp_path).rename(columns={"patient_id": name})
    frame.to_csv(tmp_path / "train.csv", index=False)
    assert drafted(tmp_path)["data"]["columns"]["group"] == name


def test_a_repeated_key_of_another_name_is_asked_about(tmp_path: Path) -> None:
    frame = write_table(tmp_path).rename(columns={"patient_id": "study_code"}).assign(pid=range(120))
    frame.to_csv(tmp_path / "train.csv", index=False)
    assert "group" not in drafted(tmp_path)["data"]["columns"]
    assert "do rows with one value of 'study_code' show one patient?" in " ".join(
        (tmp_path / "config.yaml").read_text().replace("#", "").split()
    )


def test_test_rows_without_groups_get_no_features_of_groups(tmp_path: Path) -> None:
    frame = write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    test = frame.drop(columns=["target", "patient_id"]).assign(image=lambda f: "t" + f["image"])
    test.to_csv(tmp_path / "test.csv", index=False)
    features = drafted(tmp_path)["features"]
    assert not any(features[name] for name in ("aggregates", "neighbours", "relative", "relative_site", "outliers"))


def test_codes_for_missing_values_are_declared(tmp_path: Path) -> None:
    def with_code(code: object, known: Any) -> Any:
        return lambda y, rng: [code if k % 10 == 0 else known(rng) for k in range(len(y))]

    write_table(
        tmp_path, age=with_code(999, lambda rng: rng.integers(20, 80)), sex=with_code("unknown", lambda rng: "male"),
        site=with_code("arm", lambda rng: rng.choice(["leg", "back"])),
        thickness_of_skin=with_code(-999, lambda rng: rng.random()),
        diameter=with_code("unknown", lambda rng: round(rng.random(), 3)),
    )  # fmt: skip
    values = drafted(tmp_path)
    assert values["data"]["missing"] == {
        "age": [999], "sex": ["unknown"], "thickness_of_skin": [-999], "diameter": ["unknown"],
    }  # fmt: skip


def test_numbers_that_only_look_like_codes_stay() -> None:
    temperature = pd.DataFrame({"t": [str(value) for value in [-3, -2, -1, 0, 1, 2] * 10]})
    count = pd.DataFrame({"n": [str(value) for value in [900, 950, 999, 1020] * 10]})
    rare = pd.DataFrame({"r": ["-1", *map(str, range(30))]})
    negative = pd.DataFrame({"s": ["-1"] * 5 + [str(k % 11) for k in range(900)]})
    assert numeric_codes([temperature, count, rare, negative], ["t", "n", "r", "s"]) == {}


def test_codes_of_any_exporter_are_found_among_numbers() -> None:
    depth = pd.DataFrame({"d": ["65535"] * 5 + [str(k / 10) for k in range(40)], "k": ["9"] * 6 + ["0", "1", "2"] * 13})
    assert numeric_codes([depth], ["d", "k"]) == {"d": (65535,), "k": (9,)}


def test_columns_of_the_diagnosis_are_left_out_where_no_test_table_shows_what_is_known(tmp_path: Path) -> None:
    noisy = lambda y, rng: np.round(y + rng.normal(0, 1, len(y)), 3)  # noqa: E731
    write_table(tmp_path, mel_thick_mm=noisy, dx_type=lambda y, rng: rng.choice(["histo", "photo"], len(y)), size=noisy)
    columns = drafted(tmp_path)["data"]["columns"]
    assert columns["numeric"] == ["size"]
    assert columns["categorical"] == []
    assert "mel_thick_mm" in (tmp_path / "config.yaml").read_text()


def test_other_classes_of_a_one_hot_table_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = rng.choice(["MEL", "NV", "BCC"], 300)
    frame = pd.DataFrame({"image": [f"i{k}" for k in range(300)], "size": rng.normal(size=300).round(3)})
    for name in ("MEL", "NV", "BCC"):
        frame[name] = (classes == name).astype(float)
    frame.to_csv(tmp_path / "ground_truth.csv", index=False)
    columns = drafted(tmp_path)["data"]["columns"]
    assert columns["target"] == "MEL"
    assert columns["numeric"] == ["size"]


def test_folds_and_duplicates_of_other_files_are_used(tmp_path: Path) -> None:
    frame = write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    oof = pd.DataFrame({"image": frame["image"], "p": np.linspace(0.1, 0.9, len(frame))})
    oof["fold"] = [int(patient[1:]) % 4 for patient in frame["patient_id"]]
    oof.to_csv(tmp_path / "net_oof.csv", index=False)
    pd.DataFrame({"a": ["i0", "i8"], "b": ["i1", "i9"]}).to_csv(tmp_path / "pairs.csv", index=False)
    values = drafted(tmp_path)
    assert values["folds"] == {"k": 4, "file": "net_oof.csv"}
    assert values["data"]["duplicates"] == "pairs.csv"
    oof["fold"] = range(len(oof))  # splits patients: not taken, and new folds are made
    oof["fold"] %= 4
    oof.to_csv(tmp_path / "net_oof.csv", index=False)
    assert drafted(tmp_path)["folds"] == {"k": 5, "seed": 0}


def test_few_positives_get_a_number_of_folds_that_works(tmp_path: Path) -> None:
    frame = write_table(tmp_path, n=60, size=lambda y, rng: rng.normal(size=len(y)))
    frame["target"] = 0
    frame.loc[[0, 10, 20], "target"] = 1
    frame.to_csv(tmp_path / "train.csv", index=False)
    assert drafted(tmp_path)["folds"]["k"] < 5


def test_images_are_found_in_folders_of_another_case_and_with_suffixes_in_the_ids(tmp_path: Path) -> None:
    write_clinic(tmp_path, n=90)
    values = drafted(tmp_path)
    data = values["data"]
    assert data["images"] == "pictures"
    assert data["similar_names"] is True
    assert data["train"] == "labelled.parquet"
    assert data["sample_submission"] == "submission_format.csv"
    assert data["columns"]["target"] == {"column": "dx", "positive": "mel"}
    assert data["missing"] == {"patient_age": [-1], "size_mm": ["unknown"], "Gender": ["unknown"]}
    assert "dx_type" not in str(data["columns"])
    assert values["image_models"][0]["pretrained"] is False


@pytest.mark.parametrize("start", [".", "./", "train.csv", "../here", ""], ids=repr)
def test_sub_folders_of_images_are_found_from_wherever_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    (tmp_path / "here").mkdir()
    write_png_folders(tmp_path / "here" / "pictures", n=60, n_test=20)
    for name in ("train.csv", "test.csv"):
        shutil.move(tmp_path / "here" / "pictures" / name, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    made = draft_config(Path(start), Path("config.yaml"))
    assert yaml.safe_load(made.text)["data"]["images"] == "pictures"
    assert not [question for question in made.questions if "images" in question]


def test_copies_and_masks_beside_the_images_do_not_disturb(tmp_path: Path) -> None:
    write_png_folders(tmp_path / "png", n=40, n_test=0)
    shutil.copytree(tmp_path / "png" / "batch_0", tmp_path / "masks")
    shutil.move(tmp_path / "png" / "train.csv", tmp_path / "train.csv")
    assert drafted(tmp_path)["data"]["images"] == "png"


def test_rows_without_images_make_a_model_of_the_table_alone(tmp_path: Path) -> None:
    write_png_folders(tmp_path, n=60, n_test=0)
    (tmp_path / "batch_1" / "case0001.png").unlink()
    values = drafted(tmp_path)
    assert "images" not in values["data"]
    assert all(stacker["runs"] == [] for stacker in values["stackers"])
    assert "59 of 60 training rows" in (tmp_path / "config.yaml").read_text()


def test_a_named_table_with_images_keeps_them_where_the_test_rows_have_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = write_table(tmp_path, n=40, size=lambda y, r: r.normal(size=len(y)), age=lambda y, r: 20 + y)
    for name, y in zip(frame["image"], frame["target"], strict=True):
        write_image(tmp_path / "jpeg" / f"{name}.png", rng, positive=bool(y), side=32)
    test = frame.drop(columns=["target", "age"]).assign(image=lambda f: "t" + f["image"])
    test.to_csv(tmp_path / "test.csv", index=False)
    assert "images" not in drafted(tmp_path)["data"]
    assert "'age' is only in the training table" in (tmp_path / "config.yaml").read_text()
    data = drafted(tmp_path / "train.csv", tmp_path)["data"]
    assert data["images"] == "jpeg"
    assert "test" not in data
    assert data["columns"]["age"] == "age"
    assert "'age' is only in the training table" not in (tmp_path / "config.yaml").read_text()


def test_own_choices_go_before_guesses(tmp_path: Path) -> None:
    frame = write_table(tmp_path / "data", other=lambda y, rng: rng.integers(0, 2, len(y)), size=1.5)
    test = frame.drop(columns=["target", "other"]).assign(image=lambda f: "t" + f["image"])
    test.to_csv(tmp_path / "rows.csv", index=False)
    data = drafted(tmp_path / "data", tmp_path, test=tmp_path / "rows.csv", target="other")["data"]
    assert data["test"] == "rows.csv"
    assert data["columns"]["target"] == "other"
    assert data["train"] == "data/train.csv"


@pytest.mark.parametrize("place", ["empty", "none"])
def test_named_images_that_are_not_there_are_refused(tmp_path: Path, place: str) -> None:
    write_table(tmp_path / "data", size=1.5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"--images .*{place}: (no image|0 of 120)[^;]*: name another folder"):
        draft_config(tmp_path / "data", tmp_path / "c.yaml", images=tmp_path / place)


def test_a_folder_without_labels_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no csv or parquet"):
        draft_config(tmp_path, tmp_path / "c.yaml")
    pd.DataFrame({"image": ["a", "b"], "size": [1.5, 2.5]}).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match=r"column of targets.*--target"):
        draft_config(tmp_path, tmp_path / "c.yaml")


def test_names_of_any_kind_are_quoted_so_that_they_read_back() -> None:
    values = {"data": {"columns": {"id": "a: b", "target": {"column": "#x", "positive": ["no", "1"]}}}}
    draft = Draft("0123", values, {}, (("data.columns.id", "line\nbreak: {"),))
    assert yaml.safe_load(draft_text(draft, "t")) == {"experiment": "0123", **values}


def test_a_config_is_never_overwritten_without_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    out = tmp_path / "c.yaml"
    out.write_text("mine", encoding="utf-8")
    assert run_cli("init", str(tmp_path), "--out", str(out)) == 2
    assert out.read_text(encoding="utf-8") == "mine"
    assert "--replace" in capsys.readouterr().err
    assert run_cli("init", str(tmp_path), "--out", str(out), "--replace") == 0
    printed = capsys.readouterr().out
    assert f"next: dermstack stack --config {out}" in printed
    assert yaml.safe_load(out.read_text(encoding="utf-8"))["data"]["train"] == "train.csv"


def test_what_must_be_corrected_in_the_data_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    frame["target"] = frame["target"].astype(str)
    frame.loc[3, "target"] = ""
    frame.to_csv(tmp_path / "train.csv", index=False)
    assert run_cli("init", str(tmp_path), "--out", str(tmp_path / "c.yaml")) == 2
    assert "row 5" in capsys.readouterr().err
    assert (tmp_path / "c.yaml").exists()


def test_numeric_features_of_groups_need_groups_of_test_rows(tmp_path: Path) -> None:
    frame = write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    test = frame.drop(columns=["target", "patient_id"]).assign(image=lambda f: "t" + f["image"])
    test.to_csv(tmp_path / "test.csv", index=False)
    drafted(tmp_path)
    config = tmp_path / "config.yaml"
    for override in ("features.relative=[z]", "features.outliers=true", "features.probability_ratio=true"):
        with pytest.raises(DataError, match=override.partition("=")[0]):
            open_experiment(read_config(config, (override,)), config, Out(quiet=True))


@pytest.mark.parametrize(
    ("names", "words", "positive"),
    [
        (("Image file", "Patient ID", "Is it malignant?", "Age (years)", "Sex", "Body part"), (1, 0), None),
        (("IMAGE", "PATIENT", "BENIGN OR MALIGNANT", "AGE AT DIAGNOSIS", "GENDER", "BODY SITE"), ("MAL", "BENIGN"), 0),
        (("Bild", "Patientennummer", "Diagnose", "Alter", "Geschlecht", "Körperstelle"), ("bösartig", "gutartig"), 0),
        (("Nom du fichier", "Numéro patient", "Diagnostic", "Âge", "Sexe", "Localisation"), ("maligne", "bénin"), 0),
        (("imagen", "paciente", "diagnóstico", "edad", "sexo", "localización"), ("maligno", "benigno"), 0),
        (("imagem", "código do paciente", "é maligno", "idade", "gênero", "localização"), ("sim", "não"), 0),
        (("file", "pat", "Krebs?", "alter_jahre", "SEX", "Region"), ("ja", "nein"), 0),
    ],
)  # fmt: skip
def test_headers_of_other_languages_and_questions_are_understood(
    tmp_path: Path, names: tuple[str, ...], words: tuple[Any, Any], positive: int | None
) -> None:
    rng = np.random.default_rng(0)
    n = 120
    y = rng.random(n) < 0.6  # so that the positive class is not the rarer one
    cells = [
        [f"i{k}" for k in range(n)], [f"P{k // 2}" for k in range(n)], np.where(y, *map(str, words)),
        rng.integers(20, 90, n), rng.choice(["m", "w"], n), rng.choice(["a", "b", "c"], n),
    ]  # fmt: skip
    frame = pd.DataFrame(dict(zip(names, cells, strict=True)))
    frame.iloc[:90].to_csv(tmp_path / "Trainingsdaten.csv", index=False)
    frame.iloc[90:].drop(columns=names[2]).to_csv(tmp_path / "Testdaten.csv", index=False)
    data = drafted(tmp_path)["data"]
    found = {role: name for role, name in data["columns"].items() if role not in ("target", "numeric", "categorical")}
    assert found == dict(zip(("id", "group", "age", "sex", "site"), (*names[:2], *names[3:]), strict=True))
    target = names[2] if positive is None else {"column": names[2], "positive": words[positive]}
    assert data["columns"]["target"] == target
    assert data["train"] == "Trainingsdaten.csv"


def test_a_usual_name_of_targets_goes_before_a_phrase_and_a_phrase_is_asked_about() -> None:
    cells = pd.DataFrame({"is it melanoma": ["0", "1"] * 4, "family history of melanoma": ["0", "1"] * 4})
    (label,) = label_columns(cells, set())
    assert label.column == "is it melanoma"
    assert label.question == "is 'is it melanoma' the column of the targets?"
    assert label_columns(cells.assign(y=["1", "0"] * 4), set())[0].column == "y"
    assert not label_columns(cells, {"other"}, only=True)


@pytest.mark.parametrize("name", ["copy of train.csv", "train (1).csv", "train - Kopie.csv"])
def test_a_copy_comes_after_the_file_itself(tmp_path: Path, name: str) -> None:
    frame = write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    test = frame.drop(columns="target").assign(image=lambda f: "t" + f["image"])
    test.to_csv(tmp_path / "test.csv", index=False)
    test.to_csv(tmp_path / name.replace("train", "test"), index=False)
    frame.assign(old=1).to_csv(tmp_path / name, index=False)
    data = drafted(tmp_path)["data"]
    assert (data["train"], data["test"]) == ("train.csv", "test.csv")


def test_images_in_an_archive_are_asked_about(tmp_path: Path) -> None:
    write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04")
    made = draft_config(tmp_path, tmp_path / "config.yaml")
    assert any("are the images in images.zip? Unpack it" in question for question in made.questions)


def test_without_a_table_the_files_that_may_be_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.xlsx").write_bytes(b"PK\x03\x04...")
    (tmp_path / "test.tsv").write_text("id\ty\na\t1\n")
    (tmp_path / "train.csv").write_text("id;y;size\na;1;0,5\n")
    with pytest.raises(DataError) as caught:
        draft_config(tmp_path, tmp_path / "c.yaml")
    for words in ("train.xlsx is an Excel file", "separated by tabs", "train.csv: its header is one column"):
        assert words in str(caught.value)
    assert "write a table with one row" not in str(caught.value)


def test_folders_of_classes_are_named_where_there_is_no_table(tmp_path: Path) -> None:
    for name in ("benign", "malignant"):
        write_image(tmp_path / name / f"{name}.png", np.random.default_rng(0), positive=True)
    with pytest.raises(DataError, match=r"folders benign \(1\), malignant \(1\): if their names are the classes"):
        draft_config(tmp_path, tmp_path / "c.yaml")


def test_one_question_is_one_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = write_table(tmp_path, size=lambda y, rng: rng.normal(size=len(y)))
    frame.drop(columns="patient_id").to_csv(tmp_path / "train.csv", index=False)
    assert run_cli("init", str(tmp_path), "--out", str(tmp_path / "c.yaml")) == 0
    assert "with 1 question in its comments" in capsys.readouterr().out


def test_ids_with_several_images_are_asked_about(tmp_path: Path) -> None:
    write_png_folders(tmp_path, n=40, n_test=0)
    shutil.copy(tmp_path / "batch_1" / "case0001.png", tmp_path / "batch_2" / "case0001.png")
    values = drafted(tmp_path)
    assert "images" not in values["data"]
    assert "# question (images): some ids have several images" in (tmp_path / "config.yaml").read_text()
    (tmp_path / "batch_2" / "case0001.png").unlink()
    for batch in range(4):
        shutil.copytree(tmp_path / f"batch_{batch}", tmp_path / "other" / f"batch_{batch}")
        shutil.move(tmp_path / f"batch_{batch}", tmp_path / "first" / f"batch_{batch}")
    assert drafted(tmp_path)["data"]["images"] == "first"  # two whole copies: one is taken, the other named
    assert f"{tmp_path / 'other'} holds an image of each id too" in (tmp_path / "config.yaml").read_text().replace(
        "\n    # ", " "
    ).replace("\n  # ", " ")
