"""Graphs cut off at a tensor, and the search for the first tensor that a stage makes otherwise than the one before.

A cut graph keeps the bundle's contract: uint8 in, and some values of the tensor as logits, so that any runner takes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle, sealed
from trueport.runtime.explanation import Departure
from trueport.runtime.manifest import MANIFEST, FileEntry, Variant

from ..layers import layer_name, producers
from ..original import INPUT, OUTPUT
from .chain import Answer
from .subject import Rows
from .tensors import MOST, Tensors

SAMPLED = 4096
"""Values of a tensor that are compared, evenly spaced."""
SEARCHED = "cut."
"""In front of the names of what is added."""


def candidates(model: onnx.ModelProto, tensors: Tensors) -> list[str]:
    """Tensors to cut at, in the order of execution.

    Of a graph with Q/DQ pairs those behind a pair: asked for one in front of it, a runner would not fuse what it fuses.
    """
    behind = producers(model)
    paired = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    names = [name for name in tensors if name != OUTPUT and (not paired or behind[name].op_type == "DequantizeLinear")]
    return [*names, OUTPUT] if OUTPUT in tensors else names


def cut_graph(model: onnx.ModelProto, tensor: str, size: int) -> onnx.ModelProto:
    """uint8 `image` -> float32 `logits` (N, M): of a tensor that has `size` values a row, M evenly spaced ones."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph, helper = cut.graph, onnx.helper
    needed = _ancestors(model, tensor)
    nodes = [node for node in model.graph.node if set(node.output) & needed]
    if tensor != OUTPUT:
        places = np.linspace(0, size - 1, min(size, SAMPLED)).astype(np.int64)
        float_name, flat, taken = (SEARCHED + part for part in ("float", "flat", "taken"))
        nodes += [
            helper.make_node("Cast", [tensor], [float_name], SEARCHED + "cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Flatten", [float_name], [flat], SEARCHED + "flatten", axis=1),
            helper.make_node("Gather", [flat, taken], [OUTPUT], SEARCHED + "gather", axis=1),
        ]
        graph.initializer.append(onnx.numpy_helper.from_array(places, taken))
        del graph.output[:]
        shape: list[str | int] = ["batch", len(places)]
        graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return cut


def sampled(values: NDArray[Any]) -> NDArray[np.float32]:
    """What the cut graph answers, of the whole tensor (N, …)."""
    flat = values.reshape(len(values), -1).astype(np.float32)
    return np.asarray(flat[:, np.linspace(0, flat.shape[1] - 1, min(flat.shape[1], SAMPLED)).astype(np.int64)])


@contextlib.contextmanager
def bundle_of(bundle: Bundle, variant: Variant, graph: onnx.ModelProto, outputs: int | None = None) -> Iterator[Bundle]:
    """The bundle with another graph in the variant's place, sealed, in a folder of its own that goes afterwards.

    outputs: how many logits it answers, where they are not the bundle's.
    """
    data = graph.SerializeToString()
    manifest = bundle.manifest
    files = manifest.files | {variant.file: FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    changes: dict[str, Any] = {"files": files}
    if outputs is not None:
        spec = msgspec.structs.replace(manifest.outputs[0], shape=(-1, outputs))
        changes |= {"outputs": (spec,), "labels": tuple(map(str, range(outputs)))}
    manifest = msgspec.structs.replace(manifest, **changes)
    with tempfile.TemporaryDirectory(prefix="trueport-") as name:
        folder = Path(name)
        for file in manifest.files:
            if file != variant.file:
                _link(bundle.file(file), folder / file)
        (folder / variant.file).write_bytes(data)
        (folder / MANIFEST).write_bytes(sealed(manifest))
        yield replace(bundle, path=folder, manifest=manifest)


def first_beyond(
    model: onnx.ModelProto,
    images: Rows,
    expected: Tensors,
    share: float,
    stage: Callable[[onnx.ModelProto, int | None], contextlib.AbstractContextManager[Answer]],
) -> tuple[Departure, ...]:
    """The first tensors of the graph that a stage makes otherwise than `expected`, by bisection.

    share: of a tensor's largest value, that it may differ by. stage: opens a cut graph with so many logits.
    A stage that departs at one tensor and not at a later one is taken to depart from there on.
    """
    names = candidates(model, expected)
    seen: dict[int, Departure | None] = {}

    def departs(index: int) -> bool:
        if index not in seen:
            seen[index] = _departure(model, names[index], images, expected[names[index]], share, stage)
        return seen[index] is not None

    if not names or not departs(len(names) - 1):
        return ()
    low, high = -1, len(names) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if departs(middle) else (middle, high)
    for index in range(high, min(high + 2, len(names))):
        departs(index)
    return tuple(found for _, found in sorted(seen.items()) if found is not None)[:MOST]


def _departure(
    model: onnx.ModelProto,
    name: str,
    images: Rows,
    expected: NDArray[Any],
    share: float,
    stage: Callable[[onnx.ModelProto, int | None], contextlib.AbstractContextManager[Answer]],
) -> Departure | None:
    wanted = sampled(expected)
    with stage(cut_graph(model, name, int(np.prod(expected.shape[1:]))), wanted.shape[1]) as answer:
        found = answer(images)
    allowed = share * float(np.abs(wanted).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
    if largest <= allowed:
        return None
    node = _named_node(model, name)
    return Departure(
        layer=layer_name(node),
        tensor=name,
        max_abs=largest if np.isfinite(largest) else None,
        allowed=allowed,
        detail=f"{node.op_type} {node.name}, {wanted.shape[1]} values a row, by cutting the graph there",
    )


def _named_node(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    """The node that makes a tensor; behind a Q/DQ pair that which makes what goes into it."""
    behind = producers(model)
    node = behind[tensor]
    while node.op_type in {"DequantizeLinear", "QuantizeLinear"} and node.input[0] in behind:
        node = behind[node.input[0]]
    return node


def _ancestors(model: onnx.ModelProto, tensor: str) -> set[str]:
    behind, needed, open_ends = producers(model), set[str](), [tensor]
    while open_ends:
        name = open_ends.pop()
        if name not in needed and name in behind:
            needed.add(name)
            open_ends += behind[name].input
    return needed | {INPUT}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
