"""A study's result is a file that the config names: anybody may have written it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dermstack.errors import StoreError
from stack.settings.image_models import ImageModel
from stack.tuned import enabled_models, tuned_params, tuned_weights

MODEL = ImageModel(name="net", backbone="test_resnet", pretrained=False)
GOOD = {
    "rows_or_folds": "rows", "all": {"eta": 0.1}, "folds": {0: {"eta": 0.2}}, "runs": ["net"],
    "weights": [{"without": [], "transforms": ["rank"], "weights": [1.0], "powers": []}],
    "settings": {"lr": 0.002, "augment": "light+hair"},
}  # fmt: skip


def read(text: str, folder: Path) -> list[object]:
    """What each of the three kinds of study gives."""
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    tuned = SimpleNamespace(gbdt={"gbdt": path}, blend=path, image={"net": path})
    config = SimpleNamespace(tuned=tuned, image_models=(MODEL,))
    experiment = SimpleNamespace(config=config, rows_fingerprint="rows")
    made: list[object] = []
    for ask in (
        lambda: tuned_params(experiment, "gbdt", 0),  # type: ignore[arg-type]
        lambda: tuned_weights(experiment, ("net",)),  # type: ignore[arg-type]
        lambda: enabled_models(experiment),  # type: ignore[arg-type]
    ):
        try:
            made.append(ask())
        except StoreError as error:
            made.append(str(error))
    return made


def test_a_study_as_tune_writes_it_is_used(tmp_path: Path) -> None:
    params, weights, models = read(yaml.safe_dump(GOOD), tmp_path)
    assert params == {"eta": 0.2}
    assert isinstance(weights, dict)
    assert models == [MODEL.model_copy(update={"lr": 0.002, "augment": ("light", "hair"), "selected": True})]


@pytest.mark.parametrize("value", [3, None, "x", [], {}, [3], {"x": 3}, [[3]], {0: 3}, {0: [3]}])
@pytest.mark.parametrize("key", ["folds", "runs", "weights", "settings", None])
def test_a_study_of_another_shape_is_refused_in_own_words(key: str | None, value: object, tmp_path: Path) -> None:
    text = yaml.safe_dump(value if key is None else GOOD | {key: value})
    said = read(text, tmp_path)
    place = {"folds": 0, "runs": 1, "weights": 1, "settings": 2}.get(key or "")
    empty = key == "weights" and not value and isinstance(value, list | dict | str)  # for no fold at all
    if place is not None and not empty:
        assert isinstance(said[place], str)
    elif key is None:
        assert all(isinstance(one, str) for one in said)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("timm_args", {"checkpoint_path": "x"}), ("pretrained", "x.pth"), ("backbone", "hf-hub:x/y"), ("name", "../out"),
     ("lr", -1), ("lr", "x"), ("epochs", 0), ("unknown", 1)],
)  # fmt: skip
def test_a_study_chooses_settings_of_training_and_within_their_bounds(
    setting: str, value: object, tmp_path: Path
) -> None:
    """What else a model is made of stands in the config."""
    said = read(yaml.safe_dump(GOOD | {"settings": GOOD["settings"] | {setting: value}}), tmp_path)[2]  # type: ignore[operator]
    assert isinstance(said, str)
    assert "is not a study of an image model" in said
