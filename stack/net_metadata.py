"""Encodes the columns that an image model takes beside the image, and fingerprints them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from image_models.net_files import ENCODER
from stack.experiment import Experiment
from stack.settings.image_models import ImageModel
from stack.store import fingerprint, frame_fingerprint
from stack.tables.net_columns import further_columns, net_columns

if TYPE_CHECKING:
    from image_models.dataset import ColumnDropout
    from tabular.encode import DenseMetadata


def metadata_inputs(experiment: Experiment, model: ImageModel) -> dict[str, str]:
    """Returns the inputs, by name, of a run whose model takes metadata or external rows: fingerprints of both."""
    further = further_columns(model, experiment.config.data.columns, experiment.table.columns)
    made = {"metadata": experiment.columns_fingerprint(further)} if model.metadata else {}
    external = experiment.external
    if len(external):
        others = [name for name in experiment.table.columns.names if name in external and name not in further]
        made["external rows"] = frame_fingerprint(external.drop(columns=others))
    if further:  # whether a column holds numbers or words decides how it is encoded
        numeric = [name for name in further if name in experiment.table.columns.numbers]
        made["metadata"] = fingerprint({"values": made["metadata"], "numeric": numeric, "columns": further})
    return made


def metadata_encoder(experiment: Experiment, model: ImageModel) -> DenseMetadata:
    """Returns the encoder of the model's columns, not fitted yet."""
    from tabular.encode import DenseMetadata  # scikit-learn, whose import takes longer than many a command

    table = experiment.table.columns
    taken = net_columns(model, experiment.config.data.columns, table)
    return DenseMetadata(taken, numeric=table.numbers, dropout=model.metadata_dropout > 0)


def encoded_columns(folder: Path, settings: Mapping[str, Any], frame: pd.DataFrame) -> NDArray[np.float32]:
    """Returns the columns (n, m) of the rows of ``frame``, encoded for the nets of a finished fold in ``folder``.

    ``settings`` are those in the run's run.json; m is 0 where its nets take no columns.
    """
    if not settings["metadata"]:
        return np.empty((len(frame), 0), np.float32)
    from tabular.encode import DenseMetadata

    encoder = DenseMetadata.from_json((folder / ENCODER).read_text(encoding="utf-8"))
    return encoder.transform(frame)


def column_dropout(model: ImageModel, encoder: DenseMetadata | None) -> ColumnDropout | None:
    """Returns what sets columns of the training rows to missing; None where the model's settings ask for none."""
    if encoder is None or not model.metadata_dropout:
        return None
    from image_models.dataset import ColumnDropout  # torch is an optional dependency

    column_of = pd.factorize(np.array(encoder.sources, object))[0].astype(np.intp)
    return ColumnDropout(model.metadata_dropout, encoder.all_missing(), column_of)
