"""Have a delete of many artifacts wait until a second person has approved it."""

import logging
from collections.abc import Sequence
from datetime import timedelta

from worker import clock
from worker.catalogue import ApprovalState, Artifact, DeleteApproval
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Paused, seconds_to_pause
from worker.storage.errors import PermanentError
from zot_artifact_client.contract import BatchRequest, DeleteRequest, PageRequest, is_batch_job

logger = logging.getLogger(__name__)

_WHAT = 500
"""Characters that are recorded of what is deleted."""
_SKEW = timedelta(minutes=5)
"""How far the clocks of two workers may differ."""


class NotApproved(PermanentError):
    """A delete was rejected, not approved in time or not the approved one, or has no requester; nothing was deleted."""


class WaitsForApproval(Paused):
    """A delete waits for a second person. How long that takes does not count against the job."""


def check_batch(request: BatchRequest, job: RunningJob, objects: int, size: int) -> None:
    """Return if a batch may delete its objects. Raise as `check_delete`."""
    where = (
        request.keys_from and f"{counted(objects, 'line')} of {request.keys_from}"
    ) or f"{request.bucket}/{request.prefix}"
    _check(request, job, what=_what(where, request), objects=objects, size=size)


def check_delete(request: DeleteRequest, job: RunningJob, *, companions: Sequence[Artifact] = ()) -> None:
    """Return if a delete of one artifact may begin; the jobs of a batch are allowed with their batch.

    `companions` are deleted with the artifact.

    Raises:
        NotApproved: it was rejected or not approved in time, or names no requester; or the artifact or a
            companion has a version that was not there when it was requested.
        WaitsForApproval: a second person has not decided yet.
    """
    if not is_batch_job(job.id, job.parent):
        what = _what(f"{request.bucket}/{request.key}", request)
        artifact = job.catalogue.artifacts.current(request.bucket, request.key)
        versions = [*filter(None, [artifact]), *companions]
        ids = [each.id for each in versions]
        found = _check(request, job, what=what, objects=1 + len(companions), size=0, versions=ids)
        if found is not None and found.state is ApprovalState.APPROVED:
            _check_not_replaced(found, versions)


def check_page(request: PageRequest, job: RunningJob) -> None:
    """Return if a page is one of a batch, which was allowed, or if no delete needs an approval.

    Raises:
        NotApproved: the page deletes, and no batch has planned it.
    """
    limited = request.verb == "delete" and job.settings.delete.approval_above is not None
    if limited and not is_batch_job(job.id, job.parent):
        raise NotApproved("a page that deletes has to belong to a batch, because deletes need an approval here")


def _check(
    request: BatchRequest | DeleteRequest, job: RunningJob, *, what: str, objects: int, size: int,
    versions: Sequence[int] | None = None,
) -> DeleteApproval | None:  # fmt: skip
    """Return the delete as it was allowed or approved; None if deletes need no approval. Raise as `check_delete`."""
    rules, approvals = job.settings.delete, job.catalogue.delete_approvals
    what, found = what[:_WHAT], approvals.get(job.id)
    if found is not None and rules.approval_above is None and _is_earlier(found, job):
        return None
    of_one = isinstance(request, DeleteRequest)
    # A different delete under the id means that the job of that one was pruned since.
    if found is not None and (found.what != what or (found.objects != objects and not of_one)):
        raise NotApproved(
            f"{what}: nothing was deleted: {job.id} was the id of another delete, {found.what}; use another id"
        )
    if found is not None and objects > found.objects:  # another attempt may also find fewer companions
        raise NotApproved(
            f"{what}: nothing was deleted: it has more companions than when this delete was requested; send it again"
        )
    if found is None:
        if rules.approval_above is None:
            return None
        now = clock.now()
        found = approvals.request(
            DeleteApproval(
                job=job.id, state=ApprovalState.ALLOWED, what=what, objects=objects, bytes=size,
                requested_by=(request.by or "").strip(), reason=request.reason, requested_at=now,
                expires_at=now + rules.approval_expires, versions=versions,
            ),
            above=rules.approval_above,
            window=rules.approval_window,
        )  # fmt: skip
        if found.state is ApprovalState.WAITING:
            told = (job.id, found.requested_by or "an unnamed requester", objects, what)
            logger.warning("delete %s: %s wants to delete %d objects, %s: it waits for an approval", *told)
    return _decided(found, job)


def _is_earlier(found: DeleteApproval, job: RunningJob) -> bool:
    """Return whether another delete had the id of this one: the ledger prunes jobs, and decisions are kept."""
    return found.requested_at < job.created_at - _SKEW


def _decided(found: DeleteApproval, job: RunningJob) -> DeleteApproval:
    """Return the delete once it is allowed or approved. Raise as `check_delete`."""
    what, objects, approvals = found.what, found.objects, job.catalogue.delete_approvals
    if _is_earlier(found, job):
        raise NotApproved(
            f"nothing was deleted: the id {job.id} is that of an earlier delete of {what}, which was {found.state}: "
            "send this one with another idempotency key"
        )
    if found.state is ApprovalState.WAITING and not found.requested_by:
        raise NotApproved(
            f"{what}: nothing was deleted: a delete of {counted(objects, 'object')} needs the approval of a second "
            "person, so it has to say who requests it: set `by`"
        )
    if found.state is ApprovalState.WAITING and clock.now() >= found.expires_at:
        approvals.close_ended(now=clock.now())
        found = approvals.get(job.id) or found
    if found.state is ApprovalState.WAITING:
        raise _waits(found)
    if found.state is ApprovalState.APPROVED:
        people = (found.requested_by, found.decided_by, found.decided_from)
        logger.warning("delete %s: %s, requested by %s, begins: approved by %s from %s", job.id, found.what, *people)
    if found.state in {ApprovalState.REJECTED, ApprovalState.EXPIRED, ApprovalState.WITHDRAWN}:
        who = f" by {found.decided_by}: {found.note}" if found.decided_by else ""
        raise NotApproved(f"{what}: nothing was deleted: the delete was {found.state}{who}; send it again to ask anew")
    return found


def _check_not_replaced(found: DeleteApproval, artifacts: Sequence[Artifact]) -> None:
    """Raise NotApproved if there is a version that the second person did not approve."""
    for each in artifacts:
        if not _was_there(found, each):
            raise NotApproved(
                f"{found.what}: {each.path} was uploaded again after this delete was requested, and that version was "
                "not approved; send the delete again to ask anew"
            )


def _was_there(found: DeleteApproval, artifact: Artifact) -> bool:
    """Return whether a delete found a version; of one that an earlier worker recorded only its time is known."""
    if found.versions is not None:
        return artifact.id in found.versions
    return artifact.committed_at is not None and artifact.committed_at <= found.requested_at


def _waits(found: DeleteApproval) -> WaitsForApproval:
    return WaitsForApproval(
        f"the delete of {found.what} ({found.objects} {'object' if found.objects == 1 else 'objects'}) needs the "
        f"approval of another person before {found.expires_at:%Y-%m-%d %H:%MZ}: "
        f"`zot-artifacts deletes approve {found.job}`",
        seconds_to_pause(found.requested_at),
    )


def _what(where: str, request: BatchRequest | DeleteRequest) -> str:
    return f"{where} in {', '.join(request.stores)}" if request.stores else f"{where} in all stores"
