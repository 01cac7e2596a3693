"""A job that an AsyncArtifactClient sent, or many: their states and their typed results."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from zot_artifact_client.bound_to_process import BoundToProcess
from zot_artifact_client.contract import JobState, Progress, ResultT, TaskSpec
from zot_artifact_client.errors import IdempotencyMismatch, UnknownJob, WaitTimeout
from zot_artifact_client.idempotency_conflicts import check_same
from zot_artifact_client.job import LOOKED_UP, Poll, wait_timeout
from zot_artifact_client.snapshot import Snapshot, result_of, unknown_job

OnAsyncProgress = Callable[[Progress], object]
"""Is given the progress of a job; what it returns is awaited if it can be."""


class AsyncResults(Protocol):
    """Reads the states and results of jobs."""

    async def snapshot(self, job_id: str) -> Snapshot:
        """Return the state of a job now. Raise BrokerUnavailable."""
        ...

    async def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnAsyncProgress | None) -> Snapshot:  # noqa: ASYNC109 - the same as of the other client
        """Return the snapshot of an ended job.

        Raise WaitTimeout, UnknownJob, BrokerUnavailable, and what `on_progress` raises.
        """
        ...

    async def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        """Return those of some jobs that have ended. Raise BrokerUnavailable."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Request that a job is cancelled; return False if it has ended. Raise UnknownJob, BrokerUnavailable."""
        ...


async def end_before_timeout(
    last: Callable[[], Awaitable[Snapshot]],
    job_id: str,
    timeout: float | None,  # noqa: ASYNC109 - as above
    end: Awaitable[Snapshot],
) -> Snapshot:
    """Return how a job ended, which `end` waits for. After `timeout` seconds `last` reads its state once more.

    Raise WaitTimeout, UnknownJob, BrokerUnavailable, and what `end` raises.
    """
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await end
    except TimeoutError:
        if not limit.expired():  # `on_progress` raised it
            raise
    found = await last()
    if found.state is JobState.UNKNOWN:
        raise unknown_job(job_id)
    if not found.state.terminal:
        raise wait_timeout(job_id, timeout)
    return found


@dataclass(frozen=True, slots=True)
class AsyncJob(BoundToProcess, Generic[ResultT]):
    """A job by its id. Any process can make one from an id: see `AsyncArtifactClient.job`.

    Each method raises BrokerUnavailable; where jobs go over the gateway, also GatewayUnavailable and NotAllowed. One of
    a job that was sent under an id or key of the caller raises IdempotencyMismatch as soon as it finds that the id
    belongs to another request, which a worker may know for longer than the broker.
    """

    id: str
    spec: TaskSpec[Any, ResultT] | None = field(default=None, repr=False)
    request_sha256: str | None = field(default=None, repr=False, compare=False)
    """The digest of the request that was sent, where the id may be that of another one."""
    results: AsyncResults = field(kw_only=True, repr=False, compare=False)

    @property
    def kind(self) -> str | None:
        """Return `upload`, `verify`, …; None if it was not given."""
        return self.spec.kind if self.spec else None

    async def state(self) -> JobState:
        """Return the state of the job: `unknown` for an id that is wrong, or whose result has expired.

        `running` is returned up to a second after a worker has begun the job.
        """
        return self._own(await self.results.snapshot(self.id)).state

    async def progress(self) -> Progress | None:
        """Return how far a running job is, or None if it does not run or has not reported it."""
        return self._own(await self.results.snapshot(self.id)).progress

    async def result(self) -> ResultT | None:
        """Return the result of a job that succeeded, or None if it has not ended.

        Where the result backend knows nothing of the job, a worker is asked for up to 2 s what the ledger has of it.

        Raises:
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached.
        """
        snapshot = await self.results.snapshot(self.id)
        if snapshot.state is JobState.UNKNOWN:
            try:
                snapshot = await self.results.wait_for_end(self.id, 0.0, None)  # asks the ledger
            except WaitTimeout:
                return None
        return result_of(self.id, self.spec, self._own(snapshot)) if snapshot.state.terminal else None

    async def wait(self, timeout: float | None = None, *, on_progress: OnAsyncProgress | None = None) -> ResultT:  # noqa: ASYNC109 - the same as of the other client
        """Wait for the end of the job and return its result; cancelling the wait does not cancel the job.

        Args:
            timeout: seconds, or None for as long as it takes.
            on_progress: called, and awaited if it can be, at most a few times a second; what it raises ends the wait.

        Raises:
            WaitTimeout: it has not ended in time; it goes on.
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached; the job itself may go on.
        """
        return result_of(self.id, self.spec, self._own(await self.results.wait_for_end(self.id, timeout, on_progress)))

    async def cancel(self) -> bool:
        """Request that the job is cancelled, and return before it is; `wait` raises JobCancelled when it is.

        Return False if the job has ended already. Raise UnknownJob if nothing is known of the job; the request is kept
        for a day nevertheless, in case that another program has sent it.
        """
        if self.request_sha256 is not None:
            self._own(await self.results.snapshot(self.id))
        return await self.results.cancel(self.id)

    def _own(self, found: Snapshot) -> Snapshot:
        """Return a state of this job. Raise IdempotencyMismatch: it is that of another request with this id."""
        check_same(self.id, self.request_sha256, found.request_sha256)
        return found


class AsyncJobs(BoundToProcess, list[AsyncJob[Any]]):
    """Jobs that were sent together, in the order of their requests, as one handle.

    Each method raises BrokerUnavailable; where jobs go over the gateway, also GatewayUnavailable and NotAllowed.
    """

    def __init__(self, jobs: Iterable[AsyncJob[Any]] = (), *, results: AsyncResults) -> None:
        super().__init__(jobs)
        self._results = results

    def __copy__(self) -> "AsyncJobs":
        return AsyncJobs(self, results=self._results)

    def __deepcopy__(self, memo: object) -> "AsyncJobs":
        return self.__copy__()

    async def as_completed(self, timeout: float | None = None) -> AsyncIterator[AsyncJob[Any]]:  # noqa: ASYNC109 - as above
        """Yield each job when it has ended, the first one first, by polling for all of them together.

        A job of which the result backend knows nothing is yielded too, unless it goes on: `result` returns what the
        ledger has of it where its result has expired, and raises UnknownJob where Redis has lost the job.

        Raises:
            WaitTimeout: some have not ended within `timeout` seconds; they go on.
        """
        poll = Poll(self, timeout)
        while poll.left:
            ended = [id_ for page in poll.pages() for id_ in await self._results.ended(page)]
            for job in poll.take(ended):
                yield job
            if poll.left and not ended:
                async for id_ in self._ended_or_lost(poll.to_look_up()):
                    for job in poll.take([id_]):
                        yield job
                if poll.left:
                    await asyncio.sleep(poll.pause())

    async def _ended_or_lost(self, job_ids: Iterable[str]) -> AsyncIterator[str]:
        """Yield those of some jobs of which the result backend knows nothing, and that go on in no ledger either."""
        known = 0
        for id_ in job_ids:
            try:
                if (await self._results.snapshot(id_)).state is JobState.UNKNOWN:
                    await self._results.wait_for_end(id_, 0.0, None)  # asks the ledger
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

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        *,
        on_end: Callable[[int, int], object] | None = None,
    ) -> list[Any]:
        """Wait for the ends of all jobs and return their results, in the order of the jobs.

        Args:
            timeout: seconds for all of them, or None for as long as it takes.
            on_end: called with how many have ended, and how many there are, after each end.

        Raises:
            WaitTimeout: some have not ended in time; they go on.
            JobFailed, JobCancelled: after all have ended, for the first one that ended without success.
        """
        done = 0
        async for _ in self.as_completed(timeout):
            done += 1
            if on_end is not None:
                on_end(done, len(self))
        return [await job.result() for job in self]

    async def cancel(self) -> int:
        """Request that all jobs are cancelled; return how many had not ended.

        Unknown jobs are left out, and those whose id belongs to another request.
        """
        count = 0
        for job in self:
            try:
                count += await job.cancel()
            except (UnknownJob, IdempotencyMismatch):
                continue
        return count
