"""Work on the objects of a page: several at once in threads, with their results recorded in groups."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from worker.catalogue import CatalogueError
from worker.jobs.running_job import Requeue, RunningJob
from worker.storage.durations_and_sizes import duration_text

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")


class _Path(Protocol):
    @property
    def path(self) -> str: ...


PathT = TypeVar("PathT", bound=_Path)

GROUP = 250
"""Most results of one transaction: a longer one would keep the jobs of users waiting."""
GROUP_SECONDS = 1.0
"""Results wait no longer than this for a group to be full."""
_PART = 25
"""Most objects that a thread takes at a time; to hand out each alone costs more than to read a small one."""
_SLOW = 0.001
"""Seconds for an object above which its thread mostly waits, so that another thread may make the page faster."""
_FASTER = 1.25
"""How many times faster a page has to be with twice the threads; if it is not, the store is at its limit."""
_SLOWER = 2
"""How many times slower a page has to become after that, with the same threads, before it gets more threads."""
_ABANDON_AFTER = 1.0
"""Seconds after which a thread that only reads is no longer waited for when its page has to stop."""


def work_on(
    items: Sequence[ItemT],
    do: Callable[[Sequence[ItemT]], Iterable[DoneT]],
    record: Callable[[Sequence[DoneT]], None],
    *,
    threads: int,
    begin: int | None = None,
    reads_only: bool = False,
    seconds: float | None = None,
) -> bool:
    """Do something for all items, and record the results.

    Args:
        items: the objects.
        do: is called in several threads with a few of the items, and yields the result of each.
        record: is called in the calling thread with at most `GROUP` results.
        threads: how many parts are worked on at a time.
        begin: how many threads at first. With 1, the calling thread does the work: a second thread that computes would
            take Python's lock from it. If an object takes longer than a millisecond, the number of threads is doubled
            for as long as that makes the page faster, and again whenever the page has become slower since.
        reads_only: `do` changes nothing. A page that has to stop does not wait for a request that hangs.
        seconds: after which no item is begun any more.

    Returns:
        Whether there was time for all items.

    Raises:
        BaseException: the first error of `do` or `record`. No item is handed out after it; results until then are
            recorded, unless the catalogue itself failed.
    """
    return _Run(items, do, record, threads, begin or threads, reads_only=reads_only, seconds=seconds).run()


def in_another_order(items: Sequence[PathT], job: RunningJob) -> Sequence[PathT]:
    """Return the objects of a page in the order in which an attempt takes them: after a snooze, in another one.

    The first ones may be all that a store refuses. Those with one path stay in their order.
    """
    if job.snoozed_since is None:
        return items
    return sorted(items, key=lambda each: hash((each.path, job.fence)))


def out_of_time(job: RunningJob) -> Requeue:
    """Return the exception that requeues a page of a batch whose time is over before all objects are done."""
    return Requeue(
        f"job {job.id} is requeued: its page ran for {duration_text(job.settings.page.time)}, and others wait"
    )


@dataclass(frozen=True, slots=True)
class _Part(Generic[DoneT]):
    """The results of a part, which its thread reports. `error` ended the thread; `seconds`: how long an object took."""

    done: Sequence[DoneT] = ()
    error: BaseException | None = None
    seconds: float = 0.0
    is_last: bool = False


class _Run(Generic[ItemT, DoneT]):
    def __init__(
        self,
        items: Sequence[ItemT],
        do: Callable[[Sequence[ItemT]], Iterable[DoneT]],
        record: Callable[[Sequence[DoneT]], None],
        threads: int,
        begin: int,
        *,
        reads_only: bool,
        seconds: float | None,
    ) -> None:
        self._items = items
        self._taken = 0
        self._taking = threading.Lock()
        self._do = do
        self._record = record
        self._threads = max(1, min(threads, len(items)))
        self._begin = min(begin, self._threads)
        self._patience = _ABANDON_AFTER if reads_only else None
        self._stop = threading.Event()
        self._until = None if seconds is None else time.monotonic() + seconds
        self._in_time = True
        self._said: SimpleQueue[_Part[DoneT]] = SimpleQueue()
        self._started = self._ended = 0
        self._rate = 0.0
        """Results a second before threads were added the last time."""
        self._limit = 0.0
        """Results a second at which more threads did not help; 0 while that is not known."""
        self._grown, self._parts, self._results = time.monotonic(), 0, 0
        """When threads were added the last time, and how many parts and results there were since."""
        self._done: list[DoneT] = []
        self._recorded = time.monotonic()

    def run(self) -> bool:
        error: BaseException | None = None
        try:
            error = self._work_here() if self._begin == 1 else self._work_in_threads(self._begin)
        except BaseException as raised:  # noqa: BLE001 - it is raised below, after what was done is recorded
            error = raised
            self._stop.set()
            self._wait()
        if self._done and not isinstance(error, CatalogueError):
            self._record_done(everything=True)
        if error is not None:
            raise error
        return self._in_time

    def _work_here(self) -> BaseException | None:
        """Do and record part after part as long as objects are fast; return the error that stopped this, or None."""
        while (part := self._next()) is not None:
            said = self._do_part(part)
            self._take(said)
            if said.error is not None:
                return said.error
            self._record_done(everything=time.monotonic() - self._recorded >= GROUP_SECONDS)
            if said.seconds > _SLOW and self._threads > 1:
                return self._work_in_threads(2)
        return None

    def _work_in_threads(self, count: int) -> BaseException | None:
        self._grown = time.monotonic()
        self._start(count)
        return self._collect()

    def _start(self, count: int) -> None:
        for _ in range(min(count, self._threads - self._started)):
            try:
                threading.Thread(target=self._work, name=f"page-{self._started + 1}", daemon=True).start()
            except RuntimeError:  # the machine has no room for more
                if not self._started:
                    raise
                self._threads = self._started
                return
            self._started += 1

    def _work(self) -> None:
        while not self._stop.is_set() and (part := self._next()) is not None:
            self._said.put(self._do_part(part))
        self._said.put(_Part(is_last=True))

    def _next(self) -> Sequence[ItemT] | None:
        """Return the next part, a smaller one near the end, so that no thread waits long for the last of another.

        Return None if there is none, or no time for it.
        """
        with self._taking:
            left = len(self._items) - self._taken
            size = max(1, min(_PART, left // (2 * max(self._started, 1))))
            part = self._items[self._taken : self._taken + size] or None
            self._taken += size
        if part is not None and self._until is not None and time.monotonic() >= self._until:
            self._in_time = False
            return None
        return part

    def _do_part(self, part: Sequence[ItemT]) -> _Part[DoneT]:
        done: list[DoneT] = []
        begun = time.monotonic()
        try:
            for result in self._do(part):
                done.append(result)
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the page
            self._stop.set()
            return _Part(done, error)
        return _Part(done, seconds=(time.monotonic() - begun) / len(part))

    def _collect(self) -> BaseException | None:
        """Record groups until all threads have ended; return the error that stopped them, or None."""
        error, deadline = None, None
        while self._ended < self._started:
            if self._stop.is_set() and deadline is None and self._patience is not None:
                deadline = time.monotonic() + self._patience
            try:
                said = self._said.get(timeout=GROUP_SECONDS)
            except Empty:
                said = _Part(seconds=GROUP_SECONDS)
            error = error or said.error
            self._take(said)
            if not self._stop.is_set():
                self._grow(said)
            if deadline is not None and time.monotonic() >= deadline:
                break
            self._record_done(everything=time.monotonic() - self._recorded >= GROUP_SECONDS)
        return error

    def _grow(self, said: _Part[DoneT]) -> None:
        """Double the threads if objects take long, and if the last doubling has made the page faster.

        If it has not, the threads are doubled again only after the page has become slower.
        """
        stalled = said.seconds >= GROUP_SECONDS
        self._parts, self._results = self._parts + bool(said.done or stalled), self._results + len(said.done)
        if self._started >= self._threads or said.seconds <= _SLOW:
            return
        now, all_said = time.monotonic(), self._parts >= self._started
        elapsed = now - self._grown
        if self._limit:
            in_flight = 0 if all_said and said.done else self._started * _PART  # at most: they may end at once
            grows = (self._results + in_flight) * _SLOWER <= self._limit * elapsed
        else:
            grows = stalled or (all_said and self._results >= _FASTER * self._rate * elapsed)
        if not grows and not all_said:
            return
        rate, self._grown, self._parts, self._results = self._results / elapsed, now, 0, 0
        if grows:
            self._rate, self._limit = rate, 0.0
            self._start(self._started)
        else:
            self._limit = self._limit or rate

    def _wait(self) -> None:
        """Wait for the threads of a page that stops, and collect their results."""
        deadline = None if self._patience is None else time.monotonic() + self._patience
        while self._ended < self._started:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            with suppress(Empty):
                self._take(self._said.get(timeout=left))

    def _take(self, said: _Part[DoneT]) -> None:
        self._done += said.done
        self._ended += said.is_last

    def _record_done(self, *, everything: bool) -> None:
        while len(self._done) >= GROUP or (everything and self._done):
            group, self._done = self._done[:GROUP], self._done[GROUP:]
            self._record(group)
            self._recorded = time.monotonic()
