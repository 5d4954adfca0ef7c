"""The catalogue: what is in it, what a fault may touch, and that stand-ins are right but for the fault."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trueport.export.written import open_written
from trueport.pipeline.check import check_deployment
from trueport.pipeline.faults import FAULTS, DoesNotApplyError, Fault, Healthy, engines, int8_kernels, runners
from trueport.pipeline.faults.catalogue import fault
from trueport.pipeline.faults.harm import harm, unharmed
from trueport.pipeline.faults.surgery import weighted
from trueport.runtime.explanation import STAGES
from trueport.runtime.runner import run_in_batches

Made = Callable[[str], Healthy]
WANTED = {
    "bgr", "filter", "antialias", "crop", "exif", "unnormalised", "normalised twice", "mean for std", "unscaled",
    "scaled twice", "nhwc", "permuted labels", "application's labels", "other head", "training batch norm",
    "reset batch norm", "batch norm epsilon", "dropout", "frozen batch", "mixed rows", "wrong rows", "ceil mode",
    "align corners", "padding", "lost bias", "older checkpoint", "flipped bit", "fp16 overflow", "int8 on constants",
    "int8 on dark pictures", "saturating int8", "other model", "precision not reached", "provider fallback",
    "auxiliary head", "softmax over batch", "old opset", "flushed denormals", "nan in the recording",
    "other golden set", "one class", "few samples", "constant pictures", "other original", "truncated engine",
    "engine of other weights",
}  # fmt: skip
"""What every catalogue of deployment faults has to hold."""


def test_the_catalogue_holds_what_goes_wrong_in_the_field() -> None:
    assert not WANTED - FAULTS.keys()
    for name, one in FAULTS.items():
        assert one.stage in STAGES, name
        assert one.plant.__doc__, f"{name} does not say how it happens"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="two faults are named 'bgr'"):
        fault("bgr", "again", "preprocessing")(lambda healthy: healthy.deployment)


def test_a_fault_is_planted_into_a_copy(healthy: Made, victim: Path) -> None:
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in victim.iterdir() if file.is_file()}
    for name in ("lost bias", "other original", "few samples", "permuted labels", "truncated engine"):
        assert FAULTS[name].plant(healthy("fp32")).bundle.path != victim
    after = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in victim.iterdir() if file.is_file()}
    assert after == before


def test_a_second_copy_in_the_same_place_leaves_the_bundle_alone(healthy: Made, victim: Path) -> None:
    """Copies share the files that they do not change: by another name they are the bundle's own."""
    made = healthy("fp32")
    before = (victim / made.variant.file).read_bytes()
    made.with_files({})
    FAULTS["lost bias"].plant(made)
    assert (victim / made.variant.file).read_bytes() == before


def test_a_fault_that_does_not_fit_the_model_says_so(healthy: Made) -> None:
    with pytest.raises(DoesNotApplyError, match="in colour"):
        FAULTS["grey"].plant(healthy("fp32"))


# Harm


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bgr", "pixels move"),
        ("background class", "11 names for 10 classes"),
        ("few samples", "evaluation.npz is another"),
        ("lost bias", "logits move"),
        ("frozen batch", "can't be opened"),
        ("infrequent nan", "NaN"),
        ("provider fallback", "onnxruntime:cuda runs on CPUExecutionProvider"),
        ("precision not reached", "computes in fp32"),
    ],
)
def test_harm_is_measured_apart_from_gates(healthy: Made, name: str, told: str) -> None:
    one = FAULTS[name]
    made = healthy("int8-cpu" if one.precision == "int8" else "fp32")
    assert told in harm(one, one.plant(made), made, unharmed(made))


def test_what_changes_nothing_does_no_harm(healthy: Made) -> None:
    made = healthy("fp32")
    before = unharmed(made)

    def less_than_noise(one: Healthy) -> Any:
        model = one.graph()
        (_, tensor), *_ = weighted(model)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return one.with_graph(model)

    for plant in (lambda one: one.with_files({}), lambda one: one.with_golden(), less_than_noise):
        one = healthy("fp32")
        assert harm(Fault("-", "-", "onnx", plant, "fp32", None), plant(one), one, before) == ""


# Stand-ins: without their fault they are right


def test_an_engine_that_fits_is_served(healthy: Made) -> None:
    deployed = engines._with_engine(healthy("fp32"), lambda sidecar: sidecar)
    assert check_deployment(deployed, variants=("fp32",), runners=(engines.ASKED,))


def test_a_graph_at_the_edge_of_float32_is_faithful_where_denormals_are_kept(healthy: Made) -> None:
    made = healthy("fp32")
    model = made.graph()
    runners._to_the_edge(model, made, flush=False)
    report = check_deployment(made.with_graph(model), variants=("fp32",))
    assert report, [verdict.measured for verdict in report.failed]


def test_sums_in_32_bits_are_those_of_the_graph(healthy: Made) -> None:
    """Of the layers that saturate in 16 bits: it is the saturation alone that makes them wrong."""
    made = healthy("int8-cpu")
    images = made.bundle.golden().images[:4]
    layers = int8_kernels._layers(made.graph())
    assert len(layers) == 6
    for layer in layers:
        model = made.graph()
        if layer.name != "logits":
            inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
            model.graph.output.extend(value for value in inferred if value.name == layer.name)
        (expected,) = open_written(model).run([layer.name], {"image": images})
        (levels,) = open_written(layer.before).run(None, {"image": images})
        exact = np.concatenate([layer._row(levels[i : i + 1], 2**31 - 1) for i in range(len(levels))])
        np.testing.assert_allclose(exact, expected, atol=1e-5 * np.abs(expected).max())


def test_saturation_is_that_of_vpmaddubsw() -> None:
    columns, weight = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    assert int8_kernels._pairs(columns, weight).tolist() == [[[64770], [64770]]]
    layer = int8_kernels._Layer(
        "-", onnx.ModelProto(), None, weight, 0, np.ones(1, np.float32), np.zeros(1, np.float32), kernel=None
    )
    assert layer.compute(columns).tolist() == [[2 * 32767]]


def test_products_of_a_large_picture_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    weight, made = chance.integers(-127, 128, (18, 8)).astype(np.int8), list[int]()
    layer = int8_kernels._Layer(
        "-", onnx.ModelProto(), None, weight, 3, np.ones(8, np.float32), np.zeros(8, np.float32), kernel=(3, 3)
    )
    levels = chance.integers(0, 256, (2, 2, 30, 20)).astype(np.uint8)
    whole, pairs = layer.compute(levels), int8_kernels._pairs

    def seen(columns: Any, factors: Any) -> Any:
        found = pairs(columns, factors)
        made.append(found.size)
        return found

    monkeypatch.setattr(int8_kernels, "_pairs", seen)
    monkeypatch.setattr(int8_kernels, "AT_ONCE", 2000)
    np.testing.assert_array_equal(layer.compute(levels), whole)
    assert max(made) <= 2000
    assert sum(made) == 2 * 28 * 18 * 9 * 8


def test_a_late_runner_answers_what_was_asked_before(healthy: Made) -> None:
    made = healthy("fp32")
    images = made.bundle.golden().images
    deployed = FAULTS["stale answer"].plant(made)
    with closing(deployed.open(deployed.bundle, "onnxruntime:cpu", "fp32", made.options)) as runner:
        first, second = (run_in_batches(runner, images[rows : rows + 4], 4) for rows in (0, 4))
    np.testing.assert_array_equal(first, second)
