"""int8: ranges and weights that do not fit, layers back in float by surgery, the fewest that accuracy needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trueport.export.attribution.float_layers import fewest, in_float, int8_layers, layer_names, node_names, ranked
from trueport.export.attribution.integers import halved, misfits, other_weights, recalibrated, saturating
from trueport.export.attribution.rebuild import rebuilt_bundle
from trueport.export.attribution.subject import Subject
from trueport.export.attribution.tensors import graph_answers
from trueport.export.layers import reached
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import ExportError, UsageError
from trueport.runtime.runner import run_in_batches
from trueport.runtime.runners import open_runner

SCHEMES = ("int8-cpu", "int8-gpu")


def scaled(names: tuple[str, ...], factor: float) -> Any:
    def change(model: onnx.ModelProto) -> None:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for name in names:
            values = numpy_helper.to_array(tensors[name]) * np.float32(factor)
            tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    return change


@pytest.fixture(scope="module")
def subject(speck_path: Path) -> Subject:
    return Subject(Bundle.open(speck_path))


def graphs(subject: Subject, scheme: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return subject.graph(subject.bundle.variant(scheme)), subject.graph(subject.base)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_in_float_answer_nearer_and_all_of_them_as_float_does(subject: Subject, scheme: str) -> None:
    graph, floats = graphs(subject, scheme)
    images, names = subject.images[:16], int8_layers(graph)
    assert len(names) == 3
    expected = graph_answers(floats, images)

    def away(model: onnx.ModelProto) -> float:
        onnx.checker.check_model(model, full_check=True)
        return float(np.abs(graph_answers(model, images) - expected).max())

    assert away(in_float(graph, floats, ())) == away(graph) > 0
    assert reached(in_float(graph, floats, names[:1])) == {"fp32": 1, "int8": 2}
    everything = in_float(graph, floats, names)
    assert reached(everything) == {"fp32": 3}
    assert away(everything) < away(graph)
    if scheme == "int8-gpu":  # no pair is left: the other scheme keeps those of pools
        assert away(everything) < subject.base.bounds.max_abs
        assert all("Linear" not in node.op_type for node in everything.graph.node)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_layer_that_was_spoilt_costs_most_and_is_the_one_to_keep(subject: Subject, scheme: str) -> None:
    graph, floats = graphs(subject, scheme)
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(graph)
    scaled(("network.conv2.weight_scale",), 3)(spoilt)
    order = [name for name, _ in ranked(spoilt, floats, subject.images[:16])]
    assert layer_names(spoilt, order[:1]) == ("conv2",)
    expected = graph_answers(floats, subject.images[:16])
    limit = 2 * float(np.abs(graph_answers(graph, subject.images[:16]) - expected).max())

    def passes(model: onnx.ModelProto) -> bool:
        return bool(np.abs(graph_answers(model, subject.images[:16]) - expected).max() <= limit)

    assert not passes(spoilt)
    assert layer_names(spoilt, fewest(spoilt, floats, order, passes)) == ("conv2",)
    second = [order[1], order[0], order[2]]  # grown to two, of which one is not needed
    assert layer_names(spoilt, fewest(spoilt, floats, second, passes)) == ("conv2",)
    assert fewest(spoilt, floats, order, lambda _: False) == ()
    assert node_names(spoilt, ("conv2",)) == tuple(order[:1])


def test_ranges_that_do_not_fit_are_found_and_those_that_do_are_not(subject: Subject) -> None:
    graph, floats = graphs(subject, "int8-cpu")
    assert misfits(graph, floats, subject.images) == []
    for factor, narrow in ((0.1, True), (20.0, False)):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(graph)
        scaled(("relu_scale",), factor)(wrong)
        found = misfits(wrong, floats, subject.images)
        assert "relu" in {one.tensor for one in found}
        assert all((one.ratio < 1) == narrow for one in found)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_in_float_stays_so_where_ranges_are_had_anew(subject: Subject, scheme: str) -> None:
    graph, floats = graphs(subject, scheme)
    mixed = in_float(graph, floats, int8_layers(graph)[1:2])
    for model in (graph, mixed):
        assert reached(recalibrated(model, floats, subject.images, reduce_range=False)) == reached(model)


def test_weights_of_another_graph_are_found(subject: Subject) -> None:
    graph, floats = graphs(subject, "int8-gpu")
    assert other_weights(graph, floats) == []
    wrong = onnx.ModelProto()
    wrong.CopyFrom(graph)
    scaled(("network.fc.weight_scale",), 1.5)(wrong)
    assert [layer for layer, steps in other_weights(wrong, floats) if steps > 1] == ["fc"]


def test_seven_bits_never_saturate_and_answer_nearly_the_same(subject: Subject) -> None:
    graph, _ = graphs(subject, "int8-cpu")
    assert saturating(graph) == ["conv1", "conv2", "fc"]
    half = halved(graph)
    assert saturating(half) == []
    images = subject.images[:16]
    before, after = graph_answers(graph, images), graph_answers(half, images)
    assert 0 < np.abs(before - after).max() < np.abs(before).max() / 4


CHANGES = {
    "narrow": (("div_1_scale", "relu_scale", "relu_1_scale"), 0.05, "cut values off"),
    "wide": (("div_1_scale", "relu_scale", "relu_1_scale"), 60.0, "waste levels"),
    "weights": (("network.conv2.weight_scale",), 4.0, "integer weights are not those of the fp32 graph"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_spoilt_int8_graph_is_traced_to_the_precision(name: str, own_speck: Path, surgery: Any, why: Any) -> None:
    names, factor, cause = CHANGES[name]
    surgery(own_speck, scaled(names, factor), "int8-gpu" if name == "weights" else "int8-cpu")
    variant, runner = ("int8-gpu", "written") if name == "weights" else ("int8-cpu", "onnxruntime:cpu")
    opened = None
    if runner == "written":
        from trueport.runtime.runner import RunnerOptions
        from trueport.runtime.runners.written import open_written

        opened = lambda bundle: open_written(bundle, bundle.variant(variant), RunnerOptions())  # noqa: E731
    found = why(own_speck, variant, runner, opened=opened)
    assert found.stage == "precision"
    assert cause in found.cause
    assert found.confirmed
    assert found.first
    if name == "weights":
        assert found.first[0].layer == "conv2"


def test_the_fewest_layers_that_accuracy_needs_are_named_and_the_bundle_rebuilt(
    own_speck: Path, tmp_path: Path, surgery: Any, why: Any
) -> None:
    surgery(own_speck, scaled(("network.conv2.weight_scale",), 8.0), "int8-cpu")
    found = why(own_speck, "int8-cpu", gates=("parity", "accuracy"))
    assert found.float_layers == ("conv2",)
    assert "keep conv2 in float" in found.remedy
    subject = Subject(Bundle.open(own_speck))
    variant = subject.bundle.variant("int8-cpu")
    rebuilt_bundle(subject, variant, found.float_layers, tmp_path / "rebuilt")
    bundle = Bundle.open(tmp_path / "rebuilt")
    made = bundle.variant("int8-cpu")
    assert made.quantization is not None
    assert made.quantization.float_layers == ("conv2",)
    assert made.reached == {"fp32": 1, "int8": 2}
    evaluation = bundle.evaluation()
    logits = run_in_batches(open_runner(bundle, variant="int8-cpu"), evaluation.images)
    assert np.abs(logits - evaluation.logits).max() <= made.bounds.max_abs
    assert bundle.variant("fp32") == subject.bundle.variant("fp32")


def test_a_rebuild_without_layers_or_of_all_of_them_is_refused(speck_path: Path, tmp_path: Path) -> None:
    subject = Subject(Bundle.open(speck_path))
    int8 = subject.bundle.variant("int8-cpu")
    for variant, layers in ((int8, ()), (subject.base, ("conv1",)), (int8, ("conv9",))):
        with pytest.raises(UsageError, match=r"expected layers of an int8 variant|has no integer layers"):
            rebuilt_bundle(subject, variant, layers, tmp_path / "rebuilt")
    with pytest.raises(ExportError, match="could be brought to int8"):
        rebuilt_bundle(subject, int8, ("conv1", "conv2", "fc"), tmp_path / "rebuilt")
    assert not (tmp_path / "rebuilt").exists()
