"""Networks as ONNX: onnxruntime, which knows nothing of torch, says of pictures what the experiment stored of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import run_cli, small_config

from dermstack.errors import ImageError
from dermstack.serve.bundle import read_bundle
from image_models.cache import build_cache, open_cache
from image_models.dataset import CachedImages
from image_models.io.readers import image_ids, image_sources
from image_models.net import Net, build_net
from image_models.onnx_export import OPSET, check_onnx, write_onnx
from stack.store import read_run
from stack.tables.table import read_new_frame
from tabular.encode import DenseMetadata

pytestmark = pytest.mark.slow  # torch takes seconds to trace the smallest network

SHAPE = {"backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1, "batch_size": 16}
MODELS = [
    SHAPE | {"name": "fused", "metadata": ["age", "sex"], "seeds": [7, 3], "target": "diagnosis"},
    SHAPE | {"name": "still", "frozen": True},
]


@pytest.fixture(scope="module")
def experiment(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a finished experiment: seeds, metadata, several classes, a frozen run."""
    folder = tmp_path_factory.mktemp("onnx")
    blend = {"methods": ["rank_mean"], "trials": 2}
    path = small_config(small_data, folder, image_models=MODELS, stackers=[], blend=blend)
    text = path.read_text().replace("    age: age_approx", "    age: age_approx\n    diagnosis: diagnosis")
    path.write_text(text)
    assert run_cli("oof", "--config", str(path), "--quiet") == 0
    assert run_cli("stack", "--no-report", "--config", str(path), "--quiet") == 0
    return path


def test_onnxruntime_says_of_the_test_images_what_the_experiment_stored(
    experiment: Path, small_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "b.zip"
    assert run_cli("bundle", "--config", str(experiment), "--out", str(target), "--onnx") == 0
    shown = capfd.readouterr()
    assert "onnx: 9 networks, opset 18; on 32 training images logits differ from torch's by at most" in shown.out
    assert shown.err == ""  # neither torch's progress nor its warnings
    bundle = read_bundle(target)
    recorded = bundle.manifest["onnx"]["differences"]
    names = [f"onnx/fused/fold_{fold}{seed}.onnx" for fold in range(3) for seed in ("", "_3")]
    names += [f"onnx/still/fold_{fold}.onnx" for fold in range(3)]
    assert sorted(recorded) == sorted(names)
    assert set(names) <= set(bundle.manifest["files"])

    cache = open_cache(experiment.parent / "cache" / "small-32", size=32, resize="square", format="raw")
    columns = {"id": "image_name", "group": "patient_id", "age": "age_approx", "sex": "sex"}
    frame, _ = read_new_frame(small_data / "test.csv", columns)
    images = cache.take(cache.rows_for(frame["id"]))
    for model in ("fused", "still"):
        run = read_run(experiment.parent / "runs" / "small" / "models" / model)
        assert run is not None
        for fold in range(3):
            stored = run.frame("test").query("fold == @fold").set_index("id").loc[frame["id"], "logit"]
            feeds = {"images": images}
            if model == "fused":
                encoder = (run.folder / f"fold_{fold}" / "metadata.json").read_text()
                feeds["metadata"] = DenseMetadata.from_json(encoder).transform(frame)
            made = []
            for name in (name for name in names if name.startswith(f"onnx/{model}/fold_{fold}")):
                content = (bundle.folder / name).read_bytes()
                assert onnx.load_from_string(content).opset_import[0].version == OPSET
                assert b".py" not in content  # nor where on this machine it was made
                made.append(onnxruntime.InferenceSession(content).run(["logit"], feeds)[0])
            assert len(made) == (2 if model == "fused" else 1)
            # A frozen net rounds z to float16, where a sum of another order may fall to the other side.
            np.testing.assert_allclose(np.mean(made, axis=0), stored, rtol=0, atol=1e-4 if model == "fused" else 1e-3)


def test_a_net_that_disagrees_leaves_no_bundle_behind(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(net: Net, path: Path, *, size: int, metadata: int) -> None:
        write_onnx(net, path, size=size, metadata=metadata)
        corrupt(path)

    monkeypatch.setattr("image_models.onnx_export.write_onnx", wrong)
    assert run_cli("bundle", "--config", str(experiment), "--out", str(tmp_path / "b.zip"), "--onnx", "--quiet") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: fused, fold 0, test_resnet: ONNX and torch differ by")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("image_models.onnx_export", "dermstack.serve.write_bundle"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run_cli("bundle", "--config", str(experiment), "--out", str(tmp_path / "b"), "--onnx", "--quiet") == 2
    assert "onnxruntime is not installed: pip install 'dermstack[onnx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pretrained_net_agrees_on_real_images_and_one_with_a_wrong_weight_does_not(
    frozen: bool, shared_data: Path, tmp_path: Path
) -> None:
    net = build_net(
        "mobilenetv2_035", pretrained=shared_data.parent / "weights" / "mobilenetv2_035_in1k.pth", frozen=frozen,
        timm_args={}, size=96, mean=None, std=None, prior=[0.9, 0.1], seed=0,
    ).eval()  # fmt: skip
    net.head.weight.data.mul_(10)  # a head that was trained has larger weights than one that starts
    pictures = shared_data / "ham10000" / "jpeg"
    ids = image_ids(pictures)[:32]
    cache = build_cache(tmp_path / "cache", ids, image_sources(pictures, ids), size=96, resize="square", format="raw")
    images = CachedImages(cache, np.arange(32))
    path = tmp_path / "net.onnx"
    write_onnx(net, path, size=96, metadata=0)
    agreement = check_onnx(path, net, images)
    assert agreement.images == 32
    assert 0 < agreement.logit_of_z < 1e-4
    assert agreement.z < 1e-4
    corrupt(path)
    with pytest.raises(ImageError, match="ONNX and torch differ by"):
        check_onnx(path, net, images)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no network")
    net = build_net(
        "test_resnet", pretrained=False, frozen=False, timm_args={}, size=32, mean=None, std=None, prior=[1, 1], seed=0
    ).eval()
    with pytest.raises(ImageError, match="onnxruntime cannot run"):
        check_onnx(tmp_path / "net.onnx", net, CachedImages(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2)))


def test_a_net_that_no_graph_can_express_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    net = build_net(
        "test_resnet", pretrained=False, frozen=False, timm_args={}, size=32, mean=None, std=None, prior=[1, 1], seed=0
    ).eval()
    whole = net.backbone.forward
    net.backbone.forward = lambda x: whole(x) if float(x.sum()) > 0 else whole(-x)  # which way depends on the picture
    with pytest.raises(ImageError, match="cannot be expressed in ONNX"):
        write_onnx(net, tmp_path / "net.onnx", size=32, metadata=0)
    assert list(tmp_path.iterdir()) == []


def corrupt(path: Path) -> None:
    """Move the file's largest block of weights by a hundredth (a factor may meet weights that are still zero)."""
    model = onnx.load(path)
    weights = max((one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT), key=_elements)
    changed = onnx.numpy_helper.to_array(weights) + np.float32(0.01)
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(model, path)


def _elements(weights: onnx.TensorProto) -> int:
    return int(np.prod(weights.dims))
