"""What a worker's main process does on a request from outside: Flower, `celery control`, a pause."""

import logging
from typing import Any

import redis
from celery import bootsteps
from celery.utils.functional import maybe_list
from celery.worker import control, state
from kombu.exceptions import OperationalError

from worker.jobs.cancellation import request_cancel
from worker.limits.pauses import paused_queues
from worker.limits.shared_redis import SharedRedis, result_backend
from zot_artifact_client.contract import JOB_ID

logger = logging.getLogger(__name__)

_LOOK_EVERY = 2.0
"""Seconds between two reads of which queues are paused."""
_BEFORE = {"PENDING", "RECEIVED", "RETRY"}
"""The states, in the result backend, of a job that waits."""


class Control(bootsteps.StartStopStep):
    """Keeps a worker from the queues that are paused, also one that has just been started, and lets it back to them.

    While Redis cannot tell which are paused, it stays as it is.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._held: set[str] = set()
        self._shared = SharedRedis(lambda: result_backend(consumer.app))
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Read the pauses at once, before the first message, and every few seconds from then on."""
        self._align(consumer)
        self._timer = consumer.timer.call_repeatedly(_LOOK_EVERY, self._align, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _align(self, consumer: Any) -> None:
        paused = self._shared.ask(paused_queues, lambda: None)
        if paused is None:
            return
        served = set(consumer.app.amqp.queues.consume_from)
        for queue in paused & served:
            logger.warning("queue %s is paused: this worker serves it no more", queue)
            consumer.cancel_task_queue(queue)
            self._held.add(queue)
        for queue in tuple(self._held - paused):
            logger.warning("queue %s is served again", queue)
            consumer.add_task_queue(queue)
            self._held.discard(queue)


@control.Panel.register(type="control", name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(worker: Any, task_id: Any, terminate: bool = False, **_: Any) -> dict[str, str]:  # noqa: FBT001, FBT002
    """End jobs: those that wait now, those that run at their next piece. No process is ever killed for it.

    In place of Celery's, which drops a waiting job without a record of it, forgets about it when the worker is
    restarted, and, with `terminate`, kills a process in the middle of a write.
    """
    ids = [id_ for id_ in maybe_list(task_id) or [] if isinstance(id_, str) and JOB_ID.fullmatch(id_)]
    try:
        if not request_cancel(worker.app, ids):
            state.revoked.update(ids)  # no Redis keeps the results: all that can be done
    except (redis.RedisError, OperationalError, OSError) as error:
        return {"error": f"the jobs cannot be cancelled for now: {type(error).__name__}"}
    for id_ in ids:
        _show(worker.app, id_)
    logger.info("asked to end %s%s", ", ".join(ids), ", at their next piece: no process is killed" * terminate)
    return {"ok": f"asked to end {', '.join(ids)}"}


@control.Panel.register(type="control", name="terminate", variadic="task_id", signature="<signal> [id1 [... [idN]]]")
def terminate(worker: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:  # noqa: ARG001 - Celery's signature
    """End jobs, like `revoke`; no signal is sent."""
    answer: dict[str, str] = revoke(worker, task_id, terminate=True)
    return answer


def _show(app: Any, id_: str) -> None:
    """Tell the client of a waiting job, as Celery does; the ledger follows within moments."""
    try:
        if app.backend.get_state(id_) in _BEFORE:
            app.backend.mark_as_revoked(id_, f"job {id_} was cancelled")
    except (redis.RedisError, RuntimeError) as error:
        logger.warning("job %s: that it was cancelled cannot be shown: %s", id_, type(error).__name__)
