"""What was asked of each model: counted once, told as Prometheus text and by the statistics extension.

Names are Triton's where it has one; the histogram of durations, which it has not, is our own. Queue and compute times
come from the batcher and so hold the requests of an embedding application too.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from ..batcher import BatcherStats
from ..errors import ClosedError, DeadlineError, OutputError, OverloadedError, RequestError, StuckError, UsageError

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets; what is slower is in the last, without one."""
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Of a failure: for the queue or the deadline; by the client; by the model; by what was asked."""


class Tally(msgspec.Struct):
    """The requests to one model. Used from one event loop."""

    success: int = 0
    success_s: float = 0.0
    """Sum of the time from a request's arrival to its answer."""
    failures: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    failure_s: float = 0.0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    """Successes by duration."""
    last_s: float = 0.0
    """Of the last success, in seconds since 1970; 0: there was none."""

    def succeeded(self, seconds: float) -> None:
        """Count an answer."""
        self.success += 1
        self.success_s += seconds
        self.last_s = time.time()
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1

    def failed(self, error: BaseException, seconds: float) -> None:
        """Count an error."""
        self.failures[_reason(error)] += 1
        self.failure_s += seconds


class Figures(NamedTuple):
    """Of one model, at one moment."""

    name: str
    version: str
    tally: Tally
    batcher: BatcherStats


def prometheus_text(models: Iterable[Figures]) -> bytes:
    """Prometheus' text format 0.0.4 (Prometheus documentation, exposition formats)."""
    figures = list(models)
    lines: list[str] = []
    for name, kind, meaning, samples in _FAMILIES:
        lines += (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
        for each in figures:
            labels = f'model="{_escaped(each.name)}",version="{_escaped(each.version)}"'
            lines += (f"{name}{suffix}{{{labels}{more}}} {value:.16g}" for suffix, more, value in samples(each))
    lines.append("")
    return "\n".join(lines).encode()


def model_statistics(figures: Figures) -> dict[str, Any]:
    """One entry of `model_stats`, after Triton's statistics extension. Nothing is cached: its counts are 0."""
    tally, batcher = figures.tally, figures.batcher
    ran = batcher.requests + batcher.failed
    none, beside = _duration(0, 0.0), _duration(ran, 0.0)  # of one request all three are counted: perf_analyzer insists
    return {
        "name": figures.name,
        "version": figures.version,
        "last_inference": int(tally.last_s * 1000),
        "inference_count": batcher.rows,
        "execution_count": batcher.batches,
        "inference_stats": {
            "success": _duration(tally.success, tally.success_s),
            "fail": _duration(sum(tally.failures.values()), tally.failure_s),
            "queue": _duration(ran, batcher.queue_s),
            "compute_input": beside,
            "compute_infer": _duration(ran, batcher.run_s),
            "compute_output": beside,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * 1e9)}


def _reason(error: BaseException) -> str:
    match error:
        case OverloadedError() | DeadlineError() | ClosedError():
            return "REJECTED"
        case asyncio.CancelledError():
            return "CANCELED"
        case OutputError() | StuckError():
            return "BACKEND"
        case RequestError() if type(error) is not RequestError:  # without a kind it is a run's own, see `storable`
            return "OTHER"
        case UsageError():
            return "OTHER"
    return "BACKEND"


def _histogram(figures: Figures) -> Iterator[tuple[str, str, float]]:
    for bound, count in zip((*BOUNDS_S, "+Inf"), accumulate(figures.tally.buckets), strict=True):
        yield "_bucket", f',le="{bound}"', count
    yield "_sum", "", figures.tally.success_s
    yield "_count", "", figures.tally.success


def _failures(figures: Figures) -> Iterator[tuple[str, str, float]]:
    return (("", f',reason="{reason}"', count) for reason, count in figures.tally.failures.items())


def _one(value: Any) -> Any:
    return lambda figures: [("", "", value(figures))]


_FAMILIES: tuple[tuple[str, str, str, Any], ...] = (
    ("nv_inference_request_success", "counter", "Requests answered with outputs", _one(lambda f: f.tally.success)),
    ("nv_inference_request_failure", "counter", "Requests answered with an error", _failures),
    ("nv_inference_count", "counter", "Rows computed", _one(lambda f: f.batcher.rows)),
    ("nv_inference_exec_count", "counter", "Batches run", _one(lambda f: f.batcher.batches)),
    (
        "nv_inference_request_duration_us",
        "counter",
        "Sum of the durations of all requests",
        _one(lambda f: 1e6 * (f.tally.success_s + f.tally.failure_s)),
    ),
    (
        "nv_inference_queue_duration_us",
        "counter",
        "Sum of the time that requests waited",
        _one(lambda f: 1e6 * f.batcher.queue_s),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Sum over requests of the time that their batch ran",
        _one(lambda f: 1e6 * f.batcher.run_s),
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Requests waiting to be run",
        _one(lambda f: f.batcher.queued_requests),
    ),
    ("trueport_request_duration_seconds", "histogram", "Durations of requests answered with outputs", _histogram),
)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
