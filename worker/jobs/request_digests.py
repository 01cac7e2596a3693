"""The digests of requests in the Redis where clients compare them: the broker, or else the result backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from worker.catalogue import JobRecord
from worker.jobs.outbox import redis_of_broker
from worker.limits.shared_redis import redis_of_celery
from zot_artifact_client.idempotency_conflicts import free_id, replace_digest


class RequestDigests:
    """The digests that clients of this application's broker compare; there are none without a Redis."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def replace(self, job: JobRecord) -> None:
        """Record the digest of the job's request under its id, in place of any other one."""
        with self._redis() as client:
            if client is not None and job.request_sha256 is not None:
                replace_digest(client, job.id, job.request_sha256)

    def free(self, job_id: str) -> None:
        """Remove the digest under an id: its message was rejected, and nothing was done."""
        with self._redis() as client:
            if client is not None:
                free_id(client, job_id)

    @contextmanager
    def _redis(self) -> Iterator[Any]:
        with redis_of_broker(self._app) as broker:
            yield broker or redis_of_celery(self._app)
