"""From logits to scores, 0 to 1: a softmax where each picture has one label, sigmoids where it has any number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .errors import OutputError
from .manifest import Task

Logits = NDArray[np.floating[Any]]
Outputs = TypeVar("Outputs", bound=Mapping[str, NDArray[Any]])


def scores_from_logits(logits: Logits, task: Task) -> Logits:
    """Of logits (..., K), in their own precision: softmax for classification, sigmoid of each for multilabel."""
    return softmax(logits) if task == "classification" else sigmoid(logits)


def finite(outputs: Outputs) -> Outputs:
    """The outputs themselves. Raises OutputError where one holds NaN or infinity, which is no answer."""
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise OutputError(f"the model answers with NaN or infinity in {name!r}: there is no answer to this input")
    return outputs


def softmax(logits: Logits) -> Logits:
    """Along the last axis; NaN where a logit is no finite number."""
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return cast("Logits", powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: Logits) -> Logits:
    """Of each; exact at both ends, where exp alone would overflow."""
    power = np.exp(-np.abs(logits))
    return cast("Logits", np.where(logits >= 0, 1, power) / (1 + power))
