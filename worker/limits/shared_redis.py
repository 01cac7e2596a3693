"""Use the Redis that all workers share, or the state of this process while Redis does not answer."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from celery import Celery, current_app
from celery.app.backends import by_url
from redis.backoff import NoBackoff
from redis.retry import Retry

from zot_artifact_client.broker_urls import parse_result_url

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

PREFIX = "zot-artifacts"
"""The prefix of every key of the worker."""
_NOT_ASKED_FOR = 5.0
"""Seconds for which a Redis that did not answer is not asked again: each request to a silent one takes its whole time
limit.
"""


def result_backend(app: Celery = current_app) -> "redis.Redis | None":
    """Return the Redis of Celery's result backend, which a worker has whatever its broker is; None if it has none.

    Its connections are separate from Celery's, because its time limits and retries are shorter.
    """
    if not app.conf.result_backend:
        return None
    backend, url = by_url(app.conf.result_backend, app.loader)
    client = getattr(backend(app=app, url=url), "client", None)
    if not isinstance(client, redis.Redis):
        return None
    client.set_retry(
        Retry(NoBackoff(), 1)
    )  # redis' own retries take seconds, in which a transfer would make no progress
    return client


def redis_of_results(url: str) -> "redis.Redis | None":
    """Return the Redis of a result backend by its URL in the settings, or None as `result_backend`.

    It is for programs without the worker's application. Celery itself accepts no `rediss://` without `ssl_cert_reqs`,
    and no `sentinel://`.
    """
    server = parse_result_url(url, "results")
    with Celery("zot-artifacts-results", backend=server.text, set_as_current=False) as app:
        app.conf.result_backend_transport_options = server.transport_options
        return result_backend(app)


class SharedRedis:
    """The state that all workers share. It logs once when Redis does not answer, and once when it does again.

    Safe for threads.
    """

    def __init__(self, find: Callable[[], "redis.Redis | None"] = result_backend) -> None:
        self._find = find
        self._client: redis.Redis | None = None
        self._found = False
        self._away = False
        self._not_before = 0.0

    def ask(self, question: Callable[["redis.Redis"], AnswerT], locally: Callable[[], AnswerT]) -> AnswerT:
        """Return the answer of Redis, or of `locally` while Redis does not answer."""
        if not self._found:  # once, in the first thread that asks, because Celery makes another backend for each thread
            self._client, self._found = self._find(), True
            if self._client is None:
                logger.warning(
                    "no Redis is shared with the other workers: this process has its own limits and breakers"
                )
        if self._client is None or time.monotonic() < self._not_before:
            return locally()
        try:
            answer = question(self._client)
        except (redis.RedisError, OSError, ValueError, TypeError) as error:  # a value of another program is no answer
            self._not_before = time.monotonic() + _NOT_ASKED_FOR
            if not self._away:
                self._away = True
                logger.warning(
                    "limits and breakers cannot be shared, each process keeps to its own share: Redis: %s",
                    type(error).__name__,
                )
            return locally()
        if self._away:
            self._away = False
            logger.warning("limits and breakers are shared with all workers again")
        return answer
