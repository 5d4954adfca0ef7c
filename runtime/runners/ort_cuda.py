"""Runs an ONNX variant through onnxruntime's CUDA provider, all of it or not at all."""

from __future__ import annotations

from contextlib import nullcontext

import onnxruntime

from ..bundle import Bundle
from ..manifest import Variant
from ..runner import RunnerOptions
from .ort import OrtRunner, require_provider, session_on, session_options
from .ort_layers import layers_of, profiled
from .reached import require_reached

PROVIDER = "CUDAExecutionProvider"
PROVIDER_OPTIONS = {
    "use_tf32": "0",  # 10 bits of mantissa are not fp32
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search starts anew for each batch size
}
REMEDY = "pip install 'trueport[cuda]' brings CUDA's libraries, the driver comes with the system"


def open_variant(bundle: Bundle, variant: Variant, runner: str, options: RunnerOptions) -> OrtRunner:
    """`onnxruntime:cuda`: the graph is loaded from the very bytes whose hash was checked.

    Raises MissingError where the provider can't be had, can't take the whole graph, or computes it in another
    precision, BundleError for a damaged graph.
    """
    require_provider(PROVIDER, runner)
    graph, name = bundle.read(variant.file), str(bundle.file(variant.file))
    settings = session_options(options)
    read_back = variant.precision != "fp32"
    with profiled(settings) if read_back else nullcontext():
        session = session_on(PROVIDER, PROVIDER_OPTIONS, graph, name, settings, runner, REMEDY)
        layers = layers_of(session) if read_back else {}
    require_reached(variant, layers, f"the CUDA provider of onnxruntime {onnxruntime.__version__}")
    return OrtRunner(session, runner, name=name, layers=layers)
