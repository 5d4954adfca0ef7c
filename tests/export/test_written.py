"""A graph as it is written: fp16 really has 16 bits there, though onnxruntime computes it in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trueport.export.written import ROUNDED, rounding
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners.written import written_runner


def half_graph(gain: float) -> onnx.ModelProto:
    """image -> (image * gain) / gain in float16 -> logits."""
    nodes = [
        helper.make_node("Cast", ["image"], ["halved"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["halved", "up"], ["large"]),
        helper.make_node("MatMul", ["large", "down"], ["small"]),
        helper.make_node("Cast", ["small"], ["logits"], to=TensorProto.FLOAT),
    ]
    identity = np.eye(4, dtype=np.float16)
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(identity * np.float16(gain), "up"),
            numpy_helper.from_array(identity / np.float16(gain), "down"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    return written_runner(model.SerializeToString(), "half", RunnerOptions(threads=1)).run({"image": image})["logits"]


def test_what_leaves_16_bits_is_seen_only_where_every_activation_is_rounded() -> None:
    image = np.full((2, 4), 200, np.uint8)
    overflowing = half_graph(1000)
    assert np.isfinite(answers(overflowing, image)).all(), "onnxruntime computes neighbours in float32"
    assert not np.isfinite(answers(rounding(overflowing), image)).any()
    assert np.allclose(answers(rounding(half_graph(8)), image), 200, rtol=2**-10)


def test_rounding_keeps_the_names_of_tensors() -> None:
    model = rounding(half_graph(8))
    onnx.checker.check_model(model, full_check=True)
    made = [output for node in model.graph.node for output in node.output]
    assert [name for name in made if not name.endswith(ROUNDED)] == ["halved", "large", "small", "logits"]
    assert sum(name.endswith(ROUNDED) for name in made) == 6
