"""Runs an ONNX variant through onnxruntime, on the provider that was asked for or not at all."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

from ..bundle import Bundle
from ..errors import BundleError, ClosedError, MissingError
from ..machine import available_cores
from ..manifest import DType, TensorSpec, Variant
from ..runner import Array, RunnerOptions, RunnerReport

_WARNING, _FATAL = 2, 4  # onnxruntime's log severities
_BAD_GRAPH = (InvalidArgument, InvalidGraph, InvalidProtobuf)
_DTYPES: dict[str, DType] = {
    "tensor(uint8)": "uint8",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
}


_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_variant(bundle: Bundle, variant: Variant, runner: str, options: RunnerOptions) -> OrtRunner:
    """`onnxruntime:cpu` and `onnxruntime:cuda`: the graph is loaded from the very bytes whose hash was checked."""
    device = runner.partition(":")[2]
    return OrtRunner(bundle.read(variant.file), device, options, name=str(bundle.file(variant.file)))


class OrtRunner:
    """One onnxruntime session.

    graph: a serialised ONNX model; name: what messages call it.
    Raises MissingError where the provider can't be had or can't take the whole graph, BundleError for a damaged graph.
    """

    def __init__(self, graph: bytes, device: str, options: RunnerOptions, *, name: str = "the graph") -> None:
        self._device = device
        self._threads = options.threads or available_cores()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.graph_optimization_level = _LEVELS[options.graph_level]
        settings.log_severity_level = _FATAL  # errors reach us as exceptions
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
        self._session = _session(graph, name, device, settings)
        self.inputs = tuple(_spec(node, name) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, name) for node in self._session.get_outputs())
        self._provider = self._session.get_providers()[0]
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch; onnxruntime checks names, types and shapes. Raises ClosedError after `close`."""
        try:
            session = self._session
        except AttributeError:
            raise ClosedError("the runner is closed: open it again") from None
        outputs = session.run(self._names, feeds)
        return dict(zip(self._names, outputs))  # noqa: B905 — as many as were asked for

    def report(self) -> RunnerReport:
        """Provider as the session itself tells it."""
        return RunnerReport(
            name=f"onnxruntime:{self._device}",
            provider=self._provider,
            device=self._device,
            threads=self._threads,
            versions={"onnxruntime": onnxruntime.__version__},
        )

    def close(self) -> None:
        """Drop the session; its memory goes when the last run in flight has ended. Closing twice is fine."""
        with contextlib.suppress(AttributeError):
            del self._session


def _session(graph: bytes, name: str, device: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    if device == "cuda":
        return _cuda_session(graph, name, options)
    # Fail is a bad graph here; of the CUDA provider it is a device that failed as well.
    return _created(graph, name, options, ["CPUExecutionProvider"], (*_BAD_GRAPH, Fail))


def _cuda_session(graph: bytes, name: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session whose every node is on the GPU, or MissingError.

    onnxruntime would rather go on without a provider that does not load, and leave single nodes to the CPU.
    """
    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise MissingError(
            "onnxruntime:cuda needs a CUDA build of onnxruntime, this one has none: "
            "pip uninstall onnxruntime && pip install 'trueport[cuda]'"
        )
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    cuda = (provider, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    with _quiet() as complaints:
        onnxruntime.preload_dlls(directory="")  # CUDA and cuDNN from their pip packages, without torch
        session = _created(graph, name, options, [cuda, "CPUExecutionProvider"], _BAD_GRAPH)
    session.disable_fallback()
    if session.get_providers()[0] != provider:
        reason = complaints.getvalue().strip().splitlines()[:1] or ["no usable NVIDIA GPU or driver"]
        raise MissingError(
            f"onnxruntime:cuda can't be used here: {reason[0]}; pip install 'trueport[cuda]' brings CUDA's libraries, "
            "the driver comes with the system, `trueport doctor` tells more"
        )
    elsewhere = [
        node.name or node.op_type
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name != provider
        for node in subgraph.get_nodes()
    ]
    if elsewhere:
        raise MissingError(f"onnxruntime:cuda can't run these nodes of the graph: {', '.join(elsewhere)}")
    return session


def _created(
    graph: bytes,
    name: str,
    options: onnxruntime.SessionOptions,
    providers: list[Any],
    bad_graph: tuple[type[Exception], ...],
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(graph, options, providers=providers)
    except bad_graph as error:
        raise BundleError(f"onnxruntime can't read {name}: {_reason(error)}; export the bundle again") from error
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise MissingError(f"onnxruntime {onnxruntime.__version__} can't run {name} here: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Collect what onnxruntime prints while it looks for libraries, and silence its log.

    Both are the whole process's: for as long as this lasts other threads' prints are collected too, and a host that had
    set onnxruntime's log level finds it at its default afterwards, since onnxruntime does not tell what it was.
    """
    said = io.StringIO()
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with contextlib.redirect_stdout(said):
            yield said
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _spec(node: Any, name: str) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BundleError(f"{name} has {node.name} of {node.type}, expected one of {', '.join(_DTYPES)}")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)
