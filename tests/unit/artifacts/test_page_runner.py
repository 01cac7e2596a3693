"""The threads of a page: groups of results, errors, slow objects and requests that hang."""

import threading
import time
from queue import SimpleQueue

import pytest

from worker.artifacts import page_runner
from worker.artifacts.page_runner import GROUP, work_on
from worker.catalogue import CatalogueError


def test_all_results_are_recorded_in_groups_by_the_calling_thread():
    """Each result is recorded once, in no more than GROUP at a time, and never in the thread that made it."""
    groups, where = [], set()

    def record(done):
        groups.append(list(done))
        where.add(threading.get_ident())

    work_on(range(600), lambda part: (2 * n for n in part), record, threads=4)
    assert sorted(n for group in groups for n in group) == [2 * n for n in range(600)]
    assert max(map(len, groups)) <= GROUP
    assert where == {threading.get_ident()}


@pytest.mark.parametrize("error, known", [(KeyError("of one object"), 30), (CatalogueError("it is away"), 0)])
def test_an_error_stops_the_page_and_what_was_done_is_recorded(error, known):
    """The first error is raised after the results before it were recorded; nothing is handed out any more."""
    recorded = []

    def do(part):
        for n in part:
            if n == 30:
                raise error
            yield n

    with pytest.raises(type(error)):
        work_on(range(1000), do, recorded.extend, threads=1)
    assert recorded == list(range(known))


def test_a_page_whose_results_cannot_be_recorded_ends():
    """Its threads begin nothing more, and what was under way is recorded before the error is raised."""
    recorded, failed = [], threading.Event()

    def do(part):
        for n in part:
            if n == 0 or n >= 300:
                assert failed.wait(60)
                time.sleep(0.05)  # so that the rest would take ten seconds
            yield n

    def record(done):
        if not failed.is_set():
            failed.set()
            raise KeyError
        recorded.extend(done)

    with pytest.raises(KeyError):
        work_on(range(700), do, record, threads=2)
    assert 0 in recorded
    assert len(recorded) < 400


def test_fast_objects_are_worked_on_in_the_calling_thread():
    """A page that begins with one thread starts no other one while its objects are fast."""
    where, recorded = set(), []

    def do(part):
        where.add(threading.get_ident())
        assert part[0] - len(recorded) <= GROUP, "a group is recorded once it is full"
        return part

    assert work_on(range(1000), do, recorded.extend, threads=16, begin=1)
    assert recorded == list(range(1000))
    assert where == {threading.get_ident()}


def test_threads_are_added_where_objects_are_slow():
    """A page that begins with one thread gets more when an object takes long, and no more than allowed."""
    first, together = threading.Event(), threading.Barrier(3, timeout=60)

    def do(part):
        if not first.is_set():
            first.set()
            time.sleep(0.2)  # slow: 100 ms for each of its objects
            return part
        together.wait()  # three threads at once: the first two say nothing meanwhile
        return part

    recorded = []
    work_on(range(8), do, recorded.extend, threads=3, begin=1)
    assert len(recorded) == 8


def test_no_threads_are_added_where_the_store_is_at_its_limit():
    """A store that does one request at a time gets no faster by more threads, so that the page has few of them."""
    one, where = threading.Lock(), set()

    def do(part):
        where.add(threading.get_ident())
        for each in part:
            with one:
                time.sleep(0.002)
            yield each

    assert work_on(range(800), do, lambda _: None, threads=64, begin=2)
    assert len(where) < 64


def test_threads_are_added_where_later_objects_are_slower():
    """More threads were no faster for the first objects; the others wait for something else."""
    one, arrived, everyone = threading.Lock(), set(), threading.Event()

    def do(part):
        for each in part:
            if each < 200:
                with one:
                    time.sleep(0.002)
            else:
                arrived.add(threading.get_ident())
                if len(arrived) == 16:
                    everyone.set()
                if not everyone.wait(30):
                    raise TimeoutError
            yield each

    assert work_on(range(800), do, lambda _: None, threads=16, begin=2)


def test_a_page_that_reads_does_not_wait_for_a_request_that_hangs():
    """A page that has to stop ends while one of its threads still waits for a store; its own result is discarded."""
    answered, recorded = threading.Event(), []

    def do(part):
        if part[0] == 0:
            answered.wait(60)
        else:
            raise InterruptedError
        yield from part

    begun = time.monotonic()
    with pytest.raises(InterruptedError):
        work_on(range(2), do, recorded.extend, threads=2, reads_only=True)
    assert time.monotonic() - begun < 30
    assert not recorded
    answered.set()


def test_a_page_that_writes_waits_for_its_threads(monkeypatch):
    """A write that is under way ends, and is recorded, before the page gives up its locks; none begins after it."""
    monkeypatch.setattr(page_runner, "_ABANDON_AFTER", 0.0)
    recorded, failed = [], SimpleQueue()

    def do(part):
        if part[0] == 0:
            failed.get(timeout=60).join(60)
        else:
            failed.put(threading.current_thread())
            raise InterruptedError
        yield from part

    with pytest.raises(InterruptedError):
        work_on(range(100), do, recorded.extend, threads=2)
    assert recorded == [0]


def test_a_page_whose_time_is_up_begins_nothing_more():
    """What was begun in time is done and recorded, and the caller is told that there was no time for the rest."""
    recorded = []

    def do(part):
        time.sleep(0.3)  # longer than the page may take
        yield from part

    assert not work_on(range(1000), do, recorded.extend, threads=1, seconds=0.1)
    assert recorded
    assert len(recorded) < 1000
    assert work_on(range(3), do, recorded.extend, threads=3, seconds=60)


def test_a_page_goes_on_with_the_threads_that_there_is_room_for(monkeypatch):
    """It neither waits for a thread that was never started, nor leaves an object out."""
    start, allowed, recorded = threading._start_new_thread, iter(range(2)), []

    def start_few(*args, **kwargs):
        if next(allowed, None) is None:
            raise RuntimeError("can't start new thread")
        return start(*args, **kwargs)

    with monkeypatch.context() as full:
        full.setattr(threading, "_start_new_thread", start_few)
        assert work_on(range(100), iter, recorded.extend, threads=8)
        assert sorted(recorded) == list(range(100))
        with pytest.raises(RuntimeError, match="thread"):
            work_on(range(100), iter, recorded.extend, threads=8)
