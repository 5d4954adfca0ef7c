"""Every way of running a bundle's variant without torch: one runner a file, opened by its name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..bundle import Bundle
from ..errors import BundleError, unknown_name
from ..manifest import MANIFEST, TensorSpec
from ..runner import Runner, RunnerOptions

DEFAULT = "onnxruntime:cpu"


class RunnerKind(NamedTuple):
    """Where a runner lives; its module has `open_variant(bundle, variant, runner, options) -> Runner`."""

    module: str
    target: Literal["cpu", "gpu"]
    """The kind of device that it runs on, as variants have it."""
    provider: str
    """What its report must name: anything else has fallen back."""


RUNNERS: dict[str, RunnerKind] = {
    "onnxruntime:cpu": RunnerKind("ort", "cpu", "CPUExecutionProvider"),
    "openvino:cpu": RunnerKind("openvino_cpu", "cpu", "OpenVINO"),
    "onnxruntime:cuda": RunnerKind("ort_cuda", "gpu", "CUDAExecutionProvider"),
    "onnxruntime:tensorrt": RunnerKind("ort_tensorrt", "gpu", "TensorrtExecutionProvider"),
    "tensorrt": RunnerKind("tensorrt", "gpu", "TensorRT"),
    "rtx": RunnerKind("tensorrt", "gpu", "TensorRT-RTX"),
}


def open_runner(
    bundle: Bundle, runner: str = DEFAULT, variant: str | None = None, options: RunnerOptions | None = None
) -> Runner:
    """Open a variant (None: the bundle's first) on a runner, or raise: nothing falls back to anything else.

    The graph is loaded from the very bytes whose hash was checked, and asked whether it is what the manifest states.
    Raises UsageError for an unknown name, MissingError where this machine lacks what the runner needs, BundleError for
    a graph that was changed or is not what the manifest states.
    """
    if runner not in RUNNERS:
        raise unknown_name("runner", runner, RUNNERS)
    module = importlib.import_module(f"{__name__}.{RUNNERS[runner].module}")
    chosen = bundle.variant(variant)
    opened: Runner = module.open_variant(bundle, chosen, runner, options or RunnerOptions())
    check_contract(bundle, chosen.file, opened)
    return opened


def check_contract(bundle: Bundle, file: str, runner: Runner) -> None:
    """Raise BundleError unless the graph's tensors are the manifest's, and these fit its preprocessing and labels."""
    manifest = bundle.manifest
    rows, logits = (-1, *manifest.preprocessing.shape), (-1, len(manifest.labels))
    for kind, stated, found, shape, source in (
        ("input", manifest.inputs, runner.inputs, rows, "preprocessing makes"),
        ("output", manifest.outputs, runner.outputs, logits, "labels stand for"),
    ):
        if found != stated:
            difference = f"{file} has the {kind} {_shown(found)}, {MANIFEST} states {_shown(stated)}"
        elif [spec.shape for spec in stated] != [shape]:
            difference = f"{MANIFEST} states the {kind} {_shown(stated)}, its {source} {list(shape)}"
        else:
            continue
        raise BundleError(f"{bundle.path} contradicts itself: {difference}; export the bundle again")


def _shown(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs) or "none"
