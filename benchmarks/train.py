"""Compares a real training epoch with its limit and with a plain loop, in images per second.

The limit is the same network and step on one batch that is already in the device's memory. The plain loop is what a
user would write: cv2.imread, the same albumentations recipe, a DataLoader. "memory back" is our epoch where freed
memory goes back to the system, as by default. The four alternate, so that a busy machine slows all of them; the table
gives each round's ratios.

python benchmarks/train.py ../shared/data/ham10000/jpeg --weights ../shared/weights/mobilenetv2_100_in1k.pth
python benchmarks/train.py IMAGES --backbone efficientnet_b0 --size 256 --device cuda --augment-on device --batch 128
python benchmarks/train.py IMAGES --backbone efficientnet_b3 --size 512 --device cuda --augment-on device --batch 64
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from image_models.cache import ImageCache, build_cache
from image_models.dataset import Batch, CachedImages
from image_models.device_augment import DeviceAugment
from image_models.io.readers import image_sources
from image_models.net import build_net
from image_models.settings import Training
from image_models.train import train_net
from image_models.transforms import RECIPES, Augment

MEAN, STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


class OneBatch(CachedImages):
    """A data set that always returns the same rows, held in the device's memory so that nothing is copied."""

    def __init__(self, images: CachedImages, size: int, device: torch.device) -> None:
        super().__init__(images.pictures, images.rows, images.allowed)
        self.held = images[list(range(size))].to(device)

    def __getitem__(self, batch: list[int]) -> Batch:
        return self.held if len(batch) == len(self.held.rows) else Batch(*(part[: len(batch)] for part in self.held))


class PlainImages(Dataset[tuple[torch.Tensor, float]]):
    def __init__(self, paths: list[Path], target: np.ndarray, size: int, recipe: str) -> None:
        self.paths, self.target = paths, target
        self.transform = A.Compose([A.Resize(size, size, interpolation=cv2.INTER_AREA), *RECIPES[recipe]])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, float]:
        image = cv2.cvtColor(cv2.imread(str(self.paths[i])), cv2.COLOR_BGR2RGB)
        image = self.transform(image=image)["image"].astype(np.float32) / 255
        image = (image - MEAN) / STD
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), float(self.target[i])


def plain_epoch(paths: list[Path], target: np.ndarray, options: argparse.Namespace, device: torch.device) -> float:
    """Returns the images per second of a plain PyTorch loop in float32 (bfloat16 autocast on a GPU)."""
    net = timm.create_model(options.backbone, num_classes=1).to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images = PlainImages(paths, target, options.size, options.recipe)
    loader = DataLoader(images, batch_size=options.batch, shuffle=True, num_workers=options.workers, drop_last=True)
    started, seen = time.perf_counter(), 0
    for batch, y in loader:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logit = net(batch.to(device))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit.float(), y.to(device).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen += len(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - started)


def our_epoch(
    images: CachedImages, options: argparse.Namespace, device: torch.device, *, augmented: bool, kept: bool = True
) -> float:
    """Returns the images per second of `train_net`; without ``kept``, freed memory goes back to the system."""
    train = train_net if kept else train_net.__wrapped__
    net = build_net(
        options.backbone, pretrained=options.weights or False, frozen=False, timm_args={}, size=options.size,
        mean=None, std=None, prior=(0.9, 0.1), seed=0,
    )  # fmt: skip
    on_device = augmented and options.augment_on == "device"
    history = train(
        net, images, training=Training(epochs=1, batch_size=options.batch, lr=1e-4), seed=0, device=device,
        batch_augment=DeviceAugment(options.recipe, seed=0) if on_device else None,
        workers=options.workers if augmented else 0,
    )  # fmt: skip
    return float(history["images_per_s"].iloc[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of jpg files")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", type=Path, help="a state dict; random weights, which are as fast, if omitted")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rows", type=int, default=768, help="images per epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="light")
    parser.add_argument("--augment-on", choices=["cpu", "device"], default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    device = torch.device(options.device)

    paths = sorted(options.images.glob("*.jpg"))[: options.rows]
    target = (np.arange(len(paths)) % 10 == 0).astype(np.int8)
    with tempfile.TemporaryDirectory() as folder:
        ids = [path.stem for path in paths]
        sources = image_sources(options.images, ids)
        cache: ImageCache = build_cache(Path(folder) / "cache", ids, sources, size=options.size)
        rows = np.arange(len(paths))
        augment = Augment(options.recipe, seed=0) if options.augment_on == "cpu" else None
        real = CachedImages(cache, cache.rows_for(ids), target, augment=augment)
        held = OneBatch(CachedImages(cache, rows, target), options.batch, device)
        rounds = []
        for number in range(options.rounds + 1):
            rates = (
                our_epoch(held, options, device, augmented=False),
                our_epoch(real, options, device, augmented=True),
                our_epoch(real, options, device, augmented=True, kept=False),
                plain_epoch(paths, target, options, device),
            )
            if number:  # the first round is a warm-up
                rounds.append(rates)
    print(f"{options.backbone}, {options.size} px, {options.recipe} on the {options.augment_on}, {options.device}")
    heads = ("limit", "ours", "memory back", "plain", "ours/limit", "ours/back", "ours/plain")
    print(f"{'round':8}" + "".join(f"{head:>12}" for head in heads))
    ratios = np.array([(ours / limit, ours / back, ours / plain) for limit, ours, back, plain in rounds])
    for number, (rates, of_round) in enumerate(zip(rounds, ratios, strict=True), 1):
        print(f"{number:<8}" + "".join(f"{rate:12.1f}" for rate in rates) + "".join(f"{r:12.2f}" for r in of_round))
    print(f"{'median':56}" + "".join(f"{ratio:12.2f}" for ratio in np.median(ratios, axis=0)))


if __name__ == "__main__":
    main()
