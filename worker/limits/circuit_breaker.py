"""Circuit breaker: a store that keeps failing gets no requests until a probe of it succeeds."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from worker import clock
from worker.counted import counted
from worker.limits.expiring_counters import Counters, redis_key
from worker.limits.snooze import Snooze
from worker.settings.section_models import BreakerSettings
from worker.storage.durations_and_sizes import duration_text
from worker.storage.errors import StorageError, TransientError

logger = logging.getLogger(__name__)

_DAY = 86_400.0
_PROBE_SECONDS = 120.0
"""How long a probe may take, with the SDK's retries. After that another process may probe, because this one was killed.
"""
_JITTER = 3.0
_REASON = 500
"""Characters of the error that opened a breaker that its jobs tell."""


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """A circuit breaker that no probe has closed yet.

    `seconds` are left until a job may probe the store, 0 if one may now. `since` is None, and `reason` empty, where
    Redis has lost them.
    """

    seconds: float
    since: datetime | None
    reason: str

    def __str__(self) -> str:
        since = f" since {self.since:%Y-%m-%d %H:%M:%SZ}" if self.since else ""
        probe = f"in {duration_text(self.seconds)}" if self.seconds else "now"
        said = (
            f"its circuit breaker is open{since}: jobs that need the store wait, and the next one may probe it {probe}"
        )
        return f"{said}; the store failed with: {self.reason}" if self.reason else said


class CircuitBreaker:
    """The circuit breaker of one store, kept in counters that all workers see.

    Closed, it counts failures in a row. Open, it snoozes every job. Half-open, exactly one job probes the store: the
    breaker closes if the store answers, and else is open for twice as long.
    """

    def __init__(self, store: str, counters: Counters, settings: BreakerSettings) -> None:
        self._store = store
        self._counters = counters
        self._settings = settings
        self._longest = settings.open_max.total_seconds()
        self._failures = f"breaker:{store}:failures"
        self._open = f"breaker:{store}:open"
        self._opened = f"breaker:{store}:opened"  # how often in a row; it exists until a probe succeeds
        self._probing = f"breaker:{store}:probing"
        self._reason = f"breaker:{store}:reason"
        self._since = f"breaker:{store}:since"
        self._closed = f"breaker:{store}:closed"  # exists while jobs may still wait that were snoozed before the close
        self.redis_keys = [redis_key(name) for name in (self._open, self._opened, self._failures)]
        """While none of these exists, the breaker is closed and counts no failures."""

    def check(self, probe: Callable[[], object]) -> bool:
        """Raise unless the store may be used, after a probe if half-open; return whether failures are being counted.

        Raises:
            Snooze: the breaker is open, or another job is probing the store.
        """
        if not self._settings.enabled:
            return False
        (is_open, left), (opened, _), (failures, _) = self._counters.get(self._open, self._opened, self._failures)
        if is_open and left <= self._longest + _JITTER:
            raise self._snooze(left)
        if is_open:  # it was opened by a Redis whose clock was ahead, or by another program
            self._counters.delete(self._open)
        if opened:
            self._half_open(probe)
        return failures > 0

    def seconds_open(self) -> float:
        """Return for how many more seconds the breaker is open."""
        return min(self._counters.get(self._open)[0][1], self._longest) if self._settings.enabled else 0.0

    def opened(self) -> OpenBreaker | None:
        """Return since when and why the breaker is open or half-open, None if it is closed."""
        if not self._settings.enabled:
            return None
        (is_open, left), (opened, _) = self._counters.get(self._open, self._opened)
        if not (is_open or opened):
            return None
        return OpenBreaker(min(left, self._longest), self._opened_since(), self._counters.get_text(self._reason))

    def close(self) -> None:
        """Close the breaker, because a probe has succeeded."""
        if self.opened():
            logger.warning("store %s: the circuit breaker closes", self._store)
            self._counters.set_text(self._closed, clock.now().isoformat(), self._longest + _JITTER)
        names = (self._open, self._opened, self._failures, self._reason, self._since)
        self._counters.delete(*names)

    def closed_lately(self) -> bool:
        """Return whether the breaker is closed, and jobs may still wait that it snoozed while it was open."""
        return bool(self._settings.enabled and self._counters.get_text(self._closed) and not self.opened())

    def record_failure(self, reason: str = "") -> None:
        """Count a failure of the store, and open the breaker if there are too many.

        Args:
            reason: the error, which the jobs that wait for the store tell.
        """
        if not self._settings.enabled:
            return
        count = self._counters.increment(self._failures, self._settings.within.total_seconds())
        if count >= self._settings.failures:
            self._trip(f"{counted(count, 'failure')} in a row", reason)

    def record_success(self) -> None:
        """Reset the failures, because a request succeeded."""
        self._counters.delete(self._failures)

    def _trip(self, cause: str, reason: str) -> None:
        times = self._counters.get(self._opened)[0][0]
        seconds = min(self._settings.open.total_seconds() * 2 ** min(times, 30), self._longest)
        since = self._opened_since() or clock.now()
        kept = seconds + _DAY  # an outage of several days opens it again and again, and each time renews these
        self._counters.set_text(self._since, since.isoformat(), kept)
        self._counters.set_text(self._reason, reason.removeprefix(f"{self._store}: ")[:_REASON], kept)
        if self._counters.set_if_absent(self._open, seconds):
            self._counters.increment(self._opened, kept, renew=True)
            self._counters.delete(self._failures)
            told = (self._store, duration_text(seconds), cause, reason)
            logger.error("store %s: the circuit breaker opens for %s: %s: %s", *told)

    def _half_open(self, probe: Callable[[], object]) -> None:
        if not self._counters.set_if_absent(self._probing, _PROBE_SECONDS):
            if self._counters.get(self._probing)[0][1] > _PROBE_SECONDS + _JITTER:
                self._counters.delete(self._probing)
            raise self._snooze(_JITTER)
        try:
            (_, left), (opened, _) = self._counters.get(self._open, self._opened)
            if left:  # another job has probed the store since the check
                raise self._snooze(left)
            if opened:
                self._probe(probe)
        finally:
            self._counters.delete(self._probing)

    def _probe(self, probe: Callable[[], object]) -> None:
        try:
            probe()
        except TransientError as error:
            self._trip("a probe failed", error.message)
            raise self._snooze(self.seconds_open()) from error
        except StorageError as error:  # an open breaker would hide the error; the jobs report it
            logger.warning("store %s answers, but %s", self._store, error)
        self.close()

    def _opened_since(self) -> datetime | None:
        try:
            return datetime.fromisoformat(self._counters.get_text(self._since)).astimezone(UTC)
        except ValueError:  # there is none, or another program wrote it
            return None

    def _snooze(self, left: float) -> Snooze:
        seconds = left + random.uniform(0.1, _JITTER)  # noqa: S311 - spreads the jobs in time
        reason = self._counters.get_text(self._reason)
        said = f"{self._store}: the store keeps failing, its circuit breaker is open"
        return Snooze(f"{said}: {reason}" if reason else said, seconds)
