"""Read the states and results of jobs from Celery's result backend."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.backends.redis import RedisBackend
from celery.exceptions import ImproperlyConfigured
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult
from pydantic import ValidationError

from zot_artifact_client import cancellation
from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    broker_errors,
    celery_app,
    without_credentials,
)
from zot_artifact_client.contract import PROGRESS_STATE, JobState, Progress
from zot_artifact_client.errors import ClientError, JobCancelled, JobFailed, JobNotDone, WaitTimeout
from zot_artifact_client.job import OnProgress, Snapshot

LISTEN_FOR = 10.0
"""Seconds of listening before the backend is asked again: a network that went silent says nothing of itself."""
PROGRESS_EVERY = 0.25
"""Seconds between two calls of `on_progress`."""

_STATES = {
    "PENDING": JobState.QUEUED,
    "RECEIVED": JobState.QUEUED,
    "STARTED": JobState.RUNNING,
    PROGRESS_STATE: JobState.RUNNING,
    "RETRY": JobState.RETRYING,
    "SUCCESS": JobState.SUCCEEDED,
    "REVOKED": JobState.CANCELLED,
}


class CeleryResultBackend:
    """States and results of jobs, as the worker's Celery application stores them."""

    def __init__(self, url: str, revoke: Callable[[str], None]) -> None:
        self._url = url
        self._revoke = revoke
        self._app = celery_app(
            url,
            redis_socket_timeout=SOCKET_TIMEOUT,
            redis_socket_connect_timeout=CONNECT_TIMEOUT,
            redis_socket_keepalive=not url.startswith("redis+socket"),
            result_backend_transport_options={"retry_policy": RETRY_POLICY},
        )
        try:
            self._app.backend  # noqa: B018 - made here, so that a wrong URL is found now and not at the first wait
        except (ImproperlyConfigured, ImportError, LookupError, ValueError) as error:
            line = str(error).strip().partition("\n")[0]
            msg = f"{without_credentials(url)} is no result backend: {line}; give its URL as result_url"
            raise ClientError(msg) from None

    def snapshot(self, job_id: str) -> Snapshot:
        with broker_errors("result backend", self._url):
            return snapshot_of(job_id, self._app.backend.get_task_meta(job_id))

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        deadline = None if timeout is None else time.monotonic() + timeout
        result = self._app.AsyncResult(job_id)  # its backend is that of this thread
        relay = _ProgressCallback(job_id, on_progress) if on_progress and result.backend.is_async else None
        try:
            while True:
                if self._listen(result, _next_slice(deadline), relay):
                    snapshot = self.snapshot(job_id)
                    if snapshot.state.terminal:
                        return snapshot
                    # Celery keeps words that nobody waited for: this end is from before the job was begun again.
                    result = self._app.AsyncResult(job_id)
                if deadline is not None and time.monotonic() >= deadline:
                    msg = f"job {job_id} has not ended within {timeout:g} s; it goes on"
                    raise WaitTimeout(msg)
        finally:
            with suppress(Exception):  # the backend is away: then nothing is left to unsubscribe from
                result.backend.remove_pending_result(result)

    def cancel(self, job_id: str) -> None:
        backend = self._app.backend
        if not isinstance(backend, RedisBackend):
            msg = f"job {job_id} cannot be cancelled: that takes Redis or Valkey as the result backend"
            raise ClientError(msg)
        with broker_errors("result backend", self._url):
            cancellation.add_requests(backend.client, [job_id])
        self._revoke(job_id)

    def forget(self, job_id: str) -> None:
        """Take away how a job ended, and the wish that it ends: it begins again. Raise BrokerUnavailable."""
        backend = self._app.backend
        with broker_errors("result backend", self._url):
            backend.forget(job_id)
            if isinstance(backend, RedisBackend):
                cancellation.withdraw_request(backend.client, job_id)

    def close(self) -> None:
        """Close the connections of this thread; those of other threads go with their threads."""
        backend = self._app.backend
        if isinstance(backend, RedisBackend):
            with suppress(Exception):  # the backend is away: then its connections are closed already
                backend.result_consumer.stop()
                backend.client.connection_pool.disconnect()
        self._app.close()

    def _listen(self, result: AsyncResult, seconds: float, relay: "_ProgressCallback | None") -> bool:
        """Return whether the job has ended, after at most this many seconds of waiting for the word of it."""
        try:
            with broker_errors("result backend", self._url):
                if relay is not None:  # Celery passes on only what comes later, and a job may have nothing more to say
                    result.backend.add_pending_result(result)  # listens from here on, so nothing falls in between
                    relay(result.backend.get_task_meta(result.id))
                # Asks once, then listens. disable_sync_subtasks: Celery would refuse this inside of a task, because
                # a pool can wait for itself; this job runs in another service's pool.
                result.get(seconds, propagate=False, disable_sync_subtasks=False, on_message=relay)
        except CeleryTimeout:
            return False
        finally:
            if relay is not None and relay.error is not None:
                raise relay.error
        return True


class _ProgressCallback:
    """Passes on the progress of one job among the messages of all, and keeps what the receiver raises."""

    def __init__(self, job_id: str, receiver: OnProgress) -> None:
        self._job_id = job_id
        self._receiver = receiver
        self._last = float("-inf")
        self.error: Exception | None = None

    def __call__(self, meta: dict[str, Any]) -> None:
        now = time.monotonic()
        if meta.get("task_id") != self._job_id or now - self._last < PROGRESS_EVERY:
            return
        progress = _progress(meta)
        if progress is None:
            return
        self._last = now
        try:
            self._receiver(progress)
        except Exception as error:
            self.error = error
            raise


def _next_slice(deadline: float | None) -> float:
    if deadline is None:
        return LISTEN_FOR
    return min(LISTEN_FOR, max(0.0, deadline - time.monotonic()))


def snapshot_of(job_id: str, meta: dict[str, Any]) -> Snapshot:
    """Return what Celery's record of a job means. States that it does not know are those of a job that runs."""
    status, value, task = meta["status"], meta.get("result"), meta.get("name")
    if status == "FAILURE":
        error = _failure(job_id, value)
        state = JobState.CANCELLED if isinstance(error, JobCancelled) else _end_state(error)
        return Snapshot(state, error=error, task=task)
    state = _STATES.get(status, JobState.RUNNING)
    if state is JobState.CANCELLED:
        return Snapshot(state, error=JobCancelled(f"job {job_id} was cancelled"), task=task)
    if state is JobState.SUCCEEDED:
        return Snapshot(state, value=value, task=task)
    return Snapshot(state, progress=_progress(meta), task=task)


def _progress(meta: dict[str, Any]) -> Progress | None:
    if meta["status"] != PROGRESS_STATE:
        return None
    try:
        return Progress.read(meta.get("result"))
    except ValidationError:
        return None


def _failure(job_id: str, error: object) -> JobNotDone:
    """Return our error for whatever a failed task has left; Celery makes unknown types up, so only names count."""
    if isinstance(error, JobCancelled):
        return error
    if isinstance(error, JobFailed):
        return JobCancelled(error.message) if error.state == JobState.CANCELLED else error
    line = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    if name == "NotRegistered":
        msg = f"no worker knows the task {line} of job {job_id}: the worker is older than what was sent"
        return JobFailed(msg, name, JobState.REFUSED.value)
    return JobFailed(line or f"job {job_id} failed without a word", name)


def _end_state(error: JobNotDone) -> JobState:
    try:
        state = JobState(getattr(error, "state", JobState.FAILED))
    except ValueError:  # of a newer worker
        return JobState.FAILED
    return state if state.terminal else JobState.FAILED
