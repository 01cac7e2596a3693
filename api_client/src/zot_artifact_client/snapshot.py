"""The state of a job at one moment, and how the stored record of it is read: what both clients share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from celery.exceptions import SecurityError
from kombu.exceptions import ContentDisallowed, DecodeError
from pydantic import ValidationError
from redis.exceptions import ResponseError

from zot_artifact_client.contract import (
    KINDS,
    PROGRESS_STATE,
    TASKS,
    JobState,
    Progress,
    ResultT,
    StatusResult,
    TaskSpec,
)
from zot_artifact_client.errors import ClientError, JobCancelled, JobFailed, JobNotDone, UnknownJob

_NOT_REGISTERED = "NotRegistered"
"""Celery's error of a worker that does not know a task."""


def unknown_job(job_id: str, *, certain: bool = True) -> UnknownJob:
    """Return the error for an id of which nothing is known."""
    unsaid = "" if certain else "; no worker has said what the ledger has of it"
    error = UnknownJob(
        f"nothing is known of a job {job_id}: the id is wrong, its result has expired, the broker has lost it, or "
        f"another program sent it and no worker has taken it yet{unsaid}"
    )
    error.certain = certain
    return error


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job at one moment.

    Attributes:
        progress: how far it is, while it runs and reports it.
        value: the result as JSON, if it succeeded.
        error: why it did not, if it ended otherwise.
        task: the name of its task, where the worker stores it with the result.
        request_sha256: the digest of its request, where the worker has said it.
    """

    state: JobState
    progress: Progress | None = None
    value: object = None
    error: JobNotDone | None = None
    task: str | None = None
    request_sha256: str | None = None

    @property
    def is_absent(self) -> bool:
        """Return whether nothing is stored of the job: it is queued, or there is no such job."""
        return self.state is JobState.QUEUED and self.task is None

    @property
    def may_be_queued(self) -> bool:
        """Return whether the outbox is asked before this is told: it may have a valid request after the refused one.

        A plain Celery worker that does not know a task leaves the job there, so that its refusal is told at once.
        """
        by_our_worker = not isinstance(self.error, JobFailed) or self.error.type != _NOT_REGISTERED
        return self.is_absent or (self.state is JobState.REFUSED and by_our_worker)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is known of a job.

    Attributes:
        kind: `upload`, `verify`, …; None while the job is queued.
        progress: how far it is, while it runs and reports it.
        result: the result as its model, or as JSON if its kind is unknown to this client, if it succeeded.
        error: why it did not succeed, if it ended otherwise.
    """

    id: str
    kind: str | None
    state: JobState
    progress: Progress | None = None
    result: Any = None
    error: JobNotDone | None = None


def status_of(job_id: str, found: Snapshot) -> JobStatus:
    """Return the status that the result backend has of a job. Raise ClientError: its result cannot be read."""
    spec = TASKS.get(found.task or "")
    value = None if found.value is None else _value_of(job_id, spec, found.value)
    return JobStatus(job_id, spec.kind if spec else None, found.state, found.progress, value, found.error)


def recorded_status(answer: StatusResult) -> JobStatus:
    """Return the status that the ledger has of a job. Raise as `status_of`."""
    found = recorded_snapshot(answer)
    return replace(status_of(answer.job, found), kind=answer.kind)


def recorded_snapshot(answer: StatusResult) -> Snapshot:
    """Return what the ledger has of a job, as the result backend would."""
    state, spec = state_of(answer.state), KINDS.get(answer.kind or "")
    error: JobNotDone | None = None
    if state is JobState.CANCELLED:
        error = JobCancelled(answer.error.message if answer.error else f"job {answer.job} was cancelled")
    elif answer.error is not None and state.terminal:
        error = JobFailed(answer.error.message, answer.error.type, state.value, answer.attempts)
    value = answer.result if state is JobState.SUCCEEDED else None
    return Snapshot(state, answer.progress, value, error, spec.name if spec else None)


def result_of(job_id: str, spec: TaskSpec[Any, ResultT] | None, found: Snapshot) -> ResultT:
    """Return the result of a job that has ended.

    Raises:
        JobFailed, JobCancelled: it ended without success.
        ClientError: it is a job of another kind.
    """
    if found.error is not None:
        raise found.error
    return cast("ResultT", _value_of(job_id, spec or TASKS.get(found.task or ""), found.value))


def _value_of(job_id: str, spec: TaskSpec[Any, Any] | None, value: object) -> object:
    """Return a result as its model, or as the JSON that it is where its kind is unknown. Raise as `result_of`."""
    if spec is None:
        return value
    try:
        return spec.result.read(value)
    except ValidationError:
        msg = f"the result of job {job_id} is not that of {spec.name}: ask for it by the right kind"
        raise ClientError(msg) from None


_STATES = {
    "PENDING": JobState.QUEUED,
    "RECEIVED": JobState.QUEUED,
    "STARTED": JobState.RUNNING,
    PROGRESS_STATE: JobState.RUNNING,
    "RETRY": JobState.RETRYING,
    "SUCCESS": JobState.SUCCEEDED,
    "REVOKED": JobState.CANCELLED,
}


_UNREADABLE = (
    ValueError, TypeError, LookupError, AttributeError, RecursionError, ContentDisallowed, DecodeError, SecurityError,
)  # fmt: skip


def is_unreadable(error: Exception) -> bool:
    """Return whether Celery raises this for a stored record, or a message about one, that it has not written itself."""
    return isinstance(error, _UNREADABLE) or (isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"))


def readable_snapshot(job_id: str, read: Callable[[], Any]) -> Snapshot:
    """Read Celery's record of a job and return what it means.

    A record that cannot be read is not Celery's, and says nothing: the job runs, until a worker stores its end.
    """
    try:
        return snapshot_of(job_id, read())
    except Exception as error:
        if not is_unreadable(error):
            raise
        return Snapshot(JobState.RUNNING)


def snapshot_of(job_id: str, meta: dict[str, Any]) -> Snapshot:
    """Return what Celery's record of a job means. Unknown states are those of a running job."""
    digest = meta.get("request_sha256")
    return replace(_snapshot_of(job_id, meta), request_sha256=digest if isinstance(digest, str) else None)


def _snapshot_of(job_id: str, meta: dict[str, Any]) -> Snapshot:
    status, value, task = meta["status"], meta.get("result"), meta.get("name")
    task = task if isinstance(task, str) else None
    if status == "FAILURE":
        error = _failure(job_id, value)
        return Snapshot(_end_state(error), error=error, task=task)
    state = _STATES.get(status, JobState.RUNNING)
    if state is JobState.CANCELLED:
        return Snapshot(state, error=JobCancelled(f"job {job_id} was cancelled"), task=task)
    if state is JobState.SUCCEEDED:
        return Snapshot(state, value=value, task=task)
    return Snapshot(state, progress=progress_of(meta), task=task)


def progress_of(meta: dict[str, Any]) -> Progress | None:
    """Return the progress in Celery's record of a job, or None."""
    if meta["status"] != PROGRESS_STATE:
        return None
    try:
        return Progress.read(meta.get("result"))
    except ValidationError:
        return None


def state_of(text: str) -> JobState:
    """Return the state of this name; one of a newer worker is `failed`."""
    try:
        return JobState(text)
    except ValueError:
        return JobState.FAILED


def _failure(job_id: str, error: object) -> JobNotDone:
    """Return our error for the exception of a failed task. Celery makes up unknown types, so only their names count."""
    if isinstance(error, JobCancelled):
        return error
    if isinstance(error, JobFailed):
        return JobCancelled(error.message) if error.state == JobState.CANCELLED else error
    line = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    if name == _NOT_REGISTERED:
        msg = f"no worker knows the task {line} of job {job_id}: the worker is older than what was sent"
        return JobFailed(msg, name, JobState.REFUSED.value)
    return JobFailed(line or f"job {job_id} failed without a message", name)


def _end_state(error: JobNotDone) -> JobState:
    if isinstance(error, JobCancelled):
        return JobState.CANCELLED
    state = state_of(getattr(error, "state", JobState.FAILED))
    return state if state.terminal else JobState.FAILED
