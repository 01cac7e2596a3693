"""When a message that has ended leaves a real broker."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.worker import state
from kombu.asynchronous import Hub, get_event_loop, set_event_loop
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from tests.servers import Valkey
from worker.intake import message_filter
from worker.intake.message_filter import Connection
from worker.intake.messages_ahead import MessagesAhead


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        client.delete("transfer")  # what a channel returns when it closes
        yield client


@pytest.fixture
def channel(valkey: Valkey) -> Iterator[Any]:
    with Connection(valkey.url) as connection:
        yield connection.default_channel


@pytest.fixture
def hub() -> Iterator[Hub]:
    before, made = get_event_loop(), Hub()
    set_event_loop(made)
    yield made
    made.timer.clear()
    set_event_loop(before)


class Request:
    """What Celery keeps of a message that waits for a child."""

    def __init__(self, tag: str) -> None:
        self.id, self.message = tag, SimpleNamespace(delivery_tag=tag)


def take(channel: Any, tag: str) -> None:
    """Take a message as the transport does."""
    at = {"exchange": "", "routing_key": "transfer"}
    channel.qos.append(SimpleNamespace(delivery_info=at, _raw={"headers": {"id": tag}}), tag)


def held(broker: redis.Redis) -> set[str]:
    """Return the tags of the messages that count as being worked on."""
    tags = {tag.decode() for tag in broker.hkeys("unacked")}
    assert tags == {tag.decode() for tag in broker.zrange("unacked_index", 0, -1)}
    return tags


def test_an_ended_message_is_acknowledged_with_the_record_of_the_next(channel, broker, hub):
    """The next message may be taken at once, and the one before leaves in the same transaction that records it."""
    channel.qos.prefetch_count = 1
    take(channel, "one")
    channel.qos.ack("one")
    assert channel.qos.can_consume()
    assert held(broker) == {"one"}
    before = broker.info("stats")["total_connections_received"]
    take(channel, "two")
    assert held(broker) == {"two"}
    assert not channel.qos.can_consume()
    assert broker.info("stats")["total_connections_received"] == before, "the channel keeps its client"
    assert json.loads(broker.hget("unacked", "two")) == [{"headers": {"id": "two"}}, "", "transfer"]


def test_an_ended_message_is_acknowledged_within_a_moment_where_none_follows(channel, broker, hub):
    """A worker without further messages does not keep the last one."""
    take(channel, "one")
    channel.qos.ack("one")
    (timer,) = hub.timer.queue
    timer.entry()
    assert held(broker) == set()


def test_the_timer_of_an_ended_message_ends_with_its_acknowledgement(channel, broker, hub):
    """It would acknowledge a later message alone, in a round trip for which the next job waits."""
    take(channel, "one")
    channel.qos.ack("one")
    take(channel, "two")
    channel.qos.ack("two")
    of_one, of_two = sorted(hub.timer.queue)
    assert of_one.entry.canceled
    assert not of_two.entry.canceled
    of_two.entry()
    assert held(broker) == set()
    take(channel, "three")
    channel.qos.ack("three")
    assert not max(hub.timer.queue).entry.canceled, "a worker without further messages does not keep the last one"


def test_an_ended_message_is_acknowledged_at_once_while_a_worker_shuts_down(channel, broker, hub, monkeypatch):
    """No timer runs any more, and the message would be delivered again after the restart."""
    monkeypatch.setattr(state, "should_stop", 0)
    take(channel, "one")
    channel.qos.ack("one")
    assert held(broker) == set()


def test_a_channel_that_is_closed_acknowledges_what_has_ended(channel, broker, hub):
    """A message that ended just before the end of its worker is not delivered again."""
    take(channel, "one")
    channel.qos.ack("one")
    channel.close()
    assert held(broker) == set()


def test_a_broker_that_is_full_forgets_an_ended_message_with_the_record_of_the_next(channel, broker, hub):
    """Where memory is short, nothing is held that has ended."""
    take(channel, "one")
    channel.qos.ack("one")
    broker.config_set("maxmemory", "1")
    try:
        take(channel, "two")  # recorded beyond the memory
    finally:
        broker.config_set("maxmemory", "0")
    assert held(broker) == {"two"}


def test_a_queue_of_invalid_messages_leaves_the_others_their_turn(channel, monkeypatch):
    """Otherwise jobs of the other queues would wait until the last of those messages is rejected."""
    monkeypatch.setattr(message_filter, "reject", lambda *_: None)
    monkeypatch.setitem(channel.__dict__, "_rules", None)
    channel._queue_cycle.update(["transfer", "sweep"])
    assert channel._filter((b"transfer", b"no message")) is None
    assert channel._queue_cycle.consume(2) == ["sweep", "transfer"]


def test_a_message_that_is_taken_ahead_goes_back_to_the_front_of_its_queue(channel, broker, hub):
    """It was the first one of its queue, which others may have grown meanwhile."""
    channel.qos.prefetch_count = channel.qos.ahead = 1
    take(channel, "one")
    assert channel.qos.can_consume()
    take(channel, "two")
    assert not channel.qos.can_consume()
    broker.lpush("transfer", "three")
    channel.qos.give_back("two")
    assert channel.qos.can_consume()
    assert held(broker) == {"one"}
    assert json.loads(broker.rpop("transfer"))["headers"]["id"] == "two"


def test_a_broker_that_is_full_gets_messages_that_wait_for_a_child_back_later(channel, broker, hub, monkeypatch):
    """They stay with this worker meanwhile; an error would fill the log with a traceback four times a second.

    Then they are returned in their order, and none is taken ahead until a child begins a job.
    """
    monkeypatch.setattr(state, "all_total_count", begun := [0])
    semaphore, requests = LaxBoundedSemaphore(1), [Request(tag) for tag in ("runs", "next", "last")]
    for request in requests:
        take(channel, request.id)
        state.task_reserved(request)
        semaphore.acquire(lambda _: None, request)
    channel.qos.prefetch_count, channel.qos.ahead = 1, 2
    consumer = SimpleNamespace(
        task_consumer=SimpleNamespace(channel=channel),
        controller=SimpleNamespace(semaphore=semaphore),
        pool=SimpleNamespace(num_processes=1),
    )
    step = MessagesAhead(consumer)
    broker.config_set("maxmemory", "1")
    try:
        step.tick(consumer)
    finally:
        broker.config_set("maxmemory", "0")
    assert held(broker) == {"runs", "next", "last"}
    step.tick(consumer)
    assert held(broker) == {"runs"}
    assert [json.loads(message)["headers"]["id"] for message in broker.rpop("transfer", 3)] == ["next", "last"]
    assert not semaphore._waiting
    assert [request in state.reserved_requests for request in requests] == [True, False, False]
    assert not channel.qos.can_consume()
    step.tick(consumer)
    assert held(broker) == {"runs"}, "a job that runs is given to no other worker"
    begun[0] += 1
    step.tick(consumer)
    assert channel.qos.can_consume()
    state.task_ready(requests[0])


def test_a_worker_that_ends_returns_what_no_child_has_begun(channel, broker, hub, monkeypatch):
    """Other workers get these messages at once, in their order, and neither what runs nor what has ended."""
    requests = [Request(tag) for tag in ("ended", "runs", "next", "last")]
    for request in requests:
        take(channel, request.id)
    channel.qos.ack("ended")
    monkeypatch.setattr(state, "active_requests", {requests[1]})
    timer = SimpleNamespace(cancel=lambda: None)
    consumer = SimpleNamespace(
        connection=SimpleNamespace(default_channel=channel),
        controller=SimpleNamespace(semaphore=LaxBoundedSemaphore(1)),
        task_consumer=SimpleNamespace(channel=channel),
        timer=SimpleNamespace(call_repeatedly=lambda *_: timer),
    )
    step = MessagesAhead(consumer)
    step.start(consumer)
    step.stop(consumer)
    assert held(broker) == {"ended", "runs"}
    assert [json.loads(message)["headers"]["id"] for message in broker.rpop("transfer", 3)] == ["next", "last"]
