"""Every orientation, photometric interpretation and depth of a generated file, against an independent decoder."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from dermstack.errors import ImageError
from image_models.io.decode import Picture, decode


def ramp(top: int, height: int = 24, width: int = 40) -> np.ndarray:
    """Grey that has no symmetry, up to ``top``: uint16 (h, w)."""
    y, x = np.mgrid[:height, :width]
    values = (y * width + x) / (height * width - 1) * top
    return np.round(values).astype(np.uint16)


def read(data: bytes, **options: object) -> Picture:
    return decode(data, name="a", min_side=4096, **options)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Pillow's transpose of the 8-bit image, as the oracle."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(values)
    image.info["exif"] = exif.tobytes()
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png16(values: np.ndarray, *, orientation: int = 1, chunks: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A 16-bit PNG written chunk by chunk."""
    colours = {2: 0, 3: {3: 2, 4: 6}.get(values.shape[-1], 0)}[values.ndim]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colours, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    extra = [chunk(b"eXIf", exif_bytes(orientation).removeprefix(b"Exif\0\0"))] if orientation != 1 else []
    extra += [chunk(*each) for each in chunks]
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    values: np.ndarray, *, photometric: int, orientation: int = 1, endian: str = "<", packed_bits: int = 0
) -> bytes:
    """A grey, uncompressed TIFF of one strip, written tag by tag."""
    bits = packed_bits or 8 * values.dtype.itemsize
    if packed_bits == 12:
        pairs = values.reshape(-1, 2)
        first, second = pairs[:, 0], pairs[:, 1]
        strip = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    else:
        strip = values.astype(values.dtype.newbyteorder(endian)).tobytes()
    entries = [
        (256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (274, 3, orientation), (277, 3, 1), (278, 4, values.shape[0]), (279, 4, len(strip)),
    ]  # fmt: skip
    strip += b"\0" * (len(strip) % 2)
    folder = struct.pack(f"{endian}H", len(entries))
    for tag, kind, value in entries:
        folder += struct.pack(f"{endian}HHI", tag, kind, 1)
        folder += struct.pack(f"{endian}I", value) if kind == 4 else struct.pack(f"{endian}HH", value, 0)
    order = b"II*\0" if endian == "<" else b"MM\0*"
    return order + struct.pack(f"{endian}I", 8 + len(strip)) + strip + folder + b"\0\0\0\0"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["grey8", "grey16", "colour8", "colour16"])
def test_a_png_is_turned_as_its_tag_says_at_every_depth(kind: str, orientation: int) -> None:
    grey = ramp(65535)
    values = grey if "grey" in kind else np.dstack([grey, grey[::-1], grey[:, ::-1]])
    shown = (values >> 8).astype(np.uint8)
    if "16" in kind:
        data = png16(values, orientation=orientation)
        assert (imagecodecs.png_decode(data) == values).all(), "the file is a valid PNG"
    else:
        buffer = io.BytesIO()
        Image.fromarray(shown).save(buffer, "PNG", exif=exif_bytes(orientation))
        data = buffer.getvalue()
    expected = turned(shown, orientation)
    made = read(data)
    assert (made.image == (expected[..., None] if expected.ndim == 2 else expected)).all()
    assert (made.height, made.width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("dtype", "photometric", "orientation"), list(product([np.uint8, np.uint16], [0, 1], range(1, 9)))
)
def test_a_grey_tiff_shows_what_libtiff_shows(dtype: type, photometric: int, orientation: int) -> None:
    """imagecodecs reads the stored values; WhiteIsZero (0) means that they are the negative."""
    values = ramp(np.iinfo(dtype).max).astype(dtype)
    data = tiff(values, photometric=photometric, orientation=orientation)
    assert (imagecodecs.tiff_decode(data) == values).all(), "the file is a valid TIFF"
    shown = (values >> (8 * values.dtype.itemsize - 8)).astype(np.uint8)
    expected = turned(255 - shown if photometric == 0 else shown, orientation)
    assert (read(data).image == expected[..., None]).all()


def test_a_big_endian_tiff_is_the_little_endian_one() -> None:
    """Pillow knows no big-endian WhiteIsZero of 16 bits: an error, never a negative."""
    values = ramp(65535)
    little, big = (tiff(values, photometric=1, endian=endian) for endian in "<>")
    assert (read(little).image == read(big).image).all()
    with pytest.raises(ImageError):
        read(tiff(values, photometric=0, endian=">"))


def test_a_twelve_bit_tiff_has_all_its_grey_levels() -> None:
    values = ramp(4095)
    made = read(tiff(values, photometric=1, packed_bits=12))
    assert (made.image == (values >> 4)[..., None]).all()
    assert made.bits == 16, "the file says how many bits it has, so nothing is in doubt"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "raw"])
def test_compression_does_not_change_a_negative(compression: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ramp(65535)).save(buffer, "TIFF", compression=compression, tiffinfo={262: 0})
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert image.tag_v2[262] == 0
    stored = imagecodecs.tiff_decode(buffer.getvalue())
    assert (read(buffer.getvalue()).image == (255 - (stored >> 8).astype(np.uint8))[..., None]).all()


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_fewer_bits_in_sixteen_keep_their_grey_levels(bits: int, channels: int) -> None:
    grey = ramp(2**bits - 1)
    values = (
        grey if channels == 1 else np.dstack([grey, grey[::-1], grey[:, ::-1], np.full_like(grey, 65535)][:channels])
    )
    made = read(png16(values), bits_stored=bits)
    colours = values[..., None] if channels == 1 else values[..., :3]
    assert (made.image == colours >> (bits - 8)).all()
    assert made.bits == bits
    assert read(png16(values)).bits == bits, "without the setting, what is there is still noticed"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fewer_bits_of_colour_are_turned_too(orientation: int) -> None:
    grey = ramp(4095)
    values = np.dstack([grey, grey[::-1], grey[:, ::-1]])
    made = read(png16(values, orientation=orientation), bits_stored=12)
    assert (made.image == turned((values >> 4).astype(np.uint8), orientation)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_values_beyond_the_stored_bits_are_an_error(channels: int) -> None:
    values = np.dstack([ramp(5000)] * channels)[..., 0 if channels == 1 else slice(None)]
    with pytest.raises(ImageError, match=r"5000 takes 13 bits.*data.bits_stored"):
        read(png16(values), bits_stored=12)


def test_the_transparent_value_of_sixteen_bit_grey_is_white_as_of_eight() -> None:
    values = ramp(65535)
    made = read(png16(values, chunks=((b"tRNS", struct.pack(">H", int(values[3, 5]))),)))
    expected = (values >> 8).astype(np.uint8)
    expected[values == values[3, 5]] = 255
    assert (made.image == expected[..., None]).all()


def jpeg_with_segments(before: int, orientation: int) -> bytes:
    """A JPEG whose EXIF stands behind ``before`` bytes of other segments."""
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([(ramp(65535) >> 8).astype(np.uint8)] * 3)).save(buffer, "JPEG", quality=95)
    data, filler = buffer.getvalue(), b""
    while before > 0:
        length = min(before, 65_000)
        filler += b"\xff\xed" + struct.pack(">H", length + 2) + b"\0" * length
        before -= length
    exif = exif_bytes(orientation)
    return data[:2] + filler + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("before", [0, 60_000, 70_000, 400_000])
def test_exif_counts_wherever_it_stands(before: int, orientation: int) -> None:
    data = jpeg_with_segments(before, orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    made = read(data).image
    assert made.shape == expected.shape
    assert np.abs(made.astype(int) - expected).max() <= 2
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(made.astype(int) - opencv[..., ::-1]).max() <= 2


def stray(data: bytes, count: int) -> bytes:
    assert data.endswith(b"\xff\xd9")
    return data[:-2] + b"\x12" * count + data[-2:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("count", [9, 50, 3000])
def test_stray_bytes_after_the_last_pixel_are_tolerated_where_asked(count: int, progressive: bool) -> None:
    buffer = io.BytesIO()
    Image.fromarray((ramp(65535, 64, 80) >> 8).astype(np.uint8)).save(buffer, "JPEG", progressive=progressive)
    whole = buffer.getvalue()
    with pytest.raises(ImageError, match="on_unreadable: tolerate"):
        read(stray(whole, count))
    made = read(stray(whole, count), tolerate=True)
    assert (made.image == read(whole).image).all()
    assert made.note.endswith("extraneous bytes before marker 0xd9")
    assert read(whole, tolerate=True).note == ""


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_what_does_not_decode_to_the_end_is_not_tolerated(share: float, rng: np.random.Generator) -> None:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
    whole = buffer.getvalue()
    cut = whole[: int(len(whole) * share)]
    for damaged in (cut, cut + b"\xff\xd9", cut + b"\x12\x12\xff\xd9"):
        with pytest.raises(ImageError):
            read(damaged, tolerate=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_picture_of_ninety_million_pixels_is_read(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("L", (9_500, 9_500), 90).save(buffer, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    before = Image.MAX_IMAGE_PIXELS
    made = read(buffer.getvalue())
    assert (made.height, made.width) == (9_500, 9_500)
    assert (made.image[::500, ::500] == 90).all()
    assert before == Image.MAX_IMAGE_PIXELS, "the limit of other users of Pillow is untouched"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_more_than_two_hundred_million_pixels_are_refused_before_they_are_decoded(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("1", (14_200, 14_200)).save(buffer, kind, **({"compression": "group4"} if kind == "TIFF" else {}))
    with pytest.raises(ImageError, match="more than 200 million"):
        read(buffer.getvalue())


def tiff_of_planes(values: np.ndarray) -> bytes:
    """An uncompressed RGB TIFF (h, w, 3) whose channels are stored apart, one strip each."""
    height, width, _ = values.shape
    data = np.ascontiguousarray(np.moveaxis(values, 2, 0)).tobytes()
    longs = struct.pack("<6I", *(8 + plane * len(data) // 3 for plane in range(3)), *[len(data) // 3] * 3)
    bits, lists = 8 * values.dtype.itemsize, 8 + len(data)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, lists + 24), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, lists), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 3, lists + 12), (284, 3, 1, 2),
    ]  # fmt: skip
    folder = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    after = longs + struct.pack("<4H", bits, bits, bits, 0)
    return b"II*\0" + struct.pack("<I", lists + len(after)) + data + after + struct.pack("<H", 10) + folder + bytes(4)


def test_channels_that_are_stored_apart_are_read_or_refused() -> None:
    """Pillow takes uncompressed ones of 16 bits for 8 bits, and shows the upper half of the picture in stripes."""
    values = np.dstack([ramp(65535), 65535 - ramp(65535), ramp(65535) // 3])
    eight = (values >> 8).astype(np.uint8)
    assert np.array_equal(read(tiff_of_planes(eight)).image, eight)
    with pytest.raises(ImageError, match="channels of 16 bits that are stored apart"):
        read(tiff_of_planes(values))


def test_signed_numbers_of_eight_bits_are_refused() -> None:
    """Pillow takes -1 for 255, so that the darkest half of the grey levels is the brightest."""
    data = tiff(ramp(255).astype(np.uint8), photometric=1)
    signed = data.replace(struct.pack("<HHIHH", 274, 3, 1, 1, 0), struct.pack("<HHIHH", 339, 3, 1, 2, 0))
    assert signed != data
    with pytest.raises(ImageError, match="signed numbers of 8 bits"):
        read(signed)


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_grey_of_sixteen_bits_fills_the_range_of_its_fifteen(order: str) -> None:
    values = ramp(32767).astype(f"{order}i2")
    data = signed_tiff(values, order)
    expected = (ramp(32767) >> 7).astype(np.uint8)  # as skimage.util.img_as_ubyte has it
    for bits_stored in (0, 15, 16):
        picture = read(data, bits_stored=bits_stored)
        assert np.array_equal(picture.image[..., 0], expected)
        assert picture.bits == 15
    few = signed_tiff(ramp(4095).astype(f"{order}i2"), order)
    assert np.array_equal(read(few, bits_stored=12).image[..., 0], (ramp(4095) >> 4).astype(np.uint8))


@pytest.mark.parametrize("depth", [2, 4])
def test_negative_grey_is_refused_as_such(depth: int) -> None:
    values = ramp(30000).astype(f"<i{depth}") - 1000
    with pytest.raises(ImageError, match="negative grey values, down to -1000"):
        read(signed_tiff(values, "<"))


def signed_tiff(values: np.ndarray, order: str) -> bytes:
    """A TIFF of signed grey numbers."""
    height, width = values.shape
    data, bits = values.tobytes(), 8 * values.dtype.itemsize
    words = [
        (256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
        (279, len(data)), (339, 2),
    ]  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in words)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(words)) + entries + bytes(4)
