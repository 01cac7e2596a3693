"""The door of the worker: every message passes it before Celery's consumer does, and none that is unfit comes in.

Celery has no place for it, so it stands in two that can be configured. With Redis it is the transport: a message is
looked at between its pop and everything else, so that a refused one is never among the unacknowledged. With any other
broker it is the consumer, which looks at what the transport made of the message.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import redis
from celery import Celery, current_app
from celery.app import amqp
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.connection import Connection as KombuConnection
from kombu.message import Message
from kombu.transport import redis as kombu_redis
from kombu.utils.uuid import uuid

from worker import clock
from worker.intake.message_rules import (
    Reason,
    Refusal,
    Rules,
    Unfit,
    check_envelope,
    decoded,
    inspect,
    inspect_parsed,
    refusal,
)
from worker.intake.rejected import SetAside, refused_near
from zot_artifact_client.contract import TASKS, Queue
from zot_artifact_client.contract.queues import UNROUTED

logger = logging.getLogger(__name__)

RECORD = "door.refused.v1"
"""The task that records a refused job in the ledger: only a child of the pool may open the catalogue."""
QUEUES = frozenset({*(queue.value for queue in Queue), UNROUTED})
"""The queues of jobs; through others, and by publishing, Celery's workers talk to each other."""
_GATHER = 0.1
"""Seconds for which events are gathered, so that those of many small jobs go out together."""
_NOT_CELERYS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What Celery raises over a message that it cannot read; a broker or a backend that is away is none of these."""


def rules_of(app: Celery) -> Rules:
    """Return what this application's worker accepts."""
    conf = app.conf
    return Rules(frozenset({*TASKS, RECORD}), float(conf.task_time_limit), float(conf.visibility_timeout))


def turn_away(app: Celery, refused: Refusal, raw: bytes, queue: str, channel: object) -> None:
    """Set a message aside, say so in one line, and let the ledger and whoever waits for its job know.

    If that fails, the line in the log is all.
    """
    about = f"job {refused.id}: " if refused.id else ""
    logger.error("%srefused a message in %s, %s: %s", about, queue, refused.reason, refused.message)
    try:
        with refused_near(channel, app) as kept:
            if kept is not None:
                kept.add(SetAside.of(refused, raw, queue, clock.now()))
        if refused.id and refused.task != RECORD:
            args = (refused.id, refused.task or "unknown", refused.error, refused.message)
            app.send_task(RECORD, args=args, queue=Queue.INTERACTIVE.value, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - nothing about a refused message may end the worker
        logger.error("%sthe refused message could not be recorded: %s", about, type(error).__name__)  # noqa: TRY400


# With Redis


class _Guarded:
    """What a channel of Redis does at the door; mixed into both kinds that kombu has."""

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        connection = self.connection  # type: ignore[attr-defined]
        if connection is None or connection.client is None:
            # A channel that is closed, or acknowledges, after its connection was given up: kombu would trip over the
            # None, and the worker end of it, where it only has to connect again.
            raise redis.ConnectionError("the connection of this channel was given up")
        client = super()._create_client(asynchronous)  # type: ignore[misc]
        if asynchronous:  # the one that waits for messages
            client.set_response_callback("BRPOP", self._admit)
        return client

    @cached_property
    def _rules(self) -> Rules:
        return rules_of(current_app)

    def _admit(self, popped: tuple[bytes, bytes] | None, **_: Any) -> tuple[bytes, bytes] | None:
        """Return what was popped, or None, as when nothing was, if it must not come in."""
        if not popped:
            return None
        key, raw = popped
        queue = key.decode(errors="replace").rsplit(self.sep, 1)[0]  # type: ignore[attr-defined]
        refused = inspect(raw, self._rules, clock.now()) if queue in QUEUES else _unreadable(raw)
        if refused is None:
            return key, raw
        self._queue_cycle.rotate(queue)  # type: ignore[attr-defined]  # else a queue full of them starves the others
        turn_away(current_app, refused, raw, queue, self)
        return None

    def _handle_message(self, client: Any, response: Any) -> Mapping[str, Any]:
        """Return what was published, with nothing in it if no message can be made of it."""
        payload: dict[str, Any] = super()._handle_message(client, response)  # type: ignore[misc]
        raw = payload["data"]
        refused = _unreadable(raw) if isinstance(raw, bytes) and raw else None
        if refused is not None:
            turn_away(current_app, refused, raw, "control", self)
            payload["data"] = None
        return payload


def _unreadable(raw: bytes) -> Refusal | None:
    """Return why no message can be made of what is none of a task, or None."""
    try:
        envelope = decoded(raw)
        check_envelope(envelope)
        envelope["properties"]["delivery_tag"]
        envelope["properties"]["delivery_info"]["routing_key"].split(".")
    except Unfit as unfit:
        return refusal(unfit, None)
    except (LookupError, TypeError, AttributeError):
        return Refusal(Reason.ENVELOPE, "properties: a tag and a routing key are expected")
    return None


class Channel(_Guarded, kombu_redis.Channel):
    """A channel of Redis with a door."""


class SentinelChannel(_Guarded, kombu_redis.SentinelChannel):
    """A channel of Redis behind Sentinel with a door."""


class _Routed:
    """What a transport of Redis does at the door; mixed into both kinds that kombu has."""

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        """Hand out a message under a tag of our own, and to be restored, if it must be, to where it came from.

        What its sender wrote there might name another queue, or the tag of another message.
        """
        if queue in QUEUES:
            properties = message["properties"]
            properties["delivery_tag"] = uuid()
            redelivered = message["headers"].get("redelivered", False)
            properties["delivery_info"] = {"exchange": "", "routing_key": queue, "redelivered": redelivered}
        super()._deliver(message, queue)  # type: ignore[misc]


class Transport(_Routed, kombu_redis.Transport):
    """Redis with a door."""

    Channel = Channel


class SentinelTransport(_Routed, kombu_redis.SentinelTransport):
    """Redis behind Sentinel with a door."""

    Channel = SentinelChannel


_GUARDED: dict[type, type] = {
    kombu_redis.Transport: Transport,
    kombu_redis.SentinelTransport: SentinelTransport,
}


class Connection(KombuConnection):
    """A connection whose transport has a door, whatever its URL, and after it has failed over to another one."""

    def get_transport_cls(self) -> type:
        found: type = super().get_transport_cls()  # type: ignore[no-untyped-call]
        return _GUARDED.get(found, found)


class AMQP(amqp.AMQP):
    """How Celery connects: set as the application's `amqp`."""

    Connection = Connection


# With every broker


class Consumer(CeleryConsumer):
    """Celery's consumer, ended by no message: set as `worker_consumer`.

    Without gossip, which trusts what it reads more than this one does, and which we do not use.
    """

    class Blueprint(CeleryConsumer.Blueprint):
        """The steps of the consumer."""

        default_steps = [step for step in CeleryConsumer.Blueprint.default_steps if "gossip" not in step]  # noqa: RUF012

    _flush_due = 0.0

    def on_send_event_buffered(self) -> None:
        """Let events wait a moment for others: sent one by one they take half of this process's time."""
        now = time.monotonic()
        if self.hub and now >= self._flush_due:  # a time, and no flag: a lost connection takes the timer with it
            self._flush_due = now + _GATHER
            self.hub.call_later(_GATHER, self._flush_events)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        take = super().create_task_handler(*args, **kwargs)
        rules = rules_of(self.app)

        def receive(message: Message) -> None:
            guarded = isinstance(message.channel, _Guarded)
            refused = None if guarded else inspect_parsed(message, rules, clock.now())
            if refused is not None:
                self._turn_away(message, refused)
                return
            try:
                take(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except _NOT_CELERYS as error:
                self._turn_away(message, _by_celery(message, error))

        return receive

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._turn_away(message, _by_celery(message, exc))

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        self._turn_away(message, _by_celery(message, None))

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._turn_away(message, _by_celery(message, exc))

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._turn_away(message, _by_celery(message, exc))

    def _turn_away(self, message: Message, refused: Refusal) -> None:
        queue = str((message.delivery_info or {}).get("routing_key"))[:64]
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")
        turn_away(self.app, refused, body, queue if queue in QUEUES else "control", message.channel)
        if not message.acknowledged:
            message.ack_log_error(logger, self.connection_errors)


def _by_celery(message: Message, error: Exception | None) -> Refusal:
    cause = "it is no task" if error is None else type(error).__name__
    return refusal(Unfit(Reason.CELERY, f"Celery cannot read it: {cause}"), {"headers": message.headers})
