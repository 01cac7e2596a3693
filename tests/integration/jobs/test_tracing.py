"""A job is one trace from the service that sent it to the stores, as a real OTLP receiver gets it."""

import logging
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider

from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import tracing
from zot_artifact_client import ArtifactClient
from zot_artifact_client.tracing import trace_headers


class Receiver(ThreadingHTTPServer):
    """An OTLP/HTTP receiver that keeps the spans."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> list[Span]:
        """Return the spans with a name; one that the exporter sent twice, because the answer was late, counts once."""
        return list({span.span_id: span for span in self.spans if span.name == name}.values())


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest()
        sent.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.spans += [
            span for resource in sent.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class TracedWorker(Worker):
    """A worker whose spans go to a receiver at once."""

    endpoint = ""

    def environment(self) -> Mapping[str, str]:
        return {
            **super().environment(), "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100",
        }  # fmt: skip


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, object]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_client_worker_and_stores_are_one_trace(valkey: Valkey, receiver: Receiver, tmp_path: Path) -> None:
    """The job's span is a child of the service's span, and each write to a store is a child of the job's.

    All steps and pages of a batch are one trace.
    """
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"12345")
    (source / "b").write_bytes(b"67890")
    worker = TracedWorker(tmp_path, valkey.url, concurrency=1, sources__roots=f'["{source}"]')
    worker.endpoint = receiver.endpoint
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("a service")
    with worker, ArtifactClient(valkey.url) as client:
        with tracer.start_as_current_span("release") as release:
            job = client.upload(str(source / "a"), "releases", "a")
        job.wait(timeout=WITHIN)
        with tracer.start_as_current_span("check") as check:
            client.upload(str(source / "b"), "releases", "b").wait(timeout=WITHIN)
            client.batch("verify", "releases").wait(timeout=WITHIN)
        failed = client.verify("releases", "absent")
        until(lambda: receiver.named("job upload") and receiver.named("job verify"))
        until(lambda: len(receiver.named("store write")) == 4)
        until(lambda: len(receiver.named("job batch")) >= 2)  # it plans its page, and counts what that did
    ours, other = sorted(receiver.named("job upload"), key=lambda span: span.start_time_unix_nano)
    assert ours.trace_id == release.get_span_context().trace_id.to_bytes(16, "big")
    assert ours.parent_span_id == release.get_span_context().span_id.to_bytes(8, "big")
    assert attributes(ours) == {
        "zot.job": job.id, "zot.kind": "upload", "zot.artifact": "releases/a", "zot.attempt": 1,
    }  # fmt: skip
    writes = receiver.named("store write")
    assert {span.parent_span_id for span in writes} == {ours.span_id, other.span_id}
    assert {attributes(span)["zot.store"] for span in writes} == {"primary", "dr"}
    steps = [*receiver.named("job batch"), *receiver.named("job page")]
    assert len(steps) >= 3
    assert {span.trace_id for span in steps} == {check.get_span_context().trace_id.to_bytes(16, "big")}
    [other] = receiver.named("job verify")
    assert (other.trace_id != ours.trace_id, other.status.code) == (True, 2)
    assert "absent is not in the catalogue" in other.status.message
    assert attributes(other)["zot.job"] == failed.id


def test_a_collector_that_is_away_is_told_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """Of what the exporter writes for each batch of spans, one line in some minutes reaches the log, with its cause."""
    exporter = logging.getLogger("an exporter")
    exporter.addFilter(tracing._Seldom())
    for attempt in range(3):
        exporter.warning("refused, attempt %d", attempt)
    assert caplog.messages == ["traces are not sent, and jobs continue: refused, attempt 0"]


def test_nothing_is_traced_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without an endpoint makes no exporter, and a message of a service without a trace has no header."""
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    tracing.start()
    assert tracing._tracer is None
    with tracing.job_span("nonsense", kind="upload"), tracing.span("store write", store="dr"):
        assert trace_headers() == {}
