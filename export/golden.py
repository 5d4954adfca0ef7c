"""The golden set and the bounds: what the original answers, and how far it is from itself.

Two faithful float32 computations of one network differ, because sums are added up in another order. How much, the
original shows itself: in other batch sizes, thread counts and memory layouts against its own float64. A port gets three
bits on top of that (`HEADROOM`), for algorithms such as Winograd's that trade accuracy for speed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Golden
from trueport.runtime.errors import ExportError
from trueport.runtime.machine import available_cores
from trueport.runtime.manifest import Bounds, Preprocessing
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import run_in_batches

from .original import Original, OriginalRunner

HEADROOM = 8.0
Rows = NDArray[np.uint8]


def golden_set(original: Original, images: Rows, pictures: Sequence[bytes] = ()) -> Golden:
    """Record the original on prepared `images` (N, H, W, C) and on three that no camera takes: black, white and noise.

    pictures: real encoded pictures; generated ones are added, a PNG and a JPEG that lie on their side by EXIF.
    """
    inputs = np.concatenate([images, extremes(original.preprocessing)])
    encoded = (*pictures, *picture_cards())
    prepared = np.stack([prepare(picture, original.preprocessing) for picture in encoded])
    return Golden(inputs, answers(original, inputs), encoded, prepared)


def answers(original: Original, images: Rows) -> NDArray[np.float32]:
    """The original's logits (N, K). Raises ExportError where they are not numbers."""
    logits = run_in_batches(OriginalRunner(original), images)
    if not np.isfinite(logits).all():
        bad = int(np.sum(~np.isfinite(logits).all(axis=1)))
        raise ExportError(f"the original answers NaN or infinity for {bad} of {len(images)} pictures: train it again")
    return logits.astype(np.float32)


def exact_answers(original: Original, images: Rows) -> NDArray[np.float64]:
    """The original's logits (N, K) in float64, which all noise is measured against."""
    import torch

    return run_in_batches(OriginalRunner(original, dtype=torch.float64), images, 64)


def bounds_from_noise(original: Original, images: Rows, exact: NDArray[Any] | None = None) -> Bounds:
    """What a float32 port may differ by, from the original's distance to itself in float64 on `images`.

    exact: its `exact_answers` to them, where they are at hand.
    """
    exact = exact_answers(original, images) if exact is None else exact
    repeated = list(_repetitions(original, images))
    deviations = [logits.astype(np.float64) - exact for _, logits in repeated]
    return bounds_of([np.stack(deviations)], np.abs(exact).max(), HEADROOM, tuple(name for name, _ in repeated))


def bounds_of(
    deviations: Sequence[NDArray[np.float64]],
    scale: float,
    headroom: float,
    noise_from: tuple[str, ...],
    max_drop: float | None = None,
) -> Bounds:
    """Bounds from deviations on one or several sets of inputs, each of which a port is compared on by itself.

    scale: the largest logit. Where the original is exact, a unit in the last place is still more than float32 can
    promise.
    """
    unit = float(scale * np.finfo(np.float32).eps)
    noise_max = max(unit, *(float(np.abs(deviation).max()) for deviation in deviations))
    noise_rms = max(unit / math.sqrt(12), *(float(np.sqrt(np.mean(deviation**2))) for deviation in deviations))
    return Bounds(
        max_abs=headroom * noise_max,
        rms=headroom * noise_rms,
        noise_max_abs=noise_max,
        noise_rms=noise_rms,
        noise_from=noise_from,
        max_drop=max_drop,
    )


def _repetitions(original: Original, images: Rows) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for threads in sorted({1, available_cores()}):
        runner = OriginalRunner(original, threads)
        for batch in (1, 7, 64):
            yield f"float32, {threads} threads, batch {batch}", run_in_batches(runner, images, batch)


def extremes(preprocessing: Preprocessing) -> Rows:
    """Black, white and uniform noise: (3, H, W, C)."""
    shape = preprocessing.shape
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def picture_cards() -> tuple[bytes, bytes]:
    """A PNG and a JPEG of fine detail, colour, odd sizes, turned by EXIF: all that preprocessing can get wrong."""
    return _card("PNG", (97, 61), orientation=6), _card("JPEG", (131, 77), orientation=3)


def _card(kind: str, size: tuple[int, int], orientation: int) -> bytes:
    from PIL import Image

    width, height = size
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(width).integers(0, 64, (height, width))
    rings = 127 + 127 * np.cos((across**2 + 2 * down**2) / 60)
    pixels = np.stack([across * 255 // width, rings, down * 191 // height + noise], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation  # the EXIF tag Orientation
    buffer = io.BytesIO()
    options = {"quality": 92, "subsampling": 2} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()
