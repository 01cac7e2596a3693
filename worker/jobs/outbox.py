"""The worker's side of the outbox: remove the jobs that the ledger has, and send lost messages again."""

import base64
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from celery import Celery

from worker import clock
from worker.intake.delayed import WAITS
from worker.intake.message_rules import Reason, Rejection
from worker.intake.rejected import RejectedMessage, RejectedMessages
from worker.jobs.unacked import UNACKED_INDEX, correct_times, give_back, lost_messages
from zot_artifact_client.contract import JOB_ID, Queue
from zot_artifact_client.outgoing_messages import MESSAGES, ORDER, Outgoing, push, with_new_delivery_tag
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tracing import trace_headers

logger = logging.getLogger(__name__)

RESENDS = "zot-artifacts:outbox:resends"
"""The Redis hash of how often the message of each job in the outbox was sent again."""
PASSED = "zot-artifacts:passed:{job}"
"""The Redis key, by job of a rejected message, of the set of queues that have delivered all their older messages."""
_PASSED_FOR = 3600
_PASSED_BY = (Queue.INTERACTIVE.value, Queue.TRANSFER.value)
"""The queues to which services may send."""
_PAGE = 1000
_GARBAGE_SECONDS = 10.0
"""How long one run removes garbage of one queue: a service may write as many entries as it likes."""
_SAMPLE = 50
"""Messages of a queue that are searched for one with an entry in the outbox; retries and jobs of sweeps have none."""
_MOST_DOUBLINGS = 20
_DIGITS = 10
"""A count with as many digits is garbage."""
_GARBAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The errors of reading an entry that is no message of a client."""
Known = Callable[[list[str]], set[str]]
_REDIS = "redis"
"""kombu's name of the kind of a broker that is Redis, also behind Sentinel."""
_CLIENT = "_zot_client"
"""The attribute of a channel that keeps its client: each job of a batch asks, and a client takes longer to make."""


def keys_of_taken(queue: str | None) -> list[str]:
    """Return the keys from which `Outbox.taken` removes a job: two hashes, then the sorted sets of queues.

    `queue`: the one that delivered its message; without it, the sorted sets of all queues are among the keys.
    """
    known = [each.value for each in Queue]
    return [MESSAGES, RESENDS, *(ORDER.format(queue=each) for each in ([queue] if queue in known else known))]


class Outbox:
    """The outbox in the broker. With a broker that is no Redis it is always empty."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def taken(self, job_id: str, queue: str | None = None) -> None:
        """Remove a job that is in the ledger now. If that fails, `resend` removes it.

        `queue`: the queue that its message came from; without it, all queues are searched for the job.
        """
        try:
            with self._redis() as client:
                if client is None:
                    return
                _remove(client, job_id, queue)
        except (redis.RedisError, OSError) as error:
            logger.warning("job %s stays in the outbox for now: %s", job_id, type(error).__name__)

    def find(self, job_id: str) -> Outgoing | None:
        """Return a job that no worker has taken yet, if the outbox has its request."""
        with self._redis() as client:
            return None if client is None else outgoing_in(client, job_id, client.hget(MESSAGES, job_id))

    def has_eta(self, job_id: str) -> bool:
        """Return whether a valid message of a job waits for its eta, or was seen to do so within the last hour."""
        with self._redis() as client:
            return client is not None and bool(client.exists(WAITS.format(job=job_id)))

    def message(self, job_id: str) -> bytes | None:
        """Return the unparsed message of a job in the outbox, or None."""
        with self._redis() as client:
            found: bytes | None = client.hget(MESSAGES, job_id) if client is not None else None
            return found

    def find_all(self, ids: list[str]) -> dict[str, Outgoing]:
        """Return those of these jobs that are in the outbox, by id, in one round trip."""
        with self._redis() as client:
            messages = client.hmget(MESSAGES, ids) if client is not None and ids else []
        found = {id_: outgoing_of(id_, message) for id_, message in zip(ids, messages, strict=False) if message}
        return {id_: sent for id_, sent in found.items() if sent is not None}

    def send(self, jobs: list[Outgoing]) -> None:
        """Send jobs of the worker itself, each with its entry in the outbox, in one round trip."""
        with self._redis() as client:
            if client is not None:
                with client.pipeline(transaction=True) as pipeline:
                    push(pipeline, self._app, jobs)
                    pipeline.execute()
                return
        with self._app.producer_or_acquire() as producer:
            for job in jobs:
                options = {"task_id": job.job_id, "queue": job.queue, "parent_id": job.parent, "root_id": job.parent}
                self._app.send_task(
                    job.name,
                    kwargs=job.payload,
                    producer=producer,
                    ignore_result=True,
                    headers=trace_headers(),
                    **options,
                )

    def lost(self, ids: list[str]) -> set[str] | None:
        """Return which of these jobs, which no worker has taken, have no message; None if the broker cannot tell."""
        with self._redis() as client:
            if client is None:
                return None
            with client.pipeline(transaction=False) as pipeline:
                for id_ in ids:
                    pipeline.hexists(MESSAGES, id_)
                return {id_ for id_, there in zip(ids, pipeline.execute(), strict=True) if not there}

    def queue_to_pass(self, job_id: str, came_by: str | None) -> str | None:
        """Return a queue in which the message of a job without an entry here may still wait; None if there is none.

        A queue delivers its messages in order. So once a message about the job, sent later, is delivered by a queue,
        all messages that this queue got before it are delivered; `came_by` is the queue that delivered such a one now.
        """
        with self._redis() as client:
            if client is None:
                return None
            key = PASSED.format(job=job_id)
            if came_by in _PASSED_BY:
                client.sadd(key, came_by)
                client.expire(key, _PASSED_FOR)
            left = [name for name in _PASSED_BY if not client.sismember(key, name) and client.llen(name)]
            if not left:
                client.delete(key)
            return left[0] if left else None

    def resend(self, known: Known, after: timedelta, *, kept: Known = lambda _: set()) -> int:
        """Send again each message that was sent longer than `after` ago, left its queue, and is not in the ledger.

        A queue delivers its messages in order. So every message that was sent before the next one in its queue has been
        delivered. If the ledger does not have its job, the message was lost, or it is in the memory of a worker that
        was killed. Each further message of one job waits twice as long as the one before.

        A message of another program has no entry here. It returns to its queue if a worker holds it for longer than
        `after` and the ledger does not have it.

        An entry that is no message is removed and recorded among the rejected messages. A queue that cannot be
        recovered does not stop the others.

        Args:
            known: returns those of the ids that are in the ledger.
            after: the time within which a message is not sent again.
            kept: returns those of the known ids that stay in the outbox nevertheless: see `republish_results`.
        """
        sent = 0
        with self._redis() as client:
            if client is None:
                return 0
            for queue in Queue:
                try:
                    sent += _resend(client, queue.value, known, after, kept)
                except redis.ResponseError as error:
                    logger.error("outbox of %s: not recovered: Redis: %s", queue.value, bounded(error, 200))  # noqa: TRY400
            try:
                sent += _return_unacked(client, known, after)
            except redis.ResponseError as error:
                logger.error("messages of lost workers: not recovered: Redis: %s", bounded(error, 200))  # noqa: TRY400
        return sent

    def _redis(self) -> AbstractContextManager[Any]:
        return redis_of_broker(self._app)


@contextmanager
def redis_of_broker(app: Celery) -> Iterator[Any]:
    """Yield a client of the broker, None if that is no Redis."""
    with app.pool.acquire(block=True) as connection:
        if connection.transport.driver_type != _REDIS:  # known without a connection: RabbitMQ may be away
            yield None
            return
        channel = connection.default_channel
        if not hasattr(channel, _CLIENT):
            with channel.conn_or_acquire() as client:
                setattr(channel, _CLIENT, client)
        yield getattr(channel, _CLIENT)


def _remove(client: Any, job_id: str | bytes, queue: str | None) -> None:
    messages, resends, *orders = keys_of_taken(queue)
    with client.pipeline(transaction=False) as pipeline:  # one round trip
        pipeline.hdel(messages, job_id)
        pipeline.hdel(resends, job_id)
        for order in orders:
            pipeline.zrem(order, job_id)
        pipeline.execute()


def outgoing_in(client: Any, job_id: str, message: bytes | None) -> Outgoing | None:
    """Return the job of a message in the outbox, and when it was sent; None if there is none, or it is garbage."""
    found = None if message is None else outgoing_of(job_id, message)
    at = None if found is None else client.zscore(ORDER.format(queue=found.queue), job_id)
    if found is None or at is None:
        return found
    with suppress(ValueError, OverflowError, OSError):  # another program wrote a value that is not a time
        found = replace(found, sent_at=datetime.fromtimestamp(at, UTC))
    return found


def outgoing_of(job_id: str, message: bytes) -> Outgoing | None:
    """Return the job of a message in the outbox, None if it is garbage."""
    try:
        sent = json.loads(message)
        _, kwargs, _ = json.loads(base64.b64decode(sent["body"]))
        return Outgoing(sent["headers"]["task"], job_id, sent["properties"]["delivery_info"]["routing_key"], kwargs)
    except _GARBAGE:
        return None


def _resend(client: Any, queue: str, known: Known, after: timedelta, kept: Known) -> int:
    """Send the lost messages of one queue again; after a page of garbage, the next page follows at once."""
    correct_times(client, ORDER.format(queue=queue))
    until = time.monotonic() + _GARBAGE_SECONDS
    while True:
        sent, garbage = _resend_page(client, queue, known, after, kept)
        if garbage < _PAGE or time.monotonic() > until:
            return sent


def _resend_page(client: Any, queue: str, known: Known, after: timedelta, kept: Known) -> tuple[int, int]:
    """Return how many messages were sent again, and how many entries were garbage."""
    order = ORDER.format(queue=queue)
    now = time.time()
    before = min(now - after.total_seconds(), _next_in(client, queue))
    entries = client.zrangebyscore(order, "-inf", f"({before}", start=0, num=_PAGE, withscores=True)
    if not entries:
        return 0, 0
    names = [name for name, _ in entries]
    messages, resends = client.hmget(MESSAGES, names), client.hmget(RESENDS, names)
    readable = {name: name.decode() for name in names if JOB_ID.fullmatch(name.decode(errors="replace"))}
    done = known(list(readable.values()))
    stay = kept(list(done))
    sent = 0
    absent = [name for name, message in zip(names, messages, strict=True) if message is None]
    if absent:
        client.zrem(order, *absent)
        client.hdel(RESENDS, *absent)
    garbage = len(absent)
    for (name, since), message, count in zip(entries, messages, resends, strict=True):
        if message is None or readable.get(name) in stay:
            continue
        if readable.get(name) in done:
            _remove(client, name, queue)
        elif name not in readable or (again := _again(message)) is None:
            _reject(client, queue, name, message)
            _remove(client, name, queue)
            garbage += 1
        elif now - since >= after.total_seconds() * 2 ** _count(count):
            with client.pipeline(transaction=True) as pipeline:
                pipeline.zadd(order, {name: time.time()})
                pipeline.hset(RESENDS, name, _count(count) + 1)  # HINCRBY would fail at a value that is no number
                pipeline.lpush(queue, again)
                pipeline.execute()
            logger.warning("job %s: its message was lost, or its worker does not start it: sent again", name.decode())
            sent += 1
    return sent, garbage


def _return_unacked(client: Any, known: Known, after: timedelta) -> int:
    """Return to its queue each message that a worker holds for too long without starting it, and that has no entry."""
    correct_times(client, UNACKED_INDEX)
    sent = 0
    for page in lost_messages(client, after):
        done = known([held.job for held in page])
        waiting = client.hmget(MESSAGES, [held.job for held in page]) if page else []
        for held, entry in zip(page, waiting, strict=True):
            if held.job not in done and entry is None and give_back(client, held):
                logger.warning("job %s: its worker does not start it: returned to %s", held.job, held.queue)
                sent += 1
    return sent


def _again(message: bytes) -> str | None:
    """Return the message with another delivery tag, or None if it cannot be read."""
    try:
        return with_new_delivery_tag(message.decode())
    except _GARBAGE:
        return None


def _count(value: bytes | None) -> int:
    return min(int(value), _MOST_DOUBLINGS) if value is not None and value.isdigit() and len(value) < _DIGITS else 0


def _reject(client: Any, queue: str, name: bytes, message: bytes) -> None:
    shown = bounded(name.decode(errors="replace"), 128)
    logger.error("outbox of %s: the entry %s is no message: removed", queue, shown)
    what = "an entry of the outbox is no message"
    RejectedMessages(client).add(RejectedMessage.of(Rejection(Reason.OUTBOX, what), message, queue, clock.now()))


def _next_in(client: Any, queue: str) -> float:
    """Return when the next message of the queue was sent: infinity if none waits, 0 if none has the time."""
    waiting = client.lrange(queue, -_SAMPLE, -1)
    for message in reversed(waiting):
        score = client.zscore(ORDER.format(queue=queue), _id_of(message))
        if score is not None:
            return float(score)
    return 0 if waiting else math.inf


def _id_of(message: bytes) -> str:
    try:
        return str(json.loads(message)["headers"]["id"])
    except _GARBAGE:
        return ""  # no message; the worker rejects it at its delivery
