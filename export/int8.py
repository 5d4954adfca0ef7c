"""The int8 variants: ranges from training pictures, the choice by validation pictures, sensitive layers left in float.

Pictures of the test part have no say: accuracy is what is measured on them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.comparison import worth
from trueport.runtime.errors import ExportError
from trueport.runtime.manifest import Method, Quantization, Trial

from .activations import Activations, observed
from .calibration import FEWEST, METHODS, Range, ranges, refuse_poor
from .layers import COMPUTING, computed_in, layer_name
from .quantize import Scheme, prepared, quantized
from .written import Rows, written_answers

if TYPE_CHECKING:
    import onnx

Truth = NDArray[np.integer[Any]]
Say = Callable[[str], None]
SCHEMES: dict[str, Scheme] = {"int8-cpu": "u8s8", "int8-gpu": "s8s8"}
"""By variant."""
GROUPS = 48
"""Most runs that it takes to rank a network's layers: in larger ones neighbours are ranked together."""
RANKED_ON = 16
"""Pictures of the calibration that layers are ranked on."""


@dataclass(frozen=True)
class Int8Options:
    """How to calibrate. method: `auto` tries all of them, on all samples and on a quarter; samples: at most so many."""

    method: Literal["auto"] | Method = "auto"
    samples: int = 256
    reduce_range: bool = False
    """Of the weights of int8-cpu: 7 bits, for CPUs without VNNI."""


@dataclass(frozen=True, eq=False)
class Validation:
    """What choices are judged by: pictures (N, H, W, C) of the validation part, their truth, the original's logits."""

    images: Rows
    truth: Truth
    logits: NDArray[np.float32]

    def score(self, logits: NDArray[Any]) -> float:
        """The mean of what the answers are worth, 0 to 1, as `check` judges them."""
        return float(worth(logits, self.truth).mean())

    def trial(self, model: onnx.ModelProto, method: Method, samples: int, float_layers: int = 0) -> Trial:
        """What a quantized graph is worth."""
        logits = written_answers(model, self.images)
        return Trial(
            method=method,
            samples=samples,
            float_layers=float_layers,
            score=self.score(logits),
            original=self.score(self.logits),
            rms=_rms(logits, self.logits),
        )


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A float graph and what its activations were on training pictures."""

    model: onnx.ModelProto
    images: Rows
    seen: dict[int, Activations]
    """By the number of pictures."""

    @property
    def latest(self) -> Activations:
        """On all of them."""
        return self.seen[max(self.seen)]


def calibrated(model: onnx.ModelProto, images: Rows, options: Int8Options, say: Say) -> Calibrated:
    """Look at the activations on `images`, pictures of the training part.

    Raises UsageError where these are too few or all the same, ExportError for an activation that is not a number.
    """
    images = images[: options.samples]
    refuse_poor(images)
    sizes = sorted({max(FEWEST, len(images) // 4), len(images)}) if options.method == "auto" else [len(images)]
    seen = observed(model, images, tuple(sizes), say)
    return Calibrated(prepared(model), images, dict(zip(sizes, seen, strict=True)))


def int8_graph(
    name: str, float_graph: Calibrated, validation: Validation, options: Int8Options, max_drop: float, say: Say
) -> tuple[onnx.ModelProto, Quantization]:
    """The graph of the variant `name`, int8-cpu or int8-gpu, that is worth most, and how it was had.

    max_drop: points of accuracy on the validation pictures that it may lose.
    Raises ExportError where that can't be had with half of the layers in float either.
    """
    attempt = _Attempt(name, float_graph, validation, options, say)
    methods: Sequence[Method] = METHODS if options.method == "auto" else (options.method,)
    trials = [attempt.try_out(method, samples) for method, samples in product(methods, sorted(float_graph.seen))]
    best = max(trials, key=_worth)
    in_float: list[onnx.NodeProto] = []
    if _drop(best) > max_drop:
        ranked = attempt.ranked_layers(best)
        for in_float in _growing(ranked):
            best = attempt.try_out(best.method, best.samples, in_float)
            trials.append(best)
            if _drop(best) <= max_drop:
                break
        else:
            raise _lost(name, trials, len(validation.images), max_drop, layer_name(ranked[0][0]) if ranked else "")
    graph = attempt.graph(best.method, best.samples, in_float)
    return graph, Quantization(
        scheme=attempt.scheme,
        method=best.method,
        samples=best.samples,
        per_channel=True,
        reduce_range=attempt.reduce_range,
        float_layers=_float_layers(float_graph.model, graph),
        trials=tuple(trials),
    )


class _Attempt:
    """Graphs of one scheme, made and measured."""

    def __init__(
        self, name: str, float_graph: Calibrated, validation: Validation, options: Int8Options, say: Say
    ) -> None:
        self.name = name
        self.scheme = SCHEMES[name]
        self.reduce_range = options.reduce_range and self.scheme == "u8s8"
        self._float = float_graph
        self._validation = validation
        self._say = say
        self._ranges: dict[tuple[Method, int], dict[str, Range]] = {}

    def graph(
        self,
        method: Method,
        samples: int,
        in_float: Sequence[onnx.NodeProto] = (),
        only: Sequence[onnx.NodeProto] = (),
    ) -> onnx.ModelProto:
        """The quantized graph, but for nodes that stay in float."""
        if (method, samples) not in self._ranges:
            self._ranges[method, samples] = ranges(self._float.seen[samples], method)
        return quantized(
            self._float.model,
            self._ranges[method, samples],
            self.scheme,
            reduce_range=self.reduce_range,
            in_float=[node.name for node in in_float],
            only=[node.name for node in only],
        )

    def try_out(self, method: Method, samples: int, in_float: Sequence[onnx.NodeProto] = ()) -> Trial:
        """Make such a graph and measure it."""
        trial = self._validation.trial(self.graph(method, samples, in_float), method, samples, len(in_float))
        kept = f", {trial.float_layers} layers in float" if in_float else ""
        self._say(
            f"{self.name}: {method} of {samples} pictures{kept}: {trial.score:.2%} on {len(self._validation.images)} "
            f"validation pictures, the original {trial.original:.2%}; rms {trial.rms:.3g}"
        )
        return trial

    def ranked_layers(self, trial: Trial) -> list[list[onnx.NodeProto]]:
        """Layers in groups of neighbours, first those whose quantization alone moves the logits most."""
        images = self._float.images[:RANKED_ON]
        expected = written_answers(self._float.model, images)
        layers = [node for node in self._float.model.graph.node if node.op_type in COMPUTING]
        groups = [list(group) for group in np.array_split(np.array(layers, object), min(GROUPS, len(layers)))]
        errors = []
        for done, group in enumerate(groups):
            if done % 8 == 0:
                self._say(f"{self.name}: how much each layer moves the answers, {done} of {len(groups)}")
            answers = written_answers(self.graph(trial.method, trial.samples, only=group), images)
            errors.append(_rms(answers, expected))
        return [groups[index] for index in np.argsort(errors)[::-1]]


def _growing(ranked: list[list[onnx.NodeProto]]) -> Sequence[list[onnx.NodeProto]]:
    """The first group, the first two, four, …, up to half of them."""
    counts: list[int] = []
    while (count := 2 ** len(counts)) <= len(ranked) / 2:
        counts.append(count)
    return [[node for group in ranked[:count] for node in group] for count in counts]


def _float_layers(model: onnx.ModelProto, graph: onnx.ModelProto) -> tuple[str, ...]:
    """What was left in float, by choice or since the quantizer has no way for it, in the graph's order."""
    kinds = computed_in(graph)
    return tuple(layer_name(node) for node in model.graph.node if kinds.get(node.name, "int8") != "int8")


def _lost(name: str, trials: Sequence[Trial], count: int, max_drop: float, worst: str) -> ExportError:
    best = min(trials, key=_drop)
    kept = f" with {best.float_layers} layers in float" if best.float_layers else ""
    return ExportError(
        f"{name} loses at least {_drop(best):.2f} points of accuracy on {count} validation pictures "
        f"({best.method} of {best.samples} pictures{kept}), allowed are {max_drop:g}; the most sensitive layer is "
        f"{worst or 'unknown'}: raise export.max_drop or export.int8.samples, or leave int8 out"
    )


def _worth(trial: Trial) -> tuple[float, float]:
    """By score, then by distance; a score above the original's is luck of this slice and counts as its."""
    return min(trial.score, trial.original), -trial.rms


def _drop(trial: Trial) -> float:
    """Points of accuracy; what rounding leaves of a count of pictures is none."""
    return round(100 * (trial.original - trial.score), 9)


def _rms(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean((ours.astype(np.float64) - theirs) ** 2)))
