"""Applies a bundle's models to rows: level-1 predictions of the image runs, level 2, blend and calibration.

Every transform is the one that `dermstack stack` applied to the test rows, so the same row gets the same score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import BundleError, DermstackError
from dermstack.serve.bundle import Bundle, ImageRun
from image_models.cache import ImageCache
from image_models.predict import VIEW_COUNTS, NetOutput
from image_models.saved import NetCache, predict_frozen, predict_trained
from stack.blend.blender import Blender, blender_from_state
from stack.blend.calibration import Calibrator, calibrator_from_state
from stack.config import Features
from stack.features import FoldFeatures
from stack.predictions import Predictions, Scales, standardised
from stack.submission import score_unseen
from tabular.embeddings import Alignment
from tabular.encode import DenseMetadata, MetadataEncoder
from tabular.models import Bag, read_bag


@dataclass(frozen=True)
class Level1:
    """Predictions of the image runs for n rows, not yet averaged over the fold networks."""

    logits: NDArray[np.float32]  # (folds, n, runs)
    z: dict[str, NDArray[np.floating]]  # by run: (folds, n, r) aligned components, or (n, d) of a frozen backbone

    def fold_embeddings(self, fold: int, frozen: Collection[str]) -> dict[str, NDArray[np.floating]]:
        """Returns the embeddings of one fold's networks by run: (n, r), or (n, d) for a run in ``frozen``."""
        return {name: values if name in frozen else values[fold] for name, values in self.z.items()}


@dataclass(frozen=True)
class FittedEnsemble:
    """Level 2 and the blend, read from a bundle."""

    names: tuple[str, ...]  # the image runs
    scales: Scales
    features: tuple[FoldFeatures, ...]  # one for each fold; empty without stackers
    bags: dict[str, tuple[Bag, ...]]  # by stacker: one for each fold
    blender: Blender
    calibrator: Calibrator
    threads: int

    def score(self, frame: pd.DataFrame, level1: Level1) -> pd.DataFrame:
        """Returns score and p_calibrated for n rows of whole groups; ``frame`` has id, group, age, sex and site."""
        logits = self.all_logits(frame, level1)
        folds, rows, runs = logits.shape
        nets = np.repeat(np.arange(folds, dtype=np.int8)[:, None], runs, axis=1)
        score = score_unseen(self.blender, _as_test_predictions((*self.names, *self.bags), logits, nets))
        assert len(score) == rows
        return pd.DataFrame({"score": score, "p_calibrated": self.calibrator(score)}, index=frame.index)

    def all_logits(self, frame: pd.DataFrame, level1: Level1) -> NDArray[np.float32]:
        """Returns logits (folds, n, runs) of the image runs, then the stackers; fold k's are made by its own models."""
        made = [
            self.fold_logits(fold, frame, level1.logits[fold], level1.fold_embeddings(fold, self._frozen))
            for fold in range(len(level1.logits))
        ]
        return np.stack(made)

    def fold_logits(
        self, fold: int, frame: pd.DataFrame, logits: NDArray[np.float32], z: Mapping[str, NDArray[np.floating]]
    ) -> NDArray[np.float32]:
        """Returns one fold's logits (n, runs) from its networks' ``logits`` (n, image runs) and ``z`` (n, r)."""
        if not self.bags:
            return logits
        nets = np.full((1, logits.shape[1]), fold, np.int8)
        scaled = standardised(_as_test_predictions(self.names, logits[None], nets), self.scales).test[0]
        x = self.features[fold].transform(frame, scaled, z)
        made = [bags[fold].logit(_of(x, bags[fold]), threads=self.threads) for bags in self.bags.values()]
        return np.column_stack([logits, *made])

    def embeddings(self, level1: Level1) -> list[dict[str, NDArray[np.floating]]]:
        """Returns, for each fold by run, the centred components (n, r) for level-2 distances; [] without stackers."""
        return [
            {name: features.components(name, z) for name, z in level1.fold_embeddings(fold, self._frozen).items()}
            for fold, features in enumerate(self.features)
        ]

    @property
    def _frozen(self) -> frozenset[str]:
        return frozenset(self.features[0].frozen) if self.features else frozenset()


def read_fitted(bundle: Bundle) -> FittedEnsemble:
    """Reads the fitted level 2, blend and calibration of a bundle. Raises BundleError if a part cannot be read."""
    manifest = bundle.manifest
    names = tuple(run.name for run in bundle.image_runs)
    try:
        features = tuple(_features(bundle, fold) for fold in range(bundle.folds)) if manifest["stackers"] else ()
        bags = {
            entry["name"]: tuple(
                read_bag(entry["kind"], bundle.folder / "stackers" / entry["name"] / f"fold_{fold}", shift=shift)
                for fold, shift in enumerate(entry["shifts"])
            )
            for entry in manifest["stackers"]
        }
        scales = {
            run: {int(net): (float(mean), float(spread)) for net, (mean, spread) in of_nets.items()}
            for run, of_nets in manifest["scales"].items()
        }
        blender = blender_from_state(bundle.json("blend/blend.json"), bundle.arrays("blend"))
        calibrator = calibrator_from_state(bundle.json("blend/calibration.json"))
    except (DermstackError, LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise BundleError(f"{bundle.folder}: level 2 or the blend cannot be read ({error}): bundle again") from error
    return FittedEnsemble(names, scales, features, bags, blender, calibrator, int(manifest["threads"]))


def alignments(bundle: Bundle) -> dict[str, Alignment]:
    """Returns, by trained run whose embedding enters level 2, the map of its networks' z onto shared axes."""
    kept = bundle.arrays("alignment")
    names = [name for name, kind in bundle.manifest["embeddings"].items() if kind == "aligned"]
    return {name: Alignment(kept[f"{name}_mean"], kept[f"{name}_turn"], np.nan, np.nan) for name in names}


def _of(x: pd.DataFrame, bag: Bag) -> pd.DataFrame:
    """Returns the columns of the matrix that a stacker was fitted on. Raises BundleError where one is absent."""
    if absent := sorted(set(bag.columns) - set(x)):
        raise BundleError(f"a stacker was fitted on {absent[0]!r}, which the bundle's features lack: bundle again")
    return x[list(bag.columns)]


def _features(bundle: Bundle, fold: int) -> FoldFeatures:
    manifest = bundle.manifest
    frozen = {name for name, kind in manifest["embeddings"].items() if kind == "frozen"}
    names = tuple(run.name for run in bundle.image_runs)
    features = FoldFeatures(
        Features(**manifest["features"]), names, frozen=frozen, seed=0, columns=bundle.table_columns
    )
    place = f"features/fold_{fold}"
    return features.restore((bundle.folder / place / "features.json").read_text("utf-8"), bundle.arrays(place))


def _as_test_predictions(names: tuple[str, ...], logits: NDArray[np.float32], nets: NDArray[np.int8]) -> Predictions:
    """Returns logits of new rows in the form in which level 2 and the blend take test rows."""
    runs = len(names)
    nothing = np.empty((0, runs), np.float32)
    return Predictions(names, np.empty(0, np.intp), nothing, nothing.astype(np.int8), logits, nets)


ENCODER = "metadata.json"  # beside the weights of a network that takes metadata
WORDS = ("sex", "site")  # columns with a role whose values are categories
_MAX_LISTED = 5  # values in a message


def known_words(bundle: Bundle) -> dict[str, list[str]]:
    """Returns the values of each column of words that level 2 or a network knows, sorted; [] where none uses it.

    The columns are `WORDS` and the table's categorical ones. Raises BundleError if an encoder cannot be read.
    """
    features = bundle.manifest["features"]
    places = sorted((bundle.folder / "features").glob("fold_*/features.json")) if bundle.manifest["stackers"] else []
    encoders = []
    try:
        for place in places:
            state = json.loads(place.read_text(encoding="utf-8"))
            parts = [state["metadata"]] if features["metadata"] else []
            parts += [state["table"]] if state.get("table") else []
            encoders += [MetadataEncoder.from_json(json.dumps(part)) for part in parts]
        for place in sorted((bundle.folder / "image_models").glob(f"*/fold_*/{ENCODER}")):
            encoders.append(DenseMetadata.from_json(place.read_text(encoding="utf-8")).encoder_)
    except (DermstackError, OSError, ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{bundle.folder}: the metadata encoding cannot be read ({error}): bundle again") from error
    return {
        column: sorted(
            {
                word
                for encoder in encoders
                for kept in (encoder.categories_, encoder.rare_)  # a rare word has no indicator, but is known
                for word in kept.get(column, ())
            }
        )
        for column in (*WORDS, *bundle.table_columns.categorical)
    }


def unknown_words(bundle: Bundle, frame: pd.DataFrame) -> list[str]:
    """Returns a note for each column of words that has values in ``frame`` which do not occur in the training rows."""
    notes = []
    for column, known in known_words(bundle).items():
        values = frame[column].dropna()
        counts = values[~values.isin(known)].value_counts()
        if not known or counts.empty:
            continue
        listed = ", ".join(f"{word!r} in {rows:,} rows" for word, rows in counts.iloc[:_MAX_LISTED].items())
        more = f", … {len(counts)} values in all" if len(counts) > _MAX_LISTED else ""
        notes.append(
            f"{column} has values that do not occur in training: {listed}{more}. They count as no known category; if "
            f"they are other words for {', '.join(map(repr, known[:_MAX_LISTED]))}"
            f"{', …' if len(known) > _MAX_LISTED else ''}, use these words"
        )
    return notes


def passes_per_image(bundle: Bundle) -> int:
    """Returns how many forward passes an image needs: over runs, folds, seeds and test-time augmentation views."""
    return sum(
        VIEW_COUNTS[run.settings["tta"]] * (1 if run.kind == "frozen" else bundle.folds * len(run.settings["seeds"]))
        for run in bundle.image_runs
    )


def read_level1(
    bundle: Bundle,
    caches: dict[int, ImageCache],
    frame: pd.DataFrame,
    *,
    store: NetCache | None = None,
    device: str = "auto",
    workers: int = 0,
    see: Callable[[ImageRun, int, NetOutput], object] = lambda run, fold, made: None,
    progress: Callable[[int], object] = lambda done: None,
) -> Level1:
    """Predicts the rows of ``frame`` (id, age, sex, site) with every image run; ``caches`` hold their images by size.

    ``see`` is called with the raw predictions of each run and fold (of a frozen backbone once, as fold 0), ``progress``
    with the number of images that went through a network. ``store`` may keep networks for the next call. Raises
    ImageError.
    """
    options = {
        "store": store or NetCache(max_bytes=0), "device": device, "threads": int(bundle.manifest["threads"]),
        "workers": workers, "progress": progress,
    }  # fmt: skip
    aligned, kinds = alignments(bundle), bundle.manifest["embeddings"]
    logits = np.empty((bundle.folds, len(frame), len(bundle.image_runs)), np.float32)
    z: dict[str, NDArray[np.floating]] = {}
    for place, run in enumerate(bundle.image_runs):
        cache = caches[int(run.settings["size"])]
        for fold, made in enumerate(_predict_folds(bundle, run, cache, frame, **options)):
            logits[fold, :, place] = made.logit
            if fold == 0 or run.kind != "frozen":
                see(run, fold, made)
            if kinds.get(run.name) == "frozen":
                z[run.name] = made.z
            elif run.name in aligned:
                components = aligned[run.name].transform(made.z, fold)
                z.setdefault(run.name, np.empty((bundle.folds, *components.shape), np.float32))[fold] = components
    return Level1(logits, {name: z[name] for name in kinds})


def fold_folder(bundle: Bundle, run: ImageRun, fold: int) -> Path:
    """Returns the folder with the weights of a fold's networks."""
    return bundle.folder / "image_models" / run.name / f"fold_{fold}"


def encoded_metadata(bundle: Bundle, run: ImageRun, fold: int, frame: pd.DataFrame) -> NDArray[np.float32]:
    """Returns age, sex and site encoded for the fold's networks, (n, m); m = 0 if they take no metadata."""
    path = fold_folder(bundle, run, fold) / ENCODER
    if not path.is_file():
        return np.empty((len(frame), 0), np.float32)
    return DenseMetadata.from_json(path.read_text(encoding="utf-8")).transform(frame)


def _predict_folds(
    bundle: Bundle, run: ImageRun, cache: ImageCache, frame: pd.DataFrame, **options: Any
) -> Iterator[NetOutput]:
    rows = cache.rows_for(frame["id"])
    folds = [fold_folder(bundle, run, fold) for fold in range(bundle.folds)]
    if run.kind == "frozen":
        yield from predict_frozen(folds, run.settings, cache, rows, **options)
        return
    for number, fold in enumerate(folds):
        metadata = encoded_metadata(bundle, run, number, frame)
        yield predict_trained(fold, run.settings, cache, rows, metadata, positive=run.positive, **options)
