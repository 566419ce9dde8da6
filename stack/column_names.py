"""Reads from the name of a column which keys it holds, such as those of patients."""

from __future__ import annotations

import re
from collections.abc import Collection

PATIENTS = ("patient", "subject", "person", "participant", "individual")
LESIONS = ("lesion",)
KEYS = frozenset({"id", "name", "number", "nr", "no", "code", "key"})  # of what the other words of a name say
_SHORT_PATIENTS = frozenset({"pid", "patid", "patno", "patnr", "ptid", "ptno", "subjid", "subid", "mrn"})


def name_words(name: str) -> list[str]:
    """Returns the words of a column's or file's name in lower case: `PatientID` and `patient_id` are patient, id."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
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
