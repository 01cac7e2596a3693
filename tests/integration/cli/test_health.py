"""`health` tells a deaf worker from an idle one and from a broker that is away, with real processes."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.servers import Valkey
from tests.servers.process import frozen
from tests.servers.worker import Beat, Worker
from tests.waiting import until
from worker import cli
from worker.beat_scheduler import last_tick
from worker.cli import health
from worker.cli.health import State
from zot_artifact_client import ArtifactClient
from zot_artifact_client.broker_urls import redis_client
from zot_artifact_client.contract import Queue

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(tmp_path: Path, broker: Valkey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return what runs `health` and returns its exit status and its line."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", broker.url)
    monkeypatch.setattr(health, "_ANSWERS_WITHIN", 2.0)
    monkeypatch.setattr(health, "_STUCK_AFTER", 1.0)

    def run(*arguments: str) -> tuple[int, str]:
        status = cli.run(["health", *arguments])
        return status, capsys.readouterr().out

    return run


def test_an_idle_worker_is_good_and_a_deaf_one_is_bad(ask: Ask, broker: Valkey, tmp_path: Path) -> None:
    """A worker that waits for jobs is good; one that is stopped, and one that consumes from no queue, are bad."""
    with Worker(tmp_path, broker.url, concurrency=1) as worker:
        assert ask("worker", "--ready")[0] == 0
        with frozen(worker.pid):
            stopped = ask("worker")
        assert (stopped[0], "does not answer" in stopped[1]) == (1, True)
        with Celery(broker=broker.url, set_as_current=False) as app:
            for queue in Queue:
                app.control.cancel_consumer(queue.value, reply=True)
        status, told = ask("worker")
        assert (status, "consumes from no queue" in told) == (1, True)


def test_a_worker_that_is_not_there_is_bad(ask: Ask) -> None:
    """Without a worker of that name the line names it."""
    status, told = ask("worker", "--node", "worker@nowhere")
    assert (status, "worker@nowhere does not answer" in told) == (1, True)


def test_a_free_worker_that_leaves_a_message_is_bad(ask: Ask, broker: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that answers with a free process and takes nothing is bad; a busy one is good."""
    free = State(("interactive",), processes=2, free=1)
    monkeypatch.setattr(health, "_state", lambda *_: free)
    with ArtifactClient(broker.url) as client:
        client.verify("releases", "a")
    status, told = ask("worker")
    assert (status, "takes nothing from interactive" in told) == (1, True)
    monkeypatch.setattr(health, "_state", lambda *_: State(("interactive",), processes=2, free=0))
    assert ask("worker")[0] == 0
    monkeypatch.setattr(health, "_state", lambda *_: free)
    with redis_client(broker.url) as client:
        client.delete("interactive")
    assert ask("worker")[0] == 0


def test_a_broker_that_is_away_is_no_fault_of_the_worker(ask: Ask, broker: Valkey) -> None:
    """A restart would not help, so the worker stays; it is not ready meanwhile."""
    broker.kill()
    assert ask("worker")[0] == 0
    assert ask("worker", "--ready")[0] == 3
    assert ask("beat")[0] == 0
    assert ask("beat", "--ready")[0] == 3


def test_a_worker_without_a_catalogue_is_not_ready(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It answers, so it is not restarted, but it gets no work."""
    monkeypatch.setattr(health, "_state", lambda *_: State(("interactive",), processes=1, free=1))
    monkeypatch.setenv("ZOT_CATALOGUE", f"sqlite:///{tmp_path}/absent.sqlite3")
    assert ask("worker", "--node", f"celery@{socket.gethostname()}")[0] == 0
    status, told = ask("worker", "--ready")
    assert (status, "there is no catalogue" in told) == (1, True)


def test_beat_is_good_while_its_ticks_are_recorded(ask: Ask, broker: Valkey, tmp_path: Path) -> None:
    """Without a tick beat is bad; beside a real one it is good."""
    assert ask("beat")[0] == 1
    with Beat(tmp_path, broker.url), redis_client(broker.url) as client:
        until(lambda: last_tick(client) is not None)
        assert ask("beat")[0] == 0
