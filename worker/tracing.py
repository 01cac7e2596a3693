"""Traces for OpenTelemetry, where an endpoint is configured: client, broker, worker and stores are one trace."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from zot_artifact_client.text_escaping import bounded, without_secrets

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SERVICE = "zot-artifact-worker"
_MESSAGE = 500
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_REPORT_EVERY = 600.0
"""Seconds between two lines about a collector that takes no spans: the exporter writes four every few seconds."""
_tracer: Any = None
_provider: Any = None
_job: Any = None
"""The context of the running job's span: threads of a page do not inherit it."""


class _Seldom(logging.Filter):
    """Lets a line pass if none has passed for some minutes."""

    def __init__(self) -> None:
        super().__init__()
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < _REPORT_EVERY:
            return False
        self._last = now
        record.msg = f"traces are not sent, and jobs continue: {record.getMessage()}"
        record.args = ()
        return True


def start() -> None:
    """Begin to export spans of this process, if an endpoint is configured; after the fork, because of its thread."""
    global _tracer, _provider  # noqa: PLW0603 - one process has one exporter
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("no traces: an endpoint is configured, and the extra `tracing` is not installed")
        return
    logging.getLogger(_EXPORTER).addFilter(_Seldom())
    name = os.environ.get("OTEL_SERVICE_NAME") or _SERVICE
    _provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer(_SERVICE)


def stop() -> None:
    """Export the last spans."""
    global _tracer, _provider  # noqa: PLW0603
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


def job_span(traceparent: object, **attributes: object) -> AbstractContextManager[None]:
    """Trace one attempt at a job, as part of the trace that its message names."""
    return nullcontext() if _tracer is None else _job_span(traceparent, attributes)


def span(name: str, **attributes: object) -> AbstractContextManager[None]:
    """Trace what the block does, as part of the running job; it may end in another thread than it began."""
    return nullcontext() if _tracer is None else _span(name, attributes)


@contextmanager
def _job_span(traceparent: object, attributes: dict[str, object]) -> Iterator[None]:
    global _job  # noqa: PLW0603 - a process does one job at a time
    from celery.exceptions import Ignore, Retry
    from opentelemetry.context import get_current
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": traceparent} if isinstance(traceparent, str) else {}
    parent = TraceContextTextMapPropagator().extract(carrier)
    with _tracer.start_as_current_span(
        f"job {attributes.get('kind')}", context=parent, kind=SpanKind.CONSUMER, attributes=_named(attributes),
        record_exception=False, set_status_on_exception=False,
    ) as current:  # fmt: skip
        _job = get_current()
        try:
            yield
        except (Ignore, Retry):  # how Celery is told that there is no result, or a later one
            raise
        except BaseException as error:
            _fail(current, error)
            raise
        finally:
            _job = None


@contextmanager
def _span(name: str, attributes: dict[str, object]) -> Iterator[None]:
    current = _tracer.start_span(name, context=_job, attributes=_named(attributes))
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        _fail(current, error)
        raise
    finally:
        current.end()


def _fail(current: Any, error: BaseException) -> None:
    """Set what failed, without a traceback: those of SDKs may have signed URLs."""
    from opentelemetry.trace import Status, StatusCode

    told = bounded(without_secrets(str(error)), _MESSAGE)
    current.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {told}"))


def _named(attributes: dict[str, object]) -> dict[str, str | int]:
    found = {f"zot.{name}": value for name, value in attributes.items() if value is not None}
    return {name: value if isinstance(value, int) else str(value) for name, value in found.items()}
