"""The rejected messages: the latest of them, and how many by reason."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from celery import Celery
from kombu.transport.redis import Channel

from worker.intake.message_rules import Rejection
from worker.limits.shared_redis import redis_of_celery
from worker.settings import Settings
from zot_artifact_client.broker_urls import parse_url
from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    broker_errors,
    celery_app,
)

LATEST = "zot-artifacts:refused"
"""The Redis list, in the broker, of the rejected messages, the latest first."""
COUNTS = "zot-artifacts:refused:counts"
"""The Redis hash of how many were rejected, by reason."""
KEPT = 1000
"""How many are kept; all are counted."""


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """A rejected message, without a byte of it; its size and SHA-256 identify it.

    `id` and `task` are None where they could not be read. The size is that of the whole message, or of its body where
    the broker is no Redis.
    """

    at: datetime
    queue: str
    reason: str
    message: str
    size: int
    sha256: str
    id: str | None
    task: str | None

    @classmethod
    def of(cls, rejection: Rejection, raw: bytes, queue: str, now: datetime) -> "RejectedMessage":
        """Return the record of a message."""
        digest = hashlib.sha256(raw).hexdigest()
        return cls(now, queue, rejection.reason, rejection.message, len(raw), digest, rejection.id, rejection.task)

    @classmethod
    def read(cls, entry: bytes) -> "RejectedMessage":
        """Return the message that an entry of the list describes."""
        fields = json.loads(entry)
        return cls(**(fields | {"at": datetime.fromisoformat(fields["at"])}))

    def entry(self) -> str:
        """Return the entry of the list."""
        return json.dumps(self.document())

    def document(self) -> dict[str, object]:
        """Return the record as plain JSON."""
        return asdict(self) | {"at": self.at.isoformat()}


class RejectedMessages:
    """The rejected messages, as Redis keeps them."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def add(self, message: RejectedMessage) -> None:
        """Keep a message and count it."""
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.lpush(LATEST, message.entry())
            pipeline.ltrim(LATEST, 0, KEPT - 1)
            pipeline.hincrby(COUNTS, message.reason, 1)
            pipeline.execute()

    def latest(self, limit: int = KEPT) -> list[RejectedMessage]:
        """Return the messages, the latest first."""
        found = []
        for entry in self._client.lrange(LATEST, 0, limit - 1):
            with suppress(ValueError, LookupError, TypeError, RecursionError):  # an entry that another program wrote
                found.append(RejectedMessage.read(entry))
        return found

    def counts(self) -> dict[str, int]:
        """Return how many were rejected since the broker was set up, by reason."""
        counted = self._client.hgetall(COUNTS)
        return {reason.decode(): int(count) for reason, count in sorted(counted.items())}


@contextmanager
def rejected_messages(channel: object, app: Celery) -> Iterator[RejectedMessages | None]:
    """Yield the rejected messages: of the broker if it is Redis, else of the result backend if that is, else None."""
    if isinstance(channel, Channel):
        with channel.conn_or_acquire() as client:
            yield RejectedMessages(client)
        return
    client = redis_of_celery(app)
    yield None if client is None else RejectedMessages(client)


@contextmanager
def open_rejected(settings: Settings) -> Iterator[RejectedMessages | None]:
    """Return what the workers of these settings rejected; None where neither broker nor result backend is Redis.

    Raises:
        NoBroker: none is configured, and none runs here.
        BrokerUnavailable: it cannot be reached.
    """
    url = settings.broker_url
    server = parse_url(url, "broker")
    timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": SOCKET_TIMEOUT}
    options = {**timeouts, **RETRY_POLICY, **server.transport_options}
    app = celery_app(settings.results_url)
    try:
        opened = app.connection_for_read(server.text, ssl=server.tls, transport_options=options)
        with broker_errors("broker", url), opened as connection:
            channel = connection.default_channel if server.is_redis else None
            with rejected_messages(channel, app) as refused:
                yield refused
    finally:
        app.close()


def describe_counts(counts: dict[str, int]) -> str:
    """Return the number of rejected messages, in all and for each reason."""
    return f"{sum(counts.values())} rejected: {', '.join(f'{count} {reason}' for reason, count in counts.items())}"
