"""The limits that all workers share: slots and bandwidth, with a real Valkey and without one."""

import io
import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from tests.integration.limits.limited_stores import Job, limited, read, write
from tests.servers.freezing_proxy import FreezingProxy
from tests.servers.silent_host import SilentHost
from tests.waiting import WITHIN, until
from worker.jobs.running_job import Cancelled
from worker.limits.bandwidth import BandwidthLimit
from worker.limits.concurrency import DistributedSemaphore
from worker.limits.shared_redis import SharedRedis, result_backend
from worker.limits.snooze import Snooze
from worker.limits.store_wait import StoreWait
from worker.settings.section_models import StoreLimits

SPAWN = multiprocessing.get_context("spawn")  # the tests' own process has threads, which no fork survives


# DistributedSemaphore


def crowd(url: str, name: str, together: "multiprocessing.synchronize.Barrier") -> None:
    """Take slots from several threads of a process, at last one that is held until each process has one.

    Redis is told how many are held at once.
    """
    redis = Redis.from_url(url)
    slots = DistributedSemaphore(SharedRedis(lambda: redis), seconds=WITHIN)

    def one(n: int) -> None:
        for turn in range(12):
            slot = slots.acquire(name, f"{os.getpid()}-{n}-{turn}", limit=3, local_limit=1)
            if slot is None:
                redis.incr("refused")
                time.sleep(0.002)  # no event tells that a slot is free
                continue
            with slot:
                redis.zadd("most", {"most": redis.incr("inside")}, gt=True)
                time.sleep(0.005)  # the others find it taken meanwhile
                redis.decr("inside")

    together.wait(WITHIN)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))
    together.wait(WITHIN)
    last = slots.acquire(name, f"{os.getpid()}-last", limit=3, local_limit=1)
    assert last is not None
    with last:
        redis.zadd("most", {"most": redis.incr("inside")}, gt=True)
        together.wait(WITHIN)


def test_never_more_than_the_limit_over_processes_and_threads(url):
    """Nine takers in three processes never hold more than the three slots there are, and all three are used."""
    together = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=crowd, args=(url, "crowd", together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WITHIN)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    redis = Redis.from_url(url)
    assert redis.zscore("most", "most") == 3
    assert int(redis.get("refused")) > 0
    assert redis.zcard("zot-artifacts:places:crowd") == 0


def hold(url: str, ready: "multiprocessing.synchronize.Event") -> None:
    slots = DistributedSemaphore(SharedRedis(lambda: Redis.from_url(url)), seconds=2)
    with slots.acquire("s", "killed", limit=2, local_limit=1):
        ready.set()
        time.sleep(600)  # it is killed before


def test_the_slot_of_a_killed_holder_comes_free_by_itself(url, shared):
    """A holder keeps its slot for as long as it lives; once one of two is killed, another has it within its time."""
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(url, ready))
    process.start()
    assert ready.wait(WITHIN)
    slots = DistributedSemaphore(shared, seconds=2)

    def free() -> bool:
        slot = slots.acquire("s", "other", limit=2, local_limit=1)
        if slot is not None:
            slot.release()
        return slot is not None

    with slots.acquire("s", "alive", limit=2, local_limit=1):
        deadline = time.monotonic() + 4.1
        while time.monotonic() < deadline:  # more than twice their time
            assert not free()
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        until(free)


def test_slots_of_a_clock_that_was_ahead_are_free(url, shared):
    """Slots that expire later than any can, because the clock of Redis was a day ahead, keep no job waiting."""
    client = Redis.from_url(url)
    client.zadd("zot-artifacts:places:a", {"killed": time.time() + 86400, "garbage": 4e12})
    slots = DistributedSemaphore(shared, seconds=30)
    with slots.acquire("a", "job", limit=1, local_limit=1):
        assert slots.taken("a") == 1
    client.close()


def test_a_holder_whose_slot_is_anothers_takes_another_one(url, shared, admission, monkeypatch):
    """A process that was stopped for longer than its slot lasts moves not a byte more until it has a slot again.

    A job is snoozed while all are taken, and a command waits.
    """
    monkeypatch.setattr("worker.limits.admission._BUSY", (0.01, 0.02))
    ours = admission(shared, store_limits={"a": StoreLimits(concurrency=1)}, jobs={"lease": "0.3s"})
    places, told = "zot-artifacts:places:a", list[str]()
    redis, store = Redis.from_url(url), limited(ours)

    def lose() -> None:
        with redis.pipeline(transaction=True) as both:  # a renewal in between would take the slot again
            both.delete(places)
            both.zadd(places, {"another": time.time() + 60})
            both.execute()
        until(lambda: store._slot.lost)

    def ends(line: str) -> None:
        told.append(line)
        redis.zrem(places, "another")

    with store.read_object("releases", "app") as reader:
        assert reader.read(1) == b"r"
        lose()
        with pytest.raises(Snooze, match="the concurrency limit") as error:
            reader.read(1)
        assert error.value.store == "a"
        redis.zrem(places, "another")
        assert reader.read(1) == b"l"
        assert redis.zrange(places, 0, -1) == [b"job:1"]
    store._wait = StoreWait("a", ends)
    with store.read_object("releases", "app") as reader:
        for data in (b"rel", b"ease"):
            lose()
            assert reader.read(len(data)) == data
            assert redis.zrange(places, 0, -1) == [b"job:1"]
    assert len(told) == 2, "each wait is told, and has its own ten minutes"
    assert redis.zcard(places) == 0
    redis.close()


def test_a_job_has_one_slot_whatever_the_number_of_its_transfers(url, shared, admission):
    """Threads of one job share its slot, which is free again when the last of their transfers has ended."""
    store = limited(admission(shared, store_limits={"a": StoreLimits(concurrency=1)}))
    redis = Redis.from_url(url)
    with store.read_object("releases", "app"):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: read(store), range(8))) == [b"release"] * 8
        assert redis.zcard("zot-artifacts:places:a") == 1
    assert redis.zcard("zot-artifacts:places:a") == 0


def test_without_redis_a_process_keeps_to_its_share(alone, admission, caplog):
    """Redis cannot be asked: a process takes its share of the slots, never all, and says so once."""
    ours = admission(alone, store_limits={"a": StoreLimits(concurrency=4, local_share=0.5)})
    with (
        caplog.at_level(logging.WARNING),
        limited(ours, job=Job("1")).slot(),
        limited(ours, job=Job("2")).slot(),
        pytest.raises(Snooze, match="the concurrency limit"),
    ):
        read(limited(ours, job=Job("3")))
    assert read(limited(ours, job=Job("4"))) == b"release"
    assert len([record for record in caplog.records if "cannot be shared" in record.message]) == 1


def test_redis_that_comes_back_is_asked_again(valkey, url, monkeypatch, caplog):
    """What was decided alone while Redis was away is shared again once it answers."""
    monkeypatch.setattr("worker.limits.shared_redis._NOT_ASKED_FOR", 0.0)
    with Redis.from_url(url) as client:
        slots = DistributedSemaphore(SharedRedis(lambda: client), seconds=5)
        valkey.kill()
        with slots.acquire("back", "one", limit=5, local_limit=1):
            assert slots.acquire("back", "two", limit=5, local_limit=1) is None
        valkey.restart()
        with caplog.at_level(logging.WARNING), slots.acquire("back", "one", limit=2, local_limit=0):
            assert client.zcard("zot-artifacts:places:back") == 1
    assert any("shared with all workers again" in record.message for record in caplog.records)


def test_the_redis_of_the_result_backend_is_shared(url):
    """Whatever the broker is, the Redis that keeps the results is asked; without one, no Redis is."""
    with Celery(broker="memory://", backend=url, set_as_current=False) as app:
        found = result_backend(app)
        assert found is not None
        assert found.connection_pool is not app.backend.client.connection_pool
        with found:
            assert SharedRedis(lambda: found).ask(lambda redis: redis.ping(), lambda: False)
    for backend in ("rpc://", None):
        with Celery(broker="memory://", backend=backend, set_as_current=False) as app:
            assert result_backend(app) is None


def test_a_slot_whose_thread_cannot_start_is_given_back(shared, url, monkeypatch):
    """The machine has no room for a thread: others get the slot, and so does this process while Redis is away."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    slots = DistributedSemaphore(shared, seconds=60)
    with monkeypatch.context() as full:
        full.setattr(threading, "_start_new_thread", refuse)
        with pytest.raises(RuntimeError, match="thread"):
            slots.acquire("full", "one", limit=1, local_limit=1)
    assert Redis.from_url(url).zcard("zot-artifacts:places:full") == 0
    assert slots._local["full"] == set()


def test_a_slot_is_renewed_although_redis_was_silent_for_a_moment(url, shared, monkeypatch):
    """No other question is asked for longer than a slot lasts; the next job would get the slot of one that runs."""

    def say_nothing(_: Redis) -> None:
        raise RedisTimeout

    monkeypatch.setattr("worker.limits.shared_redis._NOT_ASKED_FOR", 3600)
    slots, key = DistributedSemaphore(shared, seconds=4), "zot-artifacts:places:busy"
    with Redis.from_url(url) as client, slots.acquire("busy", "one", limit=1, local_limit=1):
        until_now = client.zscore(key, "one")
        shared.ask(say_nothing, lambda: None)
        assert until(lambda: client.zscore(key, "one") != until_now)
        assert client.zscore(key, "one"), "it has expired"


def test_a_silent_redis_is_asked_once_and_not_again_for_a_while(monkeypatch):
    """A worker would otherwise spend its time with waiting: its main process asks every two seconds."""
    monkeypatch.setattr("worker.limits.shared_redis._TIME_LIMITS", {"socket_timeout": 0.2, "socket_connect_timeout": 5})
    with SilentHost() as host:
        url = host.origin.replace("http", "redis")
        with Celery(broker="memory://", backend=url, set_as_current=False) as app:
            shared = SharedRedis(lambda: result_backend(app))
            assert [shared.ask(lambda redis: redis.ping(), lambda: "alone") for _ in range(3)] == ["alone"] * 3
        assert host.connections == 1


def test_a_redis_that_was_silent_is_asked_again_soon_after_it_answers(valkey, url, monkeypatch):
    """Requests to cancel and pauses wait for it; while it is silent, it is only pinged."""
    monkeypatch.setattr("worker.limits.shared_redis._NOT_ASKED_FOR", 0.0)
    monkeypatch.setattr("worker.limits.shared_redis._TIMES_AS_LONG", 1_000_000)
    with FreezingProxy(valkey.port) as line, Redis(port=line.port, socket_timeout=0.3) as client:
        client.set_retry(Retry(NoBackoff(), 0))
        shared, asked = SharedRedis(lambda: client), list[str]()

        def ask() -> str:
            return shared.ask(lambda redis: (asked.append("full"), str(redis.ping()))[1], lambda: "alone")

        line.freeze()
        assert [ask() for _ in range(3)] == ["alone"] * 3
        assert asked == ["full"]
        line.thaw()
        assert ask() == "True"


def test_the_share_is_one_of_as_many_processes_as_there_were(url, shared, admission):
    """A process that has seen three others takes a quarter of the limit by itself."""
    redis = Redis.from_url(url)
    redis.zadd("zot-artifacts:places:processes", {name: time.time() + 60 for name in "xyz"})
    ours = admission(shared, store_limits={"a": StoreLimits(concurrency=8)})
    read(limited(ours))
    assert ours._share == 1 / 4


# Bandwidth


def spend(url: str, total: int, limit: int, together: "multiprocessing.synchronize.Barrier") -> None:
    bandwidth = BandwidthLimit(SharedRedis(lambda: Redis.from_url(url)))
    together.wait(WITHIN)
    for _ in range(total // 10_000):
        bandwidth.take("s", 10_000, limit=limit, local_limit=1024, waiting=lambda: None)


def test_all_processes_together_keep_to_the_bytes_per_second(url):
    """Two processes that move 400 kB each at 300 kB/s in all need more than a second and a half for it."""
    together = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=spend, args=(url, 400_000, 300_000, together)) for _ in range(2)]
    for process in processes:
        process.start()
    together.wait(WITHIN)
    begun = time.monotonic()
    for process in processes:
        process.join(WITHIN)
    assert [process.exitcode for process in processes] == [0, 0]
    assert time.monotonic() - begun > 1.5  # 800 kB, of which the first second's 300 kB are free at once


def test_without_redis_bytes_keep_to_the_share(alone):
    """Redis cannot be asked: a process moves its share of the bytes a second, and continues to."""
    begun = time.monotonic()
    BandwidthLimit(alone).take("s", 300_000, limit=1_000_000, local_limit=200_000, waiting=lambda: None)
    assert time.monotonic() - begun > 0.4


def test_a_job_that_waits_for_its_bytes_is_stopped_like_any_other(shared, admission):
    """A cancelled job does not wait out its turn: it ends at the next poll."""
    ours = admission(shared, store_limits={"a": StoreLimits(bytes_per_second="1KiB")})
    job = Job()
    threading.Timer(0.2, setattr, (job, "stop", True)).start()
    with pytest.raises(Cancelled):
        write(limited(ours, job=job), io.BytesIO(bytes(1 << 20)))  # would take 17 minutes
