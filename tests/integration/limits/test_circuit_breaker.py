"""The circuit breaker of a store, shared by all workers in a real Valkey, and in a process without one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from tests.waiting import WITHIN, until
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.expiring_counters import Counters
from worker.limits.shared_redis import SharedRedis
from worker.limits.snooze import Snooze
from worker.settings.section_models import BreakerSettings
from worker.storage.errors import (
    AccessDenied,
    Unavailable,
)


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
