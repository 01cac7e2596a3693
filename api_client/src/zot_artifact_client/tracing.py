"""Pass the trace of a service on to the worker, where the service uses OpenTelemetry."""

import sys


def trace_headers() -> dict[str, str]:
    """Return the W3C trace context of the caller as headers of a message; none where nothing is traced.

    OpenTelemetry is no dependency: a service that traces has imported it already.
    """
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {"traceparent": carrier["traceparent"]} if "traceparent" in carrier else {}
