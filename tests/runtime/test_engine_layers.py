"""The inspector's JSON, as documentation and users' logs show it, read for the types that layers compute in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trueport.runtime.engine_layers import layers_from_inspector, unreached


def layer(kind: str, dtype: str, **more: Any) -> dict[str, Any]:
    return {"Name": "x", "LayerType": kind, "Inputs": [{"Name": "a", "Format/Datatype": dtype}], **more}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format."), "int8"),
        (layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0"), "fp16"),
        (layer("CaskConvolution", "Half"), "fp16"),
        (layer("gemm", "BFloat16"), "bf16"),
        (layer("gemm", "Row major linear BF16 format"), "bf16"),
        (layer("CaskGemmMatrixMultiply", "Float"), "fp32"),
        (layer("conv", "Row major linear FP32"), "fp32"),
        (layer("correlation", "Half"), "fp16"),
        (layer("CaskConvolution", "Float", Weights={"Type": "Int8", "Count": 9}), "int8"),
        (layer("CaskConvolution", "Float", Weights={"Type": "Half", "Count": 9}), "fp16"),
        (layer("Fusion", "Half", ParameterType="Convolution"), "fp16"),
    ],
)
def test_a_layer_that_computes_is_counted_by_its_type(told: dict[str, Any], found: str) -> None:
    assert layers_from_inspector(json.dumps({"Layers": [told, told], "Bindings": ["image"]})) == {found: 2}


@pytest.mark.parametrize(
    "told",
    [
        layer("Reformat", "Half", ParameterType="Reformat"),
        layer("PointWiseV2", "Half"),
        layer("CaskConvolution", "N/A due to dynamic shapes"),
        layer("CaskConvolution", "UInt8"),
        {"LayerType": "CaskConvolution"},
        {"LayerType": "CaskConvolution", "Inputs": ["a"], "Weights": 3},
        "conv1 + relu1",  # all that less than detailed verbosity tells
        None,
    ],
)
def test_what_computes_nothing_or_tells_no_type_is_left_out(told: Any) -> None:
    assert layers_from_inspector(json.dumps({"Layers": [told]})) == {}


@pytest.mark.parametrize("text", ["", "no json", "[" * 5000, "3", '{"Layers": 3}', "null"])
def test_what_is_no_such_json_tells_nothing(text: str) -> None:
    assert layers_from_inspector(text) == {}


def test_what_was_asked_for_was_reached() -> None:
    assert unreached("fp16", {"fp16": 20}, {"fp16": 21}) is None
    assert unreached("int8", {"int8": 18, "fp32": 1}, {"int8": 19, "fp32": 2}) is None
    assert unreached("fp32", {}, {"fp32": 3}) is None, "nothing was told"
    assert unreached("fp32", {}, {}) is None, "nothing computes"


def test_a_difference_is_named() -> None:
    """rf-detr#1453: an engine that was asked for in fp16 and computes in fp32."""
    assert "none of its layers computes in it: 21 layers in fp32" in str(unreached("fp16", {"fp32": 21}, {"fp16": 21}))
    assert "but 2 layers in fp32, where the graph has 19 layers in int8, 1 in fp32" in str(
        unreached("int8", {"int8": 18, "fp32": 2}, {"int8": 19, "fp32": 1})
    )
    assert "1 layer in fp32, where the graph has no layers that compute" in str(unreached("int8", {"fp32": 1}, {}))
