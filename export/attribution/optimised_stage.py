"""Why onnxruntime's optimised graph does not answer what is written: the level that does it, and where."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from trueport.runtime.explanation import Stage
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners.ort import OrtRunner, on_cpu, session_options

from .chain import BATCH, Answer, answer_of, answered, close_to
from .findings import Finding, Trial
from .on_runner import Opened, bisected

if TYPE_CHECKING:
    import onnx

LEVELS: tuple[Literal["basic", "extended", "all"], ...] = ("basic", "extended", "all")


def optimised_finding(trial: Trial, stage: Stage) -> Finding:
    """Which level of onnxruntime's optimisations it is, what it folds, and the first tensors."""
    subject = trial.subject
    data, name = subject.bundle.read(subject.base.file), str(subject.bundle.file(subject.base.file))
    expected, batch = trial.chain.before(stage).logits, 1 if trial.chain.link(stage).refused else BATCH
    finding = Finding(
        "onnxruntime's optimisations change the answers",
        "run with RunnerOptions(graph_level='basic'), or another version",
    )
    for level in LEVELS:
        settings = session_options(RunnerOptions(threads=subject.threads, graph_level=level))
        answer = answer_of(OrtRunner(on_cpu(data, name, settings), trial.runner))
        if not close_to(answered(answer, subject.images, batch), expected, subject.base.bounds.max_abs):
            finding = _at_level(trial, data, level)
            break
    return replace(finding, first=bisected(trial, stage, _optimised_at(trial)))


def _at_level(trial: Trial, data: bytes, level: Literal["basic", "extended", "all"]) -> Finding:
    told = f"onnxruntime's optimisations of level {level!r} change the answers"
    if level != LEVELS[0]:
        lower = LEVELS[LEVELS.index(level) - 1]
        return Finding(told, f"run with RunnerOptions(graph_level={lower!r})", True)
    if folded := _out_of_range(trial, data):
        told += f": a constant folded into {folded} takes weights of it out of what float32 holds"
        return Finding(told, "bring scales and weights near to 1 before the export, or use another runner", True)
    return Finding(told, "use another version of onnxruntime, or another runner", True)


def _out_of_range(trial: Trial, data: bytes) -> str:
    """The first weights of which the optimised graph has more that are zero, denormal or infinite."""
    if trial.subject.no_onnx:
        return ""
    import onnx

    with tempfile.TemporaryDirectory(prefix="trueport-") as folder:
        file = Path(folder) / "optimised.onnx"
        settings = session_options(RunnerOptions(threads=trial.subject.threads, graph_level=LEVELS[0]))
        settings.optimized_model_filepath = str(file)
        on_cpu(data, trial.subject.base.file, settings)
        optimised = onnx.load(file).graph.initializer
    written = {tensor.name: _lost(tensor) for tensor in trial.subject.graph(trial.subject.base).graph.initializer}
    for tensor in optimised:
        # What is folded keeps the name of what it is folded into behind its own.
        name = max((name for name in written if tensor.name.endswith(name)), key=len, default="")
        if name and _lost(tensor) > written[name]:
            return name
    return ""


def _lost(tensor: onnx.TensorProto) -> int:
    """How many numbers have no digits left."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    if values.dtype.kind != "f":
        return 0
    return int(np.sum((np.abs(values) < np.finfo(values.dtype).tiny) | ~np.isfinite(values)))


def _optimised_at(trial: Trial) -> Opened:
    @contextlib.contextmanager
    def opened(graph: onnx.ModelProto, _: int | None) -> Iterator[Answer]:
        settings = session_options(RunnerOptions(threads=trial.subject.threads))
        yield answer_of(OrtRunner(on_cpu(graph.SerializeToString(), "a cut graph", settings), trial.runner))

    return opened
