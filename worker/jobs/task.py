"""Turn a plain function into a durable Celery task.

Every task runs the same way: the message is validated as its request, the ledger accepts and leases the job, the
function does the work, and the outcome is in the ledger before Celery learns of it.
"""

import errno
import logging
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from secrets import token_hex
from typing import Any, Generic, NoReturn, TypeVar
from uuid import NAMESPACE_OID, uuid5

import redis
from amqp import AMQPError
from celery import Celery, Task, current_app, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.time import get_exponential_backoff_interval
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from worker import clock, tracing
from worker.catalogue import (
    Busy,
    CatalogueError,
    CatalogueUnavailable,
    EndNotDurable,
    Finished,
    JobRecord,
    Leased,
    LostLease,
    OtherRequest,
    last_cause,
)
from worker.context import Context, current
from worker.intake.catalogue_of_broker import OtherCatalogue, check_owner_late
from worker.intake.message_rules import problems_of
from worker.jobs.cancel_jobs import cause, end_writes
from worker.jobs.outbox import Outbox, outgoing_of
from worker.jobs.progress import CeleryReporter
from worker.jobs.result_backend import fence_request, keep_result, tell_first_request
from worker.jobs.running_job import Cancelled, Continue, Requeue, RunningJob
from worker.limits.snooze import Paused, Snooze
from worker.log_lines import during
from worker.metric_counters import LEASE_RECOVERIES, RETRIES, SNOOZES
from worker.storage.durations_and_sizes import duration_text
from worker.storage.errors import PermanentError, StorageError, TransientError, Unavailable
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import PAGE, JobError, JobState, Message, Queue, TaskSpec, is_batch_job
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tracing import trace_headers

logger = logging.getLogger(__name__)

_MESSAGE = 2000
"""Characters of an error's message in the ledger and in the result."""
_OURS = {"worker", "tasks", "zot_artifact_client"}
_MOST_CAUSES = 16

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)
Work = Callable[[RequestT, RunningJob], ResultT]
AtEnd = Callable[[RequestT, Context, str], None]
"""Its last argument is the id of the job."""

_AT_ENDS: dict[str, tuple[type[Message], AtEnd[Any]]] = {}
"""By kind, the function that is called at a job's end, and the model of the request that it is given."""
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}
"""Errors of the operating system that are transient and not about a store."""
TRANSIENT_BROKER_ERRORS = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    OperationalError,
    AMQPError,
)
"""Transient errors of the broker and of the result backend; any other answer of Redis is a bug, with its text."""
_NO_THREAD = "can't start new thread"
"""The message of the RuntimeError that Python raises when the system allows no more threads."""
MORE_DELAY = timedelta(minutes=5)
"""How much longer than `retry.backoff_max` a store may ask a job to wait."""
_MIN_WAIT = 1.0
_MAX_WAIT = 5.0
"""Seconds after which a delivery asks again for a job that another worker has leased."""


def artifact_task(
    spec: TaskSpec[RequestT, ResultT], *, writes: bool, at_end: AtEnd[RequestT] | None = None
) -> Callable[[Work[RequestT, ResultT]], Task]:
    """Register a plain function as the task that `spec` describes.

    Celery ignores misspelt options; these are all the options that tasks have.

    Args:
        spec: the task's name, models and queue.
        writes: the job changes its artifact's copies, so that only one such job may work on the artifact at a time.
        at_end: is called once the ledger has the job's end, and again for every later delivery; not for a dead job,
            which may be redriven.
    """
    if at_end is not None:
        _AT_ENDS[spec.kind] = (spec.request, at_end)

    def register(work: Work[RequestT, ResultT]) -> Task:
        def run(task: Task, /, *args: object, **kwargs: object) -> dict[str, Any]:
            try:
                with _transient_faults_are_unavailable():
                    context = current()
                    check_owner_late(context.settings, context.catalogue.identity)
            except (CatalogueError, OtherCatalogue, Unavailable) as error:  # at the first job of a process
                # A catalogue that is newer than this worker, or damaged, says nothing about the job either.
                logger.warning("job %s waits: %s", task.request.id, error)
                raise sent_again(task, _MAX_WAIT, error, has_due=False) from error
            result = Delivery(task, spec, context, writes=writes, at_end=at_end).handle(work, args, kwargs)
            keep_result(task.request, result)
            return counted(result)

        return shared_task(
            name=spec.name,
            bind=True,
            max_retries=None,  # the ledger counts the attempts; waiting for another worker's lease is not one
            default_retry_delay=_MAX_WAIT,  # after a child was killed; our own retries name their delay
            throws=(JobFailed,),  # a failed job is not a bug of the worker, so its log gets no traceback
            resultrepr_maxsize=100,  # characters of the result in an event: see `counted`
        )(run)

    return register


def counted(result: dict[str, Any]) -> dict[str, Any]:
    """Return the number of copies of each outcome, if the result has them; Flower shows the state of a job by it.

    An event has only the first characters of a whole result, such as a page's verb and ids, and Celery takes long to
    make them.
    """
    copies, outcomes = result.get("copies"), result.get("outcomes")
    if isinstance(copies, list):
        outcomes = Counter(str(each.get("verdict") or each.get("outcome")) for each in copies)
    return {"outcomes": dict(outcomes)} if outcomes else result


def clean_up(context: Context, job: JobRecord) -> None:
    """Call the `at_end` of a job's task, for a job that ended without a delivery; raise NotCleanedUp."""
    if job.kind in _AT_ENDS:
        model, at_end = _AT_ENDS[job.kind]
        with _cleaning_up(job.id):
            at_end(model.read(job.request), context, job.id)


@contextmanager
def _cleaning_up(job: str) -> Iterator[None]:
    """Clean up after a job whose end is recorded: an error of the cleanup does not fail it. Raise NotCleanedUp."""
    try:
        yield
    except CatalogueUnavailable as error:
        raise NotCleanedUp(f"it has ended, and is not cleaned up yet: {bounded(error, _MESSAGE)}") from error
    except Exception:
        logger.exception("job %s: what was staged for it stays until the cleanup sweep", job)


def send_child(spec: TaskSpec[RequestT, Any], request: RequestT, *, id_: str, parent: str, queue: Queue) -> None:
    """Enqueue a job as the child of a running one; idempotent, because the ledger knows the id.

    Until a worker takes it, only the broker has it: it is for what a later run of a sweep finds and sends again.
    It stores no result in the result backend, because no client waits for it.
    """
    app: Celery = current_app
    app.send_task(
        spec.name, kwargs=request.payload(), task_id=id_, parent_id=parent, queue=queue, ignore_result=True,
        headers=trace_headers(),
    )  # fmt: skip


def child_id(name: str) -> str:
    """Return the id of a child by what it does: a job that runs again sends the same child, and no second one."""
    return str(uuid5(NAMESPACE_OID, name))


class NotCleanedUp(CatalogueUnavailable):
    """A job has ended, and its `at_end` has to be called again."""


class UnknownReceiver(PermanentError):
    """A request names a webhook that the settings of the worker do not have; the catalogue knows it by this name."""


class Delivery(Generic[RequestT, ResultT]):
    """One delivery of a job's message to this worker. There may be earlier, later and simultaneous ones."""

    _request: RequestT
    """The request in the message, once it is validated."""
    _path: str | None
    """Bucket and key, if the request is about one artifact."""

    def __init__(
        self,
        task: Task,
        spec: TaskSpec[RequestT, ResultT],
        context: Context,
        *,
        writes: bool,
        at_end: AtEnd[RequestT] | None = None,
    ) -> None:
        self._task = task
        self._spec = spec
        self._context = context
        self._writes = writes
        self._at_end = at_end
        self._id: str = task.request.id
        # Celery makes a message that is sent again, such as while the catalogue is away, the parent of itself.
        self._parent = None if task.request.parent_id == self._id else task.request.parent_id
        self._queue: str | None = (task.request.delivery_info or {}).get("routing_key")
        self._ledger = context.catalogue.ledger
        self._since = clock.now()

    def handle(
        self, work: Work[RequestT, ResultT], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> dict[str, Any]:
        """Do the job unless it is finished, leased or invalid; return its result or raise the exception for Celery."""
        try:
            with _transient_faults_are_unavailable():
                return self._lease_and_attempt(work, args, kwargs)
        except (CatalogueUnavailable, Unavailable) as error:
            # Nothing can be recorded in the ledger now. A lease of this delivery expires.
            logger.warning("job %s waits: %s", self._id, error)
            raise sent_again(self._task, self._backoff(self._task.request.retries), error, has_due=False) from error
        except LostLease as error:  # also where the end of an attempt was to be recorded
            self._leave(error)
        except OtherRequest as error:
            logger.error("job %s: rejected: %s", self._id, error)  # noqa: TRY400 - its line names the cause
            try:
                if error.first is not None:
                    tell_first_request(self._task.app, error.first, self._queue)
            except BROKER_ERRORS as failed:
                logger.warning("job %s: its client is not told yet: %s", self._id, type(failed).__name__)
                delay = self._backoff(self._task.request.retries)
                raise sent_again(self._task, delay, failed, has_due=False) from failed
            raise Ignore from error  # keeps the result of the first request

    def _leave(self, error: LostLease) -> NoReturn:
        """End this delivery: another worker has the job, or the catalogue has lost it.

        That is so where a standby that was behind has taken over, or an old backup was restored. Then the job is
        sent again, because nothing else has it. After `jobs.keep` it may have ended elsewhere long ago, and is left:
        a delete that is done again would delete what was uploaded since.
        """
        keep = self._context.settings.jobs.keep
        try:
            is_left = self._ledger.get(self._id) is not None or (keep is not None and clock.now() - self._since >= keep)
        except CatalogueUnavailable as away:
            logger.warning("job %s waits: %s", self._id, away)
        else:
            if is_left:
                logger.warning("%s; this worker stops working on it", error)
                raise Ignore from error
            logger.warning("job %s: the catalogue has no record of it any more; it is sent again", self._id)
        raise sent_again(self._task, self._backoff(self._task.request.retries), error, has_due=False) from error

    def _lease_and_attempt(
        self, work: Work[RequestT, ResultT], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> dict[str, Any]:
        """Take the lease of a valid job and attempt it; wait where it is busy, and answer where it has ended."""
        request = self._request = self._validate(args, kwargs)
        bucket, key = getattr(request, "bucket", None), getattr(request, "key", None)
        path = self._path = f"{bucket}/{key}" if bucket and key else None
        cancelled = self._was_cancelled(kwargs)
        found = self._ledger.acquire(
            self._id,
            self._spec.kind,
            request.payload(),
            owner=f"{socket.gethostname()}:{os.getpid()}:{token_hex(4)}",
            writes_to=path if self._writes else None,
            parent=self._parent,
            now=clock.now(),
            lease=self._context.settings.jobs.lease,
            queue=self._queue,
            max_crashes=self._context.settings.retry.max_crashes,
            planned=is_batch_job(self._id, self._parent),
        )
        if not isinstance(found, Leased):
            Outbox(self._task.app).taken(self._id, self._queue)
        match found:
            case Leased():
                self._context.pauses.leased(found.pauses)
                if found.record.crashes:
                    LEASE_RECOVERIES.add(self._spec.kind)
                fence_request(self._task.request, found.record)
                record = found.record
                about = {"job": record.id, "kind": record.kind, "artifact": path, "attempt": record.attempts}
                traceparent = self._task.request.get("traceparent")
                with during(**about), tracing.job_span(traceparent, **about):
                    return self._attempt_and_record(work, record, cancelled=cancelled)
            case Busy():
                logger.info("job %s waits: %s", self._id, found.reason)
                left = (found.until - clock.now()).total_seconds()
                raise self._again(min(max(left, _MIN_WAIT), _MAX_WAIT))
            case Finished():
                fence_request(self._task.request, found.record)
                if found.record.state != JobState.DEAD and self._at_end is not None:
                    # The worker that ended it may have been killed before its cleanup.
                    with _cleaning_up(self._id):
                        self._at_end(self._request, self._context, self._id)
                return self._answer(found.record)

    def _validate(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> RequestT:
        try:
            if args:
                self._reject(kwargs, "arguments are named, this message has positional ones")
            return self._spec.request.model_validate(kwargs)
        except ValidationError as error:
            self._reject(kwargs, problems_of(error))

    def _was_cancelled(self, kwargs: Mapping[str, object]) -> bool:
        """Return whether a client has cancelled the job; tell the circuit breakers what was read of them.

        Where broker and results are in one Redis, this is one round trip.

        Raises:
            OtherRequest: the outbox has another request under this id, whose message is not delivered yet.
        """
        backend, admission, seen = self._task.backend, self._context.admission, None
        try:
            if getattr(backend, "has_outbox", False):  # another kind of backend has none
                seen = backend.state_of(self._id, admission.breaker_keys)
            message = seen.message if seen else Outbox(self._task.app).message(self._id)
        except BROKER_ERRORS:
            return False
        if message is not None and not self._is_own(message, kwargs):
            raise OtherRequest(f"{self._id} is the id of another request, which is in the outbox")
        if seen is None:
            return CeleryReporter(self._task).cancelled()
        admission.breakers_read(seen.watched)
        return bool(seen.cancelled)

    def _is_own(self, message: bytes, kwargs: Mapping[str, object]) -> bool:
        """Return whether a message of the outbox is this job's request, or no message at all."""
        sent = outgoing_of(self._id, message)
        try:
            return sent is None or (
                sent.name == self._spec.name
                and (sent.payload == kwargs or self._spec.request.read(sent.payload) == self._request)
            )
        except ValidationError:
            return False

    def _attempt_and_record(  # noqa: C901, PLR0912 - one clause for each end of an attempt
        self, work: Work[RequestT, ResultT], record: JobRecord, *, cancelled: bool
    ) -> dict[str, Any]:
        """Attempt the job, and record its success, failure, retry, snooze, requeue or cancellation."""
        if self._task.request.ignore_result:
            Outbox(self._task.app).taken(self._id, self._queue)  # otherwise the first state that is stored removes it
        reporter = CeleryReporter(self._task)
        job = RunningJob(record, self._context, reporter, abandon=partial(self._abandon, record))
        try:
            with _transient_faults_are_unavailable(), job:
                if cancelled:
                    raise Cancelled(f"job {job.id} was cancelled")
                return self._do_and_record_success(work, job, record)
        except Cancelled as error:
            self._end(job, JobState.CANCELLED, error=cause(job.id))
            self._task.backend.mark_as_revoked(job.id, str(error), request=self._task.request)
            logger.info("%s", error)
            end_writes(self._context, record)
            raise Ignore from error
        except (LostLease, EndNotDurable, NotCleanedUp):  # nothing else may be recorded for the job
            raise
        except Continue as step:
            self._continue_later(job, step)
        except Requeue as error:
            self._snooze(job, error, record.snoozed_since, 0)
        except Paused as error:
            self._snooze(job, error, clock.now(), error.seconds)  # `jobs.max_snooze` counts from the end of the pause
        except Snooze as error:
            since = record.snoozed_since or clock.now()
            if clock.now() - since >= self._context.settings.jobs.max_snooze:
                self._fail(job, record.exhausted_state, error, last_cause(record.error))
            self._snooze(job, error, since, error.seconds)
        except (TransientError, CatalogueUnavailable, SoftTimeLimitExceeded) as error:
            if job.attempt >= self._context.settings.retry.max_attempts:
                self._fail(job, record.exhausted_state, error)
            self._retry(job, error)
        except (StorageError, CatalogueError) as error:
            self._fail(job, JobState.FAILED, error)
        except Exception as error:
            logger.exception("job %s: %s failed on a bug of the worker", self._id, self._spec.kind)
            self._fail(job, JobState.FAILED, error)

    def _check_receivers(self, record: JobRecord) -> None:
        """Raise UnknownReceiver before anything is done: otherwise the end of the job would reach no receiver.

        A job that has begun goes on to its end, also after its receiver was removed from the settings.
        """
        if record.fence > 1:
            return
        known = self._context.settings.webhooks
        for name in getattr(self._request, "notify", ()):
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise UnknownReceiver(f"notify: the settings have no webhook {name!r}; there are: {there}")
            asked = self._request
            bucket, start = getattr(asked, "bucket", None), str(getattr(asked, "key", getattr(asked, "prefix", "")))
            if not known[name].takes(bucket, start):
                where = f"{bucket}/{start}" if bucket else "a list of keys, which may be of any bucket"
                raise UnknownReceiver(f"notify: the webhook {name!r} is not for {where}: see webhooks.{name}.buckets")

    def _do_and_record_success(
        self, work: Work[RequestT, ResultT], job: RunningJob, record: JobRecord
    ) -> dict[str, Any]:
        """Do what the task does and record its success; where it fails, record the copies that it has completed."""
        began = time.monotonic()
        self._check_receivers(record)
        self._context.pauses.check_job(job.id, record.parent)
        try:
            result = work(self._request, job).model_dump(mode="json")
        except BaseException:
            job.catalogue.artifacts.finish_copies(job.finished, now=clock.now())
            job.finished.clear()
            raise
        self._end(job, JobState.SUCCEEDED, result=result)
        seconds = time.monotonic() - began
        # The end of one job among many of a batch or page is logged only if everything is logged.
        level = logging.DEBUG if record.parent is not None and record.kind != PAGE.kind else logging.INFO
        about = f"{record.kind} of {self._path}" if self._path else record.kind
        told = (record.id, about, record.attempts, seconds)
        logger.log(level, "job %s: %s succeeded at attempt %d in %.3f s", *told, extra={"seconds": round(seconds, 3)})
        return result

    def _abandon(self, record: JobRecord, stop: Exception) -> None:
        """Record why the job stops, and end this process, whose main thread waits in a call that no signal ends.

        A hung disk makes such calls. The worker starts another child, and the message is delivered again.
        """
        logger.error("job %s: its call cannot be interrupted, this process ends: %s", self._id, stop)
        ledger, fence, now = self._ledger, record.fence, clock.now()
        try:
            if isinstance(stop, Cancelled):
                ledger.finish(self._id, fence, JobState.CANCELLED, now=now, error=cause(self._id))
            elif not isinstance(stop, TransientError):
                why = _described(stop).model_dump() | _store(stop)
                ledger.snooze(self._id, fence, why, since=record.snoozed_since, due=self._due(0))
            elif record.attempts < self._context.settings.retry.max_attempts:
                ledger.retry(self._id, fence, _details(stop), due=self._due(0))
            else:
                ledger.finish(self._id, fence, record.exhausted_state, now=now, error=_details(stop))
        except (CatalogueError, LostLease) as error:
            logger.warning(
                "job %s: its end is not recorded; it runs again when its lease has expired: %s", self._id, error
            )
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    # How an attempt ends

    def _end(
        self,
        job: RunningJob,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        self._ledger.finish(job.id, job.fence, state, now=clock.now(), result=result, error=error, copies=job.finished)
        for call in job.after_end:
            call()
        if state != JobState.DEAD and self._at_end is not None:  # a dead job needs its source when it is redriven
            with _cleaning_up(self._id):
                self._at_end(self._request, self._context, self._id)

    def _retry(self, job: RunningJob, error: Exception) -> NoReturn:
        longest = (self._context.settings.retry.backoff_max + MORE_DELAY).total_seconds()  # see visibility_timeout
        asked = min(getattr(error, "retry_after", None) or 0, longest)
        delay = max(self._backoff(job.attempt - 1), asked)
        self._ledger.retry(job.id, job.fence, _details(error), due=self._due(delay))
        RETRIES.add(self._spec.kind, _described(error).type)
        told = (job.id, job.attempt, duration_text(delay), error)
        logger.warning("job %s: attempt %d failed, retry in %s: %s", *told, extra=_store(error))
        raise self._again(delay, error) from None

    def _continue_later(self, job: RunningJob, step: Continue) -> NoReturn:
        """Send the message for the next step of the job, which counts as no retry and no failed attempt.

        The result backend keeps the progress.
        """
        progress = job.progress.model_dump(mode="json") if step.seconds is not None else None
        self._ledger.continue_later(job.id, job.fence, progress=progress, due=self._due(step.seconds or 0))
        if step.seconds is not None:
            self._task.request.retries = 0
            self._again(step.seconds)
        raise Ignore from step

    def _snooze(self, job: RunningJob, error: Exception, since: datetime | None, seconds: float) -> NoReturn:
        """Give the job back for later at no cost to its attempts."""
        why = _described(error).model_dump() | _store(error)
        self._ledger.snooze(job.id, job.fence, why, since=since, due=self._due(seconds))
        SNOOZES.add(self._spec.kind)
        logger.info("job %s is snoozed for %s: %s", job.id, duration_text(seconds), error)
        raise self._again(seconds, error) from None

    def _fail(
        self, job: RunningJob, state: JobState, error: Exception, previous: Mapping[str, Any] | None = None
    ) -> NoReturn:
        described = _described(error)
        self._end(job, state, error={**_details(error), **(previous or {})})
        told = (job.id, self._spec.kind, state, job.attempt, described.message)
        logger.error("job %s: %s is %s at attempt %d: %s", *told, extra=_store(error))
        raise JobFailed(described.message, described.type, state.value, job.attempt) from None  # see `_traceback`

    def _reject(self, kwargs: Mapping[str, object], reason: str) -> NoReturn:
        error = JobError(type="InvalidMessage", message=f"{self._spec.name} does not accept this message: {reason}")
        fields = {str(name)[:64]: "…" for name in list(kwargs)[:32]}  # the values may hold secrets
        self._ledger.reject(self._id, self._spec.kind, fields, error.model_dump(), clock.now())
        logger.error("job %s: rejected: %s", self._id, error.message)
        raise JobFailed(error.message, error.type, JobState.REFUSED.value, 0)

    def _answer(self, record: JobRecord) -> dict[str, Any]:
        """Repeat the outcome of a job whose message was delivered once more."""
        logger.info("job %s has ended before: %s", record.id, record.state)
        if record.state == JobState.SUCCEEDED:
            return dict(record.result or {})
        error = JobError.recorded(record.error)
        if record.state == JobState.CANCELLED:
            self._task.backend.mark_as_revoked(record.id, error.message, request=self._task.request)
            raise Ignore
        raise JobFailed(error.message, error.type, record.state, record.attempts)

    # Celery's retry

    def _due(self, delay: float) -> datetime:
        """Return when `sweep.recover` counts the message as lost: it may have to wait for a free process first."""
        return clock.now() + timedelta(seconds=delay) + 2 * self._context.settings.jobs.lease

    def _again(self, seconds: float, error: Exception | None = None) -> Exception:
        return sent_again(self._task, seconds, error, has_due=True)

    def _backoff(self, retries: int) -> float:
        retry = self._context.settings.retry
        seconds: float = get_exponential_backoff_interval(
            factor=max(1, int(retry.backoff.total_seconds())),
            retries=retries,
            maximum=max(1, int(retry.backoff_max.total_seconds())),
            full_jitter=retry.jitter,
        )
        return seconds


def _without_traceback(record: logging.LogRecord) -> bool:
    """Keep Celery's log line about a message that is given back to the broker, without its traceback."""
    if record.exc_info and isinstance(record.exc_info[1], Reject):
        record.exc_info = None
    return True


logging.getLogger("celery.app.trace").addFilter(_without_traceback)


def sent_again(task: Task, seconds: float, error: Exception | None, *, has_due: bool) -> Exception:
    """Send the message of a job again, due in so many seconds; return the exception that ends this delivery.

    If the broker does not take it, Celery would tell clients that the job has failed. Where the ledger has a due time
    (`has_due`), `sweep.recover` sends it; elsewhere this message is not acknowledged.
    """
    try:
        retry: Exception = task.retry(exc=error, countdown=seconds, throw=False)
    except Reject as refused:
        logger.warning(
            "job %s: its message cannot be sent again now: %s", task.request.id, bounded(refused.reason, 200)
        )
        retry = Ignore() if has_due else Reject(refused.reason, requeue=True)
    return retry


@contextmanager
def _transient_faults_are_unavailable() -> Iterator[None]:
    """Raise Unavailable for a transient fault of the broker or of this machine, such as too many open files."""
    try:
        yield
    except TRANSIENT_BROKER_ERRORS as error:
        raise Unavailable(f"the broker or the result backend takes no request now: {type(error).__name__}") from error
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        raise Unavailable(f"this machine: {error.strerror}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and str(error) != _NO_THREAD:
            raise
        raise Unavailable(f"this machine: {str(error) or 'not enough memory'}") from error


def _details(error: Exception) -> dict[str, Any]:
    """Return the record of an error for the ledger, with its traceback and the store that it is about."""
    return _described(error).model_dump() | {"traceback": _traceback(error)[-8000:]} | _store(error)


def _traceback(error: BaseException) -> str:
    """Return the traceback of an error and of its causes; of those of other libraries only the class is named.

    Their texts may quote what a host, a proxy or a store has answered: bytes, or the credentials of the request.
    """
    told: list[str] = []
    each: BaseException | None = error
    while each is not None and len(told) < _MOST_CAUSES:
        frames = "".join(traceback.format_tb(each.__traceback__))
        said = f": {each}" if type(each).__module__.partition(".")[0] in _OURS else ""
        told.insert(0, f"Traceback (most recent call last):\n{frames}{type(each).__name__}{said}\n")
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\nwhich caused:\n\n".join(told)


def _store(error: Exception) -> dict[str, Any]:
    store = getattr(error, "store", None)
    return {"store": store} if store else {}


def _described(error: Exception) -> JobError:
    if isinstance(error, SoftTimeLimitExceeded):
        return JobError(type="TimeLimit", message="the attempt took longer than jobs.time_limit allows")
    if isinstance(error, StorageError | CatalogueError | Cancelled | Requeue | Snooze):
        return JobError(type=type(error).__name__, message=bounded(error, _MESSAGE))
    return JobError(type=type(error).__name__, message="a bug of the worker; its log has the traceback")
