"""How far each layer of a bundle's graphs is from the original's, in multiples of that layer's own noise.

The original's modules answer in float32 and float64: the distance is the layer's noise. Each graph is asked as it is
written, by what `export.attribution` finds departures with; fused layers of a runner can't be looked into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import WEIGHTS, Bundle
from trueport.runtime.errors import TrueportError
from trueport.runtime.manifest import Variant

if TYPE_CHECKING:
    import onnx

    from trueport.export.attribution.subject import Subject
    from trueport.export.attribution.tensors import Expected, Tensors
    from trueport.export.original import Original


@dataclass(frozen=True)
class Drift:
    """Every layer of every graph that could be asked; empty where there is none."""

    missing: str = ""
    """Why there is nothing, or what is left out; empty where all is there."""
    pictures: int = 0
    headroom: float = 1.0
    """How many times its noise a bound allows."""
    layers: tuple[str, ...] = ()
    """Modules of the original, in the order of execution."""
    noise: tuple[float, ...] = ()
    """Of each layer, in the unit of its answers."""
    multiples: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """By variant: the largest difference of each layer over its noise; infinite where that is no number, None where the
    graph does not have the layer's answer."""

    def largest(self, variant: str) -> float | None:
        """Of all layers."""
        return max((value for value in self.multiples[variant] if value is not None), default=None)


def drift_of(bundle: Bundle, trust_code: bool = False, progress: Callable[[str], None] = lambda _: None) -> Drift:
    """The drift of every variant on a few pictures of the evaluation slice.

    trust_code: as `original_from_bundle` has it. What can't be had here is told in `missing`, and nothing is raised.
    """
    if WEIGHTS not in bundle.manifest.files:
        return Drift(f"the bundle has no {WEIGHTS}, which the original is rebuilt from")
    try:
        from trueport.export.attribution.subject import Subject, tensor_rows
        from trueport.export.attribution.tensors import expected_tensors, module_tensors
    except ImportError as error:
        return Drift(f"comparing layers needs {error.name}, which is not installed: pip install 'trueport[train]'")
    progress("layers of the original")
    subject = Subject(bundle, trust_code=trust_code)
    held_out = subject.evaluation.images
    images = held_out[: tensor_rows(held_out)]
    try:
        original = subject.original
        if original is None:
            return Drift(f"there is no original to compare with: {subject.no_original}")
        base = subject.graph(subject.base)
        expected = expected_tensors(original, images, base)
    except TrueportError as error:
        return Drift(str(error))
    places = _innermost(base, module_tensors(base, original), expected)
    found, missing = {}, []
    for variant in bundle.manifest.variants:
        progress(f"layers of {variant.name}")
        multiples = _multiples(subject, original, variant, images, places, expected)
        if isinstance(multiples, str):
            missing.append(f"{variant.name}: {multiples}")
        elif any(value is not None for value in multiples):
            found[variant.name] = multiples
        else:
            missing.append(f"{variant.name}: its graph does not tell which layers it is made of")
    return _drift(found, missing, places, expected, len(images))


def _drift(
    found: dict[str, tuple[float | None, ...]],
    missing: list[str],
    places: dict[str, str],
    expected: dict[str, Expected],
    pictures: int,
) -> Drift:
    from trueport.export.golden import HEADROOM

    if not found:
        return Drift("; ".join(missing) or "the graphs do not tell which layers they are made of")
    noise = tuple(expected[tensor].allowed / HEADROOM for tensor in places.values())
    return Drift("; ".join(missing), pictures, HEADROOM, tuple(places), noise, found)


def _innermost(base: onnx.ModelProto, modules: dict[str, str], expected: dict[str, Expected]) -> dict[str, str]:
    """By module, its tensor, in the order of execution; of modules that end in the same tensor the innermost."""
    from trueport.export.layers import producers

    named: dict[str, str] = {}
    for module, tensor in modules.items():
        if tensor in expected and len(module) > len(named.get(tensor, "")):
            named[tensor] = module
    return {named[tensor]: tensor for tensor in producers(base) if tensor in named}


def _multiples(
    subject: Subject,
    original: Original,
    variant: Variant,
    images: NDArray[np.uint8],
    places: dict[str, str],
    expected: dict[str, Expected],
) -> tuple[float | None, ...] | str:
    """Of each layer; or why the graph can't be asked."""
    from trueport.export.attribution.tensors import graph_tensors, module_tensors
    from trueport.export.golden import HEADROOM

    try:
        graph = subject.graph(variant)
        tensors = graph_tensors(graph, images)
    except TrueportError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 — onnxruntime's own, of a graph that it does not take
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"onnxruntime can't run its graph as it is written, {told}"
    base, own = subject.graph(subject.base), module_tensors(graph, original)
    values = []
    for module, place in places.items():
        wanted = _wanted(base, place, own.get(module), expected[place].values)
        found = _dequantized(graph, own.get(module), tensors)
        values.append(_multiple(found, wanted, expected[place].allowed / HEADROOM))
    return tuple(values)


def _wanted(base: onnx.ModelProto, place: str, name: str | None, values: NDArray[Any]) -> NDArray[Any] | None:
    """What a variant's tensor of that name has to be, where the base graph has the layer's answer at `place`.

    An int8 graph lets quantization cut off what a ReLU would, and its convolution then makes the ReLU's tensor.
    """
    from trueport.export.layers import producers

    behind = producers(base)
    if name is None or name == place or name not in behind:
        return None if name is None else values
    node = behind[name]
    return np.maximum(values, 0) if node.op_type == "Relu" and node.input[0] == place else None


def _dequantized(graph: onnx.ModelProto, name: str | None, tensors: Tensors) -> NDArray[Any] | None:
    """The tensor as the layers behind it see it: after its Q/DQ pair, where it has one."""
    if name is None:
        return None
    for _ in range(2):
        behind = [node for node in graph.graph.node if node.input and node.input[0] == name]
        name = next((node.output[0] for node in behind if node.op_type in {"QuantizeLinear", "DequantizeLinear"}), name)
    return tensors.get(name)


def _multiple(found: NDArray[Any] | None, wanted: NDArray[Any] | None, noise: float) -> float | None:
    if found is None or wanted is None or found.shape != wanted.shape or not noise > 0:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        largest = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
    return largest / noise if np.isfinite(largest) else np.inf
