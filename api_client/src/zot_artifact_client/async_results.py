"""Read the states and results of jobs from Redis without blocking, those of all waits in one round trip."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from celery.backends.base import KeyValueStoreBackend

from zot_artifact_client import cancellation
from zot_artifact_client.async_job import OnAsyncProgress, end_before_timeout
from zot_artifact_client.async_redis import AsyncRedis
from zot_artifact_client.connection import celery_app
from zot_artifact_client.contract import JobState
from zot_artifact_client.errors import BrokerUnavailable
from zot_artifact_client.result_backend import LEDGER_AT_THE_END, LEDGER_WITHIN, PROGRESS_EVERY, UNKNOWN_FOR
from zot_artifact_client.snapshot import Snapshot, readable_snapshot, unknown_job

_TICK = 0.01
_LONGEST_PAUSE = 0.32
"""Seconds between two reads of a wait: a tenth of its age, within these two, in powers of two.

Reads fall on multiples of their pause, so that those of many waits are one round trip.
"""


class AsyncResultBackend:
    """States and results of jobs, as the worker's Celery application stores them in Redis.

    Args:
        server: the result backend.
        is_queued: returns whether a job of which no state is stored is in the outbox.
        recorded: as of the other client.
    """

    def __init__(
        self,
        server: AsyncRedis,
        is_queued: Callable[[str], Awaitable[bool]],
        recorded: Callable[[str, float], Awaitable[Snapshot | None]],
    ) -> None:
        self._server = server
        self._is_queued = is_queued
        self._recorded = recorded
        self._codec = KeyValueStoreBackend(app=celery_app("disabled"))  # only reads what is stored
        self._reads: dict[asyncio.AbstractEventLoop, list[tuple[str, asyncio.Future[Snapshot]]]] = {}
        self._flushes: set[asyncio.Task[None]] = set()

    async def snapshot(self, job_id: str) -> Snapshot:
        found = await self._read(job_id)
        if not found.may_be_queued:
            return found
        queued = await self._in_outbox(job_id)
        if queued:
            return Snapshot(JobState.QUEUED)
        # A worker stores a state before it removes the job from the outbox: only a second read is certain.
        found = await self._read(job_id)
        return Snapshot(JobState.UNKNOWN) if found.is_absent and queued is False else found

    async def snapshot_or_recorded(self, job_id: str, within: float) -> Snapshot:
        """Return the state of a job now, as the ledger has it if the result backend does not know the job.

        Raise UnknownJob, BrokerUnavailable.
        """
        found: Snapshot | None = await self.snapshot(job_id)
        if found and found.state is JobState.UNKNOWN:
            found = await self._recorded(job_id, within)
        if found is None or found.state is JobState.UNKNOWN:
            raise unknown_job(job_id, certain=found is not None)
        return found

    async def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnAsyncProgress | None) -> Snapshot:  # noqa: ASYNC109 - the same as of the other client
        last = partial(self.snapshot_or_recorded, job_id, LEDGER_AT_THE_END)
        return await end_before_timeout(last, job_id, timeout, self._until_end(job_id, on_progress))

    async def answer(self, query_id: str, timeout: float) -> Snapshot:  # noqa: ASYNC109 - as above
        """Return the answer to a query, or what is stored of it after `timeout` seconds. Raise BrokerUnavailable."""
        try:
            async with asyncio.timeout(timeout):
                return await self._until_end(query_id, None, is_job=False)
        except TimeoutError:
            return await self._read(query_id)

    async def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        found = zip(job_ids, await self._read_all(job_ids), strict=True)
        ended = {id_: each for id_, each in found if each.state.terminal}
        now = {id_: await self.snapshot(id_) if each.may_be_queued else each for id_, each in ended.items()}
        return {id_: each for id_, each in now.items() if each.state.terminal}

    async def cancel(self, job_id: str) -> bool:
        """As the Protocol says. The workers are not told: they look for requests every two seconds."""
        found = await self.snapshot(job_id)
        if found.state.terminal:
            return False
        await self._server.transaction(lambda pipeline: cancellation.push_requests(pipeline, [job_id]))
        if found.state is JobState.UNKNOWN:
            raise unknown_job(job_id)
        return True

    async def close(self) -> None:
        """Let the reads of cancelled waits end: each would connect again after the connections were closed."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(each for each in list(self._flushes) if each.get_loop() is loop), return_exceptions=True)

    async def _until_end(self, job_id: str, on_progress: OnAsyncProgress | None, *, is_job: bool = True) -> Snapshot:
        started = time.monotonic()
        unknown_until = started + UNKNOWN_FOR
        told, last = float("-inf"), None
        while True:
            found = await self._read(job_id)
            if is_job and found.state is JobState.REFUSED:
                found = await self.snapshot(job_id)
            if found.state.terminal:
                return found
            now = time.monotonic()
            if is_job and found.is_absent and now >= unknown_until:
                found = await self.snapshot_or_recorded(job_id, LEDGER_WITHIN)
                if found.state.terminal:
                    return found
                unknown_until = time.monotonic() + UNKNOWN_FOR
            news = found.progress if found.progress != last else None
            if news is not None and on_progress is not None and now - told >= PROGRESS_EVERY:
                told, last = now, news
                awaited = on_progress(news)
                if inspect.isawaitable(awaited):
                    await awaited
            pause = _pause(time.monotonic() - started)
            await asyncio.sleep(pause - time.monotonic() % pause)

    async def _in_outbox(self, job_id: str) -> bool | None:
        """Return whether a job is in the outbox, None if that is unknown."""
        try:
            return await self._is_queued(job_id)
        except BrokerUnavailable:
            return None

    async def _read(self, job_id: str) -> Snapshot:
        """Read one job, in one round trip with all others that are read at this moment."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Snapshot] = loop.create_future()
        reads = self._reads.get(loop)
        if reads is not None:
            reads.append((job_id, future))
        else:
            for each in list(self._reads):  # other threads may add theirs
                if each.is_closed():
                    self._reads.pop(each, None)
            self._reads[loop] = [(job_id, future)]
            task = loop.create_task(self._flush())
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)
        return await future

    async def _flush(self) -> None:
        await asyncio.sleep(0)  # the other coroutines of this moment add theirs
        reads = self._reads.pop(asyncio.get_running_loop())
        try:
            found: Sequence[Snapshot | Exception] = await self._read_all([job_id for job_id, _ in reads])
        except Exception as error:  # noqa: BLE001 - each of the waits raises it
            found = [error] * len(reads)
        for (_, future), each in zip(reads, found, strict=True):
            if future.done():  # its wait was cancelled
                continue
            if isinstance(each, Exception):
                future.set_exception(each)
            else:
                future.set_result(each)

    async def _read_all(self, job_ids: Sequence[str]) -> list[Snapshot]:
        keys = [self._codec.get_key_for_task(id_) for id_ in job_ids]
        stored: list[Any] = await self._server.run(lambda client: client.mget(keys)) if keys else []
        return [
            readable_snapshot(id_, partial(self._codec.decode_result, meta)) if meta else Snapshot(JobState.QUEUED)
            for id_, meta in zip(job_ids, stored, strict=True)
        ]


def _pause(age: float) -> float:
    pause = _TICK
    while 2 * pause <= min(_LONGEST_PAUSE, age / 10):
        pause *= 2
    return pause
