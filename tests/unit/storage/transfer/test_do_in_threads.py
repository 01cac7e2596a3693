"""Work that a few threads share item by item."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from worker.storage.transfer import do_in_threads
from worker.storage.transfer.do_in_threads import begin_all, do_all

THREADS = 3


def test_each_item_is_done_once_and_by_no_more_threads_than_asked_for() -> None:
    """The threads share the items, and the pool may have more threads."""
    together = threading.Barrier(THREADS)
    done: list[int] = []
    names: set[str] = set()

    def do(item: int) -> None:
        if item < THREADS:
            together.wait(60)  # each of the first items has a thread to itself
        names.add(threading.current_thread().name)
        done.append(item)

    with ThreadPoolExecutor(2 * THREADS) as pool:
        do_all(pool, do, list(range(1000)), THREADS)

    assert sorted(done) == list(range(1000))
    assert len(names) == THREADS


def test_the_first_error_is_raised_after_the_other_threads_have_ended() -> None:
    """A caller may then close what the threads use."""
    failed, done = threading.Event(), list[int]()

    def do(item: int) -> None:
        if item == 0:
            failed.set()
            raise ValueError(item)
        failed.wait(60)
        done.append(item)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(ValueError, match="0"):
            do_all(pool, do, list(range(10)), 2)
        assert sorted(done) == list(range(1, 10))


def test_an_interrupted_caller_waits_for_no_further_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit, or the end of a worker, interrupts it in the middle of a group."""
    begun, go_on, done = threading.Event(), threading.Event(), list[int]()

    def do(item: int) -> None:
        begun.set()
        go_on.wait(60)
        done.append(item)

    def interrupted(_: Future[None]) -> None:
        begun.wait(60)
        monkeypatch.setattr(Future, "exception", asked)
        raise KeyboardInterrupt

    asked = Future.exception
    monkeypatch.setattr(Future, "exception", interrupted)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            do_all(pool, do, list(range(10)), 1)
        go_on.set()
    assert done == [0]


@pytest.mark.parametrize("slow", [True, False])
def test_each_item_that_takes_long_begins_another_thread(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Work that waits has as many threads as are asked for; work that only computes stays in one."""
    monkeypatch.setattr(do_in_threads, "_SLOW", -1.0 if slow else 3600.0)
    threads = THREADS if slow else 1
    together = threading.Barrier(threads)
    begun: list[object] = []
    done: list[int] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, do: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
            begun.append(do)
            return super().submit(do, *args, **options)

    def do(item: int) -> None:
        if item >= THREADS - 1:  # each item before these has begun a thread
            together.wait(60)
        done.append(item)

    with Pool(2 * THREADS) as pool:
        do_all(pool, do, list(range(2 * THREADS - 1)), THREADS, begin=1)

    assert sorted(done) == list(range(2 * THREADS - 1))
    assert len(begun) == threads


def test_nothing_is_begun_for_no_items() -> None:
    """A group may have no file left to write."""
    with ThreadPoolExecutor(1) as pool:
        assert begin_all(pool, pytest.fail, [], 4) == []
