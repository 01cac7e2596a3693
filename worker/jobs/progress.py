"""Publish the progress of a running job through Celery, and read from Redis whether it was cancelled."""

import logging
import time
from weakref import WeakKeyDictionary

import redis
from celery import Celery, Task
from celery.exceptions import BackendError

from worker.limits.shared_redis import Backoff, redis_of_celery
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import CANCEL_KEY, PROGRESS_STATE, Progress
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tls_faults import causes

logger = logging.getLogger(__name__)

_backoffs: WeakKeyDictionary[Celery, tuple[Backoff, Backoff]] = WeakKeyDictionary()
"""Of the broker and the result backend of an application, for all its jobs."""


class CeleryReporter:
    """Reports to Celery's result backend, and reads requests to cancel there.

    A server that does not answer is not asked for a while: otherwise a transfer would wait for it again and again.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._broker, self._results = _backoffs.get(task.app) or _backoffs.setdefault(task.app, (Backoff(), Backoff()))
        self._id: str = task.request.id
        self._request = task.request  # of this thread: the thread that reports has another one, without the fence

    def report(self, progress: Progress) -> None:
        """Make the progress visible through `AsyncResult`. It may be lost: the ledger has it too."""
        self._show(progress)
        if self._request.ignore_result:  # no client reads it, and a million would stay for a day
            return
        if not self._results.is_over(redis_of_celery(self._task.app)):
            return
        began = time.monotonic()
        try:
            shown = progress.model_dump(mode="json")
            self._task.backend.store_result(self._id, shown, PROGRESS_STATE, request=self._request, max_retries=0)
        except (redis.RedisError, BackendError, RuntimeError, OSError) as error:  # RuntimeError: no retry is left
            if not any(isinstance(each, redis.ResponseError) for each in causes(error)):
                self._results.begin(began)  # not for a full server, which refuses the state and knows who cancelled
            logger.warning("job %s: progress cannot be shown: %s", self._id, type(error).__name__)

    def _show(self, progress: Progress) -> None:
        """Send an event if Flower listens; events are not kept. A job that takes less than a second sends none."""
        if not self._broker.is_over():
            return
        began = time.monotonic()
        try:
            with self._task.app.events.default_dispatcher(hostname=self._request.hostname) as dispatcher:
                dispatcher.send("task-progress", uuid=self._id, retry=False, result=described(progress))
        except BROKER_ERRORS as error:
            self._broker.begin(began)
            logger.debug("job %s: Flower does not get its progress: %s", self._id, type(error).__name__)

    def cancelled(self) -> bool:
        """Return whether a client asked for the job to stop; False if the result backend cannot tell."""
        client = redis_of_celery(self._task.app)
        if client is None or not self._results.is_over(client):
            return False
        began = time.monotonic()
        try:
            return bool(client.exists(CANCEL_KEY.format(job=self._id)))
        except (redis.RedisError, OSError):  # OSError: this process has no room for one more open file
            self._results.begin(began)
            return False


def described(progress: Progress) -> str:
    """Return the progress in a few words, such as `45 % of 3072 MiB, writing dr`."""
    done, total = progress.bytes_done >> 20, (progress.bytes_total or 0) >> 20
    share = f"{100 * progress.bytes_done // progress.bytes_total} % of {total} MiB" if progress.bytes_total else None
    return bounded(", ".join(filter(None, (share or f"{done} MiB", progress.step))), 200)
