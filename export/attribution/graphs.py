"""Why a graph does not answer what the original does: what is different in it, and what is the exporter's own doing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trueport.runtime.explanation import Departure, Stage
from trueport.runtime.manifest import Variant

from ..ranges import HALF_MAX
from .experiments import Case
from .findings import Finding, Trial, case_of, images_of, known_mistake, share

if TYPE_CHECKING:
    import onnx

    from .graph_diff import Difference, NodeChange

AGAIN = "export the bundle again, and change no graph by hand"
RANDOM = (
    "Dropout",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
SHOWN = 3
"""Changes that are told."""


def graph_finding(trial: Trial, stage: Stage, variant: Variant) -> Finding:
    """Why the graph of `variant` departs as it is written, from the stage before."""
    case = case_of(trial.chain, stage, trial.subject.images)
    if trial.subject.no_onnx:
        return _by_mistake(trial, stage, case)
    graph = trial.subject.graph(variant)
    fresh = trial.subject.fresh(variant)
    healthy = None if isinstance(fresh, str) or case is None else fresh if _agrees(fresh, case) else None
    found = looked_at(trial, stage, graph, healthy, case)
    finding = _by_chance(trial, stage, graph)
    if finding is None and healthy is not None and case is not None:
        finding = _by_difference(trial, stage, graph, healthy, case)
    finding = finding or _by_overflow(variant, case, found)
    if finding is None:
        finding = _by_mistake(trial, stage, case)
        if not finding.confirmed and not isinstance(fresh, str) and healthy is None and case is not None:
            finding = _exporter(fresh, graph, finding, case)
    return replace(finding, first=found.first)


def _agrees(graph: onnx.ModelProto, case: Case) -> bool:
    """Whether a mended graph gives the expected answers; where the mending does not fit the rest, it can't run."""
    from .tensors import graph_answers

    try:
        found = graph_answers(graph, case.images)
    except Exception:  # noqa: BLE001 — onnxruntime's errors share no base class but Exception
        return False
    same = found.shape == case.expected.shape
    return same and bool(np.abs(found.astype(np.float64) - case.expected).max() <= case.allowed)


@dataclass(frozen=True)
class Look:
    """The first tensors that depart, and what is in the very first of them."""

    first: tuple[Departure, ...] = ()
    infinite: bool = False
    """Whether it holds infinities; all before it is finite."""
    reach: float = 0.0
    """The largest value that the stage before has there."""

    @property
    def broken(self) -> bool:
        """Whether it holds what is no number."""
        return bool(self.first) and self.first[0].max_abs is None


def looked_at(
    trial: Trial, stage: Stage, graph: onnx.ModelProto, healthy: onnx.ModelProto | None, case: Case | None
) -> Look:
    """The tensors of the graph beside those that the stage before makes of the same inputs."""
    from .tensors import Expected, expected_tensors, first_departures, graph_tensors, named_tensors

    if case is None:
        return Look()
    subject, images = trial.subject, images_of(case)
    limit = share(trial.chain.link(stage), case.expected)
    expected: dict[str, Expected] = {}
    try:
        if stage == "precision":
            reference = graph_tensors(subject.graph(subject.base), images)
            expected = named_tensors(reference, limit, "the fp32 graph")
        else:
            if healthy is not None:
                expected = named_tensors(graph_tensors(healthy, images), limit, "a graph exported anew")
            if subject.original is not None:
                expected |= expected_tensors(subject.original, images, graph)
        tensors = graph_tensors(graph, images)
    except Exception as error:  # noqa: BLE001 — a graph that refuses these rows, or a module that was brought
        trial.say(f"the tensors of {stage} can't be had: {error}")
        return Look()
    first = first_departures(graph, tensors, expected)
    if not first:
        return Look()
    name = first[0].tensor
    reach = float(np.abs(expected[name].values.astype(np.float64)).max(initial=0.0))
    return Look(first, bool(np.isinf(tensors[name]).any()), reach)


def _by_overflow(variant: Variant, case: Case | None, found: Look) -> Finding | None:
    """Numbers that are none where the stage before has numbers."""
    if case is None or not np.isfinite(case.expected).all() or (np.isfinite(case.found).all() and not found.broken):
        return None
    where = f", first in {found.first[0].layer}" if found.first else ""
    if variant.precision == "fp16" and (found.infinite or found.reach > HALF_MAX):
        reach = f"; in float32 it reaches {found.reach:,.4g} there" if found.reach > HALF_MAX else ""
        return Finding(
            f"float16 overflows{where}, where what goes in is finite: it ends at {HALF_MAX:,.0f}{reach}",
            "export bf16 in place of fp16, or keep fp32",
            True,
        )
    return Finding(
        f"NaN or infinity where the stage before has numbers{where}",
        "look for a division by zero, a logarithm, or damaged weights there; " + AGAIN,
    )


def _by_chance(trial: Trial, stage: Stage, graph: onnx.ModelProto) -> Finding | None:
    """A graph that answers the same inputs otherwise each time."""
    from ..layers import layer_name

    result = trial.chain.result(stage)
    repeated = result.measured.get("repeated", 0.0)
    if repeated is not None and repeated <= result.allowed.get("repeated", 0.0):
        return None
    nodes = [node for node in graph.graph.node if node.op_type in RANDOM]
    where = f": {nodes[0].op_type} in {layer_name(nodes[0])}" if nodes else ""
    return Finding(
        f"the same input is answered otherwise each time, as with dropout left on{where}",
        "call model.eval() before the export, and export the bundle again",
        bool(nodes),
    )


def _by_difference(
    trial: Trial, stage: Stage, graph: onnx.ModelProto, healthy: onnx.ModelProto, case: Case
) -> Finding | None:
    """What differs from a graph exported anew, which answers what the original does."""
    from ..layers import COMPUTING, layer_name
    from .graph_diff import difference, with_attributes, with_tensors
    from .weights import weight_cause

    found = difference(graph, healthy)
    if not found:  # also where the two have no names in common
        return None
    weights = tuple(change for change in found.tensors if change.op_type in COMPUTING)
    if weights and _agrees(with_tensors(graph, weights), case):
        layers = [layer_name(node) for node in healthy.graph.node if node.op_type in COMPUTING]
        told = weight_cause(weights, layers, trial.subject.original)
        return Finding(told.cause, told.remedy, True)
    attributes = tuple(change for change in found.nodes if change.kind == "attribute")
    if attributes and _agrees(with_attributes(graph, attributes), case):
        return Finding(_told(attributes), "export the bundle again from the module as it was trained", True)
    mistake = known_mistake(trial, stage, case)
    if mistake is not None:
        return Finding(mistake.cause, mistake.remedy, True)
    if found.tensors and not found.nodes:
        told = weight_cause(found.tensors, [found.tensors[0].layer], trial.subject.original)
        return Finding(told.cause, told.remedy, _agrees(with_tensors(graph, found.tensors), case))
    return Finding(_structure(found), "export the bundle again from the module as it was trained, in eval mode", True)


def _told(changes: tuple[NodeChange, ...]) -> str:
    named = [f"{change.node.op_type} in {change.layer}: {change.detail}" for change in changes[:SHOWN]]
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f"other attributes than the original exports to: {'; '.join(named)}{more}"


def _structure(found: Difference) -> str:
    """Nodes that are added, removed, or fed by others."""
    lost = [
        change.layer
        for change in found.nodes
        if change.kind == "inputs"
        and change.expected is not None
        and len(change.node.input) < len(change.expected.input)
    ]
    if lost and len(lost) == len(found.nodes):
        return f"the bias of {', '.join(lost)} is lost: the node has none"
    told = []
    for kind in ("added", "removed", "operator", "attribute", "inputs"):
        changes = [change for change in found.nodes if change.kind == kind]
        named = [
            f"{change.node.op_type} in {change.layer or change.node.output[0]}"
            + (f" ({change.detail})" if change.detail else "")
            for change in changes[:SHOWN]
        ]
        if named:
            more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            told.append(f"{kind}: {', '.join(named)}{more}")
    return f"other nodes than the original exports to; {'; '.join(told)}"


def _by_mistake(trial: Trial, stage: Stage, case: Case | None) -> Finding:
    mistake = known_mistake(trial, stage, case)
    if mistake is not None:
        return Finding(mistake.cause, mistake.remedy, True)
    return Finding("the graph answers otherwise than the original, and no usual mistake does the same", AGAIN)


def _exporter(fresh: onnx.ModelProto, graph: onnx.ModelProto, finding: Finding, case: Case) -> Finding:
    """An export made here departs too: then it is the exporter, not what became of the file."""
    from .tensors import graph_answers

    if not np.allclose(graph_answers(fresh, case.images), graph_answers(graph, case.images), atol=case.allowed):
        return finding
    return Finding(
        "torch's exporter itself: a graph exported anew answers as wrongly as the bundle's",
        "export with another opset or another version of torch, or write the first layer that departs in other words",
        True,
    )
