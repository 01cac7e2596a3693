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
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zot_artifact_client.async_client import AsyncArtifacts
from zot_artifact_client.async_job import OnAsyncProgress
from zot_artifact_client.build_requests import SentJob, check_service, payload_of, request_of
from zot_artifact_client.client import Artifacts
from zot_artifact_client.contract import (
    QUERY_LIST,
    QUERY_SHOW,
    QUERY_STATUS,
    UPLOAD,
    JobState,
    Message,
    Progress,
    RequestT,
    ResultT,
    ShowResult,
    StatusResult,
    TaskSpec,
)
from zot_artifact_client.download import ArtifactBytes, Chunks
from zot_artifact_client.errors import InvalidRequest, JobCancelled, JobFailed, JobNotDone
from zot_artifact_client.idempotency_conflicts import digest_of, idempotency_mismatch
from zot_artifact_client.in_memory_worker import CHUNK, InMemoryWorker
from zot_artifact_client.job import OnProgress, wait_timeout
from zot_artifact_client.job_ids import choose_id, choose_ids
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
    """

    _jobs: "InMemoryJobs"

    def __init__(
        self,
        stores: Iterable[str] = ("primary", "dr"),
        sources: Mapping[str, bytes] | None = None,
        *,
        service: str | None = None,
    ) -> None:
        self._worker = InMemoryWorker(stores, sources or {})
        jobs = InMemoryJobs(self._worker, check_service(service))
        super().__init__(jobs, _InMemoryBytes(self._worker, jobs))
        self.submitted = jobs.submitted

    @property
    def paused(self) -> bool:
        """While True, jobs stay queued: waiting for one times out and cancelling one works. `resume` does them."""
        return self._jobs.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._jobs.paused = paused

    def resume(self) -> None:
        """Do the jobs that are queued, and from now on every job at once."""
        self._jobs.resume()

    def fail_next(self, error: JobNotDone) -> None:
        """Let the next job end with this error instead of running."""
        self._jobs.next_end = error

    def content(self, bucket: str, key: str, store: str) -> bytes | None:
        """Return the bytes in a store, or None."""
        return self._worker.stores[store].get((bucket, key))

    def put_object(self, bucket: str, key: str, store: str, body: bytes, *, sha256: str | None = None) -> None:
        """Put an object into a store as another program does, with the digest that it keeps beside it, to adopt it."""
        self._worker.put(store, bucket, key, body, sha256)

    def corrupt(self, bucket: str, key: str, store: str) -> None:
        """Flip a bit of a copy, as a failing disk does."""
        body = self._worker.stores[store][bucket, key]
        self._worker.stores[store][bucket, key] = bytes([body[0] ^ 1]) + body[1:] if body else b"\0"

    def lose(self, bucket: str, key: str, store: str) -> None:
        """Remove the bytes of a copy, as a lost disk does."""
        del self._worker.stores[store][bucket, key]


class InMemoryJobs:
    """The jobs of one service, with their states and results."""

    at = "a worker in memory"

    def __init__(self, worker: InMemoryWorker, service: str | None) -> None:
        self._worker = worker
        self._service = service
        self._digests: dict[str, str] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._queued: dict[str, tuple[TaskSpec[Any, Any], Any]] = {}
        self._lock = threading.RLock()  # an asynchronous client sends files from threads
        self.submitted: list[Any] = []
        self.paused = False
        self.next_end: JobNotDone | None = None

    @property
    def results(self) -> "InMemoryJobs":
        return self

    def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob:
        chosen = choose_id(spec, idempotency_key=idempotency_key, job_id=job_id, service=self._service)
        return self._submit([(chosen, spec, request)])[0]

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> Iterator[SentJob]:
        yield from self._submit([*choose_ids(requests, idempotency_key, service=self._service)])

    def _submit(self, jobs: Sequence[tuple[str, TaskSpec[Any, Any], Message]]) -> list[SentJob]:
        digests = {id_: digest_of(spec.kind, payload_of(spec, asked)) for id_, spec, asked in jobs}  # checks the size
        with self._lock:
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
        return [SentJob(id_, spec, digests[id_]) for id_, spec, _ in jobs]

    def resume(self) -> None:
        with self._lock:
            self.paused = False
            while self._queued:
                job_id = next(iter(self._queued))
                self._snapshots[job_id] = self._run(*self._queued.pop(job_id))

    def _run(self, spec: TaskSpec[Any, Any], request: Any) -> Snapshot:
        error, self.next_end = self.next_end, None
        if error is not None:
            return _ended_by(error)
        try:
            return Snapshot(JobState.SUCCEEDED, value=self._worker.run(spec, request), task=spec.name)
        except JobFailed as failure:
            return _ended_by(failure)

    def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, timeout: float) -> ResultT:
        """Answer a query at once, also while jobs are paused."""
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

    def close(self) -> None:
        pass

    # The states and results: a ResultBackend

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
        with self._lock:
            if job_id not in self._snapshots:
                raise unknown_job(job_id)
            if self._queued.pop(job_id, None) is None:
                return False
            self._snapshots[job_id] = _ended_by(JobCancelled(f"job {job_id} was cancelled"))
        return True


class _InMemoryBytes(ArtifactBytes):
    """The bytes of artifacts, and files that are sent."""

    def __init__(self, worker: InMemoryWorker, jobs: InMemoryJobs) -> None:
        super().__init__(None, None, None)
        self._worker = worker
        self._jobs = jobs

    def remote(self, bucket: str, key: str) -> "_InMemoryChunks":
        asked = request_of(QUERY_SHOW, bucket=bucket, key=key, chunks_from=0)
        return _InMemoryChunks(self._worker, self._jobs.query(QUERY_SHOW, asked, QUERY_TIMEOUT))

    def send(
        self,
        path: str | os.PathLike[str],
        fields: Mapping[str, object],
        *,
        idempotency_key: str | None,
        on_progress: Callable[[Progress], object] | None,
    ) -> str:
        body = Path(path).read_bytes()
        bucket, key = str(fields["bucket"]), str(fields["key"])
        if rule := broken_bucket_rule(bucket) or broken_key_rule(bucket, key):
            raise InvalidRequest(f"upload: {bucket!r}, {key!r}: {rule}")
        sha256 = hashlib.sha256(body).hexdigest()
        source = self._worker.stage(sha256, body)
        if on_progress is not None:
            on_progress(Progress(bytes_total=len(body), step="hashing"))
            on_progress(Progress(bytes_done=len(body), bytes_total=len(body), step="sending"))
        request = request_of(UPLOAD, **{"sha256": sha256, **fields, "source": source})
        return self._jobs.submit(UPLOAD, request, idempotency_key=idempotency_key, job_id=None).id

    def warm(self, bucket: str, key: str, on_progress: Callable[[Progress], object] | None = None) -> ShowResult:
        """Return what is shown: there is no cache to fill."""
        del on_progress
        return self.remote(bucket, key).shown


class _InMemoryChunks(Chunks):
    """The Chunks of an artifact as it was shown."""

    chunk_size = CHUNK

    def __init__(self, worker: InMemoryWorker, shown: ShowResult) -> None:
        self._worker = worker
        self.shown = shown

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
        super().__init__(_AsyncInMemoryJobs(self.memory), self.memory._bytes)  # noqa: SLF001 - it is of this module


class _AsyncInMemoryJobs:
    """InMemoryJobs as coroutines: a job that is paused may be resumed by another task, so its wait takes its time."""

    def __init__(self, memory: InMemoryArtifactClient) -> None:
        self._memory = memory
        self._jobs = memory._jobs  # noqa: SLF001 - it is of this module
        self.at = self._jobs.at

    @property
    def results(self) -> "_AsyncInMemoryJobs":
        return self

    async def submit(
        self, spec: TaskSpec[RequestT, Any], request: RequestT, *, idempotency_key: str | None, job_id: str | None
    ) -> SentJob:
        return self._jobs.submit(spec, request, idempotency_key=idempotency_key, job_id=job_id)

    async def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None) -> AsyncIterator[SentJob]:
        for sent in self._jobs.submit_many(requests, idempotency_key=idempotency_key):
            yield sent

    async def query(self, spec: TaskSpec[RequestT, ResultT], request: RequestT, limit: float) -> ResultT:
        return self._jobs.query(spec, request, limit)

    async def close(self) -> None:
        self._memory.close()

    async def snapshot(self, job_id: str) -> Snapshot:
        return self._jobs.snapshot(job_id)

    async def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnAsyncProgress | None) -> Snapshot:  # noqa: ARG002, ASYNC109
        ends = None if timeout is None else time.monotonic() + timeout
        while (found := self._jobs.snapshot(job_id)).state is JobState.QUEUED:
            if ends is not None and time.monotonic() >= ends:
                raise wait_timeout(job_id, timeout)
            await asyncio.sleep(_TICK)
        if found.state is JobState.UNKNOWN:
            raise unknown_job(job_id)
        return found

    async def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        return self._jobs.ended(job_ids)

    async def cancel(self, job_id: str) -> bool:
        return self._jobs.cancel(job_id)
