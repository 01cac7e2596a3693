"""Figures of the broker and of what all workers share in Redis."""

import json
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import Metric
from redis import Redis

from worker.beat_scheduler import last_tick
from worker.intake.delayed import DELAYED
from worker.intake.message_rules import Reason
from worker.intake.rejected import RejectedMessages
from worker.jobs.unacked import UNACKED_INDEX
from worker.jobs.waiting_messages import length_of_redis, lengths_of_rabbitmq
from worker.limits.check_pauses import paused_queues
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.concurrency import DistributedSemaphore
from worker.limits.expiring_counters import Counters
from worker.limits.shared_redis import SharedRedis, redis_of_results
from worker.metrics.family_builders import Sample, counter, gauge
from worker.metrics.totals import totals
from worker.settings import Settings
from zot_artifact_client.broker_urls import parse_url, redis_client
from zot_artifact_client.contract import Queue
from zot_artifact_client.contract.queues import UNROUTED
from zot_artifact_client.outgoing_messages import MESSAGES, ORDER

_TIMEOUT = 5
_SAMPLE = 50


class BrokerFigures:
    """Queues, outbox, rejected messages and memory of the broker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._heads: dict[str, tuple[str, float]] = {}
        """The next message of each queue, and since when it is the next one."""

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; of a broker that is no Redis only the lengths of its queues."""
        url = self._settings.broker_url  # read anew: the embedded broker has another one after a restart
        server = parse_url(url, "broker")
        if not server.is_redis:
            yield from self._of_queues(lengths_of_rabbitmq(server, [queue.value for queue in Queue]))
            return
        with redis_client(url, "broker", socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT) as client:
            yield from self._of_queues({name: length_of_redis(client, name) for name in self._queues()})
            yield from self._ages(client)
            yield from _outbox(client)
            delayed: list[Sample] = [((name,), client.zcard(DELAYED.format(queue=name))) for name in self._queues()]
            yield gauge("delayed_messages", "Messages of a queue that are not due yet.", delayed, ["queue"])
            held = [((), float(client.zcard(UNACKED_INDEX)))]
            yield gauge("unacknowledged_messages", "Messages that workers hold, those of running jobs included.", held)
            counts = RejectedMessages(client).counts()
            rejected: list[Sample] = [((reason,), counts.get(reason, 0)) for reason in Reason]
            yield counter("rejected_messages", "Messages that were no valid requests.", rejected, ["reason"])
            memory: Any = client.info("memory")
            about = "Bytes that the broker uses, and that it may use: 0 for no limit."
            kinds: list[Sample] = [(("used",), memory["used_memory"]), (("limit",), memory.get("maxmemory", 0))]
            yield gauge("broker_memory_bytes", about, kinds, ["kind"])

    def _queues(self) -> list[str]:
        names = [queue.value for queue in Queue]
        return [*names, UNROUTED] if self._settings.serves_default_queue else names

    def _of_queues(self, lengths: dict[str, int]) -> Iterator[Metric]:
        samples: list[Sample] = [((name,), length) for name, length in lengths.items()]
        yield gauge("queue_messages", "Messages that wait in a queue.", samples, ["queue"])

    def _ages(self, client: "Redis") -> Iterator[Metric]:
        """Yield how long the next message of each queue has waited.

        The outbox has the time of messages of our own client. Of any other, it is known since when it is the next one.
        """
        now, ages = time.time(), list[Sample]()
        for name in self._queues():
            waiting: Any = client.lrange(name, -_SAMPLE, -1)
            if not waiting:
                self._heads.pop(name, None)
                ages.append(((name,), 0.0))
                continue
            ids = [_id_of(message) for message in reversed(waiting)]
            if self._heads.get(name, (None, 0))[0] != ids[0]:
                self._heads[name] = (ids[0], now)
            sent: Any = next(filter(None, client.zmscore(ORDER.format(queue=name), ids)), now)
            ages.append(((name,), max(0.0, now - min(float(sent), self._heads[name][1]))))
        yield gauge("queue_oldest_message_seconds", "How long the next message of a queue has waited.", ages, ["queue"])


class SharedFigures:
    """What the workers share: their totals, circuit breakers, concurrency slots, and the last tick of beat."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; raise RedisError if there is no answer."""
        client = redis_of_results(self._settings.results_url)
        if client is None:
            return
        try:
            client.ping()
            yield from totals(client, self._settings.stores)
            yield from self._limits(client)
            passed = last_tick(client)
            about = "Seconds since beat ticked last; absent if it did not within an hour."
            yield gauge("beat_last_tick_seconds", about, [] if passed is None else [((), passed)])
            paused = paused_queues(client) or set()
            queues: list[Sample] = [((queue.value,), float(queue.value in paused)) for queue in Queue]
            yield gauge("queue_paused", "Whether a queue is paused.", queues, ["queue"])
        finally:
            client.close()

    def _limits(self, client: "Redis") -> Iterator[Metric]:
        shared, names = SharedRedis(lambda: client), list(self._settings.stores)
        counters = Counters(shared)
        opened = {name: CircuitBreaker(name, counters, self._settings.breaker).opened() for name in names}
        is_open: list[Sample] = [((name,), float(found is not None)) for name, found in opened.items()]
        about = "Whether the circuit breaker of a store is open, or half-open: until a probe succeeds."
        yield gauge("store_breaker_open", about, is_open, ["store"])
        semaphore = DistributedSemaphore(shared, seconds=self._settings.jobs.lease.total_seconds())
        limits = {name: limit.concurrency for name, limit in self._settings.store_limits.items() if limit.concurrency}
        slots: list[Sample] = [((name, "limit"), limit) for name, limit in limits.items()]
        slots += [((name, "used"), semaphore.taken(name)) for name in limits]
        yield gauge("store_slots", "Concurrency slots of a store, and how many are used.", slots, ["store", "kind"])


def _outbox(client: "Redis") -> Iterator[Metric]:
    yield gauge(
        "outbox_jobs", "Jobs in the outbox: no worker has taken them yet.", [((), float(client.hlen(MESSAGES)))]
    )
    now = time.time()
    ages: list[Sample] = []
    for queue in Queue:
        first: Any = client.zrange(ORDER.format(queue=queue.value), 0, 0, withscores=True)
        ages.append(((queue.value,), max(0.0, now - float(first[0][1])) if first else 0.0))
    yield gauge("outbox_oldest_seconds", "How long the oldest job of a queue waits in the outbox.", ages, ["queue"])


def _id_of(message: bytes) -> str:
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
