"""Reach the broker and the result backend within a few seconds, or say which one is out of reach."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.exceptions import BackendError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from zot_artifact_client.errors import BrokerUnavailable

CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 4.0
RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5}
"""One more try, after 0.1 s. Sending twice is harmless: the worker knows a job by its id."""

_UNREACHABLE = (OSError, RuntimeError, RedisError, KombuError, BackendError)
# RuntimeError is how Celery's result consumer says that it gave up to reconnect.


def celery_app(backend: str, **settings: Any) -> Celery:
    """Return a Celery application that leaves the service's own one, and its environment, out of it.

    `backend` goes in as `backend_cls`, because CELERY_RESULT_BACKEND, where a service has it set for itself, wins over
    every other way.
    """
    app = Celery("zot-artifact-client", set_as_current=False)
    app.backend_cls = backend
    app.conf.update(accept_content=["json"], task_serializer="json", result_serializer="json", **settings)
    return app


def is_redis(url: str) -> bool:
    """Return whether a URL is of Redis or Valkey, in any of the ways Celery knows."""
    return url.startswith(("redis:", "rediss:", "redis+", "sentinel:"))


def is_rabbitmq(url: str) -> bool:
    """Return whether a URL is of RabbitMQ, or of another broker that speaks its AMQP 0-9-1."""
    return url.startswith(("amqp:", "amqps:", "pyamqp:"))


def without_credentials(url: str) -> str:
    """Return a broker URL, or several with `;` between, without user, password and parameters."""
    return ";".join(_bare(one) for one in re.split(r";(?=[a-z+]+://)", url))


def _bare(url: str) -> str:
    # By hand, and from the right: a password with an unescaped / or # in it would end up in urlsplit's path.
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


@contextmanager
def broker_errors(what: str, url: str) -> Iterator[None]:
    """Turn every way a connection fails into BrokerUnavailable, naming the place without its credentials."""
    try:
        yield
    except _UNREACHABLE as error:
        silent = isinstance(error, RuntimeError) or not str(error)
        reason = error.__cause__ if silent and error.__cause__ else error
        line = next(iter(str(reason).strip().splitlines()), type(reason).__name__)
        msg = f"{what} {without_credentials(url)} cannot be reached: {line}"
        raise BrokerUnavailable(msg) from error
