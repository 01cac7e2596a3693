"""Pass the trace of a service on to the worker, where the service uses OpenTelemetry."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_continued: ContextVar[str | None] = ContextVar("traceparent", default=None)


@contextmanager
def continued_trace(traceparent: str | None) -> Iterator[None]:
    """Let the messages that the block sends belong to the trace of a W3C `traceparent`; another text names none."""
    valid = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
    token = _continued.set(traceparent if valid else None)
    try:
        yield
    finally:
        _continued.reset(token)


def trace_headers() -> dict[str, str]:
    """Return the W3C trace context of the caller as headers of a message; none where nothing is traced.

    OpenTelemetry is no dependency: a service that traces has imported it already.
    """
    if traceparent := _continued.get():
        return {"traceparent": traceparent}
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {"traceparent": carrier["traceparent"]} if "traceparent" in carrier else {}
