"""Level 1 on a Ray cluster of two nodes, one of which dies in the middle."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from conftest import run_cli, small_config

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from dermstack.errors import ConfigError  # noqa: E402
from stack.console import Out  # noqa: E402
from stack.level1 import jobs as task_runner  # noqa: E402
from stack.settings.config import Ray  # noqa: E402

MODEL = {
    "name": "tiny",
    "backbone": "test_resnet",
    "pretrained": False,
    "size": 32,
    "epochs": 12,
    "batch_size": 16,
    "ema": 0.9,
}


def config(data: Path, folder: Path, **changes: object) -> Path:
    folder.mkdir()
    return small_config(data, folder, image_models=[MODEL], stackers=[], **changes)


def oof(path: Path) -> bytes:
    return (path.parent / "runs" / "small" / "models" / "tiny" / "oof.parquet").read_bytes()


@pytest.mark.ci
@pytest.mark.slow
def test_a_lost_nodes_task_is_run_again_and_ends_with_the_same_bytes(small_data: Path, tmp_path: Path) -> None:
    here = config(small_data, tmp_path / "here")
    assert run_cli("oof", "-c", str(here), "-q") == 0

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    lost = threading.Event()
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        there = config(
            small_data, tmp_path / "there", backend="ray", ray={"address": cluster.address, "cpus": 1, "retries": 2}
        )
        run = there.parent / "runs" / "small" / "models" / "tiny"

        def lose_a_node() -> None:
            while not (len(list(run.glob("fold_*/seed_*/state.pt"))) == 2 or list(run.glob("fold_*/run.json"))):
                time.sleep(0.02)
            cluster.remove_node(nodes[0], allow_graceful=False)
            lost.set()

        threading.Thread(target=lose_a_node, daemon=True).start()
        assert run_cli("oof", "-c", str(there), "-q") == 0
        assert lost.wait(timeout=60)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert oof(there) == oof(here)


@pytest.mark.parametrize(("address", "status"), [(None, 2), ("auto", 0)])
def test_a_task_that_fits_no_node_is_refused_or_waits_for_a_larger_one(
    address: str | None, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in (2.0, 8.0)]
    gone = {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, gone])
    task_runner._check_resources(Ray(address=address, cpus=8), Out())
    assert capsys.readouterr().err == ""
    said = "ray.cpus 8 and ray.gpus 1, but no node has as many (2 CPUs, 0 GPUs; 8 CPUs, 0 GPUs)"
    asked = Ray(address=address, cpus=8, gpus=1)
    if status == 2:
        with pytest.raises(ConfigError, match=re.escape(said)):
            task_runner._check_resources(asked, Out())
    else:
        task_runner._check_resources(asked, Out())
        assert said in " ".join(capsys.readouterr().out.split())


def test_a_cluster_that_does_not_answer_is_named(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(small_data, tmp_path / "here", backend="ray", ray={"address": "here:and:nowhere"})
    assert run_cli("oof", "-c", str(path), "-q") == 2
    assert "ray.address here:and:nowhere" in capsys.readouterr().err
