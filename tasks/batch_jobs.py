"""The jobs that a batch is divided into: pages of many objects, and single objects that no page takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.catalogue import Batch, NewBatchItem
from worker.jobs.send_sweep_pages import page_id
from zot_artifact_client.contract import (
    ADOPT,
    DELETE,
    PAGE,
    REPLICATE,
    UPLOAD,
    VERIFY,
    AdoptRequest,
    BatchRequest,
    DeleteRequest,
    PageRequest,
    ReplicateRequest,
    Request,
    UploadRequest,
    VerifyRequest,
)


@dataclass(frozen=True, slots=True)
class ObjectJob:
    """An artifact that is a job of its own. `source`: the file that an upload reads.

    `sha256`: the digest that what is adopted must have, if it is known.
    """

    bucket: str
    key: str
    size: int
    source: str = ""
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class PageJob:
    """The request of a page, with the bytes of its objects."""

    request: PageRequest
    size: int


@dataclass(frozen=True, slots=True)
class PlannedJobs:
    """The next jobs of a batch, and the cursor after them. `exhausted`: no more jobs follow."""

    jobs: Sequence[ObjectJob | PageJob]
    cursor: Mapping[str, Any]
    exhausted: bool


def new_item(request: BatchRequest, before: Batch, number: int, found: ObjectJob | PageJob) -> NewBatchItem:
    """Return the job of a batch that has this number in it."""
    id_ = page_id(before.job, number)
    if isinstance(found, PageJob):
        return NewBatchItem(number, id_, found.request.payload(), found.size, None, PAGE.kind)
    payload = _REQUESTS[request.verb](request, found).payload()
    writes_to = None if request.verb == VERIFY.kind else f"{found.bucket}/{found.key}"
    return NewBatchItem(number, id_, payload, found.size, writes_to)


_REQUESTS: dict[str, Callable[[BatchRequest, ObjectJob], Request]] = {
    REPLICATE.kind: lambda asked, at: ReplicateRequest(bucket=at.bucket, key=at.key, to=asked.to or ()),
    VERIFY.kind: lambda asked, at: VerifyRequest(bucket=at.bucket, key=at.key, stores=asked.stores),
    ADOPT.kind: lambda asked, at: AdoptRequest(
        bucket=at.bucket, key=at.key, store=(asked.stores or ("",))[0], first_read=asked.first_read, sha256=at.sha256
    ),
    UPLOAD.kind: lambda asked, at: UploadRequest.read(
        {"bucket": at.bucket, "key": at.key, "source": at.source, "stores": asked.stores, **asked.beside_bytes}
    ),
    DELETE.kind: lambda asked, at: DeleteRequest(
        bucket=at.bucket, key=at.key, stores=asked.stores, allow_last=asked.allow_last, by=asked.by, reason=asked.reason
    ),
}
