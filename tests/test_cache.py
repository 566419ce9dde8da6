from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from image_models import cache as cache_module
from image_models.cache import build_cache
from image_models.errors import ImageError

N, SIZE = 150, 16


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"i{number}.png" for number in range(N)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return paths


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def squeezed(path: Path) -> np.ndarray:
    """The oracle: OpenCV's own reader and area resize."""
    return cv2.resize(cv2.imread(str(path))[..., ::-1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_each_row_holds_its_own_picture(pictures: list[Path], tmp_path: Path, n_jobs: int) -> None:
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, n_jobs=n_jobs, progress=seen.append)
    assert sum(seen) == N
    wanted = [pictures[149], pictures[0], pictures[77]]
    rows = cache.rows_for(ids(wanted))
    for row, path in zip(rows, wanted, strict=True):
        assert (cache.pixels()[row] == squeezed(path)).all()


def test_nothing_is_decoded_twice(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    monkeypatch.setattr(cache_module, "read_image", lambda *_, **__: pytest.fail("decoded again"))
    cache = build_cache(tmp_path / "c", ids(pictures)[::-1], pictures[::-1], size=SIZE)
    assert len(cache.index) == N


def test_a_changed_file_and_new_ids_are_decoded_and_only_they(pictures: list[Path], tmp_path: Path) -> None:
    first = build_cache(tmp_path / "c", ids(pictures[:100]), pictures[:100], size=SIZE)
    before = first.checksum(ids(pictures[:100]))
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(pictures[3])
    os.utime(pictures[3], ns=(1, 1))
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=seen.append)
    assert seen[0] == 99
    assert sum(seen) == N
    assert cache.pixels()[cache.rows_for(["i3"])[0]].max() == 0
    assert cache.checksum(ids(pictures[:100])) != before, "a fingerprint must notice other pixels"
    assert cache.checksum(["i0", "i1"]) == first.checksum(["i0", "i1"])
    for path in (pictures[0], pictures[120]):
        assert (cache.pixels()[cache.rows_for([path.stem])[0]] == squeezed(path)).all()


def test_an_interrupted_build_goes_on(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 16)
    monkeypatch.setattr(cache_module, "SAVE_EVERY", 2)

    def stop_after_three_saves(done: int, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=stop_after_three_saves)
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=seen.append)
    assert seen[0] == 96, "three saves of 2 × 16 images were kept"
    for path in pictures:
        assert (cache.pixels()[cache.rows_for([path.stem])[0]] == squeezed(path)).all()


def test_all_unreadable_images_are_reported_together(pictures: list[Path], tmp_path: Path) -> None:
    pictures[5].write_bytes(b"not an image")
    pictures[140].write_bytes(b"")
    with pytest.raises(ImageError, match=r"2 images cannot be read(.|\n)*id i5: .*i5\.png(.|\n)*id i140: .*i140\.png"):
        build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(pictures[5])
    Image.fromarray(np.ones((30, 30, 3), np.uint8)).save(pictures[140])
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=seen.append)
    assert seen[0] == N - 2
    assert cache.pixels()[cache.rows_for(["i140"])[0]].max() == 1


def test_an_id_that_is_not_cached_is_an_error(pictures: list[Path], tmp_path: Path) -> None:
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    with pytest.raises(ImageError, match="1 ids are not in"):
        cache.rows_for(["i0", "stranger"])
