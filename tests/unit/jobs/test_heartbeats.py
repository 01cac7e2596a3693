"""One thread sends the heartbeats of all jobs of a process, and another one renews their leases."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.waiting import WITHIN
from worker import clock
from worker.catalogue import LostLease
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


class Reporter:
    """Reports to nothing."""

    def report(self, _progress: object) -> None:
        """Do nothing."""

    def cancelled(self) -> bool:
        """Return that no client has cancelled the job."""
        return False


def job_of(
    renew: Callable[..., object], reporter: Reporter, lease: timedelta, *, until: datetime | None = None
) -> RunningJob:
    """Return a job that renews its lease by this function."""
    record: Any = SimpleNamespace(
        id="job", attempts=1, fence=1, snoozed_since=None, created_at=datetime.now(UTC), parent=None, lease_until=until
    )
    ledger = SimpleNamespace(renew=renew)
    context: Any = SimpleNamespace(
        settings=SimpleNamespace(jobs=JobSettings(lease=lease)),
        catalogue=SimpleNamespace(ledger=ledger, fenced=lambda *_: None), stores=None, admission=None, pauses=None,
    )  # fmt: skip
    return RunningJob(record, context, reporter)


def test_a_lease_is_renewed_while_a_report_waits_for_redis() -> None:
    """A silent Redis holds the thread that reports for seconds, and a lease may be as short."""
    renewed, reported, waited = threading.Event(), threading.Event(), []

    class Silent(Reporter):
        """Waits as for a silent Redis."""

        def report(self, _progress: object) -> None:
            renewed.clear()
            waited.append(renewed.wait(5))
            reported.set()

    with job_of(lambda *_, **__: renewed.set(), Silent(), timedelta(milliseconds=90)):
        assert reported.wait(WITHIN)
    assert waited[0]


def test_a_lease_counts_from_before_the_wait_for_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that waited for a lock or a disk may be over when it is recorded: another job may write by then."""
    now, waits, renewals = 1000.0, iter([40.0, 20.0, 0.0]), 0
    monkeypatch.setattr(clock, "uptime", lambda: now)

    def renew(*_: object, **__: object) -> None:
        nonlocal now, renewals
        renewals += 1
        now += next(waits)

    job = job_of(renew, Reporter(), timedelta(seconds=30))
    job.confirm_lease()
    assert renewals == 0, "it has just begun"
    now += 16
    job.confirm_lease()
    assert renewals == 2, "the first renewal was over when it was recorded"
    job.confirm_lease()
    assert renewals == 3, "a change may take some of the rest"
    job.confirm_lease()
    job._renew()
    assert renewals == 3
    now += 11
    waits = iter([12.0, 0.0])
    for renewed in (4, 5, 5):
        job._renew()
        assert renewals == renewed, "so does the thread that renews it"
    waits = iter([0.0])
    job_of(renew, Reporter(), timedelta(seconds=30), until=clock.now() + timedelta(seconds=10)).confirm_lease()
    assert renewals == 6, "its worker was frozen, or the disk slow, since the lease began"


def test_a_lease_that_a_heartbeat_finds_lost_stops_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its next bytes and before its next change, although the lease would have lasted."""
    now = 1000.0
    monkeypatch.setattr(clock, "uptime", lambda: now)

    def renew(*_: object, **__: object) -> None:
        raise LostLease("job")

    job = job_of(renew, Reporter(), timedelta(seconds=30))
    now += 11
    job.confirm_lease()
    job._renew()
    for stopped in (job.confirm_lease, job.heartbeat, lambda: job.advance(1)):
        with pytest.raises(LostLease):
            stopped()
