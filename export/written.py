"""Running a graph as it is written, by onnxruntime on the CPU: Q/DQ nodes are computed in float where they stand.

No integer kernels here: what they answer differs between processors, and this is the reference for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.machine import available_cores

from .original import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Rows = NDArray[np.uint8]


def open_written(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that fuses float operators, and takes no Q/DQ pair for an integer kernel or for none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def written_answers(model: onnx.ModelProto, images: Rows, batch: int = 16) -> NDArray[Any]:
    """Logits (N, K) of the graph on prepared `images` (N, H, W, C)."""
    session = open_written(model)
    starts = range(0, len(images), batch)
    return np.concatenate([session.run([OUTPUT], {INPUT: images[start : start + batch]})[0] for start in starts])
