"""One thread sends the heartbeats of all jobs of a process, and another one renews their leases."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.waiting import WITHIN
from worker.jobs.heartbeats import Heartbeats
from worker.jobs.running_job import RunningJob
from worker.settings.section_models import JobSettings


@pytest.fixture
def heartbeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heartbeats]:
    """Return heartbeats that take milliseconds."""
    monkeypatch.setattr("worker.jobs.heartbeats.LONGEST", 0.005)
    made = Heartbeats("heartbeats")
    yield made
    for job in ("one", "two"):
        made.end(job)
    made._every = 1.0


def refuse_thread(*_: object) -> None:
    """Answer as a system that allows no more threads."""
    raise RuntimeError("can't start new thread")


def test_all_jobs_of_a_process_beat_in_one_thread(heartbeats: Heartbeats) -> None:
    """Two jobs share a thread, and each has its own heartbeat."""
    threads: dict[str, threading.Thread] = {}
    beaten = {"one": threading.Event(), "two": threading.Event()}

    def beat(job: str) -> None:
        threads[job] = threading.current_thread()
        beaten[job].set()

    heartbeats.begin("one", lambda: beat("one"), every=1)
    heartbeats.begin("two", lambda: beat("two"), every=1)
    assert all(event.wait(WITHIN) for event in beaten.values())
    assert threads["one"] is threads["two"] is not threading.current_thread()


def test_a_heartbeat_that_fails_stops_no_other(heartbeats: Heartbeats) -> None:
    """What one heartbeat raises is logged; the others go on, and so does its own."""
    failures = threading.Semaphore(0)
    beaten = threading.Event()

    def fail() -> None:
        failures.release()
        msg = "a bug"
        raise ArithmeticError(msg)

    heartbeats.begin("one", fail, every=1)
    heartbeats.begin("two", beaten.set, every=1)
    assert failures.acquire(timeout=WITHIN)
    assert failures.acquire(timeout=WITHIN)
    assert beaten.wait(WITHIN)


def test_no_heartbeat_is_under_way_once_they_have_ended(heartbeats: Heartbeats) -> None:
    """A job that has ended waits for its last heartbeat, and none follows."""
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def beat() -> None:
        begun.set()
        go_on.wait(WITHIN)
        over.set()

    heartbeats.begin("one", beat, every=1)
    assert begun.wait(WITHIN)
    ending = threading.Thread(target=heartbeats.end, args=("one",))
    ending.start()
    ending.join(0.05)
    assert ending.is_alive()
    go_on.set()
    ending.join(WITHIN)
    assert over.is_set()
    over.clear()
    beaten = threading.Event()
    heartbeats.begin("two", beaten.set, every=1)
    assert beaten.wait(WITHIN)
    assert not over.is_set()


def test_a_process_that_had_no_room_for_the_thread_gets_it_with_its_next_job(
    heartbeats: Heartbeats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no later job of the process would renew its lease."""
    before = [thread.name for thread in threading.enumerate()]  # of earlier tests
    with monkeypatch.context() as full:
        full.setattr(threading, "_start_new_thread", refuse_thread)
        with pytest.raises(RuntimeError, match="thread"):
            heartbeats.begin("one", lambda: None, every=1)
    heartbeats.begin("two", lambda: None, every=1)
    assert sorted(thread.name for thread in threading.enumerate()) == sorted([*before, "heartbeats"])


def test_a_lease_is_renewed_while_a_report_waits_for_redis() -> None:
    """A silent Redis holds the thread that reports for seconds, and a lease may be as short."""
    renewed, reported, waited = threading.Event(), threading.Event(), []

    class Reporter:
        """Waits as for a silent Redis."""

        def report(self, _progress: object) -> None:
            renewed.clear()
            waited.append(renewed.wait(5))
            reported.set()

        def cancelled(self) -> bool:
            return False

    record: Any = SimpleNamespace(
        id="job", attempts=1, fence=1, snoozed_since=None, created_at=datetime.now(UTC), parent=None, lease_until=None
    )
    ledger = SimpleNamespace(renew=lambda *_, **__: renewed.set())
    context: Any = SimpleNamespace(
        settings=SimpleNamespace(jobs=JobSettings(lease=timedelta(milliseconds=90))),
        catalogue=SimpleNamespace(ledger=ledger, fenced=lambda *_: None), stores=None, admission=None, pauses=None,
    )  # fmt: skip
    with RunningJob(record, context, Reporter()):
        assert reported.wait(WITHIN)
    assert waited[0]
