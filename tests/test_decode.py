from __future__ import annotations

import contextlib
import io
import logging
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from dermstack.errors import ImageError
from image_models.io.decode import decode


def read(path: Path, *, min_side: int) -> np.ndarray:
    return decode(path.read_bytes(), name=str(path), min_side=min_side).image


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    return np.stack(
        [
            np.tile(ramp, (height, 1)),
            np.full((height, width), 90, np.uint8),
            255 - np.tile(ramp, (height, 1)),
        ],
        2,
    )


def test_png_comes_back_exactly(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", min_side=8) == picture()).all()


def test_reduced_jpeg_keeps_the_asked_size_and_the_picture(tmp_path: Path) -> None:
    Image.fromarray(picture(400, 600)).save(tmp_path / "a.jpg", quality=95)
    small = read(tmp_path / "a.jpg", min_side=100)
    assert min(small.shape[:2]) >= 100
    assert small.shape[0] < 400, "libjpeg should have skipped work"
    full = np.asarray(
        Image.fromarray(picture(400, 600)).resize((small.shape[1], small.shape[0]), Image.Resampling.BOX), int
    )
    assert np.abs(small.astype(int) - full).mean() < 2


@pytest.mark.parametrize(("mode", "expected"), [("L", 120), ("RGBA", 120), ("CMYK", 120), ("P", 120), ("1", 255)])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str, expected: int) -> None:
    grey = Image.new("L", (20, 10), 255 if mode == "1" else 120).convert("RGB")
    grey = grey.quantize(4) if mode == "P" else grey.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    grey.save(path)
    image = read(path, min_side=8)
    assert image.shape == (10, 20, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 6


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 10), 0x8040, np.uint16)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", min_side=8) == 0x80).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_to_hold_a_camera_is_undone_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(48, 64)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    made = decode((tmp_path / "a.jpg").read_bytes(), name="a", min_side=48)
    with Image.open(tmp_path / "a.jpg") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert made.image.shape == upright.shape
    assert np.abs(made.image.astype(int) - upright).max() <= 2
    assert (made.height, made.width) == upright.shape[:2]


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read(tmp_path / "a.jpg", min_side=40).shape == (60, 40, 3)


def test_what_is_not_whole_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, content in {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "text.png": b"hello",
        "zero.jpg": b"\0" * 99,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read(tmp_path / name, min_side=8)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr("image_models.io.decode.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match=r"a\.png.*bomb"):
        read(tmp_path / "a.png", min_side=8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_header_that_claims_gigabytes_allocates_nothing(tmp_path: Path, suffix: str) -> None:
    """The size stands in the header of a small file: 60,000 × 60,000 pixels would be 10 GB."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    data = bytearray(path.read_bytes())
    if suffix == "jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    else:
        data[16:24] = (60_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"60000 × 60000 pixels|exceeds limit"):
        decode(bytes(data), name="bomb", min_side=64)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(("written", "named"), [("PNG", "a.jpg"), ("JPEG", "a.png")])
def test_the_content_counts_and_not_the_suffix(tmp_path: Path, written: str, named: str) -> None:
    Image.fromarray(picture()).save(tmp_path / named, format=written, quality=95)
    assert np.abs(read(tmp_path / named, min_side=40).astype(int) - picture()).mean() < 3


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    Image.fromarray(np.dstack([picture(), alpha])).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png", min_side=8)
    assert (image[:, :30] == 255).all()
    assert (image[:, 30:] == picture()[:, 30:]).all()


def bmp_with_alpha(rgb: np.ndarray, alpha: int) -> bytes:
    """A BMP of version 4 with an alpha channel, which several programs write as all 0."""
    height, width, _ = rgb.shape
    pixels = np.dstack([rgb[..., ::-1], np.full((height, width), alpha, np.uint8)])[::-1].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "grey PNG", "palette PNG", "16-bit PNG"])
def test_an_image_without_a_visible_pixel_is_refused_instead_of_white(kind: str) -> None:
    clear = Image.fromarray(np.dstack([picture(), np.zeros((40, 60), np.uint8)]))
    one_colour = Image.new("RGB", (9, 9), "brown").quantize(4)
    data = {
        "PNG": lambda: encoded(clear, "PNG"),
        "WEBP": lambda: encoded(clear, "WEBP", lossless=True, exact=True),
        "TIFF": lambda: encoded(clear, "TIFF"),
        "BMP": lambda: bmp_with_alpha(picture(), 0),
        "grey PNG": lambda: encoded(clear.convert("LA"), "PNG"),
        "palette PNG": lambda: encoded(one_colour, "PNG", transparency=one_colour.getpixel((0, 0))),
        "16-bit PNG": lambda: encoded(Image.fromarray(np.full((9, 9), 700, np.uint16)), "PNG", transparency=700),
    }[kind]()
    with pytest.raises(ImageError, match=r"^a: every pixel is transparent"):
        decode(data, name="a", min_side=8)
    opaque = decode(bmp_with_alpha(picture(), 255), name="a", min_side=8)
    assert (opaque.image == picture()).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG", "CMYK JPEG"])
def test_a_truncated_file_is_refused_whatever_other_code_has_set_in_pillow(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Training scripts set LOAD_TRUNCATED_IMAGES for the whole process; the missing part is black then."""
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(rough.convert("CMYK") if "CMYK" in kind else rough, kind.split()[-1])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    decode(data, name="a", min_side=8)
    with pytest.raises(ImageError, match="a: cannot decode"):
        decode(data[: len(data) // 2], name="a", min_side=8)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_file_of_several_images_is_refused() -> None:
    """The first of them was taken without a word, also where it is only a thumbnail."""
    one, other = Image.fromarray(picture()), Image.fromarray(255 - picture())
    several = {"save_all": True, "append_images": [other]}
    for kind in ("PNG", "WEBP"):
        with pytest.raises(ImageError, match=r"^a: is an animation of 2 images"):
            decode(encoded(one, kind, **several), name="a", min_side=8)
    with pytest.raises(ImageError, match=r"^a: holds several images, .* page 2 of 60 × 40"):
        decode(encoded(one, "TIFF", **several), name="a", min_side=8)
    with pytest.raises(ImageError, match=r"^a: holds several images, the first of 30 × 20 pixels"):
        decode(encoded(one.resize((30, 20)), "TIFF", **several), name="a", min_side=8)


def test_thumbnails_and_masks_behind_the_image_of_a_tiff_are_no_images() -> None:
    one = Image.fromarray(picture())
    mask = one.convert("1")
    mask.encoderinfo = {"tiffinfo": {254: 4}}
    thumbnails = [one.resize((30, 20)), one.resize((7, 5)), mask]
    image = decode(encoded(one, "TIFF", save_all=True, append_images=thumbnails), name="a", min_side=8).image
    assert (image == picture()).all()


def test_a_progressive_jpeg_is_the_plain_one(tmp_path: Path) -> None:
    for name, progressive in (("a.jpg", False), ("b.jpg", True)):
        Image.fromarray(picture(80, 90)).save(tmp_path / name, quality=90, progressive=progressive)
    assert (read(tmp_path / "a.jpg", min_side=80) == read(tmp_path / "b.jpg", min_side=80)).all()


def noise(rng: np.random.Generator) -> np.ndarray:
    rough = cv2.GaussianBlur(rng.integers(0, 256, (512, 640, 3), dtype=np.uint8), (0, 0), 3.0)
    return cv2.normalize(rough, None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize("size", [40, 64, 100, 128, 200, 256])
def test_reduced_decoding_ends_within_two_grey_levels(tmp_path: Path, rng: np.random.Generator, size: int) -> None:
    """After the area resize, of a smooth picture and of one as rough as skin under a microscope."""
    for image in (picture(512, 640), noise(rng)):
        Image.fromarray(image).save(tmp_path / "a.jpg", quality=90)
        full = cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1]
        ours, wanted = (
            cv2.resize(each, (size, size), interpolation=cv2.INTER_AREA).astype(int)
            for each in (read(tmp_path / "a.jpg", min_side=size), full)
        )
        assert np.abs(ours - wanted).mean() < 2


def test_real_photographs_too(shared_data: Path) -> None:
    for path in sorted((shared_data / "siim2020" / "jpeg").iterdir())[:40:4]:
        for size in (32, 64, 96):
            ours, wanted = (
                cv2.resize(each, (size, size), interpolation=cv2.INTER_AREA).astype(int)
                for each in (read(path, min_side=size), cv2.imread(str(path))[..., ::-1])
            )
            assert np.abs(ours - wanted).mean() < 2


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP"]))
def test_damage_is_a_picture_or_an_image_error(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format=kind)
    data = bytearray(buffer.getvalue())
    for place in rng.integers(0, len(data), rng.integers(1, 6)):
        data[place] = rng.integers(0, 256)
    if rng.random() < 0.4:
        data = data[: rng.integers(0, len(data))]
    try:
        made = decode(bytes(data), name="damaged", min_side=16)
    except ImageError:
        return
    assert made.image.dtype == np.uint8
    assert made.image.ndim == 3
    assert made.image.shape[2] == 3


def with_lost_tag(data: bytes, tag: int) -> bytes:
    """The file with more values of a tag of its first TIFF header than it has bytes, so that the tag is skipped."""
    order, sign = (">", b"MM\0*") if b"MM\0*" in data else ("<", b"II*\0")
    start = data.index(sign)
    (offset,) = struct.unpack_from(f"{order}I", data, start + 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start + offset)
    places = [start + offset + 2 + 12 * entry for entry in range(entries)]
    (place,) = (at for at in places if struct.unpack_from(f"{order}H", data, at) == (tag,))
    return data[: place + 4] + struct.pack(f"{order}I", 1 << 30) + data[place + 8 :]


DESCRIPTION, ORIENTATION, SOFTWARE = 270, 274, 305
TIFF_MODES = [
    ("L", None), ("L", "tiff_lzw"), ("RGB", None), ("RGB", "tiff_adobe_deflate"), ("RGBA", None), ("P", None),
    ("1", None), ("I;16", None), ("CMYK", None), ("L", "packbits"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "compression"), TIFF_MODES)
def test_a_tiff_with_a_lost_tag_is_the_same_picture_or_a_named_error(
    mode: str, compression: str | None, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without compression, depth or the meaning of 0, Pillow decodes another picture, and warns of an unnamed file."""
    buffer, tags = io.BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    tags[DESCRIPTION], tags[SOFTWARE] = "a lesion of the left arm", "a camera's own"
    grey = Image.fromarray(rng.integers(0, 256, (40, 60), dtype=np.uint8)).convert("RGB").convert(mode)
    grey.save(buffer, "TIFF", compression=compression, tiffinfo=tags)
    whole = decode(buffer.getvalue(), name="a.tif", min_side=16).image
    with Image.open(buffer) as image:
        there = list(image.tag_v2)
    readable = []
    for tag in there:
        with warnings.catch_warnings(), contextlib.suppress(ImageError):
            warnings.simplefilter("error")
            made = decode(with_lost_tag(buffer.getvalue(), tag), name="a.tif", min_side=16)
            np.testing.assert_array_equal(made.image, whole, err_msg=f"tag {tag}")
            readable.append(tag)
    assert readable == ([] if mode == "P" else [DESCRIPTION, SOFTWARE]), "after them, Pillow skips the palette too"
    assert capfd.readouterr().err == "", "no library has a word to say"


def test_a_jpeg_with_a_lost_tag_is_the_same_picture_without_a_warning() -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[DESCRIPTION] = 6, "a lesion of the left arm"
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", exif=exif)
    whole = decode(buffer.getvalue(), name="a.jpg", min_side=64).image
    assert whole.shape == (60, 40, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = decode(with_lost_tag(buffer.getvalue(), DESCRIPTION), name="a.jpg", min_side=64)
        np.testing.assert_array_equal(made.image, whole)
        made = decode(with_lost_tag(buffer.getvalue(), ORIENTATION), name="a.jpg", min_side=64)
    assert made.image.shape == (40, 60, 3), "as it is stored"


def test_what_pillow_logs_is_not_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python prints it where a program has no handlers."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    place = data.index(struct.pack("<HHI", 277, 3, 1))  # samples per pixel
    data[place + 8 : place + 10] = struct.pack("<H", 2048)
    with pytest.raises(ImageError, match=r"a\.tif: not an image that can be read"):
        decode(bytes(data), name="a.tif", min_side=16)
    assert capsys.readouterr().err == ""


@given(data=st.binary(max_size=300))
def test_random_bytes_are_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data, name="noise", min_side=16)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_cut_off_jpeg_is_never_half_a_picture(tmp_path: Path, rng: np.random.Generator, share: float) -> None:
    Image.fromarray(noise(rng)).save(tmp_path / "a.jpg", quality=90)
    whole = (tmp_path / "a.jpg").read_bytes()
    for min_side in (64, 512):
        with pytest.raises(ImageError, match="cannot decode"):
            decode(whole[: int(len(whole) * share)], name="cut", min_side=min_side)
