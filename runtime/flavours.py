"""TensorRT's two flavours behind one name: `tensorrt`, and `rtx` for consumer GPUs, which compiles on them.

Both have the same classes; what one of them lacks is a field here. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .errors import MissingError, missing_extra, unknown_name


@dataclass(frozen=True)
class Flavour:
    """What a flavour of TensorRT can do."""

    name: str
    """As on the command line and in names of engines; also the runner's name and the extra that installs it."""
    module: str
    title: str
    any_target: bool
    """Builds for compute capabilities that are listed, on any machine; else for the GPU that is there."""
    compatible: bool
    """Offers engines that load on later versions, or on other compute capabilities than they were built on."""
    timing_cache: bool
    """Measures kernels while it builds, which a cache saves the next build from."""
    own_graphs: bool
    """Captures CUDA graphs itself, since it decides when a shape's kernels are compiled."""


FLAVOURS = {
    "tensorrt": Flavour(
        "tensorrt", "tensorrt", "TensorRT", any_target=False, compatible=True, timing_cache=True, own_graphs=False
    ),
    "rtx": Flavour(
        "rtx", "tensorrt_rtx", "TensorRT-RTX", any_target=True, compatible=False, timing_cache=False, own_graphs=True
    ),
}


def flavour(name: str) -> Flavour:
    """The flavour of that name. Raises UsageError."""
    if name not in FLAVOURS:
        raise unknown_name("flavour", name, FLAVOURS)
    return FLAVOURS[name]


def installed_flavours() -> tuple[Flavour, ...]:
    """Those whose package can be found here; nothing is imported."""
    return tuple(kind for kind in FLAVOURS.values() if importlib.util.find_spec(kind.module) is not None)


def import_flavour(kind: Flavour) -> Any:
    """The flavour's Python module. Raises MissingError where it is not installed, or its libraries do not load."""
    try:
        return importlib.import_module(kind.module)
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or kind.module, kind.name, kind.title) from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingError(
            f"{kind.title} is installed but does not load: {reason}; pip install --force-reinstall "
            f"'trueport[{kind.name}]'"
        ) from error


# What TensorRT logs. It takes one logger a process and ignores any other, so that there is one for each module.

_loggers: dict[str, Any] = {}
_sinks: list[list[str]] = []
_lock = threading.Lock()


def logger(trt: Any) -> Any:
    """The process's logger for this module: silent, it hands errors to whoever is `collecting`."""
    with _lock:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = _new_logger(trt)
        return _loggers[trt.__name__]


@contextmanager
def collecting() -> Iterator[list[str]]:
    """The errors that TensorRT logs while the block runs, in any thread."""
    said: list[str] = []
    with _lock:
        _sinks.append(said)
    try:
        yield said
    finally:
        with _lock:
            _sinks[:] = [sink for sink in _sinks if sink is not said]


def _new_logger(trt: Any) -> Any:
    error = trt.ILogger.Severity.ERROR

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity == error:  # INTERNAL_ERROR is also what it says about a missing driver while it goes on
                with _lock:
                    for sink in _sinks:
                        sink.append(message)

    return Collector()


def sentence(errors: list[str], otherwise: str) -> str:
    """The first thing that went wrong, without the names of TensorRT's functions and source files around it."""
    for message in errors:
        words = " ".join(message.split())
        found = re.search(r"Error Code \d+: [\w ]+ \((.*)\)$", words)
        inner = re.sub(r"\s*In \w+ at /\S+:\d+\)?$", "", found[1] if found else words)
        if inner := re.sub(r"^In \w+ at /\S+:\d+ ", "", inner).strip(" ."):
            return inner
    return otherwise
