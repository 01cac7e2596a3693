"""A job that waits in a call that does not return is interrupted."""

import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from worker import shutdown_flag
from worker.jobs import interrupt_signal
from worker.jobs.interrupt_signal import at_most
from worker.jobs.running_job import Cancelled, Requeue, RunningJob
from worker.settings.section_models import JobSettings


class Reporter:
    """Shows nothing, and says that the job is cancelled if it is."""

    def __init__(self, *, cancelled: bool) -> None:
        self._cancelled = cancelled

    def report(self, progress: object) -> None:
        pass

    def cancelled(self) -> bool:
        return self._cancelled


def running(*, cancelled: bool) -> RunningJob:
    record: Any = SimpleNamespace(
        id="job", attempts=1, fence=1, snoozed_since=None, created_at=datetime.now(UTC), parent=None, lease_until=None
    )
    ledger = SimpleNamespace(renew=lambda *_, **__: None)
    context: Any = SimpleNamespace(
        settings=SimpleNamespace(jobs=JobSettings()), catalogue=SimpleNamespace(ledger=ledger, fenced=lambda *_: None),
        stores=None, admission=None, pauses=None,
    )  # fmt: skip
    return RunningJob(record, context, Reporter(cancelled=cancelled))


def wait_for_ever() -> None:
    """Read from a peer that says nothing, as an SDK does: every Exception is a fault of the connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        while True:
            with suppress(Exception):
                ours.recv(1)


@pytest.mark.parametrize("why", ["cancelled", "shut down"])
def test_a_job_that_is_stuck_in_a_call_stops_within_seconds(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel, and the end of the grace of a shutdown, interrupt a read that no byte ends."""
    monkeypatch.setattr(shutdown_flag, "grace_is_over", lambda: why == "shut down")
    begin = time.monotonic()
    with pytest.raises(Cancelled if why == "cancelled" else Requeue), running(cancelled=why == "cancelled"):
        wait_for_ever()
    assert time.monotonic() - begin < 60


class Dropping:
    """Waits where Python prints an exception and drops it."""

    def __del__(self) -> None:
        wait_for_ever()


def drop_and_wait() -> None:
    Dropping()
    wait_for_ever()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_dropped_is_repeated() -> None:
    """An exception in a weakref callback or in `__del__` is only printed: the wait ends nevertheless."""
    begin = time.monotonic()
    with pytest.raises(TimeoutError), at_most(0.1):
        drop_and_wait()
    assert time.monotonic() - begin < 60


def test_a_request_that_cleans_up_is_not_interrupted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt there is time for the abort of an upload; one that hangs is interrupted again."""
    monkeypatch.setattr("worker.jobs.heartbeats.LONGEST", 0.05)
    cleaned = []

    def write() -> None:
        try:
            wait_for_ever()
        finally:
            time.sleep(interrupt_signal.CLEAN_UP / 2)  # an abort that takes a while
            cleaned.append(True)
            wait_for_ever()

    with pytest.raises(Cancelled), running(cancelled=True):
        write()
    assert cleaned == [True]


def test_a_job_that_nothing_stops_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes long is no reason to stop."""
    monkeypatch.setattr("worker.jobs.running_job._STUCK_AFTER", 0.0)
    monkeypatch.setattr("worker.jobs.heartbeats.LONGEST", 0.01)
    begun = time.monotonic()
    with running(cancelled=False):
        time.sleep(0.2)  # the call that takes long
    assert time.monotonic() - begun >= 0.2
