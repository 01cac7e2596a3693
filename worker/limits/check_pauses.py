"""Check the pauses of operators: of a store, a job or batch, or a queue."""

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from redis import Redis

from worker.catalogue import Pause, Pauses, Scope
from worker.limits.shared_redis import PREFIX
from worker.limits.snooze import Paused, seconds_to_pause

PAUSED_QUEUES = f"{PREFIX}:paused-queues"
"""The Redis set, in the result backend, of the queues that no worker serves.

The main process of a worker reads it, because it must not open the catalogue. The catalogue is the record.
"""
_MIRRORED = "mirrored"
"""A member that is always there, and no queue: without it, Redis has lost the set, which tells nothing of pauses."""
_FRESH = 0.2
"""Seconds for which the pauses that were read with a lease count."""
_NOTHING_LEASED: tuple[float, dict[tuple[Scope, str], Pause]] = (-math.inf, {})


class PauseCheck:
    """Reads the pauses. None is kept beyond the start of a job, so that no work begins after a pause is recorded."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._of_thread = threading.local()

    def leased(self, pauses: Sequence[Pause]) -> None:
        """Take the pauses that were read with the lease of a job: its first calls need no read of their own."""
        self._of_thread.leased = time.monotonic(), {(each.scope, each.name): each for each in pauses}

    def of_store(self, name: str) -> Paused | None:
        """Return the exception for a job that needs this store, or None if the store is not paused."""
        return self._find(Scope.STORE, name, f"{name}: the store is paused")

    def check_job(self, id_: str, parent: str | None) -> None:
        """Raise Paused if a job is paused itself, or with the batch it belongs to."""
        paused = self._find(Scope.JOB, id_, f"job {id_} is paused")
        if paused is None and parent is not None:
            paused = self._find(Scope.JOB, parent, f"batch {parent}, which it belongs to, is paused")
        if paused is not None:
            raise paused

    def _find(self, scope: Scope, name: str, message: str) -> Paused | None:
        read_at, leased = getattr(self._of_thread, "leased", _NOTHING_LEASED)
        is_fresh = time.monotonic() - read_at < _FRESH
        pause = leased.get((scope, name)) if is_fresh else self._pauses.get(scope, name)
        if pause is None:
            return None
        return Paused(f"{message}: {pause.reason}" if pause.reason else message, seconds_to_pause(pause.since))


def mirror_queues(client: "Redis", pauses: list[Pause]) -> None:
    """Copy the paused queues to Redis, where the main processes of the workers read them."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(PAUSED_QUEUES)
        pipeline.sadd(PAUSED_QUEUES, _MIRRORED)
        for pause in pauses:
            if pause.scope is Scope.QUEUE:
                pipeline.sadd(PAUSED_QUEUES, pause.name)
        pipeline.execute()


def paused_queues(client: "Redis") -> set[str] | None:
    """Return the queues that no worker serves; None if Redis has lost them, until they are copied again."""
    names: Any = client.smembers(PAUSED_QUEUES)
    return {name.decode(errors="replace") for name in names} - {_MIRRORED} if names else None
