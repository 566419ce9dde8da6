"""Builds the (model, fold) tasks of level 1: labels, training rows, rows to predict, and stored frozen features."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError
from image_models.settings import Compute, Network, Training
from stack.console import Out
from stack.experiment import Experiment
from stack.folds import inner_split
from stack.level1.nets import net_meta
from stack.level1.pseudo_labels import PseudoRows, pseudo_rows, rows_to_label
from stack.net_metadata import column_dropout, metadata_encoder
from stack.settings.image_models import Diagnosis, ImageModel
from stack.store import Run, fingerprint, read_run, row_positions, write_run
from tabular.encode import DenseMetadata

if TYPE_CHECKING:
    from image_models.cache import ImageCache
    from image_models.fit import TrainingRows


UNKNOWN = "unknown"


@dataclass(frozen=True)
class Labels:
    """The possible classes of each training row and of each external row."""

    names: list[str]  # (c,) names of the classes
    positive: list[bool]  # (c,) whether a class has target 1; p is the sum of the probabilities of these
    train: NDArray[np.bool_]  # (n, c)
    external: NDArray[np.bool_]  # (m, c)


def labels_of(model: ImageModel, train: pd.DataFrame, external: pd.DataFrame) -> Labels:
    """Returns the classes that ``model`` learns, from frames with `target` and, for `target: diagnosis`, `diagnosis`.

    With `target: diagnosis` raises DataError where `diagnosis.classes` names the diagnosis of no row, where a class
    has rows of both targets, and where all classes have the same target.
    """
    both = pd.concat([train, external], ignore_index=True)
    target = both["target"].to_numpy(np.int8)
    if model.target == "binary":
        names, positive = ["0", "1"], [False, True]
        allowed = np.stack([target == 0, target == 1], axis=1)
    else:
        names, positive, allowed = _classes(both["diagnosis"], target, model.diagnosis, model.name)
    return Labels(names, positive, allowed[: len(train)], allowed[len(train) :])


def _classes(
    diagnosis: pd.Series, target: NDArray[np.int8], settings: Diagnosis, name: str
) -> tuple[list[str], list[bool], NDArray[np.bool_]]:
    """Returns the names of the classes, which of them are positive, and which each row may have (n, classes)."""
    # Classes come from all rows, not from a fold's training rows, so that every fold has the same classes.
    words = diagnosis.astype("str")
    found = sorted(words.dropna().unique())
    for word in settings.classes:
        if word not in found:
            near = difflib.get_close_matches(word, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the rows have {', '.join(map(repr, found))}"
            raise DataError(f"{name}: diagnosis.classes names {word!r}, but no row has this diagnosis: {hint}")
    words = words.replace(settings.classes)
    missing = (words.isna() | (words.str.lower() == UNKNOWN)).to_numpy()
    if settings.unknown == "class":
        words = words.mask(missing, UNKNOWN)
        missing = np.zeros(len(words), bool)
    counts = pd.crosstab(words[~missing], target[~missing]).reindex(columns=[0, 1], fill_value=0)
    mixed = counts[(counts > 0).all(axis=1)]
    if len(mixed):
        first = mixed.iloc[0]
        remedy = (
            "set `diagnosis.unknown: target`"
            if mixed.index[0] == UNKNOWN
            else "map its diagnoses to classes with one target each in `diagnosis.classes`, or to `unknown` with "
            "`diagnosis.unknown: target`"
        )
        raise DataError(
            f"{name}: diagnosis class {mixed.index[0]!r} has {first[0]} rows of target 0 and {first[1]} of target 1: "
            + remedy
        )
    # Classes of target 0 come first: with two classes the second is target 1.
    ordered = counts.assign(positive=counts[1] > 0).reset_index(names="name").sort_values(["positive", "name"])
    names, positive = ordered["name"].tolist(), ordered["positive"].tolist()
    if len(set(positive)) < 2:
        raise DataError(
            f"{name}: `target: diagnosis` needs diagnoses of both targets, found only {', '.join(names)}: check "
            "data.columns.diagnosis, or set `target: binary`"
        )
    allowed = words.to_numpy(object)[:, None] == np.array(names, object)
    allowed[missing] = target[missing, None] == np.array(positive)
    return names, positive, allowed


MAX_ANCHORS = 2_000
MIN_TEST_ANCHORS = 500  # alignment keeps at most a fifth of the anchors as dimensions: fewer would be too few


@dataclass(frozen=True)
class TrainedFold:
    """Inputs of one fold of trained nets: training rows, settings and rows to predict."""

    cache: ImageCache
    data: TrainingRows
    network: Network
    training: Training
    nets: dict[int, dict[str, Any]]  # run.json of each net without its files, by seed
    sets: dict[str, NDArray[np.intp]]  # cache rows to predict, by set
    metadata: dict[str, NDArray[np.float32]]  # (n, m) encoded metadata of each set; empty where the nets get none
    encoder: str | None  # encoder of the metadata, as JSON
    threads: int
    workers: int


@dataclass(frozen=True)
class FrozenFold:
    """Inputs of one fold of a frozen backbone: features and targets for its head, and features to predict."""

    z: NDArray[np.float16]  # (n, d)
    target: NDArray[np.int8]  # (n,)
    inner: NDArray[np.bool_]  # (n,) rows on which the head's regularisation is chosen
    sets: dict[str, NDArray[np.float16]]  # (m, d) features to predict, by set
    threads: int


@dataclass(frozen=True)
class FoldTask:
    """One fold of one model, small enough to be sent to another process."""

    folder: Path  # …/models/<name>/fold_<k>
    fold: int
    fit: TrainedFold | FrozenFold
    images: int  # units of the progress bar: images that go through the network, or rows that a head is fitted on
    ids: dict[str, pd.Series[str]]  # ids of each predicted set: oof, test, anchor
    anchors_of_test: NDArray[np.intp] | None  # the test rows that are anchors; None where no anchors are test rows
    meta: dict[str, Any]  # run.json of the fold without files and seconds
    by_source: bool = False  # whether the fold holds out whole sources beside folds of groups

    @property
    def label(self) -> str:
        """Label in progress bars: model and fold."""
        return f"{self.folder.parent.name}{' by source,' if self.by_source else ''} fold {self.fold}"

    @property
    def backbone(self) -> str:
        """The timm name of the model's backbone, for messages."""
        return str(self.meta["settings"]["backbone"])


def trained_tasks(
    experiment: Experiment, model: ImageModel, cache: ImageCache, inputs: dict[str, str], out: Out
) -> list[FoldTask]:
    """Returns one task a fold, which fine-tunes one net for each seed."""
    from image_models.fit import TrainingRows
    from image_models.predict import VIEW_COUNTS

    config, target = experiment.config, experiment.target
    train_ids, test_ids = experiment.table.train["id"], experiment.table.test["id"]
    rows, test_rows = cache.rows_for(train_ids), cache.rows_for(test_ids)
    external = cache.rows_for(experiment.external["id"])
    to_label = rows_to_label(experiment, model)
    rows_labelled = cache.rows_for(to_label["id"])
    labels = labels_of(model, experiment.table.train, experiment.external)
    part, anchors = draw_anchors(len(train_ids), len(test_ids), seed=config.seed)
    meta, nets, tasks = run_meta(model, inputs), net_metas(experiment, model, inputs), []
    for fold, train, held in _fold_rows(experiment):
        sets = {"oof": rows[held], "test": test_rows}
        ids = {"oof": train_ids.iloc[held], "test": test_ids}
        if part == "train":
            sets["anchor"] = rows[anchors]
        ids["anchor"] = (train_ids if part == "train" else test_ids).iloc[anchors]
        inner_val = None
        if model.select == "best":  # external rows are never scored, so the epoch is not chosen on them
            inner = inner_split(target[train], experiment.split_group[train], seed=config.seed)
            inner_val = np.concatenate([inner, np.zeros(len(external), bool)])
        encoder, metadata = _encode_metadata(
            experiment, model, train, held, anchors if part == "train" else None, to_label
        )
        of_pseudo_rows = metadata.pop("to label", None)
        data = TrainingRows(
            rows=np.concatenate([rows[train], external]),
            target=np.concatenate([labels.train[train], labels.external]),
            positive=labels.positive,
            metadata=metadata.pop("train", None),
            column_dropout=column_dropout(model, encoder),
            inner_val=inner_val,
        )
        if (pseudo := pseudo_rows(experiment, model, fold)) is not None:
            data = _with_pseudo_rows(data, pseudo, rows_labelled, of_pseudo_rows)
        predicted = VIEW_COUNTS[model.tta] * sum(map(len, sets.values()))
        tasks.append(
            FoldTask(
                folder=experiment.models / model.name / f"fold_{fold}",
                fold=fold,
                fit=TrainedFold(
                    cache=cache,
                    data=data,
                    network=model.network,
                    training=model.training,
                    nets={seed: of_net for (of_fold, seed), of_net in nets.items() if of_fold == fold},
                    sets=sets,
                    metadata=metadata,
                    encoder=None if encoder is None else encoder.to_json(),
                    threads=config.threads,
                    workers=config.workers,
                ),
                images=len(model.seeds) * (model.epochs * data.learned + predicted),
                ids=ids,
                anchors_of_test=anchors if part == "test" else None,
                meta=meta | {"anchors": part, "classes": labels.names, "positive": labels.positive},
                by_source=experiment.copy_of is not None,
            )
        )
    return tasks


def _fold_rows(experiment: Experiment) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
    """Yields (fold, training rows, held-out rows); rows that are left out train no fold."""
    left_out = experiment.left_out
    for fold, train, held in experiment.folds.pairs():
        yield fold, train if left_out is None else train[~left_out[train]], held


def _with_pseudo_rows(
    data: TrainingRows, pseudo: PseudoRows, labelled: NDArray[np.intp], metadata: NDArray[np.float32] | None
) -> TrainingRows:
    """Returns the training rows with rows appended of which only a probability of target 1 is known.

    ``labelled`` (t,) are cache rows of the rows to label, ``metadata`` (t, m) their encoded columns; no epoch is chosen
    on them.
    """
    count = len(pseudo.rows)
    return replace(
        data,
        rows=np.concatenate([data.rows, labelled[pseudo.rows]]),
        target=np.concatenate([data.target, np.ones((count, len(data.positive)), bool)]),
        metadata=None
        if data.metadata is None or metadata is None
        else np.concatenate([data.metadata, metadata[pseudo.rows]]),
        inner_val=None if data.inner_val is None else np.concatenate([data.inner_val, np.zeros(count, bool)]),
        soft=np.concatenate([np.full(len(data.rows), np.nan, np.float32), pseudo.p]),
    )


def net_metas(
    experiment: Experiment, model: ImageModel, inputs: dict[str, str]
) -> dict[tuple[int, int], dict[str, Any]]:
    """Returns the run.json of each net of the model (without files and seconds), by fold and seed; {} if frozen."""
    if model.frozen:
        return {}
    settings = run_meta(model, inputs)["settings"]
    seeds = [seed + experiment.config.seed for seed in model.seeds]
    return {
        (fold, seed): net_meta(inputs, settings, fold=fold, seed=seed)
        for fold in range(experiment.folds.k)
        for seed in seeds
    }


def frozen_tasks(
    experiment: Experiment, model: ImageModel, cache: ImageCache, inputs: dict[str, str], out: Out
) -> list[FoldTask]:
    """Returns one task a fold, which fits a logistic head; first computes the frozen features unless stored already."""
    train_z, test_z = (_features(experiment, model, cache, part, inputs, out) for part in ("train", "test"))
    target, external_target = experiment.target, _external_target(experiment)
    external_z = train_z[:0]
    if len(external_target):
        external_z = _features(experiment, model, cache, "external", inputs, out)
    tasks = []
    for fold, train, held in _fold_rows(experiment):
        inner = inner_split(target[train], experiment.split_group[train], seed=experiment.config.seed)
        tasks.append(
            FoldTask(
                folder=experiment.models / model.name / f"fold_{fold}",
                fold=fold,
                fit=FrozenFold(
                    z=np.concatenate([train_z[train], external_z]),
                    target=np.concatenate([target[train], external_target]),
                    # External rows are never scored, so the regularisation is not chosen on them.
                    inner=np.concatenate([inner, np.zeros(len(external_target), bool)]),
                    sets={"oof": train_z[held], "test": test_z},
                    threads=experiment.config.threads,
                ),
                images=len(train) + len(external_target),
                ids={"oof": experiment.table.train["id"].iloc[held], "test": experiment.table.test["id"]},
                anchors_of_test=None,
                meta=run_meta(model, inputs),
                by_source=experiment.copy_of is not None,
            )
        )
    return tasks


def _features(
    experiment: Experiment, model: ImageModel, cache: ImageCache, part: str, inputs: dict[str, str], out: Out
) -> NDArray[np.float16]:
    """Returns a frozen backbone's features of the train, test or external rows; computes and stores them if needed."""
    folder = experiment.models / model.name
    stored = read_run(folder / "features" / part)
    if stored is None or stored.meta["inputs"] != inputs:
        from image_models.fit import embed
        from image_models.predict import VIEW_COUNTS

        frame = {"train": experiment.table.train, "test": experiment.table.test, "external": experiment.external}[part]
        if (known := _known_features(experiment, model, cache, part, frame["id"], inputs)) is not None:
            meta = run_meta(model, inputs) | {"seconds": 0.0}
            write_run(folder / "features" / part, meta, frames={}, arrays={"z": known})
            return known
        rows = cache.rows_for(frame["id"])
        started = time.monotonic()
        with out.bar(f"{model.name} features of the {part} rows", VIEW_COUNTS[model.tta] * len(rows)) as progress:
            config = experiment.config
            z = embed(
                cache, rows, model.network, batch_size=model.batch_size, tta=model.tta,
                seed=model.seeds[0] + config.seed, folder=folder, progress=progress,
                compute=Compute(config.device, config.threads, config.workers),
            )  # fmt: skip
        meta = run_meta(model, inputs) | {"seconds": time.monotonic() - started}
        write_run(folder / "features" / part, meta, frames={}, arrays={"z": z})
    return read_stored_features(folder, part).array("z")


def _known_features(
    experiment: Experiment,
    model: ImageModel,
    cache: ImageCache,
    part: str,
    ids: pd.Series[str],
    inputs: Mapping[str, str],
) -> NDArray[np.float16] | None:
    """Returns the features of a part's rows ``ids`` that the experiment has, of which this one is a copy by source.

    None where it has none of the same settings, weights and images.
    """
    run = None if experiment.copy_of is None or part == "external" else read_run(experiment.copy_of / model.name)
    if run is None or run.meta["kind"] != "frozen":
        return None
    theirs, frames = run.meta["inputs"], {name: run.frame(name) for name in ("oof", "test")}
    frames["test"] = frames["test"][frames["test"]["fold"] == 0]  # each fold has all test rows
    of_images = [*frames["oof"]["id"], *frames["test"]["id"], *experiment.external["id"]]
    differ = {name for name in {*theirs, *inputs} if theirs.get(name) != inputs.get(name)}
    if differ - {"rows or folds", "images"} or theirs["images"] != cache.checksum(of_images):
        return None
    name = "oof" if part == "train" else "test"
    if not len(ids):
        return np.asarray(run.array(f"{name}_z")[:0])
    rows = row_positions(ids, frames[name]["id"], f"the rows of {run.folder}")
    return np.asarray(run.array(f"{name}_z")[rows])


def _external_target(experiment: Experiment) -> NDArray[np.int8]:
    return experiment.external["target"].to_numpy(np.int8)


def read_stored_features(folder: Path, part: str) -> Run:
    """Reads the stored features of a frozen backbone for the train, test or external rows."""
    stored = read_run(folder / "features" / part)
    assert stored is not None, f"{folder}/features/{part} is written before it is read"
    return stored


def _encode_metadata(
    experiment: Experiment,
    model: ImageModel,
    train: NDArray[np.intp],
    held: NDArray[np.intp],
    anchors: NDArray[np.intp] | None,
    to_label: pd.DataFrame,
) -> tuple[DenseMetadata | None, dict[str, NDArray[np.float32]]]:
    """Encodes the metadata of each set with an encoder fitted on the fold's training rows.

    Returns the encoder and the arrays; None and {} where the model uses no metadata.
    """
    if not model.metadata:
        return None, {}
    rows, test = experiment.table.train, experiment.table.test
    learned = pd.concat([rows.iloc[train], experiment.external], ignore_index=True)
    encoder = metadata_encoder(experiment, model).fit(learned)
    frames = {"train": learned, "oof": rows.iloc[held], "test": test, "to label": to_label}
    if anchors is not None:
        frames["anchor"] = rows.iloc[anchors]
    return encoder, {name: encoder.transform(frame) for name, frame in frames.items()}


def run_meta(model: ImageModel, inputs: dict[str, str]) -> dict[str, Any]:
    """Returns the run.json of the model and of each of its folds, without files and seconds."""
    return {
        "fingerprint": fingerprint(inputs),
        "level": 1,
        "kind": "frozen" if model.frozen else "image",
        "inputs": inputs,
        "settings": model.settings(without={"pretrained", "enabled", "selected"}, as_json=True),
        "selected": model.selected,
    }


def draw_anchors(train: int, test: int, *, seed: int) -> tuple[str, NDArray[np.intp]]:
    """Draws the anchor rows that every fold net embeds: test rows if there are enough, as no net is trained on them."""
    part, n = ("test", test) if test >= MIN_TEST_ANCHORS else ("train", train)
    chosen = np.random.default_rng(seed).choice(n, size=min(n, MAX_ANCHORS), replace=False)
    return part, np.sort(chosen)
