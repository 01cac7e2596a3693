"""Apply pauses of queues, and `revoke` of Flower and `celery control`, in a worker's main process."""

import logging
import subprocess
import sys
from typing import Any

import redis
from celery.utils.functional import maybe_list
from celery.worker import control, state

from worker.intake.timer_bootstep import TimerStep
from worker.jobs.cancel_jobs import call_recovery, request_cancel
from worker.limits.check_pauses import paused_queues
from worker.limits.shared_redis import SharedRedis, result_backend
from zot_artifact_client.cancellation import CANCEL_REQUESTS
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import JOB_ID
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

_CHECK_EVERY = 2.0
"""Seconds between two reads of the paused queues."""
_NO_REQUESTS = repr([0, []])
_COMPARING, _COMPARED = "zot-artifacts:cancelling:comparing", "zot-artifacts:cancelling:compared"
"""The Redis key that exists for some seconds after a worker has compared, and the key with the result."""
_COMPARE_SECONDS = 3
"""Least seconds between two processes that are started for new requests, in all workers."""
_CANCEL = (sys.executable, "-m", "worker.cancel_waiting_jobs")
_started: list["subprocess.Popen[bytes]"] = []


class PausedQueues(TimerStep):
    """Makes a worker stop and resume to consume from paused queues.

    While Redis does not answer, or has lost the pauses, nothing changes.
    """

    every = _CHECK_EVERY

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._held: set[str] = set()
        self._shared = SharedRedis(lambda: result_backend(consumer.app))

    def start(self, consumer: Any) -> None:
        """Apply the pauses at once, before the first message, and every few seconds."""
        self.tick(consumer)
        super().start(consumer)

    def tick(self, consumer: Any) -> None:
        """Apply the pauses."""
        paused = self._shared.ask(paused_queues, lambda: None)
        if paused is None:
            return
        served = set(consumer.app.amqp.queues.consume_from)
        for queue in paused & served:
            logger.warning("queue %s is paused: this worker stops consuming from it", queue)
            consumer.cancel_task_queue(queue)
            self._held.add(queue)
        for queue in tuple(self._held - paused):
            logger.warning("queue %s is resumed: this worker consumes from it again", queue)
            consumer.add_task_queue(queue)
            self._held.discard(queue)


class CancelRequests(TimerStep):
    """Cancels waiting jobs whose clients requested it in Redis and sent no command: an ACL may forbid commands.

    The newest request and their number are compared every few seconds, which costs the same however many there are.
    One worker of all of them starts the process.
    """

    every = _CHECK_EVERY

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._shared = SharedRedis(lambda: result_backend(consumer.app))
        self._seen = _NO_REQUESTS

    def tick(self, consumer: Any) -> None:
        """Compare them."""
        self._shared.ask(lambda client: self._compare_in(client, consumer.app), lambda: None)

    def _compare_in(self, client: "redis.Redis", app: Any) -> None:
        found = _newest_requests(client)
        if found == self._seen or not client.set(_COMPARING, 1, ex=_COMPARE_SECONDS, nx=True):
            return
        self._seen = found
        if client.set(_COMPARED, found, get=True) != found.encode() and found != _NO_REQUESTS:
            call_recovery(app, client, _cancel_waiting)


def _newest_requests(client: "redis.Redis") -> str:
    """Return the number of requests to cancel and the newest one, as text."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.zcard(CANCEL_REQUESTS)
        pipeline.zrevrange(CANCEL_REQUESTS, 0, 0, withscores=True)
        return repr(pipeline.execute())


@control.Panel.register(type="control", name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(worker: Any, task_id: Any, terminate: bool = False, **_: Any) -> dict[str, str]:  # noqa: FBT001, FBT002
    """Cancel jobs: waiting ones now, running ones at their next chunk. No process is killed.

    The waiting ones are cancelled in the catalogue by a process of its own: all children may be busy, and this process
    must not open the catalogue, because it forks.

    This replaces Celery's command, which drops a waiting job without a record, forgets the request when the worker is
    restarted, and, with `terminate`, kills a process in the middle of a write.
    """
    ids = [id_ for id_ in maybe_list(task_id) or [] if isinstance(id_, str) and JOB_ID.fullmatch(id_)]
    try:
        if not request_cancel(worker.app, ids, _cancel_waiting):
            state.revoked.update(ids)  # no Redis keeps the results, so only this worker has the request
    except BROKER_ERRORS as error:
        return {"error": f"the jobs cannot be cancelled for now: {type(error).__name__}"}
    told = bounded(", ".join(ids))
    logger.info("requested to cancel %s%s", told, ", at their next chunk: no process is killed" * terminate)
    return {"ok": f"requested to cancel {told}"}


@control.Panel.register(type="control", name="terminate", variadic="task_id", signature="<signal> [id1 [... [idN]]]")
def terminate(worker: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:  # noqa: ARG001 - Celery's signature
    """Cancel jobs, like `revoke`; no signal is sent."""
    answer: dict[str, str] = revoke(worker, task_id, terminate=True)
    return answer


def _cancel_waiting() -> bool:
    """Start a process that cancels the waiting jobs, and return whether it was started."""
    _started[:] = [process for process in _started if process.poll() is None]  # else they stay as zombies
    try:
        _started.append(subprocess.Popen(_CANCEL, stdin=subprocess.DEVNULL))
    except OSError as error:
        logger.warning("waiting jobs are cancelled by the next recovery: %s", error)
        return False
    return True
