"""Generates lesion-like images with metadata, for the demo and the tests; they have no medical meaning.

The target depends on an image part, a metadata part (age, site) and a patient part that is visible only in the
patient's other lesions, so image and metadata together predict better than either alone. Nothing else depends on the
target: number of images per patient, ids, row order and missing cells are drawn independently of it (of the diagnosis,
only benign ones are missing).
"""

from __future__ import annotations

import json
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtr

from dermstack.errors import ConfigError, DataError
from stack.metrics.scores import Floats

VERSION = 1  # increase it when the same parameters give other bytes
PREVALENCE = 0.08
CONFIG_NAME = "demo.yaml"
_MANIFEST = "manifest.json"
_SITES = {  # name: (share, effect on the logit)
    "torso": (0.48, 0.0),
    "lower extremity": (0.24, -0.5),
    "upper extremity": (0.16, 0.5),
    "head/neck": (0.08, 1.2),
    "palms/soles": (0.03, -0.8),
    "oral/genital": (0.01, -0.8),
}
_BENIGN = {"unknown": 0.62, "nevus": 0.27, "seborrheic keratosis": 0.07, "lentigo NOS": 0.04}
_MISSING = {"sex": 0.02, "age_approx": 0.03, "anatom_site_general_challenge": 0.05, "diagnosis": 0.01}
_CUES = ("asymmetry", "border", "colours", "spots")


def write_demo_data(folder: Path, *, n_train: int = 1500, n_test: int = 600, size: int = 64, seed: int = 0) -> bool:
    """Writes a data set: images/<id>.png (`size` pixels square), train.csv, test.csv and sample_submission.csv.

    Also writes demo.yaml, a config for it, unless the folder has one.
    test_labels.csv holds the targets of the test rows, which a competition would not publish. Returns False and changes
    nothing if the folder holds this data set already. The same parameters give the same bytes; run an interrupted call
    again to complete it. 8 % of the train rows and of the test rows are positive, exactly and whoever they show, so
    that risks that are right for train can be too high or too low for test (by 16 %, standard deviation). No patient
    is in both.

    Raises ConfigError for sizes that are too small, DataError if the folder holds anything else.
    """
    if n_train < 20 or n_test < 2 or size < 16:
        raise ConfigError(
            f"n_train={n_train}, n_test={n_test}, size={size}: demo data need at least 20 training images, "
            "2 test images and 16 pixels"
        )
    parameters = {"n_train": n_train, "n_test": n_test, "size": size, "seed": seed, "version": VERSION}
    rows = _draw_rows(n_train, n_test, seed)
    if _is_finished(folder, parameters, rows):
        _write_config(folder)  # absent in a folder that an earlier version of dermstack wrote
        return False
    folder.mkdir(parents=True, exist_ok=True)
    _write_manifest(folder, parameters, finished=False)  # from here on, the folder is known to hold demo data
    (folder / "images").mkdir(exist_ok=True)
    appearance = rows[["tone", *_CUES]].to_numpy()
    for number, name in enumerate(rows["image_name"]):
        pixels = _draw_lesion(*appearance[number], size=size, rng=np.random.default_rng([seed, 1, number]))
        png = BytesIO()
        Image.fromarray(pixels).save(png, format="PNG", compress_level=6)
        _write(folder / "images" / f"{name}.png", png.getvalue())
    for name, table in _tables(rows).items():
        _write(folder / name, table.to_csv(index=False, lineterminator="\n").encode())
    _write_config(folder)
    _write_manifest(folder, parameters, finished=True)
    return True


def _write_config(folder: Path) -> None:
    if not (path := folder / CONFIG_NAME).exists():  # the user's changes stay
        _write(path, files("dermstack.cli").joinpath(CONFIG_NAME).read_bytes())


def _is_finished(folder: Path, parameters: dict[str, int], rows: pd.DataFrame) -> bool:
    """Returns True for a complete data set, False for none or a part; raises DataError if other files are there."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: name a new or empty folder for the demo data")
    if {path.name for path in folder.iterdir()} <= {f"{_MANIFEST}.part"}:
        return False
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        found = None
    if not isinstance(found, dict) or "demo_data" not in found:
        raise DataError(f"{folder} is not empty and holds no demo data: name a new or empty folder")
    if found["demo_data"] != parameters:
        raise DataError(
            f"{folder} holds demo data of other parameters ({found['demo_data']}): "
            "remove the folder or name another one"
        )
    expected = [*_tables(rows), *(f"images/{name}.png" for name in rows["image_name"])]
    return found.get("finished") is True and all((folder / file).is_file() for file in expected)


def _write_manifest(folder: Path, parameters: dict[str, int], *, finished: bool) -> None:
    manifest = {"demo_data": parameters, "finished": finished}
    _write(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    train, test = rows[rows["part"] == "train"], rows[rows["part"] == "test"]
    known = ["image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge"]
    return {
        "train.csv": train[[*known, "diagnosis", "target"]],
        "test.csv": test[known],
        "sample_submission.csv": test[["image_name"]].assign(target=0),
        "test_labels.csv": test[["image_name", "target"]],
    }


def _draw_rows(n_train: int, n_test: int, seed: int) -> pd.DataFrame:
    """Draws every row of train and test: the csv columns, `part`, and latent values that are not written."""
    rng = np.random.default_rng([seed, 0])
    parts = [_draw_part(n, rng).assign(part=part) for part, n in (("train", n_train), ("test", n_test))]
    rows = pd.concat(parts, ignore_index=True)
    numbers = rng.choice(10**7, size=len(rows), replace=False)
    rows["image_name"] = [f"DEMO_{number:07d}" for number in numbers]
    patients, _ = pd.factorize(rows["part"] + rows["patient"].astype(str))
    names = rng.choice(10**7, size=patients.max() + 1, replace=False)
    rows["patient_id"] = [f"DP_{number:07d}" for number in names[patients]]
    return rows


def _draw_part(n: int, rng: np.random.Generator) -> pd.DataFrame:
    sizes = _patient_sizes(n, rng)
    patients = len(sizes)
    patient = np.repeat(np.arange(patients), sizes)
    patient_risk = rng.normal(size=patients)[patient]
    image_risk = np.sqrt(0.8) * rng.normal(size=n) + np.sqrt(0.2) * patient_risk
    age = rng.normal(50, 15, size=patients)[patient] + rng.choice([0, 5], size=n)  # some lesions at a later visit
    age = np.clip(5 * np.round(age / 5), 15, 85)
    sites = rng.choice(len(_SITES), size=n, p=[share for share, _ in _SITES.values()])
    effects = np.array([effect for _, effect in _SITES.values()])
    metadata_logit = 0.064 * (age - 50) + effects[sites]
    logit = 1.75 * image_risk + metadata_logit + 0.3 * patient_risk
    # Targets are the k largest of logit + logistic noise: a logistic model with an exact number of positives.
    k = max(1, round(PREVALENCE * n))
    target = np.zeros(n, dtype=np.int64)
    target[np.argsort(-(logit + rng.logistic(size=n)))[:k]] = 1
    benign = rng.choice(list(_BENIGN), size=n, p=list(_BENIGN.values()))
    rows = pd.DataFrame(
        {
            "patient": patient,
            "sex": rng.choice(["male", "female"], size=patients)[patient],
            "age_approx": age,
            "anatom_site_general_challenge": np.array(list(_SITES))[sites],
            "diagnosis": np.where(target == 1, "melanoma", benign),
            "target": target,
            "image_risk": image_risk,
            "metadata_logit": metadata_logit,
            "patient_risk": patient_risk,
            "tone": rng.beta(1.6, 2.4, size=patients)[patient],
        }
    )
    for cue in _CUES:  # each is the image risk with some noise, uniform on 0..1 over all images
        rows[cue] = ndtr(0.92 * image_risk + np.sqrt(1 - 0.92**2) * rng.normal(size=n))
    for column, share in _MISSING.items():
        hidden = rng.random(n) < share
        rows[column] = rows[column].mask(hidden & (target == 0) if column == "diagnosis" else hidden)
    return rows.iloc[rng.permutation(n)].reset_index(drop=True)


def _patient_sizes(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws the number of images of each patient, 2 to 12 and n in all, independently of the target."""
    sizes = rng.integers(2, 13, size=n)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    sizes[-1] -= sizes.sum() - n
    if sizes[-1] == 1:  # no patient may have only one image
        sizes = sizes[:-1]
        sizes[np.argmin(sizes)] += 1
    return sizes


def _draw_lesion(
    tone: float,
    asymmetry: float,
    border: float,
    colours: float,
    spots: float,
    *,
    size: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draws one image (size, size, 3): skin, lesion, hairs and sensor noise."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]
    image = _skin(axis, tone, rng)

    # Shape: an ellipse whose radius varies with low harmonics for asymmetry and high ones for an irregular border.
    turn = rng.uniform(0, 2 * np.pi)
    dx, dy = x - rng.uniform(-0.12, 0.12), y - rng.uniform(-0.12, 0.12)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    stretch = rng.uniform(0.85, 1.18)
    u, v = u * stretch, v / stretch
    distance = np.hypot(u, v) + 1e-9
    around = (u + 1j * v) / distance
    low = _harmonics(around, np.array([2, 3]), rng) * (0.02 + 0.14 * asymmetry**1.5)
    high = _harmonics(around, np.arange(4, 12), rng) * (0.01 + 0.07 * border**1.5)
    radius = rng.uniform(0.45, 0.68)
    inside = radius * (1 + low + high) - distance  # > 0 in the lesion; 1 is half the image
    mask = _sigmoid(inside / rng.uniform(0.02, 0.04))

    # Colour: one brown, mixed with patches of other colours, an off-centre dark side and spots.
    brown = _mix(_rgb(176, 120, 88), _rgb(118, 74, 54), rng.beta(2, 2)) * (1 - 0.2 * tone)
    lesion = brown * (1.12 - 0.24 * _sigmoid(inside / 0.12 - 1))
    for colour in (_rgb(72, 46, 38), _rgb(182, 98, 90), _rgb(206, 164, 130)):
        patch = _sigmoid(5 * (_smooth_field(axis, 3.5, rng) - 0.9))
        lesion = _mix(lesion, colour, 0.95 * colours**1.5 * patch)
    lean = rng.uniform(0, 2 * np.pi)
    dark_side = _sigmoid(6 * (u * np.cos(lean) + v * np.sin(lean)) / radius)
    lesion = lesion * (1 - 0.5 * asymmetry**1.5 * dark_side)
    for number in range(5):  # alternately black-brown and blue-grey; a stronger cue gives more spots
        away, bearing = radius * rng.uniform(0, 0.75), rng.uniform(0, 2 * np.pi)
        gap = (u - away * np.cos(bearing)) ** 2 + (v - away * np.sin(bearing)) ** 2
        blot = np.exp(-gap / (2 * rng.uniform(0.06, 0.15) ** 2))
        share = np.clip(6 * (spots - 0.2) - number, 0, 1) * blot
        lesion = _mix(lesion, _rgb(96, 104, 124) if number % 2 else _rgb(44, 32, 30), 0.9 * share)
    pigment = 0.6 * _smooth_field(axis, 16, rng) + 0.4 * _smooth_field(axis, 30, rng)
    lesion = lesion * (1 + 0.07 * pigment)

    image = _hairs(_mix(image, lesion, mask), axis, rng)
    image = image + rng.normal(0, 4, size=image.shape)
    return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _skin(axis: Floats, tone: float, rng: np.random.Generator) -> Floats:
    colour = _mix(_rgb(236, 196, 178), _rgb(182, 132, 106), tone)
    turn = rng.uniform(0, 2 * np.pi)
    y, x = axis[:, None], axis[None, :]
    light = 1 + rng.uniform(0.02, 0.08) * (x * np.cos(turn) + y * np.sin(turn)) - 0.04 * (x**2 + y**2)
    return np.asarray(colour * (light + 0.015 * _smooth_field(axis, 8, rng)))


def _hairs(image: Floats, axis: Floats, rng: np.random.Generator) -> Floats:
    """Draws one to three bent hairs on about a third of the images."""
    if rng.random() > 0.33:
        return image
    along = np.linspace(-0.2, 1.2, 64)
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(-1, 1, size=(2, 2))
        bow = rng.normal(0, 0.15) * 4 * along * (1 - along)
        x = start[0] + along * (end[0] - start[0]) - bow * (end[1] - start[1])
        y = start[1] + along * (end[1] - start[1]) + bow * (end[0] - start[0])
        gap = ((axis[:, None] - y) ** 2)[:, None, :] + ((axis[:, None] - x) ** 2)[None, :, :]
        share = 0.75 * np.exp(-gap.min(axis=-1) / (2 * 0.014**2))
        image = _mix(image, _rgb(58, 44, 40), share)
    return image


def _harmonics(around: NDArray[np.complex128], orders: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Returns a random sum of waves along the outline, with root mean square 1; `around` holds e^(i angle)."""
    weight = rng.normal(size=len(orders)) / orders
    weight /= np.sqrt(np.sum(weight**2) / 2)
    coefficients = np.zeros(orders.max() + 1, dtype=np.complex128)
    coefficients[orders] = weight * np.exp(1j * rng.uniform(0, 2 * np.pi, size=len(orders)))
    return np.asarray(np.polyval(coefficients[::-1], around).real)


def _smooth_field(axis: Floats, frequency: float, rng: np.random.Generator) -> Floats:
    """Returns a smooth random field (n, n) of unit variance, the sum of a dozen plane waves."""
    down, across = rng.normal(0, frequency, size=(2, 12))
    start = rng.uniform(0, 2 * np.pi, size=12)
    a, b = axis[:, None] * down + start, axis[:, None] * across
    # cos(a + b) as a difference of products, one factor per axis; einsum, because BLAS sums depend on its threads.
    field = np.einsum("yk,xk->yx", np.cos(a), np.cos(b)) - np.einsum("yk,xk->yx", np.sin(a), np.sin(b))
    return np.asarray(field * np.sqrt(2 / 12))


def _sigmoid(value: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(value / 2))


def _rgb(red: float, green: float, blue: float) -> Floats:
    """Returns a colour (3, 1, 1): numpy broadcasts several times faster with the channels first."""
    return np.array([red, green, blue], dtype=np.float64)[:, None, None]


def _mix(a: Floats, b: Floats, share: Floats | float) -> Floats:
    """Returns a mixture of images or colours, (1 - share) a + share b; `share` is one number or one per pixel."""
    return np.asarray(a + (b - a) * share)
