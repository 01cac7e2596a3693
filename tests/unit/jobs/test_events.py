"""The events that Flower sees, gathered on their way out of a worker."""

import pytest
from kombu.asynchronous import Hub

from worker.intake import message_filter
from worker.intake.message_filter import Consumer


class Dispatcher:
    """Counts how often it is to send what it has."""

    def __init__(self) -> None:
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def consumer() -> Consumer:
    """Return as much of a consumer as sends events, with a real hub."""
    made = Consumer.__new__(Consumer)
    made.hub, made.event_dispatcher = Hub(), Dispatcher()
    return made


def fire(hub: Hub) -> None:
    for entry in list(hub.timer.queue):
        entry.entry()
    hub.timer.clear()


def test_events_of_the_same_moment_go_out_together(consumer):
    """Not one by one, which would take half of the worker's own process; and each moment has its turn."""
    for moment in (1, 2):
        for _ in range(3):
            consumer.on_send_event_buffered()
        assert len(consumer.hub.timer.queue) == 1
        fire(consumer.hub)
        assert consumer.event_dispatcher.flushed == moment
        consumer._flush_due = 0.0  # the moment is over


def test_a_lost_connection_stops_no_events(consumer, monkeypatch: pytest.MonkeyPatch):
    """It takes the timer with it; the next event has another one."""
    now = [100.0]
    monkeypatch.setattr(message_filter.time, "monotonic", lambda: now[0])
    consumer.on_send_event_buffered()
    consumer.hub.timer.clear()
    now[0] += 2 * message_filter._EVENT_FLUSH_SECONDS
    consumer.on_send_event_buffered()
    fire(consumer.hub)
    assert consumer.event_dispatcher.flushed == 1
