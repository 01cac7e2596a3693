"""Bootsteps of a worker's consumer that repeat something in its main process while it is connected."""

import logging
from typing import Any, ClassVar

import redis
from celery import bootsteps
from kombu.transport.redis import Channel

logger = logging.getLogger(__name__)


class TimerStep(bootsteps.StartStopStep):
    """Calls `tick` every `every` seconds. It is no ABC, because Celery's steps have a metaclass of their own."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    every: ClassVar[float]

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Start the timer."""
        self._timer = consumer.timer.call_repeatedly(self.every, self.tick, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def tick(self, consumer: Any) -> None:
        """Do what is repeated."""
        raise NotImplementedError


class RedisTimerStep(TimerStep):
    """Calls `tick_in` with a client of the broker every `every` seconds; does nothing if the broker is not Redis.

    A step that needs no client of its own overrides `tick`.
    """

    def start(self, consumer: Any) -> None:
        """Start the timer."""
        if isinstance(consumer.connection.default_channel, Channel):
            super().start(consumer)

    def tick(self, consumer: Any) -> None:
        """Call `tick_in`, with a client of its own: BRPOP waits for its answer on that of the channel."""
        try:
            with consumer.connection.default_channel.conn_or_acquire() as client:
                self.tick_in(client)
        except (redis.RedisError, OSError, ValueError, AttributeError) as error:  # AttributeError: it was just closed
            logger.debug("%s: not done for now: %s", type(self).__name__, type(error).__name__)

    def tick_in(self, client: Any) -> None:
        """Do what is repeated."""
        raise NotImplementedError
