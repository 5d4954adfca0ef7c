"""Running a graph as it is written, by onnxruntime on the CPU: Q/DQ nodes are computed in float where they stand.

No integer kernels here: what they answer differs between processors, and this is the reference for all of them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import BundleError, missing_extra
from trueport.runtime.machine import available_cores
from trueport.runtime.manifest import Variant
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners import written as as_written
from trueport.runtime.runners.ort import OrtRunner
from trueport.runtime.runners.written import written_runner

from .layers import element_types
from .original import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx
    import onnxruntime

ROUNDED = "/rounded"
Rows = NDArray[np.uint8]


def open_written(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that fuses float operators, and takes no Q/DQ pair for an integer kernel or for none.

    For hundreds of pictures, since fusing saves time; `written_runner`, by which graphs are judged, fuses nothing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def open_as_written(bundle: Bundle, variant: Variant, options: RunnerOptions) -> OrtRunner:
    """A variant as it is written, in any precision. Raises as the runner `written` and `open_rounded` do."""
    return (open_rounded if variant.precision == "fp16" else as_written.open_written)(bundle, variant, options)


def open_rounded(bundle: Bundle, variant: Variant, options: RunnerOptions) -> OrtRunner:
    """An fp16 variant as it is written, every activation of it really rounded to 16 bits, on the CPU.

    onnxruntime has no fp16 kernels for x86. It casts to float32 around each node and takes the casts between two nodes
    away again: nothing overflows, nothing is rounded. Two Identities behind each node have a kernel and stay; one alone
    would be taken for an isolated node, and computed in float32 as well.
    Raises BundleError for a damaged graph, MissingError without the onnx package.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "train", f"{variant.name} as it is written") from error
    name = str(bundle.file(variant.file))
    data = bundle.read(variant.file)
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's DecodeError, of whichever of its implementations is installed
        raise BundleError(f"{name} is no ONNX file: export the bundle again") from error
    return written_runner(rounding(model).SerializeToString(), name, options)


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with two Identities behind each float16 tensor that a node makes; its names stay."""
    import onnx

    types, result = element_types(model), onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        added = result.graph.node.add()
        added.CopyFrom(node)
        for position, output in enumerate(node.output):
            if types.get(output) == onnx.TensorProto.FLOAT16:
                names = [output + 2 * ROUNDED, output + ROUNDED, output]
                added.output[position] = names[0]
                for source, target in itertools.pairwise(names):
                    result.graph.node.append(onnx.helper.make_node("Identity", [source], [target]))
    return result


def written_answers(model: onnx.ModelProto, images: Rows, batch: int = 16) -> NDArray[Any]:
    """Logits (N, K) of the graph on prepared `images` (N, H, W, C)."""
    session = open_written(model)
    starts = range(0, len(images), batch)
    return np.concatenate([session.run([OUTPUT], {INPUT: images[start : start + batch]})[0] for start in starts])
