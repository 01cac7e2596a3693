"""The messages that wait in the queues of the broker."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from kombu.connection import Connection
from redis import Redis

from zot_artifact_client.broker_urls import ServerUrl, parse_url, redis_client
from zot_artifact_client.outgoing_messages import ORDER

_PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""The suffixes that kombu appends to the name of a queue for messages with a priority."""
_TIMEOUT = 5


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many messages wait in a queue, and since when the oldest job in its outbox does, None if it is not known."""

    count: int
    since: datetime | None = None


def waiting_messages(url: str, queues: Iterable[str]) -> dict[str, Waiting]:
    """Return the waiting messages of each of these queues; a queue that RabbitMQ does not have is left out.

    Raises:
        Exception: whatever the transport of the broker raises.
    """
    server = parse_url(url, "broker")
    if not server.is_redis:
        return {name: Waiting(count) for name, count in lengths_of_rabbitmq(server, queues).items()}
    with redis_client(url, "broker", socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT) as client:
        return {name: Waiting(length_of_redis(client, name), _oldest(client, name)) for name in queues}


def length_of_redis(client: "Redis", queue: str) -> int:
    """Return how many messages wait in a queue."""
    return sum(int(client.llen(f"{queue}{priority}")) for priority in _PRIORITIES)


def lengths_of_rabbitmq(server: ServerUrl, queues: Iterable[str]) -> dict[str, int]:
    """Return the messages of each queue of a RabbitMQ; a queue that no worker has declared is left out."""
    found = {}
    with Connection(server.text, ssl=server.tls, connect_timeout=_TIMEOUT) as connection:
        for queue in queues:
            with connection.channel() as channel:
                try:
                    found[queue] = int(channel.queue_declare(queue, passive=True).message_count)
                except connection.channel_errors:
                    continue
    return found


def _oldest(client: "Redis", queue: str) -> datetime | None:
    first = client.zrange(ORDER.format(queue=queue), 0, 0, withscores=True)
    try:
        return datetime.fromtimestamp(float(first[0][1]), UTC) if first else None
    except (ValueError, OverflowError, OSError):  # another program wrote a value that is not a time
        return None
