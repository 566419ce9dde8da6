"""Bags of level-2 models of one kind (GBDTs, logistic regressions and others): their predictions and their files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import TabularError
from dermstack.files import atomic_write
from tabular.estimators import Estimator
from tabular.gbdt import (
    Gbdt,
    gbdt_from_bytes,
    importance,
    predict_logit,
    shap_values,
    write_gbdt,
)
from tabular.gbdt_libraries import LIBRARIES
from tabular.logistic import Logistic, logistic_from_bytes, write_logistic
from tabular.target_encoding import TargetEncoding, encoding_from_json

ENCODING_FILE = "target_encoding.json"  # beside the models of a bag


class GroupModel(Protocol):
    """A model, made outside this package, that predicts a row together with the other rows of its group."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the fit, in order."""

    @property
    def epochs(self) -> int:
        """Number of epochs, chosen on the inner rows."""

    def logit(self, X: pd.DataFrame, groups: ArrayLike) -> NDArray[np.float32]:
        """Returns log odds (n,) of features (n, columns) of rows in these ``groups`` (n,)."""

    def to_bytes(self) -> bytes:
        """Returns the content of its file."""


Model = Gbdt | Logistic | Estimator | GroupModel
ReadGroups = Callable[[bytes, str], GroupModel]  # the content of a file, and its name for errors
GROUP_KIND, GROUP_SUFFIX = "set_transformer", ".safetensors"  # the kind of such models, and the end of their files


@dataclass(frozen=True)
class Bag:
    """Models of one kind fitted with different draws; their logits are averaged and corrected to the rows' prior."""

    models: tuple[Model, ...]
    shift: float  # added to the mean logit: the correction to the prior
    encoding: TargetEncoding | None = None  # applied to the features first

    def logit(self, X: pd.DataFrame, *, groups: ArrayLike | None = None, threads: int = 1) -> NDArray[np.float32]:
        """Returns log odds (n,) of features (n, columns) of rows in these ``groups`` (n,), by default each in its own.

        X must hold all rows of each group; only a `GroupModel` uses the groups.
        """
        X = X if self.encoding is None else self.encoding(X)
        made = []
        for model in self.models:
            if isinstance(model, Gbdt):
                made.append(predict_logit(model, X, threads=threads))
            elif isinstance(model, Logistic | Estimator):
                made.append(model.logit(X))
            else:
                made.append(model.logit(X, np.arange(len(X)) if groups is None else groups))
        mean = np.stack(made).mean(axis=0, dtype=np.float64) + self.shift
        return np.asarray(mean, np.float32)

    def contributions(self, X: pd.DataFrame, *, threads: int = 1) -> tuple[pd.DataFrame, float]:
        """Returns each column's contribution to the log odds, (n, columns), and the bias; they sum to `logit`.

        These are exact SHAP values for GBDTs (`shap_values`) and the exact terms for logistic regressions. Raises
        TabularError for classifiers of scikit-learn and for models of whole groups, which have none.
        """
        made, X = [], X if self.encoding is None else self.encoding(X)
        for model in self.models:
            if isinstance(model, Estimator):
                raise TabularError(f"{model.path} has no exact contributions: explain a GBDT or a logistic regression")
            if not isinstance(model, Gbdt | Logistic):
                raise TabularError(
                    f"a {GROUP_KIND} has no exact contributions: explain a GBDT or a logistic regression"
                )
            made.append(
                model.contributions(X) if isinstance(model, Logistic) else shap_values(model, X, threads=threads)
            )
        mean = np.mean([added.to_numpy(np.float64) for added, _ in made], axis=0)
        bias = float(np.mean([bias for _, bias in made])) + self.shift
        return pd.DataFrame(mean, columns=X.columns, index=X.index), bias

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the fit, in order."""
        return self.models[0].columns

    @property
    def gains(self) -> dict[str, float]:
        """Share of each column in the total gain of a GBDT's splits or in the absolute weights of a regression."""
        made = []
        for model in self.models:
            if isinstance(model, Logistic):
                made.append(pd.Series(np.abs(model.weight), index=list(model.columns)))
            elif isinstance(model, Gbdt):
                made.append(importance(model))
        if not made:
            return {}
        total = pd.concat([gain / max(float(gain.sum()), 1e-300) for gain in made], axis=1).mean(axis=1)
        return {str(name): float(share) for name, share in total.items()}

    @property
    def chosen(self) -> list[float]:
        """Value that each model chose on the inner rows: rounds, inverse ridge strength, slope of the logit, epochs."""
        return [_chosen(model) for model in self.models]


def _chosen(model: Model) -> float:
    if isinstance(model, Gbdt):
        return model.rounds
    if isinstance(model, Logistic):
        return model.C
    return model.slope if isinstance(model, Estimator) else model.epochs


def write_bag(bag: Bag, folder: Path) -> list[Path]:
    """Writes each model to a file in ``folder``, in formats that execute nothing when read, and returns the paths.

    Classifiers of scikit-learn are not written: their format is pickle, and reading one runs what it contains.
    """
    paths = []
    for number, model in enumerate(bag.models):
        if isinstance(model, Estimator):
            continue
        if isinstance(model, Logistic):
            path = folder / _model_name("logistic", number)
            write_logistic(model, path)
        elif isinstance(model, Gbdt):
            path = folder / _model_name(model.kind, number)
            write_gbdt(model, path)
        else:
            path = folder / _model_name(GROUP_KIND, number)
            with atomic_write(path) as temporary:
                temporary.write_bytes(model.to_bytes())
        paths.append(path)
    if bag.encoding is not None:
        paths.append(folder / ENCODING_FILE)
        with atomic_write(paths[-1]) as temporary:
            temporary.write_text(bag.encoding.to_json(), encoding="utf-8")
    return paths


def read_bag(kind: str, folder: Path, *, shift: float, read_groups: ReadGroups | None = None) -> Bag:
    """Reads the models that `write_bag` wrote (model, model_1, …); TabularError where none exists or one is damaged.

    ``read_groups`` reads a `GroupModel`.
    """
    if kind == "sklearn":
        raise TabularError(f"{folder}: classifiers of scikit-learn are not kept on disk: fit the model again")
    files = [*folder.glob(f"model*{_suffix(kind)}"), *folder.glob(ENCODING_FILE)]
    contents = {path.name: path.read_bytes() for path in files}
    return bag_from_contents(kind, contents, str(folder), shift=shift, read_groups=read_groups)


def bag_from_contents(
    kind: str,
    contents: Mapping[str, bytes],
    folder: str,
    *,
    shift: float,
    checked: bool = False,
    read_groups: ReadGroups | None = None,
) -> Bag:
    """Reads the models of a bag from the contents of the files in ``folder``, by name; as `read_bag`.

    GBDTs that `check_gbdt` has ``checked`` before are not checked again.
    """
    models: list[Model] = []
    for name in model_names(kind, contents):
        content, where = contents[name], f"{folder}/{name}"
        if kind == "logistic":
            models.append(logistic_from_bytes(content, where))
        elif kind == GROUP_KIND:
            assert read_groups is not None
            models.append(read_groups(content, where))
        else:
            models.append(gbdt_from_bytes(kind, content, where, checked=checked))
    if not models:
        raise TabularError(f"{folder} holds no {kind} model: fit the model again")
    encoding = None
    if ENCODING_FILE in contents:
        where = f"{folder}/{ENCODING_FILE}"
        encoding = encoding_from_json(contents[ENCODING_FILE].decode("utf-8", "replace"), where)
        if lost := [name for name in encoding.values if name not in models[0].columns]:
            raise TabularError(f"{where} encodes {lost[0]!r}, which the models do not have: fit the model again")
    return Bag(tuple(models), shift, encoding)


def model_names(kind: str, names: Collection[str]) -> list[str]:
    """Returns which of the file ``names`` are a bag's models, in the order of the bag: model, model_1, …"""
    found: list[str] = []
    while (name := _model_name(kind, len(found))) in names:
        found.append(name)
    return found


def _model_name(kind: str, number: int) -> str:
    return f"model{f'_{number}' if number else ''}{_suffix(kind)}"


def _suffix(kind: str) -> str:
    if kind in LIBRARIES:
        return LIBRARIES[kind].suffix
    return {"logistic": ".json", GROUP_KIND: GROUP_SUFFIX}[kind]
