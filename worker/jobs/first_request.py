"""Compare a request with the job that the ledger has under its id: the first request with an id is the job."""

from collections.abc import Mapping
from typing import Any

from worker.catalogue import JobRecord, Ledger
from zot_artifact_client.contract import JobState
from zot_artifact_client.idempotency_conflicts import idempotency_mismatch

_WHERE_STAGED = {"source", "staged"}
_WHO_ASKS = {"by"}


def first_request(ledger: Ledger, job_id: str, kind: str, request: Mapping[str, Any]) -> JobRecord | None:
    """Return the job that the ledger has under an id, None if it is free for this request.

    Raises:
        IdempotencyMismatch: it is the job of another request.
    """
    record = ledger.get(job_id)
    if record is None or record.state == JobState.REFUSED:  # a rejected message leaves its id to a valid request
        return None
    if record.kind != kind or not is_same(record.request, request):
        raise idempotency_mismatch([job_id])
    return record


def is_same(first: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Return whether two requests ask for the same; who asks does not count.

    A command names its user by itself, and earlier versions did not. Of staged bytes, whose digest the requests name,
    the place does not count.
    """
    ignored = _WHO_ASKS | _WHERE_STAGED if first.get("staged") else _WHO_ASKS
    one, other = ({name: value for name, value in each.items() if name not in ignored} for each in (first, request))
    return one == other
