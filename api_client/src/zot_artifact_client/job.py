"""A job that was sent, or many: their states and their typed results."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from zot_artifact_client.bound_to_process import BoundToProcess
from zot_artifact_client.contract import JobState, Progress, ResultT, TaskSpec
from zot_artifact_client.errors import IdempotencyMismatch, UnknownJob, WaitTimeout
from zot_artifact_client.idempotency_conflicts import check_same
from zot_artifact_client.snapshot import Snapshot, result_of


class HasId(Protocol):
    """A job of either client."""

    @property
    def id(self) -> str: ...


JobT = TypeVar("JobT", bound=HasId)
OnProgress = Callable[[Progress], object]

_SHORTEST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
"""Seconds between two polls for the ends of many jobs."""
_PAGE = 500
"""Jobs that one poll asks for."""
_STALLED = 15.0
"""Seconds without an end after which jobs are looked up of which nothing may be known any more."""
LOOKED_UP = 100
"""Most of them that are found to go on, each time."""


def wait_timeout(job_id: str, timeout: float | None) -> WaitTimeout:
    """Return the error for a wait that took too long."""
    return WaitTimeout(f"job {job_id} has not ended within {timeout:g} s; it continues")


class ResultBackend(Protocol):
    """Reads the states and results of jobs."""

    def snapshot(self, job_id: str) -> Snapshot:
        """Return the state of a job now. Raise BrokerUnavailable."""
        ...

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        """Return the snapshot of an ended job.

        Raise WaitTimeout, UnknownJob, BrokerUnavailable, and what `on_progress` raises.
        """
        ...

    def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        """Return those of some jobs that have ended. Raise BrokerUnavailable."""
        ...

    def cancel(self, job_id: str) -> bool:
        """Request that a job is cancelled; return False if it has ended. Raise UnknownJob, BrokerUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Job(BoundToProcess, Generic[ResultT]):
    """A job by its id. Any process can make one from an id: see `ArtifactClient.job`.

    Each method raises BrokerUnavailable; where jobs go over the gateway, also GatewayUnavailable and NotAllowed. One of
    a job that was sent under an id or key of the caller raises IdempotencyMismatch as soon as it finds that the id
    belongs to another request, which a worker may know for longer than the broker.
    """

    id: str
    spec: TaskSpec[Any, ResultT] | None = field(default=None, repr=False)
    request_sha256: str | None = field(default=None, repr=False, compare=False)
    """The digest of the request that was sent, where the id may be that of another one."""
    results: ResultBackend = field(kw_only=True, repr=False, compare=False)

    @property
    def kind(self) -> str | None:
        """Return `upload`, `verify`, …; None if it was not given."""
        return self.spec.kind if self.spec else None

    @property
    def state(self) -> JobState:
        """Return the state of the job: `unknown` for an id that is wrong, or whose result has expired.

        `running` is returned up to a second after a worker has begun the job.
        """
        return self._own(self.results.snapshot(self.id)).state

    @property
    def progress(self) -> Progress | None:
        """Return how far a running job is, or None if it does not run or has not reported it."""
        return self._own(self.results.snapshot(self.id)).progress

    @property
    def result(self) -> ResultT | None:
        """Return the result of a job that succeeded, or None if it has not ended.

        Where the result backend knows nothing of the job, a worker is asked for up to 2 s what the ledger has of it.

        Raises:
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached.
        """
        snapshot = self.results.snapshot(self.id)
        if snapshot.state is JobState.UNKNOWN:
            try:
                snapshot = self.results.wait_for_end(self.id, 0.0, None)  # asks the ledger
            except WaitTimeout:
                return None
        return result_of(self.id, self.spec, self._own(snapshot)) if snapshot.state.terminal else None

    def wait(self, timeout: float | None = None, *, on_progress: OnProgress | None = None) -> ResultT:
        """Wait for the end of the job and return its result.

        Args:
            timeout: seconds, or None for as long as it takes.
            on_progress: called at most a few times a second; what it raises ends the wait, not the job.

        Raises:
            WaitTimeout: it has not ended in time; it goes on.
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached; the job itself may go on.
        """
        return result_of(self.id, self.spec, self._own(self.results.wait_for_end(self.id, timeout, on_progress)))

    def cancel(self) -> bool:
        """Request that the job is cancelled, and return before it is; `wait` raises JobCancelled when it is.

        Return False if the job has ended already. Raise UnknownJob if nothing is known of the job; the request is kept
        for a day nevertheless, in case that another program has sent it.
        """
        if self.request_sha256 is not None:
            self._own(self.results.snapshot(self.id))
        return self.results.cancel(self.id)

    def _own(self, found: Snapshot) -> Snapshot:
        """Return a state of this job. Raise IdempotencyMismatch: it is that of another request with this id."""
        check_same(self.id, self.request_sha256, found.request_sha256)
        return found


class Jobs(BoundToProcess, list[Job[Any]]):
    """Jobs that were sent together, in the order of their requests, as one handle.

    Each method raises BrokerUnavailable; where jobs go over the gateway, also GatewayUnavailable and NotAllowed.
    """

    def __init__(self, jobs: Iterable[Job[Any]] = (), *, results: ResultBackend) -> None:
        super().__init__(jobs)
        self._results = results

    def __copy__(self) -> "Jobs":
        return Jobs(self, results=self._results)

    def __deepcopy__(self, memo: object) -> "Jobs":
        return self.__copy__()

    def as_completed(self, timeout: float | None = None) -> Iterator[Job[Any]]:
        """Yield each job when it has ended, the first one first; `result` of it is there, or raises, at once.

        Raises:
            WaitTimeout: some have not ended within `timeout` seconds; they go on.
        """
        return as_completed(self, timeout, results=self._results)

    def wait(self, timeout: float | None = None, *, on_end: Callable[[int, int], object] | None = None) -> list[Any]:
        """Wait for the ends of all jobs and return their results, in the order of the jobs.

        Args:
            timeout: seconds for all of them, or None for as long as it takes.
            on_end: called with how many have ended, and how many there are, after each end.

        Raises:
            WaitTimeout: some have not ended in time; they go on.
            JobFailed, JobCancelled: after all have ended, for the first one that ended without success.
        """
        for done, _ in enumerate(self.as_completed(timeout), 1):
            if on_end is not None:
                on_end(done, len(self))
        return [job.result for job in self]

    def cancel(self) -> int:
        """Request that all jobs are cancelled; return how many had not ended.

        Unknown jobs are left out, and those whose id belongs to another request.
        """
        count = 0
        for job in self:
            with suppress(UnknownJob, IdempotencyMismatch):
                count += job.cancel()
        return count


def as_completed(
    jobs: Iterable[Job[Any]], timeout: float | None = None, *, results: ResultBackend | None = None
) -> Iterator[Job[Any]]:
    """Yield jobs of one client when they have ended, the first one first, by polling for all of them together.

    A job of which the result backend knows nothing is yielded too, unless it goes on: `result` returns what the ledger
    has of it where its result has expired, and raises UnknownJob where Redis has lost the job.

    Raises:
        WaitTimeout: some have not ended within `timeout` seconds; they go on.
        BrokerUnavailable: the result backend cannot be reached.
    """
    poll = Poll(jobs, timeout)
    while poll.left:
        backend = results or next(iter(poll.left.values())).results
        ended = [id_ for page in poll.pages() for id_ in backend.ended(page)]
        yield from poll.take(ended)
        if poll.left and not ended:
            yield from poll.take(_ended_or_lost(backend, poll.to_look_up()))
            if poll.left:
                time.sleep(poll.pause())


def _ended_or_lost(backend: ResultBackend, job_ids: Iterable[str]) -> Iterator[str]:
    """Yield those of some jobs of which the result backend knows nothing, and that go on in no ledger either."""
    known = 0
    for id_ in job_ids:
        try:
            if backend.snapshot(id_).state is JobState.UNKNOWN:
                backend.wait_for_end(id_, 0.0, None)  # asks the ledger
                yield id_  # its result has expired
                continue
        except UnknownJob as error:
            if not error.certain:
                return  # no worker answers now: it may go on
            yield id_
            continue
        except WaitTimeout:
            pass
        known += 1
        if known == LOOKED_UP:
            return


class Poll(Generic[JobT]):
    """Which of many jobs have not ended, and how long to pause until they are polled again."""

    def __init__(self, jobs: Iterable[JobT], timeout: float | None) -> None:
        self.left = {job.id: job for job in jobs}
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = _SHORTEST_PAUSE
        self._ended_at = time.monotonic()
        self._first = 0

    def pages(self) -> Iterator[list[str]]:
        """Yield the ids of those that have not ended, in pages for one round trip each."""
        ids = list(self.left)
        for start in range(0, len(ids), _PAGE):
            yield ids[start : start + _PAGE]

    def take(self, ended: Iterable[str]) -> Iterator[JobT]:
        """Yield those that have ended."""
        for id_ in ended:
            self._pause = _SHORTEST_PAUSE
            self._ended_at = time.monotonic()
            yield self.left.pop(id_)

    def to_look_up(self) -> Iterator[str]:
        """Yield the ids of jobs of which nothing may be known any more, if none has ended for a while: others first.

        Redis may have lost them. It ends with the time of the wait.
        """
        if time.monotonic() - self._ended_at < _STALLED:
            return
        self._ended_at = time.monotonic()
        ids, first = list(self.left), self._first % len(self.left)
        self._first += LOOKED_UP
        for id_ in ids[first:] + ids[:first]:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return
            yield id_

    def pause(self) -> float:
        """Return the seconds until the next poll. Raise WaitTimeout if the time is over."""
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise wait_timeout(next(iter(self.left)), self._timeout)
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause if self._deadline is None else min(pause, max(0.0, self._deadline - now))
