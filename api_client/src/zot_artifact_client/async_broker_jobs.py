"""Send jobs and queries over the worker's broker without blocking, and read their ends from its result backend."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from zot_artifact_client.async_redis import AsyncRedis
from zot_artifact_client.async_results import AsyncResultBackend
from zot_artifact_client.build_requests import SentJob, digests_of, outgoing, pages_of
from zot_artifact_client.connection import celery_app, without_credentials
from zot_artifact_client.contract import TASKS, Message, RequestT, ResultT, TaskSpec
from zot_artifact_client.idempotency_conflicts import idempotency_mismatch, push_comparison, read_mismatches
from zot_artifact_client.job_ids import NewId, choose_id
from zot_artifact_client.outgoing_messages import MESSAGES, Outgoing, push
from zot_artifact_client.query_messages import question, read_answer, status_answer, status_question
from zot_artifact_client.snapshot import Snapshot


class AsyncBrokerJobs:
    """The jobs of one service over a broker. Raise ClientError: a URL cannot be used."""

    def __init__(self, broker_url: str, result_url: str | None, service: str | None) -> None:
        self.at = without_credentials(broker_url)
        self._service = service
        self._broker = AsyncRedis("broker", broker_url, "broker_url")
        self._backend = AsyncRedis("result backend", result_url, "result_url") if result_url else self._broker
        self.results = AsyncResultBackend(self._backend, self._is_queued, self._recorded)
        self._messages = celery_app("disabled")

    async def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob:
        """Send a request and return its job."""
        chosen = choose_id(spec, idempotency_key=idempotency_key, job_id=job_id, service=self._service)
        page = [outgoing(spec, chosen, request)]
        digests = {} if isinstance(chosen, NewId) else digests_of(page, spec.kind)
        await self._compare(digests, record=True)
        await self._push(page)
        return SentJob(page[0].job_id, spec, digests.get(chosen))

    async def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> AsyncIterator[SentJob]:
        """Send requests in pages, once all are valid and none is another one than before; yield the job of each."""
        pages = []
        for page in pages_of(requests, idempotency_key, service=self._service):
            pages.append((page, {} if idempotency_key is None else digests_of(page)))
            await asyncio.sleep(0)  # to make a long list takes long
        for _, digests in pages:
            await self._compare(digests, record=False)
        for page, digests in pages:
            await self._compare(digests, record=True)
            await self._push(page)
            for each in page:
                yield SentJob(each.job_id, TASKS[each.name], digests.get(each.job_id))

    async def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, limit: float) -> ResultT:
        """Send a query and return its answer."""
        asked = question(spec, request, limit)
        await self._push([asked])
        return read_answer(spec, await self.results.answer(asked.job_id, limit), limit)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.results.close()
        await self._broker.close()
        await self._backend.close()

    async def _push(self, jobs: list[Outgoing]) -> None:
        await self._broker.transaction(lambda pipeline: push(pipeline, self._messages, jobs))

    async def _compare(self, digests: Mapping[str, str], *, record: bool) -> None:
        """Raise IdempotencyMismatch if an id belongs to another request than the one with this digest."""
        if not digests:
            return
        answers = await self._broker.transaction(lambda pipeline: push_comparison(pipeline, digests, record=record))
        if other := read_mismatches(digests, answers):
            raise idempotency_mismatch(other)

    async def _recorded(self, job_id: str, within: float) -> Snapshot | None:
        asked = status_question(job_id, within)
        await self._push([asked])
        return status_answer(await self.results.answer(asked.job_id, within))

    async def _is_queued(self, job_id: str) -> bool:
        return bool(await self._broker.run(lambda client: client.hexists(MESSAGES, job_id)))
