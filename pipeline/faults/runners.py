"""The graph is right and whoever runs it is not: another provider, another precision, rows or models mixed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trueport.runtime.bundle import Bundle
from trueport.runtime.runner import Array, Runner, RunnerOptions
from trueport.runtime.runners import DEFAULT

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .lying import LyingRunner, served_by, served_from
from .precision import largest
from .surgery import array, constant, insert_behind, nodes, put, redirect, weighted
from .weights import take_an_older_checkpoint

SMALLEST_NORMAL = 2.0**-126
BATCH_BUILT_FOR = 4


@fault("other model", "the runner serves the engine of another model", "runner")
def serve_another_model(healthy: Healthy) -> Deployment:
    """An engine cache keyed by the architecture (onnxruntime#6455): other weights, the same shapes."""
    return served_from(healthy, take_an_older_checkpoint(healthy).bundle)


@fault("provider fallback", "the provider fell back to the CPU", "runner", runner="onnxruntime:cuda")
def fall_back(healthy: Healthy) -> Deployment:
    """CUDA's libraries did not load: onnxruntime says so in a log, goes on, and answers right, slowly."""
    honest = healthy.deployment.open

    def open_on_cpu(bundle: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        return LyingRunner(honest(bundle, DEFAULT, variant, options), told={"name": runner, "device": "cpu"})

    return replace(healthy.deployment, open=open_on_cpu)


@fault("precision not reached", "int8 is computed in float32", "runner", precision="int8")
def compute_in_float(healthy: Healthy) -> Deployment:
    """A backend that has no integer kernel for a pattern takes the Q/DQ pairs away (rf-detr#1453 for fp16)."""
    layers = {"fp32": sum(healthy.variant.reached.values())}
    return served_by(healthy, lambda runner: LyingRunner(runner, told={"layers": layers}))


@fault("bf16 for fp32", "float32 is computed in bfloat16", "runner")
def compute_in_bfloat(healthy: Healthy) -> Deployment:
    """OpenVINO's default on CPUs with AMX, TF32 on GPUs: the weights lose 16 bits, and no report says so."""
    model = healthy.graph()
    for _, tensor in weighted(model):
        values = array(tensor)
        if values.dtype != np.float32:
            raise DoesNotApplyError("the weights are not float32")
        bits = values.view(np.uint32)
        put(tensor, ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32))
    return served_from(healthy, healthy.with_graph(model).bundle)


@fault("wrong rows", "answers go to the wrong rows of a batch", "runner")
def answer_the_wrong_rows(healthy: Healthy) -> Deployment:
    """A batcher that hands out answers in the order of arrival, not of the rows; alone, each is right."""

    def moved(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.roll(values, 1, axis=0) for name, values in runner.run(feeds).items()}

    return served_by(healthy, lambda runner: LyingRunner(runner, moved))


@fault("first rows", "rows beyond the batch that an engine was built for are not answered", "runner")
def answer_the_first_rows(healthy: Healthy) -> Deployment:
    """An output buffer of a fixed size: what is behind it is never written (TensorRT#4853 is of this kind)."""

    def cut(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        answers = {name: values.copy() for name, values in runner.run(feeds).items()}
        for values in answers.values():
            values[BATCH_BUILT_FOR:] = 0
        return answers

    return served_by(healthy, lambda runner: LyingRunner(runner, cut))


@fault("stale answer", "a buffer is read before it is written", "runner")
def answer_too_early(healthy: Healthy) -> Deployment:
    """A copy from the device that nobody waited for: each answer is the one to the batch before it."""

    def wrap(runner: Runner) -> Runner:
        before: dict[tuple[int, ...], dict[str, Array]] = {}

        def late(honest: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
            answers = honest.run(feeds)
            key = next(iter(feeds.values())).shape
            told, before[key] = before.get(key, answers), answers
            return told

        return LyingRunner(runner, late)

    return served_by(healthy, wrap)


@fault("rounded answer", "answers are rounded to float16 on their way", "runner")
def round_the_answers(healthy: Healthy) -> Deployment:
    """A server that halves what it sends, or an output tensor that was declared so: three digits are left."""

    def rounded(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: values.astype(np.float16).astype(values.dtype) for name, values in runner.run(feeds).items()}

    return served_by(healthy, lambda runner: LyingRunner(runner, rounded))


@fault("infrequent nan", "the last row of a full batch is not a number", "runner")
def answer_nan(healthy: Healthy) -> Deployment:
    """A kernel that reads past its input where the batch fills it: seen under load alone."""

    def spoilt(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        answers = {name: values.copy() for name, values in runner.run(feeds).items()}
        for values in answers.values():
            if len(values) >= 32:
                values[-1] = np.nan
        return answers

    return served_by(healthy, lambda runner: LyingRunner(runner, spoilt))


@fault("flushed denormals", "denormals are flushed to zero", "runner")
def flush_denormals(healthy: Healthy) -> Deployment:
    """A library built with -ffast-math sets the processor's flags for the whole process.

    The bundle's graph takes activations down to where float32's normal range ends and up again, which keeps them as
    exact as they were; what is served flushes them there. The flags themselves are left alone: they are the process's.
    """
    model = healthy.graph()
    flushed = healthy.graph()
    _to_the_edge(model, healthy, flush=False)
    _to_the_edge(flushed, healthy, flush=True)
    small = healthy.with_graph(model)
    folder = healthy.scratch / "flushed"
    folder.mkdir()
    return served_from(replace(healthy, deployment=small), replace(healthy, scratch=folder).with_graph(flushed).bundle)


def _to_the_edge(model: Any, healthy: Healthy, *, flush: bool) -> None:
    """Scale what the first ReLU makes so that its largest value is just normal, flush there or not, and scale back."""
    from onnx import helper

    node = nodes(model, "Relu")[0]
    name, top = node.output[0], max(largest(healthy, node.output[0]), 1e-3)
    power = -126 - int(np.floor(np.log2(top)))
    back = -power // 2  # twice: the whole of it may be more than a float32 holds
    added = [
        helper.make_node("Mul", [name, constant(model, "to_the_edge", 2.0**power)], ["at_the_edge"]),
        helper.make_node("Mul", ["at_the_edge", constant(model, "half_back", 2.0**back)], ["half_way"]),
        helper.make_node("Mul", ["half_way", constant(model, "other_half_back", 2.0 ** (-power - back))], ["back"]),
    ]
    if flush:
        added[1].input[0] = "kept"
        edge, nothing = constant(model, "edge", SMALLEST_NORMAL), constant(model, "nothing", 0.0)
        added[1:1] = [
            helper.make_node("Abs", ["at_the_edge"], ["size"]),
            helper.make_node("GreaterOrEqual", ["size", edge], ["normal"]),
            helper.make_node("Where", ["normal", "at_the_edge", nothing], ["kept"]),
        ]
    redirect(model, name, "back")
    insert_behind(model, node, *added)
