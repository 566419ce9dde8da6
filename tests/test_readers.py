from __future__ import annotations

import io
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tfrecord.writer import TFRecordWriter

from dermstack.errors import ImageError
from image_models.io.readers import TFRecordNames, image_ids, image_sources, with_contents

IDS = ["ISIC_1", "ISIC_2", "ISIC_3"]


@pytest.fixture
def encoded(rng: np.random.Generator) -> dict[str, bytes]:
    """A JPEG for each id."""
    made = {}
    for row_id in IDS:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(buffer, "JPEG")
        made[row_id] = buffer.getvalue()
    return made


def as_folder(folder: Path, encoded: dict[str, bytes]) -> Path:
    for row_id, data in encoded.items():
        (folder / "pictures" / row_id[-1]).mkdir(parents=True)
        (folder / "pictures" / row_id[-1] / f"{row_id}.jpg").write_bytes(data)
    return folder / "pictures"


def as_hdf5(folder: Path, encoded: dict[str, bytes], *, opaque: bool = True) -> Path:
    with h5py.File(folder / "train.hdf5", "w") as file:
        for row_id, data in encoded.items():
            file[row_id] = np.void(data) if opaque else np.frombuffer(data, np.uint8)
    return folder / "train.hdf5"


def as_tfrecord(folder: Path, encoded: dict[str, bytes], *, id_name: str = "image_name", image: str = "image") -> Path:
    (folder / "shards").mkdir()
    writers = [TFRecordWriter(str(folder / "shards" / f"train{number}.tfrec")) for number in range(2)]
    for number, (row_id, data) in enumerate(encoded.items()):
        writers[number % 2].write(
            {image: (data, "byte"), id_name: (row_id.encode(), "byte"), "target": (number % 2, "int")}
        )
    for writer in writers:
        writer.close()
    return folder / "shards"


def pixels(place: Path, **settings: object) -> list[np.ndarray]:
    sources = image_sources(place, IDS, **settings)  # type: ignore[arg-type]
    return [source.read(min_side=40).image for source in sources]


@pytest.mark.parametrize("opaque", [True, False])
def test_a_jpeg_is_the_same_picture_wherever_it_lies(tmp_path: Path, encoded: dict[str, bytes], opaque: bool) -> None:
    outside = pixels(as_folder(tmp_path, encoded))
    assert all((a == b).all() for a, b in zip(outside, pixels(as_hdf5(tmp_path, encoded, opaque=opaque)), strict=True))
    assert all((a == b).all() for a, b in zip(outside, pixels(as_tfrecord(tmp_path, encoded)), strict=True))


def test_sources_stand_in_the_order_of_the_ids(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    for place in (as_folder(tmp_path, encoded), as_hdf5(tmp_path, encoded), as_tfrecord(tmp_path, encoded)):
        forth = image_sources(place, IDS)
        assert image_sources(place, IDS[::-1]) == forth[::-1]
        assert [source.n_bytes for source in forth] == [len(encoded[row_id]) for row_id in IDS]


def test_features_can_have_other_names(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    place = as_tfrecord(tmp_path, encoded, id_name="isic", image="jpeg")
    with pytest.raises(ImageError, match=r"feature 'image_name' holds no id.*features\.image_name.*isic, jpeg, target"):
        image_sources(place, IDS)
    assert len(pixels(place, names=TFRecordNames(image="jpeg", id="isic"))) == 3


def test_swapped_channels_are_swapped_back(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    place = as_folder(tmp_path, encoded)
    for plain, swapped in zip(pixels(place), pixels(place, swap_red_blue=True), strict=True):
        assert (plain[..., ::-1] == swapped).all()


def test_missing_images_are_listed_with_their_number(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    for place in (as_folder(tmp_path, encoded), as_hdf5(tmp_path, encoded), as_tfrecord(tmp_path, encoded)):
        with pytest.raises(ImageError, match=r"2 of 3 images are missing in .*first: x, y: restore"):
            image_sources(place, ["x", "ISIC_1", "y"])
    with pytest.raises(ImageError, match=r"is not a folder.*name the folder or file.*data\.images"):
        image_sources(tmp_path / "nowhere", ["a"])


def test_an_id_with_two_images_is_an_error_that_names_both(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    place = as_folder(tmp_path, encoded)
    (place / "ISIC_2.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"1 ids have more than one image.*ISIC_2: .*ISIC_2\.(jpg|png) and .*ISIC_2\."):
        image_sources(place, IDS)
    (place / "ISIC_2.png").unlink()
    (place / ".hidden").mkdir()
    (place / ".hidden" / "ISIC_2.jpg").write_bytes(b"")
    (place / "__MACOSX").mkdir()
    (place / "__MACOSX" / "ISIC_1.jpg").write_bytes(b"")
    assert len(image_sources(place, IDS)) == 3, "what archives leave behind is no image"


def test_a_stamp_changes_with_the_picture(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    place = as_tfrecord(tmp_path, encoded)
    before = image_sources(place, IDS)
    for shard in place.iterdir():
        shard.unlink()
    place.rmdir()
    after = image_sources(as_tfrecord(tmp_path, encoded | {"ISIC_2": encoded["ISIC_1"]}), IDS)
    changed = [a.stamp != b.stamp for a, b in zip(before, after, strict=True)]
    assert changed == [False, True, False]
    assert before[0].stamp == zlib.crc32(encoded["ISIC_1"])


def test_a_shard_that_changed_since_it_was_indexed_is_noticed(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    place = as_tfrecord(tmp_path, encoded)
    source = image_sources(place, IDS)[0]
    data = bytearray(source.path.read_bytes())
    data[source.start + 30] ^= 255
    source.path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="changed since the shard was indexed"):
        source.read(min_side=8)


def test_an_hdf5_that_leads_elsewhere_or_holds_something_else_is_refused(
    tmp_path: Path, encoded: dict[str, bytes]
) -> None:
    as_hdf5(tmp_path, encoded)
    with h5py.File(tmp_path / "odd.hdf5", "w") as file:
        file["linked"] = h5py.ExternalLink(str(tmp_path / "train.hdf5"), "ISIC_1")
        file["soft"] = h5py.SoftLink("/floats")
        file["floats"] = np.zeros(9)
        file["matrix"] = np.zeros((4, 4), np.uint8)
        file.create_group("group")
        file.create_dataset("bomb", shape=(1 << 40,), dtype=np.uint8, chunks=(1 << 16,), compression="gzip")
    for name in ("linked", "soft", "floats", "matrix", "group", "bomb"):
        with pytest.raises(ImageError, match=rf"odd\.hdf5\[{name}\] .*store the encoded bytes"):
            image_sources(tmp_path / "odd.hdf5", [name])
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(ImageError, match="not a readable HDF5 file"):
        image_sources(tmp_path / "text.hdf5", ["a"])


def test_every_kind_of_source_is_known_by_its_content(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    other = dict(zip(encoded, reversed(encoded.values()), strict=True))  # of the same number, in other places
    for make in (as_folder, as_tfrecord, as_hdf5):
        contents = []
        for name, pictures in (("a", encoded), ("b", encoded), ("c", other)):
            (tmp_path / make.__name__ / name).mkdir(parents=True)
            seen: list[int] = []
            sources = with_contents(
                image_sources(make(tmp_path / make.__name__ / name, pictures), IDS), progress=seen.append
            )
            assert sum(seen) == len(IDS)
            contents.append([source.content for source in sources])
        assert contents[0] == contents[1], make.__name__
        assert [a != b for a, b in zip(contents[0], contents[2], strict=True)] == [
            encoded[row_id] != other[row_id] for row_id in IDS
        ]


def test_a_file_that_went_is_named(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    source = image_sources(as_folder(tmp_path, encoded), IDS)[0]
    source.path.unlink()
    with pytest.raises(ImageError, match=r"ISIC_1\.jpg: no such file"):
        source.read(min_side=8)


def test_the_real_shards_are_read_with_their_own_names(shared_data: Path) -> None:
    from image_models.io.tfrecord import read_records

    for shard in sorted((shared_data / "siim2020" / "tfrec").glob("*.tfrec")):
        names = [record.features["image_name"][0].decode() for record in read_records(shard)]  # type: ignore[union-attr]
        ids = [name for name in names if names.count(name) == 1]
        for source in image_sources(shard, ids, swap_red_blue=True)[::5]:
            red, _, blue = source.read(min_side=64).image.reshape(-1, 3).mean(axis=0)
            assert red > blue, "skin is not blue"


def test_an_id_that_a_shard_holds_twice_is_an_error(shared_data: Path) -> None:
    """As found in the wild."""
    with pytest.raises(ImageError, match=r"1 ids have more than one image.*first: melanoma_6"):
        image_sources(shared_data / "siim2020" / "tfrec", ["melanoma_6"])


def test_every_picture_of_a_folder_has_an_id(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.bmp", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert image_ids(tmp_path) == ["a", "b", "c"]
    (tmp_path / "deep" / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"1 ids have more than one image .*first: a"):
        image_ids(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        image_ids(tmp_path / "empty")
