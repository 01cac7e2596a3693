"""Publish the progress of a running job through Celery, and read from Redis whether it was cancelled."""

import logging

import redis
from celery import Task
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError

from zot_artifact_client.contract import CANCEL_KEY, PROGRESS_STATE, Progress
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)


class CeleryReporter:
    """Reports to Celery's result backend, and reads requests to cancel there."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._id: str = task.request.id
        self._request = task.request  # of this thread: the thread that reports has another one, without the fence

    def report(self, progress: Progress) -> None:
        """Make the progress visible through `AsyncResult`. It may be lost: the ledger has it too."""
        self._show(progress)
        if self._request.ignore_result:  # no client reads it, and a million would stay for a day
            return
        try:
            shown = progress.model_dump(mode="json")
            self._task.backend.store_result(self._id, shown, PROGRESS_STATE, request=self._request, max_retries=0)
        except (redis.RedisError, BackendError, RuntimeError) as error:  # RuntimeError: Celery's retries are used up
            logger.warning("job %s: progress cannot be shown: %s", self._id, type(error).__name__)

    def _show(self, progress: Progress) -> None:
        """Tell Flower, if it listens: nothing keeps an event. A job that takes less than a second sends none."""
        try:
            with self._task.app.events.default_dispatcher(hostname=self._request.hostname) as dispatcher:
                dispatcher.send("task-progress", uuid=self._id, retry=False, result=described(progress))
        except (redis.RedisError, OperationalError, OSError) as error:
            logger.debug("job %s: Flower does not get its progress: %s", self._id, type(error).__name__)

    def cancelled(self) -> bool:
        """Return whether a client asked for the job to stop; False if the result backend cannot tell."""
        client = getattr(self._task.backend, "client", None)
        if not isinstance(client, redis.Redis):  # the backend cache+memory:// has a `client` too
            return False
        try:
            return bool(client.exists(CANCEL_KEY.format(job=self._id)))
        except redis.RedisError:
            return False


def described(progress: Progress) -> str:
    """Return the progress in a few words, such as `45 % of 3072 MiB, writing dr`."""
    done, total = progress.bytes_done >> 20, (progress.bytes_total or 0) >> 20
    share = f"{100 * progress.bytes_done // progress.bytes_total} % of {total} MiB" if progress.bytes_total else None
    return bounded(", ".join(filter(None, (share or f"{done} MiB", progress.step))), 200)
