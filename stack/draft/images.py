"""Finds where the images of a table lie below a folder, how their names differ from the ids, and how large they are."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermstack.errors import ImageError
from dermstack.listing import first_of

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_SAMPLE = 16  # images decoded to learn their size


@dataclass(frozen=True)
class ImageFile:
    """An image file: its folder and its name without suffix."""

    folder: str
    stem: str


@dataclass(frozen=True)
class ImageFiles:
    """What lies below a folder: image files, HDF5 and TFRecord files, archives; ``linked``: in linked folders too."""

    root: Path
    files: Sequence[ImageFile] = ()
    packed: Sequence[Path] = ()
    linked: bool = False
    archives: Sequence[Path] = ()

    @property
    def of_archives(self) -> str:
        """What to do where the images may be in an archive; "" where there is none."""
        if not self.archives:
            return ""
        names = first_of(path.name for path in self.archives)
        return f"are the images in {names}? Unpack it, and run `dermstack init` again"

    @property
    def folders(self) -> dict[str, int]:
        """Number of image files by the name of their folder, without those of the top folder."""
        counts = Counter(Path(file.folder) for file in self.files)
        return {path.name: n for path, n in sorted(counts.items()) if path != self.root}


@dataclass(frozen=True)
class FoundImages:
    """Where the images are: ``similar`` and ``linked`` are `data.similar_names` and `data.follow_links`."""

    place: Path
    test_place: Path | None = None
    similar: bool = False
    linked: bool = False
    short_side: int = 0  # median of some images, in pixels
    notes: tuple[str, ...] = ()


def image_files(root: Path) -> ImageFiles:
    """Returns the image files and the HDF5 and TFRecord files below a folder; a file stands for itself.

    Linked folders are entered only where no image lies outside them. Without the image libraries nothing is found.
    """
    if not root.is_dir():
        return ImageFiles(root, packed=[root])
    try:
        from image_models.io.decode import SUFFIXES
        from image_models.io.folders import walk_files
        from image_models.io.readers import DICOM_SUFFIXES, HDF5_SUFFIXES, TFRECORD_SUFFIXES
    except ModuleNotFoundError:  # dermstack without the extra `image`: a table alone
        return ImageFiles(root)
    for linked in (False, True):
        files, packed, archives = [], [], []
        for entry in walk_files(root, follow_links=linked):
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (a Path for each file costs seconds)
            if suffix.lower() in (*SUFFIXES, *DICOM_SUFFIXES):
                files.append(ImageFile(os.path.dirname(entry.path), stem))  # noqa: PTH120
            elif suffix.lower() in (*HDF5_SUFFIXES, *TFRECORD_SUFFIXES):
                packed.append(Path(entry.path))
            elif suffix.lower() in _ARCHIVES:
                archives.append(Path(entry.path))
        if files or packed:
            return ImageFiles(root, files, packed, linked, archives)
    return ImageFiles(root, archives=archives)


def stems_of(there: ImageFiles) -> frozenset[str]:
    """Returns the names of the image files without suffix, in lower case."""
    return frozenset(file.stem.lower() for file in there.files)


def find_images(there: ImageFiles, ids: Sequence[str], test: Sequence[str]) -> tuple[FoundImages | None, str]:
    """Finds the folder or file with one image for each of ``ids`` and of the ``test`` ids.

    Returns None where an id has no image, with a sentence that says how many of them have one.
    """
    from image_models.io.decode import SUFFIXES
    from image_models.io.folders import SimilarNames
    from image_models.io.readers import DICOM_SUFFIXES

    suffixes = (*SUFFIXES, *DICOM_SUFFIXES)

    def matched(wanted: Sequence[str], similar: bool) -> list[tuple[str, str]]:
        """Returns the folder and the id of each file that shows one of the wanted ids."""
        if not similar:
            known = set(wanted)
            return [(file.folder, file.stem) for file in there.files if file.stem in known]
        forms = SimilarNames(wanted, suffixes)
        return [(file.folder, row_id) for file in there.files for row_id in forms.ids(file.stem)]

    best: tuple[int, int] = (0, 0)
    for similar in (False, True):
        train_files, test_files = matched(ids, similar), matched(test, similar)
        found = (len({row_id for _, row_id in train_files}), len({row_id for _, row_id in test_files}))
        best = max(best, found)
        if found != (len(ids), len(test)):
            continue
        common = _places(there.root, train_files + test_files, len(ids) + len(test))
        if common:
            return _described(common, None, similar, there.linked, ids), ""
        places, test_places = _places(there.root, train_files, len(ids)), _places(there.root, test_files, len(test))
        if places and test_places:
            return _described(places, test_places[0], similar, there.linked, ids), ""
        return (
            None,
            f"some ids have several images below {there.root}, and no folder holds one of each: name one (--images)",
        )
    for place in [*there.packed, *sorted({path.parent for path in there.packed})]:
        if _holds(place, [*ids, *test]):
            return _described([place], None, False, there.linked, ids), ""
    of_test = f" and {best[1]:,} of {len(test):,} test rows" if test else ""
    return None, f"{best[0]:,} of {len(ids):,} training rows{of_test} have an image below {there.root}"


def _places(root: Path, files: Sequence[tuple[str, str]], n: int) -> list[Path]:
    """Returns the folders that hold exactly one file for each of ``n`` ids, none of them inside another of them."""
    count: Counter[str] = Counter()
    seen: defaultdict[str, set[str]] = defaultdict(set)
    top = str(root)
    for folder, row_id in files:
        inside = folder
        while True:
            count[inside] += 1
            seen[inside].add(row_id)
            # Paths below "." do not begin with it, as Path leaves it out.
            outside = os.path.dirname(inside) or os.curdir  # noqa: PTH120
            if inside in (top, outside):
                break
            inside = outside
    fitting = {folder for folder in count if count[folder] == n and len(seen[folder]) == n}
    deepest = [one for one in fitting if not any(Path(one) in Path(other).parents for other in fitting)]
    return [Path(folder) for folder in sorted(deepest)]


def _described(
    places: Sequence[Path], test_place: Path | None, similar: bool, linked: bool, ids: Sequence[str]
) -> FoundImages:
    from image_models.io.readers import FileNames, image_sources

    notes = [f"{other} holds an image of each id too: use it instead?" for other in places[1:]]
    sample = list(ids[:: max(1, len(ids) // _SAMPLE)][:_SAMPLE])
    sides, unreadable = [], []
    names = FileNames(similar=similar, follow_links=linked)
    for source in image_sources(places[0], sample, files=names):
        try:
            picture = source.read(min_side=16)
            sides.append(min(picture.height, picture.width))
        except ImageError as error:
            unreadable.append(str(error))
    if unreadable:
        notes.append(
            f"{len(unreadable)} of {len(sample)} images that were tried cannot be read ({unreadable[0][:160]}): "
            "restore them, or leave such rows out with `on_unreadable: drop`?"
        )
    side = int(np.median(sides)) if sides else 0
    return FoundImages(places[0], test_place, similar, linked, side, tuple(notes))


def _holds(place: Path, ids: Sequence[str]) -> bool:
    """Whether an HDF5 file, a shard or a folder of shards holds an image of each id."""
    from image_models.io.readers import image_ids

    try:
        return set(ids) <= set(image_ids(place))
    except ImageError:
        return False
