"""Histograms hold what was seen, however it came in pieces; ranges follow from them; extremes are told by layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from trueport.export import activations
from trueport.export.activations import BINS, Histogram, observed
from trueport.export.calibration import METHODS, ranges, refuse_poor
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original
from trueport.export.ranges import half_warnings, int8_warnings
from trueport.runtime.errors import ExportError, UsageError
from trueport.runtime.manifest import Normalisation, Preprocessing

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)


def graph_of(module: nn.Module) -> onnx.ModelProto:
    preprocessing = Preprocessing(height=8, width=8, mode="L")
    return onnx_from_original(Original(module, ("a", "b"), preprocessing, Normalisation((0.0,), (1.0,)), "small"))


class Scaled(nn.Module):
    """Brightness times `gain`, and `added` on top of the first pixel's."""

    def __init__(self, gain: float = 1.0, added: float = 0.0) -> None:
        super().__init__()
        spike = torch.zeros(64)
        spike[0] = added
        self.gain, self.spike = gain, nn.Buffer(spike)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.flatten(1) * self.gain + self.spike)[:, :2]


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


def test_a_histogram_in_pieces_is_that_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    values[3999] = 40  # the range must double, several times
    pieces = filled(*np.split(values, 8))
    assert pieces.counts.sum() == len(values)
    assert (pieces.lowest, pieces.highest) == (values.astype(np.float32).min(), 40)
    for share in (0.01, 0.5, 0.99):
        assert pieces.quantile(share) == pytest.approx(np.quantile(values, share), abs=2 * pieces.reach / BINS)


def test_zeros_before_the_first_value_are_counted() -> None:
    histogram = filled(np.zeros(100), np.full(100, 5.0))
    assert histogram.magnitudes()[[0, -1]].tolist() == [100, 100]
    assert filled(np.zeros(3)).largest == 0


def test_a_large_tensor_is_sampled_but_its_ends_are_exact() -> None:
    values = np.zeros((4, 300, 300))
    values[2, 7, 11] = 9
    histogram = filled(values)
    assert histogram.highest == 9
    assert activations.SAMPLED // 2 < histogram.counts.sum() <= 2 * activations.SAMPLED


@pytest.mark.parametrize("method", METHODS)
def test_ranges_lie_within_what_was_seen(method: str) -> None:
    seen = {
        "a": filled(np.random.default_rng(0).normal(size=50_000)),
        "empty": Histogram(),
        "zero": filled(np.zeros(9)),
    }
    found = ranges(seen, method)  # type: ignore[arg-type]
    assert set(found) == {"a", "zero"}
    low, high = found["a"]
    assert seen["a"].lowest <= low < -2
    assert 2 < high <= seen["a"].highest
    assert found["zero"] == (0, 0)


def test_percentile_and_entropy_cut_an_outlier_off() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[0] = 1000
    seen = {"a": filled(values)}
    assert ranges(seen, "minmax")["a"][1] == 1000
    assert ranges(seen, "percentile")["a"][1] < 10
    assert ranges(seen, "entropy")["a"][1] < 100


def test_a_positive_tensor_keeps_its_sign() -> None:
    seen = {"a": filled(np.random.default_rng(0).random(10_000))}
    assert all(ranges(seen, method)["a"][0] >= 0 for method in METHODS)


def test_activations_are_seen_up_to_each_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(Scaled(2.0))
    told: list[str] = []
    whole = observed(graph, PICTURES, (8, 20), told.append)
    monkeypatch.setattr(activations, "CHUNK_BYTES", 1)  # one picture at a time
    single = observed(graph, PICTURES, (8, 20))
    for several, one in zip(whole, single, strict=True):
        assert several.keys() == one.keys()
        for name, histogram in several.items():
            assert histogram.lowest == one[name].lowest
            assert histogram.counts.sum() == one[name].counts.sum()
    assert whole[0]["logits"].counts.sum() == 8 * 2
    assert whole[1]["logits"].highest == pytest.approx(2 * int(PICTURES.reshape(20, -1)[:, :2].max()) / 255)
    assert told[-1] == "looked at the activations on 20 of 20 training pictures"


def test_what_is_no_number_names_its_layer() -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image.flatten(1)[:, :2] - 2).log()

    with pytest.raises(ExportError, match=r"log answers NaN or infinity for a training picture"):
        observed(graph_of(Broken()), PICTURES)


@pytest.mark.parametrize(
    ("gain", "told"), [(1.0, None), (30_000.0, "46% of float16's 65,504"), (200_000.0, "beyond float16's 65,504")]
)
def test_an_overflow_to_come_is_told_with_the_layer(gain: float, told: str | None) -> None:
    graph = graph_of(Scaled(gain))
    warnings = half_warnings(graph, observed(graph, np.full_like(PICTURES, 255))[-1])
    if told is None:
        assert not warnings
    else:
        assert any(warning.startswith("mul") and told in warning for warning in warnings), warnings


def test_outliers_that_waste_the_range_are_told_with_the_layer() -> None:
    class Spiked(Scaled):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            spiked = torch.cat([(image.flatten(1) * self.gain)] * 40, dim=1)
            return (spiked + nn.functional.pad(self.spike, (0, 39 * 64)))[:, :2]

    usual, spiked = (graph_of(Spiked(1.0, added)) for added in (0.0, 50.0))
    assert not int8_warnings(usual, observed(usual, PICTURES)[-1])
    warnings = int8_warnings(spiked, observed(spiked, PICTURES)[-1])
    assert warnings[0].startswith("add")
    assert "times its 99.9th percentile" in warnings[0]


def test_pictures_that_no_range_can_be_read_from_are_refused() -> None:
    with pytest.raises(UsageError, match="expected at least 8, found 7: add pictures") as caught:
        refuse_poor(PICTURES[:7])
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"the 20 training pictures .* are all the same: check the data"):
        refuse_poor(np.full_like(PICTURES, 9))
    refuse_poor(PICTURES)
