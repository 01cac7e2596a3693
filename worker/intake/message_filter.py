"""Check every message before Celery's consumer reads it, and reject the invalid ones.

Celery has no hook for this, so the filter sits in two configurable classes. With Redis it is the transport: a message
is checked directly after its pop, so a rejected one is never among the unacknowledged messages. With any other broker
it is the consumer, which checks the message as the transport has parsed it.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import redis
from amqp import AccessRefused, NotAllowed
from celery import Celery, current_app
from celery.app import amqp
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.asynchronous import get_event_loop
from kombu.connection import Connection as KombuConnection
from kombu.exceptions import OperationalError
from kombu.message import Message
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.uuid import uuid

from worker import clock
from worker.intake.celery_event_rules import CHANNEL, check_events
from worker.intake.delayed import delay
from worker.intake.deliveries_kept_on_disk import discard, keep
from worker.intake.full_broker import pause, wait_for_room, why_no_writes
from worker.intake.message_rules import (
    InvalidMessage,
    Reason,
    Rejection,
    Rules,
    check_envelope,
    check_message,
    check_parsed_message,
    parse_envelope,
    rejection_of,
)
from worker.intake.rejected import RejectedMessage, rejected_messages
from zot_artifact_client.connection import first_line, is_write_refused, what_it_does
from zot_artifact_client.contract import QUERIES, QUERY_ID, TASKS, Queue
from zot_artifact_client.contract.queues import UNROUTED
from zot_artifact_client.text_escaping import bounded, without_secrets
from zot_artifact_client.tls_faults import causes

logger = logging.getLogger(__name__)

RECORD_TASK = "door.refused.v1"
"""The task that records a rejected job in the ledger: only a child of the pool may open the catalogue.

The name is older than the glossary; it stays, because messages of it may be in queues.
"""
JOB_QUEUES = frozenset({*(queue.value for queue in Queue), UNROUTED})
"""The queues of jobs. All other queues and channels carry the control messages of Celery's workers."""
_FULL_WAIT, _RIGHTS_WAIT = 2.0, 10.0
"""Seconds between two tries to start to consume from a full broker, or from one whose ACL does not allow it."""
_EVENT_FLUSH_SECONDS = 0.1
"""Seconds for which events are buffered, so that those of many small jobs are sent together."""
_ACK_WITHIN = 0.01
"""Seconds after which an ended message is acknowledged, unless the record of the next delivery has done it before."""
_SHOWN = 1024
"""Characters of the arguments that Flower shows."""
_RECORD = """
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
if #ARGV > 3 then
  redis.call('ZREM', KEYS[1], unpack(ARGV, 4))
  redis.call('HDEL', KEYS[2], unpack(ARGV, 4))
end
"""
"""KEYS: the index of unacknowledged messages, and the messages.

ARGV: the time, the delivery tag and the entry of a message that was delivered, and the tags of those that have ended.
"""
_RECORD_BEYOND_MEMORY = f"#!lua flags=allow-oom{_RECORD}"
_UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""The errors of Celery for a message that it cannot read; those of an unavailable broker or backend are others."""


def rules_for(app: Celery) -> Rules:
    """Return the rules for the messages of this application's worker."""
    conf = app.conf
    return Rules(
        frozenset({*TASKS, *QUERIES, RECORD_TASK}), float(conf.task_time_limit), float(conf.visibility_timeout)
    )


def reject(app: Celery, rejection: Rejection, raw: bytes, queue: str, channel: object) -> None:
    """Record a rejected message: one log line, the list of rejected messages, and a task for the ledger and the client.

    If the broker fails meanwhile, only the log line remains.
    """
    if rejection.reason is Reason.EXPIRED and rejection.id and QUERY_ID.fullmatch(rejection.id):
        return  # its sender has given up, and nothing is kept of a query
    about = f"job {rejection.id}: " if rejection.id else ""
    logger.error("%srejected a message in %s, %s: %s", about, queue, rejection.reason, rejection.message)
    try:
        with rejected_messages(channel, app) as kept:
            if kept is not None:
                kept.add(RejectedMessage.of(rejection, raw, queue, clock.now()))
        if rejection.id and rejection.task != RECORD_TASK:
            send_record(app, rejection.id, rejection.task, error=rejection.error, message=rejection.message)
    except Exception as error:  # noqa: BLE001 - no error about a rejected message may end the worker
        logger.error("%sthe rejected message could not be recorded: %s", about, type(error).__name__)  # noqa: TRY400


def send_record(
    app: Celery, job: str, task: str | None, *, error: str, message: str, queue: str = Queue.INTERACTIVE.value
) -> None:
    """Send the task that records a rejected job, behind every message that waits in `queue`."""
    args = (job, task or "unknown", error, message)
    app.send_task(RECORD_TASK, args=args, queue=queue, ignore_result=True)


# With Redis


class _Filtered:
    """The filter of a Redis channel; mixed into both of kombu's channel classes."""

    _client_of_pool: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield the given client or the channel's own one: kombu makes one for each call, which doubles its time."""
        pool, own = self._pool, self._client_of_pool  # type: ignore[attr-defined]
        if client is None and (own is None or own.connection_pool is not pool):  # the pool of a closed channel is None
            own = self._client_of_pool = self._create_client()
        yield client or own

    def close(self) -> None:
        if self._qos is not None:  # type: ignore[attr-defined]
            self._qos.acknowledge()  # type: ignore[attr-defined]
        super().close()  # type: ignore[misc]

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        connection = self.connection  # type: ignore[attr-defined]
        if connection is None or connection.client is None:
            # A channel that is closed, or acknowledges, after its connection was closed: kombu then raises an error
            # about None that ends the worker, although it only has to reconnect.
            raise redis.ConnectionError("the connection of this channel was closed")
        client = super()._create_client(asynchronous)  # type: ignore[misc]
        if asynchronous:  # the client that waits for messages
            client.set_response_callback("BRPOP", self._filter)
        return client

    @cached_property
    def _rules(self) -> Rules:
        return rules_for(current_app)

    def _filter(self, popped: tuple[bytes, bytes] | None, **_: Any) -> tuple[bytes, bytes] | None:
        """Return the popped message, or None if it was rejected."""
        if not popped:
            return None
        key, raw = popped
        queue = key.decode(errors="replace").rsplit(self.sep, 1)[0]  # type: ignore[attr-defined]
        rejection = check_message(raw, self._rules, clock.now()) if queue in JOB_QUEUES else _check_control_message(raw)
        if rejection is None:
            if queue in JOB_QUEUES and delay(self, raw, queue):
                self._queue_cycle.rotate(queue)  # type: ignore[attr-defined]
                return None
            return key, raw
        self._queue_cycle.rotate(queue)  # type: ignore[attr-defined]  # otherwise a queue full of invalid messages starves the others
        reject(current_app, rejection, raw, queue, self)
        return None

    def _handle_message(self, client: Any, response: Any) -> Mapping[str, Any] | None:
        """Return the published message, without its data if it is not valid."""
        payload: dict[str, Any] | None = super()._handle_message(client, response)  # type: ignore[misc]
        if payload is None:  # the answer to the last unsubscription
            return payload
        raw = payload["data"]
        events = CHANNEL in (payload.get("channel") or b"")
        rejection = _check_control_message(raw, events=events) if isinstance(raw, bytes) and raw else None
        if rejection is not None:
            reject(current_app, rejection, raw, "control", self)
            payload["data"] = None
        return payload


def _check_control_message(raw: bytes, *, events: bool = False) -> Rejection | None:
    """Return why a control message is rejected, or None."""
    try:
        envelope = parse_envelope(raw)
        check_envelope(envelope)
        envelope["properties"]["delivery_tag"]
        envelope["properties"]["delivery_info"]["routing_key"].split(".")
        if events:
            check_events(envelope)
    except InvalidMessage as unfit:
        return rejection_of(unfit, None)
    except (LookupError, TypeError, AttributeError):
        return Rejection(Reason.ENVELOPE, "properties: a tag and a routing key are expected")
    return None


class _PatientQoS(kombu_redis.QoS):
    """Records and acknowledges deliveries in one round trip, also in a broker that is full.

    A message that was popped and not recorded would be lost. The end of a message is acknowledged together with the
    record of the next one, so that a child waits for one round trip between two jobs. A worker that dies before has the
    message delivered again, and the ledger knows that its job has ended.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._ended: list[str] = []
        """The tags of messages that have ended and are not acknowledged yet."""
        self._timer: Any = None
        """Of their acknowledgement, if it is set."""
        self.ahead = 0
        """How many messages may be taken while all children work; see `MessagesAhead`."""

    @property
    def held(self) -> int:
        """Return how many messages are taken and have not ended."""
        return len(self._delivered) - len(self._dirty)

    @property
    def tags(self) -> list[str]:
        """Return the delivery tags of these messages, the first one first."""
        return [tag for tag in self._delivered if tag not in self._dirty]

    def can_consume(self) -> bool:
        return not self.prefetch_count or self.held < self.prefetch_count + self.ahead

    def append(self, message: Any, delivery_tag: str) -> None:
        at = message.delivery_info
        entry = json.dumps([message._raw, at["exchange"], at["routing_key"]])  # noqa: SLF001 - as kombu writes it

        def record() -> None:
            try:
                self._record(_RECORD, delivery_tag, entry)
            except redis.ResponseError as error:
                if not is_write_refused(error):
                    raise
                try:
                    self._record(_RECORD_BEYOND_MEMORY, delivery_tag, entry)  # it just freed as much
                except redis.ResponseError:  # it is full in another way, or before Redis 7, which has the flag
                    raise error from None
            self._forget_ended()
            virtual.QoS.append(self, message, delivery_tag)

        try:
            record()
        except (redis.RedisError, OSError) as error:
            keep(message.delivery_info["routing_key"], message._raw)  # noqa: SLF001 - as it was delivered
            if not is_write_refused(error):
                raise
            wait_for_room(record)
            discard()

    def _record(self, script: str, delivery_tag: str, entry: str) -> None:
        """Record a delivery and acknowledge the messages that have ended, in one command: a transaction has six."""
        with self.channel.conn_or_acquire() as client:
            keys = [self.unacked_index_key, self.unacked_key]
            client.register_script(script)(keys=keys, args=[time.time(), delivery_tag, entry, *self._ended])

    def ack(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)  # from here on the next message may be taken
        self._ended.append(delivery_tag)
        hub = get_event_loop()
        if hub is None or state.should_stop is not None or state.should_terminate is not None:  # no timer runs any more
            self.acknowledge()
        elif self._timer is None:
            self._timer = hub.call_later(_ACK_WITHIN, self.acknowledge)

    def acknowledge(self) -> None:
        """Acknowledge the messages that have ended."""
        if not self._ended:
            return
        try:
            with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.zrem(self.unacked_index_key, *self._ended).hdel(self.unacked_key, *self._ended).execute()
        except (redis.RedisError, OSError) as error:
            why = (
                "the broker takes no writes now"
                if is_write_refused(error)
                else f"the broker does not answer: {type(error).__name__}"
            )
            logger.warning("a message is not acknowledged, and is delivered again later: %s", why)
        self._forget_ended()

    def _forget_ended(self) -> None:
        """Forget the messages that are acknowledged, and their timer: it would cost a later message a round trip."""
        self._ended.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def give_back(self, delivery_tag: str) -> None:
        """Return a message that is not worked on to the front of its queue; `reject` returns it to the end."""
        self.restore_by_tag(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().restore_by_tag(tag, *args, **kwargs)  # type: ignore[no-untyped-call]
        except (*_UNREADABLE, RecursionError):
            logger.error("an unacknowledged entry of the broker is no message: removed")  # noqa: TRY400
            with self.channel.conn_or_acquire() as client:
                client.hdel(self.unacked_key, tag)
                client.zrem(self.unacked_index_key, tag)
            return None

    def restore_visible(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().restore_visible(*args, **kwargs)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            if not is_write_refused(error):
                raise
            return None


class Channel(_Filtered, kombu_redis.Channel):
    """A filtered Redis channel."""

    QoS = _PatientQoS


class SentinelChannel(_Filtered, kombu_redis.SentinelChannel):
    """A filtered Redis channel behind Sentinel."""

    QoS = _PatientQoS


class _RestampedTransport:
    """A Redis transport that stamps each message anew; mixed into both of kombu's transport classes."""

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        """Deliver a message under a new delivery tag, with the queue that it came from as the one to restore it to.

        The sender's own values could name another queue, or the tag of another message.
        """
        if queue in JOB_QUEUES:
            properties = message["properties"]
            properties["delivery_tag"] = uuid()
            _bound_shown(message["headers"])
            redelivered = message["headers"].get("redelivered", False)
            properties["delivery_info"] = {"exchange": "", "routing_key": queue, "redelivered": redelivered}
        super()._deliver(message, queue)  # type: ignore[misc]


class Transport(_RestampedTransport, kombu_redis.Transport):
    """Filtered Redis."""

    Channel = Channel


class SentinelTransport(_RestampedTransport, kombu_redis.SentinelTransport):
    """Filtered Redis behind Sentinel."""

    Channel = SentinelChannel


_FILTERED_TRANSPORTS: dict[type, type] = {
    kombu_redis.Transport: Transport,
    kombu_redis.SentinelTransport: SentinelTransport,
}


class Connection(KombuConnection):
    """A connection whose Redis transport is the filtered one, whatever its URL, also after a failover."""

    def get_transport_cls(self) -> type:
        found: type = super().get_transport_cls()  # type: ignore[no-untyped-call]
        return _FILTERED_TRANSPORTS.get(found, found)

    def info(self) -> dict[str, Any]:
        """Return what `celery inspect stats` and Flower's page of a worker show of the broker.

        Celery removes the password alone: the URL of a socket, other servers of a list and options have it, too.
        """
        shown: dict[str, Any] = super().info()  # type: ignore[no-untyped-call]
        shown["hostname"] = without_secrets(str(shown.get("hostname")))
        options = shown.get("transport_options") or {}
        shown["transport_options"] = {name: value for name, value in options.items() if name != "sentinel_kwargs"}
        if alternates := shown.get("alternates"):
            shown["alternates"] = [without_secrets(str(each)) for each in alternates]
        return shown


class AMQP(amqp.AMQP):
    """Makes Celery use the filtered connection, as the application's `amqp`."""

    Connection = Connection


# With every broker


class Consumer(CeleryConsumer):
    """Celery's consumer, made safe against every message; set as `worker_consumer`.

    It has no gossip step: gossip does not check what it reads, and is not used here.
    """

    class Blueprint(CeleryConsumer.Blueprint):
        """The steps of the consumer."""

        default_steps = [step for step in CeleryConsumer.Blueprint.default_steps if "gossip" not in step]  # noqa: RUF012

    on_wrong_type: ClassVar[Callable[[Celery], None]] = staticmethod(lambda _: None)
    """Called after an error of a key of another type: no worker could connect until the key is renamed."""

    _flush_due = 0.0

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        self._check_type(exc)
        self._wait_if_refused(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        self._check_type(exc)
        self._wait_if_refused(exc)

    def _wait_if_refused(self, error: Exception) -> None:
        # Celery would reconnect at once and for ever, with a traceback each second.
        found = list(causes(error))
        rights = (each for each in found if isinstance(each, redis.exceptions.NoPermissionError))
        if is_write_refused(error):
            logger.error("the broker takes no writes now, and this worker waits: %s", why_no_writes(error))
            pause(_FULL_WAIT)
        elif (missing := next(rights, None)) is not None:
            logger.error(
                "the broker's ACL does not allow the user in ZOT_BROKER what a worker does: give it the rights of "
                "`default` in deploy/valkey/users.acl; this worker waits for them: %s", first_line(missing),
            )  # fmt: skip
            pause(_RIGHTS_WAIT)
        elif any(isinstance(each, AccessRefused | NotAllowed) for each in found):  # with Redis, Celery itself waits
            logger.error("the broker %s; this worker waits for that", what_it_does(error, self.conninfo.as_uri()))
            pause(_RIGHTS_WAIT)

    def _check_type(self, error: Exception) -> None:
        if "WRONGTYPE" in str(error):
            try:
                type(self).on_wrong_type(self.app)
            except (redis.RedisError, OperationalError, OSError) as failed:
                logger.warning("a key of another type stays in Redis for now: %s", type(failed).__name__)

    def on_send_event_buffered(self) -> None:
        """Buffer events for a moment, because one by one they take half of this process's time."""
        now = time.monotonic()
        if self.hub and now >= self._flush_due:  # a time and not a flag, because a lost connection ends the timer
            self._flush_due = now + _EVENT_FLUSH_SECONDS
            self.hub.call_later(_EVENT_FLUSH_SECONDS, self._flush_events)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        take = super().create_task_handler(*args, **kwargs)
        rules = rules_for(self.app)

        def receive(message: Message) -> None:
            guarded = isinstance(message.channel, _Filtered)
            rejection = None if guarded else check_parsed_message(message, rules, clock.now())
            if rejection is not None:
                self._reject(message, rejection)
                return
            if not guarded:
                _bound_shown(getattr(message, "headers", None) or {})
            try:
                take(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except _UNREADABLE as error:
                self._reject(message, _rejected_by_celery(message, error))

        return receive

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._reject(message, _rejected_by_celery(message, exc))

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        self._reject(message, _rejected_by_celery(message, None))

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._reject(message, _rejected_by_celery(message, exc))

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._reject(message, _rejected_by_celery(message, exc))

    def _reject(self, message: Message, rejection: Rejection) -> None:
        queue = str((message.delivery_info or {}).get("routing_key"))[:64]
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")
        reject(self.app, rejection, body, queue if queue in JOB_QUEUES else "control", message.channel)
        if not message.acknowledged:
            message.ack_log_error(logger, self.connection_errors)


def _bound_shown(headers: dict[str, Any]) -> None:
    """Bound the texts of a message that Celery's events show: its sender may have written anything there."""
    for name in ("argsrepr", "kwargsrepr"):
        if isinstance(headers.get(name), str):
            headers[name] = bounded(without_secrets(headers[name]), _SHOWN)


def _rejected_by_celery(message: Message, error: Exception | None) -> Rejection:
    cause = "it is no task" if error is None else type(error).__name__
    return rejection_of(InvalidMessage(Reason.CELERY, f"Celery cannot read it: {cause}"), {"headers": message.headers})
