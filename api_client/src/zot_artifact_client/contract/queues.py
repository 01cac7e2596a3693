"""The queues as the broker sees them; senders and consumers declare the same ones."""

from kombu.entity import Exchange
from kombu.entity import Queue as BrokerQueue

from zot_artifact_client.contract import Queue

UNROUTED = "celery"
"""Celery's own default queue: where `send_task` leaves a message that names no queue."""


def queues(*, unrouted: bool = False) -> tuple[BrokerQueue, ...]:
    """Return the contract's queues, the most urgent first, each with an exchange and a routing key of its own name.

    Celery declares the same for `send_task(..., queue="transfer")`, so a sender without this library agrees. With
    `unrouted`, Celery's default queue is included: only for a broker without other applications, because their messages
    would be taken from it as well.
    """
    names = [queue.value for queue in Queue]
    if unrouted:
        names.insert(names.index(Queue.SWEEP), UNROUTED)
    return tuple(BrokerQueue(name, Exchange(name, type="direct"), routing_key=name) for name in names)
