"""Reads TFRecord files of tf.train.Example without TensorFlow: the framing with its checksums, then the wire format.

Framing: length (uint64), masked crc32c of it, data, masked crc32c of that
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details); data: Protocol Buffers
(https://protobuf.dev/programming-guides/encoding), message Example of tensorflow/core/example/example.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import google_crc32c

from dermstack.errors import ImageError

Values = list[bytes] | list[float] | list[int]

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5  # wire types
_BYTES, _FLOATS, _INTS = 1, 2, 3  # members of tf.train.Feature
MAX_VALUES = 1 << 20  # per feature: one byte of the file may take a hundred in memory
_ADVICE = "download or write the file again"


@dataclass(frozen=True)
class Record:
    """One tf.train.Example: ``start`` and ``length`` of its data in the file, and the values of each feature.

    ``spans`` holds (start, length) in the file of every value of a bytes feature, so that it can be read later.
    """

    start: int
    length: int
    features: dict[str, Values]
    spans: dict[str, list[tuple[int, int]]]


def read_records(path: Path) -> Iterator[Record]:
    """Yields every record in file order and verifies its checksums; holds one record in memory at a time.

    Raises ImageError naming the file and the byte where a record is cut off, damaged or not a tf.train.Example, and for
    an empty or missing file. Records before the fault have already been yielded.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if not size:
                raise ImageError(f"{path} is empty: {_ADVICE}")
            while (at := file.tell()) < size:
                where = f"{path}: record at byte {at}"
                head = file.read(12)
                if at == 0 and head[:2] == b"\x1f\x8b":
                    raise ImageError(f"{path} is compressed with gzip: decompress it (gunzip) and name the result")
                if len(head) < 12 or not _crc_matches(head[:8], head[8:]):
                    raise ImageError(f"{where}: not the start of a TFRecord, or damaged: {_ADVICE}")
                length = int.from_bytes(head[:8], "little")
                if length + 4 > size - at - 12:  # before reading, so that a wrong length allocates no memory
                    raise ImageError(
                        f"{where}: claims {length} bytes, {size - at - 12} are left in the file: {_ADVICE}"
                    )
                data = file.read(length)
                if not _crc_matches(data, file.read(4)):
                    raise ImageError(f"{where}: its checksum does not match, the data is damaged: {_ADVICE}")
                try:
                    features, spans = _read_example(data, at + 12)
                except ValueError as error:
                    raise ImageError(f"{where}: not a tf.train.Example ({error}): write it as one") from error
                yield Record(at + 12, length, features, spans)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}): restore the file or correct its path") from error


def image_span(record: Record, name: str) -> tuple[int, int]:
    """Returns (start, length) in the file of the bytes feature ``name``. Raises ImageError unless it has one value."""
    spans = record.spans.get(name, [])
    if len(spans) == 1 and spans[0][1]:
        return spans[0]
    found = ", ".join(f"{other} ({len(of)} values)" for other, of in sorted(record.spans.items())) or "none"
    raise ImageError(
        f"record at byte {record.start - 12}: feature {name!r} does not hold one encoded image: name the one that "
        f"does (bytes features: {found})"
    )


def _crc_matches(data: bytes, stored: bytes) -> bool:
    crc: int = google_crc32c.value(data)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF  # a CRC of data that contains CRCs is weak
    return masked.to_bytes(4, "little") == stored


def _read_example(data: bytes, offset: int) -> tuple[dict[str, Values], dict[str, list[tuple[int, int]]]]:
    features: dict[str, Values] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for start, end in _messages(data, 0, len(data)):
        for entry in _messages(data, start, end):
            name = ""
            values: Values = []
            ranges: list[tuple[int, int]] = []
            for number, wire, begin, stop in _fields(data, *entry):
                if (number, wire) == (1, _LEN):
                    name = data[begin:stop].decode()
                elif (number, wire) == (2, _LEN):
                    values, ranges = _read_feature(data, begin, stop)
            features[name] = values  # the last of entries with the same name counts, as in every protobuf reader
            spans.pop(name, None)
            if ranges:
                spans[name] = [(offset + begin, stop - begin) for begin, stop in ranges]
    return features, spans


def _read_feature(data: bytes, start: int, end: int) -> tuple[Values, list[tuple[int, int]]]:
    kind = 0
    items: list[tuple[int, int, int]] = []  # wire type, begin, end
    for number, wire, begin, stop in _fields(data, start, end):
        if number in (_BYTES, _FLOATS, _INTS) and wire == _LEN:
            if number != kind:  # a oneof: the last kind counts
                kind, items = number, []
            values = ((of, a, b) for field, of, a, b in _fields(data, begin, stop) if field == 1)
            items += islice(values, MAX_VALUES + 1 - len(items))
            _check_count(len(items))
    if kind == _BYTES:
        ranges = [(begin, stop) for wire, begin, stop in items if wire == _LEN]
        return [data[begin:stop] for begin, stop in ranges], ranges
    if kind == _FLOATS:
        packed = b"".join(data[begin:stop] for wire, begin, stop in items if wire in (_LEN, _I32))
        if len(packed) % 4:
            raise ValueError(f"a list of floats of {len(packed)} bytes, not a multiple of 4")
        _check_count(len(packed) // 4)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed)), []
    integers: list[int] = []
    for wire, begin, stop in items:
        at = begin if wire in (_LEN, _VARINT) else stop
        while at < stop:
            value, at = _varint(data, at, stop)
            _check_count(len(integers) + 1)
            integers.append(value - (value >> 63 << 64))  # two's complement in 64 bits
    return integers, []


def _check_count(values: int) -> None:
    if values > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values in one feature")


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Returns begin and end of each submessage in field 1, the only field of Example and Features."""
    return ((begin, stop) for number, wire, begin, stop in _fields(data, start, end) if (number, wire) == (1, _LEN))


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields number, wire type, begin and end of the payload of each field; the caller skips unknown fields."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire, begin = tag >> 3, tag & 7, at
        if tag >> 32:  # as in protobuf: a field's number has 29 bits
            raise ValueError(f"tag {tag} at byte {begin} of the record is too large")
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire in (_I64, _I32):
            at += 8 if wire == _I64 else 4
        elif wire == _LEN:
            length, begin = _varint(data, at, end)
            at = begin + length
        else:
            raise ValueError(f"wire type {wire} at byte {begin} of the record")
        if at > end or not number:
            raise ValueError(f"field {number} at byte {begin} of the record ends beyond its message")
        yield number, wire, begin, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError(f"a number at byte {at} of the record does not end")
