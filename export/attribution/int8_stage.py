"""Why an int8 graph departs as it is written: scales, weights, or layers that eight bits are too few for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trueport.runtime.explanation import Departure, Stage

from ..layers import layer_name
from .chain import distance
from .findings import Finding, Trial, case_of, known_mistake
from .float_layers import ranked
from .integers import misfits, other_weights, recalibrated
from .subject import Rows
from .tensors import MOST, graph_answers

if TYPE_CHECKING:
    import onnx

BETTER = 0.7
"""Of the root mean square: what a calibration on the bundle's own pictures leaves where the ranges were wrong."""
LOOKED_AT = 32
"""Pictures that ranges are looked at on."""


def int8_finding(trial: Trial, stage: Stage) -> Finding:
    """The ranges, the weights, else the layers that cost most."""
    subject = trial.subject
    graph, floats = subject.graph(trial.variant), subject.graph(subject.base)
    case = case_of(trial.chain, stage, subject.images)
    first = costliest(trial, graph, floats)
    finding = _by_weights(graph, floats) or _by_ranges(trial, graph, floats)
    if not (finding and finding.confirmed) and (mistake := known_mistake(trial, stage, case)) is not None:
        finding = Finding(mistake.cause, mistake.remedy, True)
    if finding is None:
        named = ", ".join(departure.layer for departure in first[:2])
        finding = Finding(
            f"eight bits are too few for some layers; {named} cost most by themselves",
            "keep those in float (`trueport check --explain --rebuild OUT`), or calibrate on more pictures",
        )
    return replace(finding, first=first)


def costliest(trial: Trial, graph: onnx.ModelProto, floats: onnx.ModelProto) -> tuple[Departure, ...]:
    """The layers whose quantization alone moves the logits most."""
    trial.say(f"{trial.variant.name}: what each layer costs alone")
    nodes = {node.name: node for node in graph.graph.node}
    return tuple(
        Departure(
            layer=layer_name(nodes[name]),
            tensor=nodes[name].output[0],
            max_abs=cost,
            allowed=trial.variant.bounds.rms,
            detail=f"{nodes[name].op_type} {name}: with this layer alone in int8 the logits move by so much (rms)",
        )
        for name, cost in ranked(graph, floats, _pictures(trial))[:MOST]
    )


def _pictures(trial: Trial) -> Rows:
    return trial.subject.images[-LOOKED_AT:]


def _by_weights(graph: onnx.ModelProto, floats: onnx.ModelProto) -> Finding | None:
    changed = other_weights(graph, floats)
    if not changed:
        return None
    layer, steps = max(changed, key=lambda one: one[1])
    return Finding(
        f"integer weights are not those of the fp32 graph in {len(changed)} layers; {layer} is {steps:.3g} steps away",
        "export int8 again from the same weights as fp32",
        True,
    )


def _by_ranges(trial: Trial, graph: onnx.ModelProto, floats: onnx.ModelProto) -> Finding | None:
    """Ranges that don't fit the bundle's own pictures, and whether a calibration on these mends it."""
    images = _pictures(trial)
    wrong = misfits(graph, floats, images)
    if not wrong:
        return None
    quantization = trial.variant.quantization
    again = recalibrated(graph, floats, images, quantization.reduce_range if quantization else False)
    expected = graph_answers(floats, images)
    before, after = (distance(graph_answers(one, images), expected)["rms"] for one in (graph, again))
    worst = max(wrong, key=lambda one: max(one.ratio, 1 / max(one.ratio, 1e-30)))
    kind = "cut values off" if worst.ratio < 1 else "waste levels"
    return Finding(
        f"the ranges of {len(wrong)} activations {kind}: that of {worst.layer} reaches {worst.ratio:.3g} times as far "
        f"as what is seen; calibrated on constants, on other pictures or on another normalisation (calibrated on the "
        f"bundle's own pictures the logits' rms is {after:.3g}, not {before:.3g})",
        "calibrate on a few hundred real pictures, prepared as in training, and export int8 again",
        after < BETTER * before,
    )
