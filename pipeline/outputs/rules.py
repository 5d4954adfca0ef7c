"""The gates of `check` as rules: what each proves, and what to do where it does not pass."""

from __future__ import annotations

from typing import NamedTuple

from .told import on_one_line


class Rule(NamedTuple):
    """A gate in words."""

    proves: str
    remedy: str


_EXPLAIN = "`trueport check --explain` names the first stage and tensors that depart."
RULES: dict[str, Rule] = {
    "evidence": Rule(
        "The pictures can tell: enough of them, distinct, of more than one class, with finite answers of the original.",
        "Export again with more and more varied pictures, or check with --data.",
    ),
    "labels": Rule(
        "Graphs, manifest and application agree on labels, preprocessing and normalisation.",
        "Export the bundle again, and take the names of the classes from it, in its order.",
    ),
    "preprocessing": Rule(
        "A picture's file becomes the same pixels here as it did at export, to the bit.",
        "Decode, turn by EXIF, resize and crop through trueport.runtime, or as its parameters in the manifest say.",
    ),
    "recording": Rule(
        "The original, rebuilt here, answers what was recorded at export.",
        "Export again: weights and recording are not of the same model, or this machine computes otherwise.",
    ),
    "contract": Rule(
        "Inputs, outputs, provider and precision are those that were asked for; nothing fell back.",
        "`trueport doctor` tells what this machine lacks; else export the variant again.",
    ),
    "parity": Rule(
        "The port computes the original's numbers, within bounds from the original's own noise.",
        _EXPLAIN,
    ),
    "batch invariance": Rule(
        "A picture's answer depends neither on the others in its batch nor on its place among them.",
        f"Export with a symbolic batch axis and without anything that works across rows. {_EXPLAIN}",
    ),
    "accuracy": Rule(
        "On held-out pictures the port is as right as the original: only ties, or the drop that is allowed.",
        f"Check with more labelled pictures (--data) where it is undecided. {_EXPLAIN}",
    ),
    "opening": Rule(
        "The variant was opened on a runner of this machine; where it was not, nothing is proven of it.",
        "Name a runner that takes it, on a machine that has what it needs: `trueport doctor`.",
    ),
}


def rule_id(gate: str) -> str:
    """The gate's name as an identifier."""
    return on_one_line(gate).replace(" ", "-") or "gate"
