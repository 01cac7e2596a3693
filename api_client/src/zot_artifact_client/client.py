"""Send jobs: one method per verb, for one artifact or for many; each call is one job."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Self, overload

from zot_artifact_client.connection import without_credentials
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    MAX_LISTED,
    QUERY_LIST,
    QUERY_SHOW,
    QUERY_STATUS,
    REPLICATE,
    TASKS,
    UPLOAD,
    VERIFY,
    AdoptResult,
    BatchResult,
    DeleteResult,
    JobState,
    ListResult,
    Message,
    ReplicateResult,
    RequestT,
    ResultT,
    ShowResult,
    SweepVerifyResult,
    TaskSpec,
    UploadResult,
    VerifyResult,
)
from zot_artifact_client.errors import ClientError, JobFailed
from zot_artifact_client.job import Job, Jobs
from zot_artifact_client.job_ids import check_id, choose_id
from zot_artifact_client.publisher import Publisher
from zot_artifact_client.queries import QUERY_TIMEOUT, UNKNOWN_TASK, question, read_answer
from zot_artifact_client.result_backend import CeleryResultBackend
from zot_artifact_client.snapshot import JobStatus, Snapshot, recorded_status, status_of
from zot_artifact_client.urls import parse_url
from zot_artifact_client.verbs import (
    Verbs,
    check_service,
    digests_of,
    idempotency_mismatch,
    outgoing,
    pages_of,
    request_of,
    spec_of,
)


class Artifacts(
    Verbs[
        Job[UploadResult],
        Job[ReplicateResult],
        Job[VerifyResult],
        Job[DeleteResult],
        Job[AdoptResult],
        Job[BatchResult],
        Job[SweepVerifyResult],
    ]
):
    """The requests that a service can send; annotate with this type where tests use the in-memory client."""

    def _send(self, spec: TaskSpec[Any, Any], request: Message, idempotency_key: str | None) -> Any:
        return self.submit(spec, request, idempotency_key=idempotency_key)

    @abstractmethod
    def submit(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> Job[ResultT]:
        """Send a request of any kind; `job_id` is an id that the caller chooses."""

    @abstractmethod
    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> Jobs:
        """Send many requests, of one kind or several, some hundreds in one round trip each; return one handle of all.

        With an `idempotency_key`, each job's id is made from it and from the position in the list: the same list sent
        again with the same key gives the same jobs. Raise BrokerUnavailable: some may have been sent.
        """

    @overload
    def job(self, job_id: str, kind: TaskSpec[Any, ResultT]) -> Job[ResultT]: ...
    @overload
    def job(self, job_id: str, kind: str | None = None) -> Job[Any]: ...
    @abstractmethod
    def job(self, job_id: str, kind: TaskSpec[Any, Any] | str | None = None) -> Job[Any]:
        """Return the job with an id. Without `kind`, its result may be plain JSON."""

    def upload_job(self, job_id: str) -> Job[UploadResult]:
        """Return the upload job with an id."""
        return self.job(job_id, UPLOAD)

    def replicate_job(self, job_id: str) -> Job[ReplicateResult]:
        """Return the replicate job with an id."""
        return self.job(job_id, REPLICATE)

    def verify_job(self, job_id: str) -> Job[VerifyResult]:
        """Return the verify job with an id."""
        return self.job(job_id, VERIFY)

    def delete_job(self, job_id: str) -> Job[DeleteResult]:
        """Return the delete job with an id."""
        return self.job(job_id, DELETE)

    def adopt_job(self, job_id: str) -> Job[AdoptResult]:
        """Return the adopt job with an id."""
        return self.job(job_id, ADOPT)

    def batch_job(self, job_id: str) -> Job[BatchResult]:
        """Return the batch job with an id."""
        return self.job(job_id, BATCH)

    def show(self, bucket: str, key: str, *, timeout: float = QUERY_TIMEOUT) -> ShowResult:
        """Return the current version of an artifact and the state of each copy, as the catalogue has them.

        No job is made: a worker answers from the catalogue, and no store is asked.

        Raises:
            ArtifactNotFound: the catalogue has no artifact under this key.
            WaitTimeout: no worker has answered within `timeout` seconds.
            InvalidRequest, JobFailed, BrokerUnavailable: it cannot be asked, or not be answered.
        """
        return self.query(QUERY_SHOW, request_of(QUERY_SHOW, bucket=bucket, key=key), timeout=timeout)

    def list(
        self, bucket: str, prefix: str = "", *, after: str = "", limit: int = MAX_LISTED, timeout: float = QUERY_TIMEOUT
    ) -> ListResult:
        """Return a page of the artifacts of a bucket whose keys begin with a prefix, by key.

        The page begins after the key `after` and has at most `limit` artifacts, fewer where keys are long. `next` of
        the result is the `after` of the next page, None at the end. Raise as `show`, but for ArtifactNotFound.
        """
        request = request_of(QUERY_LIST, bucket=bucket, prefix=prefix, after=after, limit=limit)
        return self.query(QUERY_LIST, request, timeout=timeout)

    def status(self, job_id: str, *, timeout: float = QUERY_TIMEOUT) -> JobStatus:
        """Return the state of a job, of any kind and sent by any process, with its progress, result or error.

        A job whose result has expired is looked up in the ledger by a worker. A job that is not there either has the
        state `unknown`.

        Raises:
            WaitTimeout: the result backend does not have the job, and no worker has answered within `timeout` seconds.
            InvalidRequest, BrokerUnavailable: it cannot be asked.
        """
        found = self.snapshot(check_id(job_id))
        if found.state is not JobState.UNKNOWN:
            return status_of(job_id, found)
        try:
            return recorded_status(self.query(QUERY_STATUS, request_of(QUERY_STATUS, job=job_id), timeout=timeout))
        except JobFailed as error:
            if error.type != UNKNOWN_TASK:  # an older worker, which answers no queries
                raise
            return status_of(job_id, found)

    @abstractmethod
    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, *, timeout: float = QUERY_TIMEOUT) -> ResultT:
        """Send a query of `contract.QUERIES` and return its answer. Raise as `show`."""

    @abstractmethod
    def snapshot(self, job_id: str) -> Snapshot:
        """Return what the result backend has of a job. Raise BrokerUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ArtifactClient(Artifacts):
    """Sends jobs to the worker over its broker; safe for threads and forks, so one for a program is enough.

    It connects when it sends the first job. A broker that does not answer raises BrokerUnavailable within seconds.

    Args:
        broker_url: the worker's: redis://, rediss://, redis+socket://, sentinel://, amqp:// or amqps://.
        result_url: of the worker's result backend; by default the broker, if that is Redis or Valkey.
        service: scopes the idempotency keys: services with different names never share a job.

    Raises:
        ClientError: a URL cannot be used.
    """

    def __init__(self, broker_url: str, result_url: str | None = None, *, service: str | None = None) -> None:
        if result_url is None and not parse_url(broker_url).is_redis:
            msg = f"{without_credentials(broker_url)} cannot keep results: give result_url as well"
            raise ClientError(msg)
        self._broker = broker_url
        self._service = check_service(service)
        self._publisher = Publisher(broker_url)
        self._results = CeleryResultBackend(result_url or broker_url, self._publisher.revoke, self._publisher.is_queued)
        self._closed = False

    def submit(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> Job[ResultT]:
        self._check_open()
        chosen = choose_id(spec, idempotency_key=idempotency_key, job_id=job_id, service=self._service)
        sent = outgoing(spec, chosen, request)
        if idempotency_key is not None:
            self._check_digests(digests_of([sent], spec.kind))
        self._publisher.send_all([sent])
        return Job(chosen, spec, results=self._results)

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> Jobs:
        self._check_open()
        jobs = Jobs(results=self._results)
        for page in pages_of(requests, idempotency_key, service=self._service):
            if idempotency_key is not None:
                self._check_digests(digests_of(page))
            self._publisher.send_all(page)
            jobs.extend(Job(sent.job_id, TASKS[sent.name], results=self._results) for sent in page)
        return jobs

    def _check_digests(self, digests: Mapping[str, str]) -> None:
        """Raise IdempotencyMismatch if one of these ids belongs to another request than the one with this digest."""
        other = self._publisher.mismatches(digests)
        if other is None:
            other = self._results.mismatches(digests)
        if other:
            raise idempotency_mismatch(other)

    @overload
    def job(self, job_id: str, kind: TaskSpec[Any, ResultT]) -> Job[ResultT]: ...
    @overload
    def job(self, job_id: str, kind: str | None = None) -> Job[Any]: ...
    def job(self, job_id: str, kind: TaskSpec[Any, Any] | str | None = None) -> Job[Any]:
        return Job(check_id(job_id), spec_of(kind), results=self._results)

    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, *, timeout: float = QUERY_TIMEOUT) -> ResultT:
        self._check_open()
        asked = question(spec, request, timeout)
        self._publisher.send_all([asked])
        return read_answer(spec, self._results.answer(asked.job_id, timeout), timeout)

    def snapshot(self, job_id: str) -> Snapshot:
        self._check_open()
        return self._results.snapshot(job_id)

    def close(self) -> None:
        self._closed = True
        self._publisher.close()
        self._results.close()

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the client of {without_credentials(self._broker)} is closed: make another one"
            raise ClientError(msg)
