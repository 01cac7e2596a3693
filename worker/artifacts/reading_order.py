"""Decide which copy of an artifact is read first: a good one, in a store that answers, nearby."""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.catalogue import Copy
from worker.storage.config import StoreConfig

_AVOIDED_FOR = 30.0
"""Seconds for which a store that did not answer is tried last: its SDK takes seconds until it gives up."""


@dataclass(slots=True)
class AvoidedStores:
    """The stores that failed a moment ago; safe for threads."""

    _until: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, store: str) -> None:
        """Record that a store failed: it is tried last for some seconds."""
        with self._lock:
            self._until[store] = time.monotonic() + _AVOIDED_FOR

    def has(self, store: str) -> bool:
        """Return whether a store is to be tried last."""
        with self._lock:
            return self._until.get(store, 0.0) > time.monotonic()


def reading_order(copies: Iterable[Copy], stores: Mapping[str, StoreConfig], avoided: AvoidedStores) -> list[Copy]:
    """Return copies in configured stores, the one to read from first."""
    order = list(stores)

    def rank(copy: Copy) -> tuple[bool, bool, bool, int]:
        local = stores[copy.store].type == "filesystem"
        return not copy.state.good, avoided.has(copy.store), not local, order.index(copy.store)

    return sorted(copies, key=rank)
