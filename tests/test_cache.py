from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dermstack.errors import ImageError
from image_models import cache as build_module
from image_models.cache import PIXELS_FILE, build_cache, cache_name, open_cache
from image_models.io.readers import Source, image_sources, with_contents
from image_models.settings import DoneBefore

N, SIZE = 150, 16


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> list[Source]:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"i{number}" for number in range(N)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return image_sources(folder, names)


def ids(sources: list[Source]) -> list[str]:
    return [source.path.stem for source in sources]


def again(sources: list[Source]) -> list[Source]:
    """The same files as they are now."""
    return image_sources(sources[0].path.parent, ids(sources))


def squeezed(source: Source, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """The oracle: OpenCV's own reader and area resize."""
    return cv2.resize(cv2.imread(str(source.path))[..., ::-1], size, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_each_row_holds_its_own_picture(pictures: list[Source], tmp_path: Path, n_jobs: int) -> None:
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, n_jobs=n_jobs, progress=seen.append)
    assert sum(seen) == N
    wanted = [pictures[149], pictures[0], pictures[77], pictures[0]]
    batch = cache.take(cache.rows_for(ids(wanted)))
    assert all((image == squeezed(source)).all() for image, source in zip(batch, wanted, strict=True))


def test_the_bytes_depend_on_no_number_of_processes(pictures: list[Source], tmp_path: Path) -> None:
    for n_jobs in (1, 2):
        build_cache(tmp_path / str(n_jobs), ids(pictures), pictures, size=SIZE, n_jobs=n_jobs)
    assert (tmp_path / "1" / PIXELS_FILE).read_bytes() == (tmp_path / "2" / PIXELS_FILE).read_bytes()


def test_a_short_side_image_keeps_its_aspect_and_a_batch_its_central_square(
    pictures: list[Source], tmp_path: Path
) -> None:
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=12, resize="short_side")
    whole = squeezed(pictures[7], (16, 12))
    assert (cache.image(7) == whole).all()
    assert (cache.take(np.array([7]))[0] == whole[:, 2:14]).all()
    assert cache.index[["source_height", "source_width"]].iloc[7].tolist() == [24, 32]


@pytest.mark.parametrize("resize", ["square", "short_side"])
def test_reencoded_images_are_the_pictures_within_jpegs_error(tmp_path: Path, resize: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    for number in range(5):
        picture = np.stack(
            [np.tile(ramp, (48, 1)), np.full((48, 64), 40 * number, np.uint8), 255 - np.tile(ramp, (48, 1))], 2
        )
        Image.fromarray(picture).save(folder / f"i{number}.png")
    sources = image_sources(folder, [f"i{number}" for number in range(5)])
    raw, jpeg = (
        build_cache(tmp_path / format, ids(sources), sources, size=32, resize=resize, format=format)
        for format in ("raw", "jpeg")
    )
    for row in (3, 0, 4):
        assert np.abs(raw.image(row).astype(int) - jpeg.image(row)).mean() < 2
    assert jpeg.take(np.array([4, 4, 1])).shape == (3, 32, 32, 3)
    assert (tmp_path / "jpeg" / PIXELS_FILE).stat().st_size < (tmp_path / "raw" / PIXELS_FILE).stat().st_size
    assert raw.checksum(["i0"]) != jpeg.checksum(["i0"])


def test_nothing_is_decoded_twice(pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    monkeypatch.setattr(Source, "read", lambda *_, **__: pytest.fail("decoded again"))
    cache = build_cache(tmp_path / "c", ids(pictures)[::-1], pictures[::-1], size=SIZE)
    assert len(cache.index) == N


def test_a_changed_file_and_new_ids_are_decoded_and_only_they(pictures: list[Source], tmp_path: Path) -> None:
    first = build_cache(tmp_path / "c", ids(pictures[:100]), pictures[:100], size=SIZE)
    before = first.checksum(ids(pictures[:100]))
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(pictures[3].path)
    os.utime(pictures[3].path, ns=(1, 1))
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE, progress=seen.append)
    assert seen[0] == 99
    assert sum(seen) == N
    assert cache.take(cache.rows_for(["i3"])).max() == 0
    assert cache.checksum(ids(pictures[:100])) != before, "a fingerprint must notice other pixels"
    assert cache.checksum(["i0", "i1"]) == first.checksum(["i0", "i1"])
    for source in (pictures[0], pictures[120]):
        assert (cache.take(cache.rows_for(ids([source])))[0] == squeezed(source)).all()


def test_another_picture_of_the_same_size_and_time_is_decoded(tmp_path: Path, rng: np.random.Generator) -> None:
    """A bmp has the same number of bytes whatever it shows; `cp -p`, archives and `touch` keep or set times."""
    path = tmp_path / "a.bmp"

    def built() -> np.ndarray:
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
        os.utime(path, ns=(1, 1))
        source = image_sources(tmp_path, ["a"])
        cache = build_cache(tmp_path / "c", ["a"], source, size=SIZE)
        assert (cache.image(int(cache.rows_for(["a"])[0])) == squeezed(source[0])).all()
        return cache.image(0)

    assert (built() != built()).any()


def test_a_touched_or_copied_file_is_not_decoded_again(
    pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    shutil.copytree(pictures[0].path.parent, tmp_path / "copy")
    os.utime(pictures[3].path, ns=(1, 1))
    monkeypatch.setattr(Source, "read", lambda *_, **__: pytest.fail("decoded again"))
    for folder in (pictures[0].path.parent, tmp_path / "copy"):
        assert len(build_cache(tmp_path / "c", ids(pictures), image_sources(folder, ids(pictures)), size=SIZE).index)


def test_a_cache_that_knew_times_only_is_made_anew_with_the_same_checksum(
    pictures: list[Source], tmp_path: Path
) -> None:
    """As earlier versions wrote it: stamps are times of files, the settings say nothing about stamps."""
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    checksum, length = cache.checksum(ids(pictures)), (tmp_path / "c" / PIXELS_FILE).stat().st_size
    old = cache.index.assign(stamp=[2 * source.stamp for source in pictures])
    (tmp_path / "c" / "index.parquet").write_bytes(build_module.table_bytes(old))
    settings = json.loads((tmp_path / "c" / "settings.json").read_text())
    (tmp_path / "c" / "settings.json").write_text(
        json.dumps({key: value for key, value in settings.items() if key != build_module.STAMPS_KEY})
    )
    readable = open_cache(tmp_path / "c", size=SIZE, resize="square", format="raw")
    assert readable.checksum(ids(pictures)) == checksum, "pages show it until then"
    for done in (0, N):
        seen: list[int] = []
        made = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=seen.append)
        assert seen[0] == done, "only the first time"
        assert made.checksum(ids(pictures)) == checksum, "no trained run becomes stale"
    assert (tmp_path / "c" / PIXELS_FILE).stat().st_size == length, "the old pixels are gone"


def test_a_file_that_changes_while_it_is_read_is_no_picture_of_either_content(
    pictures: list[Source], tmp_path: Path
) -> None:
    hashed = with_contents(pictures)
    shutil.copy(pictures[1].path, pictures[0].path)
    with pytest.raises(ImageError, match=r"i0\.png: changed while the images were read: run the command again"):
        build_cache(tmp_path / "c", ids(pictures), hashed, size=SIZE)


def test_swapped_channels_are_another_picture(pictures: list[Source], tmp_path: Path) -> None:
    plain = build_cache(tmp_path / "c", ids(pictures[:5]), pictures[:5], size=SIZE).take(np.arange(5))
    swapped = image_sources(pictures[0].path.parent, ids(pictures[:5]), swap_red_blue=True)
    cache = build_cache(tmp_path / "c", ids(pictures[:5]), swapped, size=SIZE)
    assert (cache.take(cache.rows_for(ids(pictures[:5]))) == plain[..., ::-1]).all()


def test_an_interrupted_build_goes_on(pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CHUNK", 16)
    monkeypatch.setattr(build_module, "SAVE_EVERY", 2)

    def stop_after_seven_chunks(done: int, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(done)
        if len(calls) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=stop_after_seven_chunks)
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=seen.append)
    assert seen[0] == 96, "three saves of 2 × 16 images were kept"
    assert [isinstance(units, DoneBefore) for units in seen] == [True, *[False] * (len(seen) - 1)]
    batch = cache.take(cache.rows_for(ids(pictures)))
    assert all((image == squeezed(source)).all() for image, source in zip(batch, pictures, strict=True))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_pixels(pictures: list[Source], tmp_path: Path) -> None:
    whole = build_cache(tmp_path / "whole", ids(pictures), pictures, size=SIZE)
    code = f"""
import sys
from pathlib import Path
from image_models import cache as cache_build
from image_models.io.readers import image_sources
cache_build.CHUNK, cache_build.SAVE_EVERY = 4, 1
ids = [f"i{{n}}" for n in range({N})]
sources = image_sources(Path({str(pictures[0].path.parent)!r}), ids)
print("ready", flush=True)
cache_build.build_cache(Path({str(tmp_path / "killed")!r}), ids, sources, size={SIZE})
"""
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cache = open_cache(tmp_path / "killed", size=SIZE, resize="square", format="raw")
        batch = cache.take(np.arange(len(cache.index)))
        assert all(
            (image == squeezed(pictures[int(row_id[1:])])).all()
            for image, row_id in zip(batch, cache.index["id"], strict=True)
        ), "the index names only whole pictures"
    cache = build_cache(tmp_path / "killed", ids(pictures), pictures, size=SIZE)
    assert (cache.take(cache.rows_for(ids(pictures))) == whole.take(whole.rows_for(ids(pictures)))).all()
    assert cache.checksum(ids(pictures)) == whole.checksum(ids(pictures))


def test_all_unreadable_images_are_reported_together(pictures: list[Source], tmp_path: Path) -> None:
    pictures[5].path.write_bytes(b"not an image")
    pictures[140].path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"2 images cannot be read(.|\n)*id i5: .*i5\.png(.|\n)*id i140: .*i140\.png"):
        build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE)
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(pictures[5].path)
    Image.fromarray(np.ones((30, 30, 3), np.uint8)).save(pictures[140].path)
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE, progress=seen.append)
    assert seen[0] == N - 2
    assert cache.take(cache.rows_for(["i140"])).max() == 1
    assert cache.unreadable.empty


def test_dropped_images_are_remembered_until_their_file_changes(
    pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures[5].path.write_bytes(b"not an image")
    for _ in range(2):
        cache = build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE, drop_unreadable=True)
        assert cache.unreadable["id"].tolist() == ["i5"]
        assert "i5.png" in cache.unreadable["file"].iloc[0]
        monkeypatch.setattr(Source, "read", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.undo()
    Image.fromarray(np.ones((30, 30, 3), np.uint8)).save(pictures[5].path)
    cache = build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE, drop_unreadable=True)
    assert cache.unreadable.empty
    assert cache.take(cache.rows_for(["i5"])).max() == 1


def test_an_id_that_is_not_cached_is_an_error(pictures: list[Source], tmp_path: Path) -> None:
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    with pytest.raises(ImageError, match="1 ids are not in"):
        cache.rows_for(["i0", "stranger"])


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_too_small_a_disk_is_told_before_the_first_image(
    pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    seen: list[int] = []
    with pytest.raises(ImageError, match=r"150 images will take .* GiB and .* GiB are free: .*`cache:`"):
        build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, format=format, progress=seen.append)
    assert sum(seen) == 0
    assert not (tmp_path / "c" / "index.parquet").exists()


def test_a_disk_that_fills_up_is_an_error_and_the_next_start_goes_on(
    pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "CHUNK", 16)
    monkeypatch.setattr(build_module, "SAVE_EVERY", 1)
    append = build_module._append

    def full_after_100(file, result):  # type: ignore[no-untyped-def]
        if file.tell() >= 100 * SIZE * SIZE * 3:
            raise OSError(28, "No space left on device")
        return append(file, result)

    monkeypatch.setattr(build_module, "_append", full_after_100)
    with pytest.raises(ImageError, match="the disk is full"):
        build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    monkeypatch.setattr(build_module, "_append", append)
    seen: list[int] = []
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, progress=seen.append)
    assert seen[0] == 96
    assert (cache.take(cache.rows_for(["i99"]))[0] == squeezed(pictures[99])).all()


def test_half_a_picture_left_behind_by_a_kill_moves_none_of_the_rest(pictures: list[Source], tmp_path: Path) -> None:
    build_cache(tmp_path / "c", ids(pictures[:10]), pictures[:10], size=SIZE)
    with (tmp_path / "c" / PIXELS_FILE).open("ab") as file:
        file.write(b"half a picture")
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    batch = cache.take(cache.rows_for(ids(pictures)))
    assert all((image == squeezed(source)).all() for image, source in zip(batch, pictures, strict=True))


def test_a_pixel_file_that_was_cut_off_is_refused(pictures: list[Source], tmp_path: Path) -> None:
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    os.truncate(tmp_path / "c" / PIXELS_FILE, 1000)
    with pytest.raises(ImageError, match="shorter than its index says: remove"):
        cache.take(np.array([0]))


def test_a_cache_of_the_former_form_is_made_anew(pictures: list[Source], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "images.u8").write_bytes(b"\0" * 1000)
    (tmp_path / "c" / "index.parquet").write_bytes(b"of other columns")
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)
    assert len(cache.index) == N
    assert not (tmp_path / "c" / "images.u8").exists()


def test_the_folder_tells_how_a_cache_is_kept() -> None:
    assert cache_name("ham", 128, "square", "raw") == "ham-128"
    assert cache_name("ham", 128, "short_side", "jpeg") == "ham-128-short_side-jpeg"


@pytest.mark.parametrize("format", ["raw", "jpeg"])
@pytest.mark.parametrize("resize", ["square", "short_side"])
def test_a_changed_pixel_is_named_and_never_seen(
    pictures: list[Source], tmp_path: Path, format: str, resize: str
) -> None:
    cache = build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE, resize=resize, format=format)
    path = tmp_path / "c" / PIXELS_FILE
    content = bytearray(path.read_bytes())
    content[int(cache.index["offset"].iloc[7]) + 3] ^= 1
    path.write_bytes(content)
    cache.take(np.array([6, 8]))
    for read in (lambda: cache.take(np.array([8, 7])), lambda: cache.image(7)):
        with pytest.raises(ImageError, match=rf"images\.bin is damaged at the image i7: remove {tmp_path / 'c'}"):
            read()


def test_no_byte_of_the_index_can_change_unnoticed(pictures: list[Source], tmp_path: Path) -> None:
    """Either it is refused by name, or what it says is the same (a byte that nobody reads)."""
    folder, few = tmp_path / "c", pictures[:5]
    index = build_cache(folder, ids(few), few, size=SIZE).index
    path = folder / "index.parquet"
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            again = open_cache(folder, size=SIZE, resize="square", format="raw").index
            assert again.equals(index)
            assert list(again) == list(index)
        except ImageError as error:
            assert "index.parquet is damaged" in str(error)  # noqa: PT017  # not every byte is read
            refused += 1
    assert refused > len(content) / 7 / 2


def test_ids_that_are_no_text_are_damage(pictures: list[Source], tmp_path: Path) -> None:
    """Of such cells pyarrow says an error that is none of Python's own."""
    few, path = pictures[:1], tmp_path / "c" / "index.parquet"
    build_cache(tmp_path / "c", ids(few), few, size=SIZE)
    index = pq.read_table(path)
    no_text = pa.Array.from_buffers(pa.string(), 1, [None, pa.array(["i0"]).buffers()[1], pa.py_buffer(b"i\xff")])
    pq.write_table(index.set_column(index.column_names.index("id"), "id", no_text), path)
    with pytest.raises(ImageError, match=r"index\.parquet is damaged"):
        open_cache(tmp_path / "c", size=SIZE, resize="square", format="raw")


def test_json_that_is_nested_too_deeply_is_damage(pictures: list[Source], tmp_path: Path) -> None:
    few, folder, nested = pictures[:1], tmp_path / "c", "[" * 200_000
    build_cache(folder, ids(few), few, size=SIZE)
    for name in ("index.parquet", "settings.json"):
        path = folder / name
        if name == "index.parquet":
            pq.write_table(pq.read_table(path).replace_schema_metadata({"pandas": nested}), path)
        else:
            path.write_text(nested)
        with pytest.raises(ImageError, match=rf"{name} is damaged"):
            open_cache(folder, size=SIZE, resize="square", format="raw")


def test_a_file_of_pixels_that_was_cut_is_not_filled_up_with_black(pictures: list[Source], tmp_path: Path) -> None:
    few = pictures[:5]
    build_cache(tmp_path / "c", ids(few), few, size=SIZE)
    os.truncate(tmp_path / "c" / PIXELS_FILE, 100)
    with pytest.raises(ImageError, match="shorter than its index says"):
        build_cache(tmp_path / "c", ids(pictures), pictures, size=SIZE)


def test_pixels_of_another_decoder_are_not_served_and_equal_ones_keep_their_checksum(
    pictures: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's input `images` is this checksum: a new decoder makes no run stale whose pixels stay the same."""
    before = build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE)
    monkeypatch.setattr("image_models.cache.DECODER_VERSION", 99)
    decoded: list[int] = []
    after = build_cache(tmp_path / "c", ids(pictures), again(pictures), size=SIZE, progress=decoded.append)
    assert decoded[0] == 0, "none of the old pixels counts as known"
    assert after.checksum(ids(pictures)) == before.checksum(ids(pictures))
    assert json.loads((tmp_path / "c" / "settings.json").read_text())["decoder"] == 99
