"""A user's own backbone: what is refused with what words, and a run with one from training to heat maps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_cli, small_config
from interrupted import trained_twice
from pydantic import ValidationError
from tiny_training import tiny_net, toy_pictures, train

from dermstack.errors import ImageError
from dermstack.serve.manifest import run_settings
from image_models.dataset import CachedImages
from image_models.net import check_backbone
from image_models.own_backbone import code_fingerprint
from stack.console import Out
from stack.experiment import open_experiment
from stack.plan.steps import make_plan
from stack.settings.config import read_config
from stack.store import read_run

CODE = """
import torch
from torch import nn
from .layers import WIDTH

class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.norm(self.convolution(x))).mean(dim=(2, 3))

def build(pretrained, width=WIDTH):
    body = Small(width)
    if pretrained:
        nn.init.constant_(body.convolution.bias, 7.0)
    return body

def tuple_of(pretrained): return (1, 2)
def map_of(pretrained): return nn.Conv2d(3, 4, 3)
def fails(pretrained): return {}["key"]
def ends(pretrained): raise SystemExit(0)
number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder my_package in the current folder, which is forgotten after the test."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "layers.py").write_text("WIDTH = 8\n")
    (folder / "my_net.py").write_text(CODE)
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "needy.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield folder
    sys.path[:] = before
    forget()


def planned_state(config: Path, name: str) -> tuple[str, list[str]]:
    """What `dermstack plan` says of a step: its state, and the keys that have changed."""
    plan = make_plan(open_experiment(read_config(config), config, Out(quiet=True)), measure=False)
    (step,) = (step for step in plan.steps if step.name == name)
    return step.state, [change.key for change in step.changes]


def forget() -> None:
    """What a new process does not know either."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("no_such_package.net:build", "there is no module 'no_such_package': run the command in the folder that holds"),
        ("my_package.none:build", r"there is no module 'my_package\.none'"),
        ("my_package.needy:build", "imports 'not_there_at_all', which is not installed"),
        ("my_package.broken:build", r"cannot be imported \(SyntaxError"),
        ("my_package.my_net:bild", r"my_net\.py has no 'bild'"),
        ("my_package.my_net:number", "is a int, not a function"),
    ],
)
def test_what_is_missing_is_named(package: Path, backbone: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        check_backbone(backbone, False)


@pytest.mark.parametrize(
    ("backbone", "arguments", "said"),
    [
        ("my_package.my_net:tuple_of", {}, r"returned a tuple: return a torch\.nn\.Module"),
        ("my_package.my_net:map_of", {}, "gives no pooled features"),
        ("my_package.my_net:fails", {}, r"fails\(pretrained=False\) failed \(KeyError: 'key'\)"),
        ("my_package.my_net:ends", {}, r"ends\(pretrained=False\) failed \(SystemExit: 0\)"),
        ("my_package.my_net:build", {"depth": 3}, r"build\(pretrained=False, depth=3\) failed \(TypeError"),
    ],
)
def test_a_function_that_gives_no_backbone_is_refused(
    package: Path, backbone: str, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        tiny_net(backbone, timm_args=arguments)


def test_the_function_gets_pretrained_and_timm_args(package: Path) -> None:
    plain, started = (tiny_net("my_package.my_net:build", pretrained=pretrained) for pretrained in (False, True))
    assert tiny_net("my_package.my_net:build", timm_args={"width": 5}).features == 5
    assert plain.features == 8
    assert (started.backbone.convolution.bias == 7).all()  # type: ignore[union-attr,operator]
    again = tiny_net("my_package.my_net:build")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True)), "seeded"


def test_layer_decay_takes_a_module_that_is_not_of_timm(package: Path, rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    images = CachedImages(pixels, np.arange(len(target)), target)
    history = train(tiny_net("my_package.my_net:build"), images, layer_decay=0.5, epochs=3)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_every_file_of_the_package_is_in_its_fingerprint(package: Path) -> None:
    first = code_fingerprint("my_package.my_net:build")
    assert code_fingerprint("my_package.my_net:tuple_of") == first
    (package / "layers.py").write_text("WIDTH = 9\n")
    second = code_fingerprint("my_package.my_net:build")
    (package / "layers.py").rename(package / "strata.py")
    assert len({first, second, code_fingerprint("my_package.my_net:build")}) == 3


@pytest.mark.parametrize("backbone", ["a b:build", ":build", "package:", "a:b:c", "os:system('x')"])
def test_a_config_takes_import_paths_only(backbone: str) -> None:
    from stack.settings.image_models import ImageModel

    with pytest.raises(ValidationError, match=r"package\.module:function"):
        ImageModel.model_validate({"name": "net", "backbone": backbone}, context={"folder": "."})


def test_a_bundle_that_names_code_is_refused_before_anything_is_imported(package: Path) -> None:
    settings = {"name": "net", "backbone": "my_package.my_net:build", "size": 32}
    with pytest.raises(ValueError, match="names code, which a bundle may not"):
        run_settings(settings)
    assert "my_package.my_net" not in sys.modules


@pytest.mark.slow
def test_a_run_with_an_own_backbone_resumes_and_is_stale_after_a_change_of_its_code(
    package: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {
        "name": "own", "backbone": "my_package.my_net:build", "pretrained": False, "size": 32, "epochs": 2,
        "batch_size": 16, "timm_args": {"width": 6},
    }  # fmt: skip
    config = small_config(small_data, tmp_path, image_models=[model], folds={"k": 2}, blend={"methods": ["rank_mean"]})
    uninterrupted, resumed = trained_twice(config, monkeypatch, before_resuming=forget)
    assert resumed == uninterrupted
    assert planned_state(config, "own") == ("skip", [])
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    run = read_run(tmp_path / "runs" / "small" / "models" / "own")
    assert run is not None
    assert run.array("oof_z").shape[1] == 6
    assert len(pd.read_csv(tmp_path / "runs" / "small" / "submission.csv")) == 60
    capsys.readouterr()
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "bundle"), "-q") == 2
    assert "own: its backbone my_package.my_net:build is your own code" in capsys.readouterr().err
    (package / "layers.py").write_text("WIDTH = 8  # changed\n")
    forget()
    assert planned_state(config, "own") == ("stale", ["backbone code"])
    assert run_cli("oof", "-c", str(config), "-q") == 2
    assert "made with other backbone code" in capsys.readouterr().err
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0, "level 2 does not need the code's file"
