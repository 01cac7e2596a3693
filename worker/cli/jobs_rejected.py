"""List the rejected messages, which arrived at the broker and are no valid requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from worker.cli.output import print_json, print_table, say
from worker.intake.rejected import RejectedMessages, rejected_messages
from worker.readable import size
from worker.settings import Settings
from zot_artifact_client.broker_urls import parse_url
from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    broker_errors,
    celery_app,
)


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


def list_rejected(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print the rejected messages, the latest first, and their number for each reason."""
    with open_rejected(settings) as refused:
        counts = refused.counts() if refused else {}
        latest = refused.latest(limit) if refused else []
    if as_json:
        print_json({"counts": counts, "messages": [message.document() for message in latest]})
        return
    rows = [(m.at, m.queue, m.reason, size(m.size), m.id, m.task, m.message) for m in latest]
    columns = ("rejected", "queue", "reason", "size", "job", "task", "message")
    print_table(columns, rows, empty="no rejected messages", flexible=("job", "task", "message"))
    if latest:
        say(f"{describe_counts(counts)} in all")


def describe_counts(counts: dict[str, int]) -> str:
    """Return the number of rejected messages, in all and for each reason."""
    return f"{sum(counts.values())} rejected: {', '.join(f'{count} {reason}' for reason, count in counts.items())}"
