"""A command waits for a store that takes no job: without limit for a pause, up to ten minutes for anything else."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.limits import store_wait
from worker.limits.limited_store import LimitedStore, NoJob
from worker.limits.snooze import Paused, Snooze
from worker.limits.store_wait import StoreWait
from worker.settings.section_models import StoreLimits
from worker.storage.errors import Unavailable

PAUSED, BUSY = Paused("nas: the store is paused", 60.0), Snooze("nas: 2 jobs use the store", 1.0)


class _Admission:
    """The limits of a store that takes no job for some of its answers; it is asked for every request."""

    def __init__(self, *answers: Snooze | None) -> None:
        self._answers = iter(answers)

    def limits_of(self, _: str) -> StoreLimits:
        return StoreLimits()

    def check(self, _: str) -> bool:
        if answer := next(self._answers, None):
            raise answer
        return False

    def record_failure(self, *_: str) -> None:
        """Count nothing."""


class _Buckets:
    """A store with two buckets."""

    name, capabilities = "nas", None

    def list_buckets(self) -> list[str]:
        return ["a", "b"]

    def list_objects(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[str]:
        yield from self.list_buckets()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each sleep end at once, as if its time had passed."""
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(store_wait, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr("worker.limits.limited_store._ADMITTED_FOR", 0)


def _waiting(*answers: Snooze | None) -> tuple[LimitedStore, list[Any]]:
    told: list[Any] = []
    admission = cast("Any", _Admission(*answers))
    return LimitedStore(cast("Any", _Buckets()), admission, NoJob("c"), wait=StoreWait("nas", told.append)), told


def test_the_time_of_a_pause_does_not_count_in_what_follows_it() -> None:
    """After a pause of 20 minutes the store is waited for while others use it, and its answer is returned."""
    store, told = _waiting(*[PAUSED] * 240, *[BUSY] * 5)
    assert store.list_buckets() == ["a", "b"]
    assert told == ["nas: the store is paused: waiting"]


def test_a_store_that_takes_no_job_for_ten_minutes_is_unavailable() -> None:
    """The error tells for how long, and why."""
    store, _ = _waiting(*[BUSY] * 1000)
    with pytest.raises(Unavailable, match="nas: it took no job for 601 s: nas: 2 jobs use the store"):
        store.list_buckets()


def test_a_probe_alone_ends_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose circuit breaker closes, and whose requests fail all the same, is given up after ten minutes."""
    store, told = _waiting(*([BUSY] * 100 + [None]) * 7)

    def fail(_: _Buckets) -> list[str]:
        raise Unavailable("no disk")

    monkeypatch.setattr(_Buckets, "list_buckets", fail)
    for _ in range(6):
        with pytest.raises(Unavailable, match="no disk"):
            store.list_buckets()
    with pytest.raises(Unavailable, match="it took no job for 601 s"):
        store.list_buckets()
    assert len(told) == 1


def test_a_listing_waits_for_its_first_row() -> None:
    """The store takes the listing only when it is asked for a row, and then all rows are returned, once."""
    store, told = _waiting(BUSY, BUSY)
    rows = store.list_objects("b")
    assert told == []
    assert [str(row) for row in rows] == ["a", "b"]
    assert told == ["nas: 2 jobs use the store: waiting"]
