"""A job that an AsyncArtifactClient sent, or many: their states and their typed results."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from zot_artifact_client.bound_to_process import BoundToProcess
from zot_artifact_client.contract import JobState, Progress, ResultT
from zot_artifact_client.errors import IdempotencyMismatch, UnknownJob, WaitTimeout
from zot_artifact_client.job import LOOKED_UP, JobHandle, Poll, wait_timeout
from zot_artifact_client.snapshot import Snapshot, result_of, unknown_job

OnAsyncProgress = Callable[[Progress], object]
"""Is given the progress of a job; what it returns is awaited if it can be."""


class AsyncResults(Protocol):
    """A ResultBackend whose methods are coroutines."""

    async def snapshot(self, job_id: str) -> Snapshot: ...

    async def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnAsyncProgress | None) -> Snapshot:  # noqa: ASYNC109 - the same as of the other client
        ...

    async def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]: ...
    async def cancel(self, job_id: str) -> bool: ...


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
class AsyncJob(JobHandle[ResultT]):
    """A Job whose methods are coroutines, and promise and raise what those of Job do."""

    results: AsyncResults = field(kw_only=True, repr=False, compare=False)

    async def state(self) -> JobState:
        """Return the state of the job; see `Job.state`."""
        return self._checked(await self.results.snapshot(self.id)).state

    async def progress(self) -> Progress | None:
        """Return what a running job has done; see `Job.progress`."""
        return self._checked(await self.results.snapshot(self.id)).progress

    async def result(self) -> ResultT | None:
        """Return the result of a job that succeeded, or None if it has not ended; see `Job.result`."""
        snapshot = await self.results.snapshot(self.id)
        if snapshot.state is JobState.UNKNOWN:
            try:
                snapshot = await self.results.wait_for_end(self.id, 0.0, None)  # asks the ledger
            except WaitTimeout:
                return None
        return result_of(self.id, self.spec, self._checked(snapshot)) if snapshot.state.terminal else None

    async def wait(self, timeout: float | None = None, *, on_progress: OnAsyncProgress | None = None) -> ResultT:  # noqa: ASYNC109 - the same as of the other client
        """Wait for the end of the job and return its result; see `Job.wait`. Cancelling the wait cancels no job.

        What `on_progress` returns is awaited if it can be.
        """
        return result_of(
            self.id, self.spec, self._checked(await self.results.wait_for_end(self.id, timeout, on_progress))
        )

    async def cancel(self) -> bool:
        """Request that the job is cancelled, and return at once; see `Job.cancel`."""
        if self.request_sha256 is not None:
            self._checked(await self.results.snapshot(self.id))
        return await self.results.cancel(self.id)


class AsyncJobs(BoundToProcess, list[AsyncJob[Any]]):
    """Jobs whose methods are coroutines, and promise and raise what those of Jobs do."""

    def __init__(self, jobs: Iterable[AsyncJob[Any]] = (), *, results: AsyncResults) -> None:
        super().__init__(jobs)
        self._results = results

    def __copy__(self) -> "AsyncJobs":
        return AsyncJobs(self, results=self._results)

    def __deepcopy__(self, memo: object) -> "AsyncJobs":
        return self.__copy__()

    async def as_completed(self, timeout: float | None = None) -> AsyncIterator[AsyncJob[Any]]:  # noqa: ASYNC109 - as above
        """Yield each job when it has ended, the first one first; see `as_completed`."""
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
        """Yield the ids of jobs that the result backend does not know and that are not open in the ledger."""
        open_ = 0
        for id_ in job_ids:
            try:
                if (await self._results.snapshot(id_)).state is JobState.UNKNOWN:
                    await self._results.wait_for_end(id_, 0.0, None)  # asks the ledger
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

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        *,
        on_end: Callable[[int, int], object] | None = None,
    ) -> list[Any]:
        """Wait for the ends of all jobs and return their results, in the order of the jobs; see `Jobs.wait`."""
        done = 0
        async for _ in self.as_completed(timeout):
            done += 1
            if on_end is not None:
                on_end(done, len(self))
        return [await job.result() for job in self]

    async def cancel(self) -> int:
        """Request that all jobs are cancelled; return how many had not ended; see `Jobs.cancel`."""
        count = 0
        for job in self:
            try:
                count += await job.cancel()
            except (UnknownJob, IdempotencyMismatch):
                continue
        return count
