"""The page at `/` for people, the API's page at `/docs`, and the figures that the first one draws, `/status`.

The files in `pages/` are plain HTML, CSS and JavaScript: nothing is built, nothing comes from another address, and a
strict Content-Security-Policy keeps it so. They hold nothing that is secret, so they need no token; the figures do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from ..manifest import Task
from .answers import Answer, Pair, answer_from_bytes
from .statistics import BOUNDS_S, Figures

if TYPE_CHECKING:
    from .endpoint import ModelEndpoint
    from .models import Models

FOLDER = "pages"
FILES = {
    "/": "index.html",
    "/docs": "docs.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/common.js": "common.js",
    "/docs.js": "docs.js",
}
KINDS = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
}
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SAFE: tuple[Pair, ...] = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # a few kB, and never those of an older server
)

_version = cache(version)


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model: what runs, and counters that only grow."""

    name: str
    version: str
    ready: bool
    task: Task
    variant: str
    precision: str
    runner: str
    provider: str
    device: str
    threads: int
    """Of one inference."""
    chosen: str
    """Why this variant and this runner."""
    verdict: str
    """What the replay of the golden set said; empty: it was not replayed."""
    row_shape: tuple[int, int, int]
    """(H, W, C)"""
    labels: int
    max_batch_rows: int
    max_queue_rows: int
    success: int
    """Requests answered with outputs."""
    success_s: float
    """Sum of their durations."""
    failures: dict[str, int]
    """By reason."""
    buckets: list[int]
    """Successes by duration, in the buckets that `bounds_s` bounds; the last one has no bound."""
    rows: int
    """Computed."""
    batches: int
    queue_s: float
    """Sum over requests of the time that they waited."""
    run_s: float
    """Sum over requests of the time that their batch ran."""
    queued_rows: int
    """Waiting now."""
    queued_requests: int
    """Waiting now."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Of the server, at one moment. Rates are differences of two: viewers don't disturb each other."""

    instance: str
    """Another one counts from zero: the server was started again, or several stand behind one address."""
    at_s: float
    """On the server's own clock, which only goes on."""
    version: str
    """Of trueport."""
    max_body_bytes: int
    bounds_s: tuple[float, ...]
    """Upper bounds of the buckets of durations."""
    models: list[ModelStatus]


def page_routes() -> Mapping[str, Answer]:
    """The answers that are files, by path; read once."""
    folder = files(__package__) / FOLDER
    return {
        path: answer_from_bytes((folder / name).read_bytes(), (b"content-type", KINDS[name.rpartition(".")[2]]), *SAFE)
        for path, name in FILES.items()
    }


def status(models: Models) -> Status:
    """What `GET /status` answers."""
    shared = models.shared
    return Status(
        instance=shared.instance if shared else _instance(os.getpid()),
        at_s=time.monotonic(),
        version=_version("trueport"),
        max_body_bytes=models.limits.max_body_bytes,
        bounds_s=BOUNDS_S,
        models=[
            _model_status(endpoint, figures, shared.count if shared else 1)
            for endpoint, figures in zip(models, models.figures(), strict=True)
        ],
    )


def _model_status(endpoint: ModelEndpoint, figures: Figures, processes: int) -> ModelStatus:
    session, signature = endpoint.session, endpoint.signature
    tally, batcher = figures.tally, figures.batcher
    report, limits = session.report, session.batcher.limits
    height, width, channels = signature.row_shape
    return ModelStatus(
        name=signature.name,
        version=signature.version,
        ready=endpoint.ready,
        task=session.manifest.task,
        variant=session.variant.name,
        precision=session.variant.precision,
        runner=report.name,
        provider=report.provider,
        device=report.device,
        threads=report.threads,
        chosen=session.chosen,
        verdict=endpoint.passed,
        row_shape=(height, width, channels),
        labels=len(signature.labels),
        max_batch_rows=limits.max_batch_rows,
        max_queue_rows=limits.max_queue_rows * processes,
        success=tally.success,
        success_s=tally.success_s,
        failures=tally.failures,
        buckets=tally.buckets,
        rows=batcher.rows,
        batches=batcher.batches,
        queue_s=batcher.queue_s,
        run_s=batcher.run_s,
        queued_rows=batcher.queued_rows,
        queued_requests=batcher.queued_requests,
    )


@cache
def _instance(process: int) -> str:  # noqa: ARG001 - a forked process is another instance
    return os.urandom(6).hex()
