"""Send jobs from an event loop: the verbs of ArtifactClient, as coroutines."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, Self, TypeAlias, TypeVar, Unpack, overload

from zot_artifact_client.async_broker_jobs import AsyncBrokerJobs
from zot_artifact_client.async_gateway_jobs import AsyncGatewayJobs
from zot_artifact_client.async_job import AsyncJob, AsyncJobs, AsyncResults
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
from zot_artifact_client.job_ids import check_id
from zot_artifact_client.query_messages import QUERY_TIMEOUT, UNKNOWN_TASK
from zot_artifact_client.snapshot import JobStatus, Snapshot, recorded_status, status_of

ReturnT = TypeVar("ReturnT")
Awaited: TypeAlias = Coroutine[Any, Any, ReturnT]
_PIECE = 1 << 20
"""A read checks after so many bytes whether it was cancelled."""


class AsyncJobTransport(Protocol):
    """Sends the jobs of one service; see `JobTransport`."""

    at: str

    @property
    def results(self) -> AsyncResults: ...
    async def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob: ...
    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> AsyncIterator[SentJob]: ...
    async def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, limit: float, /) -> ResultT: ...
    async def close(self) -> None: ...


class AsyncArtifacts(
    Verbs[
        Awaited[AsyncJob[UploadResult]],
        Awaited[AsyncJob[ReplicateResult]],
        Awaited[AsyncJob[VerifyResult]],
        Awaited[AsyncJob[DeleteResult]],
        Awaited[AsyncJob[AdoptResult]],
        Awaited[AsyncJob[BatchResult]],
        Awaited[AsyncJob[SweepVerifyResult]],
        Awaited[ShowResult],
        Awaited[ListResult],
    ]
):
    """The requests that an asynchronous service can send; annotate with this type where tests use the in-memory client.

    Await each verb: it returns an AsyncJob.

    Each method promises and raises what the same method of `Artifacts` does.
    """

    def __init__(self, jobs: AsyncJobTransport, bytes_: ArtifactBytes) -> None:
        self._jobs = jobs
        self._bytes = bytes_
        self._closed = False

    async def submit(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> AsyncJob[ResultT]:
        """Send a request of any kind; `job_id` is an id that the caller chooses. Raise as the verbs."""
        self._check_open()
        check_request(spec, request)
        sent = await self._jobs.submit(spec, request, idempotency_key=idempotency_key, job_id=job_id)
        return AsyncJob(*sent, results=self._jobs.results)

    async def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> AsyncJobs:
        """Send many requests, some hundreds in one round trip each; return all jobs as one handle.

        See `Artifacts.submit_many`.
        """
        self._check_open()
        jobs = AsyncJobs(results=self._jobs.results)
        async for sent in self._jobs.submit_many(requests, idempotency_key=idempotency_key):
            jobs.append(AsyncJob(*sent, results=self._jobs.results))
        return jobs

    @overload
    def job(self, job_id: str, kind: TaskSpec[Any, ResultT]) -> AsyncJob[ResultT]: ...
    @overload
    def job(self, job_id: str, kind: str | None = None) -> AsyncJob[Any]: ...
    def job(self, job_id: str, kind: TaskSpec[Any, Any] | str | None = None) -> AsyncJob[Any]:
        """Return the job with an id. Without `kind`, its result may be plain JSON. Raise InvalidRequest."""
        return AsyncJob(check_id(job_id), spec_of(kind), results=self._jobs.results)

    def upload_job(self, job_id: str) -> AsyncJob[UploadResult]:
        """Return the upload job with an id."""
        return self.job(job_id, UPLOAD)

    def replicate_job(self, job_id: str) -> AsyncJob[ReplicateResult]:
        """Return the replicate job with an id."""
        return self.job(job_id, REPLICATE)

    def verify_job(self, job_id: str) -> AsyncJob[VerifyResult]:
        """Return the verify job with an id."""
        return self.job(job_id, VERIFY)

    def delete_job(self, job_id: str) -> AsyncJob[DeleteResult]:
        """Return the delete job with an id."""
        return self.job(job_id, DELETE)

    def adopt_job(self, job_id: str) -> AsyncJob[AdoptResult]:
        """Return the adopt job with an id."""
        return self.job(job_id, ADOPT)

    def batch_job(self, job_id: str) -> AsyncJob[BatchResult]:
        """Return the batch job with an id."""
        return self.job(job_id, BATCH)

    async def status(self, job_id: str, *, timeout: float = QUERY_TIMEOUT) -> JobStatus:  # noqa: ASYNC109 - as above
        """Return the state of a job, with its progress, result or error; see `Artifacts.status`."""
        found = await self.snapshot(check_id(job_id))
        if found.state is not JobState.UNKNOWN:
            return status_of(job_id, found)
        try:
            answer = await self.query(QUERY_STATUS, request_of(QUERY_STATUS, job=job_id), timeout=timeout)
        except JobFailed as error:
            if error.type != UNKNOWN_TASK:  # an older worker, which answers no queries
                raise
            return status_of(job_id, found)
        return recorded_status(answer)

    async def read(self, bucket: str, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes of an artifact from `offset`, by default all, read from the gateway.

        Each chunk of 16 MiB that has some of them is verified by its SHA-256 first. A cancelled read ends with the
        chunk that it works on.

        Raises:
            ArtifactNotFound: there is none, or the token is not for it.
            DamagedBytes, NoGoodCopy, ArtifactChanged: the right bytes cannot be read.
            NotAllowed, GatewayUnavailable: it cannot be read.
        """
        self._check_open()

        def read(tell: Callable[[Progress], object]) -> bytes:
            found, wanted = bytearray(), sys.maxsize if length is None or length == -1 else length
            with self._bytes.open(bucket, key) as file:
                file.seek(offset)
                while piece := file.read(min(_PIECE, wanted - len(found))):
                    found += piece
                    tell(Progress(bytes_done=len(found)))
            return bytes(found)

        async with _told(None) as tell:
            return await asyncio.to_thread(read, tell)

    async def get(
        self,
        bucket: str,
        key: str,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> ShowResult:
        """Download an artifact from the gateway to a file, and return what was downloaded; see `Artifacts.get`.

        Bytes are hashed and written in threads; a cancelled download ends with the chunk that it works on.
        `on_progress` is called in the event loop.
        """
        self._check_open()
        async with _told(on_progress) as tell:
            return await asyncio.to_thread(self._bytes.get, bucket, key, path, tell)

    async def upload_file(
        self,
        path: str | os.PathLike[str],
        bucket: str,
        key: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        **fields: Unpack[UploadFields],
    ) -> AsyncJob[UploadResult]:
        """Send a file of this machine over the gateway, and return its upload job when all bytes have arrived.

        See `Artifacts.upload_file`.
        """
        self._check_open()
        sent = sent_fields(path, bucket, key, **fields)
        async with _told(on_progress) as tell:
            send = partial(self._bytes.send, path, sent, idempotency_key=idempotency_key, on_progress=tell)
            return self.upload_job(await asyncio.to_thread(send))

    async def warm(
        self, bucket: str, key: str, *, on_progress: Callable[[Progress], object] | None = None
    ) -> ShowResult:
        """Bring all chunks of an artifact into the cache, in a thread. Raise as `read`."""
        self._check_open()
        async with _told(on_progress) as tell:
            return await asyncio.to_thread(self._bytes.warm, bucket, key, tell)

    async def query(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        timeout: float = QUERY_TIMEOUT,  # noqa: ASYNC109 - as above
    ) -> ResultT:
        """Send a query of `contract.QUERIES` and return its answer. Raise as `show`."""
        self._check_open()
        return await self._jobs.query(spec, request, timeout)

    async def snapshot(self, job_id: str) -> Snapshot:
        """Return what the result backend has of a job. Raise BrokerUnavailable."""
        self._check_open()
        return await self._jobs.results.snapshot(job_id)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        self._closed = True
        await self._jobs.close()
        self._bytes.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the client of {self._jobs.at} is closed: make another one"
            raise ClientError(msg)


class AsyncArtifactClient(AsyncArtifacts):
    """Sends jobs to the worker without blocking the event loop; one for a program is enough.

    Jobs go over the worker's broker, or over its gateway where only that is given. All waits of a program share few
    connections. It connects when it sends the first job; a process that was forked, and another event loop, have
    connections of their own. A broker that does not answer raises BrokerUnavailable within seconds. A cancelled call
    may have sent its job: send again with the same `idempotency_key`.

    Args:
        broker_url: the worker's: redis://, rediss://, redis+socket:// or sentinel://.
        result_url: of the worker's result backend, which must be Redis or Valkey too; by default the broker.
        service: scopes the idempotency keys: services with different names never share a job.
        gateway: the URL of the worker's gateway, from which the bytes of artifacts come.
        token: for the gateway, as `zot-artifacts tokens add` prints it.
        cache: keeps the chunks of artifacts that are read.

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
            super().__init__(AsyncBrokerJobs(broker_url, result_url, service), bytes_)
        elif bytes_.gateway is not None and result_url is None:
            super().__init__(AsyncGatewayJobs(bytes_.gateway, service), bytes_)
        else:
            raise ClientError("give broker_url, or gateway and token")


@asynccontextmanager
async def _told(on_progress: Callable[[Progress], object] | None) -> AsyncIterator[Callable[[Progress], None]]:
    """Return what a thread calls with its progress; it ends the thread's work once the coroutine is cancelled.

    What `on_progress` raises in the event loop ends that work, too, and is raised here.
    """
    loop, given_up = asyncio.get_running_loop(), threading.Event()
    raised: list[Exception] = []

    def call(told: Callable[[Progress], object], progress: Progress) -> None:
        try:
            if not raised:
                told(progress)
        except Exception as error:  # noqa: BLE001 - it is the caller's, who gets it
            raised.append(error)
            given_up.set()

    def tell(progress: Progress) -> None:
        if given_up.is_set():
            raise ClientError("the transfer was cancelled")
        if on_progress is not None:
            loop.call_soon_threadsafe(call, on_progress, progress)

    try:
        yield tell
    except ClientError:
        if not raised:
            raise
    finally:
        given_up.set()
    if raised:
        raise raised[0]
