"""Read the states and results of jobs from Celery's result backend."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import ImproperlyConfigured
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult

from zot_artifact_client import cancellation
from zot_artifact_client.broker_urls import parse_result_url
from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    PerProcess,
    broker_errors,
    celery_app,
    without_credentials,
)
from zot_artifact_client.contract import JobState
from zot_artifact_client.errors import (
    BrokerUnavailable,
    ClientError,
    InvalidUrl,
)
from zot_artifact_client.idempotency_conflicts import compare
from zot_artifact_client.job import OnProgress, wait_timeout
from zot_artifact_client.snapshot import Snapshot, is_unreadable, progress_of, readable_snapshot, unknown_job

LISTEN_FOR = 10.0
"""Seconds of listening before the backend is asked again: a connection that died silently delivers no message."""
UNKNOWN_FOR = 15.0
"""Seconds for which a wait for an unknown job goes on: the message of another program may be taken meanwhile."""
LEDGER_WITHIN = 10.0
"""Seconds that a worker has to say what the ledger has of a job that the result backend does not know."""
LEDGER_AT_THE_END = 2.0
"""The same, once the time of a wait is over."""
PROGRESS_EVERY = 0.25
"""Seconds between two calls of `on_progress`."""


def result_backend_app(url: str) -> Celery:
    """Return a Celery application that asks a result backend with bounded waits. Raise InvalidUrl."""
    return celery_app(
        url,
        redis_socket_timeout=SOCKET_TIMEOUT,
        redis_socket_connect_timeout=CONNECT_TIMEOUT,
        redis_socket_keepalive=not parse_result_url(url).is_socket,
        result_backend_transport_options={"retry_policy": RETRY_POLICY},
    )


class CeleryResultBackend:
    """States and results of jobs, as the worker's Celery application stores them.

    Args:
        url: of the result backend.
        revoke: tells the workers that are up to cancel a job.
        is_queued: returns whether a job of which no state is stored is in the outbox, or None if that is unknown.
        recorded: returns what the ledger has of a job, which a worker is asked for so many seconds; None if none
            says it. The result backend may have been lost.

    Raises:
        ClientError: the URL is not that of a result backend.
    """

    def __init__(
        self,
        url: str,
        revoke: Callable[[str], None],
        is_queued: Callable[[str], bool | None] = lambda _: None,
        recorded: Callable[[str, float], Snapshot | None] = lambda *_: Snapshot(JobState.UNKNOWN),
    ) -> None:
        self._url = url
        self._revoke = revoke
        self._is_queued = is_queued
        self._recorded = recorded
        self._apps = PerProcess(partial(result_backend_app, url))
        try:
            self._app.backend  # noqa: B018 - made here, so that a wrong URL is found now and not at the first wait
        except InvalidUrl:
            raise
        except (ImproperlyConfigured, ImportError, LookupError, ValueError) as error:
            line = str(error).strip().partition("\n")[0]
            msg = f"{without_credentials(url)} is no result backend: {line}; give its URL as result_url"
            raise ClientError(msg) from None

    @property
    def _app(self) -> Celery:
        return self._apps.get()

    def snapshot(self, job_id: str) -> Snapshot:
        with broker_errors("result backend", self._url):
            found = self._stored(job_id)
            if found.may_be_queued:
                queued = self._in_outbox(job_id)
                if queued:
                    return Snapshot(JobState.QUEUED)
                # A worker stores a state before it removes the job from the outbox: only a second read is certain.
                found = self._stored(job_id)
                if found.is_absent and queued is False:
                    return Snapshot(JobState.UNKNOWN)
            return found

    def _stored(self, job_id: str) -> Snapshot:
        return readable_snapshot(job_id, lambda: self._app.backend.get_task_meta(job_id))

    def _in_outbox(self, job_id: str) -> bool | None:
        """Return whether a job is in the outbox, None if that is unknown."""
        try:
            return self._is_queued(job_id)
        except BrokerUnavailable:
            return None

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        deadline = None if timeout is None else time.monotonic() + timeout
        result = self._app.AsyncResult(job_id)  # its backend is that of this thread
        relay = _ProgressCallback(job_id, on_progress) if on_progress and result.backend.is_async else None
        unknown_until = time.monotonic() + UNKNOWN_FOR
        try:
            while True:
                ended = self._listen(result, _next_slice(deadline), relay)
                snapshot = self.snapshot(job_id)
                over = deadline is not None and time.monotonic() >= deadline
                if snapshot.state is JobState.UNKNOWN and (over or time.monotonic() >= unknown_until):
                    found = self._recorded(job_id, LEDGER_AT_THE_END if over else LEDGER_WITHIN)
                    if found is None or found.state is JobState.UNKNOWN:
                        raise unknown_job(job_id, certain=found is not None)
                    snapshot = found
                    unknown_until = time.monotonic() + UNKNOWN_FOR
                if snapshot.state.terminal:
                    return snapshot
                if over:
                    raise wait_timeout(job_id, timeout)
                if ended:  # Celery keeps messages that no wait consumed: this end is from before a redrive or a refusal
                    result = self._app.AsyncResult(job_id)
                    time.sleep(min(PROGRESS_EVERY, _next_slice(deadline)))
        finally:
            with suppress(Exception):  # the backend is unavailable: then there is no subscription to end
                result.backend.remove_pending_result(result)

    def answer(self, query_id: str, timeout: float) -> Snapshot:
        """Return the answer to a query, or what is stored of it after `timeout` seconds. Raise BrokerUnavailable."""
        deadline = time.monotonic() + timeout
        result = self._app.AsyncResult(query_id)
        try:
            while not self._listen(result, _next_slice(deadline), None) and time.monotonic() < deadline:
                pass
            with broker_errors("result backend", self._url):
                return self._stored(query_id)
        finally:
            with suppress(Exception):  # the backend is unavailable: then there is no subscription to end
                result.backend.remove_pending_result(result)

    def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        """Return those of some jobs that have ended, in one round trip with Redis. Raise BrokerUnavailable."""
        backend = self._app.backend
        with broker_errors("result backend", self._url):
            if not isinstance(backend, RedisBackend):
                found = {id_: self._stored(id_) for id_ in job_ids}
            else:
                stored = backend.mget([backend.get_key_for_task(id_) for id_ in job_ids]) if job_ids else []
                found = {
                    id_: readable_snapshot(id_, partial(backend.decode_result, meta))
                    for id_, meta in zip(job_ids, stored, strict=True)
                    if meta
                }
        ended = {id_: each for id_, each in found.items() if each.state.terminal}
        now = {id_: self.snapshot(id_) if each.may_be_queued else each for id_, each in ended.items()}
        return {id_: each for id_, each in now.items() if each.state.terminal}

    def cancel(self, job_id: str) -> bool:
        backend = self._app.backend
        if not isinstance(backend, RedisBackend):
            msg = f"job {job_id} cannot be cancelled: that takes Redis or Valkey as the result backend"
            raise ClientError(msg)
        snapshot = self.snapshot(job_id)
        if snapshot.state.terminal:
            return False
        with broker_errors("result backend", self._url):
            cancellation.add_requests(backend.client, [job_id])
        self._revoke(job_id)
        if snapshot.state is JobState.UNKNOWN:
            raise unknown_job(job_id)
        return True

    def compare(self, digests: Mapping[str, str], *, record: bool) -> list[str]:
        """Return the ids that belong to other requests; none if the backend is no Redis. Raise BrokerUnavailable."""
        backend = self._app.backend
        if not isinstance(backend, RedisBackend):
            return []
        with broker_errors("result backend", self._url):
            return compare(backend.client, digests, record=record)

    def forget(self, job_id: str) -> None:
        """Remove the stored end of a job and the request to cancel it, for a redrive. Raise BrokerUnavailable."""
        backend = self._app.backend
        with broker_errors("result backend", self._url):
            backend.forget(job_id)
            if isinstance(backend, RedisBackend):
                cancellation.withdraw_request(backend.client, job_id)

    def close(self) -> None:
        """Close the connections of this thread; those of other threads go with their threads."""
        app = self._apps.made()
        if app is None:
            return
        backend = app.backend
        if isinstance(backend, RedisBackend):
            with suppress(Exception):  # the backend is unavailable: then its connections are closed already
                backend.result_consumer.stop()
                pool = backend.client.connection_pool
                pool.disconnect()
                for each in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
                    each.close()
        app.close()

    def _listen(self, result: AsyncResult, seconds: float, relay: "_ProgressCallback | None") -> bool:
        """Return whether the job has ended, after at most this many seconds of waiting."""
        try:
            with broker_errors("result backend", self._url):
                if relay is not None:  # Celery passes on only later messages, and a job may publish no more
                    backend: Any = result.backend
                    backend.add_pending_result(result)  # listens from here on, so nothing is missed in between
                    relay(backend.get_task_meta(result.id))
                # Asks once, then listens. disable_sync_subtasks: Celery would refuse this inside of a task, because
                # a pool can wait for itself; this job runs in another service's pool.
                result.get(seconds, propagate=False, disable_sync_subtasks=False, on_message=relay)
        except CeleryTimeout:
            return False
        except Exception as error:
            cause = error.__cause__ if isinstance(error, BrokerUnavailable) else error
            if not (isinstance(cause, Exception) and is_unreadable(cause)):
                raise
            time.sleep(min(seconds, 0.5))  # the record, or a message on its channel, is not Celery's: it is read again
            return False
        finally:
            if relay is not None and relay.error is not None:
                raise relay.error
        return True


class _ProgressCallback:
    """Passes on the progress of one job, and keeps the exception that the receiver raises."""

    def __init__(self, job_id: str, receiver: OnProgress) -> None:
        self._job_id = job_id
        self._receiver = receiver
        self._last = float("-inf")
        self.error: Exception | None = None

    def __call__(self, meta: dict[str, Any]) -> None:
        now = time.monotonic()
        if meta.get("task_id") != self._job_id or now - self._last < PROGRESS_EVERY:
            return
        progress = progress_of(meta)
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
