"""The variants of a bundle: one graph for each precision and kind of device, with its bounds and what it reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Evaluation, Golden, check_truth, graph_file
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Bounds, Precision, Quantization, Variant

from .activations import observed
from .golden import answers, bounds_from_noise, bounds_of, exact_answers
from .graph import onnx_from_original
from .half import half_bounds
from .int8 import Calibrated, Int8Options, Say, Truth, Validation, calibrated, int8_graph
from .layers import check_reached
from .original import Original
from .ranges import half_warnings, int8_warnings
from .written import Rows, written_answers

if TYPE_CHECKING:
    import onnx

NAMES: dict[Precision, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "int8": ("int8-cpu", "int8-gpu"),
}
"""Variants of each precision."""
TARGETS: dict[str, Literal["any", "cpu", "gpu"]] = {
    "fp32": "any",
    "fp16": "any",  # OpenVINO computes in it where the CPU does; onnxruntime's CPU provider refuses it
    "bf16": "any",
    "int8-cpu": "cpu",
    "int8-gpu": "gpu",
}
INT8_HEADROOM = 2.0
"""Rounding of sums decides which of 256 levels a value falls on, so integer kernels are as far from the graph computed
in float as half of what quantization makes. From the original they were at most 1.3 times as far (ResNet-18 and LeNet,
onnxruntime and OpenVINO, both schemes); pictures that were not looked at take the rest."""
LOOKED_AT = 64
"""Training pictures for the ranges of fp16, where int8 does not bring more."""


@dataclass(frozen=True, eq=False)
class Material:
    """Prepared pictures that other precisions than fp32 are made with.

    calibration: (N, H, W, C) of the training part. validation, truth: pictures of the validation part and their labels,
    as `Evaluation` has them; needed for int8 alone.
    """

    calibration: Rows
    validation: Rows | None = None
    truth: Truth | None = None


@dataclass(frozen=True, eq=False)
class Recorded:
    """What variants are compared with: golden set and evaluation slice."""

    golden: Golden
    evaluation: Evaluation


def variant_names(precisions: Sequence[Precision]) -> tuple[str, ...]:
    """Names of the variants that such an export makes, in order: fp32 is first and always there."""
    ordered = dict.fromkeys(("fp32", *precisions))
    return tuple(name for precision in ordered for name in NAMES[precision])


def made_variants(
    original: Original,
    recorded: Recorded,
    precisions: Sequence[Precision],
    *,
    material: Material | None,
    opset: int,
    max_drop: float,
    int8: Int8Options,
    say: Say,
) -> Iterator[tuple[Variant, bytes]]:
    """Each variant and its graph's bytes.

    max_drop: points of accuracy that a precision other than fp32 may lose. say is told what is done.
    Raises UsageError where `material` lacks what a precision needs, ExportError where a precision can't be had.
    """
    names = variant_names(precisions)
    needs = {"fp16", *NAMES["int8"]} & set(names)
    if needs and material is None:
        raise UsageError(f"{', '.join(sorted(needs))} need pictures of the training part, found none: give material")
    validation = _validation(original, material) if "int8-cpu" in names else None  # refused before the work
    say("exporting fp32")
    graph = onnx_from_original(original, opset)
    images = recorded.golden.images
    exact = exact_answers(original, images)
    yield _variant("fp32", "fp32", graph, bounds_from_noise(original, images, exact))
    seen = _look(graph, material, int8, needs, say) if material else None
    for precision in names:
        if precision in {"fp16", "bf16"}:
            say(f"exporting {precision}")
            yield _half(original, precision, recorded, exact, opset, max_drop, graph, seen)
    if validation is not None and seen is not None:
        for name in NAMES["int8"]:
            made, quantization = int8_graph(name, seen, validation, int8, max_drop, say)
            bounds = int8_bounds(made, recorded, exact, max_drop)
            warned = int8_warnings(graph, seen.latest)
            yield _variant(name, "int8", made, bounds, quantization, warned)


def _look(
    graph: onnx.ModelProto, material: Material, int8: Int8Options, needs: set[str], say: Say
) -> Calibrated | None:
    """The activations on training pictures, as far as a variant needs them."""
    if "int8-cpu" in needs:
        return calibrated(graph, material.calibration, int8, say)
    if needs:
        images = material.calibration[:LOOKED_AT]
        return Calibrated(graph, images, {len(images): observed(graph, images, progress=say)[-1]})
    return None


def _half(
    original: Original,
    name: str,
    recorded: Recorded,
    exact: NDArray[np.float64],
    opset: int,
    max_drop: float,
    graph: onnx.ModelProto,
    seen: Calibrated | None,
) -> tuple[Variant, bytes]:
    import torch

    precision: Precision = "fp16" if name == "fp16" else "bf16"
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    warned = half_warnings(graph, seen.latest) if seen and precision == "fp16" else ()
    bounds = half_bounds(original, recorded.golden.images, exact, dtype, max_drop)
    return _variant(name, precision, onnx_from_original(original, opset, dtype), bounds, warnings=warned)


def int8_bounds(made: onnx.ModelProto, recorded: Recorded, exact: NDArray[Any], max_drop: float | None) -> Bounds:
    """From the graph itself, computed in float, against the original; on the evaluation slice against its recording."""
    golden, evaluation = recorded.golden, recorded.evaluation
    deviations = [
        written_answers(made, golden.images).astype(np.float64) - exact,
        written_answers(made, evaluation.images).astype(np.float64) - evaluation.logits,
    ]
    told = tuple(f"the graph in float, {len(rows)} {kind}" for rows, kind in zip(deviations, _SETS, strict=True))
    return bounds_of(deviations, np.abs(exact).max(), INT8_HEADROOM, told, max_drop)


_SETS = ("golden inputs", "pictures of the evaluation slice")


def _validation(original: Original, material: Material | None) -> Validation:
    if material is None or material.validation is None or material.truth is None or not len(material.validation):
        raise UsageError("int8 is chosen by pictures of the validation part, found none: give them, or leave int8 out")
    check_truth(material.truth, original.task, len(material.validation), len(original.labels))
    logits = answers(original, material.validation)
    return Validation(material.validation, material.truth, logits)


def _variant(
    name: str,
    precision: Precision,
    graph: onnx.ModelProto,
    bounds: Bounds,
    quantization: Quantization | None = None,
    warnings: tuple[str, ...] = (),
) -> tuple[Variant, bytes]:
    variant = Variant(
        name=name,
        format="onnx",
        precision=precision,
        reached=check_reached(graph, precision),
        target=TARGETS[name],
        file=graph_file(name),
        bounds=bounds,
        quantization=quantization,
        warnings=warnings,
    )
    return variant, graph.SerializeToString(deterministic=True)
