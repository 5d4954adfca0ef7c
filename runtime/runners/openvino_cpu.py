"""Runs an ONNX variant through OpenVINO on the CPU, in exactly the variant's precision.

OpenVINO would by itself compute in bfloat16 where the CPU can, and pin its threads to cores that others may be using:
both are said explicitly here. It keeps no cache on disk, and its package's telemetry is kept from loading.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError, ClosedError, InvalidRequestError, MissingError, missing_extra
from ..machine import available_cores
from ..manifest import DType, Precision, TensorSpec, Variant
from ..runner import Array, RunnerOptions, RunnerReport
from .batch_models import BatchModels, places
from .reached import require_reached

COMPUTING = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"}
"""OpenVINO's names of the layers that sum up products."""
_CAPABILITIES = {"fp16": ("FP16", "AVX512-FP16 or AMX-FP16"), "bf16": ("BF16", "AVX512-BF16 or AMX-BF16")}
"""What OpenVINO says of a CPU that computes in a precision, and the instructions that it takes."""
_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_DTYPES: dict[str, DType] = {"u8": "uint8", "f16": "float16", "f32": "float32", "i64": "int64"}
_importing = threading.Lock()
_making = threading.Lock()


def open_variant(bundle: Bundle, variant: Variant, runner: str, options: RunnerOptions) -> OpenVinoRunner:
    """`openvino:cpu`: the graph is read from the very bytes whose hash was checked.

    Raises MissingError where OpenVINO is not installed or the CPU does not compute in the variant's precision,
    BundleError for a damaged graph.
    """
    graph = bundle.read(variant.file)
    return OpenVinoRunner(graph, variant, options, runner=runner, name=str(bundle.file(variant.file)))


class OpenVinoRunner:
    """A graph compiled for the CPU, anew for each of the batch sizes that are used most.

    name: what messages call the graph. Batches of several threads run at once as far as the threads of each fit on
    this process's cores, the others wait.
    """

    def __init__(
        self,
        graph: bytes,
        variant: Variant,
        options: RunnerOptions,
        *,
        runner: str = "openvino:cpu",
        name: str = "the graph",
    ) -> None:
        openvino = import_openvino()
        self._variant = variant
        self._by = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._core = shared_core()
        hint = float_hint(variant.precision, options, self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        threads = options.threads or available_cores()
        streams = max(1, available_cores() // threads)
        self._settings = settings(hint, threads, streams)
        self._model = _read(self._core, graph, name)
        self.inputs = tuple(_spec(port, name) for port in self._model.inputs)
        self.outputs = tuple(_spec(port, name) for port in self._model.outputs)
        self._turns: SimpleQueue[None] = SimpleQueue()  # a semaphore, ten times cheaper than threading's
        for _ in range(streams):
            self._turns.put(None)
        self._row_shapes = {spec.name: (np.dtype(spec.dtype), spec.shape[1:]) for spec in self.inputs}
        self._names = [spec.name for spec in self.outputs]
        self._models: BatchModels[_Compiled] | None = BatchModels(self._compiled, places(len(graph)))
        first = self._models(1)  # now rather than with the first request, and the proof of the precision
        self._report = RunnerReport(
            name=runner,
            provider="OpenVINO",
            device="cpu",
            threads=threads,
            versions={"openvino": openvino.__version__.partition("-")[0]},
            layers=first.layers,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch; the answers are the caller's own.

        Raises InvalidRequestError for other names, types and shapes than those of `inputs`, ClosedError after `close`.
        """
        models = self._models
        if models is None:
            raise ClosedError("the runner is closed: open it again")
        rows = self._rows(feeds)
        arrays = [feeds[name] for name in self._row_shapes]
        self._turns.get()
        try:
            outputs = models(rows).run(arrays)
        finally:
            self._turns.put(None)
        return dict(zip(self._names, outputs))  # noqa: B905 — as many as the graph has

    def report(self) -> RunnerReport:
        """Layers as the compiled model for one row tells them; those for other sizes were held to the same."""
        return self._report

    def close(self) -> None:
        """Drop the compiled models; their memory goes when the last run in flight has ended. Closing twice is fine.

        A model that is just being compiled in place of another is finished and dropped, in its own thread.
        """
        models, self._models = self._models, None
        if models is not None:
            models.close()
        self._model = self._core = None

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        """Rows of the batch. Raises InvalidRequestError where it is not what the graph takes."""
        rows = -1
        if feeds.keys() != self._row_shapes.keys():
            raise InvalidRequestError(f"expected {', '.join(self._row_shapes)}, found {', '.join(feeds) or 'nothing'}")
        for name, (dtype, shape) in self._row_shapes.items():
            array = feeds[name]
            if array.dtype != dtype or array.shape[1:] != shape or rows not in (-1, len(array)) or not len(array):
                expected = f"{dtype} {('N', *shape)}".replace("'", "")
                raise InvalidRequestError(f"expected {name} as {expected}, found {array.dtype} {array.shape}")
            rows = len(array)
        return rows

    def _compiled(self, rows: int | None) -> _Compiled:
        """A model for so many rows, or for any number; its precision is read back."""
        core, model = self._core, self._model  # both stay for as long as this takes, whoever closes the runner
        if core is None or model is None:
            raise ClosedError("the runner is closed: open it again")
        if rows is not None:
            model = model.clone()
            model.reshape({port: [rows, *list(port.partial_shape)[1:]] for port in model.inputs})
        try:
            compiled = core.compile_model(model, "CPU", self._settings)
        except RuntimeError as error:
            raise MissingError(f"{self._by} can't compile {self._variant.file} here: {_reason(error)}") from error
        layers = layers_of(
            (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
            for info in (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
        )
        require_reached(self._variant, layers, self._by)
        return _Compiled(compiled, layers, fixed=rows is not None)


class _Compiled:
    """A compiled model and the requests that run it, as many as run at once."""

    def __init__(self, compiled: Any, layers: dict[str, int], *, fixed: bool) -> None:
        self.layers = layers
        self._compiled = compiled
        self._fixed = fixed
        self._idle: list[_Request] = []

    def run(self, arrays: list[Array]) -> list[Array]:
        """Outputs, each an array of its own."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = _Request(self._compiled, self._fixed)
        try:
            return request.run(arrays)
        finally:
            self._idle.append(request)


class _Request:
    """OpenVINO's tensors are written and read in place: theirs stay theirs, what comes in and goes out is a copy.

    That is faster than handing over the caller's arrays, which takes a new tensor object in each call.
    """

    def __init__(self, compiled: Any, fixed: bool) -> None:
        self._request = compiled.create_infer_request()
        self._counts = range(len(compiled.inputs)), range(len(compiled.outputs))
        self._fixed = fixed
        if fixed:
            self._views = self._inputs(), self._outputs()

    def run(self, arrays: list[Array]) -> list[Array]:
        if self._fixed:
            inputs, outputs = self._views
        else:
            for index, array in enumerate(arrays):
                self._request.get_input_tensor(index).shape = array.shape
            inputs, outputs = self._inputs(), None
        for target, array in zip(inputs, arrays, strict=True):
            target[...] = array
        self._request.infer()
        return [view.copy() for view in outputs or self._outputs()]

    def _inputs(self) -> list[Array]:
        return [self._request.get_input_tensor(index).data for index in self._counts[0]]

    def _outputs(self) -> list[Array]:
        return [self._request.get_output_tensor(index).data for index in self._counts[1]]


def float_hint(precision: Precision, options: RunnerOptions, capabilities: Collection[str]) -> str:
    """What OpenVINO is told to compute float layers in. Raises MissingError where this CPU does not.

    Graphs in 16 bits are computed in the types that they hold, `dynamic`: the hint f16 would compute in float16 what a
    network keeps in float32 too, sums that don't fit 16 bits say. In a graph of int8 all float layers are float32.
    """
    kind = options.float_type if precision == "int8" else precision
    capability, instructions = _CAPABILITIES.get(kind, ("FP32", ""))
    if instructions and capability not in capabilities:
        raise MissingError(
            f"openvino:cpu needs a CPU that computes in {kind} ({instructions}), this one does not: "
            f"use {'float_type fp32' if precision == 'int8' else 'the fp32 variant'} here"
        )
    if kind == "fp32":
        return "f32"
    return kind if precision == "int8" else "dynamic"


def settings(hint: str, threads: int, streams: int) -> dict[str, Any]:
    """OpenVINO's configuration: `streams` batches at once, `threads` in each."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # several runners, or anything else here, would be pinned to the same cores
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # float activations stay float
    }


def layers_of(nodes: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Layers that compute by type, of (layer type, precision) of the nodes of a compiled model."""
    return dict(Counter(_TYPES.get(precision, precision) for layer, precision in nodes if layer in COMPUTING))


def import_openvino() -> Any:
    """The package, imported without its telemetry: that writes into the home folder and sends an event at import."""
    with _importing, _without("openvino_telemetry"):
        try:
            import openvino
        except ImportError as error:
            raise missing_extra("openvino", "openvino", "openvino:cpu") from error
    return openvino


def shared_core() -> Any:
    """The one Core of this process, which is never dropped.

    Its CPU plugin gives the thread that loads it a stack for signal handlers (OpenVINO's pull request 11894), and frees
    that stack with the last of the Core's objects, in whichever thread: with a Core for each model, the next signal
    that Python handles in the first thread would be a segmentation fault.
    """
    openvino = import_openvino()
    with _making:
        return _made_core(openvino)


@cache
def _made_core(openvino: Any) -> Any:
    return openvino.Core()


@contextmanager
def _without(package: str) -> Iterator[None]:
    """A package that is not loaded yet can't be imported meanwhile, which None in sys.modules means to importlib.

    OpenVINO has a stub of its telemetry for that case.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def _read(core: Any, graph: bytes, name: str) -> Any:
    try:
        return core.read_model(graph)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO can't read {name}: {_reason(error)}; export the bundle again") from error


def _reason(error: Exception) -> str:
    """The telling line: OpenVINO puts the places in its sources around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return (told or lines or [type(error).__name__])[0]


def _spec(port: Any, name: str) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise BundleError(f"{name} has {port.get_any_name()} of {kind}, expected one of {', '.join(_DTYPES)}")
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.partial_shape)
    return TensorSpec(port.get_any_name(), _DTYPES[kind], shape)
