"""Record requests to cancel jobs in Redis, where the workers that run the jobs and `sweep.recover` read them."""

import time
from collections.abc import Iterable
from typing import Any

from zot_artifact_client.contract import CANCEL_KEY

CANCEL_TTL = 24 * 3600
"""Seconds for which a request to cancel is kept: as long as Celery keeps a result."""
CANCEL_REQUESTS = "zot-artifacts:cancelling"
"""The Redis sorted set, in the result backend, of the jobs to cancel, each with the second of the request.

The worker that runs a job reads the key of that job. The recovery, which ends the waiting ones, reads this set.
"""
MAX_CANCEL_REQUESTS = 10_000
"""Entries of the set; beyond them the oldest are dropped. The key of a job is not affected."""


def add_requests(client: Any, ids: Iterable[str]) -> None:
    """Request in one round trip that jobs are cancelled; idempotent."""
    with client.pipeline(transaction=True) as pipeline:
        push_requests(pipeline, ids)
        pipeline.execute()


def push_requests(pipeline: Any, ids: Iterable[str]) -> None:
    """Add to a Redis pipeline, of either client, what requests that jobs are cancelled."""
    now = time.time()
    for id_ in ids:
        pipeline.set(CANCEL_KEY.format(job=id_), "1", ex=CANCEL_TTL)
        pipeline.zadd(CANCEL_REQUESTS, {id_: now})
    pipeline.zremrangebyrank(CANCEL_REQUESTS, 0, -MAX_CANCEL_REQUESTS - 1)


def withdraw_request(client: Any, id_: str) -> None:
    """Remove the request to cancel a job; without one, do nothing."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(CANCEL_KEY.format(job=id_))
        pipeline.zrem(CANCEL_REQUESTS, id_)
        pipeline.execute()
