"""Beat's scheduler: Celery's own, which also records that it ticks, and starts no run that another beat has started.

`zot-artifacts doctor` reads the record.
"""

import logging
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
from celery.beat import PersistentScheduler, SchedulingError

from worker.input_files import special_kind
from worker.limits.shared_redis import PREFIX, result_backend
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

_TICKED = f"{PREFIX}:beat:ticked"
_STARTED = f"{PREFIX}:beat:started"
_SAME_RUN = 0.9
"""The part of its period for which a run that one beat has started is no other's: less than all, as ticks differ."""
_EVERY = 10.0
"""Seconds between two records."""
_REMEMBERED = 3600
_CLOCK_SKEW = timedelta(seconds=5)
_MILLISECOND = timedelta(milliseconds=1)
_ENDS = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-journal", "-wal", "-shm")
"""The ends of the names of its files: each kind of database of the module `dbm` has others."""
LONGEST_SLEEP = 30
"""Seconds that beat sleeps at most, so that the record of a beat that runs is never older than that."""


class Scheduler(PersistentScheduler):  # type: ignore[misc]  # Celery has no types
    """The persistent scheduler of Celery; the result backend has its last tick, and what a beat has started."""

    _recorded = float("-inf")

    def setup_schedule(self) -> None:
        """Open the file of the last runs; discard one that cannot be used, and correct times in the future."""
        files = [Path(f"{self.schedule_filename}{end}") for end in _ENDS]
        for path in files:
            if kind := special_kind(path):  # to open it may never end, and it is not beat's to remove
                raise SystemExit(f"zot-artifacts: beat: {path} is {kind} and no file: name another one with --schedule")
        try:
            super().setup_schedule()
            self._correct()
        except Exception as error:  # noqa: BLE001 - whatever a torn file makes pickle or dbm raise
            logger.warning(
                "beat's schedule file cannot be used and is discarded: %s: %s",
                type(error).__name__,
                bounded(error, 200),
            )
            with suppress(Exception):
                self._store.close()
            for path in files:
                if path.is_file() or path.is_symlink():  # never a device
                    path.unlink()
            super().setup_schedule()

    def _correct(self) -> None:
        """Make an entry whose last run is in the future due one period from now at the latest."""
        for name, entry in self.schedule.items():
            now = entry.default_now()
            if entry.last_run_at is None or entry.last_run_at > now + _CLOCK_SKEW:
                logger.warning("beat: the last run of %s is in the future: corrected", bounded(name, 64))
                entry.last_run_at = now
                self._heap = None

    _client: "redis.Redis | None" = None

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Start what is due, then record the tick."""
        self._correct()
        seconds: float = super().tick(*args, **kwargs)
        if time.monotonic() - self._recorded >= _EVERY:
            self._recorded = time.monotonic()
            self._record()
        return seconds

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Start a run, unless another beat has started it."""
        if self._starts(entry.name, entry.schedule.run_every):
            super().apply_entry(entry, producer=producer)
        else:
            logger.info("beat: another beat has started %s", bounded(entry.name, 64))

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Send the message of a run; where that fails, another beat can start it."""
        try:
            return super().apply_async(entry, *args, **kwargs)
        except SchedulingError:
            with suppress(redis.RedisError, OSError):
                if (client := self._redis()) is not None:
                    client.delete(_key(entry.name, entry.schedule.run_every))
            raise

    def _starts(self, name: str, every: timedelta) -> bool:
        """Return whether this beat starts the run that is due; it does if the result backend does not answer."""
        key, lasts = _key(name, every), max(1, int(every / _MILLISECOND * _SAME_RUN))
        try:
            client = self._redis()
            if client is None or client.set(key, "", nx=True, px=lasts):
                return True
            left: Any = client.pttl(key)
            if left <= lasts:  # a longer time is of a clock of Redis that was ahead
                return False
            client.set(key, "", px=lasts)
        except (redis.RedisError, OSError) as error:
            logger.warning("whether another beat has started %s is not known: %s", name, type(error).__name__)
        return True

    def _redis(self) -> "redis.Redis | None":
        self._client = self._client or result_backend(self.app)
        return self._client

    def _record(self) -> None:
        try:
            if (client := self._redis()) is not None:
                client.set(_TICKED, f"{time.time():.3f}", ex=_REMEMBERED)
        except (redis.RedisError, OSError) as error:
            logger.warning("the tick of beat is not recorded: %s", type(error).__name__)


def _key(name: str, every: timedelta) -> str:
    return f"{_STARTED}:{name}:{every.total_seconds():g}"


def last_tick(client: "redis.Redis") -> float | None:
    """Return how many seconds ago beat recorded a tick, or None if it recorded none in the last hour.

    Redis counts the seconds: the clock of the machine that beat runs on may be wrong.
    """
    left: Any = client.pttl(_TICKED)
    return None if left < 0 else max(0.0, _REMEMBERED - left / 1000)
