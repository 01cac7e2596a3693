"""Messages with an eta, in a real Valkey."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import redis
from kombu import Connection
from kombu.asynchronous.timer import Timer

from tests.hostile_messages import JOB, envelope
from worker.intake.delayed import DELAYED, ReleaseDelayed, delay, make_due, release

FIELDS = {"bucket": "releases", "key": "app.tgz"}


class Channel:
    """Gives the client of a channel, as kombu's does."""

    def __init__(self, client):
        self._client = client

    def conn_or_acquire(self):
        return redis.Redis(connection_pool=self._client.connection_pool)


@pytest.fixture
def broker(valkey):
    valkey.empty()
    with redis.Redis.from_url(valkey.url) as client:
        yield client


class Consumer:
    """Has of Celery's consumer what a step of it uses."""

    def __init__(self, connection):
        self.connection, self.timer = connection, Timer()


def message(seconds):
    made = envelope(JOB, FIELDS)
    made["headers"]["eta"] = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    return json.dumps(made).encode()


def test_a_far_eta_waits_in_the_broker_and_comes_back_when_it_is_due(broker, monkeypatch):
    """It is in no worker's memory meanwhile, and is as it was when it returns to its queue."""
    raw = message(3600)
    assert delay(Channel(broker), raw, "transfer")
    assert release(broker) == 0
    assert broker.zcard(DELAYED.format(queue="transfer")) == 1
    later = datetime.now(UTC) + timedelta(seconds=3601)
    monkeypatch.setattr("worker.clock.now", lambda: later)
    assert release(broker) == 1
    assert broker.lrange("transfer", 0, -1) == [raw]
    assert not broker.exists(DELAYED.format(queue="transfer"))


def test_a_worker_returns_what_is_due_while_it_is_connected(broker, valkey):
    """Its timer does so until the step of its consumer is stopped; an error of the broker leaves the timer."""
    broker.zadd(DELAYED.format(queue="transfer"), {message(-1): 1.0})
    with Connection(valkey.url) as connection:
        consumer = Consumer(connection)
        step = ReleaseDelayed(consumer)
        step.start(consumer)
        [entry] = consumer.timer.queue
        entry.entry()
        assert broker.llen("transfer") == 1
        broker.flushdb()
        broker.set(DELAYED.format(queue="transfer"), "of another program")
        entry.entry()
        step.stop(consumer)
        assert entry.entry.canceled


def test_messages_of_some_jobs_are_made_due(broker):
    """They return to their queues as if they had no eta, and once; those of other jobs wait, and garbage stays."""
    raw, key = message(3600), DELAYED.format(queue="transfer")
    garbage = {b"no message": 9e9, b'{"headers": 1}': 9e9, b'{"headers": {"id": [], "eta": 1}}': 9e9}
    broker.zadd(key, {raw: 9e9, **garbage})
    assert make_due(broker, {"another job"}) == release(broker) == 0
    assert make_due(broker, {JOB}) == 1
    assert make_due(broker, {JOB}) == 0
    assert release(broker) == 1
    [sent] = broker.lrange("transfer", 0, -1)
    assert json.loads(sent) == {**json.loads(raw), "headers": {**json.loads(raw)["headers"], "eta": None}}
    assert not delay(Channel(broker), sent, "transfer")  # the worker that gets it does not keep it again
    assert broker.zcard(key) == len(garbage)


def test_a_message_that_was_returned_meanwhile_is_not_sent_twice(broker, monkeypatch):
    """Another worker returns it to its queue between the search for it and its change."""
    raw, key = message(3600), DELAYED.format(queue="transfer")
    broker.zadd(key, {raw: 1.0})
    found = broker.zscan(key)
    assert release(broker) == 1
    monkeypatch.setattr(redis.Redis, "zscan_iter", lambda *_, **__: iter(found[1]))
    assert make_due(broker, {JOB}) == broker.zcard(key) == 0


@pytest.mark.parametrize(
    "raw", [message(2), json.dumps(envelope(JOB, FIELDS)).encode(), b'{"headers": {"eta": 5}}', b'"eta"']
)
def test_what_is_due_soon_is_left_to_celery(broker, raw):
    """A near eta, none at all, and what is no message stay with the consumer."""
    assert not delay(Channel(broker), raw, "transfer")
