"""Beat's scheduler: Celery's own, which also records that it ticks, and starts no run that another beat has started.

`zot-artifacts doctor` reads the record.
"""

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import redis
from amqp import AccessRefused, NotAllowed
from celery.beat import PersistentScheduler, SchedulingError

from worker.input_files import special_kind
from worker.limits.shared_redis import PREFIX, Backoff, result_backend
from zot_artifact_client.connection import what_it_does
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

_TICKED = f"{PREFIX}:beat:ticked"
_STARTED = f"{PREFIX}:beat:started"
_SAME_RUN = 0.9
"""The part of its period for which a run that one beat has started is no other's: less than all, as ticks differ."""
_CLAIM = timedelta(seconds=30)
"""For so long a beat has a run to itself whose message it has not sent yet."""
_SENDING, _SENT = b"sending ", b"sent"
"""What is recorded of a run: the first one with a token of the try; the version before recorded an empty text at once.
"""
_EVERY = 10.0
"""Seconds between two records."""
_REFUSED_WAIT = 10.0
"""Seconds between two tries to connect to a RabbitMQ that refuses the user."""
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
    _client: "redis.Redis | None" = None
    _backoff = Backoff()

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

    def sync(self) -> None:
        """Write the last runs to the file; a full disk costs only them, and no sweep that makes room on it."""
        try:
            super().sync()
        except Exception as error:  # noqa: BLE001 - whatever the module dbm raises
            self._store.writeback = True  # `shelve` leaves it off, and would never write again
            logger.warning("beat: the last runs are not written: %s: %s", type(error).__name__, bounded(error, 200))

    def _correct(self) -> None:
        """Make an entry whose last run is in the future due one period from now at the latest."""
        for name, entry in self.schedule.items():
            now = entry.default_now()
            if entry.last_run_at is None or entry.last_run_at > now + _CLOCK_SKEW:
                logger.warning("beat: the last run of %s is in the future: corrected", bounded(name, 64))
                entry.last_run_at = now
                self._heap = None

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Start what is due, then record the tick."""
        self._correct()
        seconds: float = super().tick(*args, **kwargs)
        if time.monotonic() - self._recorded >= _EVERY:
            self._recorded = time.monotonic()
            self._record()
        return seconds

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Start a run, unless another beat has started it; one that could not be started is soon due again."""
        name, claim = bounded(entry.name, 64), _SENDING + secrets.token_hex(8).encode()
        state = self._claim(entry, claim)
        if state is not None:
            logger.info("beat: another beat has started %s", name)
            if state.startswith(_SENDING):  # that beat may have been killed before it sent the message
                self._try_again(entry)
            return
        logger.info("beat: starts %s", name)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            # In one line: Celery's own has 130, at every try while the broker is away.
            logger.error("beat: %s is not started: %s", name, bounded(error.__cause__ or error, 200))  # noqa: TRY400
            self._ask(lambda client: _end_claim(client, entry, claim), f"the failed start of {name} is not recorded")
            self._try_again(entry)
        else:
            lasts = _lasts(entry)
            self._ask(lambda client: client.set(_key(entry), _SENT, px=lasts), f"the start of {name} is not recorded")

    def _ensure_connected(self) -> Any:
        """Connect; wait for a RabbitMQ that refuses the user: Celery waits only for one that is away, and would end."""
        while True:
            try:
                return super()._ensure_connected()
            except (AccessRefused, NotAllowed) as error:
                refuses = what_it_does(error, self.connection.as_uri())
                logger.error("beat: the broker %s; beat waits for that", refuses)  # noqa: TRY400 - its text says all
                time.sleep(_REFUSED_WAIT)

    def _try_again(self, entry: Any) -> None:
        """Make an entry due again when a beat that may be sending it has had its time, and not a period later."""
        self.schedule[entry.name].last_run_at -= entry.schedule.run_every - _claimed_for(entry)
        self._heap = None

    def _claim(self, entry: Any, claim: bytes) -> bytes | None:
        """Return what another beat has recorded of the run that is due, or None if this one starts it.

        It also starts it if the result backend does not answer.
        """

        def record(client: "redis.Redis") -> bytes | None:
            key, lasts, claimed = _key(entry), _lasts(entry), min(_lasts(entry), _claimed_for(entry))
            if client.set(key, claim, nx=True, px=claimed):
                return None
            left: Any = client.pttl(key)
            if left <= lasts / _MILLISECOND:
                found: Any = client.get(key)
                return claim if found is None else found  # None: it has expired just now
            client.set(key, claim, px=claimed)  # a longer time is of a clock of Redis that was ahead
            return None

        return self._ask(record, f"whether another beat has started {entry.name} is not known")

    def _ask(self, question: Callable[["redis.Redis"], AnswerT], otherwise: str) -> AnswerT | None:
        """Return the answer of the result backend; log `otherwise` and return None if there is none."""
        if not self._backoff.is_over(self._client):
            return None
        began = time.monotonic()
        try:
            self._client = self._client or result_backend(self.app)
            return None if self._client is None else question(self._client)
        except (redis.RedisError, OSError) as error:
            self._backoff.begin(began)
            logger.warning("%s: %s", bounded(otherwise, 200), type(error).__name__)
            return None

    def _record(self) -> None:
        now = f"{time.time():.3f}"
        self._ask(lambda client: client.set(_TICKED, now, ex=_REMEMBERED), "the tick of beat is not recorded")


def _key(entry: Any) -> str:
    return f"{_STARTED}:{entry.name}:{entry.schedule.run_every.total_seconds():g}"


def _end_claim(client: "redis.Redis", entry: Any, claim: bytes) -> None:
    """Remove a claim; after 30 s another beat may have started the run."""
    if client.get(_key(entry)) == claim:
        client.delete(_key(entry))


def _lasts(entry: Any) -> timedelta:
    """Return for how long a run that one beat has started is no other's."""
    lasts: timedelta = entry.schedule.run_every * _SAME_RUN
    return max(lasts, _MILLISECOND)


def _claimed_for(entry: Any) -> timedelta:
    every: timedelta = entry.schedule.run_every
    return min(_CLAIM, every)


def last_tick(client: "redis.Redis") -> float | None:
    """Return how many seconds ago beat recorded a tick, or None if it recorded none in the last hour.

    Redis counts the seconds: the clock of the machine that beat runs on may be wrong.
    """
    left: Any = client.pttl(_TICKED)
    return None if left < 0 else max(0.0, _REMEMBERED - left / 1000)
