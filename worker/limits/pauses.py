"""Let jobs wait for what somebody has paused: a store, a batch of jobs, a queue."""

import logging
import random
from typing import Any

from redis import Redis

from worker import clock
from worker.catalogue import Pause, Pauses, Scope
from worker.jobs.running_job import Snooze
from worker.limits.shared_redis import PREFIX

logger = logging.getLogger(__name__)

PAUSED_QUEUES = f"{PREFIX}:paused-queues"
"""The Redis set, in the result backend, of the queues that no worker is to serve.

A worker's own process reads it, which may not open the catalogue. The catalogue is the record, and this its mirror.
"""
_LOOK_AGAIN = (2.0, 60.0)


class Paused(Snooze):
    """Somebody has paused what the job needs. However long that takes, it does not count against the job."""


class Pausing:
    """The pauses as jobs meet them. Asked anew each time: nothing begins once somebody was told that it is paused."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses

    def of_store(self, name: str) -> Paused | None:
        """Return what a job is to be told that needs a store, or None if it is not paused."""
        return self._told(Scope.STORE, name, f"{name}: the store is paused")

    def check_job(self, id_: str, parent: str | None) -> None:
        """Raise Paused if a job is paused itself, or with the batch it belongs to."""
        paused = self._told(Scope.JOB, id_, f"job {id_} is paused")
        if paused is None and parent is not None:
            paused = self._told(Scope.JOB, parent, f"batch {parent}, which it belongs to, is paused")
        if paused is not None:
            raise paused

    def _told(self, scope: Scope, name: str, what: str) -> Paused | None:
        pause = self._pauses.get(scope, name)
        return None if pause is None else Paused(f"{what}: {pause.reason}" if pause.reason else what, _wait(pause))


def _wait(pause: Pause) -> float:
    """Return when to look again: seldom for one that lasts, and not all at the same moment."""
    least, most = _LOOK_AGAIN
    lasts = (clock.now() - pause.since).total_seconds()
    return min(max(least, lasts / 4), most) * random.uniform(1.0, 1.5)  # noqa: S311


def mirror_queues(client: "Redis", pauses: list[Pause]) -> None:
    """Let the workers' own processes know which queues are paused."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(PAUSED_QUEUES)
        for pause in pauses:
            if pause.scope is Scope.QUEUE:
                pipeline.sadd(PAUSED_QUEUES, pause.name)
        pipeline.execute()


def paused_queues(client: "Redis") -> set[str]:
    """Return the queues that no worker is to serve."""
    names: Any = client.smembers(PAUSED_QUEUES)
    return {name.decode() for name in names}
