"""What the exporter's graphs are turned into: the same answers, fewer nodes, nothing of the machine that exported."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

from trueport.export.graph import onnx_from_original
from trueport.export.layers import producers
from trueport.export.original import STATISTICS, Original, OriginalRunner
from trueport.export.rewrites import rewrite
from trueport.runtime.manifest import Normalisation, Preprocessing

SIDE = 12


def exported(*layers: nn.Module, dtype: torch.dtype | None = None) -> tuple[Original, onnx.ModelProto]:
    """A small network, layers in its middle, and its graph."""
    torch.manual_seed(0)
    begin, end = nn.Conv2d(3, 8, 3), (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    original = Original(
        nn.Sequential(begin, *layers, *end),
        tuple("abcdefgh"),
        Preprocessing(height=SIDE, width=SIDE, mode="RGB"),
        Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
        "small",
    )
    return original, onnx_from_original(original, dtype=dtype)


def operators(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def deviation(original: Original, graph: onnx.ModelProto) -> float:
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float(np.abs(logits - OriginalRunner(original).run({"image": images})["logits"]).max())


def test_planes_are_normalised_with_one_value_each() -> None:
    """As onnxruntime is fastest: beside a last axis of one channel it takes many times as long."""
    _, graph = exported()
    statistics = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer if tensor.name in STATISTICS}
    behind, name, kinds = producers(graph), graph.graph.node[operators(graph).index("Conv")].input[0], []
    while name != "image":
        kinds.append(behind[name].op_type)
        name = behind[name].input[0]
    assert kinds == ["Div", "Sub", "Div", "Transpose", "Cast"]
    assert statistics == {"mean": (3, 1, 1), "std": (3, 1, 1)}


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(("alpha", "beta", "k"), [(1e-4, 0.75, 1.0), (0.3, 0.5, 2.0)])
def test_a_response_norm_is_one_operator(size: int, alpha: float, beta: float, k: float) -> None:
    original, graph = exported(nn.LocalResponseNorm(size, alpha, beta, k), nn.ReLU())
    assert operators(graph).count("LRN") == 1
    assert not {"Pow", "Pad", "AveragePool"} & set(operators(graph))
    assert deviation(original, graph) < 1e-5
    read = {name for node in graph.graph.node for name in node.input}
    assert {tensor.name for tensor in graph.graph.initializer} <= read


def test_a_window_that_onnx_places_otherwise_stays_as_it_was_written() -> None:
    original, graph = exported(nn.LocalResponseNorm(4, 0.3))
    assert "LRN" not in operators(graph)
    assert deviation(original, graph) < 1e-5


def test_a_response_norm_in_half_precision_is_one_operator() -> None:
    original, graph = exported(nn.LocalResponseNorm(5, 0.3), dtype=torch.float16)
    assert "LRN" in operators(graph)
    assert deviation(original, graph) < 1e-2


def test_an_average_of_all_is_one_operator() -> None:
    """In channels_last, as the pixels lie, AdaptiveAvgPool2d restrides its answer: ten nodes, sizes among them."""
    original, graph = exported()
    assert operators(graph)[5:] == ["Conv", "ReduceMean", "Reshape"]
    assert deviation(original, graph) < 1e-6


class OwnDivisor(nn.Module):
    """Asks for the divisor too, which one operator would not have."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad((maps * maps).unsqueeze(1), (0, 0, 0, 0, 1, 1))
        divisor = (nn.functional.avg_pool3d(padded, (3, 1, 1), stride=1).squeeze(1) * 0.3 + 2.0).pow(0.75)
        return maps / divisor + divisor


def test_a_divisor_that_is_read_elsewhere_stays() -> None:
    original, graph = exported(OwnDivisor())
    assert {"Pow", "AveragePool"} <= set(operators(graph))
    assert deviation(original, graph) < 1e-5


def test_a_batch_size_is_read_behind_the_cast() -> None:
    _, graph = exported()
    graph.graph.node.insert(0, helper.make_node("Shape", ["image"], ["asked"]))
    rewrite(graph)
    cast, shape = graph.graph.node[:2]
    assert (cast.op_type, list(shape.input)) == ("Cast", list(cast.output))


def test_nothing_tells_of_the_machine_that_exported() -> None:
    """The exporter writes lines of source and their paths into every node."""
    _, graph = exported(nn.LocalResponseNorm(5), nn.ReLU())
    assert b".py" not in graph.SerializeToString()
    assert {entry.key for node in graph.graph.node for entry in node.metadata_props} == {"pkg.torch.onnx.name_scopes"}
