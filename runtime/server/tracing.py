"""W3C Trace Context, and one OpenTelemetry span a request where the process has a tracer provider.

Nothing here imports OpenTelemetry: who configures a provider has imported it, and nobody else has to wait for it.
https://www.w3.org/TR/trace-context/, https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

from .watched import CLIENT_LEFT, Seen

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1
_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))


class Traceparent(NamedTuple):
    """What of the caller's trace a request belongs to."""

    trace_id: str
    parent_id: str
    sampled: bool


def traceparent(headers: Mapping[bytes, bytes]) -> Traceparent | None:
    """The header's value; None where there is none, or one that is malformed: the standard has it ignored."""
    value = headers.get(b"traceparent")
    match = _TRACEPARENT.fullmatch(value) if value else None
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    known = version == b"00" and not more  # a later version may say more behind a dash
    if not (known or b"00" < version < b"ff") or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return Traceparent(trace_id.decode(), parent_id.decode(), bool(int(flags, 16) & _SAMPLED))


def tracing() -> Tracing | None:
    """What makes spans; None where this process has no tracer provider by now."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Tracing(trace, provider.get_tracer("trueport", metadata.version("trueport")))


class Tracing:
    """Makes spans of what was seen. trace: the module `opentelemetry.trace`."""

    def __init__(self, trace: Any, tracer: Any) -> None:
        self._trace = trace
        self._tracer = tracer

    def __call__(self, seen: Seen) -> None:
        """One span of kind SERVER, below the caller's where it named one."""
        if not seen.method:  # no request came of it
            return
        method = seen.method if seen.method in _METHODS else "HTTP"
        span = self._tracer.start_span(
            f"{method} {seen.route}".rstrip(),
            context=self._parent(seen.headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=_http_attributes(seen) | _attributes(seen),
            start_time=seen.begun_ns,
        )
        if seen.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(seen.begun_ns + seen.duration_ns)

    def join(self, seen: Seen) -> None:
        """Where the framework around has begun a span for this request: what is known of the model, on that one."""
        span = self._trace.get_current_span()
        if span.get_span_context().is_valid:
            span.set_attributes(_attributes(seen))
        else:
            self(seen)

    def _parent(self, headers: Mapping[bytes, bytes]) -> Any:
        """The context that the caller sent; without one the span begins a trace."""
        came, trace = traceparent(headers), self._trace
        if came is None:
            return trace.set_span_in_context(trace.INVALID_SPAN)
        context = trace.SpanContext(
            int(came.trace_id, 16),
            int(came.parent_id, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(came.sampled),
            trace_state=trace.TraceState.from_header([headers.get(b"tracestate", b"").decode("latin1")]),
        )
        return trace.set_span_in_context(trace.NonRecordingSpan(context))


def _http_attributes(seen: Seen) -> dict[str, str | int]:
    """By the semantic conventions. The scheme is http: TLS is a proxy's."""
    said: dict[str, str | int] = {
        "http.request.method": seen.method,
        "url.path": seen.path,
        "url.scheme": "http",
        "network.protocol.version": seen.http_version,
    }
    if seen.method not in _METHODS:
        said |= {"http.request.method": "_OTHER", "http.request.method_original": seen.method}
    if seen.query:
        said["url.query"] = seen.query.decode("latin1")
    if agent := seen.headers.get(b"user-agent"):
        said["user_agent.original"] = agent.decode("latin1")
    if seen.route:
        said["http.route"] = seen.route
    if seen.status == CLIENT_LEFT:
        said["error.type"] = "client_left"
    else:
        said["http.response.status_code"] = seen.status
    if seen.status >= 500:
        said["error.type"] = str(seen.status)
    return said


def _attributes(seen: Seen) -> dict[str, str | int | float]:
    """Those of our own; times in seconds."""
    said: dict[str, str | int | float] = {"trueport.request_id": seen.request_id}
    if seen.model:
        said |= {"trueport.model": seen.model, "trueport.model_version": seen.model_version}
    if seen.timed is not None:
        timed = seen.timed
        said |= {
            "trueport.batch_rows": timed.waiting.batch_rows,
            "trueport.decode_s": timed.decode_s,
            "trueport.queue_s": timed.queue_s,
            "trueport.compute_s": timed.compute_s,
        }
    return said
