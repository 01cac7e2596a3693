"""What a process of a worker counts and times, kept in memory until it is added to the totals of the fleet.

A child of a worker has no port of its own, and its registry dies with it. So each process adds what it counted to one
Redis hash, every few seconds, and the exporter reads that hash, see `worker.metrics`.
"""

import os
import threading
from bisect import bisect_left
from collections.abc import Mapping

SEPARATOR = "|"
"""Between the parts of a field. No label has it: they are names of stores, kinds and classes of errors."""
_LONGEST_LABEL = 128

METERS: "dict[str, Meter]" = {}
"""All meters by name."""
_counted: dict[str, float] = {}
_lock = threading.Lock()


class Meter:
    """A counter, or with `buckets` a histogram, that has one value for each combination of its labels.

    Labels are names of stores, kinds of jobs and classes of errors: sets that do not grow with the artifacts. Neither
    a key nor a URL may be one.
    """

    def __init__(self, name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...] = ()) -> None:
        self.name = name
        self.about = about
        self.labels = labels
        self.buckets = buckets
        self._fields: dict[tuple[str, ...], tuple[str, ...]] = {}
        METERS[name] = self

    def add(self, *labels: str, count: float = 1) -> None:
        """Add to the counter."""
        field = self._fields[labels][-1] if labels in self._fields else self._named(labels)[-1]
        with _lock:
            _counted[field] = _counted.get(field, 0) + count

    def observe(self, *labels: str, value: float) -> None:
        """Count a value in its bucket of the histogram, and add it to the sum."""
        fields = self._fields[labels] if labels in self._fields else self._named(labels)
        bucket, total = fields[bisect_left(self.buckets, value)], fields[-1]
        with _lock:
            _counted[bucket] = _counted.get(bucket, 0) + 1
            _counted[total] = _counted.get(total, 0) + value

    def _named(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the fields of some labels, made once: the buckets and the sum, or the counter alone."""
        if len(labels) != len(self.labels):
            msg = f"{self.name} has the labels {self.labels}, not {labels}"
            raise ValueError(msg)
        field = SEPARATOR.join((self.name, *(each[:_LONGEST_LABEL] for each in labels)))
        parts = [*map(str, range(len(self.buckets) + 1)), "sum"] if self.buckets else []
        found = self._fields[labels] = tuple(f"{field}{SEPARATOR}{part}" for part in parts) or (field,)
        return found


def drain() -> dict[str, float]:
    """Return what was counted since the last call, by field, and begin at zero."""
    global _counted
    with _lock:
        counted, _counted = _counted, {}
    return counted


def restore(counted: Mapping[str, float]) -> None:
    """Add what was drained and could not be sent; it is sent with the next counts."""
    with _lock:
        for field, count in counted.items():
            _counted[field] = _counted.get(field, 0) + count


def _forget() -> None:
    """Begin at zero in a forked process: its parent sends what it has counted itself."""
    global _counted, _lock
    _counted, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget)

_FAST = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_SLOW = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 300.0, 3600.0)

RETRIES = Meter("job_retries", "Attempts that ended with a transient error.", ("kind", "error"))
SNOOZES = Meter("job_snoozes", "Jobs given back for later at no cost to their attempts.", ("kind",))
LEASE_RECOVERIES = Meter("lease_recoveries", "Jobs taken over from a worker that had died.", ("kind",))
RESENT = Meter("messages_resent", "Messages sent again: lost, or held by a worker that had died.", ("reason",))
STORE_BYTES = Meter("store_bytes", "Bytes read from and written to a store.", ("store", "verb"))
STORE_OBJECTS = Meter("store_objects", "Objects that a store was asked for, by verb.", ("store", "verb"))
STORE_ERRORS = Meter("store_errors", "Errors of a store by class, those about one object included.", ("store", "error"))
STORE_SECONDS = Meter(
    "store_operation_seconds",
    "Seconds of an operation of a store; of read and list until the caller has taken all.",
    ("store", "verb"),
    _SLOW,
)
TRANSACTIONS = Meter("catalogue_transaction_seconds", "Seconds of a transaction of the catalogue.", ("mode",), _FAST)
VERDICTS = Meter("verdicts", "Verdicts recorded.", ("store", "verdict"))
DETECTION = Meter(
    "detection_seconds", "Seconds between the last read or write of a copy and the verdict that found it bad.",
    ("store",), (3600.0, 86_400.0, 7 * 86_400.0, 14 * 86_400.0, 30 * 86_400.0, 60 * 86_400.0, 120 * 86_400.0),
)  # fmt: skip
