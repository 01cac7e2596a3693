"""The filter where the broker is no Redis: the consumer checks what the transport made of a message."""

import json
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection
from kombu.transport import redis as kombu_redis

from tests.hostile_messages import HOSTILE, JOB
from tests.waiting import WITHIN
from worker.intake import message_filter
from worker.intake.message_filter import RECORD_TASK
from zot_artifact_client.broker_urls import parse_url
from zot_artifact_client.contract import VERIFY

ENVELOPES = [
    name for name, (raw, reason) in HOSTILE.items() if reason in {"headers", "body", "unknown_task", "content"}
]
"""Those that such a transport can make a message of at all."""
UNREADABLE = {"an unknown body encoding", "no body", "a body that is a number", "a body that is no base64"}


class Finished:
    """What the tasks of the worker were called with, and when the last one was."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        self.done = threading.Event()


@pytest.fixture
def ended() -> Finished:
    return Finished()


@pytest.fixture
def app(ended: Finished) -> Iterator[Celery]:
    app = Celery(
        "filter",
        broker="memory://",
        backend="cache+memory://",
        amqp="worker.intake.message_filter:AMQP",
        set_as_current=False,
    )
    app.conf.update(
        worker_consumer="worker.intake.message_filter:Consumer",
        task_default_queue="interactive", accept_content=["json"],
        task_time_limit=60, visibility_timeout=3600, task_acks_late=True, worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )  # fmt: skip

    app.finalize()  # which brings the worker's own tasks, if another test has imported them
    for name in (VERIFY.name, RECORD_TASK):
        app.tasks.pop(name, None)

    @app.task(shared=False, lazy=False, name=VERIFY.name)
    def verify(**_: Any) -> None:
        ended.done.set()

    @app.task(shared=False, lazy=False, name=RECORD_TASK)
    def record(job: str, task: str, error: str, message: str) -> None:
        ended.refused.append((job, error))

    level = logging.getLogger().level
    yield app
    app.close()
    logging.getLogger().setLevel(level)  # Celery's worker for tests leaves it at ERROR, for all tests after this one


def push(app: Celery, name: str) -> None:
    """Put a hostile message in, as far as the broker takes it."""
    message = json.loads(HOSTILE[name][0])
    with app.connection_for_write() as connection:
        connection.default_channel.queue_declare("interactive")
        connection.default_channel._put("interactive", message)


def await_good(app: Celery, ended: Finished) -> None:
    """Send a good message and return when its job, and all that was sent before it, has ended."""
    ended.done.clear()
    app.send_task(VERIFY.name, kwargs={"bucket": "releases", "key": "a"}, queue="interactive")
    assert ended.done.wait(WITHIN)


def test_hostile_messages_neither_end_nor_block_the_worker(app, ended, caplog):
    """Behind messages that would end stock Celery the good one runs, and those with an id are recorded."""
    names = [name for name in ENVELOPES if name not in UNREADABLE]
    for name in names:
        push(app, name)
    with start_worker(app, perform_ping_check=False):
        await_good(app, ended)
        await_good(app, ended)  # behind what records the refused ones
    assert len(names) > 30
    refused = [
        record.getMessage() for record in caplog.records if "rejected a message in interactive" in record.message
    ]
    assert len(refused) == len(names)
    assert "hunter2" not in caplog.text
    assert {job for job, _ in ended.refused} == {JOB}
    assert {error for _, error in ended.refused} == {"InvalidMessage", "UnknownTask"}


def test_what_celery_cannot_read_although_we_thought_so_is_rejected(app, ended, caplog, monkeypatch):
    """A message that passes the filter and makes Celery raise stops no worker either."""
    monkeypatch.setattr(message_filter, "check_parsed_message", lambda *_: None)
    for name in ("a time limit that is text", "an empty eta", "an empty list", "no id", "no task", "an unknown task"):
        push(app, name)
    with start_worker(app, perform_ping_check=False):
        await_good(app, ended)
    refused = [record.getMessage() for record in caplog.records if "celery: Celery cannot read it" in record.message]
    assert len(refused) == 6
    assert "hunter2" not in caplog.text


def test_a_broker_that_is_away_is_no_fault_of_a_message(app, ended, monkeypatch):
    """When the connection breaks while a message is taken, the message is not rejected: it is delivered again."""
    consumer = message_filter.Consumer.__new__(message_filter.Consumer)
    consumer.app, consumer.connection_errors, consumer.channel_errors = app, (ConnectionError,), ()

    def broken(_self: Any, *_: Any) -> Any:
        def take(_message: Any) -> None:
            raise ConnectionError("gone")

        return take

    monkeypatch.setattr(message_filter.CeleryConsumer, "create_task_handler", broken)
    monkeypatch.setattr(message_filter, "check_parsed_message", lambda *_: None)
    message = type("Message", (), {"channel": None})()
    with pytest.raises(ConnectionError):
        consumer.create_task_handler()(message)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:1/0",
        "rediss://h:1/0",
        "redis+socket:///run/valkey.sock",
        "sentinel://a:1;sentinel://b:2",
        "redis://a:1;redis://b:1",
    ],
)
def test_every_way_to_reach_redis_has_a_filter(url):
    """The filter is before Redis however its URL is written, also after the connection has failed over."""
    connection = message_filter.Connection(url)
    assert issubclass(connection.clone().get_transport_cls().Channel, message_filter._Filtered)
    if connection.alt:
        connection.maybe_switch_next()
        assert issubclass(connection.get_transport_cls().Channel, message_filter._Filtered)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@h:1/0",
        "redis+socket://:hunter2@/run/valkey.sock?virtual_host=2",
        "sentinel://u:hunter2@a:1;sentinel://u:hunter2@b:2?sentinel_password=hunter2",
        "amqp://u:hunter2@a:1;amqp://u:hunter2@b:1",
    ],
)
def test_no_worker_shows_the_password_of_its_broker(url):
    """What remote control and Flower show of a worker's broker has its address and no secret of its URL."""
    server = parse_url(url)
    connection = message_filter.Connection(server.text, transport_options=server.transport_options)
    shown = connection.info()
    shown.pop("password")  # as Celery does
    assert "hunter2" not in str(shown)
    assert "hunter2" in str(connection.clone()._info())  # which still has what it needs to connect


def test_other_connections_of_the_process_have_none():
    """Only the worker's own application has a filter; a plain client is left as it is."""
    assert Connection("redis://h:1/0").get_transport_cls() is kombu_redis.Transport


def test_a_channel_whose_connection_was_given_up_is_a_lost_connection() -> None:
    """A late acknowledgement over it raises what Celery handles; kombu alone would stop the worker."""
    with Celery(
        "outsider", broker="redis://127.0.0.1:1/0", amqp="worker.intake.message_filter:AMQP", set_as_current=False
    ) as app:
        connection = app.connection_for_read()
        channel = message_filter.Channel.__new__(message_filter.Channel)
        for given_up in (None, SimpleNamespace(client=None)):
            channel.connection = given_up
            with pytest.raises(connection.connection_errors, match="was closed"), channel.conn_or_acquire():
                pass
