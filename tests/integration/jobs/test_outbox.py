"""The outbox beside the queues, in a real Valkey: lost messages are sent again, and no others."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from celery import Celery

from tests.hostile_messages import envelope
from worker import clock
from worker.catalogue import JobRecord
from worker.embedded.valkey import requeue_unacknowledged
from worker.intake.delayed import DELAYED, release
from worker.intake.message_filter import Consumer
from worker.intake.rejected import RejectedMessages
from worker.jobs.cancel_jobs import cause
from worker.jobs.outbox import RESENDS, Outbox
from worker.jobs.redis_keys_of_wrong_type import move_wrong_types
from worker.jobs.result_backend import publish_end, use_atomic_result_backend
from worker.jobs.unacked import UNACKED, UNACKED_INDEX
from zot_artifact_client import ArtifactClient
from zot_artifact_client.cancellation import CANCEL_REQUESTS
from zot_artifact_client.contract import JobState
from zot_artifact_client.outgoing_messages import MESSAGES, ORDER

AT_ONCE = timedelta(seconds=-1)
TRANSFER = ORDER.format(queue="transfer")


@pytest.fixture
def url(valkey) -> str:
    valkey.empty()
    return valkey.url


@pytest.fixture
def broker(url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def client(url, broker) -> Iterator[ArtifactClient]:
    with ArtifactClient(url) as opened:
        yield opened


@pytest.fixture
def outbox(url) -> Iterator[Outbox]:
    with Celery(broker=url, set_as_current=False) as app:
        yield Outbox(app)


def ids(broker: redis.Redis) -> list[str]:
    """Return the ids of the messages that wait, the next one first."""
    return [json.loads(message)["headers"]["id"] for message in reversed(broker.lrange("transfer", 0, -1))]


def no_job_known(ids: list[str]) -> set[str]:
    return set()


def test_what_waits_in_its_queue_is_not_sent_again(client, broker, outbox):
    """However long a queue is, its messages are not doubled."""
    jobs = [client.upload("/a", "releases", f"{n}").id for n in range(60)]
    assert outbox.resend(no_job_known, AT_ONCE) == 0
    assert ids(broker) == jobs


def test_what_was_handed_out_and_not_taken_over_is_sent_again(client, broker, outbox):
    """Two of four messages are popped by a worker that dies: they are sent again, behind the others, and only once."""
    jobs = [client.upload("/a", "releases", f"{n}").id for n in range(4)]
    broker.rpop("transfer", 2)
    assert outbox.resend(no_job_known, AT_ONCE) == 2
    assert ids(broker) == [*jobs[2:], *jobs[:2]]
    assert outbox.resend(no_job_known, AT_ONCE) == 0


def test_a_message_that_is_sent_again_is_another_delivery(client, broker, outbox):
    """Redis keeps deliveries apart by their tags; two under one would be acknowledged together."""
    client.upload("/a", "releases", "a")
    first = json.loads(broker.rpop("transfer"))
    outbox.resend(no_job_known, AT_ONCE)
    second = json.loads(broker.rpop("transfer"))
    tags = {message["properties"].pop("delivery_tag") for message in (first, second)}
    assert len(tags) == 2
    assert first == second


def test_what_the_ledger_has_leaves_the_outbox(client, broker, outbox):
    """A worker that could not take the entry away leaves that to the sweep."""
    taken, known, lost = (client.upload("/a", "releases", f"{n}").id for n in range(3))
    broker.delete("transfer")
    outbox.taken(taken)
    assert {id_.decode() for id_ in broker.hkeys(MESSAGES)} == {known, lost}
    assert {id_.decode() for id_ in broker.zrange(TRANSFER, 0, -1)} == {known, lost}
    assert outbox.resend(lambda ids: set(ids) & {known}, AT_ONCE) == 1
    assert [id_.decode() for id_ in broker.hkeys(MESSAGES)] == [lost]
    assert [id_.decode() for id_ in broker.zrange(TRANSFER, 0, -1)] == [lost]


def test_a_job_is_found_whatever_another_program_wrote_as_its_time(client, broker, outbox):
    """The time is only shown."""
    job = client.upload("/a", "releases", "a").id
    assert outbox.find(job).sent_at is not None
    for time_ in (float("inf"), -1e20):
        broker.zadd(TRANSFER, {job: time_})
        assert (outbox.find(job).job_id, outbox.find(job).sent_at) == (job, None)


def test_a_job_is_taken_away_in_one_round_trip(client, outbox, monkeypatch):
    """Every job has to wait for it."""
    first, second = (client.upload("/a", "releases", f"{n}").id for n in range(2))
    outbox.taken(first)  # has connected
    sent: list[object] = []
    send = redis.Connection.send_packed_command
    monkeypatch.setattr(
        redis.Connection, "send_packed_command", lambda *args, **kw: sent.append(1) or send(*args, **kw)
    )
    outbox.taken(second)
    assert len(sent) == 1


def test_a_fresh_request_is_not_sent_again(client, broker, outbox):
    """A worker may be about to take it over."""
    client.upload("/a", "releases", "a")
    broker.delete("transfer")
    assert outbox.resend(no_job_known, timedelta(minutes=1)) == 0


def test_strangers_in_the_queue_are_looked_past(client, broker, outbox):
    """Messages that came another way say nothing about the outbox, and nonsense does no harm."""
    lost = client.upload("/a", "releases", "lost").id
    broker.rpop("transfer")
    waiting = client.upload("/a", "releases", "waiting").id
    broker.rpush("transfer", b"nonsense", json.dumps([1]), json.dumps({"headers": {"id": "stranger"}}))
    assert outbox.resend(no_job_known, AT_ONCE) == 1
    assert json.loads(broker.lindex("transfer", 0))["headers"]["id"] == lost
    assert broker.zscore(TRANSFER, waiting) is not None
    broker.rpush("transfer", *[json.dumps({"headers": {"id": "stranger"}})] * 50)
    assert outbox.resend(no_job_known, AT_ONCE) == 0, "they may be older than all that is in the outbox"


def test_garbage_in_the_outbox_stops_no_other_entry(client, broker, outbox):
    """An entry that is no message is removed and recorded; the lost job behind it and other queues are recovered."""
    lost = client.upload("/a", "releases", "lost").id
    broker.delete("transfer")
    deep = b"[" * 100_000 + b"]" * 100_000
    for name, value in ((b"\xff\xfe", b"x"), (b"bad", b"\xff"), (b"worse", b"[]"), (b"a\0b", b"{}"), (b"deep", deep)):
        broker.hset(MESSAGES, name, value)
        broker.zadd(TRANSFER, {name: 1})
    broker.hset(RESENDS, lost, "no number")
    broker.set(ORDER.format(queue="interactive"), "no sorted set")
    assert outbox.resend(no_job_known, AT_ONCE) == 1
    assert ids(broker) == [lost]
    assert broker.hlen(MESSAGES) == 1
    assert [message.reason for message in RejectedMessages(broker).latest()] == ["outbox"] * 5


def test_a_flood_of_entries_without_a_message_delays_no_recovery(client, broker, outbox):
    """A service may write entries of the outbox; one run removes many of them and sends what was lost behind them."""
    order = ORDER.format(queue="interactive")
    broker.zadd(order, {f"garbage-{n}": n for n in range(3_000)})
    broker.hset(MESSAGES, mapping={f"garbage-{n}": "no message" for n in range(300)})
    broker.hset(RESENDS, mapping={f"garbage-{n}": 1 for n in (0, 2_999)})
    job = client.verify("releases", "app.tgz")
    broker.delete("interactive")
    assert outbox.resend(no_job_known, AT_ONCE) == 1
    assert broker.zrange(order, 0, -1) == broker.hkeys(RESENDS) == [job.id.encode()]


def test_a_key_of_another_type_stops_no_recovery(client, broker, outbox, url):
    """A key of the worker that is of another type is renamed: clients send again, and lost messages are found."""
    with Celery(broker=url, backend=url, set_as_current=False) as app:
        for name in (MESSAGES, TRANSFER, RESENDS, CANCEL_REQUESTS, DELAYED.format(queue="transfer")):
            broker.set(name, "text")
        outbox.taken("job-1")  # is no error of the job
        move_wrong_types(app)
    lost = client.upload("/a", "releases", "lost").id
    broker.delete("transfer")
    assert outbox.resend(no_job_known, AT_ONCE) == 1
    assert ids(broker) == [lost]
    assert broker.get(f"{MESSAGES}:foreign") == b"text"


def test_a_worker_that_cannot_connect_renames_a_key_of_another_type(broker, url, monkeypatch):
    """With `unacked` of another type no worker connects, so the consumer itself renames it, and `up` likewise."""
    monkeypatch.setattr(Consumer, "on_wrong_type", staticmethod(move_wrong_types))
    broker.set(UNACKED, "text")
    with Celery(broker=url, backend=url, set_as_current=False) as app:
        consumer = object.__new__(Consumer)
        consumer.app = app
        with pytest.raises(redis.ResponseError) as raised:
            broker.hset(UNACKED, "tag", "message")
        consumer._check_type(raised.value)
    assert broker.get(f"{UNACKED}:foreign") == b"text"
    broker.set(UNACKED_INDEX, "text")
    assert requeue_unacknowledged(url) == 0
    assert broker.type(UNACKED_INDEX) == b"none"


def test_delayed_messages_of_one_queue_stop_those_of_no_other(broker):
    """The key of one queue is of another type; the due message of another queue returns to it."""
    broker.set(DELAYED.format(queue="interactive"), "text")
    broker.zadd(DELAYED.format(queue="transfer"), {"message": 1})
    assert release(broker) == 1
    assert broker.lrange("transfer", 0, -1) == [b"message"]


def test_a_job_that_no_worker_can_record_is_sent_a_bounded_number_of_times(client, broker, outbox, monkeypatch):
    """Each further message of a job waits twice as long, so that an outage of the catalogue costs only a few."""
    client.upload("/a", "releases", "a")
    begin, sent = time.time(), 0
    for minute in range(1, 240):
        broker.delete("transfer")  # a worker takes the message and cannot record the job
        monkeypatch.setattr("worker.jobs.outbox.time.time", lambda now=begin + 60.0 * minute: now)
        sent += outbox.resend(no_job_known, timedelta(seconds=30))
    assert 3 <= sent <= 10


def unacknowledged(broker, raws, *, at):
    """Let a worker hold messages since a moment, as kombu records it."""
    for number, raw in enumerate(raws):
        broker.hset("unacked", f"tag{number}", json.dumps([json.loads(raw), "", "interactive"]))
        broker.zadd("unacked_index", {f"tag{number}": at + number / 1000})
    broker.delete("interactive")


def test_a_message_of_another_program_that_a_killed_worker_held_comes_back(client, broker, outbox, url):
    """A message without an entry here, unacknowledged for longer than `after` and not in the ledger, returns once."""
    client.verify("releases", "app.tgz")  # has an entry
    with Celery(broker=url, set_as_current=False) as other:
        fields = {"bucket": "b", "key": "k"}
        gone, known = (other.send_task("artifact.verify.v1", kwargs=fields, queue="interactive").id for _ in "ab")
    unacknowledged(broker, broker.lrange("interactive", 0, -1), at=time.time() - 600)
    deep = b"[" * 100_000 + b"]" * 100_000
    bare = json.dumps([{"headers": {"id": "bare", "task": "artifact.verify.v1"}}, "", "interactive"])
    for number, garbage in enumerate((b"\xff", deep, bare)):
        broker.hset("unacked", f"garbage{number}", garbage)
        broker.zadd("unacked_index", {f"garbage{number}": 1})
    assert outbox.resend(lambda found: {known} & set(found), timedelta(minutes=1)) == 1
    assert outbox.resend(lambda found: {known} & set(found), timedelta(minutes=1)) == 0
    assert json.loads(broker.lindex("interactive", 0))["headers"]["id"] == gone
    assert broker.hlen("unacked") == 5


def test_up_starts_whatever_is_among_the_unacknowledged_messages(broker, url):
    """What is no message is removed; the message that a killed worker held returns to its queue."""
    unacknowledged(broker, [json.dumps(envelope("held", {"bucket": "b", "key": "k"}))], at=time.time())
    broker.hset("unacked", mapping={"x": b"\xff", "y": b"[" * 100_000, "z": b"[1]"})
    assert requeue_unacknowledged(url) == 1
    assert json.loads(broker.lindex("interactive", 0))["headers"]["id"] == "held"
    assert broker.hlen("unacked") == 0


def test_many_stale_messages_hide_no_lost_one(broker, outbox):
    """A lost message behind more than a thousand others that a worker has started is found in the same turn."""
    raws = [json.dumps(envelope(f"job-{number}", {"bucket": "b", "key": "k"})) for number in range(1200)]
    unacknowledged(broker, raws, at=time.time() - 600)
    assert outbox.resend(lambda found: set(found) - {"job-1199"}, timedelta(minutes=1)) == 1
    assert json.loads(broker.lindex("interactive", 0))["headers"]["id"] == "job-1199"


def test_times_of_a_clock_that_was_a_day_ahead_are_corrected(client, broker, outbox, monkeypatch):
    """A lost message, and one that a killed worker held, are sent again soon after the clock was set right."""
    day = time.time() + 86400
    monkeypatch.setattr("zot_artifact_client.outgoing_messages.time.time", lambda: day)
    lost = client.upload("/a", "releases", "a").id
    monkeypatch.undo()
    broker.delete("transfer")
    unacknowledged(broker, [json.dumps(envelope("held", {"bucket": "b", "key": "k"}))], at=day)
    assert outbox.resend(no_job_known, timedelta(minutes=1)) == 0
    soon = time.time() + 90
    monkeypatch.setattr("worker.jobs.outbox.time.time", lambda: soon)
    assert outbox.resend(no_job_known, timedelta(minutes=1)) == 2
    assert ids(broker) == [lost]
    assert json.loads(broker.lindex("interactive", 0))["headers"]["id"] == "held"


def test_the_end_of_a_job_is_told_while_rabbitmq_is_away(url):
    """Only its outbox would be there, and RabbitMQ has none: nothing connects to it."""
    job = JobRecord("job-1", "verify", {}, JobState.CANCELLED, 1, 1, clock.now(), error=cause("job-1"))
    with Celery(broker="amqp://127.0.0.1:1//", backend=url, set_as_current=False) as app:
        use_atomic_result_backend(app)
        publish_end(app, job)
        assert app.backend.get_state(job.id) == "REVOKED"
        move_wrong_types(app)
