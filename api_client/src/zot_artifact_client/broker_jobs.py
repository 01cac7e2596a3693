"""Send jobs and queries over the worker's broker, and read their ends from its result backend."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zot_artifact_client.broker_urls import parse_url
from zot_artifact_client.build_requests import SentJob, digests_of, outgoing, pages_of
from zot_artifact_client.connection import without_credentials
from zot_artifact_client.contract import TASKS, Message, RequestT, ResultT, TaskSpec
from zot_artifact_client.errors import ClientError
from zot_artifact_client.idempotency_conflicts import idempotency_mismatch
from zot_artifact_client.job_ids import NewId, choose_id
from zot_artifact_client.publisher import Publisher
from zot_artifact_client.query_messages import question, read_answer, status_answer, status_question
from zot_artifact_client.result_backend import CeleryResultBackend
from zot_artifact_client.snapshot import Snapshot


class BrokerJobs:
    """The jobs of one service over a broker. Raise ClientError: a URL cannot be used."""

    def __init__(self, broker_url: str, result_url: str | None, service: str | None) -> None:
        if result_url is None and not parse_url(broker_url).is_redis:
            msg = f"{without_credentials(broker_url)} cannot keep results: give result_url as well"
            raise ClientError(msg)
        self.at = without_credentials(broker_url)
        self._service = service
        self._publisher = Publisher(broker_url)
        publisher = self._publisher
        self.results = CeleryResultBackend(
            result_url or broker_url, publisher.revoke, publisher.is_queued, self._recorded
        )

    def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob:
        """Send a request and return its job."""
        chosen = choose_id(spec, idempotency_key=idempotency_key, job_id=job_id, service=self._service)
        page = [outgoing(spec, chosen, request)]
        digests = {} if isinstance(chosen, NewId) else digests_of(page, spec.kind)
        self._compare(digests, record=True)
        self._publisher.send_all(page)
        return SentJob(page[0].job_id, spec, digests.get(chosen))

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> Iterator[SentJob]:
        """Send requests in pages, once all are valid and none is another one than before; yield the job of each."""
        pages = [
            (page, {} if idempotency_key is None else digests_of(page))
            for page in pages_of(requests, idempotency_key, service=self._service)
        ]
        for _, digests in pages:
            self._compare(digests, record=False)
        for page, digests in pages:
            self._compare(digests, record=True)
            self._publisher.send_all(page)
            yield from (SentJob(each.job_id, TASKS[each.name], digests.get(each.job_id)) for each in page)

    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, timeout: float) -> ResultT:
        """Send a query and return its answer."""
        asked = question(spec, request, timeout)
        self._publisher.send_all([asked])
        return read_answer(spec, self.results.answer(asked.job_id, timeout), timeout)

    def _recorded(self, job_id: str, within: float) -> Snapshot | None:
        asked = status_question(job_id, within)
        self._publisher.send_all([asked])
        return status_answer(self.results.answer(asked.job_id, within))

    def close(self) -> None:
        """Close the connections."""
        self._publisher.close()
        self.results.close()

    def _compare(self, digests: Mapping[str, str], *, record: bool) -> None:
        """Raise IdempotencyMismatch if an id belongs to another request than the one with this digest."""
        if not digests:
            return
        other = self._publisher.compare(digests, record=record)
        if other is None:
            other = self.results.compare(digests, record=record)
        if other:
            raise idempotency_mismatch(other)
