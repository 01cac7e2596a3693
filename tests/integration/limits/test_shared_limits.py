"""What all workers share of a store: places, bytes a second, and the breaker, in a real Valkey and without one."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.process import free_port
from tests.waiting import until
from worker.jobs.running_job import Cancelled, Snooze
from worker.limits.admission import Admission
from worker.limits.bandwidth import BandwidthLimit
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.concurrency import DistributedSemaphore
from worker.limits.counters import Counters
from worker.limits.shared_redis import SharedRedis, result_backend
from worker.settings import Settings
from worker.settings.sections import BreakerSettings, StoreLimits
from worker.storage.config import FilesystemConfig
from worker.storage.errors import AccessDenied, AlreadyExists, TransientError, Unavailable

SPAWN = multiprocessing.get_context("spawn")  # the tests' own process has threads, which no fork survives


class Job:
    """As much of a running job as a gate sees."""

    fence = 1

    def __init__(self, id_: str = "job") -> None:
        self.id = id_
        self.stop = False
        self.done = 0

    def moved(self, count: int) -> None:
        if self.stop:
            raise Cancelled(self.id)
        self.done += count


@pytest.fixture
def url(valkey) -> str:
    url = valkey.url.removesuffix("/0") + "/9"
    Redis.from_url(url).flushdb()
    return url


@pytest.fixture
def shared(url) -> Iterator[SharedRedis]:
    with Redis.from_url(url) as client:
        yield SharedRedis(lambda: client)


@pytest.fixture
def alone() -> SharedRedis:
    """Return what a process has whose Redis has gone."""
    client = Redis(port=free_port(), socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
    return SharedRedis(lambda: client)


@pytest.fixture
def gates(tmp_path) -> Callable[..., Admission]:
    def make(shared: SharedRedis, probe: Callable[[str], object] = lambda _: None, **settings: object) -> Admission:
        stores = {name: FilesystemConfig(root=tmp_path / name) for name in ("a", "b")}
        return Admission(Settings(home=tmp_path, stores=stores, **settings), probe, shared)  # type: ignore[arg-type]

    return make


# DistributedSemaphore


def crowd(url: str, name: str, together: "multiprocessing.synchronize.Barrier") -> None:
    """Take places from several threads of a process, and tell Redis how many are inside at once."""
    redis = Redis.from_url(url)
    places = DistributedSemaphore(SharedRedis(lambda: redis), seconds=5)

    def one(n: int) -> None:
        for turn in range(12):
            with places.held(name, f"{os.getpid()}-{n}-{turn}", limit=3, alone=1) as place:
                if place is None:
                    redis.incr("refused")
                    time.sleep(0.002)
                    continue
                redis.zadd("most", {"most": redis.incr("inside")}, gt=True)
                time.sleep(0.005)
                redis.decr("inside")

    together.wait(60)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))


def test_never_more_than_the_limit_over_processes_and_threads(url):
    """Nine takers in three processes never hold more than the three places there are, and all three are used."""
    together = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=crowd, args=(url, "crowd", together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    redis = Redis.from_url(url)
    assert redis.zscore("most", "most") == 3
    assert int(redis.get("refused")) > 0
    assert redis.zcard("zot-artifacts:places:crowd") == 0


def hold(url: str, ready: "multiprocessing.synchronize.Event") -> None:
    with DistributedSemaphore(SharedRedis(lambda: Redis.from_url(url)), seconds=0.6).held(
        "s", "killed", limit=2, alone=1
    ):
        ready.set()
        time.sleep(60)


def test_the_place_of_a_killed_holder_comes_free_by_itself(url, shared):
    """A holder keeps its place for as long as it lives; once one of two is killed, another has it within its time."""
    ready = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(url, ready))
    process.start()
    assert ready.wait(60)
    places = DistributedSemaphore(shared, seconds=0.6)

    def free() -> bool:
        with places.held("s", "other", limit=2, alone=1) as place:
            return place is not None

    with places.held("s", "alive", limit=2, alone=1):
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:  # more than twice their time
            assert not free()
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        until(free)


def test_a_holder_whose_place_is_anothers_stops(url, shared, gates):
    """A process that showed no life for so long that its place was given away moves not a byte more."""
    ours = gates(shared, store_limits={"a": StoreLimits(concurrency=1)}, jobs={"lease": "0.3s"})
    redis = Redis.from_url(url)
    with ours.enter("a", Job()) as gate:
        gate.advance(1)
        redis.delete("zot-artifacts:places:a")
        redis.zadd("zot-artifacts:places:a", {"another": time.time() + 60})
        until(lambda: gate._place.lost)
        with pytest.raises(Snooze, match="given to another"):
            gate.advance(1)


def test_without_redis_a_process_keeps_to_its_share(alone, gates, caplog):
    """Redis cannot be asked: a process takes its share of the places, never all, and says so once."""
    ours = gates(alone, store_limits={"a": StoreLimits(concurrency=4, local_share=0.5)})
    with (
        caplog.at_level(logging.WARNING),
        ours.enter("a", Job("1")),
        ours.enter("a", Job("2")),
        pytest.raises(Snooze, match="as many as may be"),
        ours.enter("a", Job("3")),
    ):
        pass
    with ours.enter("a", Job("4")):
        pass
    assert len([record for record in caplog.records if "cannot be shared" in record.message]) == 1


def test_redis_that_comes_back_is_asked_again(valkey, url, monkeypatch, caplog):
    """What was decided alone while Redis was away is shared again once it answers."""
    monkeypatch.setattr("worker.limits.shared_redis._LEFT_ALONE", 0.0)
    with Redis.from_url(url) as client:
        places = DistributedSemaphore(SharedRedis(lambda: client), seconds=5)
        valkey.kill()
        with places.held("back", "one", limit=5, alone=1), places.held("back", "two", limit=5, alone=1) as place:
            assert place is None
        valkey.restart()
        with caplog.at_level(logging.WARNING), places.held("back", "one", limit=2, alone=0) as place:
            assert place is not None
            assert client.zcard("zot-artifacts:places:back") == 1
    assert any("shared with all workers again" in record.message for record in caplog.records)


def test_the_redis_of_the_result_backend_is_shared(url):
    """Whatever the broker is, the Redis that keeps the results is asked, and where there is none nobody is."""
    with Celery(broker="memory://", backend=url, set_as_current=False) as app:
        found = result_backend(app)
        assert found is not None
        assert found.connection_pool is not app.backend.client.connection_pool
        with found:
            assert SharedRedis(lambda: found).ask(lambda redis: redis.ping(), lambda: False)
    for backend in ("rpc://", None):
        with Celery(broker="memory://", backend=backend, set_as_current=False) as app:
            assert result_backend(app) is None


def test_the_share_is_one_of_as_many_processes_as_there_were(url, shared, gates):
    """A process that has seen three others takes a quarter of the limit by itself."""
    redis = Redis.from_url(url)
    redis.zadd("zot-artifacts:places:processes", {name: time.time() + 60 for name in "xyz"})
    ours = gates(shared, store_limits={"a": StoreLimits(concurrency=8)})
    with ours.enter("a", Job()):
        assert ours._share == 1 / 4


# Bytes a second


def spend(url: str, total: int, limit: int, together: "multiprocessing.synchronize.Barrier") -> None:
    pace = BandwidthLimit(SharedRedis(lambda: Redis.from_url(url)))
    together.wait(60)
    for _ in range(total // 10_000):
        pace.pay("s", 10_000, limit=limit, alone=1024, waiting=lambda: None)


def test_all_processes_together_keep_to_the_bytes_per_second(url):
    """Two processes that move 400 kB each at 300 kB/s in all need more than a second and a half for it."""
    together = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=spend, args=(url, 400_000, 300_000, together)) for _ in range(2)]
    for process in processes:
        process.start()
    together.wait(60)
    begun = time.monotonic()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert time.monotonic() - begun > 1.5  # 800 kB, of which the first second's 300 kB are free at once


def test_without_redis_bytes_keep_to_the_share(alone):
    """Redis cannot be asked: a process moves its share of the bytes a second, and goes on moving."""
    begun = time.monotonic()
    BandwidthLimit(alone).pay("s", 300_000, limit=1_000_000, alone=200_000, waiting=lambda: None)
    assert time.monotonic() - begun > 0.4


def test_a_job_that_waits_for_its_bytes_is_stopped_like_any_other(shared, gates):
    """A cancelled job does not wait out its turn: it ends at the next look."""
    ours = gates(shared, store_limits={"a": StoreLimits(bytes_per_second="1KiB")})
    job = Job()
    threading.Timer(0.2, setattr, (job, "stop", True)).start()
    with ours.enter("a", job) as gate, pytest.raises(Cancelled):
        gate.advance(1 << 20)  # would take 17 minutes


# The breaker


@pytest.fixture(params=["shared", "alone"])
def marks(request) -> Counters:
    return Counters(request.getfixturevalue(request.param))


def breaker(marks: Counters, **settings: object) -> CircuitBreaker:
    given = {"failures": 3, "within": "60s", "open": "60s", "open_max": "200s", **settings}
    return CircuitBreaker("s", marks, BreakerSettings(**given))


def fails() -> None:
    raise Unavailable("s: still away")


def seconds_open(tested: CircuitBreaker) -> float:
    with pytest.raises(Snooze) as error:
        tested.check(lambda: pytest.fail("it was tried out while it was to be left alone"))
    assert error.value.seconds > tested.left()  # nobody comes back before it is over
    return tested.left()


def test_failures_in_a_row_open_it_and_it_is_tried_out_before_it_closes(marks):
    """Three failures open it; a probe that fails opens it for twice as long, up to the most; a good one closes it."""
    tested = breaker(marks)
    for _ in range(3):
        tested.check(pytest.fail)
        tested.failed()
    assert 40 < seconds_open(tested) <= 60
    for longest in (120, 200):
        marks.remove("breaker:s:open")  # as if its time were over
        with pytest.raises(Snooze):
            tested.check(fails)
        assert longest - 20 < seconds_open(tested) <= longest
    marks.remove("breaker:s:open")
    probes: list[int] = []
    tested.check(lambda: probes.append(1))
    tested.check(pytest.fail)
    assert probes == [1]
    tested.failed()
    tested.check(pytest.fail)  # one failure after it closed is one, not the fourth


def test_a_success_between_failures_keeps_it_closed(marks):
    """Failures that are not in a row open nothing."""
    tested = breaker(marks)
    for _ in range(4):
        tested.failed()
        tested.failed()
        assert tested.check(pytest.fail)
        tested.worked()
        assert not tested.check(pytest.fail)


def test_failures_that_lie_far_apart_open_nothing(marks):
    """A failure counts for its time only."""
    tested = breaker(marks, within="0.2s")
    tested.failed()
    tested.failed()
    until(lambda: not tested.check(pytest.fail))
    tested.failed()
    assert tested.check(pytest.fail)


def test_a_store_that_answers_no_is_there(marks):
    """A probe that is refused for good closes the breaker: the jobs tell what is wrong, waiting would hide it."""
    tested = breaker(marks, failures=1, open="0.05s")
    tested.failed()
    until(lambda: tested.left() == 0)

    def refused() -> None:
        raise AccessDenied("s: no")

    tested.check(refused)
    tested.check(pytest.fail)


def test_exactly_one_of_many_tries_the_store_out(url):
    """Eight workers that come when the time is over try the store out once; the others come again later."""
    breakers = [
        breaker(Counters(SharedRedis(lambda: Redis.from_url(url))), failures=1, open="0.05s") for _ in range(8)
    ]  # each as in a process of its own
    breakers[0].failed()
    until(lambda: breakers[0].left() == 0)
    probes: list[int] = []
    together = threading.Barrier(8)

    def probe() -> None:
        probes.append(1)
        time.sleep(0.2)  # the others come meanwhile

    def come(tested: CircuitBreaker) -> bool:
        together.wait(10)
        try:
            tested.check(probe)
        except Snooze:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        let_in = list(pool.map(come, breakers))
    assert probes == [1]
    assert any(let_in)
    assert all(pool_of_them.check(pytest.fail) is False for pool_of_them in breakers)


# Whose failure it was


def test_a_failure_is_that_of_the_store_entered_last(shared, gates):
    """An error that passes both gates of a copy opens the breaker of its own store, and not the other's."""
    ours = gates(shared, breaker={"failures": 1})
    with (
        pytest.raises(Unavailable),
        ours.enter("a", Job()),
        ours.enter("b", Job()),
        ours.enter("a", Job()),
    ):
        raise Unavailable("a: away")
    with ours.enter("b", Job()):
        pass
    with pytest.raises(Snooze, match="a: the store keeps failing"), ours.enter("a", Job()):
        pass


def test_what_is_no_failure_of_the_store_opens_nothing(shared, gates):
    """Somebody else who wrote at the same time, or a job that has to wait, says nothing about the store."""
    ours = gates(shared, breaker={"failures": 1})

    def overtaken() -> None:
        try:
            raise AlreadyExists("a: there")
        except AlreadyExists as error:
            raise Unavailable("a: somebody else wrote it") from error

    for failure in (overtaken, lambda: (_ for _ in ()).throw(Snooze("b: wait", 1))):
        with pytest.raises((TransientError, Snooze)), ours.enter("a", Job()):
            failure()
    with ours.enter("a", Job()):
        pass


def test_what_would_be_for_nothing_is_not_begun(shared, gates):
    """Only when every store turns the job away is it told so beforehand, with the soonest time."""
    ours = gates(shared, breaker={"failures": 1, "open": "60s"}, store_limits={"b": StoreLimits(concurrency=1)})
    with pytest.raises(Unavailable), ours.enter("a", Job()):
        raise Unavailable("a: away")
    ours.check_any(["a", "b"])
    with ours.enter("b", Job()), pytest.raises(Snooze, match="b: 1 jobs") as error:
        ours.check_any(["a", "b"])
    assert error.value.seconds < 10
    ours.check_any([])


def test_a_store_that_has_just_let_a_job_in_is_not_asked_beforehand(shared, gates):
    """One round trip less for each of many small jobs; whether a job may begin is asked all the same."""
    ours, others = (gates(shared, breaker={"failures": 1, "open": "60s"}) for _ in range(2))
    with ours.enter("a", Job()):
        pass
    with pytest.raises(Unavailable), others.enter("a", Job()):
        raise Unavailable("a: away")
    ours.check_any(["a"])
    with pytest.raises(Snooze, match="a: the store keeps failing"), ours.enter("a", Job()):
        pass


def test_a_store_that_has_just_failed_is_asked_beforehand(shared, gates):
    """A failure of this process's own ends the trust in what went before, and places are always counted."""
    ours = gates(shared, breaker={"failures": 1, "open": "60s"}, store_limits={"b": StoreLimits(concurrency=1)})
    with pytest.raises(Unavailable), ours.enter("a", Job()):
        raise Unavailable("a: away")
    with pytest.raises(Snooze, match="a: the store keeps failing"):
        ours.check_any(["a"])
    with ours.enter("b", Job()), pytest.raises(Snooze, match="b: 1 jobs"):
        ours.check_any(["b"])
