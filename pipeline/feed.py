"""The training part as batches: in an order of its own each epoch, augmented, shared out over processes.

Everything random is derived from (seed, epoch, sample or batch): the number of workers, the rank and what ran before
change nothing. What can be done on a whole batch is done where the batch is used; what is done picture by picture
(random crops, RandAugment) is done by worker processes, a few batches ahead.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.machine import available_cores
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import Pixels

from .augment import Augmentation, Mixing, Moves, as_probabilities, mixed, moved
from .data.dataset import Dataset, Done, Indices, bad_pictures
from .data.tensors import IN_MEMORY_BYTES, WholePictures, prepared
from .recipe import AugmentSection
from .seeds import derived_seed

if TYPE_CHECKING:
    from PIL import Image

BATCHES_AHEAD = 2
"""Of each worker."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- where Linux keeps what processes share
START_METHOD = "fork" if sys.platform == "linux" else None
"""A fork shares the pictures in memory and needs no guard in users' scripts. It is safe for these workers: they have
one thread and never touch CUDA. Elsewhere the system's own way, by a fresh interpreter."""


class Batch(NamedTuple):
    """What one step of one process learns from."""

    images: Tensor
    """uint8 (B, H, W, C); float32 on the same scale, 0 to 255, where the recipe has mixup."""
    targets: Tensor
    """int64 (B,) classes; float32 (B, K) where pictures are mixed or have several labels."""
    weight: float
    """1; 0 for the one stand-in row of a process that has no row of its own in the last batch."""
    total: int
    """Rows of this batch over all processes."""


class Feed:
    """The training part, epoch by epoch.

    indices: of the training part. classes: K. workers: processes; None: as many as help, 0: none.
    rank, world: this process among those that train together; a batch is batch_size rows of each.
    progress: told of pictures as they are read. scratch: folder for what does not fit in memory.
    Raises one UsageError that names the pictures that can't be used: before the first epoch, or, of data too large to
    be decoded beforehand, in it.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Indices,
        preprocessing: Preprocessing,
        augment: AugmentSection,
        *,
        batch_size: int,
        seed: int,
        classes: int,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        progress: Done | None = None,
        scratch: Path | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise UsageError(f"expected a rank from 0 to {world - 1} of {world} processes, found {rank}")
        self._dataset, self._indices = dataset, indices
        self._rows = _Rows(len(indices), batch_size, seed, rank, world, Augmentation(augment, preprocessing, seed))
        source: Pixels | WholePictures
        if augment.crop_scale is None:
            source = prepared(dataset, indices, preprocessing, progress, scratch=scratch)
        else:
            # A fresh interpreter would be sent a copy of all pictures.
            room = 0 if START_METHOD is None and workers != 0 else IN_MEMORY_BYTES // _neighbours(world)
            source = WholePictures(dataset, indices, preprocessing.mode, progress, room=room)
        single = dataset.task == "classification"
        labels = dataset.labels[indices].astype(np.int64 if single else np.float32)
        self._maker = _Maker(source, labels, self._rows.augmentation, classes)
        self.workers = 0
        """Processes that prepare batches beside this one."""
        if augment.crop_scale is not None or augment.randaugment:
            wanted = min(available_cores() // _neighbours(world) or 1, self.batches) if workers is None else workers
            self.workers = min(wanted, _room_for_workers(batch_size * math.prod(preprocessing.shape), augment))
        self._loader: DataLoader[_Made] | None = None
        self._ahead: Iterator[_Made] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def batches(self) -> int:
        """Of an epoch; the last one may be smaller."""
        return self._rows.batches

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1. Raises UsageError that names pictures that can't be used."""
        self._rows.epoch = epoch
        made = map(self._maker.__getitem__, self._rows) if self.workers == 0 else self._made_ahead()
        for batch in range(self.batches):
            images, targets, failures = self._next(made)
            if failures:
                told = [(self._dataset.ids[int(self._indices[row])], error) for row, error in failures]
                raise bad_pictures(self._dataset, told, len(self))
            own, total = self._rows.share(batch)
            yield Batch(images, targets, float(bool(own)), total)

    def close(self) -> None:
        """End the workers; the next epoch would start them again."""
        if self._ahead is not None:
            with contextlib.suppress(RuntimeError):  # torch may say once more that a worker was ended from outside
                self._ahead._shutdown_workers()  # type: ignore[attr-defined]  # there is no public way
        self._ahead = self._loader = None

    def _made_ahead(self) -> Iterator[_Made]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
            if self._loader is None:
                self._loader = DataLoader(
                    self._maker,
                    sampler=self._rows,
                    batch_size=None,
                    collate_fn=_as_it_is,
                    num_workers=self.workers,
                    prefetch_factor=BATCHES_AHEAD,
                    persistent_workers=True,
                    multiprocessing_context=START_METHOD,
                    worker_init_fn=_leave_interrupts_to_the_main_process,
                    generator=torch.Generator(),  # else it would draw from the one that dropout draws from
                )
            self._ahead = iter(self._loader)
        return self._ahead

    def _next(self, made: Iterator[_Made]) -> _Made:
        try:
            return next(made)
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise UsageError(
                f"one of {self.workers} processes that prepare pictures was ended from outside, mostly for lack of "
                "memory: lower train.workers"
            ) from error


class _Plan(NamedTuple):
    """One batch of one process, before any picture is touched."""

    epoch: int
    rows: Indices
    """Of the training part: those of this process, then others that they are mixed with."""
    own: int
    mates: Indices
    """The place in `rows` of what each own row is mixed with."""
    moves: Moves
    mixing: Mixing | None


class _Rows:
    """The plans of an epoch, in order."""

    def __init__(
        self, count: int, batch_size: int, seed: int, rank: int, world: int, augmentation: Augmentation
    ) -> None:
        self.augmentation = augmentation
        self.epoch = 0
        self._count = count
        self._size = batch_size * world
        self._seed = seed
        self._rank = rank
        self._world = world

    @property
    def batches(self) -> int:
        return math.ceil(self._count / self._size)

    def __len__(self) -> int:
        return self.batches

    def share(self, batch: int) -> tuple[int, int]:
        """Rows of this process and of all in a batch, counted from 0."""
        total = min(self._size, self._count - batch * self._size)
        return len(range(self._rank, total, self._world)), total

    def __iter__(self) -> Iterator[_Plan]:
        epoch = self.epoch
        chance = torch.Generator().manual_seed(derived_seed(self._seed, "order", epoch))
        order = torch.randperm(self._count, generator=chance).numpy()
        moves = self.augmentation.moves(epoch, self._count)
        for batch in range(self.batches):
            together = order[batch * self._size :][: self._size]
            total = len(together)
            places = list(range(self._rank, total, self._world)) or [0]
            own, mates = len(places), np.arange(0)
            mixing = self.augmentation.mixing(epoch, batch)
            if mixing is not None:
                # Half a batch further: with an even batch_size the mate is a row of the same process.
                partners = [(place + total // 2) % total for place in places]
                places += sorted(set(partners) - set(places))
                place_of = {place: at for at, place in enumerate(places)}
                mates = np.array([place_of[partner] for partner in partners])
            rows = together[places]
            yield _Plan(epoch, rows, own, mates, moves.at(rows), mixing)


class _Made(NamedTuple):
    images: Tensor
    targets: Tensor
    failures: list[tuple[int, ImageError]]
    """Rows whose pictures can't be decoded; then there are no images."""


class _Maker(MapDataset[_Made]):
    """Makes a batch of a plan; this is what a worker process holds."""

    def __init__(
        self, source: Pixels | WholePictures, labels: NDArray[Any], augmentation: Augmentation, classes: int
    ) -> None:
        self._source = source
        self._labels = labels
        self._augmentation = augmentation
        self._classes = classes

    def __getitem__(self, plan: _Plan) -> _Made:
        targets = torch.from_numpy(self._labels[plan.rows])
        pictures, failures = self._pictures(plan)
        if failures:
            return _Made(torch.empty(0), targets, failures)
        pixels = moved(pictures, plan.moves)
        for place in np.flatnonzero(plan.moves.erased):
            self._augmentation.erase(pixels[place], plan.epoch, int(plan.rows[place]))
        images = torch.from_numpy(pixels)
        if plan.mixing is not None:
            targets = as_probabilities(targets, self._classes)
            images = images.float() if self._augmentation.section.mixup else images
            images, targets = mixed(images, targets, plan.own, torch.from_numpy(plan.mates), plan.mixing)
        return _Made(images, targets, [])

    def _pictures(self, plan: _Plan) -> tuple[Pixels, list[tuple[int, ImageError]]]:
        """The plan's rows (B, H, W, C), cropped and recoloured each by itself, and what could not be decoded."""
        if isinstance(self._source, np.ndarray) and not self._augmentation.section.randaugment:
            return self._source[plan.rows], []
        pictures = np.empty((len(plan.rows), *self._augmentation.shape), np.uint8)
        failures: list[tuple[int, ImageError]] = []
        for place, row in enumerate(plan.rows.tolist()):
            try:
                image = self._framed(plan.epoch, row)
            except ImageError as error:
                failures.append((row, error))
            else:
                varied = self._augmentation.recoloured(image, plan.epoch, row)
                pictures[place] = np.asarray(varied).reshape(pictures.shape[1:])
        return pictures, failures

    def _framed(self, epoch: int, row: int) -> Image.Image:
        from PIL import Image

        if isinstance(self._source, WholePictures):
            return self._augmentation.cropped(self._source[row], epoch, row)
        pixels = self._source[row]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _as_it_is(made: Any) -> Any:
    return made


def _leave_interrupts_to_the_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _neighbours(world: int) -> int:
    """Training processes on this machine, as torchrun tells them."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def _room_for_workers(batch_bytes: int, augment: AugmentSection) -> int:
    """How many workers' batches fit into the memory that processes share, which containers keep small."""
    batch_bytes *= 4 if augment.mixup else 1
    with contextlib.suppress(OSError):
        return shutil.disk_usage(SHARED_MEMORY).free // (batch_bytes * (BATCHES_AHEAD + 1))
    return sys.maxsize
