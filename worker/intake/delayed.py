"""Keep messages with a far eta in Redis instead of in the memory of one worker.

Celery holds such a message in its worker until it is due: without bound, and lost with the worker until the visibility
timeout has passed. Here it waits in a sorted set of the broker, and any worker returns it to its queue when it is due.
"""

import json
import logging
from collections.abc import Set as AbstractSet
from datetime import UTC
from itertools import chain, islice
from typing import Any

import redis
from celery.utils.time import maybe_iso8601

from worker import clock
from worker.intake.timer_bootstep import RedisTimerStep
from zot_artifact_client.contract import Queue
from zot_artifact_client.contract.queues import UNROUTED
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

DELAYED = "zot-artifacts:delayed:{queue}"
"""The Redis sorted set, in the broker, of the messages of a queue that are not due, each with the second it is due."""
DELAYED_OVER = 10.0
"""Up to this delay in seconds Celery keeps a message, because its timer is exact."""
WAITS = "zot-artifacts:waits:{job}"
"""The Redis key, in the broker, that exists while a message with an eta waits for its first delivery, by job id."""
_WAITS_LONGER = 3600
"""Seconds for which that key outlives the eta: the message may wait in its queue then."""
_AT_ONCE = 200
_SCANNED = 1000
_REPLACE = """
local replaced = 0
for n = 2, #ARGV, 2 do
  if redis.call('ZREM', KEYS[1], ARGV[n]) == 1 then
    redis.call('ZADD', KEYS[1], ARGV[1], ARGV[n + 1])
    replaced = replaced + 1
  end
end
return replaced
"""
"""ARGV: the second at which they are due, then each message and its replacement. One that is gone is not replaced."""
_RELEASE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, message in ipairs(due) do
  redis.call('LPUSH', KEYS[2], message)
  redis.call('ZREM', KEYS[1], message)
end
return #due
"""


def delay(channel: Any, raw: bytes, queue: str) -> bool:
    """Keep a message until it is due, and return True; return False if it is due soon, or cannot be kept."""
    found = _due(raw)
    if found is None:
        return False
    due, first = found
    seconds = due - clock.now().timestamp()
    try:
        with channel.conn_or_acquire() as client:  # never `channel.client`, on which BRPOP waits for its answer
            if first is not None:
                client.set(WAITS.format(job=first), 1, ex=max(1, int(seconds)) + _WAITS_LONGER)
            if seconds <= DELAYED_OVER:
                return False
            client.zadd(DELAYED.format(queue=queue), {raw: due})
    except (redis.RedisError, OSError) as error:
        logger.warning("a message with an eta stays in this worker: Redis: %s", type(error).__name__)
        return False
    return True


def release(client: Any) -> int:
    """Return the messages that are due to their queues; return how many."""
    now = clock.now().timestamp()
    released = 0
    for name in (*(queue.value for queue in Queue), UNROUTED):
        try:
            released += int(client.eval(_RELEASE, 2, DELAYED.format(queue=name), name, now, _AT_ONCE))
        except redis.ResponseError as error:  # such as a key of another type; the other queues go on
            logger.debug("delayed messages of %s are not released for now: %s", name, bounded(error, 200))
    return released


def make_due(client: Any, jobs: AbstractSet[str]) -> int:
    """Make the messages of these jobs due now, of those that wait here; return how many."""
    made = 0
    for name in (*(queue.value for queue in Queue), UNROUTED):
        key = DELAYED.format(queue=name)
        found = filter(None, (_without_eta(raw, jobs) for raw, _ in client.zscan_iter(key, count=_SCANNED)))
        while some := list(islice(found, _AT_ONCE)):
            made += int(client.eval(_REPLACE, 1, key, clock.now().timestamp(), *chain.from_iterable(some)))
    return made


def _without_eta(raw: bytes, jobs: AbstractSet[str]) -> tuple[bytes, bytes] | None:
    """Return a message and the same without its eta; None if it has none, or is of none of these jobs."""
    try:
        message = json.loads(raw)
        if message["headers"]["id"] not in jobs or message["headers"]["eta"] is None:
            return None
        message["headers"]["eta"] = None
    except (ValueError, LookupError, TypeError):
        return None
    return raw, json.dumps(message).encode()


def _due(raw: bytes) -> tuple[float, str | None] | None:
    """Return when a message is due, and the id of its job if this is no retry; None if it has no eta."""
    if b'"eta"' not in raw or b'"eta": null' in raw:  # most messages have no eta
        return None
    try:
        headers = json.loads(raw)["headers"]
        eta, first = maybe_iso8601(headers.get("eta")), None if headers.get("retries") else headers["id"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if eta is None:
        return None
    return (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp(), first


class ReleaseDelayed(RedisTimerStep):
    """Returns delayed messages to their queues, every second, in each worker."""

    every = 1.0

    def tick_in(self, client: Any) -> None:
        """Return those that are due."""
        release(client)
