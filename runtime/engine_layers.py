"""In which types an engine's layers compute, from what TensorRT's inspector tells, and whether that is what was asked.

The inspector's JSON is documented by example only and differs between versions and flavours: what can't be understood
is left out, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from .runners.reached import shown

COMPUTING = re.compile(r"conv|gemm|matmul|matrix_?multiply|fully_?connected|correlation", re.IGNORECASE)
"""In a layer's type or parameters: it sums up products."""
_NOT_COMPUTING = re.compile(r"reformat|convert|shuffle|signal|wait", re.IGNORECASE)
_TYPES = (  # the order matters: BF16 holds no FP16, but "BFloat16" holds "Float"
    ("int8", re.compile(r"(?<!u)int8|\bi8\b", re.IGNORECASE)),
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|\bhalf\b|float16", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|\bfloat\b|float32", re.IGNORECASE)),
)


def inspected_layers(trt: Any, engine: Any) -> dict[str, int]:
    """Layers that compute by type, as a loaded engine's inspector tells them. trt: the module that it is of."""
    told: str = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_from_inspector(told)


def layers_from_inspector(text: str) -> dict[str, int]:
    """Layers that compute by type, of the inspector's JSON; empty where it tells no types."""
    try:
        told = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    layers = told.get("Layers", []) if isinstance(told, dict) else told
    if not isinstance(layers, list):
        return {}
    types = (_type_of(layer) for layer in layers if isinstance(layer, dict) and _computes(layer))
    return dict(Counter(found for found in types if found))


def unreached(precision: str, layers: Mapping[str, int], stated: Mapping[str, int]) -> str | None:
    """How the types that were read back differ from those asked for; None: they do not.

    stated: layers by type of the graph that the engine was built from: those it keeps in another type are expected.
    Fusion makes layers fewer; none may compute in a type that the graph has none of, or has fewer of.
    """
    if stated.get(precision) and layers and not layers.get(precision):
        return f"asked for {precision}, none of its layers computes in it: {shown(layers)}"
    more = {kind: count for kind, count in layers.items() if kind != precision and count > stated.get(kind, 0)}
    if more:
        return f"asked for {precision}, but {shown(more)}, where the graph has {shown(stated)}"
    return None


def _computes(layer: dict[str, Any]) -> bool:
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"
    return bool(COMPUTING.search(kind)) and not _NOT_COMPUTING.search(kind)


def _type_of(layer: dict[str, Any]) -> str | None:
    """Of its weights where they are told, else of its first input."""
    weights, inputs = layer.get("Weights"), layer.get("Inputs")
    told = [weights.get("Type")] if isinstance(weights, dict) else []
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        told += [inputs[0].get("Format/Datatype"), inputs[0].get("Datatype")]
    for text in told:
        for kind, pattern in _TYPES:
            if isinstance(text, str) and pattern.search(text):
                return kind
    return None
