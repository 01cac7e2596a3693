"""Wait for a broker that is full: out of memory, or with a disk that takes no more of its append-only file."""

import logging
import time
from collections.abc import Callable

import redis
from celery.worker import state

from zot_artifact_client.connection import is_write_refused
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

_WAIT = 1.0


def wait_for_room(write: Callable[[], None], what: str) -> None:
    """Write, and try again while the broker is full, until the worker shuts down.

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
                logger.error("the broker is full: %s waits for room: %s", what, bounded(error, 200))  # noqa: TRY400
            pause(_WAIT)
        else:
            if logged:
                logger.warning("the broker has room again: %s continues", what)
            return


def pause(seconds: float) -> None:
    """Sleep for a moment; a signal handler runs in between."""
    time.sleep(seconds)
