"""Stackers that see whole groups: the set transformer of `image_models`, which needs torch, as a model of a bag.

`tabular` holds the bags and knows nothing of torch, `image_models` holds the network and knows nothing of data frames;
here they meet, and torch is imported when such a stacker is fitted or read, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import ConfigError, ImageError, TabularError
from image_models.settings import set_transformer_settings
from tabular.gbdt import check_columns

if TYPE_CHECKING:
    from image_models.set_transformer import SetNet


@dataclass(frozen=True)
class GroupNet:
    """A fitted set transformer with names of columns: a `tabular.models.GroupModel`."""

    net: SetNet

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the fit, in order."""
        return self.net.columns

    @property
    def epochs(self) -> int:
        """Number of epochs, chosen on the inner rows."""
        return self.net.epochs

    def logit(self, X: pd.DataFrame, groups: ArrayLike) -> NDArray[np.float32]:
        """Returns log odds (n,) of features (n, columns) of rows in ``groups`` (n,); X holds all rows of each group."""
        check_columns(self.columns, X)
        return self.net.logit(X.to_numpy(np.float32, na_value=np.nan), _codes(groups))

    def to_bytes(self) -> bytes:
        """Returns the content of its safetensors file."""
        return self.net.to_bytes()


def fit_group_net(
    groups: ArrayLike,
    X: pd.DataFrame,
    y: NDArray[np.generic],
    inner: NDArray[np.bool_],
    *,
    params: Mapping[str, Any],
    seed: int,
    positive_weight: float,
    epochs: int | None,
) -> GroupNet:
    """Fits a set transformer to features X (n, columns) of rows in ``groups`` (n,); other arguments as `fit_set_net`.

    ``params`` are those of `set_transformer_settings`. Raises TabularError for infinite values.
    """
    from image_models.set_training import fit_set_net

    values, names = X.to_numpy(np.float32, na_value=np.nan), tuple(map(str, X.columns))
    if len(odd := np.flatnonzero(np.isinf(values).any(axis=0))):
        raise TabularError(f"infinite values in {names[odd[0]]}: replace them with NaN or clip them")
    made = fit_set_net(
        values, y, _codes(groups), inner, columns=names, settings=set_transformer_settings(params), seed=seed,
        positive_weight=positive_weight, epochs=epochs,
    )  # fmt: skip
    return GroupNet(made)


def read_group_net(content: bytes, name: str) -> GroupNet:
    """Reads the content of a file of `GroupNet.to_bytes`. Raises TabularError where it is damaged."""
    from image_models.set_transformer import set_net_from_bytes

    try:
        return GroupNet(set_net_from_bytes(content, name))
    except ImageError as error:
        raise TabularError(str(error)) from error


def require_torch(stacker: str) -> None:
    """Raises ConfigError where torch, which this stacker needs, is not installed."""
    try:
        import image_models.set_training  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"stacker {stacker}: kind set_transformer needs {error.name}, which is not installed: pip install "
            "'dermstack[image]', or set `enabled: false` for it"
        ) from error


def _codes(groups: ArrayLike) -> NDArray[np.intp]:
    """Returns codes (n,) of the groups in the order of their first rows, so that their names change nothing."""
    return np.asarray(pd.factorize(np.asarray(groups, dtype=object))[0], np.intp)
