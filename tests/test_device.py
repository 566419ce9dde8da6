"""Devices, precisions and threads by name, and what a full memory does to a batch."""

from __future__ import annotations

import platform

import cv2
import numpy as np
import pytest
import torch
from tiny_training import CPU, MeanColour, N, toy_pictures, train

from dermstack.errors import ImageError
from image_models.dataset import CachedImages
from image_models.device import freed_memory_kept, pick_device, pick_precision, retry_on_oom, use_threads
from image_models.net import Net
from image_models.predict import predict

TARGET = (np.arange(N) % 2).astype(np.int8)


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return toy_pictures(rng)[0]


class Small(MeanColour):
    """Has room for three pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x), "no part is empty"
        if len(x) > 3:
            raise torch.OutOfMemoryError("the device has room for three")
        self.sizes.append(len(x))
        return super().forward(x)


def net_of(body: torch.nn.Module) -> Net:
    return Net(body, features=3, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=False)


@pytest.mark.parametrize(("there", "picked"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(there: bool, picked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device("auto").type == picked
    assert pick_device("cpu").type == "cpu"


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ImageError, match="device cuda: torch finds no GPU"):
        pick_device("cuda")


@pytest.mark.parametrize(("real", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_for_gpus_that_have_it(real: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says yes of a T4, which only imitates it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real)
    gpu = torch.device("cuda")
    assert pick_precision("auto", gpu) == dtype
    assert pick_precision("float16", gpu) == torch.float16
    assert pick_precision("float32", gpu) == pick_precision("auto", CPU) == torch.float32


def test_threads_are_those_of_the_pictures_too() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        for threads in (2, 1):
            use_threads(threads)
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (threads, threads)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_kept_within_the_block_alone() -> None:
    """Counts the page faults of tensors larger than 32 MiB, the most that glibc's own threshold rises to."""
    resource = pytest.importorskip("resource")  # Windows has none

    def faults_of_a_tensor() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    size = 48 * 2**20
    pages = size // resource.getpagesize()
    assert faults_of_a_tensor() > 0.9 * pages
    with freed_memory_kept():
        kept = [faults_of_a_tensor() for _ in range(16)]  # the first ones find their place
    assert max(kept[-4:]) < 0.1 * pages
    assert faults_of_a_tensor() > 0.9 * pages


def test_parts_double_until_they_fit_and_no_further_than_allowed() -> None:
    tried: list[int] = []

    def step(parts: int) -> str:
        tried.append(parts)
        if parts < 5:
            raise torch.OutOfMemoryError
        return "made"

    assert retry_on_oom(step, 1, max_parts=5) == ("made", 5)
    assert tried == [1, 2, 4, 5]
    with pytest.raises(torch.OutOfMemoryError):
        retry_on_oom(step, 1, max_parts=3)
    assert tried[4:] == [1, 2, 3]


def test_training_halves_the_batch_and_says_so(pixels: np.ndarray) -> None:
    body, said = Small(), list[str]()
    train(net_of(body), CachedImages(pixels, np.arange(N), TARGET), epochs=1, say=said.append)
    assert said == [
        "out of memory on cpu: batches of 8 are now processed in 2 parts",
        "out of memory on cpu: batches of 8 are now processed in 4 parts",
    ]
    assert body.sizes == [2] * (N // 2)


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_prediction_halves_the_batch_and_says_the_same(tta: str, pixels: np.ndarray) -> None:
    net = net_of(Small())
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    whole = net_of(MeanColour())
    whole.load_state_dict(net.state_dict())
    images = CachedImages(pixels, np.arange(N - 1))  # the last batch is one picture
    made, expected = (predict(one, images, batch_size=11, device=CPU, tta=tta) for one in (net, whole))
    np.testing.assert_allclose(made.logit, expected.logit, rtol=1e-5)
    np.testing.assert_allclose(made.z, expected.z, rtol=1e-2)


def test_where_a_single_picture_is_too_much_the_way_out_is_named(pixels: np.ndarray) -> None:
    body = Small()
    body.forward = lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))  # type: ignore[method-assign]
    with pytest.raises(ImageError, match=r"memory is not enough \(none\): lower `batch_size`"):
        predict(net_of(body), CachedImages(pixels, np.arange(N)), batch_size=8, device=CPU)
