"""Stores as a job sees them, whose requests fail on demand."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.memory_driver import MemoryDriver
from worker.catalogue import LostLease
from worker.jobs.running_job import Cancelled
from worker.limits.admission import Admission
from worker.limits.limited_store import LimitedStore
from worker.storage import Store
from worker.storage.integrity.verifying_reader import Readable


class Job:
    """As much of a running job as the limits see."""

    def __init__(self, id_: str = "job") -> None:
        self.id = id_
        self.fence = 1
        self.stop = self.lost = False

    def heartbeat(self, _count: int = 0) -> None:
        if self.stop:
            raise Cancelled(self.id)

    def confirm_lease(self) -> None:
        if self.lost:
            raise LostLease(self.id)


class FailingDriver(MemoryDriver):
    """A store in memory whose requests fail on demand."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.error: Exception | None = None
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def stat(self, bucket, key):
        self._ask()
        return super().stat(bucket, key)

    def put(self, *args, **options):
        self._ask()
        return super().put(*args, **options)

    def open(self, *args, **options):
        self._ask()
        return super().open(*args, **options)


class UncheckedDriver(FailingDriver):
    """A store that checks no checksums, so that what it takes is read back."""

    @property
    def capabilities(self):
        return replace(super().capabilities, checks_uploads=False)


def limited(admission: Admission, name: str = "a", job: Job | None = None, *, content: bytes = b"release") -> Any:
    """Return a store as a job sees it, with one object in it, and its driver as `driver`."""
    driver = FailingDriver(name)
    store = Store(driver)
    store.write_object("releases", "app", io.BytesIO(content))
    driver.asked = 0
    bound = LimitedStore(store, admission, job or Job())
    bound.driver = driver  # type: ignore[attr-defined]
    return bound


def read(store: LimitedStore) -> bytes:
    with store.read_object("releases", "app") as reader:
        return b"".join(iter(lambda: reader.read(1000), b""))


def stat(store: LimitedStore) -> None:
    store.stat_object("releases", "app")


def write(store: LimitedStore, source: Readable | None = None, key: str = "new") -> None:
    store.write_object("releases", key, source or io.BytesIO(b"new"))


def fail_with(store: Any, error: Exception, call: Callable[[Any], object] = read) -> None:
    store.driver.error = error
    with pytest.raises(type(error)):
        call(store)
    store.driver.error = None
