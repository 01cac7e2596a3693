"""The outbox of the senders, as the worker sees it: take away what the ledger has, send again what got lost."""

import base64
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import redis
from celery import Celery
from kombu.transport.redis import Channel

from zot_artifact_client.contract import Queue
from zot_artifact_client.outbox import MESSAGES, ORDER, Outgoing, push, with_new_delivery_tag

logger = logging.getLogger(__name__)

_PAGE = 1000
_LOOK = 50
"""Messages that are checked for one that came through the outbox; retries and the jobs of sweeps do not."""
Known = Callable[[list[str]], set[str]]


class Outbox:
    """The outbox in the broker; with a broker that is no Redis there is none, and nothing in it."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def taken(self, job_id: str) -> None:
        """Take a job away that is in the ledger now. If that fails, `resend` will do it."""
        try:
            with self._redis() as client:
                if client is None:
                    return
                with client.pipeline(transaction=False) as pipeline:  # every job comes by here: one round trip
                    pipeline.hdel(MESSAGES, job_id)
                    for queue in Queue:
                        pipeline.zrem(ORDER.format(queue=queue.value), job_id)
                    pipeline.execute()
        except (redis.RedisError, OSError) as error:
            logger.warning("job %s stays in the outbox for now: %s", job_id, type(error).__name__)

    def find(self, job_id: str) -> Outgoing | None:
        """Return a job that no worker has taken over yet, if its request is here."""
        with self._redis() as client:
            message = client.hget(MESSAGES, job_id) if client is not None else None
        if message is None:
            return None
        try:
            sent = json.loads(message)
            _, kwargs, _ = json.loads(base64.b64decode(sent["body"]))
            return Outgoing(sent["headers"]["task"], job_id, sent["properties"]["delivery_info"]["routing_key"], kwargs)
        except (ValueError, LookupError, TypeError):
            return None  # what a stranger put there

    def send(self, jobs: list[Outgoing]) -> None:
        """Send jobs of the worker's own, in one round trip, each with its entry here."""
        with self._redis() as client:
            if client is not None:
                with client.pipeline(transaction=True) as pipeline:
                    push(pipeline, self._app, jobs)
                    pipeline.execute()
                return
        with self._app.producer_or_acquire() as producer:
            for job in jobs:
                options = {"task_id": job.job_id, "queue": job.queue, "parent_id": job.parent, "root_id": job.parent}
                self._app.send_task(job.name, kwargs=job.payload, producer=producer, ignore_result=True, **options)

    def lost(self, ids: list[str]) -> set[str] | None:
        """Return which of these jobs, that no worker has taken over, have no message; None if that is unknown."""
        with self._redis() as client:
            if client is None:
                return None
            with client.pipeline(transaction=False) as pipeline:
                for id_ in ids:
                    pipeline.hexists(MESSAGES, id_)
                return {id_ for id_, there in zip(ids, pipeline.execute(), strict=True) if not there}

    def resend(self, known: Known, after: timedelta) -> int:
        """Send again what was sent longer than `after` ago and neither waits in its queue nor is in the ledger.

        A queue hands out its messages in the order in which they came. So whatever was sent before the message that is
        next in its queue has been handed out; if the ledger does not have it, it was lost, or it is in the memory of
        a worker that may be gone. `known` returns those of the ids that are in the ledger.
        """
        with self._redis() as client:
            return 0 if client is None else sum(_resend(client, queue.value, known, after) for queue in Queue)

    @contextmanager
    def _redis(self) -> Iterator[Any]:
        with self._app.pool.acquire(block=True) as connection:
            channel = connection.default_channel
            if not isinstance(channel, Channel):
                yield None
                return
            with channel.conn_or_acquire() as client:
                yield client


def _resend(client: Any, queue: str, known: Known, after: timedelta) -> int:
    order = ORDER.format(queue=queue)
    before = min(time.time() - after.total_seconds(), _next_in(client, queue))
    ids = [id_.decode() for id_ in client.zrangebyscore(order, "-inf", f"({before}", start=0, num=_PAGE)]
    done = known(ids) if ids else set()
    sent = 0
    for id_ in ids:
        message = None if id_ in done else client.hget(MESSAGES, id_)
        with client.pipeline(transaction=True) as pipeline:
            if message is None:
                pipeline.hdel(MESSAGES, id_)
                pipeline.zrem(order, id_)
            else:
                pipeline.zadd(order, {id_: time.time()})
                pipeline.lpush(queue, with_new_delivery_tag(message.decode()))
                logger.warning("job %s: its message was lost, or is with a worker that does not begin: sent again", id_)
                sent += 1
            pipeline.execute()
    return sent


def _next_in(client: Any, queue: str) -> float:
    """Return when the message was sent that is handed out next: infinity if none waits, 0 if none of them tells."""
    waiting = client.lrange(queue, -_LOOK, -1)
    for message in reversed(waiting):
        score = client.zscore(ORDER.format(queue=queue), _id_of(message))
        if score is not None:
            return float(score)
    return 0 if waiting else math.inf


def _id_of(message: bytes) -> str:
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return ""  # what a stranger put there; the worker sets it aside when its turn comes
