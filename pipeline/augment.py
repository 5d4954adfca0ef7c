"""What training pictures go through on top of the preprocessing that ships, each in its own way in each epoch.

The transforms and the distributions of their parameters are torchvision.transforms.v2's. Three things are ours: shifts
and flips are done on the batch, crop and resize are one call of Pillow with the filter of the evaluation, and what is
erased is filled with random pixels, the best of the fillings in its paper (https://arxiv.org/abs/1708.04896).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import Pixels

from .recipe import AugmentSection
from .seeds import derived_seed

if TYPE_CHECKING:
    from PIL import Image


class Moves(NamedTuple):
    """What is drawn for each picture and done on the whole batch."""

    shifts: NDArray[np.int64]
    """(N, 2): pixels down and right."""
    flips: NDArray[np.bool_]
    """(N, 2): upside down, left to right."""
    erased: NDArray[np.bool_]
    """(N,)"""

    def at(self, rows: NDArray[np.int64]) -> Moves:
        """Those of these rows."""
        return Moves(self.shifts[rows], self.flips[rows], self.erased[rows])


class Mixing(NamedTuple):
    """How the pictures of a batch are mixed, each with one other of the batch."""

    share: float
    """Of a picture's own in its target."""
    box: tuple[int, int, int, int] | None
    """Left, top, right and bottom of what CutMix takes of the other picture; None: MixUp."""


class Augmentation:
    """The recipe's augmentation; every draw follows from the seed, the epoch and the sample or the batch."""

    def __init__(self, section: AugmentSection, preprocessing: Preprocessing, seed: int) -> None:
        self.section = section
        self.shape = preprocessing.shape
        self._preprocessing = preprocessing
        self._seed = seed
        self._crop = v2.RandomResizedCrop(
            (preprocessing.height, preprocessing.width), section.crop_scale or (1.0, 1.0), section.crop_ratio
        )
        self._randaugment = v2.RandAugment(
            section.randaugment, section.randaugment_magnitude, interpolation=InterpolationMode.BILINEAR
        )
        self._erasing = v2.RandomErasing()
        self._mixup = v2.MixUp(alpha=section.mixup or 1.0)
        self._cutmix = v2.CutMix(alpha=section.cutmix or 1.0)

    def moves(self, epoch: int, count: int) -> Moves:
        """Of all pictures in an epoch, by sample and not by place in the order."""
        section, chance = self.section, torch.Generator()
        chance.manual_seed(derived_seed(self._seed, "shift", epoch))
        shifts = torch.randint(-section.shift_px, section.shift_px + 1, (count, 2), generator=chance)
        chance.manual_seed(derived_seed(self._seed, "flip", epoch))
        likely = torch.tensor([section.vertical_flip, section.horizontal_flip])
        flips = torch.rand((count, 2), generator=chance) < likely
        chance.manual_seed(derived_seed(self._seed, "erase", epoch))
        erased = torch.rand(count, generator=chance) < section.erase
        return Moves(shifts.numpy(), flips.numpy(), erased.numpy())

    def cropped(self, image: Image.Image, epoch: int, row: int) -> Image.Image:
        """RandomResizedCrop of an upright picture, to the size of the preprocessing."""
        from PIL import Image

        with _chance(self._seed, "crop", epoch, row):
            crop = self._crop.make_params([_of_shape(1, image.height, image.width)])
        top, left, height, width = (int(crop[name]) for name in ("top", "left", "height", "width"))
        frame = self._preprocessing
        resample = Image.Resampling[frame.resample.upper()]
        return image.resize((frame.width, frame.height), resample, (left, top, left + width, top + height))

    def recoloured(self, image: Image.Image, epoch: int, row: int) -> Image.Image:
        """RandAugment, where the recipe has it; on pictures of Pillow it is faster than on tensors."""
        if not self.section.randaugment:
            return image
        with _chance(self._seed, "randaugment", epoch, row):
            varied: Image.Image = self._randaugment(image)
        return varied

    def erase(self, pixels: Pixels, epoch: int, row: int) -> None:
        """RandomErasing in uint8 (H, W, C), in place."""
        with _chance(self._seed, "erase", epoch, row):
            box = self._erasing.make_params([torch.from_numpy(pixels).permute(2, 0, 1)])
            top, left, height, width = (int(box[name]) for name in ("i", "j", "h", "w"))
            if box["v"] is not None:  # None: no rectangle fitted in
                noise = torch.randint(256, (height, width, pixels.shape[2]), dtype=torch.uint8)
                pixels[top : top + height, left : left + width] = noise.numpy()

    def mixing(self, epoch: int, batch: int) -> Mixing | None:
        """Of one batch of an epoch, counted from 0; None: it is left as it is."""
        section = self.section
        if not (section.mixup or section.cutmix):
            return None
        with _chance(self._seed, "mix", epoch, batch):
            cut = bool(section.cutmix) and (not section.mixup or bool(torch.rand(()) < 0.5))
            if not cut:
                return Mixing(float(self._mixup.make_params([])["lam"]), None)
            drawn = self._cutmix.make_params([_of_shape(1, self._preprocessing.height, self._preprocessing.width)])
        return Mixing(float(drawn["lam_adjusted"]), drawn["box"])


def moved(images: Pixels, moves: Moves) -> Pixels:
    """Flip, then move each of (B, H, W, C); the border's pixels fill what is laid bare."""
    if not (moves.shifts.any() or moves.flips.any()):
        return images
    _, height, width, _ = images.shape
    reach = int(np.abs(moves.shifts).max())
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge") if reach else images
    result = np.empty_like(images)
    # A loop of copies is two to three times as fast as one gather of all pixels.
    drawn = zip(moves.shifts.tolist(), moves.flips.tolist(), strict=True)
    for target, source, ((down, right), (upended, mirrored)) in zip(result, padded, drawn, strict=True):
        turned = source[:: -1 if upended else 1, :: -1 if mirrored else 1]
        target[...] = turned[reach - down :, reach - right :][:height, :width]
    return result


def mixed(images: Tensor, targets: Tensor, own: int, mates: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """The first `own` images (B, H, W, C) and targets (B, K), each mixed with the one that `mates` (own,) tells.

    A share of 1 is the pictures and targets as they were.
    """
    mixed_targets = targets[mates].lerp(targets[:own], mixing.share)
    if mixing.box is None:
        return images[mates].float().lerp(images[:own].float(), mixing.share), mixed_targets
    left, top, right, bottom = mixing.box
    result = images[:own].clone()
    result[:, top:bottom, left:right] = images[mates, top:bottom, left:right]
    return result, mixed_targets


def as_probabilities(labels: Tensor, classes: int) -> Tensor:
    """float32 (B, K) of classes int64 (B,); several labels a picture are in that form already."""
    return labels if labels.ndim == 2 else functional.one_hot(labels, classes).float()


def _of_shape(*shape: int) -> Tensor:
    """A tensor for torchvision to ask for its shape; it takes no memory."""
    return torch.empty(1).expand(*shape)


@contextmanager
def _chance(*parts: object) -> Iterator[None]:
    """Seed torch's own generator, from which torchvision draws, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(*parts))
        yield
