"""Wait for a broker that takes no writes: its memory or its disk is full, or it is a replica after a failover."""

import logging
import time
from collections.abc import Callable

import redis
from celery.worker import state

from zot_artifact_client.connection import first_line, is_write_refused, passing_fault

logger = logging.getLogger(__name__)

_WAIT = 1.0


def wait_for_room(write: Callable[[], None]) -> None:
    """Write, and try again while the broker takes no writes, until the worker shuts down.

    Raises:
        redis.RedisError: the write failed for another reason, or the worker shuts down.
    """
    logged = False
    while True:
        try:
            write()
        except redis.ResponseError as error:
            if not is_write_refused(error) or state.should_stop is not None or state.should_terminate is not None:
                raise
            if not logged:
                logged = True
                logger.error("the broker takes no writes now, and a delivered message waits: %s", why_no_writes(error))  # noqa: TRY400
            pause(_WAIT)
        else:
            if logged:
                logger.warning("the broker takes writes again: a delivered message continues")
            return


def why_no_writes(error: BaseException) -> str:
    """Return why Redis takes no writes, in one bounded line."""
    return passing_fault(error) or first_line(error)


def pause(seconds: float) -> None:
    """Sleep for a moment; a signal handler runs in between."""
    time.sleep(seconds)
