"""How fast pictures are decoded and augmented, beside Pillow's bare decoding and torchvision: `make bench-input`.

Each figure compares whole passes over the same JPEG files in interleaved blocks (trueport.runtime.timing). One core is
one thread of one process, all cores are a worker process a core. Nothing here passes or fails: on a busy machine run it
again. `--seconds 2` gives a first impression, `--pictures 1000` smoother figures.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from trueport.pipeline import feed as feed_module
from trueport.pipeline.data import Folder
from trueport.pipeline.data.tensors import IN_MEMORY_BYTES
from trueport.pipeline.feed import Feed
from trueport.pipeline.recipe import AugmentSection
from trueport.runtime.machine import available_cores, describe_machine
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare
from trueport.runtime.timing import Paired, compare

SIZE = (500, 375)
"""Width and height, the median of ImageNet's photographs."""
BATCH = 50
FRAME = Preprocessing(height=224, width=224)
CROP = AugmentSection(crop_scale=(0.08, 1.0), horizontal_flip=0.5)
FULL = AugmentSection(crop_scale=(0.08, 1.0), horizontal_flip=0.5, randaugment=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each figure")
    chosen = parser.parse_args()
    machine = describe_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {machine.os}")
    print(", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    print(f"{chosen.pictures} JPEG pictures of {SIZE[0]} x {SIZE[1]}, to {FRAME.width} x {FRAME.height}")
    print("\n| figure | images/s | beside | images/s | times as fast |\n| --- | --- | --- | --- | --- |")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), chosen.pictures)
        for name, beside, paired in figures(Path(folder), chosen.seconds):
            interval = f"{paired.ratio:.2f} ({paired.ratio_low:.2f} to {paired.ratio_high:.2f})"
            speeds = f"{paired.b.images_per_s:,.0f} | {beside} | {paired.a.images_per_s:,.0f}"
            print(f"| {name} | {speeds} | {interval} |", flush=True)


def figures(folder: Path, seconds: float) -> Iterator[tuple[str, str, Paired]]:
    """What is measured, what it is measured against, and both."""
    files = sorted(folder.rglob("*.jpg"))
    cores = available_cores()

    def against(other: Callable[[], object], own: Callable[[], object]) -> Paired:
        return compare(other, own, seconds=seconds, min_blocks=3, rows=len(files))

    def bare() -> None:
        for file in files:
            with Image.open(file) as image:
                image.load()

    def evaluated() -> None:
        for file in files:
            prepare(file, FRAME)

    yield "as evaluation prepares them, one core", "Pillow's decoding", against(bare, evaluated)
    for name, augment in (("crop, flip", CROP), ("crop, flip, RandAugment", FULL)):
        with closing(fed(folder, augment, workers=0)) as feed:
            yield f"{name}, one core", "Pillow's decoding", against(bare, epochs(feed))
            yield f"{name}, one core", "torchvision", against(epochs_of_torchvision(folder, augment, 0), epochs(feed))
        for kept, told in ((False, ""), (True, ", decoded once")):
            peer = epochs_of_torchvision(folder, augment, cores)
            with closing(fed(folder, augment, workers=cores, kept=kept)) as feed:
                yield f"{name}, all cores{told}", "torchvision", against(peer, epochs(feed))


def fed(folder: Path, augment: AugmentSection, *, workers: int, kept: bool = False) -> Feed:
    """Our input pipeline; kept: with the decoded pictures in memory, as it is where they fit."""
    dataset = Folder(folder)
    with mock.patch.object(feed_module, "IN_MEMORY_BYTES", IN_MEMORY_BYTES if kept else 0):
        indices = np.arange(len(dataset))
        return Feed(dataset, indices, FRAME, augment, batch_size=BATCH, seed=0, classes=2, workers=workers)


def epochs(feed: Feed) -> Callable[[], None]:
    """A call that draws the next epoch to its end."""
    numbers = itertools.count(1)

    def next_epoch() -> None:
        for _ in feed.epoch(next(numbers)):
            pass

    return next_epoch


def epochs_of_torchvision(folder: Path, augment: AugmentSection, workers: int) -> Callable[[], None]:
    """The same by torchvision's own folder, transforms and torch's loader."""
    scale = augment.crop_scale or (1.0, 1.0)
    steps = [v2.RandomResizedCrop(FRAME.width, scale=scale), v2.RandomHorizontalFlip(augment.horizontal_flip)]
    if augment.randaugment:
        steps.append(v2.RandAugment(augment.randaugment, interpolation=InterpolationMode.BILINEAR))
    pictures = ImageFolder(folder, v2.Compose([*steps, v2.PILToTensor()]))
    loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def next_epoch() -> None:
        for _ in loader:
            pass

    return next_epoch


def write_pictures(folder: Path, count: int) -> None:
    """Two classes of pictures with coarse shapes and fine grain, so that they are about as hard to decode as photos."""
    chance = np.random.default_rng(0)
    width, height = SIZE
    for index in range(count):
        coarse = Image.fromarray(chance.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        grained = np.clip(smooth + chance.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        target = folder / "ab"[index % 2] / f"{index:04d}.jpg"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(grained).save(target, quality=90)


if __name__ == "__main__":
    main()
