"""The messages that kombu's Redis transport has delivered and that are not acknowledged."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery.utils.time import maybe_iso8601

from zot_artifact_client.contract import JOB_ID, TASKS, Queue
from zot_artifact_client.outgoing_messages import with_new_delivery_tag

UNACKED, UNACKED_INDEX = "unacked", "unacked_index"
"""kombu's names of the hash of these messages by delivery tag, and of the sorted set of their delivery times."""
CLOCK_SKEW = 60.0
"""Seconds by which the clocks of two machines may differ. A wrong clock wrote any time further in the future."""
_PAGE = 100
_MOST = 20_000
"""Most messages that one run reads."""
_QUEUES = frozenset(queue.value for queue in Queue)


@dataclass(frozen=True, slots=True)
class Unacknowledged:
    """A message that a worker holds: its delivery tag, the id of its job, its queue, and its text with another tag."""

    tag: bytes
    job: str
    queue: str
    message: str


def lost_messages(client: Any, after: timedelta) -> Iterator[list[Unacknowledged]]:
    """Return pages of the messages of jobs that were delivered longer than `after` ago.

    A message with an eta counts from that time. The visibility timeout would return these messages too, but only after
    the longest time that a job may run: hours.
    """
    until = time.time() - after.total_seconds()
    tags = client.zrangebyscore(UNACKED_INDEX, "-inf", until, start=0, num=_MOST)
    for first in range(0, len(tags), _PAGE):
        page = tags[first : first + _PAGE]
        found = [_message(tag, entry, until) for tag, entry in zip(page, client.hmget(UNACKED, page), strict=True)]
        yield [message for message in found if message is not None]


def give_back(client: Any, held: Unacknowledged) -> bool:
    """Return a message to its queue at once; return False if it was acknowledged meanwhile."""

    def move(pipeline: Any) -> None:
        there = pipeline.hexists(UNACKED, held.tag)
        pipeline.multi()
        if there:
            pipeline.zrem(UNACKED_INDEX, held.tag)
            pipeline.hdel(UNACKED, held.tag)
            pipeline.lpush(held.queue, held.message)

    return bool(client.transaction(move, UNACKED))


def correct_times(client: Any, name: str) -> None:
    """Set the times in a sorted set that are in the future to now: a wrong clock wrote them."""
    now = time.time()
    ahead = client.zrangebyscore(name, f"({now + CLOCK_SKEW}", "+inf", start=0, num=_MOST)
    if ahead:
        client.zadd(name, dict.fromkeys(ahead, now), xx=True)


def _message(tag: bytes, entry: bytes | None, until: float) -> Unacknowledged | None:
    try:
        message, _, queue = json.loads(entry or b"")
        headers = message["headers"]
        eta = maybe_iso8601(headers.get("eta"))
        due = eta.timestamp() if eta is not None else 0.0
        known = headers["task"] in TASKS and JOB_ID.fullmatch(headers["id"]) and queue in _QUEUES
        text = with_new_delivery_tag(json.dumps(message))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None
    return Unacknowledged(tag, headers["id"], queue, text) if known and due <= until else None
