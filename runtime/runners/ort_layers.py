"""In which types the kernels of an onnxruntime session compute, from its own profile of one run.

The graph does not tell: onnxruntime's CPU provider has no fp16 convolutions on x86 and puts casts to float around them.
A profile lists each kernel that ran with the types of its inputs.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from ..errors import MissingError

COMPUTING = re.compile(r"Conv|Gemm|MatMul")
"""In the name of every operator that sums up products: Conv, FusedGemm, QLinearConv, MatMulIntegerToFloat, …"""
_TYPES = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "double": "fp64",
    "int8": "int8",
    "uint8": "int8",
}
"""onnxruntime's names, and those of `Variant.reached`."""


@contextmanager
def profiled(options: onnxruntime.SessionOptions) -> Iterator[None]:
    """Sessions that are created meanwhile write a profile into a folder of its own, gone afterwards.

    Raises MissingError where there is no place for temporary files.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="trueport-")
    except OSError as error:
        raise MissingError(
            f"onnxruntime tells what precision it computes in through a temporary file, which can't be had: {error}; "
            "name a folder for it in TMPDIR"
        ) from error
    with folder as path:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(path, "profile"))
        yield


def layers_of(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Layers that compute by type, after one row of zeros went through a session that is `profiled`; ends that."""
    feeds = {
        node.name: np.zeros([size if isinstance(size, int) else 1 for size in node.shape], _dtype(node.type))
        for node in session.get_inputs()
    }
    session.run(None, feeds)
    return layers_from_profile(Path(session.end_profiling()).read_bytes())


def layers_from_profile(profile: bytes) -> dict[str, int]:
    """Layers that compute, by the type of their first input, which is that of the data and not of the weights."""
    events: list[dict[str, Any]] = msgspec.json.decode(profile)
    kernels = (event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {}))
    types = [
        next(iter(kernel["input_type_shape"][0]))
        for kernel in kernels
        if COMPUTING.search(kernel["op_name"]) and kernel.get("input_type_shape")
    ]
    return dict(Counter(_TYPES.get(kind, kind) for kind in types))


def _dtype(kind: str) -> str:
    return {"tensor(float)": "float32"}.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
