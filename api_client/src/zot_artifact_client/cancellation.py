"""Leave the wish that a job ends where every worker finds it: the one that runs it, and the one that looks after it."""

import time
from collections.abc import Iterable
from typing import Any

from zot_artifact_client.contract import CANCEL_KEY

CANCEL_TTL = 24 * 3600
"""Seconds for which the wish to cancel is kept: as long as Celery keeps a result."""
CANCEL_REQUESTS = "zot-artifacts:cancelling"
"""The Redis sorted set, in the result backend, of the jobs that are to end, each with the second it was asked for.

The key of a job is for whoever runs it. This is for whoever ends those that wait.
"""


def add_requests(client: Any, ids: Iterable[str]) -> None:
    """Ask, in one round trip, for the end of jobs; asking again is harmless."""
    now = time.time()
    with client.pipeline(transaction=True) as pipeline:
        for id_ in ids:
            pipeline.set(CANCEL_KEY.format(job=id_), "1", ex=CANCEL_TTL)
            pipeline.zadd(CANCEL_REQUESTS, {id_: now})
        pipeline.execute()


def withdraw_request(client: Any, id_: str) -> None:
    """Take the wish back; none is no error."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(CANCEL_KEY.format(job=id_))
        pipeline.zrem(CANCEL_REQUESTS, id_)
        pipeline.execute()
