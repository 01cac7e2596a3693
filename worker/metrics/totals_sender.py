"""Add what a process has counted to the totals of the fleet: one Redis hash, which the exporter reads."""

import logging
import threading

import redis
from celery import Celery

from worker import metric_counters
from worker.limits.shared_redis import PREFIX, result_backend

logger = logging.getLogger(__name__)

TOTALS = f"{PREFIX}:metrics"
"""The Redis hash, in the result backend. Its fields are a meter with its labels: their number does not grow."""
_EVERY = 5.0
"""Seconds between two additions. A process that is killed loses what it counted since the last one."""


class Sender:
    """Sends the counts of this process every few seconds, in a thread of its own; nothing while nothing was counted."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._client: redis.Redis | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send the last counts, and end."""
        self._ended.set()
        self._thread.join(timeout=_EVERY)

    def send(self) -> None:
        """Send what was counted since the last time; what Redis does not take is sent the next time."""
        counted = metric_counters.drain()
        if not counted:
            return
        try:
            self._client = self._client or result_backend(self._app)
            if self._client is None:
                return
            with self._client.pipeline(transaction=True) as pipeline:
                for field, count in counted.items():
                    pipeline.hincrbyfloat(TOTALS, field, count)
                pipeline.execute()
        except (redis.RedisError, OSError) as error:
            metric_counters.restore(counted)
            logger.debug("metrics are sent later: Redis: %s", type(error).__name__)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY):
            self.send()
        self.send()
