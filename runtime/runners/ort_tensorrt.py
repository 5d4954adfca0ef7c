"""Runs an ONNX variant through onnxruntime's TensorRT provider, all of it or not at all.

The provider builds an engine on the first start and keeps it in the user's cache. Its own file names do not tell two
models of one architecture apart, so each combination of graph, options, versions and GPU has a folder of its own.
The provider does not tell what its engine computes in: `RunnerReport.layers` is empty. The native runner reads it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import onnxruntime

from ..bundle import Bundle
from ..errors import MissingError
from ..folders import CACHE, cache_folder
from ..machine import Gpu, find_gpus
from ..manifest import Precision, TensorSpec, Variant
from ..runner import RunnerOptions
from .ort import OrtRunner, require_provider, session_on, session_options

PROVIDER = "TensorrtExecutionProvider"
ROWS = (1, 8, 64)
"""Fewest, usual and most of a batch: the engine's one profile. Without it every larger batch would build anew."""
REMEDY = "it needs the libraries of the TensorRT that it was built for (10.x) on the loader's path, CUDA and cuDNN"
_FLAGS: dict[Precision, str] = {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable", "int8": "trt_int8_enable"}
_LIBRARIES = ("nvinfer_10.dll",) if sys.platform == "win32" else ("libnvinfer.so.10", "libnvinfer.so.11")


def open_variant(bundle: Bundle, variant: Variant, runner: str, options: RunnerOptions) -> OrtRunner:
    """`onnxruntime:tensorrt`: takes from seconds to minutes where no engine is in the cache yet.

    Raises MissingError where GPU or libraries can't be had, or the provider can't take the whole graph, BundleError for
    a damaged graph.
    """
    require_provider(PROVIDER, runner)
    gpus, problem = find_gpus()
    if not gpus:
        raise MissingError(f"{runner} needs an NVIDIA GPU: {problem}; openvino:cpu and onnxruntime:cpu run without")
    version = _tensorrt_version()
    chosen = provider_options(variant.precision, bundle.manifest.inputs)
    versions = {"onnxruntime": onnxruntime.__version__, "tensorrt": version}
    key = cache_key(bundle.manifest.files[variant.file].sha256, chosen, versions, gpus)
    folder = _made(cache_folder() / "onnxruntime-tensorrt" / key)
    session = session_on(
        PROVIDER,
        {**chosen, "trt_engine_cache_path": str(folder), "trt_timing_cache_path": str(folder)},
        bundle.read(variant.file),
        str(bundle.file(variant.file)),
        session_options(options),
        runner,
        REMEDY,
    )
    return OrtRunner(
        session, runner, name=str(bundle.file(variant.file)), max_rows=ROWS[2], versions={"tensorrt": version}
    )


def provider_options(precision: Precision, inputs: Iterable[TensorSpec]) -> dict[str, str]:
    """What the provider is told, all but where its cache lies."""
    options = {
        "trt_engine_cache_enable": "True",  # 1 and 0, which the CUDA provider takes, are refused here
        "trt_timing_cache_enable": "True",
        **dict.fromkeys(_FLAGS.values(), "False"),
        **{
            f"trt_profile_{name}_shapes": ",".join(_shape(spec, rows) for spec in inputs)
            for name, rows in zip(("min", "opt", "max"), ROWS, strict=True)
        },
    }
    if precision in _FLAGS:
        options[_FLAGS[precision]] = "True"
    return options


def cache_key(graph: str, options: Mapping[str, str], versions: Mapping[str, str], gpus: Iterable[Gpu]) -> str:
    """Sixteen hexadecimal digits of all that an engine depends on.

    graph: the hash of the file, weights included. gpus: all of them, as the driver may number them differently.
    """
    devices = [(gpu.name, gpu.compute_capability, gpu.driver) for gpu in gpus]
    parts = [graph, sorted(options.items()), sorted(versions.items()), devices]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def _shape(spec: TensorSpec, rows: int) -> str:
    """Such as `image:8x224x224x3`."""
    return f"{spec.name}:{'x'.join(str(rows if size == -1 else size) for size in spec.shape)}"


def _made(folder: Path) -> Path:
    """The folder, made where it is not there, for nobody but this user: what lies in it is run."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MissingError(
            f"onnxruntime:tensorrt can't keep its engines in {folder}: {error.strerror or error}; "
            f"name a folder that can be written to in {CACHE}"
        ) from error
    return folder


def _tensorrt_version() -> str:
    """Of the TensorRT library that will be found; `unknown` where none is."""
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("tensorrt_libs")  # the pip package's own way to put its libraries within reach
    for name in _LIBRARIES:
        with contextlib.suppress(OSError, AttributeError):
            return str(ctypes.CDLL(name).getInferLibVersion())
    return "unknown"
