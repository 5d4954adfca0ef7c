"""Training throughput beside a plain PyTorch loop on the same network and data: `make bench-train`.

Both take one step a call, in ABBA blocks in one process (trueport.runtime.timing), on colour pictures of 32 x 32 in
memory, 64 a batch. The plain loop is written here, twice: over ready-made, normalised float32 tensors, which is the
least there is to do, and with torch's Dataset and DataLoader in this process, as tutorials have it. trueport's step has
the feed (order, gathering of uint8 pictures), the normalisation, the bookkeeping of losses and the progress in it.
Nothing here passes or fails: on a busy machine run it again.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trueport.pipeline.data import Dataset
from trueport.pipeline.feed import Feed
from trueport.pipeline.progress import Lines
from trueport.pipeline.recipe import Recipe, recipe_from_table
from trueport.pipeline.training.distributed import Processes
from trueport.pipeline.training.epoch import _Watch, grouped, take_step
from trueport.pipeline.training.job import new_job
from trueport.pipeline.training.learner import new_learner
from trueport.runtime.machine import describe_machine
from trueport.runtime.timing import compare

PICTURES, BATCH, CLASSES = 4096, 64, 10
Steps = Iterator[None]


class Noise(Dataset):
    """Random colour pictures of 32 x 32."""

    grey = False

    def __init__(self) -> None:
        chance = np.random.default_rng(0)
        self.pixels = chance.integers(0, 256, (PICTURES, 32, 32, 3), np.uint8)
        names = [str(it) for it in range(CLASSES)]
        super().__init__("noise", names, [f"{it:05d}" for it in range(PICTURES)], np.arange(PICTURES) % CLASSES)

    def encoded(self, index: int) -> bytes:
        """One picture as PNG."""
        file = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(file, "PNG")
        return file.getvalue()


def ours(recipe: Recipe, dataset: Noise) -> tuple[Steps, nn.Module]:
    """trueport's steps for ever, and the network as it is before the first one."""
    job, processes = new_job(recipe, dataset), Processes(torch.device("cpu"))
    untrained = copy.deepcopy(job.original.module)
    learner = new_learner(job, processes)
    section, shape = recipe.train, job.original.preprocessing
    feed = Feed(
        dataset, job.parts.train, shape, recipe.augment, batch_size=BATCH, seed=0, classes=CLASSES, workers=0
    )  # fmt: skip

    def steps() -> Steps:
        for epoch in itertools.count(1):
            learner.begin_epoch(epoch)
            watch = _Watch(learner, epoch, Lines(io.StringIO()))
            for step, (batch, rows, last) in enumerate(grouped(feed, epoch, BATCH, section.accumulate), start=1):
                if batch.total < BATCH:
                    continue  # a smaller one would be a faster step
                loss = learner.step.add(batch, rows, last)
                take_step(learner, step, feed.batches)
                watch.saw(loss, batch)
                yield

    return steps(), untrained


def plain(network: nn.Module, batches: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]) -> Steps:
    """A loop as anybody writes it."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1_000_000)
    while True:
        for images, labels in batches():
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            yield


def tensors(dataset: Noise) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures normalised (N, 3, 32, 32), in the memory format that was the faster one here."""
    images = (torch.from_numpy(dataset.pixels).float() / 255 - 0.5) / 0.5
    return images.permute(0, 3, 1, 2), torch.from_numpy(dataset.labels)


def main() -> None:
    """Measure and print as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each comparison")
    parser.add_argument("--arch", nargs="*", default=["lenet", "resnet20"])
    options = parser.parse_args()
    machine = describe_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, torch {torch.__version__}")
    print(
        "\n| network | against | trueport's throughput over it | noise | ms a step |\n| --- | --- | --- | --- | --- |"
    )
    dataset = Noise()
    for arch in options.arch:
        measure(arch, dataset, options.seconds)


def measure(arch: str, dataset: Noise, seconds: float) -> None:
    """One architecture against both plain loops."""
    train = {"optimizer": "sgd", "nesterov": True, "learning_rate": 0.1, "weight_decay": 5e-4, "batch_size": BATCH}
    table = {"name": "bench", "model": {"arch": arch}, "train": train | {"device": "cpu"}}
    images, labels = tensors(dataset)

    def slices() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(PICTURES)
        return ((images[rows], labels[rows]) for rows in torch.split(order, BATCH))

    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
    for name, batches in (("plain loop over tensors", slices), ("plain loop over a DataLoader", lambda: iter(loader))):
        mine, network = ours(recipe_from_table(table), dataset)
        theirs = plain(network, batches)
        paired = compare(partial(next, theirs), partial(next, mine), seconds=seconds, min_blocks=10, rows=BATCH)
        print(
            f"| {arch} | {name} | {paired.ratio:.3f} ({paired.ratio_low:.3f} to {paired.ratio_high:.3f}) "
            f"| {paired.noise:.3f} | {paired.b.median_ms:.2f} against {paired.a.median_ms:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
