"""The messages that kombu's Redis transport has delivered and that are not acknowledged."""

import json
import time
from datetime import timedelta
from typing import Any

from celery.utils.time import maybe_iso8601

from zot_artifact_client.contract import JOB_ID, TASKS, Queue

UNACKED, UNACKED_INDEX = "unacked", "unacked_index"
"""kombu's names of the hash of these messages by delivery tag, and of the sorted set of their delivery times."""
_PAGE = 500
_QUEUES = frozenset(queue.value for queue in Queue)


def lost_messages(client: Any, after: timedelta) -> dict[str, tuple[str, str]]:
    """Return the messages of jobs that were delivered longer than `after` ago, as (queue, message) by job id.

    A message with an eta counts from that time. The visibility timeout would return these messages too, but only after
    the longest time that a job may run: hours.
    """
    until = time.time() - after.total_seconds()
    tags = client.zrangebyscore(UNACKED_INDEX, "-inf", until, start=0, num=_PAGE)
    found: dict[str, tuple[str, str]] = {}
    for entry in client.hmget(UNACKED, tags) if tags else []:
        message = _message(entry, until)
        if message is not None:
            found[message[0]] = message[1:]
    return found


def _message(entry: bytes | None, until: float) -> tuple[str, str, str] | None:
    try:
        message, _, queue = json.loads(entry or b"")
        headers = message["headers"]
        eta = maybe_iso8601(headers.get("eta"))
        due = eta.timestamp() if eta is not None else 0.0
        known = headers["task"] in TASKS and JOB_ID.fullmatch(headers["id"]) and queue in _QUEUES
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return (headers["id"], queue, json.dumps(message)) if known and due <= until else None
