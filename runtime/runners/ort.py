"""Runs an ONNX variant through onnxruntime: on the CPU, and what its other providers share with that.

A provider that was asked for is used or refused: onnxruntime would rather go on without one that does not load, and
leave single nodes to the CPU.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

from ..bundle import Bundle
from ..errors import BundleError, ClosedError, InvalidRequestError, MissingError
from ..machine import available_cores
from ..manifest import DType, TensorSpec, Variant
from ..runner import Array, RunnerOptions, RunnerReport
from .ort_layers import layers_of, profiled
from .reached import require_reached

CPU = "CPUExecutionProvider"
_WARNING, _FATAL = 2, 4  # onnxruntime's log severities
BAD_GRAPH = (InvalidArgument, InvalidGraph, InvalidProtobuf)
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
    """`onnxruntime:cpu`: the graph is loaded from the very bytes whose hash was checked.

    Raises BundleError for a damaged graph, MissingError where it is computed in another precision here.
    """
    graph, name = bundle.read(variant.file), str(bundle.file(variant.file))
    settings = session_options(options)
    if variant.precision == "fp32":  # what nothing on a CPU falls below; reading it back would cost a start one run
        return OrtRunner(on_cpu(graph, name, settings), runner, name=name)
    with profiled(settings):
        session = on_cpu(graph, name, settings)
        layers = layers_of(session)
    require_reached(variant, layers, f"the CPU provider of onnxruntime {onnxruntime.__version__}")
    return OrtRunner(session, runner, name=name, layers=layers)


class OrtRunner:
    """One onnxruntime session.

    runner: its name on the command line; name: what messages call the graph; layers: as `RunnerReport` has them.
    max_rows: of a batch, where the provider has a limit.
    Raises BundleError for tensors of other types than a bundle's.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        runner: str,
        *,
        name: str = "the graph",
        layers: Mapping[str, int] | None = None,
        max_rows: int | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self._session = session
        self._max_rows = max_rows
        self.inputs = tuple(_spec(node, name) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, name) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._report = RunnerReport(
            name=runner,
            provider=session.get_providers()[0],
            device="cpu" if session.get_providers()[0] == CPU else "cuda",
            threads=session.get_session_options().intra_op_num_threads,
            versions={"onnxruntime": onnxruntime.__version__, **(versions or {})},
            layers=dict(layers or {}),
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch; onnxruntime checks names, types and shapes. Raises ClosedError after `close`."""
        try:
            session = self._session
        except AttributeError:
            raise ClosedError("the runner is closed: open it again") from None
        try:
            outputs = session.run(self._names, feeds)
        except Exception:
            self._refuse_large(feeds)
            raise
        return dict(zip(self._names, outputs))  # noqa: B905 — as many as were asked for

    def report(self) -> RunnerReport:
        """Provider as the session itself tells it."""
        return self._report

    def close(self) -> None:
        """Drop the session; its memory goes when the last run in flight has ended. Closing twice is fine."""
        with contextlib.suppress(AttributeError):
            del self._session

    def _refuse_large(self, feeds: Mapping[str, Array]) -> None:
        rows = max((len(array) for array in feeds.values()), default=0)
        if self._max_rows is not None and rows > self._max_rows:
            raise InvalidRequestError(
                f"{self._report.name} takes 1 to {self._max_rows} rows, found {rows}: run them in several batches"
            )


def session_options(options: RunnerOptions) -> onnxruntime.SessionOptions:
    """The settings for a runner's options; onnxruntime's errors reach us as exceptions, not as lines on a terminal."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads or available_cores()
    settings.graph_optimization_level = _LEVELS[options.graph_level]
    settings.log_severity_level = _FATAL
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    return settings


def require_provider(provider: str, runner: str) -> None:
    """Raise MissingError where this build of onnxruntime has not even heard of a provider."""
    if provider not in onnxruntime.get_available_providers():
        raise MissingError(
            f"{runner} needs a CUDA build of onnxruntime, this one has none: "
            "pip uninstall onnxruntime && pip install 'trueport[cuda]'"
        )


def session_on(
    provider: str,
    provider_options: Mapping[str, str],
    graph: bytes,
    name: str,
    settings: onnxruntime.SessionOptions,
    runner: str,
    remedy: str,
) -> onnxruntime.InferenceSession:
    """A session whose every node is on the GPU by that provider, or MissingError.

    remedy: what brings the libraries that a provider does not load without.
    """
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with quiet() as complaints:
        onnxruntime.preload_dlls(directory="")  # CUDA and cuDNN from their pip packages, without torch
        # Fail is a device that failed here, not only a bad graph.
        session = created(graph, name, settings, [(provider, dict(provider_options)), CPU], BAD_GRAPH)
    session.disable_fallback()
    if session.get_providers()[0] != provider:
        raise MissingError(
            f"{runner} can't be used here: {_complaint(complaints.getvalue())}; {remedy}, `trueport doctor` tells more"
        )
    if elsewhere := nodes_elsewhere(session.get_provider_graph_assignment_info(), provider):
        raise MissingError(f"{runner} can't run these nodes of the graph: {', '.join(elsewhere)}")
    return session


def _complaint(said: str) -> str:
    """The error in what onnxruntime prints, among rows of stars, before it goes on without a provider."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" *") and "* EP Error *" not in line]
    return lines[0].removeprefix("EP Error ").partition(" when using ")[0] if lines else _NOTHING_SAID


_NOTHING_SAID = "no usable NVIDIA GPU, driver or library"


def nodes_elsewhere(assignment: Any, provider: str) -> list[str]:
    """Names, or operators where they have none, of the nodes that went to another provider."""
    return [
        node.name or node.op_type
        for subgraph in assignment
        if subgraph.ep_name != provider
        for node in subgraph.get_nodes()
    ]


def created(
    graph: bytes,
    name: str,
    options: onnxruntime.SessionOptions,
    providers: list[Any],
    bad_graph: tuple[type[Exception], ...],
) -> onnxruntime.InferenceSession:
    """A session; BundleError for the errors that mean a bad graph, MissingError for any other."""
    try:
        return onnxruntime.InferenceSession(graph, options, providers=providers)
    except bad_graph as error:
        raise BundleError(f"onnxruntime can't read {name}: {_reason(error)}; export the bundle again") from error
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise MissingError(f"onnxruntime {onnxruntime.__version__} can't run {name} here: {_reason(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
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


def on_cpu(graph: bytes, name: str, settings: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session of the CPU provider alone; raises as `created` does."""
    return created(graph, name, settings, [CPU], (*BAD_GRAPH, Fail))


def _reason(error: Exception) -> str:
    told = _NUMBERED.sub("", str(error).strip().partition("\n")[0]).rstrip(".")
    if lacks := _NO_KERNEL.search(told):
        operator, node = lacks.groups()
        return f"it has no {operator} (node {node!r}) for the types of this graph; take another variant or runner"
    return told or type(error).__name__


_NUMBERED = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'")


def _spec(node: Any, name: str) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BundleError(f"{name} has {node.name} of {node.type}, expected one of {', '.join(_DTYPES)}")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)
