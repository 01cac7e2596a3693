"""Send jobs and queries over the gateway from an event loop: few threads speak HTTP, and no wait holds one."""

import asyncio
import contextvars
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from zot_artifact_client.async_job import OnAsyncProgress, end_before_timeout
from zot_artifact_client.build_requests import SentJob
from zot_artifact_client.connection import PerProcess
from zot_artifact_client.contract import JobState, Message, Progress, RequestT, ResultT, TaskSpec
from zot_artifact_client.gateway import Gateway
from zot_artifact_client.gateway_jobs import GatewayJobs, GatewayResults, pause_of, requests_of
from zot_artifact_client.snapshot import Snapshot, unknown_job

AnswerT = TypeVar("AnswerT")

_THREADS = 8
"""Requests at a time. They are not the threads of the event loop, which long transfers of bytes may all hold."""


class AsyncGatewayJobs:
    """The jobs of one token over a gateway, from any event loop and any process."""

    def __init__(self, gateway: Gateway, service: str | None) -> None:
        self.at = gateway.url
        self._jobs = GatewayJobs(gateway, service)
        self._threads = PerProcess(lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="zot-artifact-gateway"))
        self.results = AsyncGatewayResults(self._jobs.results, self._threads)

    async def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob:
        """Send a request and return its job."""
        send = partial(self._jobs.submit, spec, request, idempotency_key=idempotency_key, job_id=job_id)
        return await _in_thread(self._threads, send)

    async def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> AsyncIterator[SentJob]:
        """Send requests one after the other; yield the job of each."""
        for spec, request, key in requests_of(requests, idempotency_key):
            yield await self.submit(spec, request, idempotency_key=key, job_id=None)

    async def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, limit: float) -> ResultT:
        """Return the answer to a query."""
        return await _in_thread(self._threads, partial(self._jobs.query, spec, request, limit))

    async def close(self) -> None:
        """End the threads when they have their answers."""
        if (threads := self._threads.made()) is not None:
            threads.shutdown(wait=False, cancel_futures=True)


class AsyncGatewayResults:
    """The states and results of jobs, as the gateway has them."""

    def __init__(self, results: GatewayResults, threads: PerProcess[ThreadPoolExecutor]) -> None:
        self._results = results
        self._threads = threads
        self._waits = 0

    async def snapshot(self, job_id: str) -> Snapshot:
        return await _in_thread(self._threads, partial(self._results.snapshot, job_id))

    async def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnAsyncProgress | None) -> Snapshot:  # noqa: ASYNC109 - the same as of the other client
        self._waits += 1
        try:
            return await end_before_timeout(
                partial(self.snapshot, job_id), job_id, timeout, self._until_end(job_id, on_progress)
            )
        finally:
            self._waits -= 1

    async def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        found = await asyncio.gather(*map(self._snapshot_for_wait, job_ids))
        return {id_: each for id_, each in zip(job_ids, found, strict=True) if each is not None and each.state.terminal}

    async def cancel(self, job_id: str) -> bool:
        return await _in_thread(self._threads, partial(self._results.cancel, job_id))

    async def _snapshot_for_wait(self, job_id: str) -> Snapshot | None:
        return await _in_thread(self._threads, partial(self._results.snapshot_for_wait, job_id))

    async def _until_end(self, job_id: str, on_progress: OnAsyncProgress | None) -> Snapshot:
        started = time.monotonic()
        told: Progress | None = None
        while True:
            if (found := await self._snapshot_for_wait(job_id)) is not None:
                if found.state is JobState.UNKNOWN:
                    raise unknown_job(job_id)
                if found.state.terminal:
                    return found
                if on_progress is not None and found.progress is not None and found.progress != told:
                    told = found.progress
                    awaited = on_progress(told)
                    if inspect.isawaitable(awaited):
                        await awaited
            await asyncio.sleep(pause_of(time.monotonic() - started, self._waits))


async def _in_thread(threads: PerProcess[ThreadPoolExecutor], work: Callable[[], AnswerT]) -> AnswerT:
    """Return what a blocking function returns; a cancelled call leaves it to its end, which has a time limit."""
    run = contextvars.copy_context().run  # with the span of the caller
    return await asyncio.get_running_loop().run_in_executor(threads.get(), run, work)
