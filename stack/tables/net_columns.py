"""Finds the columns of the table that an image model takes beside the image, which its config names or fits."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from dermstack.errors import ConfigError
from stack.settings.config import Config
from stack.settings.data import Columns
from stack.settings.image_models import ImageModel
from stack.tables.columns import NO_COLUMNS, TableColumns
from tabular.group_features import ROLES


def net_columns(model: ImageModel, columns: Columns, table: TableColumns) -> list[str]:
    """Returns the names in the table of the columns that ``model`` takes: age, sex and site first, as it names them.

    A name or pattern fits the name that a column has in the table or in the csv. Raises ConfigError for one that fits
    no column of numbers or words.
    """
    spellings = list(_spellings(columns, table))
    found: dict[str, None] = {}
    for name in model.metadata:
        exact = [column for column, spelling in spellings if spelling == name]
        fitting = exact or [column for column, spelling in spellings if fnmatchcase(spelling, name)]
        if not fitting:
            near = get_close_matches(name, [spelling for _, spelling in spellings], n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{model.name}: no column fits `metadata: {name}`{hint}: name it in data.columns.numeric or "
                "data.columns.categorical too, or correct it"
            )
        found |= dict.fromkeys(fitting)
    return [name for name in found if name in ROLES] + [name for name in found if name not in ROLES]


def _spellings(columns: Columns, table: TableColumns) -> Iterator[tuple[str, str]]:
    """Yields the name in the table and a spelling that a config may use for it, of every column that a net may take."""
    for role in ROLES:
        if (csv := getattr(columns, role)) is not None:
            yield role, role
            yield role, csv
    for name in table.names:
        yield name, name
        if table.csv.get(name, name) != name:
            yield name, table.csv[name]


def roles_of(model: ImageModel, columns: Columns) -> list[str]:
    """Returns which of age, sex and site ``model`` takes, by their names or a pattern."""
    fitting = {
        role for role, name in _spellings(columns, NO_COLUMNS) for one in model.metadata if fnmatchcase(name, one)
    }
    return [role for role in ROLES if role in fitting]


def further_columns(model: ImageModel, columns: Columns, table: TableColumns) -> list[str]:
    """Returns the columns that ``model`` takes beside age, sex and site. Raises as `net_columns` does."""
    return [name for name in net_columns(model, columns, table) if name not in ROLES]


def external_columns(config: Config, table: TableColumns) -> list[str]:
    """Returns the further columns that an enabled image model takes, which external tables are read for."""
    taken = [net_columns(model, config.data.columns, table) for model in config.image_models if model.enabled]
    return [name for name in table.names if any(name in names for names in taken)]
