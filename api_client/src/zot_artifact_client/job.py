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

OnProgress = Callable[[Progress], object]

_SHORTEST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
"""Seconds between two polls for the ends of many jobs."""
_PAGE = 500
"""Jobs that one poll asks for."""
_STALLED = 15.0
"""Seconds without an end of a job, after which jobs are looked up that Redis may have lost."""
LOOKED_UP = 100
"""After one look-up has found so many jobs that have not ended, it stops."""


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
class JobHandle(BoundToProcess, Generic[ResultT]):
    """A job of either client."""

    id: str
    spec: TaskSpec[Any, ResultT] | None = field(default=None, repr=False)
    request_sha256: str | None = field(default=None, repr=False, compare=False)
    """The SHA-256 of the request that was sent, if the caller chose its id; `results` may have another one's."""

    @property
    def kind(self) -> str | None:
        """Return `upload`, `verify`, …; None if the job was made from an id without a kind."""
        return self.spec.kind if self.spec else None

    def _checked(self, found: Snapshot) -> Snapshot:
        """Return a snapshot of this job. Raise IdempotencyMismatch if it is that of another request with this id."""
        check_same(self.id, self.request_sha256, found.request_sha256)
        return found


JobT = TypeVar("JobT", bound=JobHandle[Any])


@dataclass(frozen=True, slots=True)
class Job(JobHandle[ResultT]):
    """A job by its id. Any process can make one from an id: see `ArtifactClient.job`.

    Each method raises BrokerUnavailable; where jobs go over the gateway, also GatewayUnavailable and NotAllowed. If the
    caller chose the id or an idempotency key, a method raises IdempotencyMismatch when it finds that the id belongs to
    another request: the worker may know that when the broker no longer does.
    """

    results: ResultBackend = field(kw_only=True, repr=False, compare=False)

    @property
    def state(self) -> JobState:
        """Return the state of the job: `unknown` for an id that is wrong, or whose result has expired.

        The state becomes `running` up to a second after a worker has begun the job.
        """
        return self._checked(self.results.snapshot(self.id)).state

    @property
    def progress(self) -> Progress | None:
        """Return the bytes or objects that a running job has done, or None if it does not run or has reported none."""
        return self._checked(self.results.snapshot(self.id)).progress

    @property
    def result(self) -> ResultT | None:
        """Return the result of a job that succeeded, or None if it has not ended.

        If the result backend does not know the job, a worker is asked for its row of the ledger, for up to 2 s.

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
        return result_of(self.id, self.spec, self._checked(snapshot)) if snapshot.state.terminal else None

    def wait(self, timeout: float | None = None, *, on_progress: OnProgress | None = None) -> ResultT:
        """Wait for the end of the job and return its result.

        Args:
            timeout: seconds, or None for as long as it takes.
            on_progress: called at most a few times a second; what it raises ends the wait, not the job.

        Raises:
            WaitTimeout: the job has not ended within `timeout`; it continues.
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached; the job may continue.
        """
        return result_of(self.id, self.spec, self._checked(self.results.wait_for_end(self.id, timeout, on_progress)))

    def cancel(self) -> bool:
        """Request that the job is cancelled, and return at once; `wait` raises JobCancelled when the job has ended.

        Return False if the job has ended already.

        Raises:
            UnknownJob: nothing is known of a job with this id. The request is still kept for a day, in case the job's
                message arrives later.
        """
        if self.request_sha256 is not None:
            self._checked(self.results.snapshot(self.id))
        return self.results.cancel(self.id)


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
        """Yield each job when it has ended, the first one first; its `result` then returns or raises at once.

        Raises:
            WaitTimeout: some have not ended within `timeout` seconds; they continue.
        """
        return as_completed(self, timeout, results=self._results)

    def wait(self, timeout: float | None = None, *, on_end: Callable[[int, int], object] | None = None) -> list[Any]:
        """Wait for the ends of all jobs and return their results, in the order of the jobs.

        Args:
            timeout: seconds for all of them, or None for as long as it takes.
            on_end: called with how many have ended, and how many there are, after each end.

        Raises:
            WaitTimeout: some have not ended within `timeout`; they continue.
            JobFailed, JobCancelled: one ended without success; raised after all have ended, for the first in the list.
        """
        for done, _ in enumerate(self.as_completed(timeout), 1):
            if on_end is not None:
                on_end(done, len(self))
        return [job.result for job in self]

    def cancel(self) -> int:
        """Request that all jobs are cancelled; return how many had not ended.

        Unknown jobs, and those whose id belongs to another request, are not cancelled and raise nothing.
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

    A job that the result backend does not know is yielded too, unless the ledger says that it has not ended. Its
    `result` comes from the ledger if it has expired in Redis, and raises UnknownJob if Redis has lost the job.

    Raises:
        WaitTimeout: some have not ended within `timeout` seconds; they continue.
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
    """Yield the ids of jobs that the result backend does not know and that are not open in the ledger."""
    open_ = 0
    for id_ in job_ids:
        try:
            if backend.snapshot(id_).state is JobState.UNKNOWN:
                backend.wait_for_end(id_, 0.0, None)  # asks the ledger
                yield id_  # its result has expired
                continue
        except UnknownJob as error:
            if not error.certain:
                return  # no worker answers now: the job may be open
            yield id_
            continue
        except WaitTimeout:
            pass
        open_ += 1
        if open_ == LOOKED_UP:
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
        """Yield the ids of jobs that Redis may have lost, if none has ended for a while; none after the wait's timeout.

        Each call begins with other jobs than the call before.
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
