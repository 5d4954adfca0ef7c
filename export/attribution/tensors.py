"""The tensors of a graph against those of the original, in the order of execution: which is the first that departs?

The original's own layers are heard through forward hooks, in float32 and float64: the distance between the two, times
the headroom of all bounds, is what a tensor may differ by. What stands between two modules is held against a graph that
was exported anew, where there is one.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from trueport.runtime.explanation import Departure
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners.written import written_runner

from ..activations import with_outputs
from ..golden import HEADROOM
from ..layers import COMPUTING, SCOPES, element_types, layer_name, producers
from ..original import INPUT, OUTPUT, Original, served_module
from .subject import Rows

if TYPE_CHECKING:
    import torch

Tensors = dict[str, NDArray[Any]]
"""By the tensor's name, in the order of execution."""
MOST = 4
"""Tensors that are told."""
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True, eq=False)
class Expected:
    """What a tensor has to be."""

    values: NDArray[Any]
    allowed: float
    against: str


def _outputs(model: onnx.ModelProto, images: Rows) -> Tensors:
    """What the graph answers as it is written, nothing fused, all rows in one batch."""
    runner = written_runner(model.SerializeToString(), "the graph as it is written", RunnerOptions())
    return runner.run({INPUT: images})


def graph_answers(model: onnx.ModelProto, images: Rows) -> NDArray[Any]:
    """Logits of the graph as it is written, all rows in one batch. Raises as the runner `written` does."""
    return np.asarray(_outputs(model, images)[OUTPUT])


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors that nodes make and that hold floats, in the order of execution."""
    types = element_types(model)
    return [name for name in producers(model) if types.get(name) in FLOATS]


def graph_tensors(model: onnx.ModelProto, images: Rows) -> Tensors:
    """Every float tensor of the graph as it is written that has a row for each image. Raises as `graph_answers`."""
    types = element_types(model)
    names = [name for name in float_tensors(model) if types[name] != onnx.TensorProto.BFLOAT16]
    outputs = _outputs(with_outputs(model, names, types), images)
    found = {name: outputs[name] for name in names}
    return {name: values for name, values in found.items() if values.ndim and len(values) == len(images)}


def expected_tensors(original: Original, images: Rows, model: onnx.ModelProto) -> dict[str, Expected]:
    """For each tensor of the graph that is a module's answer: what the original makes there, and its own noise."""
    import torch

    single, double = (_module_answers(original, images, dtype) for dtype in (None, torch.float64))
    found = {}
    for module, tensor in module_tensors(model, original).items():
        if module in single and module in double:
            values, exact = single[module], double[module]
            unit = float(np.abs(exact).max(initial=0.0) * np.finfo(np.float32).eps)
            noise = max(unit, float(np.abs(values.astype(np.float64) - exact).max(initial=0.0)))
            found[tensor] = Expected(values, HEADROOM * noise, f"the original's module {module}")
    return found


def module_tensors(model: onnx.ModelProto, original: Original) -> dict[str, str]:
    """By module, the tensor that is its answer: what the last node of its scope makes.

    A convolution that a batch norm was folded into is of the batch norm's scope, and so is its answer.
    """
    from torch import nn

    modules = dict(original.module.named_modules())
    found = {}
    for node in model.graph.node:
        for scope in _scopes(node):
            name = scope.removeprefix("network").removeprefix(".")
            kind = modules.get(name)
            product = isinstance(kind, nn.modules.conv._ConvNd | nn.Linear)
            if name and kind is not None and (node.op_type in COMPUTING or not product):
                found[name] = node.output[0]
    return found


def named_tensors(reference: Tensors, share: float, against: str) -> dict[str, Expected]:
    """What another graph makes of the same inputs. share: of a tensor's largest value, that it may differ by."""
    return {
        name: Expected(values, share * float(np.abs(values.astype(np.float64)).max(initial=0.0)), against)
        for name, values in reference.items()
    }


def first_departures(model: onnx.ModelProto, found: Tensors, expected: dict[str, Expected]) -> tuple[Departure, ...]:
    """The first tensors in the order of execution that are not what they have to be; non-finite ones come first."""
    behind = producers(model)
    departures = []
    for name, values in found.items():
        wanted = expected.get(name)
        if wanted is None or wanted.values.shape != values.shape:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            largest = float(np.abs(values.astype(np.float64) - wanted.values).max(initial=0.0))
        if not largest <= wanted.allowed:
            departures.append(_departure(behind[name], name, values, largest, wanted))
    broken = [one for one in departures if one.max_abs is None]
    return tuple((broken or departures)[:MOST])


def _departure(node: onnx.NodeProto, name: str, values: NDArray[Any], largest: float, wanted: Expected) -> Departure:
    told = f"{node.op_type} {node.name}, {list(values.shape)}, against {wanted.against}"
    if not np.isfinite(values).all():
        reach = float(np.abs(wanted.values.astype(np.float64)).max(initial=0.0))
        told += f"; {int(np.sum(~np.isfinite(values)))} values are NaN or infinite, {reach:,.4g} is the largest there"
    return Departure(
        layer=layer_name(node) or node.op_type,
        tensor=name,
        max_abs=largest if np.isfinite(largest) else None,
        allowed=wanted.allowed,
        detail=told,
    )


def _scopes(node: onnx.NodeProto) -> list[str]:
    told = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    try:
        return [str(scope) for scope in ast.literal_eval(told)][:-1]
    except (ValueError, SyntaxError):  # written by somebody else
        return []


def _module_answers(original: Original, images: Rows, dtype: torch.dtype | None) -> Tensors:
    """What each module answers that is asked once."""
    import torch

    served = served_module(original, dtype)
    calls: Counter[str] = Counter()
    answers: Tensors = {}

    def heard(name: str) -> Any:
        def hook(_: Any, __: Any, answer: Any) -> None:
            calls[name] += 1
            if isinstance(answer, torch.Tensor):
                answers[name] = answer.detach().numpy().copy()  # some activations work in place

        return hook

    network = served.get_submodule("network")
    hooks = [module.register_forward_hook(heard(name)) for name, module in network.named_modules() if name]
    try:
        with torch.inference_mode():
            served(torch.from_numpy(np.ascontiguousarray(images)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: values for name, values in answers.items() if calls[name] == 1}
