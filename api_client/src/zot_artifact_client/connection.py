"""Reach the broker and the result backend within a few seconds, or raise an error that names the one that failed."""

import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from amqp.exceptions import AccessRefused, AMQPError, NotAllowed
from celery import Celery
from celery.exceptions import BackendError
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from zot_artifact_client.broker_urls import RABBITMQ_SCHEMES, REDIS_SCHEMES, parse_result_url, parse_url
from zot_artifact_client.errors import BrokerUnavailable
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tls_faults import causes, tls_fault

MadeT = TypeVar("MadeT")

CONNECT_TIMEOUT = 2.0
SOCKET_TIMEOUT = 4.0
RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5}
"""One more try, after 0.1 s. Sending is idempotent: the worker knows a job by its id."""

UNREACHABLE = (OSError, RuntimeError, RedisError, KombuError, AMQPError, BackendError)
# RuntimeError is how Celery's result consumer says that it gave up to reconnect.
BROKER_ERRORS = (RedisError, OperationalError, AMQPError, OSError)
"""What a worker gets from a broker that does not answer, or that refuses it.

Kombu passes on the errors of RabbitMQ that a second try does not cure, such as a refused password, as amqp has them.
"""
_REFUSED = (NoPermissionError, AuthenticationError, AccessRefused, NotAllowed)
_WITH_TLS = {"redis": "rediss", "amqp": "amqps", "pyamqp": "amqps"}
_CLOSED = ("connection closed by server", "server unexpectedly closed connection")
"""How redis-py and amqp say that a server closed the connection: one that expects TLS does so if it gets none."""
_NO_LOGIN = "ACCESS_REFUSED - Login was refused"
"""How RabbitMQ says that it does not know a user with this password."""
_FULL = re.compile(r"(?:^|caused error: |: -)(OOM|MISCONF|NOREPLICAS|READONLY)\b")
"""What a Redis answers that takes no writes for now.

redis-py puts the command before it in a pipeline, and a Redis before 7 the place in a script.
"""
_PASSING = {
    BusyLoadingError: "it reads its data after its start: try again when it has",
    MasterDownError: "it is a replica that has lost its primary: try again when that is back, or correct its URL",
    ReadOnlyError: "it is a replica, which takes no writes: try again after the failover, or name the primary",
}
"""What is wrong with a Redis that answers and does not serve, and the way out."""
_CROWDED = "max number of clients reached"
"""What a Redis answers to one connection more than it takes, for which redis-py has no class."""


def celery_app(backend: str, **settings: Any) -> Celery:
    """Return a Celery application that is independent of the service's own one and of its environment.

    `backend` is the URL of the result backend, or `disabled`. It becomes `backend_cls`, because CELERY_RESULT_BACKEND
    in the environment of the service wins over every other way.

    Raises:
        InvalidUrl: the URL cannot be used.
    """
    app = Celery("zot-artifact-client", set_as_current=False)
    if "://" in backend:
        server = parse_result_url(backend)
        backend = server.text
        options = {**server.transport_options, **settings.get("result_backend_transport_options", {})}
        settings["result_backend_transport_options"] = options
    app.backend_cls = backend  # pyright: ignore[reportAttributeAccessIssue] - its initial value is None
    app.conf.update(accept_content=["json"], task_serializer="json", result_serializer="json", **settings)
    return app


def is_redis(url: str) -> bool:
    """Return whether a URL is that of a Redis or Valkey."""
    return url.partition("://")[0].lower() in REDIS_SCHEMES


def is_rabbitmq(url: str) -> bool:
    """Return whether a URL is that of RabbitMQ, or of another broker that speaks AMQP 0-9-1."""
    return url.partition("://")[0].lower() in RABBITMQ_SCHEMES


def without_credentials(url: str) -> str:
    """Return a broker URL, or several with `;` between, without user, password and parameters."""
    return ";".join(_bare(one) for one in re.split(r";(?=[a-z+]+://)", url))


def _bare(url: str) -> str:
    # By hand, and from the right: a password with an unescaped / or # in it would end up in urlsplit's path.
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


@contextmanager
def broker_errors(what: str, url: str) -> Iterator[None]:
    """Turn every way a connection fails into BrokerUnavailable, naming the server without its credentials."""
    try:
        yield
    except UNREACHABLE as error:
        raise unavailable(error, what, url) from error


def unavailable(error: BaseException, what: str, url: str) -> BrokerUnavailable:
    """Return the error that names a server without its credentials, and what is wrong; it may ask the server."""
    return BrokerUnavailable(f"{what} {without_credentials(url)} {what_it_does(error, url)}")


def what_it_does(error: BaseException, url: str) -> str:
    """Return what a server does in place of serving, and why, for behind its name; it may ask the server."""
    found = list(causes(error))
    if takes_no_writes(error):
        does = "takes no writes now"
    elif any(isinstance(each, _REFUSED) for each in found):
        does = "refuses this"
    elif passing_fault(error) or any(isinstance(each, ResponseError) for each in found):
        does = "does not serve this now"
    else:
        does = "cannot be reached"
    return f"{does}: {passing_fault(error) or broker_fault(error, url) or first_line(error)}"


def passing_fault(error: BaseException) -> str | None:
    """Return why a Redis that answers does not serve for now, and the way out; None if it is something else."""
    found = list(causes(error))
    if any(_CROWDED in str(each) for each in found):
        return "it has as many connections as it takes: try again when some have ended, or raise its maxclients"
    return next((told for kind, told in _PASSING.items() if any(isinstance(each, kind) for each in found)), None)


def first_line(error: BaseException) -> str:
    """Return what a library says of a server, in one bounded line, without the command of a pipeline and its body."""
    silent = isinstance(error, RuntimeError) or not str(error)
    reason = error.__cause__ if silent and error.__cause__ else error
    said = str(reason).rpartition("caused error: ")[2]
    line = next(iter(said.strip().splitlines()), type(reason).__name__)
    return bounded(line.partition(" : <redis.")[0].rstrip("."))  # a Sentinel's error shows the client's options


def takes_no_writes(error: BaseException) -> bool:
    """Return whether this error, or one that caused it, is Redis refusing what it accepts when it has room again."""
    return any(is_write_refused(each) for each in causes(error))


def is_write_refused(error: BaseException | None) -> bool:
    """Return whether this error itself is Redis refusing what it accepts when it has room again."""
    if isinstance(error, OutOfMemoryError | ReadOnlyError):  # redis-py strips the word that tells them
        return True
    return isinstance(error, ResponseError) and _FULL.search(str(error)) is not None


def broker_fault(error: BaseException, url: str) -> str | None:
    """Return what is wrong with the TLS, login or rights at a broker, and what to do; None if it is something else.

    A server that closed the connection is asked whether it speaks TLS: one that just restarts closes it too.
    """
    query = dict(parse_qsl(url.partition("?")[2]))
    where = "of its URL"
    fault = tls_fault(
        error,
        trust=f"ssl_ca_certs {where}",
        path=query.get("ssl_ca_certs"),
        own=f"ssl_certfile and ssl_keyfile {where}",
    )
    if fault is not None:
        return fault
    found = list(causes(error))
    if any(isinstance(each, AuthenticationError) for each in found):
        given = "@" in url or "password" in query
        return "it refuses the user or password of its URL" if given else "it requires a password, and its URL has none"
    if (forbidden := next((each for each in found if isinstance(each, NoPermissionError)), None)) is not None:
        rights = "deploy/valkey/users.acl has the rights of services and workers"
        return f"its ACL does not allow this to the user of its URL: {first_line(forbidden)}; {rights}"
    if (refused := next((each for each in found if isinstance(each, AccessRefused | NotAllowed)), None)) is not None:
        return _refusal_of_rabbitmq(str(refused.reply_text))
    with_tls = _WITH_TLS.get(url.partition("://")[0].lower())
    if with_tls and any(str(each).lower().startswith(_CLOSED) for each in found) and _speaks_tls(url):
        return f"it expects TLS: the scheme of its URL is {with_tls}://"
    return None


def _refusal_of_rabbitmq(said: str) -> str:
    if said.startswith(_NO_LOGIN):
        return "it refuses the user or password of its URL"
    return f"it does not allow this to the user of its URL: {bounded(said)}; docs/howto/rabbitmq.md has the rights"


def _speaks_tls(url: str) -> bool:
    """Return whether one of the servers of a URL answers a TLS handshake, whatever its certificate is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for server in parse_url(url).servers:
        try:
            with (
                socket.create_connection((server.host, server.port), CONNECT_TIMEOUT) as plain,
                context.wrap_socket(plain, server_hostname=server.host),
            ):
                return True
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):  # it refuses the handshake, in TLS
                return True
        except OSError:
            continue
    return False


class PerProcess(Generic[MadeT]):
    """Makes something once in each process, at its first use, from any thread.

    A pool of connections does not survive a fork: the child would share its sockets with the parent.
    """

    def __init__(self, make: Callable[[], MadeT]) -> None:
        self._make = make
        self._made: tuple[int, MadeT] | None = None
        self._lock = (os.getpid(), threading.Lock())

    def get(self) -> MadeT:
        """Return the object of this process; make it at the first call."""
        made, process = self._made, os.getpid()
        if made is not None and made[0] == process:
            return made[1]
        if self._lock[0] != process:  # another thread of the parent may have held it at the fork
            self._lock = (process, threading.Lock())
        with self._lock[1]:
            if self._made is None or self._made[0] != process:
                self._made = (process, self._make())
            return self._made[1]

    def made(self) -> MadeT | None:
        """Return the object of this process, or None if it has not been made."""
        return self._made[1] if self._made is not None and self._made[0] == os.getpid() else None
