"""Golden set and bounds: derived from the original's own noise, wide enough for a port and no wider."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trueport.export.golden import HEADROOM, answers, bounds_from_noise, extremes, golden_set, picture_cards
from trueport.export.original import Original, OriginalRunner
from trueport.pipeline.run_folder import Run
from trueport.runtime.errors import ExportError
from trueport.runtime.manifest import Normalisation, Preprocessing
from trueport.runtime.preprocessing import prepare

SMALL = Preprocessing(height=8, width=8, mode="L")


def trivial(module: nn.Module) -> Original:
    return Original(module, ("a", "b"), SMALL, Normalisation((0.0,), (1.0,)), "trivial")


@pytest.fixture(scope="module")
def original(run_path: Path) -> Original:
    return Run.open(run_path).original()


def test_float64_is_the_reference_and_float32_is_close(original: Original) -> None:
    images = extremes(original.preprocessing)
    exact = OriginalRunner(original, dtype=torch.float64).run({"image": images})["logits"]
    single = OriginalRunner(original).run({"image": images})["logits"]
    assert exact.dtype == np.float64
    assert single.dtype == np.float32
    assert 0 < np.abs(exact - single).max() < 1e-4
    assert next(original.module.parameters()).dtype == torch.float32


def test_bounds_are_the_measured_noise_and_its_headroom(original: Original) -> None:
    bounds = bounds_from_noise(original, extremes(original.preprocessing))
    assert bounds.max_abs == HEADROOM * bounds.noise_max_abs
    assert bounds.rms == HEADROOM * bounds.noise_rms
    assert 0 < bounds.noise_rms <= bounds.noise_max_abs < 1e-4
    assert any("batch 1" in name for name in bounds.noise_from)


@pytest.mark.parametrize("name", ["conv1.bias", "fc3.bias"])
def test_a_slightly_wrong_bias_is_outside_the_bounds(original: Original, name: str) -> None:
    """A thousandth in one bias is invisible to accuracy, and twenty bounds away."""
    images = extremes(original.preprocessing)
    bounds = bounds_from_noise(original, images)
    wrong = copy.deepcopy(original.module)
    with torch.no_grad():
        wrong.get_parameter(name)[0] += 1e-3
    changed = Original(
        wrong, original.labels, original.preprocessing, original.normalisation, original.arch, original.arch_args
    )
    deviation = np.abs(answers(changed, images) - answers(original, images)).max()
    assert deviation > 20 * bounds.max_abs


def test_an_exact_network_still_has_bounds() -> None:
    class Exact(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :2] * 0 + 3

    bounds = bounds_from_noise(trivial(Exact()), extremes(SMALL))
    assert bounds.noise_max_abs == pytest.approx(3 * np.finfo(np.float32).eps)
    assert {type(bounds.max_abs), type(bounds.rms)} == {float}  # what a manifest can hold


def test_answers_that_are_no_numbers_are_refused() -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :2].log()

    with pytest.raises(ExportError, match="NaN or infinity for 1 of 3"):
        answers(trivial(Broken()), extremes(SMALL))


def test_golden_pictures_show_what_preprocessing_gets_wrong(original: Original) -> None:
    """Each generated picture comes out differently without its EXIF orientation, or with another filter."""
    golden = golden_set(original, extremes(original.preprocessing))
    assert len(golden.images) == 6
    for picture, expected in zip(golden.encoded, golden.prepared, strict=True):
        assert np.array_equal(prepare(picture, original.preprocessing), expected)
        other = Preprocessing(height=32, width=32, mode="L", resample="nearest")
        assert np.abs(prepare(picture, other).astype(int) - expected).max() > 30
    for picture, expected in zip(picture_cards(), golden.prepared, strict=True):
        as_stored = np.asarray(Image.open(io.BytesIO(picture)))  # Pillow does not turn it by itself
        assert not np.array_equal(prepare(as_stored, original.preprocessing), expected)
