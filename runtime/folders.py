"""Where trueport keeps what it can make again: engines of onnxruntime, timings, choices, downloads.

XDG Base Directory Specification, and `LOCALAPPDATA` on Windows.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "TRUEPORT_CACHE"
"""Environment variable: the folder to use in their place."""


def cache_folder() -> Path:
    """`TRUEPORT_CACHE`, else trueport's folder in the user's cache. It need not be there."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path(os.path.expanduser("~"), ".cache")) / "trueport"  # noqa: PTH111 - never raises
