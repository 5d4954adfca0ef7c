"""What a served model takes and gives: compared with every request, and told to clients as metadata and config.

The config follows Triton's model configuration extension, as far as its clients read it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np

from ..errors import UsageError
from ..manifest import DType, Manifest, TensorSpec

PRIORITY_LEVELS = 200
DEFAULT_PRIORITY_LEVEL = 100
"""What the protocol's priority 0 stands for; 1 is the highest level."""
ALL_MODELS = "stats"
"""Stands in the place of a model's name where all are asked for."""
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics")

DATATYPES: dict[DType, str] = {
    "uint8": "UINT8",
    "float16": "FP16",
    "float32": "FP32",
    "int64": "INT64",
    "bytes": "BYTES",
}
ARRAY_DATATYPES = {np.dtype(name): datatype for name, datatype in DATATYPES.items() if name != "bytes"}
CONFIG_TYPES = {datatype: f"TYPE_{datatype}" for datatype in DATATYPES.values()} | {"BYTES": "TYPE_STRING"}


class WantedOutput(msgspec.Struct, frozen=True):
    """One output of an answer."""

    name: str
    binary: bool
    """As bytes behind the JSON, not as numbers in it."""
    classes: int = 0
    """Not 0: instead of the values, so many of the best classes as `value:index:label`."""


class Signature(msgspec.Struct, frozen=True):
    """One model, ready to be compared with a request."""

    name: str
    version: str
    input: str
    row_shape: tuple[int, ...]
    """(H, W, C)"""
    row_bytes: int
    max_rows: int
    """Most rows a request may hold."""
    labels: tuple[str, ...]
    json_outputs: tuple[WantedOutput, ...]
    binary_outputs: tuple[WantedOutput, ...]


def signature_from_manifest(manifest: Manifest, max_rows: int) -> Signature:
    """Raises UsageError for a model that does not take exactly one uint8 (N, H, W, C), or has no name of its own."""
    height, width, channels = _row_shape(manifest)
    for word in (manifest.name, manifest.version):
        if not word or "/" in word:
            raise UsageError(f"can't serve under the name or version {word!r}: expected a word without a slash")
    if manifest.name == ALL_MODELS:
        raise UsageError(
            f"can't serve under the name {ALL_MODELS!r}: GET /v2/models/{ALL_MODELS} tells of all models; export it "
            "under another name"
        )
    names = [spec.name for spec in manifest.outputs]
    return Signature(
        name=manifest.name,
        version=manifest.version,
        input=manifest.inputs[0].name,
        row_shape=(height, width, channels),
        row_bytes=height * width * channels,
        max_rows=max_rows,
        labels=manifest.labels,
        json_outputs=tuple(WantedOutput(name, binary=False) for name in names),
        binary_outputs=tuple(WantedOutput(name, binary=True) for name in names),
    )


def server_metadata(control: bool) -> dict[str, Any]:
    """Of `GET /v2`. control: whether clients may load and unload models."""
    extensions = (*EXTENSIONS, "model_repository") if control else EXTENSIONS
    return {"name": "trueport", "version": version("trueport"), "extensions": extensions}


def model_metadata(manifest: Manifest, versions: list[str]) -> dict[str, Any]:
    """Of `GET /v2/models/NAME`."""
    return {
        "name": manifest.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_described(spec) for spec in manifest.inputs],
        "outputs": [_described(spec) for spec in manifest.outputs],
    }


def model_config(manifest: Manifest, max_rows: int) -> dict[str, Any]:
    """Of `GET /v2/models/NAME/config`; dims are without the batch. The task tells what turns logits into scores."""
    return {
        "name": manifest.name,
        "platform": PLATFORM,
        "max_batch_size": max_rows,
        "input": [_configured(spec) for spec in manifest.inputs],
        "output": [_configured(spec) for spec in manifest.outputs],
        "dynamic_batching": {"priority_levels": PRIORITY_LEVELS, "default_priority_level": DEFAULT_PRIORITY_LEVEL},
        "parameters": {"task": {"string_value": manifest.task}},
    }


def _row_shape(manifest: Manifest) -> tuple[int, int, int]:
    match manifest.inputs:
        case (TensorSpec(dtype="uint8", shape=(_, height, width, channels)),) if min(height, width, channels) > 0:
            return height, width, channels
    found = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.inputs)
    raise UsageError(f"can't serve {manifest.name}: expected one input uint8 (N, H, W, C) of fixed size, found {found}")


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": spec.shape}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": CONFIG_TYPES[DATATYPES[spec.dtype]], "dims": spec.shape[1:]}
