"""Use the Redis that all workers share, or the state of this process while Redis does not answer."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from celery import Celery, current_app
from celery.app.backends import by_url
from redis.backoff import NoBackoff
from redis.retry import Retry

from zot_artifact_client.broker_urls import parse_result_url
from zot_artifact_client.connection import CONNECT_TIMEOUT, SOCKET_TIMEOUT

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

PREFIX = "zot-artifacts"
"""The prefix of every key of the worker."""
_NOT_ASKED_FOR = 5.0
"""Seconds for which a server that did not answer is not asked again."""
_TIMES_AS_LONG = 8
"""It is not asked for so many times as long as it was silent, if that is longer."""
_PING_WITHIN = 0.5
"""Seconds that each answer to a ping of a silent server may take."""
_TIME_LIMITS = {"socket_timeout": SOCKET_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}


def redis_of_celery(app: Celery) -> Any:
    """Return the client with which Celery itself stores results, None if its result backend is no Redis."""
    client = getattr(app.backend, "client", None)
    return client if isinstance(client, redis.Redis) else None  # memcached has a `client` too


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
    # While it waits, a transfer makes no progress, and a worker takes no jobs. A silent Redis is not asked twice.
    client.set_retry(Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)))
    options = client.connection_pool.connection_kwargs
    options.update({name: seconds for name, seconds in _TIME_LIMITS.items() if name in options})
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


class Backoff:
    """When a server that did not answer is asked again: a silent one takes the whole time limit of each request.

    Every few seconds it is pinged, with a short time limit: requests to cancel and pauses count again soon after it
    answers. Safe for threads.
    """

    def __init__(self) -> None:
        self._until = self._next_ping = float("-inf")

    def is_over(self, client: "redis.Redis | None" = None) -> bool:
        """Return whether the server is to be asked; a Redis is pinged by its `client`."""
        now = time.monotonic()
        if now >= self._until:
            return True
        if client is None or now < self._next_ping:
            return False
        self._next_ping = now + _NOT_ASKED_FOR  # first: no other thread waits for the same
        if not _answers_ping(client):
            self._next_ping = time.monotonic() + _NOT_ASKED_FOR
            return False
        self._until = float("-inf")
        return True

    def begin(self, asked_at: float) -> None:
        """Ask a server later that was asked at this time of `time.monotonic`, and has not answered."""
        now = time.monotonic()
        self._next_ping = now + _NOT_ASKED_FOR
        self._until = now + max(_NOT_ASKED_FOR, _TIMES_AS_LONG * (now - asked_at))


def _answers_ping(client: "redis.Redis") -> bool:
    """Return whether a Redis answers at once, on a connection of its own: those of the pool may be broken."""
    pool = client.connection_pool
    options = {**pool.connection_kwargs, "socket_timeout": _PING_WITHIN, "retry": Retry(NoBackoff(), 0)}
    if "path" not in options:  # a socket of the system is there or not
        options["socket_connect_timeout"] = _PING_WITHIN
    connection = None
    try:
        connection = pool.connection_class(**options)
        connection.connect()
        connection.send_command("PING")
        connection.read_response()
    except (redis.RedisError, OSError, ValueError, TypeError):
        return False
    finally:
        if connection is not None:
            connection.disconnect()
    return True


class SharedRedis:
    """The state that all workers share. It logs once when Redis does not answer, and once when it does again.

    Safe for threads.
    """

    def __init__(self, find: "Callable[[], redis.Redis | None] | None" = result_backend) -> None:
        """Ask the Redis that `find` returns; `find` is None for a program without other workers."""
        self._find = find
        self._client: redis.Redis | None = None
        self._away = False
        self._backoff = Backoff()

    def ask(
        self, question: Callable[["redis.Redis"], AnswerT], locally: Callable[[], AnswerT], *, at_once: bool = False
    ) -> AnswerT:
        """Return the answer of Redis, or of `locally` while Redis does not answer.

        With `at_once`, a Redis that has just not answered is asked all the same, by a thread that may wait.
        """
        if find := self._find:  # once, in the first thread that asks: Celery makes another backend for each thread
            self._client = find()
            self._find = None
            if self._client is None:
                logger.warning(
                    "no Redis is shared with the other workers: this process has its own limits and breakers"
                )
        if self._client is None or not (at_once or self._backoff.is_over(self._client)):
            return locally()
        began = time.monotonic()
        try:
            answer = question(self._client)
        except (redis.RedisError, OSError, ValueError, TypeError) as error:  # a value of another program is no answer
            self._backoff.begin(began)
            if not self._away:
                self._away = True
                logger.warning(
                    "limits and breakers cannot be shared, each process keeps to its own share: Redis: %s",
                    type(error).__name__,
                )
            return locally()
        if self._away:
            self._away, self._backoff = False, Backoff()
            logger.warning("limits and breakers are shared with all workers again")
        return answer
