"""Drift: a healthy graph stays in each layer's noise, a broken one departs at one layer, what is missing is told."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trueport.export.attribution.subject import CLOSE
from trueport.pipeline.drift import Drift, drift_of
from trueport.pipeline.fidelity_plots import drift_svg
from trueport.runtime.bundle import WEIGHTS, Bundle, sealed
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest

FILE, LOW = "model.fp32.onnx", "model.int8-cpu.onnx"
LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


def changed(folder: Path, change: Callable[[onnx.ModelProto], None], file: str = FILE) -> Bundle:
    """The bundle with another graph under this name; a file that it did not have becomes a second variant."""
    model = onnx.load(folder / FILE)
    change(model)
    data = model.SerializeToString()
    (folder / file).write_bytes(data)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    if file not in manifest.files:
        (fp32,) = manifest.variants
        second = msgspec.structs.replace(fp32, name="int8-cpu", precision="int8", target="cpu", file=file)
        manifest = msgspec.structs.replace(manifest, variants=(fp32, second))
    files = manifest.files | {file: FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    (folder / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, files=files)))
    return Bundle.open(folder)


def constant(model: onnx.ModelProto, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def multiples(drift: Drift, variant: str) -> dict[str, float]:
    return {
        layer: value for layer, value in zip(drift.layers, drift.multiples[variant], strict=True) if value is not None
    }


def test_a_healthy_graph_stays_within_the_noise_of_every_layer(bundle_path: Path) -> None:
    said: list[str] = []
    drift = drift_of(Bundle.open(bundle_path), progress=said.append)
    assert drift.layers == LAYERS
    assert drift.missing == ""
    assert drift.pictures == CLOSE
    assert all(0 < noise < 1e-3 for noise in drift.noise)
    assert max(multiples(drift, "fp32").values()) < drift.headroom
    assert said == ["layers of the original", "layers of fp32"]
    assert drift_of(Bundle.open(bundle_path)) == drift


def test_a_fault_stands_out_from_its_layer_on(own_bundle: Path) -> None:
    def shift(model: onnx.ModelProto) -> None:
        bias = constant(model, "network.fc1.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))

    drift = drift_of(changed(own_bundle, shift))
    found = multiples(drift, "fp32")
    assert max(found["conv1"], found["conv2"]) < drift.headroom
    assert min(found["fc1"], found["fc2"], found["fc3"]) > 100 * drift.headroom
    assert drift.largest("fp32") == max(found.values())
    assert "fp32: at most" in drift_svg(drift)


def test_a_quantized_layer_is_seen_as_the_next_one_sees_it(own_bundle: Path) -> None:
    """A ReLU that quantization does is no fault: what is below zero is cut off by the Q/DQ pair."""

    def quantize(model: onnx.ModelProto) -> None:
        graph = model.graph
        relu = next(node for node in graph.node if node.op_type == "Relu")
        convolution = next(node for node in graph.node if node.output[0] == relu.input[0])
        convolution.output[0] = relu.output[0]
        for node in graph.node:
            node.input[:] = ["dequantized" if name == relu.output[0] else name for name in node.input]
        scale, zero = np.float32(1 / 4096), np.uint16(0)
        for value, name in ((scale, "scale"), (zero, "zero")):
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        pair = [
            helper.make_node("QuantizeLinear", [relu.output[0], "scale", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["dequantized"]),
        ]
        place = list(graph.node).index(relu)
        nodes = [*graph.node[:place], *pair, *graph.node[place + 1 :]]
        del graph.node[:]
        graph.node.extend(nodes)
        model.opset_import[0].version = 21  # 16 bits

    drift = drift_of(changed(own_bundle, quantize, LOW))
    assert drift.missing == ""
    step = 1 / 4096 / 2
    assert multiples(drift, "int8-cpu")["conv1"] * drift.noise[0] == pytest.approx(step, rel=0.05)
    assert multiples(drift, "fp32")["conv1"] < drift.headroom


def test_answers_that_are_no_numbers_are_infinitely_far(own_bundle: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        bias = constant(model, "network.fc2.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(np.nan), bias.name))

    drift = drift_of(changed(own_bundle, spoil))
    found = multiples(drift, "fp32")
    assert found["fc1"] < drift.headroom
    assert found["fc2"] == found["fc3"] == drift.largest("fp32") == np.inf
    assert "at most infinite times" in drift_svg(drift)


def test_a_graph_that_does_not_run_is_left_out_and_told(own_bundle: Path) -> None:
    def break_graph(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "Conv"

    drift = drift_of(changed(own_bundle, break_graph, LOW))
    assert list(drift.multiples) == ["fp32"]
    assert drift.missing.startswith("int8-cpu: onnxruntime")
    assert "the graph as it is written" in drift.missing


def test_what_can_not_be_had_is_told(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for name in list(sys.modules):
            if name.startswith("trueport.export.attribution"):
                patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "onnx", None)
        assert (
            "needs onnx, which is not installed: pip install 'trueport[train]'"
            in drift_of(Bundle.open(own_bundle)).missing
        )
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    factory = msgspec.structs.replace(manifest.provenance, arch="somewhere:factory")
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, provenance=factory)))
    assert "--trust-code" in drift_of(Bundle.open(own_bundle)).missing
    files = {name: entry for name, entry in manifest.files.items() if name != WEIGHTS}
    (own_bundle / WEIGHTS).unlink()
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, files=files)))
    nothing = drift_of(Bundle.open(own_bundle))
    assert nothing == Drift(f"the bundle has no {WEIGHTS}, which the original is rebuilt from")
    with pytest.raises(ValueError, match="expected a layer to draw"):
        drift_svg(nothing)


def test_many_layers_are_drawn_without_their_names() -> None:
    layers = tuple(f"block{index}.convolution" for index in range(60))
    drift = Drift("", 2, 8.0, layers, (1e-6,) * 60, {"fp32": (1.0,) * 59 + (None,)})
    assert "block3" not in drift_svg(drift)
    few = Drift("", 2, 8.0, layers[:5], (1e-6,) * 5, {"fp32": (1.0,) * 5})
    assert "block0…olution" in drift_svg(few)
