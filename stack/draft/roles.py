"""Guesses the role of each csv column by its name and values: id, label, group, age, sex, site and others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from dermstack.listing import first_of
from stack.tables.checks import SENTINELS
from stack.tables.column_names import (
    KEYS,
    LESIONS,
    PATIENTS,
    is_short_for_patients,
    name_words,
    names_keys_of,
    plain_letters,
    snake,
)
from stack.tables.keys import MISSING_KEYS
from stack.tables.missing_codes import MAX_AGE

_ID_NAMES = (
    "isic_id", "image_name", "image_id", "img_id", "image", "img", "image_file", "filename", "file_name", "file",
    "img_name", "id", "name", "uid", "lesion_image", "sample_id", "record_id", "index",
)  # fmt: skip
_LABEL_NAMES = (
    "target", "label", "malignant", "is_malignant", "malignancy", "melanoma", "is_melanoma", "benign_malignant", "mel",
    "class", "outcome", "y", "ground_truth", "gt", "dx", "diagnosis", "diagnostic", "category",
)  # fmt: skip
# Words of a header such as `Is it malignant?` that may name the targets, and words with which it says another thing.
_LABEL_WORDS = frozenset({
    "target", "label", "malignant", "malignancy", "melanoma", "cancer", "outcome", "dx", "diagnosis", "diagnostic",
    "diagnose", "bosartig", "boesartig", "krebs", "maligne", "malin", "diagnostico", "maligno", "maligna", "melanom",
    "melanome", "diagnosi",
})  # fmt: skip
_OTHER_WORDS = frozenset({
    "history", "family", "personal", "previous", "prior", "age", "date", "year", "time", "day", "days", "size", "count",
    "number", "id", "confidence", "method", "confirmed", "confirm", "type", "weight", "risk", "suspected", "alter",
    "familie", "edad", "idade", "data", "fecha", "datum",
})  # fmt: skip
_MANY_CLASSES = frozenset({
    "dx", "diagnosis", "diagnostic", "label", "class", "category", "target", "diagnose", "diagnostico", "diagnosi",
})  # fmt: skip
_SEX = ("sex", "gender", "geschlecht", "sexe", "sexo", "sesso", "genero")
_AGE = frozenset({"age", "alter", "edad", "idade", "eta"})
_SITE = (
    "anatom", "anatomical", "localization", "localisation", "site", "location", "region", "position", "lokalisation",
    "lokalisierung", "korperstelle", "koerperstelle", "localizacion", "localizacao", "localizzazione", "body",
)  # fmt: skip
_MAX_CLASSES = 50  # different words of a column of diagnoses
_POSITIVE = frozenset({
    "malignant", "malign", "melanoma", "mel", "positive", "pos", "cancer", "cancerous", "carcinoma", "case", "diseased",
    "disease", "abnormal", "event", "mm", "m", "bosartig", "boesartig", "krebs", "krank", "melanom", "maligne", "malin",
    "melanome", "maligno", "maligna", "positiv", "positif", "positivo", "ja", "oui", "si", "sim", "yes", "true",
})  # fmt: skip
_NEGATIVE = frozenset({
    "benign", "negative", "neg", "normal", "healthy", "control", "nevus", "nv", "non-malignant", "non_malignant",
    "nonmalignant", "not malignant", "no event", "other", "b", "gutartig", "gesund", "benin", "benigne", "benigno",
    "benigna", "negativ", "negatif", "negativo", "nein", "non", "no", "nao", "false",
})  # fmt: skip
_IS_MALIGNANT = re.compile(r"(?<!non[-_ ])(?<!not )(?<!no )(?<!pre[-_ ])\b(malignan|melanom(a|e)?\b)")
_BOOLEANS = ({"0", "1"}, {"true", "false"}, {"yes", "no"}, {"0.0", "1.0"})
_FOLD_NAMES = ("fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id")
_SPLIT_TRAIN = frozenset({"train", "training", "trn"})
_SPLIT_REST = frozenset({"test", "testing", "val", "valid", "validation", "dev", "holdout", "hold-out"})
_AGE_UNKNOWN = 5  # different values outside 0 to 120 that are taken as codes of a column of ages
# Words in the names of columns that come from the diagnosis, which rows to predict do not have.
_FROM_DIAGNOSIS = re.compile(
    r"(^|_)(dx|iddx|diagnos\w*|patholog\w*|histo\w*|breslow|clark|mitotic|mitoses|ulcerat\w*|thick\w*|stage|staging|"
    r"metasta\w*|biops\w*|excis\w*|confirm\w*|malign\w*|benign|mel|melanoma|melanocytic|label|target|outcome|class|"
    r"follow|followup|surviv\w*|death|treatment|prediction|pred|prob|confidence)(_|$)"
)


class Label(NamedTuple):
    """The column of the targets, the values that count as 1 (() for 0/1 and booleans), and what is not certain."""

    column: str
    positive: tuple[str, ...] = ()
    question: str = ""
    is_phrase: bool = False  # its name is none of the usual ones, but holds a word such as malignant


NO_GROUP = (
    "no column of patients or lesions was found, so each row is its own group. If several rows show one patient, name "
    "that column as `group`: otherwise every score is too good"
)


@dataclass(frozen=True)
class Roles:
    """The csv column of each role beside id and target, and what was decided beside them."""

    columns: Mapping[str, str]  # csv name by role
    missing: Mapping[str, tuple[str | float, ...]]  # codes, by csv name
    questions: tuple[tuple[str, str], ...]  # (key of the config, question)


def known(values: pd.Series) -> pd.Series:
    """Returns the stripped values that are neither empty nor a word such as `NA`."""
    text = values.str.strip()
    return text[~text.str.lower().isin(MISSING_KEYS)]


def id_columns(cells: pd.DataFrame, stems: frozenset[str], hints: set[str]) -> list[str]:
    """Returns the columns that can hold the ids of images, the most likely one first.

    ``stems`` are names of image files, without suffix and in lower case; ``hints`` are id columns of other tables.
    An id is another text or whole number in each row.
    """
    rated = []
    for position, name in enumerate(map(str, cells.columns)):
        values = cells.iloc[:, position]
        if (values.str.strip() == "").any() or not values.is_unique:
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        is_number = bool(numbers.notna().all())
        if is_number and not np.equal(np.mod(numbers, 1), 0).all():
            continue  # a measurement
        forms = values.str.lower().str.replace(r"\.(jpe?g|png|dcm|dicom|bmp|tiff?|webp)$", "", regex=True)
        share = float(forms.isin(stems).mean()) if stems else 0.0
        in_names = snake(name) in _ID_NAMES or name_words(name)[-1:] == ["id"]
        rank = (len(_ID_NAMES) - _ID_NAMES.index(snake(name))) / len(_ID_NAMES) if snake(name) in _ID_NAMES else 0.0
        if share > 0 or name in hints or in_names or (not is_number and position == 0):
            rated.append((round(share, 2), name in hints, rank, -position, name))
    return [name for *_, name in sorted(rated, reverse=True)]


def label_columns(cells: pd.DataFrame, hints: set[str], *, only: bool = False) -> list[Label]:
    """Returns the columns that can hold the targets, the most likely one first; ``hints`` are names in other tables.

    With ``only`` no column but these is considered. A column whose name only holds a word of a usual name, such as
    `Is it malignant?`, comes after all others, with the question whether it is the right one.
    """
    rated = []
    for position, name in enumerate(map(str, cells.columns)):
        form, words = snake(name), set(name_words(name))
        is_phrase = name not in hints and form not in _LABEL_NAMES
        if is_phrase and (only or not words & _LABEL_WORDS or words & _OTHER_WORDS):
            continue
        may_have_many = bool(words & _MANY_CLASSES) or name in hints
        label, kind = _as_label(name, cells.iloc[:, position], may_have_many=may_have_many)
        if label is not None:
            rank = _LABEL_NAMES.index(form) if form in _LABEL_NAMES else len(_LABEL_NAMES) + len(words)
            rated.append(((name not in hints, is_phrase, kind, rank), label._replace(is_phrase=is_phrase)))
    found = [label for _, label in sorted(rated, key=lambda one: one[0])]
    if found and found[0].is_phrase:
        others = "".join(f" or {label.column!r}" for label in found[1:4])
        asked = f"is {found[0].column!r}{others} the column of the targets?"
        found[0] = found[0]._replace(question=f"{asked} {found[0].question}".strip())
    return found


def _as_label(name: str, values: pd.Series, *, may_have_many: bool) -> tuple[Label | None, int]:
    """Returns the label that a column holds, and how far from 0 and 1 it is; None where it holds none."""
    words = known(values).str.lower()
    counts = words.value_counts()
    found = set(counts.index)
    if len(found) < 2:
        return None, 0
    numbers = pd.to_numeric(pd.Series(sorted(found)), errors="coerce")
    if found in _BOOLEANS or (numbers.notna().all() and set(numbers) == {0.0, 1.0}):
        return Label(name), 0
    if len(found) == 2:
        if numbers.notna().all():
            high = f"{numbers.max():g}"
            return Label(name, (high,), f"is {high} the positive value of {name!r} ({_shares(counts)})?"), 1
        certain = [
            word for word in found
            if plain_letters(word) in _POSITIVE or {plain_letters(one) for one in found - {word}} & _NEGATIVE
        ]  # fmt: skip
        positive = certain[0] if len(certain) == 1 else str(counts.index[-1])
        written = _as_written(values, [positive])
        why = "" if len(certain) == 1 else ", the rarer one,"
        question = f"is {written[0]!r}{why} the positive class of {name!r} ({_shares(counts)})?"
        return Label(name, written, question), 1
    if not may_have_many or len(found) > _MAX_CLASSES or numbers.notna().all():
        return None, 0
    plain = {word: plain_letters(word) for word in counts.index}
    hits = [word for word in counts.index if plain[word] in _POSITIVE or _IS_MALIGNANT.search(plain[word])]
    if not hits:
        return None, 0
    written = _as_written(values, hits)
    return Label(name, written, f"which classes of {name!r} are positive? It holds {_shares(counts)}"), 2


def _shares(counts: pd.Series) -> str:
    listed = [f"{word} {int(rows):,}" for word, rows in counts.items()]
    return first_of(listed, 12)


def _as_written(values: pd.Series, lower: Sequence[str]) -> tuple[str, ...]:
    """Returns the most frequent spelling of each word."""
    text = known(values)
    return tuple(str(text[text.str.lower() == word].value_counts().index[0]) for word in lower)


def is_split(name: str, values: pd.Series) -> bool:
    """Whether a column says which rows are for training and which for a test or validation, or is one of folds."""
    if snake(name) in _FOLD_NAMES:
        return True
    words = set(known(values).str.lower())
    return len(words) <= 5 and bool(words & _SPLIT_TRAIN) and bool(words & _SPLIT_REST)


def comes_from_diagnosis(name: str) -> bool:
    """Whether a column's name says that it comes from the diagnosis or from what followed it."""
    return bool(_FROM_DIAGNOSIS.search(snake(name)))


def find_roles(train: pd.DataFrame, test: pd.DataFrame | None, *, taken: Sequence[str]) -> Roles:
    """Guesses the roles of the columns that are not ``taken`` as id or target.

    A role that rows to predict need is given only to a column that the ``test`` table has too.
    """
    columns: dict[str, str] = {}
    missing: dict[str, tuple[str | float, ...]] = {}
    questions: list[tuple[str, str]] = []
    counts = pd.Series(list(map(str, train.columns))).value_counts()
    free = [name for name in map(str, train.columns) if name not in taken and counts[name] == 1]
    shared = [name for name in free if test is None or name in test]

    def take(role: str, name: str | None) -> None:
        if name is not None and name not in columns.values():
            columns[role] = name

    take("group", _group(train, test, free, questions))
    age, codes = _age(train, test, shared, questions)
    take("age", age)
    if age is not None and codes:
        missing[age] = codes
        questions.append(("data.missing", f"{age} holds {_listed(codes)}, taken as codes for a missing value; right?"))
    left = [name for name in shared if name not in columns.values()]
    take("sex", _by_words(train, left, _SEX, most=8))
    left = [name for name in left if name not in columns.values()]
    take("site", _by_words(train, left, _SITE, most=200))
    for role, names in (("age", _AGE), ("sex", _SEX), ("site", ("site", "localization", "anatom"))):
        only = [name for name in free if name not in shared and set(name_words(name)) & set(names)]
        if role not in columns and only:
            questions.append((f"data.columns.{role}", f"{only[0]!r} is only in the training table, so it is not used"))
    take("diagnosis", next((
        name for name in free
        if (test is None or name not in test) and name not in columns.values()
        and snake(name) in ("diagnosis", "dx", "diagnostic", "iddx_full", "diagnosis_full", "histology")
        and 2 < known(train[name]).nunique() <= 1000 and pd.to_numeric(known(train[name]), errors="coerce").isna().all()
    ), None))  # fmt: skip
    take("source", next((
        name for name in free
        if snake(name) in ("source", "attribution", "dataset", "hospital", "center", "centre", "clinic", "institution",
                           "archive", "image_source", "camera") and 1 < known(train[name]).nunique() <= 100
        and name not in columns.values()
    ), None))  # fmt: skip
    for role in ("width", "height"):
        names = (role, f"image_{role}", f"pixels_{'x' if role == 'width' else 'y'}")
        candidate = next((name for name in shared if snake(name) in names and name not in columns.values()), None)
        if candidate is not None and all(
            (pd.to_numeric(known(table[candidate]), errors="coerce") > 0).all() for table in _tables(train, test)
        ):
            take(role, candidate)
    take("fold", _fold(train, free, columns, questions))
    return Roles(columns, missing, tuple(questions))


def _tables(train: pd.DataFrame, test: pd.DataFrame | None) -> list[pd.DataFrame]:
    return [train] if test is None else [train, test]


def _group(
    train: pd.DataFrame, test: pd.DataFrame | None, free: Sequence[str], questions: list[tuple[str, str]]
) -> str | None:
    """Returns the column of patients, or else of lesions."""
    for words in (PATIENTS, LESIONS, ("group", "case")):
        for name in free:
            is_short = words == PATIENTS and is_short_for_patients(name) and train[name].nunique() < len(train)
            if not (names_keys_of(name, words) or is_short):
                continue
            values = train[name].str.strip()
            empty = int(values.str.lower().isin(SENTINELS).sum())
            in_test = 0
            if test is not None and name in test:
                in_test = int(test[name].str.strip().str.lower().isin(MISSING_KEYS).sum())
            if empty > 0.01 * len(train) or values.str.lower().isin(MISSING_KEYS).any() or in_test:
                questions.append(
                    (
                        "data.columns.group",
                        f"{name!r} has no value in {max(empty, in_test):,} rows, so it is no group; fill them in?",
                    )
                )
                continue
            if values.nunique() < len(values) or words[0] != "group":
                if words[0] == "group":
                    questions.append(("data.columns.group", f"are the rows of one {name!r} of one patient?"))
                return name
    keys = {name: known(train[name]) for name in free if KEYS & set(name_words(name))}
    asked = [name for name, values in keys.items() if len(train) / 20 <= values.nunique() < len(values)]
    questions.append(("data.columns.group", NO_GROUP))
    if asked:
        questions.append(
            ("data.columns.group", f"do rows with one value of {' or '.join(map(repr, asked[:3]))} show one patient?")
        )
    return None


def _age(
    train: pd.DataFrame, test: pd.DataFrame | None, shared: Sequence[str], questions: list[tuple[str, str]]
) -> tuple[str | None, tuple[str | float, ...]]:
    """Returns the column of ages in years, and its values that are none: words, and numbers outside 0 to 120."""
    for name in sorted((n for n in shared if _AGE & set(name_words(n))), key=lambda n: len(name_words(n))):
        values = pd.concat([known(table[name]) for table in _tables(train, test)])
        numbers = pd.to_numeric(values, errors="coerce")
        good = numbers.between(0, MAX_AGE)
        odd = values[~good]
        codes = list(dict.fromkeys(odd))
        if len(values) and good.mean() >= 0.5 and len(codes) <= _AGE_UNKNOWN:
            return name, tuple(map(number_or_word, codes))
        questions.append(
            (
                "data.columns.age",
                f"{name!r} is not used as age: {len(codes)} of its values are no number of years from 0 to {MAX_AGE}, "
                f"such as {codes[0] if codes else 'an empty cell'!r}",
            )
        )
    return None, ()


def number_or_word(code: str) -> str | float:
    """Returns a code as a number where it is one."""
    try:
        number = float(code)
    except ValueError:
        return code
    return int(number) if number == int(number) else number


def _by_words(train: pd.DataFrame, names: Sequence[str], words: Sequence[str], *, most: int) -> str | None:
    """Returns the column with one of ``words`` in its name that holds 2 to ``most`` different words."""
    for word in words:
        for name in names:
            if word in name_words(name):
                values = known(train[name])
                text = pd.to_numeric(values, errors="coerce").isna().mean() if len(values) else 0.0
                if 2 <= values.nunique() <= most and (text > 0.5 or words is _SEX):
                    return name
    return None


def _fold(
    train: pd.DataFrame, free: Sequence[str], columns: Mapping[str, str], questions: list[tuple[str, str]]
) -> str | None:
    for name in free:
        if snake(name) not in _FOLD_NAMES:
            continue
        values = pd.to_numeric(train[name], errors="coerce")
        if values.isna().any() or (values < 0).any() or not 2 <= values.nunique() <= 20:
            questions.append(("data.columns.fold", f"{name!r} is not used: it is empty or negative in some rows"))
            continue
        if (group := columns.get("group")) and (values.groupby(train[group]).nunique() > 1).any():
            questions.append(("data.columns.fold", f"{name!r} is not used: rows of one {group!r} are in several folds"))
            continue
        return name
    return None


def _listed(codes: Sequence[str | float]) -> str:
    return ", ".join(map(str, codes))
