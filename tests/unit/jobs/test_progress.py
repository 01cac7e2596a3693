"""No job waits for its progress to be published."""

import logging
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from amqp import ConnectionForced
from celery import Celery

from tests.servers import Valkey
from tests.servers.process import free_port
from worker.jobs.progress import CeleryReporter
from worker.jobs.result_backend import use_atomic_result_backend
from zot_artifact_client.contract import CANCEL_KEY, Progress


@pytest.fixture
def reporter() -> Iterator[Callable[[str], CeleryReporter]]:
    """Return the reporter of a job whose application has this result backend."""
    apps: list[Any] = []

    def made(backend: str) -> CeleryReporter:
        app = Celery("test", backend=backend, broker="memory://", set_as_current=False)
        use_atomic_result_backend(app)
        app.backend.always_retry = True
        apps.append(app)

        @app.task(shared=False)  # else it would be a task of every later application of this process
        def task() -> None:
            """Represent any task."""

        task.push_request(id="job-1")
        return CeleryReporter(task)

    yield made
    for app in apps:
        app.close()


def test_progress_is_not_kept_back_by_a_result_backend_that_is_away(
    reporter: Callable[[str], CeleryReporter],
) -> None:
    """A child waits for the backend with a job's end, not with its progress: the transfer goes on."""
    begun = time.monotonic()
    reporter(f"redis://127.0.0.1:{free_port()}/0").report(Progress())
    assert time.monotonic() - begun < 60


def test_a_result_backend_without_redis_tells_of_no_cancellation(reporter: Callable[[str], CeleryReporter]) -> None:
    """A job is not cancelled where the backend is no Redis, also where it has a client of another kind."""
    assert reporter("cache+memory://").cancelled() is False


def test_an_event_of_progress_names_its_job_whichever_thread_reports_it(
    reporter: Callable[[str], CeleryReporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the heartbeats reports, and those of transfers: to Celery none of them runs a task."""
    made = reporter("cache+memory://")
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("celery.events.dispatcher.EventDispatcher.send", lambda _, kind, **fields: sent.append(fields))
    thread = threading.Thread(target=made.report, args=(Progress(),))
    thread.start()
    thread.join()
    assert [fields["uuid"] for fields in sent] == ["job-1"]


def test_no_job_ends_because_rabbitmq_closes_its_connection(
    reporter: Callable[[str], CeleryReporter], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator closes all connections before maintenance; RabbitMQ's error is none of the system and none of kombu.

    `rabbitmqctl close_all_connections` was seen to raise it here.
    """

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionForced

    monkeypatch.setattr("celery.events.dispatcher.EventDispatcher.send", refuse)
    with caplog.at_level(logging.DEBUG, "worker.jobs.progress"):
        reporter("cache+memory://").report(Progress())
    assert "Flower does not get its progress: ConnectionForced" in caplog.text


class ClosingServer(socketserver.ThreadingTCPServer):
    """Closes every connection, and counts them."""

    def __init__(self) -> None:
        self.connections = 0
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


def test_a_result_backend_that_does_not_answer_is_not_asked_for_a_while(
    reporter: Callable[[str], CeleryReporter],
) -> None:
    """A transfer would otherwise wait for it every second, with its progress and for a request to cancel."""
    with ClosingServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        made = reporter(f"redis://127.0.0.1:{server.server_address[1]}/0")
        made.report(Progress())
        asked = server.connections
        assert asked > 0
        made.report(Progress())
        assert not made.cancelled()
        assert server.connections == asked
        server.shutdown()


def test_a_job_is_cancelled_while_the_result_backend_refuses_its_progress(
    reporter: Callable[[str], CeleryReporter], valkey: Valkey
) -> None:
    """A full server takes no progress, and still says that the job was cancelled before."""
    valkey.empty()
    with redis.Redis.from_url(valkey.url) as client:
        client.set(CANCEL_KEY.format(job="job-1"), 1)
        client.config_set("maxmemory", 1)
        try:
            made = reporter(valkey.url)
            made.report(Progress())
            assert made.cancelled()
        finally:
            client.config_set("maxmemory", 0)
