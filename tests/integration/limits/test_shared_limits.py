"""The limits that all workers share: slots, bandwidth and circuit breaker, with a real Valkey and without one."""

import hashlib
import io
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from tests.memory_driver import MemoryDriver
from tests.servers.freezing_proxy import FreezingProxy
from tests.servers.process import free_port
from tests.servers.silent_host import SilentHost
from tests.waiting import WITHIN, until
from worker.catalogue import LostLease
from worker.jobs.running_job import Cancelled
from worker.limits.admission import Admission
from worker.limits.bandwidth import BandwidthLimit
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.concurrency import DistributedSemaphore
from worker.limits.expiring_counters import Counters
from worker.limits.limited_store import REFUSED, LimitedStore, LimitedStores
from worker.limits.shared_redis import SharedRedis, result_backend
from worker.limits.snooze import Snooze, StoreRefuses
from worker.settings import Settings
from worker.settings.section_models import BreakerSettings, StoreLimits
from worker.storage import Digest, Store, Stores
from worker.storage.config import FilesystemConfig
from worker.storage.driver import HashedBytes, ObjectProperties, SmallPut
from worker.storage.errors import (
    AccessDenied,
    Archived,
    Conflict,
    DigestMismatch,
    NotDeleted,
    NotFound,
    PermanentError,
    SameStore,
    Unavailable,
)
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.identity import MARKER_KEY, Identity, KnownIdFiles
from worker.storage.integrity.manifest import Manifest
from worker.storage.integrity.verifying_reader import Readable

SPAWN = multiprocessing.get_context("spawn")  # the tests' own process has threads, which no fork survives


class Job:
    """As much of a running job as the limits see."""

    def __init__(self, id_: str = "job") -> None:
        self.id = id_
        self.fence = 1
        self.stop = self.lost = False

    def heartbeat(self, _count: int = 0) -> None:
        if self.stop:
            raise Cancelled(self.id)

    def confirm_lease(self) -> None:
        if self.lost:
            raise LostLease(self.id)


class FailingDriver(MemoryDriver):
    """A store in memory whose requests fail on demand."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.error: Exception | None = None
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def stat(self, bucket, key):
        self._ask()
        return super().stat(bucket, key)

    def put(self, *args, **options):
        self._ask()
        return super().put(*args, **options)

    def open(self, *args, **options):
        self._ask()
        return super().open(*args, **options)


class UncheckedDriver(FailingDriver):
    """A store that checks no checksums, so that what it takes is read back."""

    @property
    def capabilities(self):
        return replace(super().capabilities, checks_uploads=False)


@pytest.fixture
def url(valkey) -> str:
    valkey.empty()
    return valkey.url


@pytest.fixture
def shared(url) -> Iterator[SharedRedis]:
    with Redis.from_url(url) as client:
        yield SharedRedis(lambda: client)


@pytest.fixture
def alone() -> SharedRedis:
    """Return what a process has whose Redis does not answer."""
    client = Redis(port=free_port(), socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
    return SharedRedis(lambda: client)


@pytest.fixture
def admission(tmp_path) -> Callable[..., Admission]:
    def make(shared: SharedRedis, probe: Callable[[str], object] = lambda _: None, **settings: object) -> Admission:
        stores = {name: FilesystemConfig(root=tmp_path / name) for name in ("a", "b")}
        return Admission(Settings(home=tmp_path, stores=stores, **settings), probe, shared)  # type: ignore[arg-type]

    return make


def limited(admission: Admission, name: str = "a", job: Job | None = None, *, content: bytes = b"release") -> Any:
    """Return a store as a job sees it, with one object in it, and its driver as `driver`."""
    driver = FailingDriver(name)
    store = Store(driver)
    store.write_object("releases", "app", io.BytesIO(content))
    driver.asked = 0
    bound = LimitedStore(store, admission, job or Job())
    bound.driver = driver  # type: ignore[attr-defined]
    return bound


def read(store: LimitedStore) -> bytes:
    with store.read_object("releases", "app") as reader:
        return b"".join(iter(lambda: reader.read(1000), b""))


def stat(store: LimitedStore) -> None:
    store.stat_object("releases", "app")


def write(store: LimitedStore, source: Readable | None = None, key: str = "new") -> None:
    store.write_object("releases", key, source or io.BytesIO(b"new"))


def fail_with(store: Any, error: Exception, call: Callable[[Any], object] = read) -> None:
    store.driver.error = error
    with pytest.raises(type(error)):
        call(store)
    store.driver.error = None


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


def test_a_holder_whose_slot_is_anothers_stops(url, shared, admission):
    """A process that renewed its slot so late that it was given away moves not a byte more."""
    ours = admission(shared, store_limits={"a": StoreLimits(concurrency=1)}, jobs={"lease": "0.3s"})
    redis, store = Redis.from_url(url), limited(ours)
    with store.read_object("releases", "app") as reader:
        reader.read(1)
        with redis.pipeline(transaction=True) as both:  # a renewal in between would take the slot again
            both.delete("zot-artifacts:places:a")
            both.zadd("zot-artifacts:places:a", {"another": time.time() + 60})
            both.execute()
        until(lambda: store._slot.lost)
        with pytest.raises(Snooze, match="given to another") as error:
            reader.read(1)
    assert error.value.store == "a"


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


# The breaker


@pytest.fixture(params=["shared", "alone"])
def counters(request) -> Counters:
    return Counters(request.getfixturevalue(request.param))


def breaker(counters: Counters, **settings: object) -> CircuitBreaker:
    given = {"failures": 3, "within": "60s", "open": "60s", "open_max": "200s", **settings}
    return CircuitBreaker("s", counters, BreakerSettings(**given))


def fails() -> None:
    raise Unavailable("s: still away")


def seconds_open(tested: CircuitBreaker) -> float:
    with pytest.raises(Snooze) as error:
        tested.check(lambda: pytest.fail("it was probed while its breaker was open"))
    assert error.value.seconds > tested.seconds_open()  # no job comes back before it is over
    return tested.seconds_open()


def test_failures_in_a_row_open_it_and_a_probe_closes_it(counters):
    """Three failures open it; a probe that fails opens it for twice as long, up to the most; a good one closes it."""
    tested = breaker(counters)
    for _ in range(3):
        tested.check(pytest.fail)
        tested.record_failure()
    assert 40 < seconds_open(tested) <= 60
    for longest in (120, 200):
        counters.delete("breaker:s:open")  # as if its time were over
        with pytest.raises(Snooze):
            tested.check(fails)
        assert longest - 20 < seconds_open(tested) <= longest
    counters.delete("breaker:s:open")
    probes: list[int] = []
    tested.check(lambda: probes.append(1))
    tested.check(pytest.fail)
    assert probes == [1]
    tested.record_failure()
    tested.check(pytest.fail)  # one failure after it closed is one, not the fourth


def test_an_open_breaker_tells_why(counters):
    """Jobs that wait tell the error that opened it, then that of the last probe; nothing of it outlives the breaker."""
    tested = breaker(counters, failures=2)
    tested.record_failure("s: it is slow")
    tested.record_failure("s: its marker is gone")
    with pytest.raises(Snooze, match="^s: .* is open: its marker is gone$"):
        tested.check(pytest.fail)
    counters.delete("breaker:s:open")
    with pytest.raises(Snooze, match="is open: still away$"):
        tested.check(fails)
    counters.delete("breaker:s:open")
    tested.check(lambda: None)
    tested.record_failure()
    tested.record_failure()
    with pytest.raises(Snooze, match="is open$"):
        tested.check(pytest.fail)


def test_a_breaker_knows_that_it_was_closed_lately(counters):
    """It does from the success of a probe until it opens again."""
    tested = breaker(counters, failures=1)
    tested.close()
    assert not tested.closed_lately()  # it was not open
    for _ in range(2):
        tested.record_failure()
        assert not tested.closed_lately()
        counters.delete("breaker:s:open")  # as if its time were over
        assert not tested.closed_lately()
        tested.check(lambda: None)
        assert tested.closed_lately()


@pytest.mark.parametrize("open_max", ["10m", "3d"])
def test_a_breaker_stays_open_for_as_long_as_its_store_is_away(counters, open_max):
    """Each time that it opens, what it keeps outlives that time by a day: so jobs are told when it closes at last."""
    tested = breaker(counters, failures=1, open=open_max, open_max=open_max)
    tested.record_failure("s: away")
    for _ in range(2):
        left = tested.seconds_open()
        assert counters.get("breaker:s:opened")[0][1] > left + 80_000
        counters.increment("breaker:s:opened", 5, renew=True)  # as if the rest of its day were over
        counters.delete("breaker:s:open")
        with pytest.raises(Snooze, match="still away"):
            tested.check(fails)
    assert counters.get("breaker:s:opened")[0][1] > tested.seconds_open() + 80_000
    counters.delete("breaker:s:open")
    tested.check(lambda: None)
    assert tested.closed_lately()


@pytest.mark.parametrize("until", [None, 86400])
def test_a_breaker_that_a_wrong_clock_opened_closes(url, shared, until):
    """A breaker that is open for longer than any can be, or for ever, is probed; its values may be no numbers."""
    client = Redis.from_url(url)
    for name in ("open", "opened", "failures", "probing"):
        client.set(f"zot-artifacts:breaker:s:{name}", "garbage", ex=until)
    tested = breaker(Counters(shared))
    with pytest.raises(Snooze):  # it seems to be probed by another job
        tested.check(lambda: None)
    tested.check(lambda: None)
    assert tested.check(lambda: None) is False
    client.close()


def test_what_was_read_at_the_start_of_a_job_counts_until_a_store_fails(admission, shared, url):
    """While no counter exists, the first calls of a job ask Redis nothing; a failure, or any counter, ends that."""
    tested = admission(shared, breaker={"failures": 1})
    with Redis.from_url(url) as client:
        tested.breakers_read(client.exists(*tested.breaker_keys))
        client.set("zot-artifacts:breaker:a:open", 1, px=60_000)  # by another process, a moment later
        assert not tested.check("a")
        tested.breakers_read(client.exists(*tested.breaker_keys))
        with pytest.raises(Snooze):
            tested.check("a")
        client.flushdb()
        tested.breakers_read(client.exists(*tested.breaker_keys))
        tested.record_failure("b")
        with pytest.raises(Snooze):
            tested.check("b")


def test_a_success_between_failures_keeps_it_closed(counters):
    """Failures that are not in a row open nothing."""
    tested = breaker(counters)
    for _ in range(4):
        tested.record_failure()
        tested.record_failure()
        assert tested.check(pytest.fail)
        tested.record_success()
        assert not tested.check(pytest.fail)


def test_a_counter_that_is_told_as_gone_counts_no_more(counters):
    """Redis tells 0 milliseconds of a key in its last one, which still counts."""
    for number in range(5):
        counters.increment(f"gone-{number}", 0.02)
        while counters.get(f"gone-{number}")[0][0]:
            pass
        assert counters.increment(f"gone-{number}", 0.02) == 1


def test_failures_that_are_far_apart_open_nothing(counters):
    """A failure counts for its time only."""
    tested = breaker(counters, within="1s")
    tested.record_failure()
    tested.record_failure()
    until(lambda: not tested.check(pytest.fail))
    tested.record_failure()
    assert tested.check(pytest.fail)


def test_a_store_that_answers_no_is_there(counters):
    """A probe that is refused for good closes the breaker: the jobs tell what is wrong, waiting would hide it."""
    tested = breaker(counters, failures=1, open="0.05s")
    tested.record_failure()
    until(lambda: tested.seconds_open() == 0)

    def refused() -> None:
        raise AccessDenied("s: no")

    assert not tested.check(refused)
    assert not tested.check(pytest.fail)


def test_a_counter_in_its_last_moment_is_there_with_time_left_or_not_there(counters):
    """A breaker that has no time left is not open."""
    for _ in range(30):
        counters.set_if_absent("brief", 0.005)
        while (found := counters.get("brief")[0])[0]:
            assert found[1] > 0


def test_exactly_one_of_many_probes_the_store(url):
    """Eight workers that ask when the time is over probe the store once; the others are told to wait."""
    breakers = [
        breaker(Counters(SharedRedis(lambda: Redis.from_url(url))), failures=1, open="0.05s") for _ in range(8)
    ]  # each as in a process of its own
    breakers[0].record_failure()
    until(lambda: breakers[0].seconds_open() == 0)
    probes: list[int] = []
    told_to_wait: list[int] = []
    together = threading.Barrier(8)

    def probe() -> None:
        probes.append(1)
        until(lambda: len(probes) + len(told_to_wait) == 8)

    def come(tested: CircuitBreaker) -> bool:
        together.wait(WITHIN)
        try:
            tested.check(probe)
        except Snooze:
            told_to_wait.append(1)
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        let_in = list(pool.map(come, breakers))
    assert probes == [1]
    assert any(let_in)
    assert all(pool_of_them.check(pytest.fail) is False for pool_of_them in breakers)


# What a limited store blames


def test_an_error_of_a_source_counts_against_the_source_and_not_the_target(shared, admission):
    """A copy whose source fails while it is written opens the breaker of the source; the error names the source."""
    ours = admission(shared, breaker={"failures": 1})
    source, target = limited(ours, "a", content=bytes(5000)), limited(ours, "b")
    with source.read_object("releases", "app") as reader:
        reader._reader._reader.read = lambda _size: (_ for _ in ()).throw(Unavailable("a: away"))
        reader._reader._body._source = reader._reader._reader
        with pytest.raises(Unavailable) as error:
            write(target, reader)
    assert error.value.store == "a"
    write(target)
    with pytest.raises(Snooze, match="a: the store keeps failing") as snooze:
        read(source)
    assert snooze.value.store == "a"


def test_no_driver_takes_an_error_of_a_source_for_its_own(shared, admission, monkeypatch):
    """A source that is gone leaves the write as that, also where the target would call an upload that is gone so."""
    source, target = limited(admission(shared), "a"), limited(admission(shared), "b")
    put = target.driver.put

    def put_in_parts(*args: Any, **options: Any) -> Any:
        try:
            return put(*args, **options)
        except NotFound as error:
            raise Unavailable("b: another writer ended the upload") from error

    monkeypatch.setattr(target.driver, "put", put_in_parts)
    with source.read_object("releases", "app") as reader:
        monkeypatch.setattr(reader._reader, "read", lambda _size: (_ for _ in ()).throw(NotFound("a: not there")))
        with pytest.raises(NotFound) as error:
            write(target, reader)
    assert error.value.store == "a"


def test_an_error_of_a_target_counts_against_the_target_and_not_the_source(shared, admission):
    """A copy whose target fails opens the breaker of the target alone."""
    ours = admission(shared, breaker={"failures": 1})
    source, target = limited(ours, "a"), limited(ours, "b")
    with source.read_object("releases", "app") as reader:
        target.driver.error = Unavailable("b: away")
        with pytest.raises(Unavailable) as error:
            write(target, reader)
    assert error.value.store == "b"
    assert read(source) == b"release"
    with pytest.raises(Snooze, match="b: the store keeps failing"):
        write(target)


OBJECT_ERRORS = [
    AccessDenied("a: not allowed"),
    PermanentError("a: the object is archived"),
    PermanentError("a: the KMS key is disabled"),
    DigestMismatch("a: other bytes"),
    NotFound("a: not there"),
    Conflict("a: another writer wrote it"),
    NotDeleted("a: it is still there"),
]


@pytest.mark.parametrize("error", OBJECT_ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_wrong_with_one_object_never_counts_against_its_store(shared, admission, error):
    """Whichever verb meets it: the breaker stays closed, and the error names the store."""
    store = limited(admission(shared, breaker={"failures": 1}))
    for call in (read, write, lambda store: store.stat_object("releases", "app")):
        fail_with(store, error, call)
        assert error.store == "a"
    store.driver.error = error
    assert store.verify_object("releases", "app", Digest(7, "a" * 64)).verdict in {"unreadable", "missing"}
    store.driver.error = None
    assert read(limited(admission(shared, breaker={"failures": 1}))) == b"release"


def test_an_object_that_others_overwrite_never_counts(shared, admission):
    """An object that is replaced while it is verified is a conflict, which may pass and says nothing of its store."""
    store = limited(admission(shared, breaker={"failures": 1}), content=b"once")
    opened = store.driver.open

    def replace_and_open(*args: Any, **options: Any) -> Any:
        Store(store.driver).write_object("releases", "app", io.BytesIO(b"more"))
        return opened(*args, **options)

    store.driver.open = replace_and_open
    chunks = Manifest(4, 1, bytes(4 * 32))
    seen = store.verify_object("releases", "app", Digest(4, "a" * 64), manifest=chunks)
    assert (seen.verdict, type(seen.error)) == ("unreadable", Conflict)
    assert read(store) == b"more"


def test_a_copy_that_cannot_be_read_counts_if_that_may_pass(shared, admission):
    """A verification never raises for what it finds; a store that does not answer it fails nevertheless."""
    store = limited(admission(shared, breaker={"failures": 1}))
    store.driver.error = Unavailable("a: away")
    assert store.verify_object("releases", "app", Digest(7, "a" * 64)).verdict == "unreadable"
    with pytest.raises(Snooze, match="a: the store keeps failing"):
        read(store)


@pytest.mark.parametrize(
    "call",
    [
        read,
        write,
        lambda store: store.verify_object("releases", "app", Digest(7, "a" * 64)),
        lambda store: store.stat_object("releases", "app"),
        lambda store: store.delete_object("releases", "app"),
        lambda store: list(store.list_objects("releases")),
        lambda store: list(store.iter_stale_uploads()),
        lambda store: store.quarantine_object("releases", "app", "job"),
        lambda store: store.copy_object(store, "releases", "app", Digest(7, "a" * 64)),
    ],
    ids=["read", "write", "verify", "stat", "delete", "list", "stale", "quarantine", "copy"],
)
def test_no_method_asks_a_store_whose_breaker_is_open(shared, admission, call):
    """Whatever a job calls, it is told to wait, and nothing is sent to the store."""
    ours = admission(shared, breaker={"failures": 1})
    ours.record_failure("a")
    store = limited(ours)
    with pytest.raises(Snooze, match="a: the store keeps failing"):
        call(store)
    assert store.driver.asked == 0


def test_no_method_changes_an_object_once_the_lease_of_its_job_is_lost(shared, admission):
    """Whatever a worker that was frozen calls next, its store stays as other jobs have left it."""
    job, digest = Job(), Digest(7, hashlib.sha256(b"release").hexdigest())
    store = limited(admission(shared), job=job)
    found, chunks = store.stat_object("releases", "app"), Manifest(7, 1, bytes.fromhex(digest.sha256))
    job.lost, store.driver.asked = True, 0
    for call in (
        write,
        lambda store: store.write_objects([SmallPut("releases", "new", HashedBytes.of(b"new"))]),
        lambda store: store.delete_object("releases", "app"),
        lambda store: store.copy_object(store, "releases", "app", digest),
        lambda store: store.patch_object(found, chunks, digest, [], lambda _: b""),
        lambda store: store.quarantine_object("releases", "app", "job"),
    ):
        with pytest.raises(LostLease):
            call(store)
    assert store.driver.asked == 0


def test_no_object_is_made_once_the_lease_is_lost_while_its_source_is_read(shared, admission, tmp_path):
    """The worker was frozen in the middle of a write, whether its store takes a stream or waits for all bytes."""
    directory = Store(FilesystemDriver("primary", FilesystemConfig(root=tmp_path)))
    ours = admission(shared)
    for store, job in ((directory, Job()), (Store(MemoryDriver("primary")), Job())):

        class Freezing(io.BytesIO):
            def read(self, size: int | None = -1, /, job: Job = job) -> bytes:
                job.lost = True
                return super().read(size)

        with pytest.raises(LostLease):
            LimitedStore(store, ours, job).write_object("releases", "new", Freezing(b"release"))
        assert not store.object_exists("releases", "new")


def test_a_store_that_refuses_tags_does_not_refuse_all(shared, admission, monkeypatch):
    """The right to read tags is optional: a job on many objects goes on without it."""
    store = LimitedStore(Store(FailingDriver("a")), admission(shared), Job(), refused_for=1.0)

    def refuse(*_: object) -> None:
        raise AccessDenied("a: no right to read tags")

    monkeypatch.setattr(Store, "tags", refuse)
    for _ in range(REFUSED):
        with pytest.raises(AccessDenied):
            store.tags("releases", "app")
    write(store)


def test_a_store_that_becomes_the_place_of_another_one_refuses_all_at_once(shared, admission, tmp_path):
    """Nothing of one object is the cause: also after it has served others, the first refusal counts."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").mkdir()
    configs = {name: FilesystemConfig(root=tmp_path / name) for name in ("disk", "a")}
    stores = Stores(configs, known_ids=KnownIdFiles(tmp_path, configs))
    for store in stores.values():
        store.write_object("releases", "app", io.BytesIO(b"release"))
    store = LimitedStore(stores["a"], admission(shared), Job(), refused_for=1.0)
    store.stat_object("releases", "app", as_copy=True)
    (tmp_path / "a").rename(tmp_path / "away")
    (tmp_path / "a").symlink_to(tmp_path / "disk")
    KnownIdFiles(tmp_path, configs).forget("a")  # as `stores accept` does it
    with pytest.raises(SameStore):
        store.stat_object("releases", "app", as_copy=True)
    with pytest.raises(StoreRefuses, match="a: it refuses all that a page asks: stores a and disk are one physical"):
        store.admit()


def test_a_store_that_answers_about_one_object_does_not_refuse_all(shared, admission):
    """What it says before its refusals counts, and what it says after them to a request that was sent before.

    S3 tells only those who may read that there is no object. What is said of one verb says nothing of another.
    """

    def made() -> Any:
        store = limited(admission(shared))
        store._refused_for = 1.0

        def deny(key: str) -> None:
            if key == "denied":
                raise AccessDenied("a: no")

        stat, open_ = store.driver.stat, store.driver.open
        store.driver.stat = lambda bucket, key: deny(key) or stat(bucket, key)
        store.driver.open = lambda bucket, key, *args, **options: deny(key) or open_(bucket, key, *args, **options)
        return store

    def refuse(call: Callable[[str, str], object]) -> None:
        for _ in range(REFUSED):
            with pytest.raises(AccessDenied):
                call("releases", "denied")

    for error, call, answered in (
        (NotFound, lambda store: store.stat_object("releases", "absent"), True),
        (NotFound, lambda store: store.read_object("releases", "absent"), False),
        (Archived, lambda store: fail_with(store, Archived("a: cold"), stat), True),
    ):
        store = made()
        with suppress(error):
            call(store)
        refuse(store.stat_object)
        with nullcontext() if answered else pytest.raises(StoreRefuses):
            store.admit()
    for expected in (None, Digest(7, "a" * 64)):
        store = made()
        reader = store.read_object("releases", "app", expected=expected)
        refuse(store.read_object)
        with pytest.raises(StoreRefuses, match="a: it refuses all that a page asks: no"):
            store.admit()
        with suppress(DigestMismatch):
            while reader.read(1000):
                pass
        store.admit()
    store = made()
    read(store)
    store.driver.put = lambda *_, **__: store.driver.open("releases", "denied")  # as on a disk mounted read-only
    refuse(store.read_object)
    read(store)


def test_a_store_that_refuses_its_marker_refuses_all_reads(shared, admission, tmp_path):
    """It has served some reads, and may refuse only some objects; the marker is what it has returned before."""
    store = limited(admission(shared))
    store._refused_for = 1.0
    store._store._identity = Identity(store.driver, KnownIdFiles(tmp_path, ["a"]))
    write(store)  # makes the marker
    open_, denied = store.driver.open, {"denied"}

    def open_or_deny(bucket: str, key: str, *args: Any, **options: Any) -> Any:
        if key in denied:
            raise AccessDenied("a: expired")
        return open_(bucket, key, *args, **options)

    store.driver.open = open_or_deny
    for key in ("denied", "app"):
        assert read(store) == b"release"
        denied |= {key} | ({MARKER_KEY} if key == "app" else set())
        for _ in range(REFUSED):
            with pytest.raises(AccessDenied):
                store.read_object("releases", key)
    with pytest.raises(StoreRefuses, match="a: it refuses all that a page asks: expired"):
        read(store)


def test_a_success_ends_a_row_of_failures_and_a_stat_does_not(shared, admission):
    """A store that answers stats and takes no bytes opens its breaker; one whose writes succeed again does not."""
    ours = admission(shared, breaker={"failures": 2})
    store = limited(ours)
    for _ in range(3):
        fail_with(store, Unavailable("a: away"), write)
        write(store)
    fail_with(store, Unavailable("a: away"), write)
    limited(ours).stat_object("releases", "app")
    fail_with(limited(ours), Unavailable("a: away"), write)
    with pytest.raises(Snooze):
        write(store)


def test_a_job_is_checked_once_a_second_and_again_after_a_failure(shared, admission, monkeypatch):
    """Many small objects of one job cost one round trip a second; a failure of the store ends that at once."""
    ours = admission(shared, breaker={"failures": 2})
    store, checks, check = limited(ours), [], ours.check
    monkeypatch.setattr(ours, "check", lambda name: checks.append(name) or check(name))
    monkeypatch.setattr("worker.limits.limited_store._ADMITTED_FOR", 3600.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read(store), range(100)))
    assert checks == ["a"]
    fail_with(store, Unavailable("a: away"))
    read(store)
    assert checks == ["a", "a"]


def test_work_for_several_stores_begins_if_one_of_them_takes_a_job(shared, admission):
    """Only when every store turns the job away is it told so beforehand, with the soonest time."""
    ours = admission(shared, breaker={"failures": 1, "open": "60s"}, store_limits={"b": StoreLimits(concurrency=1)})
    stores = {name: limited(ours, name) for name in ("a", "b")}
    bound = LimitedStores({name: store._store for name, store in stores.items()}, ours, Job())
    ours.record_failure("a")
    assert [store.name for store in bound.admitting(["a", "b"])] == ["a", "b"]
    with limited(ours, "b", Job("other")).slot(), pytest.raises(Snooze, match="b: 1 job in") as error:
        bound.admitting(["a", "b"])
    assert error.value.seconds < 10
    assert bound.admitting([]) == []


def test_what_is_read_back_counts_against_the_bandwidth_and_is_no_progress(admission, shared, monkeypatch):
    """Bytes that are read back are taken from the bandwidth limit of the store; progress counts what was written."""
    ours = admission(shared, store_limits={"a": StoreLimits(bytes_per_second=1 << 40)})
    taken: list[int] = []
    told: list[int] = []
    monkeypatch.setattr(ours, "take_bandwidth", lambda _name, count, *_rest: taken.append(count))
    store = LimitedStore(Store(UncheckedDriver("a")), ours, Job())
    properties = ObjectProperties(content_type="text/plain")
    store.write_object("releases", "app", io.BytesIO(b"release"), on_bytes=told.append, properties=properties)
    assert (sum(taken), sum(told)) == (14, 7)
    assert store.stat_object("releases", "app").properties == properties


def test_a_job_is_stopped_while_its_write_is_read_back(admission, shared):
    """Cancelling a job ends the reading back too."""
    job = Job()

    def stop_at_the_end(_count: int) -> None:
        job.stop = True

    store = LimitedStore(Store(UncheckedDriver("a")), admission(shared), job)
    with pytest.raises(Cancelled):
        store.write_object("releases", "app", io.BytesIO(b"release"), on_bytes=stop_at_the_end)
