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
from tabular.encode import check_words


class CategoryCodes(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """Encoder that numbers the words of each column with more than ``more_than`` different words in the fitted rows.

    The most frequent word is 0, and words of equal frequency are in the order of the alphabet. Words of fewer than
    ``min_rows`` fitted rows share the code after these. A word that no fitted row has gets that code too; where no word
    is so rare, it is missing (NaN), as an empty cell is. Fitted: `words_`, {column: its words in the order of their
    codes}, and `others_`, the columns in which words share a code.

    >>> train = pd.DataFrame({"camera": ["B", "A", "B", None], "sex": ["male", "female", None, None]})
    >>> codes = CategoryCodes(["camera", "sex"], more_than=1).fit(train)
    >>> codes.transform(pd.DataFrame({"camera": ["A", "B", "C"], "sex": ["male", None, "female"]}))["camera"].tolist()
    [1.0, 0.0, nan]
    """

    def __init__(self, columns: Sequence[str] = (), *, more_than: int = 20, min_rows: int = 1) -> None:
        self.columns = columns
        self.more_than = more_than
        self.min_rows = min_rows

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learns the words of these rows; targets are not used."""
        self.words_: dict[str, list[str]] = {}
        self.others_: list[str] = []
        for column in self.columns:
            counts = frame[column].dropna().astype("str").value_counts()
            if len(counts) > self.more_than:
                kept = counts[counts >= self.min_rows]
                self.words_[column] = sorted(kept.index, key=lambda word: (-kept[word], word))
                if len(kept) < len(counts):
                    self.others_.append(column)
        return self

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns (n, len(words_)) float32 with the index of ``frame``, NaN for empty cells (and unknown words)."""
        check_is_fitted(self, "words_")
        made = {}
        for column, words in self.words_.items():
            if column not in frame:
                raise TabularError(f"column {column!r} is absent: add it, with NaN where the value is not known")
            found = pd.Index(words, dtype="str").get_indexer(pd.Index(frame[column].astype("str")))
            other = np.where(frame[column].isna(), np.nan, len(words)) if column in self.others_ else np.nan
            made[column] = np.where(found >= 0, found, other).astype(np.float32)
        return pd.DataFrame(made, index=frame.index)

    def to_json(self) -> str:
        """Returns the fitted words as JSON, for `from_json`."""
        check_is_fitted(self, "words_")
        others = {"others": self.others_} if self.others_ else {}
        return json.dumps({"words": self.words_, **others}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the encoder stored by `to_json`; raises TabularError for any other text."""
        try:
            state = json.loads(text)
            words = {str(column): [str(word) for word in listed] for column, listed in state["words"].items()}
            for listed in words.values():
                check_words(listed)
            others = [str(column) for column in state.get("others", ())]
            if not set(others) <= set(words):
                raise KeyError(f"others {others}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TabularError(
                f"not codes of categories: {text[:60]!r} ({error}): train the model again, which writes them"
            ) from error
        made = cls(list(words))
        made.words_, made.others_ = words, others
        return made
