"""Take messages ahead of the children, so that one that has ended a short job begins its next one at once.

Another worker could take a message that waits here. So it goes back to the front of its queue once no child has started
a job for a moment, and none is taken ahead until one does.
"""

import logging
from typing import Any

import redis
from celery.worker import state

from worker.intake.timer_bootstep import TimerStep

logger = logging.getLogger(__name__)


class MessagesAhead(TimerStep):
    """Lets a worker whose broker is a Redis take as many messages ahead as it has children."""

    every = 0.25
    """Seconds. A message waits at most twice as long for a child."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._started = 0

    def start(self, consumer: Any) -> None:
        """Take messages ahead from now on."""
        qos: Any = getattr(consumer.task_consumer.channel, "qos", None)  # a channel of RabbitMQ has none
        if hasattr(qos, "ahead") and consumer.controller.semaphore is not None:
            qos.ahead = consumer.pool.num_processes
            super().start(consumer)

    def tick(self, consumer: Any) -> None:
        """Return what waits beyond one message for each child, if no job has started since the last time."""
        qos, started = consumer.task_consumer.channel.qos, state.all_total_count[0]
        if started != self._started:
            qos.ahead = consumer.pool.num_processes
        elif qos.held > qos.prefetch_count:
            qos.ahead = 0
            _return(consumer, down_to=qos.prefetch_count)
        self._started = started


def return_all(consumer: Any) -> None:
    """Return all messages whose jobs no child has started, before the worker ends.

    A child may have one of them already: the ledger lets one worker do it.
    """
    qos: Any = consumer.task_consumer and getattr(consumer.task_consumer.channel, "qos", None)
    if not hasattr(qos, "ahead"):
        return
    waiting = {each.message.delivery_tag for each in state.reserved_requests - state.active_requests}
    for tag in [tag for tag in qos.tags if tag in waiting][::-1]:
        if not _is_given_back(qos, tag):
            break


def _return(consumer: Any, *, down_to: int) -> None:
    """Return messages that wait until so many are held, the last one first: each becomes the first of its queue."""
    qos, waiting = consumer.task_consumer.channel.qos, consumer.controller.semaphore._waiting  # noqa: SLF001
    while waiting and qos.held > down_to:
        _, (request,), _ = waiting[-1]
        if not _is_given_back(qos, request.message.delivery_tag):
            break
        waiting.pop()
        state.task_ready(request)


def _is_given_back(qos: Any, tag: str) -> bool:
    """Return a message to its queue; False if the broker takes none now, such as a full one."""
    try:
        qos.give_back(tag)
    except (redis.RedisError, OSError) as error:
        logger.debug("messages are returned later: %s", type(error).__name__)
        return False
    return True
