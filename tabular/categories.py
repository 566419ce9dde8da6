"""Codes categorical columns of many words as integers, fitted on the training rows of a fold, for GBDTs.

LightGBM, XGBoost and CatBoost split such columns by sets of words (or, in CatBoost, by statistics that are computed in
an order of rows), so that rare words are not lost, as they are where only frequent words have an indicator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dermstack.errors import TabularError


class CategoryCodes(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """Encoder that numbers the words of each column with more than ``more_than`` different words in the fitted rows.

    The most frequent word is 0, and words of equal frequency are in the order of the alphabet. A word that no fitted
    row has is missing (NaN), as an empty cell is. Fitted: `words_`, {column: its words in the order of their codes}.

    >>> train = pd.DataFrame({"camera": ["B", "A", "B", None], "sex": ["male", "female", None, None]})
    >>> codes = CategoryCodes(["camera", "sex"], more_than=1).fit(train)
    >>> codes.transform(pd.DataFrame({"camera": ["A", "B", "C"], "sex": ["male", None, "female"]}))["camera"].tolist()
    [1.0, 0.0, nan]
    """

    def __init__(self, columns: Sequence[str] = (), *, more_than: int = 20) -> None:
        self.columns = columns
        self.more_than = more_than

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learns the words of these rows; targets are not used."""
        self.words_: dict[str, list[str]] = {}
        for column in self.columns:
            counts = frame[column].dropna().astype("str").value_counts()
            if len(counts) > self.more_than:
                self.words_[column] = sorted(counts.index, key=lambda word: (-counts[word], word))
        return self

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns (n, len(words_)) float32 with the index of ``frame``, NaN for missing and unknown words."""
        check_is_fitted(self, "words_")
        made = {}
        for column, words in self.words_.items():
            if column not in frame:
                raise TabularError(f"column {column!r} is absent: add it, with NaN where the value is not known")
            found = pd.Index(words, dtype="str").get_indexer(pd.Index(frame[column].astype("str")))
            made[column] = np.where(found >= 0, found, np.nan).astype(np.float32)
        return pd.DataFrame(made, index=frame.index)

    def to_json(self) -> str:
        """Returns the fitted words as JSON, for `from_json`."""
        check_is_fitted(self, "words_")
        return json.dumps({"words": self.words_}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the encoder stored by `to_json`; raises TabularError for any other text."""
        try:
            words = {
                str(column): [str(word) for word in listed] for column, listed in json.loads(text)["words"].items()
            }
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise TabularError(
                f"not codes of categories: {text[:60]!r} ({error}): train the model again, which writes them"
            ) from error
        made = cls(list(words))
        made.words_ = words
        return made
