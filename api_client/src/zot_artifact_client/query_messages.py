"""Make the message of a query, and read its answer: what both clients share."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from zot_artifact_client.contract import QUERY_STATUS, RequestT, ResultT, StatusRequest, TaskSpec
from zot_artifact_client.errors import ArtifactNotFound, ClientError, JobFailed, WaitTimeout
from zot_artifact_client.outgoing_messages import Outgoing
from zot_artifact_client.snapshot import Snapshot, recorded_snapshot

QUERY_TIMEOUT = 10.0
"""Seconds that a query waits for its answer, unless the caller says otherwise."""
UNKNOWN_TASK = "UnknownTask"
"""The type of the error of a worker that is older than the query."""
_CLOCKS = 60.0
"""Seconds by which the clocks of client and worker may differ before the worker drops a query as expired."""


def question(spec: TaskSpec[RequestT, Any], request: RequestT, timeout: float) -> Outgoing:
    """Return a query as it is sent: without an entry in the outbox, and dropped once its client has given up."""
    expires = max(timeout, 0.0) + _CLOCKS
    return Outgoing(spec.name, f"query-{uuid4().hex}", spec.queue.value, request.payload(), expires=expires)


def status_question(job_id: str, timeout: float) -> Outgoing:
    """Return the query for what the ledger has of a job."""
    return question(QUERY_STATUS, StatusRequest(job=job_id), timeout)


def status_answer(found: Snapshot) -> Snapshot | None:
    """Return what the ledger has of a job, from the answer to its query; None if no worker has said it."""
    try:
        answer = read_answer(QUERY_STATUS, found, 0.0)
    except ClientError:
        return None
    return replace(recorded_snapshot(answer), request_sha256=answer.request_sha256)


def read_answer(spec: TaskSpec[Any, ResultT], found: Snapshot, timeout: float) -> ResultT:
    """Return the answer to a query, from what the result backend has of it.

    Raises:
        ArtifactNotFound: the catalogue has no such artifact.
        WaitTimeout: no worker has answered.
        JobFailed: the worker cannot answer.
        ClientError: the answer is that of another query.
    """
    if not found.state.terminal:
        msg = (
            f"no worker has answered the {spec.kind} query within {timeout:g} s: see that one runs, and that its clock "
            f"and that of this machine differ by less than {_CLOCKS:g} s"
        )
        raise WaitTimeout(msg)
    if isinstance(found.error, JobFailed) and found.error.type == "NotFound":
        raise ArtifactNotFound(found.error.message)
    if found.error is not None:
        raise found.error
    try:
        return spec.result.read(found.value)
    except ValidationError:
        msg = f"the answer is not that of {spec.name}"
        raise ClientError(msg) from None
