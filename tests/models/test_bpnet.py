"""bpnet sees what the literature says it sees, to the pixel, in every runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from trueport import models
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original, OriginalRunner
from trueport.models.bpnet import BPNet, grey_levels, histogram, otsu_threshold
from trueport.runtime.manifest import Normalisation, Preprocessing

Pixels = NDArray[np.uint8]


def crops(seed: int, width: int = 15, rows: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (rows, 25, width, 3), dtype=np.uint8)


def tensor(pixels: Pixels, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(dtype) / 255


def slow_shares(pixels: Pixels, threshold: int, overflow: str) -> list[float]:
    """Pixel by pixel, in whole numbers; Pillow says what is grey."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    shares = []
    for top in range(0, 25, 5):
        for left in range(0, 15, 3):
            there = [(y, x) for y in range(top, top + 5) for x in range(left, left + 3) if x < grey.shape[1]]
            white = sum(1 for y, x in there if grey[y, x] > threshold)
            shares.append(white / (15 if overflow == "pad" else len(there)))
    return shares


@pytest.mark.parametrize("overflow", ["pad", "narrow"])
@pytest.mark.parametrize("width", [13, 14, 15])
def test_shares_are_those_of_a_loop_over_pixels(width: int, overflow: str) -> None:
    pixels = crops(width, width)
    network = BPNet(10, threshold=110, overflow=overflow)
    expected = [slow_shares(picture, 110, overflow) for picture in pixels]
    torch.testing.assert_close(network.shares(tensor(pixels)), torch.tensor(expected), rtol=0, atol=1e-7)


def test_the_two_rules_differ_only_at_the_right_edge_of_narrow_crops() -> None:
    white = torch.ones(1, 3, 25, 13)
    padded = BPNet(10, overflow="pad").shares(white).reshape(5, 5)
    narrow = BPNet(10, overflow="narrow").shares(white).reshape(5, 5)
    assert torch.all(narrow == 1)
    assert torch.all(padded[:, :4] == 1)
    torch.testing.assert_close(padded[:, 4], torch.full((5,), 1 / 3))


def test_one_white_window_is_one_value_row_by_row() -> None:
    image = torch.zeros(1, 1, 25, 15)
    image[:, :, 5:10, 9:12] = 1
    shares = BPNet(10, channels=1).shares(image)[0]
    assert shares.nonzero().flatten().tolist() == [1 * 5 + 3]
    assert shares.max() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_grey_is_pillows_to_the_level(dtype: torch.dtype) -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 52, 3)
    expected = np.asarray(Image.fromarray(pixels[0]).convert("L"))
    assert np.array_equal(grey_levels(tensor(pixels, dtype))[0].numpy(), expected)


def test_a_grey_picture_is_answered_as_the_colour_picture_it_was_made_from() -> None:
    torch.manual_seed(0)
    colour, grey = BPNet(10, channels=3), BPNet(10, channels=1)
    grey.load_state_dict(colour.state_dict())
    pixels = crops(5)
    as_grey = np.stack([np.asarray(Image.fromarray(picture).convert("L"))[..., None] for picture in pixels])
    assert torch.equal(colour(tensor(pixels)), grey(tensor(as_grey)))


def edge_cases(threshold: int) -> Pixels:
    """Crops of 25 x 14 of the 40 colours whose unrounded grey is nearest to half a level above the threshold."""
    red, green = np.meshgrid(np.arange(256), np.arange(256))
    target = threshold * 2**16 + 2**15 - 19595 * red - 38470 * green
    blue = np.rint(target / 7471).astype(np.int64)
    distance = np.where((blue >= 0) & (blue < 256), np.abs(target - 7471 * blue), 2**24)
    nearest = np.argsort(distance, axis=None)[:40]
    colours = np.stack([red, green, blue], axis=-1).reshape(-1, 3)[nearest].astype(np.uint8)
    return np.random.default_rng(0).choice(colours, (8, 25, 14))


def test_no_pixel_flips_between_runtimes_at_the_threshold() -> None:
    """Torch in float32 and float64 and onnxruntime agree where plain float32 arithmetic does not with float64."""
    torch.manual_seed(0)
    network = BPNet(10, threshold=110, overflow="narrow")
    pixels = edge_cases(110)
    luma = torch.tensor([19595, 38470, 7471], dtype=torch.float64).reshape(3, 1, 1) / 2**16
    plain, exact = (
        (tensor(pixels, dtype) * luma.to(dtype)).sum(1) > 110.5 / 255 for dtype in (torch.float32, torch.float64)
    )
    assert (plain != exact).any(), "these pictures are not near enough to the threshold to prove anything"

    expected = torch.tensor([slow_shares(picture, 110, "narrow") for picture in pixels], dtype=torch.float64)
    torch.testing.assert_close(network.shares(tensor(pixels, torch.float64)), expected)
    torch.testing.assert_close(network.shares(tensor(pixels)), expected.float())

    original = Original(
        network,
        tuple("0123456789"),
        Preprocessing(height=25, width=14, mode="RGB"),
        Normalisation((0.0,) * 3, (1.0,) * 3),
        "bpnet",
    )
    graph = onnx_from_original(original).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    answer = OriginalRunner(original, threads=1).run({"image": pixels})["logits"]
    for rows in (1, 8):
        (logits,) = session.run(None, {"image": pixels[:rows]})
        assert np.abs(logits - answer[:rows]).max() < 1e-6  # one pixel is worth a hundredth


@pytest.mark.parametrize("size", [(25, 12), (25, 16), (24, 15), (26, 15), (32, 32)])
def test_other_sizes_are_refused_by_name(size: tuple[int, int]) -> None:
    with pytest.raises(models.ModelArgumentError, match=rf"25 rows, 13 to 15 columns .* found {size[0]} x {size[1]}"):
        BPNet(10)(torch.zeros(1, 3, *size))


def test_other_channels_are_refused() -> None:
    with pytest.raises(models.ModelArgumentError, match="3 channels, found 25 x 15 and 1 channels"):
        BPNet(10)(torch.zeros(1, 1, 25, 15))


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"hidden": 0}, "hidden unit"), ({"threshold": 255}, "0 to 254"), ({"overflow": "wrap"}, "pad or narrow")],
)
def test_arguments_are_refused_by_name(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(models.ModelArgumentError, match=message):
        models.create("bpnet", num_classes=10, **argument)


def direct_otsu(levels: NDArray[np.int64]) -> set[int]:
    """Every threshold with the largest variance between the classes, from the definition."""
    found: dict[int, float] = {}
    for threshold in range(255):
        dark, bright = levels[levels <= threshold], levels[levels > threshold]
        if len(dark) and len(bright):
            share = len(dark) / len(levels)
            found[threshold] = share * (1 - share) * (dark.mean() - bright.mean()) ** 2
    best = max(found.values())
    return {threshold for threshold, variance in found.items() if variance >= best * (1 - 1e-12)}


@pytest.mark.parametrize(("dark", "bright"), [(60, 190), (20, 60), (100, 130)])
def test_otsu_is_the_definition(dark: int, bright: int) -> None:
    random = np.random.default_rng(dark)
    levels = np.concatenate([random.normal(dark, 12, 3000), random.normal(bright, 20, 1000)])
    levels = levels.round().clip(0, 255).astype(np.int64)
    assert otsu_threshold(torch.bincount(torch.from_numpy(levels), minlength=256)) in direct_otsu(levels)


def test_otsu_takes_the_middle_between_two_peaks() -> None:
    counts = torch.zeros(256, dtype=torch.int64)
    counts[40], counts[200] = 700, 300
    assert direct_otsu(np.repeat([40, 200], [700, 300])) == set(range(40, 200))
    assert otsu_threshold(counts) == (40 + 199) // 2


def test_otsu_of_one_level_is_the_middle_of_the_scale() -> None:
    assert otsu_threshold(torch.eye(256, dtype=torch.int64)[77]) == 127


def test_adapting_keeps_the_threshold_of_the_training_pictures_with_the_weights() -> None:
    pixels = crops(3, rows=1500) // 2
    images = tensor(pixels)
    fixed, adapted = BPNet(10), BPNet(10, otsu=True)
    assert isinstance(adapted, models.Adapted)
    fixed.adapt(images)
    adapted.adapt(images)
    assert int(fixed.threshold) == 127
    expected = np.bincount(
        np.concatenate([np.asarray(Image.fromarray(picture).convert("L")).ravel() for picture in pixels]), minlength=256
    )
    assert np.array_equal(histogram(images).numpy(), expected)
    assert int(adapted.threshold) == otsu_threshold(torch.from_numpy(expected))
    assert 50 < int(adapted.threshold) < 80
    fixed.load_state_dict(adapted.state_dict())
    assert int(fixed.half().threshold) == int(adapted.threshold)
