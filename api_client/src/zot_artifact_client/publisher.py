"""Send the messages: requests into their queues, and the wish to cancel to all workers."""

from typing import Any

from kombu.pools import ProducerPool

from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    broker_errors,
    celery_app,
    is_rabbitmq,
    is_redis,
)
from zot_artifact_client.contract import TaskSpec
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.outbox import Outgoing, push

POOL_SIZE = 10
"""Threads that can send at the same moment; the next one waits."""


class Publisher:
    """The way to the broker. Its application has no result backend.

    With one, Celery would subscribe to the result before it sends, and hang for as long as the backend is away.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._app = celery_app(
            "disabled",
            task_queues=queues(),
            task_create_missing_queues=False,
            task_publish_retry_policy=RETRY_POLICY,
            broker_connection_timeout=CONNECT_TIMEOUT,
            broker_transport_options=_transport_options(url),
        )
        # The URL goes in here and not as a setting, because CELERY_BROKER_URL of a service wins over settings.
        self._connections = self._app.connection_for_write(url).Pool(limit=POOL_SIZE)
        self._producers = ProducerPool(self._connections, limit=POOL_SIZE)
        # The mailbox's own pool would connect to the URL in the settings; without one it takes the connection given.
        self._app.control.mailbox.producer_pool = None

    def send(self, spec: TaskSpec[Any, Any], job_id: str, payload: dict[str, object]) -> None:
        """Send a request under an id. Raise BrokerUnavailable."""
        self.send_all([Outgoing(spec.name, job_id, spec.queue.value, payload)])

    def send_all(self, jobs: list[Outgoing]) -> None:
        """Send jobs, to Redis in one round trip and all or none. Raise BrokerUnavailable: they may have got through."""
        with broker_errors("broker", self._url):
            if is_redis(self._url):
                self._push(jobs)
            else:
                self._publish(jobs)

    def _push(self, jobs: list[Outgoing]) -> None:
        def into(channel: Any) -> None:
            with channel.conn_or_acquire() as client, client.pipeline(transaction=True) as pipeline:
                push(pipeline, self._app, jobs)
                pipeline.execute()

        with self._connections.acquire(block=True) as connection:
            connection.autoretry(into, **RETRY_POLICY)()

    def _publish(self, jobs: list[Outgoing]) -> None:
        with self._producers.acquire(block=True) as producer:
            for job in jobs:
                self._app.send_task(
                    job.name,
                    kwargs=job.payload,
                    task_id=job.job_id,
                    queue=job.queue,
                    producer=producer,
                    ignore_result=False,  # said, because this application has no backend, but the worker's has
                    add_to_parent=False,  # sent from a task of the service, it is none of its subtasks
                )

    def revoke(self, job_id: str) -> None:
        """Tell the workers that are up to drop a job that they have not begun. Raise BrokerUnavailable."""
        with broker_errors("broker", self._url), self._connections.acquire(block=True) as connection:
            self._app.control.revoke(job_id, connection=connection)

    def close(self) -> None:
        """Close the connections."""
        self._producers.force_close_all()
        self._connections.force_close_all()
        self._app.close()


def _transport_options(url: str) -> dict[str, object]:
    if is_redis(url):
        return {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": SOCKET_TIMEOUT, **RETRY_POLICY}
    if is_rabbitmq(url):  # what it has not confirmed is not sent, and is not waited for without end
        return {"confirm_publish": True, "read_timeout": SOCKET_TIMEOUT, "write_timeout": SOCKET_TIMEOUT}
    return {}
