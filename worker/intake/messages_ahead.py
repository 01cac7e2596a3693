"""Take messages ahead of the children, so that one that has ended a short job begins its next one at once.

Another worker could take a message that waits here. So it goes back to the front of its queue once no child has started
a job for a moment, and none is taken ahead until one does.
"""

import logging
from typing import Any

import redis
from celery.worker import state

from worker.intake.timer_bootstep import RedisTimerStep

logger = logging.getLogger(__name__)


class MessagesAhead(RedisTimerStep):
    """Lets a worker whose broker is a Redis take as many messages ahead as it has children."""

    every = 0.25
    """Seconds. A message waits at most twice as long for a child."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._started = 0
        """How many jobs the children had started at the last tick."""

    def start(self, consumer: Any) -> None:
        """Start the timer, unless the pool has no queue of its own for requests, as that of gevent."""
        if consumer.controller.semaphore is not None:
            super().start(consumer)

    def tick(self, consumer: Any) -> None:
        """Allow messages ahead if a child has started a job since the last tick; return them otherwise."""
        qos, started = consumer.task_consumer.channel.qos, state.all_total_count[0]
        if started != self._started:
            qos.ahead = consumer.pool.num_processes
        elif qos.held > qos.prefetch_count:
            qos.ahead = 0
            waiting = consumer.controller.semaphore._waiting  # noqa: SLF001
            while waiting and qos.held > qos.prefetch_count:
                _, (request,), _ = waiting[-1]  # the last one first: each becomes the first of its queue
                if not _is_given_back(qos, request.message.delivery_tag):
                    break
                waiting.pop()
                state.task_ready(request)
        self._started = started

    def stop(self, consumer: Any) -> None:
        """Return what no child has started; Celery does so only when the last running job has ended.

        A child may have one of these messages already: the ledger lets one worker do its job.
        """
        super().stop(consumer)
        if self._timer is None or consumer.task_consumer is None:
            return
        qos, running = consumer.task_consumer.channel.qos, {each.message.delivery_tag for each in state.active_requests}
        for tag in [tag for tag in qos.tags if tag not in running][::-1]:
            if not _is_given_back(qos, tag):
                break


def _is_given_back(qos: Any, tag: str) -> bool:
    """Return a message to its queue; False if the broker takes none now, such as a full one."""
    try:
        qos.give_back(tag)
    except (redis.RedisError, OSError) as error:
        logger.debug("messages are returned later: %s", type(error).__name__)
        return False
    return True
