"""A job that waits in a call that does not return is interrupted."""

import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from worker.jobs import shutdown_flag
from worker.jobs.running_job import Cancelled, Requeue, RunningJob
from worker.settings.sections import JobSettings


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
        id="job", attempts=1, fence=1, put_off_since=None, created_at=datetime.now(UTC), parent=None
    )
    ledger: Any = SimpleNamespace(renew=lambda *_, **__: None)
    return RunningJob(record, ledger, JobSettings(), Reporter(cancelled=cancelled))


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
    monkeypatch.setattr(shutdown_flag, "grace_is_over", lambda _: why == "shut down")
    begin = time.monotonic()
    with pytest.raises(Cancelled if why == "cancelled" else Requeue), running(cancelled=why == "cancelled"):
        wait_for_ever()
    assert time.monotonic() - begin < 60


def test_a_job_that_nothing_stops_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes long is no reason to stop."""
    monkeypatch.setattr("worker.jobs.running_job._STUCK_AFTER", 0.0)
    monkeypatch.setattr("worker.jobs.heartbeats.LONGEST", 0.01)
    with running(cancelled=False):
        time.sleep(0.2)
