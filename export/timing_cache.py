"""TensorRT's measurements of kernels, kept in the user's cache folder so that the next build has them.

One file for each flavour, version and compute capability: it is of no use to another, and TensorRT refuses it there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from trueport.runtime.atomic import write_bytes
from trueport.runtime.folders import cache_folder


def cache_file(flavour: str, version: str, target: str) -> Path:
    """Where the measurements of this flavour, version and GPU lie."""
    return cache_folder() / "timing" / f"{flavour}-{version}-{target}.cache"


def attach(config: Any, file: Path) -> None:
    """Give the builder what was measured before; a cache that it does not take is as good as none."""
    try:
        known = file.read_bytes()
    except OSError:
        known = b""
    if not (known and config.set_timing_cache(config.create_timing_cache(known), False)):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(config: Any, file: Path) -> None:
    """Write what is known now. A cache that can't be written costs time only."""
    cache = config.get_timing_cache()
    if cache is not None:
        with contextlib.suppress(OSError):
            write_bytes(file, bytes(cache.serialize()))
