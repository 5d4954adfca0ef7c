"""What stands around a graph is read as the onnx package reads it, and nothing else is taken for a graph."""

from __future__ import annotations

import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from trueport.runtime.errors import BundleError
from trueport.runtime.graph_facts import GraphFacts, graph_facts


def written(metadata: dict[str, str]) -> bytes:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    opsets = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 300)]
    model = helper.make_model(graph, opset_imports=opsets)
    helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_metadata_and_opset_are_those_that_onnx_wrote(metadata: dict[str, str]) -> None:
    assert graph_facts(written(metadata)) == GraphFacts(300, metadata)


def test_a_graph_that_ends_too_early_is_none() -> None:
    data = written({"a": "b"})
    with pytest.raises(BundleError, match="no ONNX file"):
        graph_facts(data[:-1])


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        graph_facts(data)
