"""Send messages: requests into their queues, and the request to cancel to all workers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.pools import ProducerPool
from redis.exceptions import NoPermissionError

from zot_artifact_client.broker_urls import ServerUrl, parse_url
from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    PerProcess,
    broker_errors,
    celery_app,
)
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.errors import BrokerUnavailable
from zot_artifact_client.idempotency_conflicts import compare
from zot_artifact_client.outgoing_messages import MESSAGES, Outgoing, push
from zot_artifact_client.text_escaping import bounded, without_secrets
from zot_artifact_client.tracing import trace_headers

POOL_SIZE = 10
"""Threads that can send at the same moment; the next one waits."""


class _Pools:
    """The connections of one process. Its application has no result backend.

    With one, Celery would subscribe to the result before it sends, and wait for as long as the backend is unavailable.
    """

    def __init__(self, server: ServerUrl) -> None:
        self.app: Celery = celery_app(
            "disabled",
            task_queues=queues(),
            task_create_missing_queues=False,
            task_publish_retry_policy=RETRY_POLICY,
            broker_connection_timeout=CONNECT_TIMEOUT,
            broker_transport_options=_transport_options(server),
        )
        # The URL is an argument here and no setting, because CELERY_BROKER_URL of a service wins over settings.
        self.connections = self.app.connection_for_write(server.text, ssl=server.tls).Pool(limit=POOL_SIZE)
        self.producers = ProducerPool(self.connections, limit=POOL_SIZE)
        # The mailbox's own pool would connect to the URL in the settings; without one it takes the connection given.
        self.app.control.mailbox.producer_pool = None

    def close(self) -> None:
        self.producers.force_close_all()
        self.connections.force_close_all()
        self.app.close()


class Publisher:
    """The connection to the broker; safe for threads, and made anew in a process that was forked."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = parse_url(url)
        self._pools = PerProcess(lambda: _Pools(self._server))

    def send_all(self, jobs: list[Outgoing]) -> None:
        """Send jobs, to Redis in one round trip and all or none. Raise BrokerUnavailable: they may have been sent."""
        if not self._server.is_redis:
            self._publish(jobs)
            return

        def into(client: Any) -> None:
            with client.pipeline(transaction=True) as pipeline:
                push(pipeline, self._pools.get().app, jobs)
                pipeline.execute()

        self._with_redis(into)

    def compare(self, digests: Mapping[str, str], *, record: bool) -> list[str] | None:
        """Return the ids that belong to other requests, None if the broker is no Redis. Raise BrokerUnavailable."""
        if not self._server.is_redis:
            return None
        found: list[str] = self._with_redis(lambda client: compare(client, digests, record=record))
        return found

    def is_queued(self, job_id: str) -> bool | None:
        """Return whether the outbox has a job, None if the broker is no Redis. Raise BrokerUnavailable."""
        if not self._server.is_redis:
            return None
        return bool(self._with_redis(lambda client: client.hexists(MESSAGES, job_id)))

    def revoke(self, job_id: str) -> None:
        """Tell the workers that are up to cancel a job. Raise BrokerUnavailable.

        Do nothing where the broker's ACL forbids it: the recorded request alone cancels the job, some seconds later.
        """
        try:
            with self._connected() as connection:
                self._pools.get().app.control.revoke(job_id, connection=connection)
        except BrokerUnavailable as error:
            if not _is_forbidden(error):
                raise

    def close(self) -> None:
        """Close the connections of this process."""
        pools = self._pools.made()
        if pools is not None:
            pools.close()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        with broker_errors("broker", self._url), self._pools.get().connections.acquire(block=True) as connection:
            yield connection

    def _with_redis(self, ask: Callable[[Any], Any]) -> Any:
        def over(channel: Any) -> Any:
            with channel.conn_or_acquire() as client:
                return ask(client)

        with self._connected() as connection:
            return connection.autoretry(over, **RETRY_POLICY)()[0]

    def _publish(self, jobs: list[Outgoing]) -> None:
        pools = self._pools.get()
        with broker_errors("broker", self._url), pools.producers.acquire(block=True) as producer:
            for job in jobs:
                pools.app.send_task(
                    job.name,
                    kwargs=job.payload,
                    kwargsrepr=bounded(without_secrets(repr(job.payload))),
                    task_id=job.job_id,
                    queue=job.queue,
                    producer=producer,
                    headers=trace_headers(),
                    expires=job.expires,
                    ignore_result=False,  # said, because this application has no backend, but the worker's has
                    add_to_parent=False,  # sent from a task of the service, it is none of its subtasks
                )


def _is_forbidden(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, NoPermissionError):
            return True
        error = error.__cause__
    return False


def _transport_options(server: ServerUrl) -> dict[str, object]:
    if server.is_redis:
        timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": SOCKET_TIMEOUT}
        return {**timeouts, **RETRY_POLICY, **server.transport_options}
    if server.is_rabbitmq:  # a message that it has not confirmed is not sent, and is not waited for without end
        return {"confirm_publish": True, "read_timeout": SOCKET_TIMEOUT, "write_timeout": SOCKET_TIMEOUT}
    return {}
