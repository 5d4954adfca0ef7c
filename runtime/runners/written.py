"""The graph as it is written, on onnxruntime's CPU: nothing fused, no integer kernels, Q/DQ computed where it stands.

For judging a graph apart from who runs it, also in a precision that no runner here computes in. Never for serving.
"""

from __future__ import annotations

import onnxruntime

from ..bundle import Bundle
from ..manifest import Variant
from ..runner import RunnerOptions
from .ort import OrtRunner, on_cpu, session_options

WRITTEN = "written"
"""Its name, which is not among the RUNNERS."""


def open_written(bundle: Bundle, variant: Variant, options: RunnerOptions) -> OrtRunner:
    """The variant's graph as it is written, fp16 apart: onnxruntime would compute all of it in fp32 (`export.written`).

    Raises BundleError for a damaged graph, MissingError where onnxruntime's CPU provider lacks an operator in a type of
    the graph's, as of bfloat16 convolutions.
    """
    return written_runner(bundle.read(variant.file), str(bundle.file(variant.file)), options)


def written_runner(graph: bytes, name: str, options: RunnerOptions) -> OrtRunner:
    """A graph as it is written. Raises as `open_written` does."""
    settings = session_options(options)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return OrtRunner(on_cpu(graph, name, settings), WRITTEN, name=name)
