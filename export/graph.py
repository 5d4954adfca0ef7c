"""From the original to an ONNX graph that keeps the contract: uint8 NHWC in, symbolic batch, float32 logits out.

torch's exporter is asked, never believed: opset, batch axis, input and output are read back from what it made.
"""

from __future__ import annotations

import math
import warnings
from importlib import metadata
from typing import TYPE_CHECKING

import msgspec

from trueport.runtime.errors import ExportError, UsageError, missing_extra

from .original import INPUT, OUTPUT, Original, served_module
from .rewrites import rewrite

if TYPE_CHECKING:
    import onnx
    import torch

BATCH = "batch"
BF16_OPSET = 22
"""The first in which ONNX's Conv and pools take bfloat16."""
TOO_LARGE = 2**31
"""Bytes that protobuf can't hold in one message."""


def onnx_from_original(original: Original, opset: int = 20, dtype: torch.dtype | None = None) -> onnx.ModelProto:
    """Export the deployed form of the original.

    dtype: what the graph computes in; None: float32. bfloat16 needs opset 22, and is written in no lower one.
    Labels and preprocessing travel in the graph's metadata.
    Raises ExportError where torch can't export the module or the graph breaks the contract, UsageError where the graph
    is too large.
    """
    try:
        import onnxscript  # noqa: F401 — the exporter's own dependency, named before it fails inside
        import torch
    except ImportError as error:
        raise missing_extra(error.name or "torch", "train", "export") from error
    if dtype == torch.bfloat16:
        opset = max(opset, BF16_OPSET)
    height, width, channels = original.preprocessing.shape
    # Two rows: a batch of one is where an exporter is tempted to take the axis for a constant.
    example = torch.zeros((2, height, width, channels), dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                served_module(original, dtype, contiguous=True),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: BATCH},),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"torch can't export {original.arch}: {reason}") from error
    if program is None:
        raise ExportError(f"torch's exporter returned nothing for {original.arch}")
    model: onnx.ModelProto = program.model_proto
    refuse_large(model)  # before anything wants it in one piece
    rewrite(model)
    _describe(model, original, opset)
    check_contract(model, original, opset)
    return model


def check_contract(model: onnx.ModelProto, original: Original, opset: int) -> None:
    """Read back what was exported. Raises ExportError that says what was expected and what is there."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != opset:
        raise ExportError(f"expected opset {opset}, the exporter wrote {found}: choose an opset it supports")
    for value, spec in ((model.graph.input, original.input_spec), (model.graph.output, original.output_spec)):
        _check_value(list(value), spec.name, spec.dtype, spec.shape)
    first = [node.op_type for node in model.graph.node if INPUT in node.input]
    if first != ["Cast"]:
        raise ExportError(f"expected the input {INPUT!r} to feed one Cast and nothing else, it feeds {first}")


def _check_value(values: list[onnx.ValueInfoProto], name: str, dtype: str, shape: tuple[int, ...]) -> None:
    import onnx

    if [value.name for value in values] != [name]:
        raise ExportError(f"expected one tensor {name!r}, the graph has {[value.name for value in values]}")
    tensor = values[0].type.tensor_type
    batch, *rest = tensor.shape.dim
    if not batch.dim_param:
        raise ExportError(
            f"the batch axis of {name!r} was frozen to {batch.dim_value}: the model's forward uses a fixed batch size "
            "(a view or reshape with a number where the batch belongs)"
        )
    sizes = tuple(dim.dim_value for dim in rest)
    found = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if (found, sizes) != (dtype, shape[1:]):
        raise ExportError(f"expected {name!r} as {dtype} {shape[1:]} per row, the graph has {found} {sizes}")


def _describe(model: onnx.ModelProto, original: Original, opset: int) -> None:
    """Put what a reader of the bare graph needs into it; onnxruntime shows it as custom metadata."""
    import onnx

    model.producer_name, model.producer_version = "trueport", metadata.version("trueport")
    onnx.helper.set_model_props(
        model,
        {
            "trueport.arch": original.arch,
            "trueport.opset": str(opset),
            "trueport.labels": msgspec.json.encode(original.labels).decode(),
            "trueport.preprocessing": msgspec.json.encode(original.preprocessing).decode(),
            "trueport.normalisation": msgspec.json.encode(original.normalisation).decode(),
        },
    )


def refuse_large(model: onnx.ModelProto) -> None:
    """Raise UsageError for a graph that protobuf can't hold in one file."""
    size = _bytes_of_weights(model)  # without serializing them, which is how protobuf learns a size and fails here
    if size < TOO_LARGE:
        size = model.ByteSize()
    if size >= TOO_LARGE:
        raise UsageError(f"the graph has {size:,} bytes; graphs of 2 GiB and more are not supported yet")


def _bytes_of_weights(model: onnx.ModelProto) -> int:
    import onnx

    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )
