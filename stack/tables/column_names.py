"""Reads from the name of a column which keys it holds, such as those of patients."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

# Words of names in English, then German, French, Spanish, Portuguese and Italian, without accents.
PATIENTS = (
    "patient", "subject", "person", "participant", "individual", "patienten", "patientin", "proband", "paciente",
    "paziente",
)  # fmt: skip
LESIONS = ("lesion", "laesion", "lasion", "lesao", "lesione")
# Words for a key, of what the other words of a name say.
KEYS = frozenset({
    "id", "name", "number", "nr", "no", "code", "key", "nummer", "numero", "num", "codigo", "codice", "kennung",
})  # fmt: skip
_SHORT_PATIENTS = frozenset({"pat", "pid", "patid", "patno", "patnr", "ptid", "ptno", "subjid", "subid", "mrn"})


def plain_letters(text: str) -> str:
    """Returns a text with letters without accents: `Âge` is Age, `Größe` is Grosse."""
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(sign for sign in parts if not unicodedata.combining(sign))


def name_words(name: str) -> list[str]:
    """Returns the words of a column's or file's name in lower case: `PatientID` and `patient_id` are patient, id.

    Letters are without accents (`plain_letters`).
    """
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain_letters(name))
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


def snake(name: str) -> str:
    """Returns a name in lower case with its words joined by `_`."""
    return "_".join(name_words(name))


def names_keys_of(name: str, words: Collection[str]) -> bool:
    """Returns whether a name is one of ``words``, alone or with a word for a key: patient, patient_id, patientid."""
    parts = name_words(name)
    if set(parts) & set(words) and (len(parts) == 1 or KEYS & set(parts)):
        return True
    return "".join(parts) in {word + key for word in words for key in KEYS}


def is_short_for_patients(name: str) -> bool:
    """Returns whether a column's name is a usual abbreviation of a patient's number, such as pid or MRN."""
    return "".join(name_words(name)) in _SHORT_PATIENTS
