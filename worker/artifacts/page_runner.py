"""Work on the objects of a page: several at once in threads, with their results recorded in groups."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from worker.catalogue import CatalogueError

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")

GROUP = 100
"""Most results of one transaction: a longer one would keep the jobs of users waiting."""
GROUP_SECONDS = 1.0
"""The longest time that results wait for a group to be full."""
_PART = 25
"""Objects that a thread takes at a time: to take each alone costs more than to read a small one."""


def work_on(
    items: Sequence[ItemT],
    do: Callable[[Sequence[ItemT]], Iterable[DoneT]],
    record: Callable[[Sequence[DoneT]], None],
    *,
    threads: int,
) -> None:
    """Do something for all items, and record the results.

    Args:
        items: the objects.
        do: is called in several threads with a few of the items, and yields the result of each.
        record: is called in the calling thread with at most `GROUP` results.
        threads: how many parts are worked on at a time.

    Raises:
        BaseException: what `do` or `record` raised first. No item is begun after that; the results until then are
        recorded, unless the catalogue itself failed.
    """
    _Run(items, do, record, threads).run()


class _Run(Generic[ItemT, DoneT]):
    def __init__(
        self,
        items: Sequence[ItemT],
        do: Callable[[Sequence[ItemT]], Iterable[DoneT]],
        record: Callable[[Sequence[DoneT]], None],
        threads: int,
    ) -> None:
        size = max(1, min(_PART, len(items) // (4 * threads)))
        self._parts: Iterator[Sequence[ItemT]] = (items[at : at + size] for at in range(0, len(items), size))
        self._do = do
        self._record = record
        self._threads = threads
        self._stop = threading.Event()
        self._done: list[DoneT] = []
        self._recorded = time.monotonic()
        self._pending: set[Future[tuple[list[DoneT], BaseException | None]]] = set()

    def run(self) -> None:
        error: BaseException | None = None
        with ThreadPoolExecutor(self._threads, thread_name_prefix="page") as pool:
            try:
                error = self._hand_out(pool)
            except BaseException as raised:  # noqa: BLE001 - it is raised below, after what was done is recorded
                self._stop.set()
                error = raised
                self._collect(wait(self._pending).done)
        if self._done and not isinstance(error, CatalogueError):
            self._record_done(everything=True)
        if error is not None:
            raise error

    def _hand_out(self, pool: ThreadPoolExecutor) -> BaseException | None:
        """Give all parts to threads and record groups meanwhile; return the error that stopped it, or None."""
        error = None
        while True:
            while len(self._pending) < 2 * self._threads and not self._stop.is_set():
                part = next(self._parts, None)
                if part is None:
                    break
                self._pending.add(pool.submit(self._do_part, part))
            if not self._pending:
                return error
            ended = wait(self._pending, timeout=GROUP_SECONDS, return_when=FIRST_COMPLETED).done
            error = self._collect(ended) or error
            self._record_done(everything=time.monotonic() - self._recorded >= GROUP_SECONDS)

    def _do_part(self, part: Sequence[ItemT]) -> tuple[list[DoneT], BaseException | None]:
        done: list[DoneT] = []
        try:
            for result in self._do(part):
                done.append(result)
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the page
            self._stop.set()
            return done, error
        return done, None

    def _collect(self, ended: Iterable[Future[tuple[list[DoneT], BaseException | None]]]) -> BaseException | None:
        error = None
        for future in list(ended):
            self._pending.discard(future)
            done, failed = future.result()
            self._done += done
            error = error or failed
        return error

    def _record_done(self, *, everything: bool) -> None:
        while len(self._done) >= GROUP or (everything and self._done):
            group, self._done = self._done[:GROUP], self._done[GROUP:]
            self._record(group)
            self._recorded = time.monotonic()
