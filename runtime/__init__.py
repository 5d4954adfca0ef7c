"""The part of trueport that an application embeds: a bundle goes in, answers come out. Needs no torch.

Names are loaded when they are first used, so that importing the package costs nothing; errors are in
`trueport.runtime.errors`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batching import BatchLimits
    from .bundle import Bundle
    from .session import Prediction, Score, Session, load

__all__ = ["BatchLimits", "Bundle", "Prediction", "Score", "Session", "load"]

# onnxruntime looks for this at its import: without it, it writes into the home folder and sends events. 0 lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "BatchLimits": "batching",
    "Bundle": "bundle",
    "Prediction": "session",
    "Score": "session",
    "Session": "session",
    "load": "session",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
