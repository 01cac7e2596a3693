"""Send jobs: one method per verb, for one artifact or for many; each call is one job."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, overload

from pydantic import ValidationError

from zot_artifact_client.connection import without_credentials
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    MAX_MESSAGE,
    REPLICATE,
    SWEEP_VERIFY,
    TASKS,
    UPLOAD,
    VERIFY,
    AdoptResult,
    BatchResult,
    DeleteResult,
    Message,
    ReplicateResult,
    RequestT,
    ResultT,
    SweepVerifyResult,
    Symlinks,
    TaskSpec,
    UploadResult,
    Verb,
    VerifyResult,
)
from zot_artifact_client.errors import ClientError, IdempotencyMismatch, InvalidRequest
from zot_artifact_client.idempotency import digest_of
from zot_artifact_client.job import Job
from zot_artifact_client.job_ids import check_id, choose_id, choose_ids
from zot_artifact_client.outbox import Outgoing
from zot_artifact_client.publisher import Publisher
from zot_artifact_client.result_backend import CeleryResultBackend
from zot_artifact_client.urls import parse_url

_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")

_ENVELOPE_SIZE = 16 * 1024
"""Bytes that a message may have beside its body: its headers, which repeat the beginning of the fields."""


PIPELINE_SIZE = 500
"""Jobs that are sent in one round trip: some hundred kilobytes."""


class Artifacts(ABC):
    """The requests that a service can send; annotate with this type where tests use the in-memory client.

    Every verb sends one job and returns it without waiting. The same request sent again with the same `idempotency_key`
    returns the same job; a different request with that key raises IdempotencyMismatch. `stores` is one name or several.
    Every verb raises InvalidRequest, which names the field and the rule, and BrokerUnavailable.
    """

    def upload(
        self,
        source: str | os.PathLike[str],
        bucket: str,
        key: str,
        *,
        sha256: str | None = None,
        stores: str | Iterable[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        storage_classes: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job[UploadResult]:
        """Store the bytes of a file or of a URL as an artifact.

        The source is what the worker sees: an absolute path below one of its roots, or an http(s) URL of one of its
        hosts. With `sha256`, a source with other bytes fails the job and the artifact does not change. Without
        `stores`, the placement rules choose the stores. `storage_classes` names, for single stores, the class or tier
        that the store is to use. `properties` are kept beside the bytes and sent as headers to those who download them
        from a cloud: `content_type`, `content_encoding`, `content_disposition`, `content_language`, `cache_control`.
        """
        request = _request(
            UPLOAD,
            source=os.fspath(source),
            bucket=bucket,
            key=key,
            sha256=sha256,
            stores=_names(stores),
            metadata=None if metadata is None else dict(metadata),
            storage_classes=None if storage_classes is None else dict(storage_classes),
            **dict(properties or {}),
        )
        return self.submit(UPLOAD, request, idempotency_key=idempotency_key)

    def replicate(
        self, bucket: str, key: str, *, to: str | Iterable[str], idempotency_key: str | None = None
    ) -> Job[ReplicateResult]:
        """Copy the artifact to the named stores, from any copy whose bytes are right."""
        request = _request(REPLICATE, bucket=bucket, key=key, to=_names(to))
        return self.submit(REPLICATE, request, idempotency_key=idempotency_key)

    def verify(
        self,
        bucket: str,
        key: str,
        *,
        stores: str | Iterable[str] | None = None,
        version: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job[VerifyResult]:
        """Read all bytes of the copies in the named stores, or of all copies, and compare them with the digest.

        A bad copy is a verdict in the result and not a failed job: check `result.good`.
        """
        request = _request(VERIFY, bucket=bucket, key=key, stores=_names(stores), version=version)
        return self.submit(VERIFY, request, idempotency_key=idempotency_key)

    def delete(
        self,
        bucket: str,
        key: str,
        *,
        stores: str | Iterable[str] | None = None,
        allow_last: bool = False,
        idempotency_key: str | None = None,
    ) -> Job[DeleteResult]:
        """Delete the copies in the named stores at once, or the artifact everywhere.

        An artifact that is deleted everywhere can be undone until `result.purge_after`, 7 days later by default: with
        `zot-artifacts undelete`, on a machine of the worker. Then its bytes go.

        A job that would leave no good copy in the other stores fails and deletes nothing, unless `allow_last`.
        """
        request = _request(DELETE, bucket=bucket, key=key, stores=_names(stores), allow_last=allow_last)
        return self.submit(DELETE, request, idempotency_key=idempotency_key)

    def adopt(
        self,
        bucket: str,
        key: str,
        *,
        store: str,
        first_read: bool = False,
        idempotency_key: str | None = None,
    ) -> Job[AdoptResult]:
        """Record an object that another program wrote into a store, after one full read; the object does not change.

        Its bytes must match the digest that the store keeps beside it, and that of the artifact if it is known. With no
        digest at all the job fails with Unverifiable, unless `first_read` makes the digest of this read the record.
        """
        request = _request(ADOPT, bucket=bucket, key=key, store=store, first_read=first_read)
        return self.submit(ADOPT, request, idempotency_key=idempotency_key)

    def batch(
        self,
        verb: Verb,
        bucket: str | None = None,
        prefix: str = "",
        *,
        keys_from: str | os.PathLike[str] | None = None,
        to: str | Iterable[str] | None = None,
        stores: str | Iterable[str] | None = None,
        allow_last: bool = False,
        everything: bool = False,
        in_flight: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job[BatchResult]:
        """Replicate, verify or delete every artifact of a bucket or prefix, or those that a file lists.

        The list is a file below one of the worker's roots, in UTF-8, with one `bucket/key` on each line. `to`, `stores`
        and `allow_last` mean what they mean for the verb. To delete a whole bucket, set `everything`. An artifact that
        fails is in the result and does not fail the batch: check `result.good`. At most `in_flight` of its jobs, each
        of which does a page of artifacts, wait or run at a time; cancelling the batch cancels those too.
        """
        request = _request(
            BATCH,
            verb=verb,
            bucket=bucket,
            prefix=prefix or None,
            keys_from=None if keys_from is None else os.fspath(keys_from),
            to=_names(to),
            stores=_names(stores),
            allow_last=allow_last or None,
            everything=everything or None,
            in_flight=in_flight,
        )
        return self.submit(BATCH, request, idempotency_key=idempotency_key)

    def upload_dir(
        self,
        directory: str | os.PathLike[str],
        bucket: str,
        prefix: str = "",
        *,
        stores: str | Iterable[str] | None = None,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        symlinks: Symlinks = "skip",
        idempotency_key: str | None = None,
    ) -> Job[BatchResult]:
        """Upload the files in and below a directory that is below one of the worker's roots, as one batch.

        The key of a file is the prefix, with a slash at its end, and the path of the file in the directory. A pattern
        without a slash is matched with names, one with a slash with paths in the directory; `**` is any number of
        directories. A file that fails, or changes while it is read, is in the result and does not fail the batch: check
        `result.good`. The same call again continues: what is stored already is not written again.
        """
        request = _request(
            BATCH,
            verb="upload",
            bucket=bucket,
            prefix=f"{prefix.rstrip('/')}/" if prefix else None,
            directory=os.fspath(directory),
            include=tuple(include) or None,
            exclude=tuple(exclude) or None,
            symlinks=symlinks,
            stores=_names(stores),
        )
        return self.submit(BATCH, request, idempotency_key=idempotency_key)

    def sweep_verify(self, store: str | None = None, *, idempotency_key: str | None = None) -> Job[SweepVerifyResult]:
        """Verify the copies of one store, or of all, that are due; beat also starts this sweep on a schedule."""
        return self.submit(SWEEP_VERIFY, _request(SWEEP_VERIFY, store=store), idempotency_key=idempotency_key)

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
    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> list[Job[Any]]:
        """Send many requests, of one kind or several, some hundreds in one round trip each.

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
        payload = payload_of(spec, request)
        if idempotency_key is not None:
            self._check_digests({chosen: digest_of(spec.kind, payload)})
        self._publisher.send(spec, chosen, payload)
        return Job(chosen, spec, results=self._results)

    def submit_many(self, requests: Iterable[Message], *, idempotency_key: str | None = None) -> list[Job[Any]]:
        self._check_open()
        jobs: list[Job[Any]] = []
        waiting: list[Outgoing] = []
        for chosen, spec, request in choose_ids(requests, idempotency_key, service=self._service):
            jobs.append(Job(chosen, spec, results=self._results))
            waiting.append(Outgoing(spec.name, chosen, spec.queue.value, payload_of(spec, request)))
            if len(waiting) >= PIPELINE_SIZE:
                self._send_page(waiting, keyed=idempotency_key is not None)
                waiting = []
        if waiting:
            self._send_page(waiting, keyed=idempotency_key is not None)
        return jobs

    def _send_page(self, page: list[Outgoing], *, keyed: bool) -> None:
        if keyed:
            self._check_digests({job.job_id: digest_of(TASKS[job.name].kind, job.payload) for job in page})
        self._publisher.send_all(page)

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

    def close(self) -> None:
        self._closed = True
        self._publisher.close()
        self._results.close()

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the client of {without_credentials(self._broker)} is closed: make another one"
            raise ClientError(msg)


def check_service(service: str | None) -> str | None:
    """Return the name of a service. Raise InvalidRequest if it is none."""
    if service is not None and not _SERVICE.fullmatch(service):
        msg = "service: letters, digits, '.', '_' and '-' are expected, 64 characters at most"
        raise InvalidRequest(msg)
    return service


def idempotency_mismatch(jobs: Sequence[str]) -> IdempotencyMismatch:
    """Return the error for idempotency keys that belong to other requests, by the ids of their jobs."""
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return IdempotencyMismatch(
        f"the idempotency key of job {jobs[0]}{more} belongs to another request: choose another key, or send the same "
        "request as before"
    )


def payload_of(spec: TaskSpec[RequestT, Any], request: RequestT) -> dict[str, object]:
    """Return the fields of a request, as they are sent.

    Raises:
        InvalidRequest: the message would be larger than a worker takes in.
    """
    payload = request.payload()
    size = _ENVELOPE_SIZE + len(json.dumps(payload)) * 4 // 3  # the body is base64
    if size > MAX_MESSAGE:
        msg = f"{spec.kind}: the message would have {size} bytes, at most {MAX_MESSAGE} are accepted"
        raise InvalidRequest(msg)
    return payload


def spec_of(kind: TaskSpec[Any, ResultT] | str | None) -> TaskSpec[Any, Any] | None:
    """Return the task of a kind, `upload`, or of a task's name, `artifact.upload.v1`. Raise InvalidRequest."""
    if kind is None or isinstance(kind, TaskSpec):
        return kind
    for spec in TASKS.values():
        if kind in {spec.kind, spec.name}:
            return spec
    msg = f"kind: there are {', '.join(spec.kind for spec in TASKS.values())}"
    raise InvalidRequest(msg)


def _names(stores: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if stores is None:
        return None
    return (stores,) if isinstance(stores, str) else tuple(stores)


def _request(spec: TaskSpec[RequestT, Any], **fields: object) -> RequestT:
    """Return the request with the fields that are given. Raise InvalidRequest, which never carries a value."""
    try:
        return spec.request.read({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        faults = dict.fromkeys(_fault(each["loc"], each["msg"]) for each in error.errors(include_input=False))
        raise InvalidRequest(f"{spec.kind}: {'; '.join(faults)}") from None


def _fault(location: tuple[int | str, ...], rule: str) -> str:
    field = str(location[0]) if location else "request"
    # Deeper names are the caller's values, such as keys of metadata: only positions in a list are named.
    place = f"[{location[1]}]" if len(location) > 1 and isinstance(location[1], int) else ""
    return f"{field}{place}: {rule.removeprefix('Value error, ')}"
