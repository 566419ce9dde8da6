from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_models.errors import ImageError
from image_models.readers import image_paths, read_image


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
    assert (read_image(tmp_path / "a.png", at_least=8) == picture()).all()


def test_reduced_jpeg_keeps_the_asked_size_and_the_picture(tmp_path: Path) -> None:
    Image.fromarray(picture(400, 600)).save(tmp_path / "a.jpg", quality=95)
    small = read_image(tmp_path / "a.jpg", at_least=100)
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
    image = read_image(path, at_least=8)
    assert image.shape == (10, 20, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 6


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 10), 0x8040, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", at_least=8) == 0x80).all()


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg", at_least=40).shape == (60, 40, 3)


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
            read_image(tmp_path / name, at_least=8)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "gone.jpg", at_least=8)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"a\.png.*bomb"):
        read_image(tmp_path / "a.png", at_least=8)


def test_missing_images_are_listed_with_their_number(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert image_paths(tmp_path, ["a"]) == [tmp_path / "a.png"]
    with pytest.raises(ImageError, match=r"2 of 3 images are missing.*b, c"):
        image_paths(tmp_path, ["a", "b", "c"])
    with pytest.raises(ImageError, match="is not a folder"):
        image_paths(tmp_path / "nowhere", ["a"])
