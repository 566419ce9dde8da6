"""DICOM as found in the wild: pydicom's wheel ships samples of each codec and photometric interpretation."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit

from dermstack.errors import ImageError
from image_models.io.decode import decode
from image_models.io.dicom import dicom_metadata, read_dicom

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"

# One picture each; the others of the folder hold none, several frames, or are broken on purpose.
PICTURES = {
    "JPEG baseline, YBR_FULL": "SC_rgb_jpeg_dcmtk.dcm",
    "JPEG baseline, YBR_FULL_422": "SC_rgb_dcmtk_+eb+cy+s2.dcm",
    "JPEG baseline, RGB": "SC_rgb_dcmtk_+eb+cr.dcm",
    "JPEG baseline, RGB that says nothing of it": "SC_jpeg_no_color_transform.dcm",
    "JPEG extended, 12 bits": "JPGExtended.dcm",
    "JPEG lossless": "SC_rgb_jpeg_gdcm.dcm",
    "JPEG-LS lossless, 16 bits": "MR_small_jpeg_ls_lossless.dcm",
    "JPEG-LS near lossless, 8 bits": "JPEGLSNearLossless_08.dcm",
    "JPEG-LS near lossless, 16 bits": "JPEGLSNearLossless_16.dcm",
    "JPEG-LS, RGB by line": "SC_rgb_jls_lossy_line.dcm",
    "JPEG 2000, RGB": "SC_rgb_gdcm_KY.dcm",
    "JPEG 2000, YBR_RCT": "GDCMJ2K_TextGBR.dcm",
    "JPEG 2000 lossless, 16 bits": "MR_small_jp2klossless.dcm",
    "JPEG 2000, 14 bits signed": "693_J2KI.dcm",
    "RLE, RGB": "SC_rgb_rle.dcm",
    "RLE, RGB of 16 bits": "SC_rgb_rle_16bit.dcm",
    "RLE, RGB of 32 bits": "SC_rgb_rle_32bit.dcm",
    "RLE, MONOCHROME2": "MR_small_RLE.dcm",
    "deflated": "image_dfl.dcm",
    "big-endian, RGB": "ExplVR_BigEnd.dcm",
    "big-endian, MONOCHROME2": "MR_small_bigendian.dcm",
    "implicit": "MR_small_implicit.dcm",
    "YBR_FULL_422": "SC_ybr_full_422_uncompressed.dcm",
    "one bit": "liver_1frame.dcm",
    "PALETTE COLOR": "examples_palette.dcm",
}  # fmt: skip


def shipped(name: str) -> Path:
    found = sorted((SHIPPED.parent).rglob(name))
    if not found:
        pytest.skip(f"this pydicom does not ship {name}")
    return found[0]


def dataset(syntax: str, **tags: object) -> pydicom.Dataset:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    defaults = {"SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    for name, value in (defaults | tags).items():
        setattr(data, name, value)
    return data


def grey(path: Path, values: np.ndarray, **tags: object) -> Path:
    """A picture of stored values (h, w)."""
    bits = 8 * values.dtype.itemsize
    size = {"Rows": values.shape[0], "Columns": values.shape[1], "BitsAllocated": bits}
    stored = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(values.dtype.kind == "i")}
    shown = {"PhotometricInterpretation": "MONOCHROME2", "PixelData": values.tobytes()}
    dataset(ExplicitVRLittleEndian, **(size | stored | shown | tags)).save_as(path, enforce_file_format=True)
    return path


def jpeg_in_dicom(path: Path, data: bytes, *, grey: bool = False) -> Path:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    dataset(
        JPEGBaseline8Bit, Rows=height, Columns=width, SamplesPerPixel=1 if grey else 3, PlanarConfiguration=0,
        PhotometricInterpretation="MONOCHROME2" if grey else "YBR_FULL_422", PixelData=encapsulate([data]),
    ).save_as(path, enforce_file_format=True)  # fmt: skip
    return path


@pytest.mark.parametrize("name", PICTURES.values(), ids=PICTURES.keys())
def test_every_codec_and_colour_is_read(name: str) -> None:
    path = shipped(name)
    picture = read_dicom(path, min_side=4096)
    tags = pydicom.dcmread(path, stop_before_pixels=True)
    assert picture.image.dtype == np.uint8
    assert picture.image.shape == (tags.Rows, tags.Columns, 3)
    assert (picture.height, picture.width) == picture.image.shape[:2]
    assert picture.image.std() > 0, "it shows something"


@pytest.mark.parametrize(
    ("packed", "plain", "tolerance"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm", 0),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
        ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
        ("MR_small_implicit.dcm", "MR_small.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0),
        ("SC_rgb_gdcm_KY.dcm", "SC_rgb_rle.dcm", 3),
        ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_rle.dcm", 8),
        ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm", 8),
        ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 8),
        ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle.dcm", 1),
        ("SC_rgb_rle_32bit.dcm", "SC_rgb_rle.dcm", 1),
        ("SC_rgb_jpeg.dcm", "SC_rgb_jpeg_dcmd.dcm", 3),
    ],
)
def test_the_same_picture_packed_differently_looks_the_same(packed: str, plain: str, tolerance: int) -> None:
    a, b = (read_dicom(shipped(name), min_side=4096).image.astype(int) for name in (packed, plain))
    assert np.abs(a - b).mean() <= tolerance


@pytest.mark.parametrize("min_side", [16, 64, 400])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_in_dicom_is_the_jpeg_outside(
    tmp_path: Path, rng: np.random.Generator, min_side: int, mode: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)).convert(mode).save(buffer, "JPEG")
    inside = read_dicom(jpeg_in_dicom(tmp_path / "a.dcm", buffer.getvalue(), grey=mode == "L"), min_side=min_side)
    outside = decode(buffer.getvalue(), name="a", min_side=min_side)
    assert (inside.image == outside.image).all()
    assert inside[1:] == outside[1:]


def test_black_and_white_change_places_in_monochrome1(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    two = read_dicom(grey(tmp_path / "2.dcm", values), min_side=8).image
    one = read_dicom(grey(tmp_path / "1.dcm", values, PhotometricInterpretation="MONOCHROME1"), min_side=8).image
    assert (two[..., 0] == values).all()
    assert (one == 255 - two).all()


@pytest.mark.parametrize(("kind", "low", "high"), [(np.uint16, 0, 4095), (np.int16, -2048, 2047)])
def test_without_a_window_the_range_of_the_stored_bits_is_shown(
    tmp_path: Path, kind: type, low: int, high: int
) -> None:
    values = np.linspace(low, high, 64).astype(kind).reshape(8, 8)
    image = read_dicom(grey(tmp_path / "a.dcm", values, BitsStored=12, HighBit=11), min_side=8).image
    assert np.abs(image[..., 0].astype(int) - (values.astype(float) - low) / 4095 * 255).max() <= 0.5


def test_a_window_is_applied_to_what_the_values_mean(tmp_path: Path) -> None:
    """PS3.3, C.11.2.1.2.1, after the rescale of the modality."""
    values = np.arange(0, 400, 4, dtype=np.uint16).reshape(10, 10)
    path = grey(
        tmp_path / "a.dcm", values, WindowCenter=100.0, WindowWidth=201.0, RescaleSlope=2.0, RescaleIntercept=-300.0
    )
    meant = values * 2.0 - 300
    wanted = np.clip(((meant - (100 - 0.5)) / (201 - 1) + 0.5) * 255, 0, 255)
    assert np.abs(read_dicom(path, min_side=8).image[..., 0] - wanted).max() <= 0.51


@pytest.mark.parametrize("claimed", [{"Rows": 60_000, "Columns": 60_000}, {"NumberOfFrames": 1_000_000}])
def test_a_header_that_claims_gigabytes_allocates_nothing(tmp_path: Path, claimed: dict[str, int]) -> None:
    path = grey(tmp_path / "a.dcm", np.zeros((8, 8), np.uint8), **claimed)
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"a\.dcm: .*(claims|frames)"):
        read_dicom(path, min_side=8)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_models.io.dicom.MAX_ENCODED_BYTES", 20_000_000)
    path = grey(tmp_path / "plain.dcm", np.zeros((8, 8), np.uint8))
    meta = pydicom.dcmread(path, stop_before_pixels=True)
    meta.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    whole = (tmp_path / "bomb.dcm").read_bytes()
    end = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    (tmp_path / "bomb.dcm").write_bytes(whole[:end] + bomb)
    tracemalloc.start()
    for read in (lambda path: read_dicom(path, min_side=8), dicom_metadata):
        with pytest.raises(ImageError, match="inflates to more than"):
            read(tmp_path / "bomb.dcm")
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


def test_what_is_not_whole_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = shipped("SC_rgb_jpeg_dcmtk.dcm").read_bytes()
    for name, content in {
        "cut.dcm": whole[: len(whole) - 300], "head.dcm": whole[:200], "empty.dcm": b"", "text.dcm": b"hello " * 99,
        "zero.dcm": b"\0" * 999,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read_dicom(tmp_path / name, min_side=8)
    with pytest.raises(ImageError, match="no such file"):
        read_dicom(tmp_path / "gone.dcm", min_side=8)
    with pytest.raises(ImageError, match="holds no image"):
        read_dicom(shipped("rtplan.dcm"), min_side=8)
    with pytest.raises(ImageError, match="2 frames"):
        read_dicom(shipped("SC_rgb_rle_2frame.dcm"), min_side=8)
    with pytest.raises(ImageError, match="cut off, 8130 of 8192 bytes"):
        read_dicom(shipped("MR_truncated.dcm"), min_side=8)


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_a_picture_or_an_image_error(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = sorted(PICTURES.values())
    data = bytearray(shipped(names[seed % len(names)]).read_bytes())
    for place in rng.integers(0, len(data), 8):
        data[place] = rng.integers(0, 256)
    (tmp_path / "a.dcm").write_bytes(bytes(data))
    try:
        image = read_dicom(tmp_path / "a.dcm", min_side=64).image
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


@pytest.mark.parametrize(
    ("written", "years"), [("045Y", "45"), ("018M", "1.5"), ("026W", "0.4983"), ("", ""), ("old", ""), ("45", "")]
)
def test_ages_are_years(tmp_path: Path, written: str, years: str) -> None:
    path = grey(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8))
    tags = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        tags.PatientAge = written
        tags.save_as(path)
    assert dicom_metadata(path)["age_approx"] == years


def windowed(values: np.ndarray, **tags: object) -> np.ndarray:
    """pydicom's own window of values, on 0 … 255: the oracle."""
    data = dataset(ExplicitVRLittleEndian, PhotometricInterpretation="MONOCHROME2", **tags)
    data.BitsStored = 8 * values.dtype.itemsize
    top = 2.0**data.BitsStored - 1
    shown = pydicom.pixels.apply_voi_lut(pydicom.pixels.apply_modality_lut(values, data).astype(float), data)
    low = -(2.0 ** (data.BitsStored - 1)) if values.dtype.kind == "i" else 0.0
    return 255 * (np.asarray(shown, float) - low) / top


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 1000), (500, 80), (3000, 6000)])
def test_a_window_is_pydicoms_window(
    tmp_path: Path, centre: float, width: float, function: str | None, photometric: str
) -> None:
    values = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
    tags = {"WindowCenter": centre, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})
    image = read_dicom(
        grey(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric, **tags), min_side=8
    ).image
    expected = windowed(values, PixelRepresentation=0, **tags)
    assert np.abs(image[..., 0] - (255 - expected if photometric == "MONOCHROME1" else expected)).max() <= 1


def test_an_unknown_window_function_is_an_error(tmp_path: Path) -> None:
    tags = {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "CUBIC"}
    with pytest.raises(ImageError, match="CUBIC"):
        read_dicom(grey(tmp_path / "a.dcm", np.arange(256, dtype=np.uint8).reshape(16, 16), **tags), min_side=8)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope", [2.0, 1.0, -1.0, -0.5])
def test_a_negative_slope_exchanges_black_and_white(tmp_path: Path, slope: float, photometric: str) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    tags = {"RescaleSlope": slope, "RescaleIntercept": 100, "BitsStored": 12, "HighBit": 11}
    image = read_dicom(
        grey(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric, **tags), min_side=8
    ).image
    rising = np.asarray(pydicom.pixels.apply_modality_lut(values, pydicom.dcmread(tmp_path / "a.dcm")), float)
    rising = 255 * (rising - rising.min()) / np.ptp(rising)
    assert np.abs(image[..., 0] - (255 - rising if photometric == "MONOCHROME1" else rising)).max() <= 1


def test_bits_that_lie_high_in_their_word_are_those_that_lie_low(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    low = read_dicom(grey(tmp_path / "l.dcm", values, BitsStored=12, HighBit=11), min_side=8).image
    high = read_dicom(grey(tmp_path / "h.dcm", values << 4, BitsStored=12, HighBit=15), min_side=8).image
    assert (low == high).all()


def test_a_window_counts_for_grey_inside_a_jpeg(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))).save(buffer, "JPEG", quality=100)
    path = jpeg_in_dicom(tmp_path / "a.dcm", buffer.getvalue(), grey=True)
    tags = pydicom.dcmread(path)
    stored = pydicom.pixels.pixel_array(tags)
    tags.WindowCenter, tags.WindowWidth = 100, 50
    tags.save_as(path)
    expected = windowed(stored, WindowCenter=100, WindowWidth=50, PixelRepresentation=0)
    assert np.abs(read_dicom(path, min_side=8).image[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_inside_dicom_has_no_meaning(tmp_path: Path, orientation: int) -> None:
    """The header's rows and columns describe the stored pixels; pydicom, GDCM and viewers show these."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([ramp, ramp, ramp])).save(buffer, "JPEG", exif=exif, quality=95)
    image = read_dicom(jpeg_in_dicom(tmp_path / "a.dcm", buffer.getvalue()), min_side=40).image
    assert image.shape == (40, 60, 3)
    assert np.abs(image.astype(int) - ramp[..., None]).max() <= 3


def test_twelve_bits_that_claim_sixteen_are_noticed_and_can_be_declared(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = grey(tmp_path / "a.dcm", values)
    assert read_dicom(path, min_side=8).bits == 12
    declared = read_dicom(path, min_side=8, bits_stored=12).image
    assert np.abs(declared[..., 0] - 255.0 * values / 4095).max() <= 1
    with pytest.raises(ImageError, match=r"data.bits_stored"):
        read_dicom(path, min_side=8, bits_stored=10)


@pytest.mark.parametrize(("bits", "shift"), [(16, 8), (16, 0), (8, 0)])
def test_a_palette_of_bytes_in_words_is_not_black(tmp_path: Path, bits: int, shift: int) -> None:
    """Some devices write 8-bit colours into a palette of 16 bits: their high bytes are all 0."""
    words = np.arange(256) << shift
    table = words.astype("<u2" if bits == 16 else np.uint8).tobytes()
    palette = {f"{colour}PaletteColorLookupTableData": table for colour in ("Red", "Green", "Blue")}
    palette |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, bits] for colour in ("Red", "Green", "Blue")}
    pixels = {"Rows": 16, "Columns": 16, "PixelData": bytes(range(256)), "PhotometricInterpretation": "PALETTE COLOR"}
    dataset(ExplicitVRLittleEndian, **pixels, **palette).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_dicom(tmp_path / "a.dcm", min_side=8).image
    assert (image == np.arange(256, dtype=np.uint8).reshape(16, 16, 1)).all()


def test_colours_of_sixteen_bits_with_a_sign_are_refused(tmp_path: Path) -> None:
    values = np.full((8, 8, 3), -5, np.int16)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    with pytest.raises(ImageError, match=r"a\.dcm.*colours of 16 bits with a sign"):
        read_dicom(grey(tmp_path / "a.dcm", values, **tags), min_side=8)
