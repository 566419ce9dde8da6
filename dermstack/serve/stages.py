"""The stackers of a bundle: those that share a matrix, with their models and transforms of each repeat and fold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import BundleError
from dermstack.serve.bundle import Bundle
from dermstack.serve.image_runs import check_encoder
from stack.level2.features import CATEGORICAL, NUMERIC, FoldFeatures
from stack.level2.group_models import read_group_net
from stack.predictions.joined import Predictions, Scales, standardised
from stack.predictions.ranks import AVERAGED
from stack.predictions.repeats import fold_name, mean_logit
from stack.settings.level2 import Features
from tabular.gbdt import check_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.gbdt_trial import ModelFile, try_models
from tabular.models import ENCODING_FILE, Bag, bag_from_contents, model_names

FEATURES, SECOND_FEATURES = "features", "features_second_stage"  # folders of the fitted transforms of each matrix


class SeenRows(NamedTuple):
    """Rows of whole groups, and what the runs that a model sees say of them."""

    frame: pd.DataFrame  # (n) id, group and the columns of the table
    logits: NDArray[np.float32]  # (n, runs)
    nets: NDArray[np.int8]  # (n, runs) net that made each logit, or AVERAGED
    z: Mapping[str, NDArray[np.floating]]  # by run: (n, r) embeddings, or (n, d) of a frozen backbone


Models = tuple[tuple[Bag, ...], ...]  # of a stacker: by repeat and fold


@dataclass(frozen=True)
class Stage:
    """Stackers that share a matrix, the runs whose logits are in it, and what it is made with."""

    sees: tuple[str, ...]  # in the order of the matrix
    scales: Scales
    features: tuple[tuple[FoldFeatures, ...], ...]  # by repeat and fold
    models: dict[str, Models]  # by stacker, which may have fewer repeats than the stage

    def logits(self, rows: SeenRows, folds: NDArray[np.integer[Any]], threads: int) -> dict[str, NDArray[np.float32]]:
        """Returns the logits (n,) of each stacker for n ``rows`` with the runs that it sees, as means over its repeats.

        ``folds`` (repeats, n) names the fold whose models predict a row: the one that held it out or, for a new row,
        the same in every repeat.
        """
        n, scaled = len(rows.frame), self._standardised(rows.logits, rows.nets)
        made = {name: [np.empty(n, np.float32) for _ in models] for name, models in self.models.items()}
        for repeat, features in enumerate(self.features):
            for fold in np.unique(folds[repeat]).tolist():
                held = np.flatnonzero(folds[repeat] == fold)
                own = slice(None) if len(held) == n else held  # new rows, whose embeddings are large, are not copied
                frame = rows.frame.iloc[own]
                x = features[fold].transform(frame, scaled[own], {name: z[own] for name, z in rows.z.items()})
                for name, models in self.models.items():
                    if repeat < len(models):
                        bag = models[repeat][fold]
                        made[name][repeat][own] = bag.logit(_columns_of(x, bag), groups=frame["group"], threads=threads)
        return {name: mean_logit(of_repeats) for name, of_repeats in made.items()}

    def _standardised(self, logits: NDArray[np.float32], nets: NDArray[np.int8]) -> NDArray[np.float32]:
        """Returns the logits on the scales of the nets that made them; a net without a scale has the mean of all."""
        known = [np.isin(nets[:, run], list(self.scales[name])) for run, name in enumerate(self.sees)]
        own = np.where(np.array(known).T, nets, np.int8(AVERAGED)) if known else nets
        return standardised(as_training_rows(self.sees, logits, own), self.scales).oof


def as_training_rows(names: tuple[str, ...], logits: NDArray[np.float32], nets: NDArray[np.int8]) -> Predictions:
    """Returns logits and nets (n, runs) in the form in which level 2 takes training rows: a net for each logit."""
    nothing = np.empty((0, 0, len(names)), np.float32)
    return Predictions(names, np.arange(len(logits)), logits, nets, nothing, np.empty((0, len(names)), np.int8))


def read_stages(bundle: Bundle) -> tuple[Stage, ...]:
    """Reads the stackers of a bundle by stage: those of the first one, then those that see some of these."""
    manifest, level1 = bundle.manifest, bundle.level1_names
    if not manifest["stackers"]:
        return ()
    models = _models(bundle)
    later = manifest.get("second_stage")
    second = set(later["stackers"]) if later else set()
    stages = [
        _stage(bundle, FEATURES, level1, manifest["scales"], {n: own for n, own in models.items() if n not in second})
    ]
    if later:
        sees = (*level1, *later["sees"])
        own = {name: own for name, own in models.items() if name in second}
        stages.append(_stage(bundle, SECOND_FEATURES, sees, later["scales"], own))
    return tuple(stages)


def _stage(
    bundle: Bundle,
    folder: str,
    sees: tuple[str, ...],
    scales: Mapping[str, Mapping[str, Any]],
    models: dict[str, Models],
) -> Stage:
    repeats, folds = max(map(len, models.values())), range(bundle.folds)
    return Stage(
        sees,
        {
            run: {int(net): (float(mean), float(spread)) for net, (mean, spread) in of_nets.items()}
            for run, of_nets in scales.items()
        },
        tuple(tuple(_features(bundle, folder, repeat, fold, sees) for fold in folds) for repeat in range(repeats)),
        models,
    )


def _models(bundle: Bundle) -> dict[str, Models]:
    """Reads the stackers' models; GBDT libraries parse them in a child process first (`tabular.gbdt_trial`)."""
    contents: dict[str, dict[str, bytes]] = {}
    tried = []
    for entry in bundle.manifest["stackers"]:
        for place in _places(entry, bundle.folds):
            files = bundle.names_in(place)
            names = model_names(entry["kind"], files)
            wanted = [*names, *(file for file in files if file == ENCODING_FILE)]
            contents[place] = {file: bundle.read(f"{place}/{file}") for file in wanted}
            if entry["kind"] in LIBRARIES:
                tried += [ModelFile(f"{place}/{file}", entry["kind"], contents[place][file]) for file in names]
    for model in tried:
        check_gbdt(model.kind, model.content, model.name)
    try_models(tried)
    made = {}
    for entry in bundle.manifest["stackers"]:
        bags = [
            bag_from_contents(
                entry["kind"], contents[place], place, shift=shift, checked=True, read_groups=read_group_net
            )
            for place, shift in zip(_places(entry, bundle.folds), entry["shifts"], strict=True)
        ]
        made[entry["name"]] = tuple(
            tuple(bags[start : start + bundle.folds]) for start in range(0, len(bags), bundle.folds)
        )
    return made


def _places(entry: Mapping[str, Any], folds: int) -> list[str]:
    """Returns the folders of a stacker's models, those of the first repeat first."""
    return [
        f"stackers/{entry['name']}/{fold_name(repeat, fold)}"
        for repeat in range(entry.get("repeats", 1))
        for fold in range(folds)
    ]


def _columns_of(x: pd.DataFrame, bag: Bag) -> pd.DataFrame:
    """Returns the columns of the matrix that a stacker was fitted on. Raises BundleError where one is absent."""
    if absent := sorted(set(bag.columns) - set(x)):
        raise BundleError(f"a stacker was fitted on {absent[0]!r}, which the bundle's features lack: bundle again")
    return x[list(bag.columns)]


def _features(bundle: Bundle, folder: str, repeat: int, fold: int, names: Sequence[str]) -> FoldFeatures:
    manifest = bundle.manifest
    frozen = {name for name, kind in manifest["embeddings"].items() if kind == "frozen"}
    features = FoldFeatures(
        Features(**manifest["features"]), tuple(names), frozen=frozen, seed=0, columns=bundle.table_columns
    )
    place = f"{folder}/{fold_name(repeat, fold)}"
    features.restore(json.dumps(bundle.json(f"{place}/features.json")), bundle.arrays(place))
    for encoder in filter(None, (features.encoder_, features.table_)):
        check_encoder(bundle, encoder, f"{place}/features.json")
    if tuple(features.encoder_.numeric) != NUMERIC or tuple(features.encoder_.categorical) != CATEGORICAL:
        raise BundleError(f"{bundle.place}: {place}/features.json encodes other columns than age, sex and site")
    for name, (mean, turn) in features.axes_.items():
        if mean.ndim != 1 or turn.ndim != 2 or len(mean) != len(turn):
            raise BundleError(
                f"{bundle.place}: {place}/{name}_mean.npy and {name}_turn.npy are of shapes {mean.shape} and "
                f"{turn.shape}: bundle again"
            )
    return features
