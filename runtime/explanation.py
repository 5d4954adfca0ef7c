"""Why a gate failed: the first stage that departs from the one before it, the first tensors in it, and what that means.

The stages are those that a picture goes through on its way from the file to an answer, in order; each is held against
the one before it on the same inputs.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Stage = Literal["evidence", "preprocessing", "labels", "original", "export", "onnx", "optimised", "precision", "runner"]
STAGES: dict[Stage, str] = {
    "evidence": "the pictures and recorded answers that everything is judged by",
    "preprocessing": "from the encoded picture to pixels",
    "labels": "which class stands where",
    "original": "the original as its weights rebuild it, against what was recorded at export",
    "export": "torch.export's program, against the original",
    "onnx": "the fp32 graph as it is written, against the original",
    "optimised": "the fp32 graph as onnxruntime optimises it, against the graph as it is written",
    "precision": "the variant's graph as it is written, against the fp32 graph as it is written",
    "runner": "the variant on its runner, against the variant's graph as it is written",
}
"""What each stage compares."""


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stage against the one before it."""

    stage: Stage
    status: Literal["agrees", "departs", "not run"]
    measured: dict[str, float | None] = {}
    """None where the value is NaN or infinite."""
    allowed: dict[str, float] = {}
    detail: str


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that is not what it was in the stage before."""

    layer: str
    """The module of the original where that is known, else the node."""
    tensor: str
    max_abs: float | None
    """Largest difference; None where it is NaN or infinite."""
    allowed: float
    """What the noise of the original at this very tensor allows."""
    detail: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What the failed gates of one variant on one runner, or those of the bundle itself, come from."""

    variant: str
    """`-` where it is not about a variant."""
    runner: str
    gates: tuple[str, ...]
    """That failed, or are undecided."""
    stage: Stage
    """The first that departs; where none does, that which adds most to what the gate measured."""
    stages: tuple[StageResult, ...]
    first: tuple[Departure, ...] = ()
    """The first tensors that depart within the stage, at most a few."""
    cause: str
    """What it is, where that was shown; else what usually causes such a pattern."""
    confirmed: bool
    """Whether the cause was shown: doing the same to the original, or undoing it in the port, makes the two agree."""
    remedy: str
    float_layers: tuple[str, ...] = ()
    """The smallest set of layers found that an int8 variant has to keep in float to pass here."""
