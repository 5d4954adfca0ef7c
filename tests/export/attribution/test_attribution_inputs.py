"""Which inputs are looked at: those that show it, as many as before, and so few that their tensors can be held."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trueport.export.attribution import subject as inputs
from trueport.export.attribution.experiments import _order
from trueport.export.attribution.subject import Subject, close_rows, farthest, tensor_rows
from trueport.runtime.bundle import Bundle
from trueport.runtime.runner import Array, Runner, RunnerReport
from trueport.runtime.runners import open_runner

ORT = "onnxruntime:cpu"
ODD = 100
"""The row of the evaluation slice that is answered wrongly."""


class OneWrong:
    """A runner that is wrong about one picture, wherever it stands."""

    def __init__(self, inner: Runner, picture: Array, off: float) -> None:
        self._inner, self._picture, self._off = inner, picture, np.float32(off)
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        (images,) = feeds.values()
        wrong = (images == self._picture).all(axis=(1, 2, 3))[:, None]
        found = self._inner.run(feeds)
        return {name: np.where(wrong, logits + self._off, logits) for name, logits in found.items()}

    def report(self) -> RunnerReport:
        return self._inner.report()

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of large pictures: 12 inputs are looked at."""
    monkeypatch.setattr(inputs, "FEWEST", 12)
    monkeypatch.setattr(inputs, "PIXELS", 0)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("off", [1.0, np.nan])
def test_a_fault_that_one_held_out_picture_shows_is_found(off: float, speck_path: Path, why: Any) -> None:
    picture = Bundle.open(speck_path).evaluation().images[ODD]
    found = why(speck_path, opened=lambda bundle: OneWrong(open_runner(bundle, ORT, "fp32"), picture, off))
    stages = {result.stage: result for result in found.stages}
    assert found.stage == "runner"
    assert {stage for stage, result in stages.items() if result.status == "departs"} == {"runner"}
    assert stages["runner"].detail.startswith("12 inputs, 6 of them those that the port is farthest off on")
    largest = stages["runner"].measured["max_abs"]
    assert largest is None if np.isnan(off) else largest == pytest.approx(off, rel=0.01)
    rms = stages["runner"].measured["rms"]
    assert rms is not None
    assert rms < 1e-4, "of the usual rows: the bound is of all, not of the worst"


@pytest.mark.usefixtures("few")
def test_where_nothing_departs_that_is_what_is_told(speck_path: Path, why: Any) -> None:
    found = why(speck_path)
    assert all(result.status != "departs" for result in found.stages)
    assert found.cause.startswith("no stage departs beyond its bounds on the 12 inputs that were looked at")
    assert not found.confirmed
    assert found.first == ()


def test_half_of_the_rows_are_chosen_and_half_are_the_usual_ones(few: None, speck_path: Path) -> None:
    subject = Subject(Bundle.open(speck_path))
    golden, evaluation = subject.golden, subject.evaluation
    usual = np.concatenate([golden.images[-6:], evaluation.images[:6]])
    assert subject.chooses
    np.testing.assert_array_equal(subject.images, usual)
    np.testing.assert_array_equal(subject.usual, np.arange(12))
    subject.look_at(np.array([1, 12, 0, 2]), np.array([100, 2, 50, 7]))
    golden_rows, held_out = [1, 12, 0, 9, 10, 11], [100, 2, 50, 0, 1, 3]
    np.testing.assert_array_equal(subject.images[:6], golden.images[golden_rows])
    np.testing.assert_array_equal(subject.images[subject.held_out], evaluation.images[held_out])
    np.testing.assert_array_equal(subject.recorded[6:], evaluation.logits[held_out])
    np.testing.assert_array_equal(subject.truth, evaluation.labels[held_out])
    np.testing.assert_array_equal(subject.usual, [3, 4, 5, 9, 10, 11])
    subject.look_at()
    np.testing.assert_array_equal(subject.images, usual)


def test_where_all_inputs_are_looked_at_none_is_chosen(speck_path: Path) -> None:
    subject = Subject(Bundle.open(speck_path))
    assert not subject.chooses
    assert len(subject.images) == len(subject.usual) == 13 + 120


def test_the_farthest_rows_come_first_and_those_that_are_no_numbers_before_them() -> None:
    expected = np.zeros((5, 2), np.float32)
    found = np.array([[0, 1], [0, -3], [np.nan, 0], [0, 0], [3, 0]], np.float32)
    assert farthest(found, expected).tolist() == [2, 1, 4, 0, 3]
    assert close_rows(found, expected, 2).tolist() == [1, 2]


def test_of_large_pictures_the_tensors_of_few_are_held(
    own_speck: Path, surgery: Any, why: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {size: tensor_rows(np.zeros((32, size, size, 3), np.uint8)) for size in (16, 128, 224)}
    assert shapes == {16: 8, 128: 8, 224: 2}

    def lose(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "network.conv2.bias":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))

    surgery(own_speck, lose)
    for pixels, rows in ((0, 2), (1000, 3), (inputs.TENSOR_PIXELS, 8)):
        monkeypatch.setattr(inputs, "TENSOR_PIXELS", pixels)
        first = why(own_speck).first[0]
        assert first.layer == "conv2"
        assert f"[{rows}, 12, " in first.detail


def test_an_order_of_many_classes_is_found_in_little_memory() -> None:
    right = np.random.default_rng(0).normal(0, 1, (3000, 8))
    order = np.random.default_rng(1).permutation(len(right))
    tracemalloc.start()
    try:
        assert _order(right[order].astype(np.float32), right) == order.tolist()
        assert tracemalloc.get_traced_memory()[1] < 8 * right.nbytes
    finally:
        tracemalloc.stop()
    assert _order(right.astype(np.float32), right) is None
    assert _order(np.zeros((3, 8), np.float32), right[:3]) is None
