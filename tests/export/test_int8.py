"""The choice among calibrations: recorded, by validation pictures, and with layers in float where that is needed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from trueport.export.graph import onnx_from_original
from trueport.export.int8 import Calibrated, Int8Options, Validation, calibrated, int8_graph
from trueport.export.layers import reached
from trueport.export.original import Original
from trueport.export.written import written_answers
from trueport.runtime.errors import ExportError, UsageError
from trueport.runtime.manifest import Normalisation, Preprocessing

PREPROCESSING = Preprocessing(height=8, width=8, mode="L")
PICTURES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
QUICK = Int8Options(method="minmax", samples=16)


class Sensitive(nn.Module):
    """A layer whose answer hangs on the last bits of its input, between two that take any."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.first, self.sharp, self.last = nn.Linear(64, 64), nn.Linear(64, 4), nn.Linear(4, 4)
        self.other = nn.Linear(64, 4)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(64))
            self.first.bias.zero_()
            self.sharp.weight.normal_(0, 0.1)
            self.sharp.weight[:, 0] = sharp  # weights of one scale a channel: the others get few levels or none
            self.last.weight.copy_(torch.eye(4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        flat = self.first(image.flatten(1))
        logits: torch.Tensor = self.last(self.sharp(torch.cat([flat[:, :1] * 0, flat[:, 1:]], 1))) + 0.1 * self.other(
            flat
        )
        return logits


def graph_of(sharp: float) -> onnx.ModelProto:
    torch.manual_seed(0)
    original = Original(Sensitive(sharp), tuple("abcd"), PREPROCESSING, Normalisation((0.5,), (0.5,)), "sensitive")
    return onnx_from_original(original)


def validation(graph: onnx.ModelProto) -> Validation:
    logits = written_answers(graph, PICTURES[20:])
    return Validation(PICTURES[20:], logits.argmax(1).astype(np.int64), logits)


@pytest.fixture(scope="module")
def easy() -> onnx.ModelProto:
    return graph_of(0.1)


@pytest.fixture(scope="module")
def hard() -> onnx.ModelProto:
    return graph_of(500.0)


def silent(_: str) -> None:
    pass


def test_methods_and_sample_counts_are_tried_and_recorded(easy: onnx.ModelProto) -> None:
    told: list[str] = []
    seen = calibrated(easy, PICTURES[:60], Int8Options(samples=40), silent)
    made, how = int8_graph("int8-cpu", seen, validation(easy), Int8Options(samples=40), 100.0, told.append)
    tried = {(trial.method, trial.samples) for trial in how.trials}
    assert tried == {(method, samples) for method in ("minmax", "entropy", "percentile") for samples in (10, 40)}
    best = max(how.trials, key=lambda trial: (min(trial.score, trial.original), -trial.rms))
    assert (how.method, how.samples) == (best.method, best.samples)
    assert (how.scheme, how.per_channel, how.reduce_range, how.float_layers) == ("u8s8", True, False, ())
    assert all(trial.original == 1 and trial.rms > 0 for trial in how.trials)
    assert reached(made) == {"int8": 4}
    assert len(told) == 6
    assert told[0].startswith("int8-cpu: minmax of 10 pictures")


def test_one_method_is_one_trial(easy: onnx.ModelProto) -> None:
    options = Int8Options(method="percentile", samples=16, reduce_range=True)
    seen = calibrated(easy, PICTURES[:20], options, silent)
    assert list(seen.seen) == [16]
    for name, reduced in (("int8-cpu", True), ("int8-gpu", False)):
        _, how = int8_graph(name, seen, validation(easy), options, 100.0, silent)
        assert [(trial.method, trial.samples) for trial in how.trials] == [("percentile", 16)]
        assert how.reduce_range == reduced


@pytest.mark.parametrize("name", ["int8-cpu", "int8-gpu"])
def test_the_layer_that_costs_accuracy_is_left_in_float(hard: onnx.ModelProto, name: str) -> None:
    seen = calibrated(hard, PICTURES[:20], QUICK, silent)
    made, how = int8_graph(name, seen, validation(hard), QUICK, 5.0, silent)
    assert "sharp" in how.float_layers
    assert reached(made)["fp32"] == len(how.float_layers) == how.trials[-1].float_layers
    first, last = how.trials[0], how.trials[-1]
    assert 100 * (first.original - first.score) > 5
    assert 100 * (last.original - last.score) < 5.001


def test_what_can_not_be_had_is_one_sentence(hard: onnx.ModelProto) -> None:
    seen = calibrated(hard, PICTURES[:20], QUICK, silent)
    judged = validation(hard)
    wrong = Validation(judged.images, judged.truth, judged.logits)
    object.__setattr__(wrong, "score", lambda logits: 1.0 if logits is judged.logits else 0.25)
    with pytest.raises(
        ExportError, match=r"loses at least 75\.00 points .* allowed are 0\.5; the most sensitive layer is"
    ) as caught:
        int8_graph("int8-cpu", seen, wrong, QUICK, 0.5, silent)
    assert "\n" not in str(caught.value)


def test_several_labels_are_scored_by_picture(easy: onnx.ModelProto) -> None:
    logits = written_answers(easy, PICTURES)
    truth = (logits > 0).astype(np.uint8)
    assert Validation(PICTURES, truth, logits).score(logits) == 1
    assert Validation(PICTURES, 1 - truth, logits).score(logits) == 0
    rare = np.eye(1, 4, dtype=np.uint8).repeat(len(PICTURES), axis=0)
    none = np.full_like(logits, -1)
    assert Validation(PICTURES, rare, logits).score(none) == 0, "three of four decisions are right"


def test_poor_pictures_are_refused_before_anything_is_run() -> None:
    with pytest.raises(UsageError, match="expected at least 8, found 5"):
        calibrated(onnx.ModelProto(), PICTURES[:5], Int8Options(), silent)
    with pytest.raises(UsageError, match="all the same"):
        calibrated(onnx.ModelProto(), np.zeros_like(PICTURES), Int8Options(), silent)


def test_large_networks_are_ranked_in_groups(monkeypatch: pytest.MonkeyPatch, hard: onnx.ModelProto) -> None:
    monkeypatch.setattr("trueport.export.int8.GROUPS", 2)
    seen: Calibrated = calibrated(hard, PICTURES[:20], QUICK, silent)
    _, how = int8_graph("int8-cpu", seen, validation(hard), QUICK, 5.0, silent)
    assert len(how.float_layers) == 2
