"""TFRecord: what independent writers wrote is read back, and whatever is damaged is refused."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord import TFRecordWriter, example_pb2

from dermstack.errors import ImageError
from image_models.io.tfrecord import image_span, read_records

KAGGLE: dict[str, tuple[Any, str]] = {
    "image": (b"\xff\xd8 not really a picture \xff\xd9", "byte"),
    "image_name": (b"ISIC_0000001", "byte"),
    "patient_id": (-1, "int"),
    "age_approx": (47.5, "float"),
    "target": ([0, 1, -(2**63), 2**63 - 1], "int"),
    "none": ([], "int"),
}


def write(path: Path, rows: list[dict[str, tuple[Any, str]]]) -> Path:
    """By the `tfrecord` package, whose writer uses Google's protobuf and another crc32c."""
    writer = TFRecordWriter(str(path))
    for row in rows:
        writer.write(row)
    writer.close()
    return path


def frame(path: Path, *data: bytes) -> Path:
    """Records of these bytes, whatever they hold, framed with right checksums."""
    parts = []
    for one in data:
        head = struct.pack("<Q", len(one))
        parts += [head, TFRecordWriter.masked_crc(head), one, TFRecordWriter.masked_crc(one)]
    path.write_bytes(b"".join(parts))
    return path


def feature(value: bytes, name: bytes = b"x") -> bytes:
    """An Example whose one feature is these bytes of a tf.train.Feature (all short, so that lengths are one byte)."""
    entry = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(value)]) + value
    features = b"\x0a" + bytes([len(entry)]) + entry
    return b"\x0a" + bytes([len(features)]) + features


def test_what_another_library_wrote_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tfrec", [KAGGLE, {"other": (2, "int")}, {}])
    first, second, third = read_records(path)
    assert first.features == {
        "image": [KAGGLE["image"][0]],
        "image_name": [b"ISIC_0000001"],
        "patient_id": [-1],
        "age_approx": [47.5],
        "target": [0, 1, -(2**63), 2**63 - 1],
        "none": [],
    }
    assert (second.features, third.features) == ({"other": [2]}, {})


def test_a_span_is_where_the_value_lies_in_the_file(tmp_path: Path) -> None:
    rows = [{"image": (bytes([k]) * (200 * k + 1), "byte"), "n": (k, "int")} for k in range(5)]
    path = write(tmp_path / "a.tfrec", rows)
    for row, record in zip(rows, read_records(path), strict=True):
        start, length = image_span(record, "image")
        assert path.read_bytes()[start : start + length] == row["image"][0]


@pytest.mark.parametrize("name", ["picture", "n", "two", "empty"])
def test_a_feature_that_holds_no_one_picture_is_refused_by_name(tmp_path: Path, name: str) -> None:
    row = {"image": (b"a", "byte"), "n": (1, "int"), "two": ([b"a", b"b"], "byte"), "empty": (b"", "byte")}
    (record,) = read_records(write(tmp_path / "a.tfrec", [row]))
    with pytest.raises(ImageError, match=rf"'{name}' does not hold .* empty \(1 values\), image \(1 values\), two"):
        image_span(record, name)


values = st.one_of(
    st.tuples(st.lists(st.binary(max_size=300), max_size=4), st.just("byte")),
    st.tuples(st.lists(st.floats(width=32, allow_nan=False), max_size=4), st.just("float")),
    st.tuples(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), st.just("int")),
)


@given(rows=st.lists(st.dictionaries(st.text(max_size=9), values, max_size=5), min_size=1, max_size=4))
def test_whatever_another_library_writes_comes_back(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("records") / "a.tfrec", rows)
    assert [record.features for record in read_records(path)] == [
        {name: value for name, (value, _) in row.items()} for row in rows
    ]


@settings(max_examples=300)
@given(data=st.binary(max_size=60))
def test_bytes_are_read_as_protobuf_reads_them_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No other exception than ImageError, no endless loop, and nothing that protobuf reads otherwise."""
    path = frame(tmp_path_factory.mktemp("records") / "a.tfrec", feature(data))
    try:
        (record,) = read_records(path)
    except ImageError as error:
        if f"{path}: record at byte 0: not a tf.train.Example" in str(error):
            return
        raise
    oracle = example_pb2.Example()
    oracle.ParseFromString(feature(data))
    kind = oracle.features.feature["x"].WhichOneof("kind")
    expected = list(getattr(oracle.features.feature["x"], kind).value) if kind else []
    np.testing.assert_equal(record.features["x"], expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x12\x0a\x0d\x00\x00\x80\x3f\x0d\x00\x00\x00\xc0", [1.0, -2.0]),  # floats, not packed
        (b"\x1a\x04\x08\x01\x08\x02", [1, 2]),  # integers, not packed
        (b"\x1a\x06\x08\x01\x0a\x02\x02\x03", [1, 2, 3]),  # one alone, then two packed
        (b"\x1a\x0b\x08" + b"\xff" * 9 + b"\x01", [-1]),
        (b"\x1a\x02\x08\x01\x1a\x02\x08\x02", [1, 2]),  # the list in two parts
        (b"\x1a\x02\x08\x01\x0a\x03\x0a\x01a", [b"a"]),  # two kinds: the last one
        (b"\x20\x05\x29" + bytes(8) + b"\x2d" + bytes(4) + b"\x32\x02ab\x1a\x02\x08\x07", [7]),  # unknown fields
    ],
)
def test_every_way_to_write_a_list_is_read(tmp_path: Path, value: bytes, expected: list[Any]) -> None:
    oracle = example_pb2.Feature.FromString(value)
    assert list(getattr(oracle, oracle.WhichOneof("kind")).value) == expected  # protobuf's own reader agrees
    (record,) = read_records(frame(tmp_path / "a.tfrec", feature(value)))
    assert record.features == {"x": expected}


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x7f",  # a message of 127 bytes in none
        b"\x0a" + b"\xff" * 9 + b"\x01",  # of 2⁶⁴ - 1 bytes
        b"\xff" * 11,  # a number without end
        b"\x0b",  # a group
        b"\x02\x00",  # field 0
        feature(b"\x12\x05\x0a\x03abc"),  # three bytes of floats
        feature(b"\x1a\x03\x0a\x01\x80"),  # an integer cut off
        feature(b"\x0a\x03\x0a\x05a"),  # a value longer than its list
        feature(b"", name=b"\xff\xfe"),  # a name that isn't UTF-8
    ],
)
def test_what_is_no_example_is_refused_where_it_stands(tmp_path: Path, data: bytes) -> None:
    good = feature(b"\x1a\x02\x08\x07")
    records = read_records(path := frame(tmp_path / "a.tfrec", good, data))
    assert next(records).features == {"x": [7]}
    with pytest.raises(ImageError, match=f"{path}: record at byte {16 + len(good)}: not a tf.train.Example"):
        next(records)


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tfrec", [KAGGLE, {"n": (1, "int")}]).read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (path := tmp_path / "damaged.tfrec").write_bytes(damaged)
        with pytest.raises(ImageError, match=r"damaged\.tfrec: record at byte \d+: .*: download or write the file ag"):
            list(read_records(path))


def test_no_cut_goes_unnoticed_but_between_records(tmp_path: Path) -> None:
    first = write(tmp_path / "a.tfrec", [KAGGLE]).read_bytes()
    whole = write(tmp_path / "b.tfrec", [KAGGLE, KAGGLE]).read_bytes()
    for end in range(len(whole)):
        (path := tmp_path / "cut.tfrec").write_bytes(whole[:end])
        if end == len(first):
            assert len(list(read_records(path))) == 1
        else:
            with pytest.raises(ImageError, match="download or write the file again"):
                list(read_records(path))


def test_a_claimed_length_is_not_allocated(tmp_path: Path) -> None:
    head = struct.pack("<Q", 2**40)  # with its right checksum: only the size of the file speaks against it
    (path := tmp_path / "a.tfrec").write_bytes(head + TFRecordWriter.masked_crc(head) + b"few")
    tracemalloc.start()
    with pytest.raises(ImageError, match="record at byte 0: claims 1099511627776 bytes, 3 are left in the file"):
        list(read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"a text\n" * 9, "record at byte 0: not the start of a TFRecord"),
        (b"\x1f\x8b\x08" + bytes(20), "compressed with gzip: decompress it"),
    ],
)
def test_files_that_are_no_tfrecord_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (path := tmp_path / "a.tfrec").write_bytes(content)
    with pytest.raises(ImageError, match=f"{path}.*{reason}"):
        list(read_records(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.tfrec: cannot be read \(No such file"):
        list(read_records(tmp_path / "gone.tfrec"))


def test_real_shards_are_read(shared_data: Path) -> None:
    """Others made these: patient_id and all but image and image_name are integers, -1 where missing.

    They hold anatom_site_general (0 … 3, -1), not Kaggle's anatom_site_general_challenge; sex 0, 1, -1; diagnosis
    equal to target or -1; age_approx in whole years; no width or height. testAA01-8 names two pictures alike.
    """
    ids: dict[str, list[bytes]] = {}
    for name, n in {"test38-21": 21, "testAA01-8": 8}.items():
        path = shared_data / "siim2020/tfrec" / f"{name}.tfrec"
        data, records = path.read_bytes(), list(read_records(path))
        assert len(records) == n
        for record in records:
            oracle = example_pb2.Example.FromString(data[record.start : record.start + record.length])
            assert record.features == {
                key: list(getattr(one, one.WhichOneof("kind")).value) for key, one in oracle.features.feature.items()
            }
            start, length = image_span(record, "image")
            assert data[start : start + length] == record.features["image"][0]
        ids[name] = [record.features["image_name"][0] for record in records]
    assert len(set(ids["test38-21"])) == 21
    assert len(set(ids["testAA01-8"])) == 7
