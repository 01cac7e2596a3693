"""Store states and results of jobs in one round trip, and only those of the job's own latest delivery.

Celery asks in one round trip whether a success is stored, and writes in another. Two messages with one id, one of them
of another sender, would then overwrite each other. So each state has the fencing token of the lease under which it was
written, and a state with a lower token, or without one, replaces none with a higher token.
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from celery import Celery
from celery.app.task import Context
from celery.backends import redis
from celery.states import FAILURE, READY_STATES, REVOKED, SUCCESS

from worker import clock
from worker.catalogue import JobRecord
from worker.intake.message_filter import send_record
from worker.jobs.outbox import Outbox, keys_of_taken
from worker.jobs.request_digests import RequestDigests
from zot_artifact_client.connection import BROKER_ERRORS, is_write_refused
from zot_artifact_client.contract import (
    ANSWER_KEPT,
    BATCH_JOB_ID,
    CANCEL_KEY,
    KINDS,
    QUERY_ID,
    JobError,
    JobState,
    is_batch_job,
)
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.outgoing_messages import MESSAGES
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

MAX_RESULT = 1 << 20
"""Bytes of a stored result; a larger one is left out, and is in the ledger only."""
_QUIET = 60
"""Seconds between two lines about writes that are retried."""
_MESSAGE = 2000
_TRACEBACK = 8000
_FENCE = "_zot_fence"
"""The attribute of a task's request that holds the fencing token. No header can set it: see `message_rules`."""
_DIGEST = "_zot_request_sha256"
"""The same for the digest of the job's request."""
_RESULT = "_zot_result"
"""The same for the result of the job; Celery gets only the part of it that an event shows."""
_BY_CELERY = {"expired", "revoked", "terminated"}
"""Celery's reasons for revoking a message by itself. It cannot know whether the message belongs to the job with this
id.
"""
_STORE = """
for number = 2, #KEYS do
  redis.pcall(number < 4 and 'HDEL' or 'ZREM', KEYS[number], ARGV[6])
end
local kept = redis.call('GET', KEYS[1])
if kept then
  local read, meta = pcall(cjson.decode, kept)
  local status = read and type(meta) == 'table' and meta['status']
  local fence = status and tonumber(meta['fence']) or 0
  if status == 'SUCCESS' or tonumber(ARGV[5]) < fence then return end
  local ended = status == 'FAILURE' or status == 'REVOKED'
  if ended and ARGV[3] == '0' and tonumber(ARGV[5]) == fence then return end
  if status and ARGV[4] == '1' then return end
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
"""
"""KEYS: the job's state, and the keys of the outbox from which the job is removed.

ARGV: the state as JSON, its seconds to live, whether it is an end, whether it gives way to any state, its fence, and
its id.
"""

_STATE = """
local watched = #KEYS > 2 and redis.call('EXISTS', unpack(KEYS, 3)) or 0
return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('EXISTS', KEYS[2]), watched}
"""
"""KEYS: the messages of the outbox, the cancellation of the job, and the watched keys. ARGV: the id of the job."""


class Seen(NamedTuple):
    """The data in Redis of a job whose message was delivered."""

    message: bytes | None
    """The unparsed message of the job in the outbox."""
    cancelled: bool
    """A client has cancelled the job."""
    watched: int
    """How many of the watched keys exist."""


def fence_request(request: Any, job: JobRecord) -> None:
    """Set the fencing token of a job on a task's request, so that the states that it stores count.

    They have the digest of the job's request, so that a client that sent another one under this id notices that.
    """
    setattr(request, _FENCE, job.fence)
    setattr(request, _DIGEST, job.request_sha256)


def keep_result(request: Any, result: dict[str, Any]) -> None:
    """Set the result of a job on a task's request: it is stored in place of what the task returns."""
    setattr(request, _RESULT, result)


def fenced_request(job: JobRecord) -> Context:
    """Return a request with which a state of a job is stored without a delivery."""
    request = Context({"id": job.id, "task": KINDS[job.kind].name if job.kind in KINDS else None})
    fence_request(request, job)
    return request


def publish_end(app: Celery, job: JobRecord) -> None:
    """Store the end of a job in the result backend, as the ledger has it."""
    request = fenced_request(job)
    if job.state == JobState.SUCCEEDED:
        app.backend.mark_as_done(job.id, dict(job.result or {}), request=request)
        return
    error = JobError.recorded(job.error)
    if job.state == JobState.CANCELLED:
        app.backend.mark_as_revoked(job.id, error.message, request=request)
    else:
        failed = JobFailed(error.message, error.type, job.state, job.attempts)
        app.backend.mark_as_failure(job.id, failed, request=request)


def tell_first_request(app: Celery, first: JobRecord, queue: str | None) -> None:
    """Publish the first job with an id again, after another request with the same id, where Redis has lost it.

    The digest of the first request replaces the one that the client of the other request has recorded, and the end of
    the first job is stored again. So that client learns that the id is taken. `queue`: the one that delivered the other
    request. Raise one of BROKER_ERRORS: not all of this is done.
    """
    ended = JobState(first.state).terminal
    if not is_batch_job(first.id, first.parent):  # no client has the id of one
        RequestDigests(app).replace(first)
        if ended:
            publish_end(app, first)
    if ended:  # an open job leaves the outbox with its own end
        Outbox(app).taken(first.id, queue)


class _AtomicStore:
    """Stores states with their fencing tokens; mixed into both of Celery's classes for Redis."""

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        is_query = QUERY_ID.fullmatch(task_id) is not None
        if _gives_way(state, result) and getattr(request, _FENCE, None) is None and not is_query:
            self._record_later(task_id, state, result, request)
        else:
            self._store_state(task_id, result, state, traceback, request)
        return result

    def _store_state(self, job_id: str, result: Any, state: str, traceback: Any = None, request: Any = None) -> None:
        backend: Any = self
        fence = getattr(request, _FENCE, None) or 0
        if state == SUCCESS:
            result = getattr(request, _RESULT, None) or result
        meta = _meta_of(job_id, result, state, traceback, request)
        queue, in_one = meta.get("queue"), self.has_outbox
        if fence:
            meta["fence"] = fence
        if digest := getattr(request, _DIGEST, None):
            meta["request_sha256"] = digest
        outbox: Sequence[str] = keys_of_taken(queue) if fence and in_one else ()
        kept = backend.encode(meta)
        if len(kept) > MAX_RESULT:
            kept = backend.encode(meta | {"result": None, "traceback": None})
        seconds = backend.failure_expires if state == FAILURE else backend.expires
        if QUERY_ID.fullmatch(job_id):
            seconds = ANSWER_KEPT
        yields = _gives_way(state, result)
        args = [kept, int(seconds or 0), int(state in READY_STATES), int(yields), fence, job_id]
        self._store(keys=[backend.get_key_for_task(job_id), *outbox], args=args)
        if fence and not in_one:
            Outbox(backend.app).taken(job_id, queue)

    def _record_later(self, job_id: str, state: str, result: Any, request: Any) -> None:
        """Start a task that records a rejected message, unless it finds another message of the job with this id."""
        task = getattr(request, "task", None)
        if BATCH_JOB_ID.fullmatch(job_id):  # the batch knows its jobs
            return
        if state == REVOKED and str(task).startswith("sweep."):  # it expired, and the next one is sent on schedule
            return
        said = result["exc_message"]
        error, message = (
            ("Expired", "it expired before a worker started it") if state == REVOKED else (said[1], said[0])
        )
        try:
            send_record(self.app, job_id, task, error=str(error), message=str(message))  # type: ignore[attr-defined]
        except BROKER_ERRORS as failed:
            logger.warning("job %s: a rejected message is not recorded: %s", job_id, type(failed).__name__)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Return whether to wait and store again: also while the backend is full."""
        safe: bool = super().exception_safe_to_retry(exc)  # type: ignore[misc]
        return safe or is_write_refused(exc)

    def state_of(self, job_id: str, watched: Sequence[str]) -> Seen:
        """Read the data of a job in one round trip; only for a backend that `has_outbox`."""
        keys = [MESSAGES, CANCEL_KEY.format(job=job_id), *watched]
        message, cancelled, found = self._state(keys=keys, args=[job_id])
        return Seen(message, bool(cancelled), int(found))

    @cached_property
    def has_outbox(self) -> bool:
        """Return whether the broker and the results are one Redis, so that one round trip reaches both."""
        conf = self.app.conf  # type: ignore[attr-defined]
        return bool(conf.broker_url == conf.result_backend)

    @cached_property
    def _state(self) -> Any:
        return self.client.register_script(_STATE)  # type: ignore[attr-defined]

    @cached_property
    def _store(self) -> Any:
        return self.client.register_script(_STORE)  # type: ignore[attr-defined]


def _gives_way(state: str, result: Any) -> bool:
    """Return whether an end is only that of a message with the job's id that was not accepted, and not of the job."""
    arguments = result.get("exc_message") if isinstance(result, dict) else None
    if not isinstance(arguments, list | tuple):
        return False
    if state == REVOKED:
        return bool(arguments) and arguments[0] in _BY_CELERY
    return result.get("exc_type") == JobFailed.__name__ and JobState.REFUSED in arguments[2:3]


def _meta_of(job_id: str, result: Any, state: str, traceback: Any, request: Any) -> dict[str, Any]:
    """Return the document to store for a state: with bounded texts, and without arguments, which may hold secrets."""
    if isinstance(result, dict) and "exc_message" in result:
        said = result["exc_message"]
        said = (
            [bounded(part, _MESSAGE) if isinstance(part, str) else part for part in said]
            if isinstance(said, list | tuple)
            else bounded(said, _MESSAGE)
        )
        result = result | {"exc_message": said}
    meta: dict[str, Any] = {
        "status": state,
        "result": result,
        "traceback": traceback[-_TRACEBACK:] if isinstance(traceback, str) else traceback,
        "children": [],
        "date_done": clock.now().isoformat() if state in READY_STATES else None,
        "task_id": job_id,
    }
    if request is not None:
        meta |= {
            "name": getattr(request, "task", None),
            "worker": getattr(request, "hostname", None),
            "retries": getattr(request, "retries", None),
            "queue": (getattr(request, "delivery_info", None) or {}).get("routing_key"),
        }
        if parent := getattr(request, "parent_id", None):
            meta["parent_id"] = parent
    return meta


def stored_states(client: Any, keys: list[bytes]) -> list[str | None]:
    """Return the Celery states that are stored under these keys.

    None if there is no state, if it cannot be read, or if it is that of a rejected message with the id of the job.
    """
    found: list[str | None] = []
    for value in client.mget(keys) if keys else []:
        try:
            meta = json.loads(value or "{}")
            found.append(None if _gives_way(meta["status"], meta.get("result")) else str(meta["status"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            found.append(None)
    return found


class Redis(_AtomicStore, redis.RedisBackend):
    """Results in Redis."""


class Sentinel(_AtomicStore, redis.SentinelBackend):
    """Results in Redis behind Sentinel."""


class _RetriesOncePerMinute(logging.Filter):
    """Lets Celery's line about each retry pass once per minute, and without its traceback of 37 lines."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Failed operation"):
            return True
        if self._passed is not None and record.created - self._passed < _QUIET:
            return False
        self._passed = record.created
        error = record.exc_info[1] if record.exc_info else None
        text = bounded(error, 200) if is_write_refused(error) else type(error).__name__ if error else "it failed"
        record.msg, record.args = "states and results of jobs wait for the result backend: %s", (text,)
        record.exc_info = None
        return True


_retries = _RetriesOncePerMinute()


def use_atomic_result_backend(app: Celery) -> None:
    """Make an application use these classes for every URL of a Redis."""
    logging.getLogger("celery.backends.base").addFilter(_retries)
    redis_, sentinel = f"{__name__}:Redis", f"{__name__}:Sentinel"
    app.loader.override_backends = {"redis": redis_, "rediss": redis_, "sentinel": sentinel}
