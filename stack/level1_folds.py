"""The (model, fold) tasks of level 1: what each is fitted on, and what it predicts."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.console import Out
from stack.errors import DataError, StoreError
from stack.experiment import Experiment
from stack.folds import inner_split
from stack.image_config import Diagnosis, ImageModel
from stack.store import Run, fingerprint, read_run, set_aside, write_run
from tabular.encode import DenseMetadata

if TYPE_CHECKING:
    from image_models.cache import ImageCache
    from image_models.fit import FoldFit, TrainedNet


UNKNOWN = "unknown"


@dataclass(frozen=True)
class Labels:
    """Of training rows, then external rows: which classes each may be of."""

    names: list[str]
    positive: list[bool]  # the classes whose probability is p
    train: NDArray[np.bool_]  # (n, c)
    external: NDArray[np.bool_]  # (m, c)


def labels_of(model: ImageModel, train: pd.DataFrame, external: pd.DataFrame) -> Labels:
    """The classes that ``model`` learns, of frames with `target` and, for `target: diagnosis`, `diagnosis`.

    Raises DataError where `diagnosis.classes` names what no row has, where a class holds rows of both targets, or where
    all rows are of one class.
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
    # The words of the data decide which classes there are, and their targets which of them count; no fold does.
    words = diagnosis.astype("str")
    found = sorted(words.dropna().unique())
    for word in settings.classes:
        if word not in found:
            near = difflib.get_close_matches(word, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the rows have {', '.join(map(repr, found))}"
            raise DataError(f"{name}: diagnosis.classes names {word!r}, which is the diagnosis of no row: {hint}")
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
            else "map what it holds to classes of one target in `diagnosis.classes`, or to `unknown` with "
            "`diagnosis.unknown: target`"
        )
        raise DataError(
            f"{name}: diagnosis class {mixed.index[0]!r} has {first[0]} rows of target 0 and {first[1]} of target 1: "
            + remedy
        )
    # Target 0 first: with two classes the second is the target.
    ordered = counts.assign(positive=counts[1] > 0).reset_index(names="name").sort_values(["positive", "name"])
    names, positive = ordered["name"].tolist(), ordered["positive"].tolist()
    if len(set(positive)) < 2:
        raise DataError(f"{name}: `target: diagnosis` needs diagnoses of both targets, found {', '.join(names)}")
    allowed = words.to_numpy(object)[:, None] == np.array(names, object)
    allowed[missing] = target[missing, None] == np.array(positive)
    return names, positive, allowed


_ANY = {"seeds", "tta", "name"}  # settings that say nothing of how one net is trained
_NOT_OF_TRAINING = {"settings", "selection"}  # inputs: what settings are is looked at one by one
ANEW = ".anew"  # in the folder of a run that shall take nothing over, until it is complete


def trained_before(
    experiment: Experiment, model: ImageModel, inputs: Mapping[str, str], settings: Mapping[str, Any], fold: int
) -> dict[int, TrainedNet]:
    """Nets of this fold in set-aside runs of the model, by seed, which training would make again byte by byte.

    Of runs that differ from the one to be made, of ``inputs`` and ``settings``, in seeds or views alone; none for a run
    that is wanted anew. Raises StoreError for a file that has changed since.
    """
    from image_models.fit import TrainedNet

    found: dict[int, TrainedNet] = {}
    if (experiment.models / model.name / ANEW).exists():
        return found
    for folder in sorted(experiment.old.glob(f"{model.name}-*")):
        run = _fold_of(folder, fold)
        if run is None or _of_training(run.meta["inputs"], run.meta["settings"]) != _of_training(inputs, settings):
            continue
        history = pd.read_csv(run.checked("history.csv"))
        for number, seed in enumerate(run.meta["settings"]["seeds"]):
            if seed in model.seeds:
                drawn = seed + experiment.config.seed
                weights = run.checked("weights.safetensors" if number == 0 else f"weights_{drawn}.safetensors")
                found[drawn] = TrainedNet(weights, history[history["seed"] == drawn])
    return found


def set_aside_for(folder: Path, old: Path, inputs: Mapping[str, str]) -> Path | None:
    """Move a run aside to be made of ``inputs``. Where it was made of these, nothing is taken over: it is wanted anew.

    So is a run that can't be read. Returns where it is kept; None where it isn't complete and all there is of it was
    made of these inputs: then its making was interrupted, and goes on.
    """
    try:
        made_of = [run.meta["inputs"] for part in (folder, *folder.glob("fold_*")) if (run := read_run(part))]
        if read_run(folder) is None and all(part == inputs for part in made_of):
            return None
        anew = inputs in made_of
    except StoreError:
        anew = True
    aside = set_aside(folder, old)
    if anew:
        folder.mkdir()
        (folder / ANEW).touch()
    return aside


def _fold_of(folder: Path, fold: int) -> Run | None:
    """That fold of a run set aside; None where it isn't complete, or is why the run was set aside: damaged."""
    try:
        return read_run(folder / f"fold_{fold}")
    except StoreError:
        return None


def _of_training(inputs: Mapping[str, str], settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    return (
        {name: value for name, value in inputs.items() if name not in _NOT_OF_TRAINING},
        {name: value for name, value in settings.items() if name not in _ANY},
    )


MAX_ANCHORS = 2_000
MIN_TEST_ANCHORS = 500  # alignment keeps a fifth of the anchors as dimensions: fewer test rows say too little


@dataclass(frozen=True)
class FoldTask:
    """One fold of one model, small enough to be sent to a process."""

    folder: Path  # …/models/<name>/fold_<k>
    fold: int
    fit: Callable[..., FoldFit]  # called with weights=folder, progress=…, and where it trains device=…, say=…
    trains: bool
    work: int  # images that go through the network
    ids: dict[str, pd.Series[str]]  # of each predicted set: oof, test, anchor
    anchors_of_test: NDArray[np.intp] | None  # which test rows are the anchors, where they are test rows
    encoder: str | None  # of the metadata that the net sees, as JSON
    meta: dict[str, Any]

    @property
    def label(self) -> str:
        """As progress names it."""
        return f"{self.folder.parent.name} fold {self.fold}"


def trained_tasks(
    experiment: Experiment, model: ImageModel, cache: ImageCache, inputs: dict[str, str], out: Out
) -> list[FoldTask]:
    """Tasks that fine-tune a net each."""
    from image_models.fit import fit_fold
    from image_models.predict import VIEWS

    config, target = experiment.config, experiment.target
    train_ids, test_ids = experiment.table.train["id"], experiment.table.test["id"]
    rows, test_rows = cache.rows_for(train_ids), cache.rows_for(test_ids)
    external = cache.rows_for(experiment.external["id"])
    labels = labels_of(model, experiment.table.train, experiment.external)
    part, anchors = _anchors(len(train_ids), len(test_ids), seed=config.seed)
    meta, tasks, taken = _meta(model, inputs), [], []
    for fold, train, held in experiment.folds.pairs():
        sets = {"oof": rows[held], "test": test_rows}
        ids = {"oof": train_ids.iloc[held], "test": test_ids}
        if part == "train":
            sets["anchor"] = rows[anchors]
        ids["anchor"] = (train_ids if part == "train" else test_ids).iloc[anchors]
        choose = None
        if model.select == "best":  # chosen on rows like those scored
            inner = inner_split(target[train], experiment.split_group[train], seed=config.seed)
            choose = np.concatenate([inner, np.zeros(len(external), bool)])
        encoder, metadata = _encoded(experiment, model, train, held, anchors if part == "train" else None)
        trained = trained_before(experiment, model, inputs, meta["settings"], fold)
        taken += [net.weights for net in trained.values()]
        fit = partial(
            fit_fold,
            cache,
            np.concatenate([rows[train], external]),
            np.concatenate([labels.train[train], labels.external]),
            sets,
            positive=labels.positive,
            metadata=metadata,
            choose=choose,
            augment=model.augment,
            training=model.training,
            seeds=[seed + config.seed for seed in model.seeds],
            identity=fingerprint(inputs | {"fold": str(fold)}),
            trained=trained,
            **network_settings(experiment, model),
        )
        learned = len(train) + len(external) - (0 if choose is None else int(choose.sum()))
        predicted = VIEWS[model.tta] * sum(map(len, sets.values()))
        tasks.append(
            FoldTask(
                folder=experiment.models / model.name / f"fold_{fold}",
                fold=fold,
                fit=fit,
                trains=True,
                work=len(model.seeds) * (model.epochs * learned + predicted),
                ids=ids,
                anchors_of_test=anchors if part == "test" else None,
                encoder=encoder,
                meta=meta | {"anchors": part, "classes": labels.names, "positive": labels.positive},
            )
        )
    if taken:
        kept = ", ".join(sorted({str(weights.parents[1]) for weights in taken}))
        out.say(f"{model.name}: {len(taken)} nets were trained before, in {kept}: they only predict")
    return tasks


def frozen_tasks(
    experiment: Experiment, model: ImageModel, cache: ImageCache, inputs: dict[str, str], out: Out
) -> list[FoldTask]:
    """Tasks that fit a logistic head each, on features that are made once, here, before the first of them."""
    from image_models.fit import fit_frozen_fold

    train_z, test_z = (_features(experiment, model, cache, part, inputs, out) for part in ("train", "test"))
    target, external_target = experiment.target, _external_target(experiment)
    external_z = train_z[:0]
    if len(external_target):
        external_z = _features(experiment, model, cache, "external", inputs, out)
    tasks = []
    for fold, train, held in experiment.folds.pairs():
        inner = inner_split(target[train], experiment.split_group[train], seed=experiment.config.seed)
        sets = {"oof": train_z[held], "test": test_z}
        tasks.append(
            FoldTask(
                folder=experiment.models / model.name / f"fold_{fold}",
                fold=fold,
                fit=partial(
                    fit_frozen_fold,
                    np.concatenate([train_z[train], external_z]),
                    np.concatenate([target[train], external_target]),
                    np.concatenate([inner, np.zeros(len(external_target), bool)]),  # chosen on rows like those scored
                    sets,
                    threads=experiment.config.threads,
                ),
                trains=False,
                work=len(train) + len(external_target),
                ids={"oof": experiment.table.train["id"].iloc[held], "test": experiment.table.test["id"]},
                anchors_of_test=None,
                encoder=None,
                meta=_meta(model, inputs),
            )
        )
    return tasks


def _features(
    experiment: Experiment, model: ImageModel, cache: ImageCache, part: str, inputs: dict[str, str], out: Out
) -> NDArray[np.float16]:
    """A frozen backbone's features of the train or test rows, made once and read back."""
    folder = experiment.models / model.name
    stored = read_run(folder / "features" / part)
    if stored is None or stored.meta["inputs"] != inputs:
        from image_models.fit import embed
        from image_models.predict import VIEWS

        frame = {"train": experiment.table.train, "test": experiment.table.test, "external": experiment.external}[part]
        rows = cache.rows_for(frame["id"])
        started = time.monotonic()
        with out.bar(f"{model.name} features of the {part} rows", VIEWS[model.tta] * len(rows)) as progress:
            z = embed(
                cache, rows, seed=model.seeds[0] + experiment.config.seed, weights=folder, progress=progress,
                batch_size=model.batch_size, device=experiment.config.device, **network_settings(experiment, model),
            )  # fmt: skip
        meta = _meta(model, inputs) | {"seconds": time.monotonic() - started}
        write_run(folder / "features" / part, meta, frames={}, arrays={"z": z})
    return stored_features(folder, part).array("z")


def _external_target(experiment: Experiment) -> NDArray[np.int8]:
    return experiment.external["target"].to_numpy(np.int8)


def stored_features(folder: Path, part: str) -> Run:
    """A frozen backbone's features of the train, test or external rows, where they were written."""
    stored = read_run(folder / "features" / part)
    assert stored is not None, f"{folder}/features/{part} is written before it is read"
    return stored


def network_settings(experiment: Experiment, model: ImageModel) -> dict[str, Any]:
    """What a fit takes of the config besides its rows, recipe and training."""
    config, normalise = experiment.config, model.normalise
    return {
        "backbone": model.backbone,
        "pretrained": model.pretrained,
        "timm_args": model.timm_args,
        "mean": normalise.mean if normalise else None,
        "std": normalise.std if normalise else None,
        "tta": model.tta,
        "threads": config.threads,
        "workers": config.workers,
    }


def _encoded(
    experiment: Experiment,
    model: ImageModel,
    train: NDArray[np.intp],
    held: NDArray[np.intp],
    anchors: NDArray[np.intp] | None,
) -> tuple[str | None, dict[str, NDArray[np.float32]] | None]:
    """The metadata that the net sees of each set, by what the fold's training rows hold; and the encoder as JSON."""
    if not model.metadata:
        return None, None
    rows, test = experiment.table.train, experiment.table.test
    learned = pd.concat([rows.iloc[train], experiment.external], ignore_index=True)
    encoder = DenseMetadata(model.metadata).fit(learned)
    frames = {"train": learned, "oof": rows.iloc[held], "test": test}
    if anchors is not None:
        frames["anchor"] = rows.iloc[anchors]
    return encoder.to_json(), {name: encoder.transform(frame) for name, frame in frames.items()}


def _meta(model: ImageModel, inputs: dict[str, str]) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint(inputs),
        "level": 1,
        "kind": "frozen" if model.frozen else "image",
        "inputs": inputs,
        "settings": model.model_dump(mode="json", exclude={"pretrained", "enabled", "selected"}),
        "selected": model.selected,
    }


def _anchors(train: int, test: int, *, seed: int) -> tuple[str, NDArray[np.intp]]:
    """The fixed sample that every fold net embeds: test rows, which no net was trained on, where there are enough."""
    part, n = ("test", test) if test >= MIN_TEST_ANCHORS else ("train", train)
    chosen = np.random.default_rng(seed).choice(n, size=min(n, MAX_ANCHORS), replace=False)
    return part, np.sort(chosen)
