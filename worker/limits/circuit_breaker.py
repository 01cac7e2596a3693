"""Leave a store alone that keeps failing, and try it out before anything is asked of it again."""

import logging
import random
from collections.abc import Callable

from worker.jobs.running_job import Snooze
from worker.limits.counters import Counters
from worker.settings.sections import BreakerSettings
from worker.storage.errors import StorageError, TransientError

logger = logging.getLogger(__name__)

_A_DAY = 86_400.0
_PROBE_SECONDS = 120.0
"""How long a probe may take, SDK's own retries included; if its process was killed, the next one may probe then."""
_SOON = 3.0


class CircuitBreaker:
    """The breaker of one store, in marks that all workers see.

    Closed, it counts failures in a row. Open, it turns every job away. When its time is over, exactly one job tries
    the store out: it closes if the store answers, and else is open for twice as long.
    """

    def __init__(self, store: str, marks: Counters, settings: BreakerSettings) -> None:
        self._store = store
        self._marks = marks
        self._settings = settings
        self._failures = f"breaker:{store}:failures"
        self._open = f"breaker:{store}:open"
        self._opened = f"breaker:{store}:opened"  # how often in a row; there until the store has been tried out well
        self._probing = f"breaker:{store}:probing"

    def check(self, probe: Callable[[], object]) -> bool:
        """Return whether failures are being counted, if the store may be used; try it out first if it is time to.

        Raises:
            Snooze: the store is left alone, or somebody else is trying it out.
        """
        if not self._settings.enabled:
            return False
        (is_open, left), (opened, _), (failures, _) = self._marks.look(self._open, self._opened, self._failures)
        if is_open:
            raise self._snooze(left)
        if opened:
            self._try_out(probe)
        return failures > 0

    def left(self) -> float:
        """Return for how many seconds the store is left alone yet."""
        return self._marks.look(self._open)[0][1] if self._settings.enabled else 0.0

    def failed(self) -> None:
        """Count a failure of the store."""
        if not self._settings.enabled:
            return
        count = self._marks.add(self._failures, self._settings.within.total_seconds())
        if count >= self._settings.failures:
            self._trip(f"{count} failures in a row")

    def worked(self) -> None:
        """Forget the failures: the store did as it was asked."""
        self._marks.remove(self._failures)

    def _trip(self, why: str) -> None:
        times = self._marks.look(self._opened)[0][0]
        longest = self._settings.open_max.total_seconds()
        seconds = min(self._settings.open.total_seconds() * 2 ** min(times, 30), longest)
        if self._marks.put(self._open, seconds):
            self._marks.add(self._opened, _A_DAY)
            self._marks.remove(self._failures)
            logger.error("store %s is left alone for %.0f s: %s", self._store, seconds, why)

    def _try_out(self, probe: Callable[[], object]) -> None:
        if not self._marks.put(self._probing, _PROBE_SECONDS):
            raise self._snooze(_SOON)
        try:
            (_, left), (opened, _) = self._marks.look(self._open, self._opened)
            if left:  # somebody has tried it out since we looked
                raise self._snooze(left)
            if opened:
                self._probe(probe)
        finally:
            self._marks.remove(self._probing)

    def _probe(self, probe: Callable[[], object]) -> None:
        try:
            probe()
        except TransientError as error:
            self._trip(error.message)
            raise self._snooze(self.left()) from error
        except StorageError as error:
            logger.warning("store %s answers, but %s", self._store, error)  # the jobs will tell what is wrong with it
        self._marks.remove(self._opened, self._failures)
        logger.warning("store %s is used again", self._store)

    def _snooze(self, left: float) -> Snooze:
        seconds = left + random.uniform(0.1, _SOON)  # noqa: S311 - not all at the same moment
        return Snooze(f"{self._store}: the store keeps failing and is left alone for now", seconds)
