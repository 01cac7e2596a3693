"""Record an intent before each request that begins a multipart upload, also if an SDK repeats the request by itself.

A request whose answer was lost may have begun an upload. The SDK repeats it and returns only the id of the last upload.
Without an intent for each request, cleanup would take the earlier uploads for those of another program.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from worker.storage.driver import Driver


class _Intents:
    def __init__(self, begins: Callable[[], object]) -> None:
        self._begins = begins
        self._requests = 0
        begins()

    def sends(self) -> None:
        self._requests += 1
        if self._requests > 1:
            self._begins()


_intents: ContextVar[_Intents | None] = ContextVar("_intents", default=None)


@contextmanager
def announced(driver: Driver, begins: Callable[[], object]) -> Iterator[None]:
    """Call `begins` for each request of the block that begins an upload, if the store does not mark uploads."""
    if driver.capabilities.marks_uploads:
        yield
        return
    before = _intents.set(_Intents(begins))
    try:
        yield
    finally:
        _intents.reset(before)


def request_begins(**_: Any) -> None:
    """Record that a request is about to be sent that begins an upload; a driver calls it before each one."""
    if intents := _intents.get():
        intents.sends()
