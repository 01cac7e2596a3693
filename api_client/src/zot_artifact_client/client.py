"""Send jobs: one method per verb, for one artifact or for many; each call is one job."""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, Self, Unpack, overload

from zot_artifact_client.bound_to_process import BoundToProcess
from zot_artifact_client.broker_jobs import BrokerJobs
from zot_artifact_client.build_requests import (
    SentJob,
    UploadFields,
    Verbs,
    check_request,
    check_service,
    request_of,
    sent_fields,
    spec_of,
)
from zot_artifact_client.chunk_cache import ChunkCache
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    QUERY_STATUS,
    REPLICATE,
    UPLOAD,
    VERIFY,
    AdoptResult,
    BatchResult,
    DeleteResult,
    JobState,
    ListResult,
    Message,
    Progress,
    ReplicateResult,
    RequestT,
    ResultT,
    ShowResult,
    SweepVerifyResult,
    TaskSpec,
    UploadResult,
    VerifyResult,
)
from zot_artifact_client.download import ArtifactBytes
from zot_artifact_client.errors import ClientError, JobFailed
from zot_artifact_client.gateway_jobs import GatewayJobs
from zot_artifact_client.job import Job, Jobs, ResultBackend
from zot_artifact_client.job_ids import check_id
from zot_artifact_client.query_messages import QUERY_TIMEOUT, UNKNOWN_TASK
from zot_artifact_client.snapshot import JobStatus, Snapshot, recorded_status, status_of


class JobTransport(Protocol):
    """Sends the jobs of one service: over a broker, over a gateway, or to a worker in memory."""

    at: str
    """Where they are sent, for messages."""

    @property
    def results(self) -> ResultBackend: ...
    def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob: ...
    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> Iterator[SentJob]: ...
    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, timeout: float, /) -> ResultT: ...
    def close(self) -> None: ...


class Artifacts(
    Verbs[
        Job[UploadResult],
        Job[ReplicateResult],
        Job[VerifyResult],
        Job[DeleteResult],
        Job[AdoptResult],
        Job[BatchResult],
        Job[SweepVerifyResult],
        ShowResult,
        ListResult,
    ]
):
    """The requests that a service can send; annotate with this type where tests use the in-memory client.

    Where jobs go over the gateway, what raises BrokerUnavailable also raises GatewayUnavailable and NotAllowed. After
    `close`, every call raises ClientError. `on_progress` is called with a Progress, which counts bytes; what it raises
    ends the call.
    """

    def __init__(self, jobs: JobTransport, bytes_: ArtifactBytes) -> None:
        self._jobs = jobs
        self._bytes = bytes_
        self._closed = False

    def submit(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> Job[ResultT]:
        """Send a request of any kind, and return its job. Raise as the verbs.

        `job_id` is an id that the caller chooses. Like an idempotency key, it belongs to one request.
        """
        self._check_open()
        check_request(spec, request)
        sent = self._jobs.submit(spec, request, idempotency_key=idempotency_key, job_id=job_id)
        return Job(*sent, results=self._jobs.results)

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> Jobs:
        """Send many requests, of one kind or several, some hundreds in one round trip; return all jobs as one handle.

        With an `idempotency_key`, each job's id is made from it and from the position in the list: the same list sent
        again with the same key gives the same jobs.

        Raises:
            InvalidRequest: a request is invalid.
            BrokerUnavailable: some requests may have been sent.
        """
        self._check_open()
        results = self._jobs.results
        sent = self._jobs.submit_many(requests, idempotency_key=idempotency_key)
        return Jobs((Job(*each, results=results) for each in sent), results=results)

    @overload
    def job(self, job_id: str, kind: TaskSpec[Any, ResultT]) -> Job[ResultT]: ...
    @overload
    def job(self, job_id: str, kind: str | None = None) -> Job[Any]: ...
    def job(self, job_id: str, kind: TaskSpec[Any, Any] | str | None = None) -> Job[Any]:
        """Return the job with an id; without `kind`, its result may be plain JSON. Raise InvalidRequest for no id."""
        return Job(check_id(job_id), spec_of(kind), results=self._jobs.results)

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

    def status(self, job_id: str, *, timeout: float = QUERY_TIMEOUT) -> JobStatus:
        """Return the state of a job, of any kind and sent by any process, with its progress, result or error.

        If the result has expired, a worker looks the job up in the ledger. A job that is not in the ledger has the
        state `unknown`.

        Raises:
            WaitTimeout: the result backend does not have the job, and no worker has answered within `timeout` seconds.
            InvalidRequest, BrokerUnavailable: the query cannot be sent.
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

    def open(self, bucket: str, key: str) -> io.BufferedReader:
        """Return an artifact as a seekable file in binary mode, read from the gateway.

        Each chunk of 16 MiB is verified by its SHA-256 before any byte of it is returned; one or two chunks are in
        memory. The file has the version that is current now: a read raises ArtifactChanged once that was replaced.

        Raises:
            ArtifactNotFound: there is no such artifact, or the token does not allow it.
            NotAllowed: the gateway refuses the token.
            GatewayUnavailable: the gateway does not answer.
            DamagedBytes, NoGoodCopy, ArtifactChanged: raised by a read that cannot return the right bytes.
        """
        self._check_open()
        return self._bytes.open(bucket, key)

    def get(
        self,
        bucket: str,
        key: str,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> ShowResult:
        """Download an artifact from the gateway to a file, and return what was downloaded.

        Each chunk is verified before it is written. The file appears under its name, and replaces one that is there,
        when all bytes are written and durable; otherwise nothing changes.

        Raises:
            OSError: the file cannot be written.
            ClientError: as `open`.
        """
        self._check_open()
        return self._bytes.get(bucket, key, path, on_progress)

    def upload_file(
        self,
        path: str | os.PathLike[str],
        bucket: str,
        key: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        **fields: Unpack[UploadFields],
    ) -> Job[UploadResult]:
        """Send a file of this machine over the gateway, and return its upload job when all bytes have arrived.

        The worker needs no access to the file. The SHA-256 is sent first, and is computed unless it is given: if the
        bytes do not match, the job fails, and the artifact does not change. An interrupted transfer is resumed; another
        process resumes it with the same `idempotency_key`. The other arguments are those of `upload`.

        Raises:
            OSError: the file cannot be read.
            NotAllowed, GatewayUnavailable, InvalidRequest, ClientError: the bytes were not accepted.
        """
        self._check_open()
        sent = sent_fields(path, bucket, key, **fields)
        job = self._bytes.send(path, sent, idempotency_key=idempotency_key, on_progress=on_progress)
        return self.upload_job(job)

    def warm(self, bucket: str, key: str, *, on_progress: Callable[[Progress], object] | None = None) -> ShowResult:
        """Read all chunks of an artifact into the cache. Raise as `open`."""
        self._check_open()
        return self._bytes.warm(bucket, key, on_progress)

    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, *, timeout: float = QUERY_TIMEOUT) -> ResultT:
        """Send a query of `contract.QUERIES` and return its answer. Raise as `show`."""
        self._check_open()
        return self._jobs.query(spec, request, timeout)

    def snapshot(self, job_id: str) -> Snapshot:
        """Return what the result backend has of a job. Raise BrokerUnavailable if it does not answer."""
        self._check_open()
        return self._jobs.results.snapshot(job_id)

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._jobs.close()
        self._bytes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the client of {self._jobs.at} is closed: make another one"
            raise ClientError(msg)


class ArtifactClient(BoundToProcess, Artifacts):
    """Sends jobs to the worker and reads artifacts; safe for threads and forks, so one for a program is enough.

    Jobs go over the worker's broker, or over its gateway if no broker is given. The bytes of artifacts always come from
    the gateway. The client connects at its first job. If the broker does not answer, BrokerUnavailable is raised within
    seconds.

    Args:
        broker_url: URL of the worker's broker: redis://, rediss://, redis+socket://, sentinel://, amqp:// or amqps://.
        result_url: URL of the worker's result backend; by default the broker, if that is Redis or Valkey.
        service: the name of the service: idempotency keys of services with different names never share a job.
        gateway: the URL of the worker's gateway, such as https://gateway.example:8484.
        token: the token for the gateway, as `zot-artifacts tokens add` prints it.
        cache: a cache for the chunks of artifacts that are read.

    Raises:
        ClientError: a URL cannot be used, or neither broker nor gateway is given.
    """

    def __init__(
        self,
        broker_url: str | None = None,
        result_url: str | None = None,
        *,
        service: str | None = None,
        gateway: str | None = None,
        token: str | None = None,
        cache: ChunkCache | None = None,
    ) -> None:
        bytes_ = ArtifactBytes(gateway, token, cache, check_service(service))
        if broker_url is not None:
            super().__init__(BrokerJobs(broker_url, result_url, service), bytes_)
        elif bytes_.gateway is not None and result_url is None:
            super().__init__(GatewayJobs(bytes_.gateway, service), bytes_)
        else:
            raise ClientError("give broker_url, or gateway and token")
