"""An in-memory client for the tests of services: no broker, no worker, real bytes.

    client = InMemoryArtifactClient(sources={"/srv/in/app.tgz": b"..."})
    client.upload("/srv/in/app.tgz", "releases", "app.tgz")
    client.corrupt("releases", "app.tgz", "dr")
    assert not client.verify("releases", "app.tgz").wait().good

Simpler than the worker: one good copy is enough evidence, old versions keep no bytes, and nothing takes time. A delete
takes the bytes at once, as with the setting `delete.grace: 0s`. There are no roots of sources and no webhooks, and
every store keeps metadata, tags and storage classes.
"""

import asyncio
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

from zot_artifact_client.async_client import AsyncArtifacts
from zot_artifact_client.async_job import AsyncJob, AsyncJobs, OnAsyncProgress
from zot_artifact_client.build_requests import (
    UploadFields,
    check_request,
    check_service,
    payload_of,
    request_of,
    spec_of,
    upload_request,
)
from zot_artifact_client.client import Artifacts
from zot_artifact_client.contract import (
    QUERY_LIST,
    QUERY_SHOW,
    QUERY_STATUS,
    JobState,
    Message,
    Progress,
    RequestT,
    ResultT,
    ShowResult,
    StatusResult,
    TaskSpec,
    UploadResult,
)
from zot_artifact_client.download import ArtifactFile, download
from zot_artifact_client.errors import ClientError, InvalidRequest, JobCancelled, JobFailed, JobNotDone
from zot_artifact_client.idempotency_conflicts import digest_of, idempotency_mismatch
from zot_artifact_client.in_memory_worker import CHUNK, InMemoryWorker
from zot_artifact_client.job import Job, Jobs, OnProgress, wait_timeout
from zot_artifact_client.job_ids import check_id, choose_id, choose_ids
from zot_artifact_client.key_rules import broken_bucket_rule, broken_key_rule
from zot_artifact_client.query_messages import QUERY_TIMEOUT, read_answer
from zot_artifact_client.snapshot import Snapshot, unknown_job

_TICK = 0.005


class InMemoryArtifactClient(Artifacts):
    """Runs every job at once, on stores that are dictionaries, with the semantics of the worker.

    Args:
        stores: the names of the stores; an upload that names none goes to all of them.
        sources: the bytes of sources that are no files of this machine.

    Attributes:
        submitted: every request that was sent, in order, with repetitions of an idempotency key left out.
        paused: while True, jobs stay queued: waiting for one times out and cancelling one works. `resume` does them.
    """

    def __init__(
        self,
        stores: Iterable[str] = ("primary", "dr"),
        sources: Mapping[str, bytes] | None = None,
        *,
        service: str | None = None,
    ) -> None:
        self._service = check_service(service)
        self._digests: dict[str, str] = {}
        self.submitted: list[Any] = []
        self.paused = False
        self._worker = InMemoryWorker(stores, sources or {})
        self._snapshots: dict[str, Snapshot] = {}
        self._queued: dict[str, tuple[TaskSpec[Any, Any], Any]] = {}
        self._next_end: JobNotDone | None = None
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
        check_request(spec, request)
        chosen = choose_id(spec, idempotency_key=idempotency_key, job_id=job_id, service=self._service)
        return self._submit([(chosen, spec, request)])[0]

    def _submit(self, jobs: Sequence[tuple[str, TaskSpec[Any, Any], Message]]) -> Jobs:
        digests = {id_: digest_of(spec.kind, payload_of(spec, asked)) for id_, spec, asked in jobs}  # checks the size
        free = {id_ for id_ in digests if self.snapshot(id_).state is JobState.REFUSED}
        if other := [
            id_ for id_, digest in digests.items() if id_ not in free and self._digests.get(id_, digest) != digest
        ]:
            raise idempotency_mismatch(other)
        for id_ in free:
            del self._snapshots[id_]
        self._digests |= digests
        for id_, spec, request in jobs:
            if id_ not in self._snapshots:
                self.submitted.append(request)
                self._snapshots[id_] = Snapshot(JobState.QUEUED)
                self._queued[id_] = (spec, request)
                if not self.paused:
                    self.resume()
        return Jobs((Job(id_, spec, digests[id_], results=self) for id_, spec, _ in jobs), results=self)

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> Jobs:
        self._check_open()
        return self._submit([*choose_ids(requests, idempotency_key, service=self._service)])

    @overload
    def job(self, job_id: str, kind: TaskSpec[Any, ResultT]) -> Job[ResultT]: ...
    @overload
    def job(self, job_id: str, kind: str | None = None) -> Job[Any]: ...
    def job(self, job_id: str, kind: TaskSpec[Any, Any] | str | None = None) -> Job[Any]:
        return Job(check_id(job_id), spec_of(kind), results=self)

    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, *, timeout: float = QUERY_TIMEOUT) -> ResultT:
        """Answer a query at once, also while jobs are paused."""
        self._check_open()
        answers: dict[str, Callable[[Any], Message]] = {
            QUERY_SHOW.name: self._worker.show,
            QUERY_LIST.name: self._worker.list,
            QUERY_STATUS.name: lambda asked: StatusResult(job=asked.job, state=JobState.UNKNOWN),
        }
        try:
            answer = answers[spec.name](request).model_dump(mode="json")
        except JobFailed as error:
            return read_answer(spec, _ended_by(error), timeout)
        return read_answer(spec, Snapshot(JobState.SUCCEEDED, value=answer), timeout)

    def open(self, bucket: str, key: str) -> io.BufferedReader:
        return io.BufferedReader(ArtifactFile(self._chunks(bucket, key)))

    def get(
        self,
        bucket: str,
        key: str,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> ShowResult:
        found = self._chunks(bucket, key)
        download(found, path, on_progress)
        return found.shown

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
        self._check_open()
        upload_request(path, bucket, key, **fields)
        body = Path(path).read_bytes()
        if rule := broken_bucket_rule(bucket) or broken_key_rule(bucket, key):
            raise InvalidRequest(f"upload: {bucket!r}, {key!r}: {rule}")
        sha256 = hashlib.sha256(body).hexdigest()
        source = self._worker.stage(sha256, body)
        if on_progress is not None:
            on_progress(Progress(bytes_total=len(body), step="hashing"))
            on_progress(Progress(bytes_done=len(body), bytes_total=len(body), step="sending"))
        fields["sha256"] = fields.get("sha256") or sha256
        return self.upload(source, bucket, key, idempotency_key=idempotency_key, **fields)

    def warm(self, bucket: str, key: str, *, on_progress: Callable[[Progress], object] | None = None) -> ShowResult:
        """Return what is shown: there is no cache to fill."""
        del on_progress
        return self.show(bucket, key)

    def close(self) -> None:
        """Take no more calls, as a client without its connections."""
        self._closed = True

    def _chunks(self, bucket: str, key: str) -> "_InMemoryChunks":
        shown = self.query(QUERY_SHOW, request_of(QUERY_SHOW, bucket=bucket, key=key, chunks_from=0))
        return _InMemoryChunks(self._worker, shown)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientError("the client is closed: make another one")

    # What only tests use.

    def fail_next(self, error: JobNotDone) -> None:
        """Let the next job end with this error instead of running."""
        self._next_end = error

    end_next = fail_next  # the name before 1.0

    def resume(self) -> None:
        """Do the jobs that are queued, and from now on every job at once."""
        self.paused = False
        while self._queued:
            job_id = next(iter(self._queued))
            self._snapshots[job_id] = self._run(*self._queued.pop(job_id))

    def content(self, bucket: str, key: str, store: str) -> bytes | None:
        """Return the bytes in a store, or None."""
        return self._worker.stores[store].get((bucket, key))

    def put_object(self, bucket: str, key: str, store: str, body: bytes, *, sha256: str | None = None) -> None:
        """Put an object into a store as another program does, with the digest that it keeps beside it, to adopt it."""
        self._worker.put(store, bucket, key, body, sha256)

    lay = put_object  # the name before 1.0

    def corrupt(self, bucket: str, key: str, store: str) -> None:
        """Flip a bit of a copy, as a failing disk does."""
        body = self._worker.stores[store][bucket, key]
        self._worker.stores[store][bucket, key] = bytes([body[0] ^ 1]) + body[1:] if body else b"\0"

    def lose(self, bucket: str, key: str, store: str) -> None:
        """Remove the bytes of a copy, as a lost disk does."""
        del self._worker.stores[store][bucket, key]

    # ResultBackend, for Job.

    def snapshot(self, job_id: str) -> Snapshot:
        return self._snapshots.get(job_id, Snapshot(JobState.UNKNOWN))

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:  # noqa: ARG002
        snapshot = self.snapshot(job_id)
        if snapshot.state is JobState.UNKNOWN:
            raise unknown_job(job_id)
        if not snapshot.state.terminal:  # only this thread could end it, so a longer wait would have no end
            raise wait_timeout(job_id, timeout or 0)
        return snapshot

    def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        return {id_: found for id_ in job_ids if (found := self.snapshot(id_)).state.terminal}

    def cancel(self, job_id: str) -> bool:
        if job_id not in self._snapshots:
            raise unknown_job(job_id)
        if self._queued.pop(job_id, None) is None:
            return False
        self._snapshots[job_id] = _ended_by(JobCancelled(f"job {job_id} was cancelled"))
        return True

    def _run(self, spec: TaskSpec[Any, Any], request: Any) -> Snapshot:
        error, self._next_end = self._next_end, None
        if error is not None:
            return _ended_by(error)
        try:
            return Snapshot(JobState.SUCCEEDED, value=self._worker.run(spec, request), task=spec.name)
        except JobFailed as failure:
            return _ended_by(failure)


class _InMemoryChunks:
    """The Chunks of an artifact as it was shown."""

    chunk_size = CHUNK

    def __init__(self, worker: InMemoryWorker, shown: ShowResult) -> None:
        self._worker = worker
        self.shown = shown

    @property
    def size(self) -> int:
        return self.shown.size

    @property
    def chunks(self) -> int:
        return (self.size + CHUNK - 1) // CHUNK

    def chunk(self, number: int) -> bytes:
        return self._worker.chunk(self.shown, number)

    def close(self) -> None:
        pass


def _ended_by(error: JobNotDone) -> Snapshot:
    if isinstance(error, JobCancelled):
        return Snapshot(JobState.CANCELLED, error=error)
    return Snapshot(JobState(getattr(error, "state", JobState.FAILED)), error=error)


class AsyncInMemoryArtifactClient(AsyncArtifacts):
    """The in-memory client for tests of asynchronous services: see InMemoryArtifactClient, whose arguments it has.

    Attributes:
        memory: the client that runs the jobs, with what only tests use: `submitted`, `paused`, `corrupt`, `lose`, ….
    """

    def __init__(
        self,
        stores: Iterable[str] = ("primary", "dr"),
        sources: Mapping[str, bytes] | None = None,
        *,
        service: str | None = None,
    ) -> None:
        self.memory = InMemoryArtifactClient(stores, sources, service=service)
        self._results = _AsyncResults(self.memory)

    async def submit(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> AsyncJob[ResultT]:
        job = self.memory.submit(spec, request, idempotency_key=idempotency_key, job_id=job_id)
        return AsyncJob(job.id, spec, results=self._results)

    async def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> AsyncJobs:
        sent = self.memory.submit_many(requests, idempotency_key=idempotency_key)
        return AsyncJobs((AsyncJob(job.id, job.spec, results=self._results) for job in sent), results=self._results)

    @overload
    def job(self, job_id: str, kind: TaskSpec[Any, ResultT]) -> AsyncJob[ResultT]: ...
    @overload
    def job(self, job_id: str, kind: str | None = None) -> AsyncJob[Any]: ...
    def job(self, job_id: str, kind: TaskSpec[Any, Any] | str | None = None) -> AsyncJob[Any]:
        return AsyncJob(check_id(job_id), spec_of(kind), results=self._results)

    async def query(
        self,
        spec: TaskSpec[RequestT, ResultT],
        request: RequestT,
        *,
        timeout: float = QUERY_TIMEOUT,  # noqa: ASYNC109 - the same as of the other client
    ) -> ResultT:
        return self.memory.query(spec, request, timeout=timeout)

    async def read(self, bucket: str, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self.memory.open(bucket, key) as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    async def get(
        self,
        bucket: str,
        key: str,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> ShowResult:
        return self.memory.get(bucket, key, path, on_progress=on_progress)

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
        sent = self.memory.upload_file(
            path, bucket, key, idempotency_key=idempotency_key, on_progress=on_progress, **fields
        )
        return AsyncJob(sent.id, sent.spec, results=self._results)

    async def warm(
        self, bucket: str, key: str, *, on_progress: Callable[[Progress], object] | None = None
    ) -> ShowResult:
        """Return what is shown: there is no cache to fill."""
        return self.memory.warm(bucket, key, on_progress=on_progress)

    async def snapshot(self, job_id: str) -> Snapshot:
        return self.memory.snapshot(job_id)

    async def close(self) -> None:
        """Take no more calls, as a client without its connections."""
        self.memory.close()


class _AsyncResults:
    """AsyncResults, for AsyncJob: a job that is paused may be resumed by another task, so its wait takes its time."""

    def __init__(self, memory: InMemoryArtifactClient) -> None:
        self._memory = memory

    async def snapshot(self, job_id: str) -> Snapshot:
        return self._memory.snapshot(job_id)

    async def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnAsyncProgress | None) -> Snapshot:  # noqa: ARG002, ASYNC109
        ends = None if timeout is None else time.monotonic() + timeout
        while (found := self._memory.snapshot(job_id)).state is JobState.QUEUED:
            if ends is not None and time.monotonic() >= ends:
                raise wait_timeout(job_id, timeout)
            await asyncio.sleep(_TICK)
        if found.state is JobState.UNKNOWN:
            raise unknown_job(job_id)
        return found

    async def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        return self._memory.ended(job_ids)

    async def cancel(self, job_id: str) -> bool:
        return self._memory.cancel(job_id)
