"""Build the request of each call of a client, synchronous or not, and check the rules that it must meet."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, Unpack, cast

from pydantic import ValidationError

from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    KINDS,
    MAX_LISTED,
    MAX_MESSAGE,
    PROPERTIES,
    QUERY_LIST,
    QUERY_SHOW,
    REPLICATE,
    SWEEP_VERIFY,
    TASKS,
    UPLOAD,
    VERIFY,
    Message,
    RequestT,
    ResultT,
    Symlinks,
    TaskSpec,
    UploadRequest,
    Verb,
)
from zot_artifact_client.errors import InvalidRequest
from zot_artifact_client.idempotency_conflicts import digest_of
from zot_artifact_client.job_ids import choose_ids
from zot_artifact_client.outgoing_messages import Outgoing
from zot_artifact_client.query_messages import QUERY_TIMEOUT
from zot_artifact_client.request_faults import faults_of

UploadT = TypeVar("UploadT")
ReplicateT = TypeVar("ReplicateT")
VerifyT = TypeVar("VerifyT")
DeleteT = TypeVar("DeleteT")
AdoptT = TypeVar("AdoptT")
BatchT = TypeVar("BatchT")
SweepT = TypeVar("SweepT")
ShowT = TypeVar("ShowT")
ListT = TypeVar("ListT")

_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENVELOPE_SIZE = 16 * 1024
"""Bytes that a message may have beside its body: its headers, which repeat the beginning of the fields."""
PIPELINE_SIZE = 500
"""Jobs that are sent in one round trip: some hundred kilobytes."""


class UploadFields(TypedDict, total=False):
    """What may be given of an upload beside its source, its bucket and its key; see `Verbs.upload`."""

    sha256: str | None
    stores: str | Iterable[str] | None
    metadata: Mapping[str, str] | None
    storage_classes: Mapping[str, str] | None
    properties: Mapping[str, str] | None
    tags: Mapping[str, str] | None
    companion_of: str | None
    notify: str | Iterable[str] | None


class SentJob(NamedTuple):
    """A job that was sent."""

    id: str
    spec: TaskSpec[Any, Any]
    request_sha256: str | None = None
    """The digest of its request, if the id is not a new one, so that it may be that of another request."""


class Verbs(ABC, Generic[UploadT, ReplicateT, VerifyT, DeleteT, AdoptT, BatchT, SweepT, ShowT, ListT]):
    """The verbs of every client. The type parameters are what each returns: a job or an answer, or a coroutine of it.

    Every verb sends one job and returns it without waiting; `show` and `list` send none, and wait for the answer. The
    same request sent again with the same `idempotency_key` returns the same job; a different request with that key
    raises IdempotencyMismatch, here or from the job. `stores` is one name or several. `notify` names receivers of the
    worker's settings, which get the end of the job as a signed webhook. Every verb raises InvalidRequest, which names
    the field and the rule, and BrokerUnavailable; where jobs go over the gateway, also GatewayUnavailable and
    NotAllowed.
    """

    def upload(
        self,
        source: str | os.PathLike[str],
        bucket: str,
        key: str,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[UploadFields],
    ) -> UploadT:
        """Store the bytes of a file or of a URL as an artifact.

        The source is what the worker sees: an absolute path below one of its roots, or an http(s) URL of one of its
        hosts. With `sha256`, 64 hexadecimal digits, a source with other bytes fails the job, and the artifact does not
        change. Without `stores`, the placement rules choose the stores. `storage_classes` names, for single stores, the
        class or tier that the store is to use. `properties` are kept beside the bytes and sent as headers to those who
        download them from a cloud: `content_type`, `content_encoding`, `content_disposition`, `content_language`,
        `cache_control`. `tags` are given to the objects in stores that have tags, and recorded for the others.
        `companion_of` is the key of an artifact of the same bucket to which this one belongs, such as its signature or
        SBOM: it is replicated, verified, held and deleted with that one. `KEY.sig`, `.att`, `.sbom` and
        `.sigstore.json` need no such name.
        """
        request = upload_request(source, bucket, key, **fields)
        return cast("UploadT", self.submit(UPLOAD, request, idempotency_key=idempotency_key))

    def replicate(
        self,
        bucket: str,
        key: str,
        *,
        to: str | Iterable[str],
        notify: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
    ) -> ReplicateT:
        """Copy the artifact to the named stores, from any copy whose bytes are right."""
        request = request_of(REPLICATE, bucket=bucket, key=key, to=_names(to), notify=_names(notify))
        return cast("ReplicateT", self.submit(REPLICATE, request, idempotency_key=idempotency_key))

    def verify(
        self,
        bucket: str,
        key: str,
        *,
        stores: str | Iterable[str] | None = None,
        version: int | None = None,
        notify: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
    ) -> VerifyT:
        """Read all bytes of the copies in the named stores, or of all copies, and compare them with the digest.

        A bad copy is a verdict in the result and not a failed job: check `result.good`.
        """
        request = request_of(
            VERIFY, bucket=bucket, key=key, stores=_names(stores), version=version, notify=_names(notify)
        )
        return cast("VerifyT", self.submit(VERIFY, request, idempotency_key=idempotency_key))

    def delete(
        self,
        bucket: str,
        key: str,
        *,
        stores: str | Iterable[str] | None = None,
        allow_last: bool = False,
        by: str | None = None,
        reason: str | None = None,
        notify: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
    ) -> DeleteT:
        """Delete the copies in the named stores at once, or the artifact everywhere.

        An artifact that is deleted everywhere can be undone until `result.purge_after`, 7 days later by default: with
        `zot-artifacts undelete`, on a machine of the worker. Then its bytes go.

        A job that would leave no good copy in the other stores fails and deletes nothing, unless `allow_last`. `by` and
        `reason` are recorded; the worker may require `by`, see `delete.approval_above` of its settings.
        """
        request = request_of(
            DELETE, bucket=bucket, key=key, stores=_names(stores), allow_last=allow_last, by=by, reason=reason,
            notify=_names(notify),
        )  # fmt: skip
        return cast("DeleteT", self.submit(DELETE, request, idempotency_key=idempotency_key))

    def adopt(
        self,
        bucket: str,
        key: str,
        *,
        store: str,
        first_read: bool = False,
        sha256: str | None = None,
        notify: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
    ) -> AdoptT:
        """Record an object that another program wrote into a store, after one full read; the object does not change.

        Its bytes must match the digest that the store keeps beside it, `sha256`, and that of the artifact if it is
        known. With no digest at all the job fails with Unverifiable, unless `first_read` makes the digest of this read
        the record.
        """
        request = request_of(
            ADOPT, bucket=bucket, key=key, store=store, first_read=first_read, sha256=sha256, notify=_names(notify)
        )
        return cast("AdoptT", self.submit(ADOPT, request, idempotency_key=idempotency_key))

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
        first_read: bool = False,
        everything: bool = False,
        by: str | None = None,
        reason: str | None = None,
        in_flight: int | None = None,
        notify: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
    ) -> BatchT:
        """Replicate, verify or delete every artifact of a bucket or prefix, or those that a file lists.

        Or adopt every object that a store, named by `stores`, lists there; see `adopt`. The outcome of one that fails
        is the type of its error.

        The list is a file below one of the worker's roots, in UTF-8, with one `bucket/key` on each line. To adopt, a
        line may be a JSON object with `bucket`, `key` and `sha256`. `to`, `stores`, `allow_last` and `first_read` mean
        what they mean for the verb. To delete a whole bucket, set `everything`. An artifact that fails is in the result
        and does not fail the batch: check `result.good`. At most `in_flight` of its jobs, each of which does a page of
        artifacts, wait or run at a time; cancelling the batch cancels those too.

        `by` and `reason` of a delete are recorded. A delete of more artifacts than `delete.approval_above` of the
        worker's settings needs `by`, and waits until another person approves it.
        """
        request = request_of(
            BATCH,
            verb=verb,
            bucket=bucket,
            prefix=prefix or None,
            keys_from=_path(keys_from),
            to=_names(to),
            stores=_names(stores),
            allow_last=allow_last or None,
            first_read=first_read or None,
            everything=everything or None,
            by=by,
            reason=reason,
            in_flight=in_flight,
            notify=_names(notify),
        )
        return cast("BatchT", self.submit(BATCH, request, idempotency_key=idempotency_key))

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
        metadata: Mapping[str, str] | None = None,
        storage_classes: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        dry_run: bool = False,
        notify: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
    ) -> BatchT:
        """Upload the files in and below a directory that is below one of the worker's roots, as one batch.

        The key of a file is the prefix, with a slash at its end, and the path of the file in the directory. A pattern
        without a slash is matched with names, one with a slash with paths in the directory; `**` is any number of
        directories. A file that fails, or changes while it is read, is in the result and does not fail the batch: check
        `result.good`. The same call again continues: what is stored already is not written again.

        `metadata`, `properties` and `tags` mean what they mean for `upload`, and go to every file. `storage_classes`
        names only stores that `stores` names. With `dry_run` nothing is uploaded: `result.objects` and `result.bytes`
        are what would be read, and `result.failures` names what would be refused.
        """
        request = request_of(
            BATCH,
            verb="upload",
            bucket=bucket,
            prefix=f"{prefix.rstrip('/')}/" if prefix else None,
            directory=_path(directory),
            include=_names(include) or None,
            exclude=_names(exclude) or None,
            symlinks=symlinks,
            dry_run=dry_run or None,
            stores=_names(stores),
            notify=_names(notify),
            **_beside_bytes(metadata, storage_classes, properties, tags),
        )
        return cast("BatchT", self.submit(BATCH, request, idempotency_key=idempotency_key))

    def sweep_verify(self, store: str | None = None, *, idempotency_key: str | None = None) -> SweepT:
        """Verify the copies of one store, or of all, that are due; beat also starts this sweep on a schedule."""
        return cast(
            "SweepT", self.submit(SWEEP_VERIFY, request_of(SWEEP_VERIFY, store=store), idempotency_key=idempotency_key)
        )

    def show(self, bucket: str, key: str, *, timeout: float = QUERY_TIMEOUT) -> ShowT:
        """Return the current version of an artifact and the state of each copy, as the catalogue has them.

        No job is made: a worker answers from the catalogue, and no store is asked.

        Raises:
            ArtifactNotFound: the catalogue has no artifact under this key.
            WaitTimeout: no worker has answered within `timeout` seconds.
            InvalidRequest, BrokerUnavailable: the query cannot be sent.
            JobFailed: the worker cannot answer it, for example without its catalogue.
        """
        return cast("ShowT", self.query(QUERY_SHOW, request_of(QUERY_SHOW, bucket=bucket, key=key), timeout=timeout))

    def list(
        self, bucket: str, prefix: str = "", *, after: str = "", limit: int = MAX_LISTED, timeout: float = QUERY_TIMEOUT
    ) -> ListT:
        """Return a page of the artifacts of a bucket whose keys begin with a prefix, by key.

        The page begins after the key `after` and has at most `limit` artifacts, fewer where keys are long. `next` of
        the result is the `after` of the next page, None at the end. Raise as `show`, but for ArtifactNotFound.
        """
        request = request_of(QUERY_LIST, bucket=bucket, prefix=prefix, after=after, limit=limit)
        return cast("ListT", self.query(QUERY_LIST, request, timeout=timeout))

    @abstractmethod
    def submit(
        self,
        spec: TaskSpec[RequestT, Any],
        request: RequestT,
        *,
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> Any:
        """Send a request of any kind, and return what the verbs of this client return."""

    @abstractmethod
    def query(self, spec: TaskSpec[RequestT, Any], request: RequestT, *, timeout: float = QUERY_TIMEOUT) -> Any:
        """Send a query, and return its answer as this client returns it."""


def check_service(service: object) -> str | None:
    """Return the name of a service. Raise InvalidRequest if it is none."""
    if service is None:
        return None
    if not isinstance(service, str) or not _SERVICE.fullmatch(service):
        msg = "service: letters, digits, '.', '_' and '-' are expected, 64 characters at most"
        raise InvalidRequest(msg)
    return service


def check_request(spec: object, request: object) -> None:
    """Return if this is a task and a request of it. Raise InvalidRequest."""
    if not isinstance(spec, TaskSpec):
        msg = f"spec: a task such as contract.UPLOAD is expected, this is {type(spec).__name__}"
        raise InvalidRequest(msg)
    if not isinstance(request, spec.request):
        msg = f"{spec.kind}: request: {spec.request.__name__} is expected, this is {type(request).__name__}"
        raise InvalidRequest(msg)


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


def outgoing(spec: TaskSpec[RequestT, Any], job_id: str, request: RequestT) -> Outgoing:
    """Return a job as it is sent under an id. Raise InvalidRequest: it is too large."""
    return Outgoing(spec.name, str(job_id), spec.queue.value, payload_of(spec, request))


def pages_of(
    requests: Iterable[Message], idempotency_key: str | None, *, service: str | None
) -> Iterator[list[Outgoing]]:
    """Yield requests of any kinds as they are sent, in pages for one round trip each. Raise InvalidRequest."""
    page: list[Outgoing] = []
    for chosen, spec, request in choose_ids(requests, idempotency_key, service=service):
        page.append(outgoing(spec, chosen, request))
        if len(page) >= PIPELINE_SIZE:
            yield page
            page = []
    if page:
        yield page


def digests_of(page: Iterable[Outgoing], kind: str | None = None) -> dict[str, str]:
    """Return the digests of requests by the ids of their jobs; `kind` if it is not that of their task."""
    return {job.job_id: digest_of(kind or TASKS[job.name].kind, job.payload) for job in page}


def upload_request(
    source: str | os.PathLike[str],
    bucket: str,
    key: str,
    *,
    sha256: str | None = None,
    stores: str | Iterable[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    storage_classes: Mapping[str, str] | None = None,
    properties: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    companion_of: str | None = None,
    notify: str | Iterable[str] | None = None,
) -> UploadRequest:
    """Return the request of an upload, whose arguments are those of `UploadFields`. Raise InvalidRequest."""
    return request_of(
        UPLOAD,
        source=_path(source),
        bucket=bucket,
        key=key,
        sha256=sha256,
        stores=_names(stores),
        notify=_names(notify),
        companion_of=companion_of,
        **_beside_bytes(metadata, storage_classes, properties, tags),
    )


def _beside_bytes(
    metadata: Mapping[str, str] | None,
    storage_classes: Mapping[str, str] | None,
    properties: Mapping[str, str] | None,
    tags: Mapping[str, str] | None,
) -> dict[str, object]:
    """Return what is kept beside the bytes as fields of a request. Raise InvalidRequest: a property has another name.

    A property named like another field, such as `source`, would otherwise become that field.
    """
    given: object = properties or {}
    if not isinstance(given, Mapping):
        msg = f"properties: a mapping of names to values is expected, this is {type(given).__name__}"
        raise InvalidRequest(msg)
    if unknown := set(properties or ()) - set(PROPERTIES):
        msg = f"properties: {min(unknown)[:64]!r} is none: there are {', '.join(PROPERTIES)}"
        raise InvalidRequest(msg)
    named = {"metadata": metadata, "storage_classes": storage_classes, "tags": tags}
    fields = {name: dict(each) if isinstance(each, Mapping) else each for name, each in named.items()}
    return {**fields, **(properties or {})}


def sent_fields(
    path: str | os.PathLike[str], bucket: str, key: str, **fields: Unpack[UploadFields]
) -> dict[str, object]:
    """Return the fields of an upload whose bytes are sent to the gateway. Raise InvalidRequest."""
    request = upload_request(path, bucket, key, **fields)
    return {name: value for name, value in request.payload().items() if name != "source"}


def spec_of(kind: TaskSpec[Any, ResultT] | str | None) -> TaskSpec[Any, Any] | None:
    """Return the task of a kind, `upload`, or of a task's name, `artifact.upload.v1`. Raise InvalidRequest."""
    if kind is None or isinstance(kind, TaskSpec):
        return kind
    if found := KINDS.get(kind) or TASKS.get(kind):
        return found
    msg = f"kind: there are {', '.join(KINDS)}"
    raise InvalidRequest(msg)


def _path(given: object) -> object:
    """Return a path as text. What is none is for `request_of`, whose error names the field."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def _names(given: object) -> object:
    """Return names as a tuple. What is none is for `request_of`, whose error names the field."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Iterable):
        return given
    # The order of a set is another one in each process, and with an idempotency key another request.
    return tuple(sorted(given) if isinstance(given, AbstractSet) else given)


def request_of(spec: TaskSpec[RequestT, Any], **fields: object) -> RequestT:
    """Return the request with the fields that are given. Raise InvalidRequest, which never carries a value."""
    try:
        return spec.request.read({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        faults = faults_of(error.errors(include_input=False))
        raise InvalidRequest(f"{spec.kind}: {faults}") from None
