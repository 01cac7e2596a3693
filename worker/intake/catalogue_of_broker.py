"""Keep in the broker which catalogue its jobs belong to, so that no worker of another catalogue takes them.

It is the same for a broker as the marker for a store: another one than before is refused until it is accepted. Only a
broker that is a Redis is checked; RabbitMQ has no place for the id.
"""

import logging
import socket
from typing import Any, ClassVar, NamedTuple
from uuid import uuid4

import redis
from celery import bootsteps
from celery.exceptions import WorkerShutdown
from kombu.transport.redis import Channel

from worker import clock
from worker.catalogue import Catalogue
from worker.catalogue.brokers import Brokers
from worker.settings.model import Settings, SettingsError
from zot_artifact_client.broker_urls import redis_client
from zot_artifact_client.connection import broker_errors, is_redis, without_credentials
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

CATALOGUE = "zot-artifacts:catalogue"
"""The Redis key, in the broker, of the id of the catalogue that its jobs belong to."""
BROKER = "zot-artifacts:broker"
"""The Redis key, in the broker, of a random id of its own: one broker may have several URLs."""
FILES = "zot-artifacts:catalogue-files"
"""The Redis key, in the broker, of the files of SQLite catalogues that workers use: a copy has the id of the first."""
_FILE_IN_USE = 3 * 60
"""Seconds for which a file counts as used after a worker has last recorded that."""
_SHOWN = 64
"""Characters of an id that another program may have written."""


class OtherCatalogue(SettingsError):
    """The broker belongs to another catalogue than the configured one."""


def check_owner_in(client: Any, settings: Settings, identity: str, *, claim: bool = True) -> None:
    """Check that a broker belongs to the catalogue with this id; with `claim`, one that belongs to none does so then.

    Raises:
        OtherCatalogue: it belongs to another one.
    """
    found: bytes | None = client.get(CATALOGUE)
    if found is None and claim:
        client.set(CATALOGUE, identity, nx=True)
        found = client.get(CATALOGUE)  # another worker may have been faster
    if found is None or (owner := found.decode(errors="replace")) == identity:
        return
    way_out = "`zot-artifacts up --accept-broker`"
    if settings.broker:
        way_out += f", or remove the key {CATALOGUE} from that Redis,"
    raise OtherCatalogue(
        f"the broker {without_credentials(settings.broker_url)} belongs to the catalogue {bounded(owner, _SHOWN)}, and "
        f"the configured one, {without_credentials(settings.catalogue_url)}, is {identity}: jobs would be recorded in "
        f"the wrong catalogue. Correct the setting `broker` or `catalogue`; {way_out} if the catalogue was replaced on "
        "purpose"
    )


def note_broker_in(client: Any, url: str, brokers: Brokers) -> None:
    """Record in the catalogue that its jobs are sent over the broker with this URL."""
    client.set(BROKER, str(uuid4()), nx=True)
    place = f"{without_credentials(url)} of {socket.gethostname()}"
    brokers.note(_id_of(client) or "", bounded(place, 500), clock.now())


def note_file_in(client: Any, catalogue: Catalogue) -> None:
    """Record in the broker that a worker uses the file of this catalogue; one in a server has none."""
    if catalogue.file is None or (name := _file_id(catalogue)) is None:
        return
    [now, _] = client.time()  # of the server, because the machines' clocks may differ
    known = _file_use(client.hget(FILES, name))
    began = known.began if known and now - known.seen < _FILE_IN_USE else now
    place = bounded(f"{catalogue.file.path} of {socket.gethostname()}", 500)
    client.hset(FILES, name, f"{began} {now} {place}")
    client.expire(FILES, _FILE_IN_USE)


def copies_in_use(settings: Settings, catalogue: Catalogue) -> list[str]:
    """Return the other files of this catalogue that workers on its broker use now, which are copies of it.

    A file that was used before this one alone, such as before a move, is none. Nothing is known of a catalogue that
    workers here do not use.
    """
    if not is_redis(settings.broker_url):
        return []
    try:
        with _client(settings) as client:
            [now, _] = client.time()
            found = {name.decode(): _file_use(value) for name, value in client.hgetall(FILES).items()}
    except (redis.RedisError, OSError, UnicodeDecodeError):
        return []
    own = found.pop(_file_id(catalogue) or "", None)
    if own is None:
        return []
    return sorted(of.place for of in found.values() if of and of.seen > max(own.began, now - _FILE_IN_USE))


class _FileUse(NamedTuple):
    """Since when workers have used a file without a pause, and when last, in seconds; and where it is."""

    began: int
    seen: int
    place: str


def _file_use(kept: bytes | None) -> _FileUse | None:
    try:
        began, seen, place = (kept or b"").decode(errors="replace").split(" ", 2)
        return _FileUse(int(began), int(seen), bounded(place, 500))
    except ValueError:  # another program wrote it
        return None


def _file_id(catalogue: Catalogue) -> str | None:
    """Return what tells the file of a catalogue from each copy: the machine that runs, the disk and the inode."""
    if catalogue.file is None or catalogue.file.opened is None:
        return None
    device, inode = catalogue.file.opened
    return f"{clock.boot_id()}:{device}:{inode}"


def other_brokers(settings: Settings, brokers: Brokers) -> list[str]:
    """Return the other brokers over which jobs of the catalogue are sent now; none if that is not known."""
    if not is_redis(settings.broker_url):
        return []
    try:
        with _client(settings) as client:
            own = _id_of(client)
    except (redis.RedisError, OSError):
        return []
    return [] if own is None else brokers.others(own, clock.now())


def _id_of(client: Any) -> str | None:
    found: bytes | None = client.get(BROKER)
    return None if found is None else bounded(found.decode(errors="replace"), _SHOWN)


def check_owner(settings: Settings, identity: str, *, claim: bool = True) -> bool:
    """Do as `check_owner_in` for the broker of the settings; return False if that does not answer, unchecked."""
    if is_redis(settings.broker_url):
        try:
            with _client(settings) as client:
                check_owner_in(client, settings, identity, claim=claim)
        except (redis.RedisError, OSError):
            return False
    return True


def check_owner_late(settings: Settings, identity: str) -> None:
    """Do as `check_owner`, once, in a child of a worker whose catalogue did not answer when the worker started.

    Such a worker does not know its catalogue. In any other process, this does nothing.
    """
    if CheckOwner.is_late:
        CheckOwner.is_late = not check_owner(settings, identity)


def accept_broker(settings: Settings) -> None:
    """Let the broker belong to the catalogue of the next worker that starts.

    Raises:
        BrokerUnavailable: it does not answer.
    """
    if is_redis(settings.broker_url):
        with broker_errors("broker", settings.broker_url), _client(settings) as client:
            client.delete(CATALOGUE)


def _client(settings: Settings) -> "redis.Redis":
    return redis_client(settings.broker_url, socket_timeout=3, socket_connect_timeout=3)


class CheckOwner(bootsteps.StartStopStep):
    """Ends a worker that connects to the broker of another catalogue, before its first message.

    The broker may not have answered when the worker started, or may have lost its data since.
    """

    requires = ("celery.worker.consumer.connection:Connection",)
    expected: ClassVar[tuple[Settings, str] | None] = None
    """The settings, and the id of the worker's catalogue; None if that did not answer when the worker started."""
    is_late: ClassVar[bool] = False
    """Whether its children check instead, each once it has reached the catalogue: see `check_owner_late`."""

    def start(self, consumer: Any) -> None:
        """Check it; a connection that breaks is made again, and then checked."""
        channel = consumer.connection.default_channel
        if self.expected is None or not isinstance(channel, Channel):
            return
        try:
            with channel.conn_or_acquire() as client:
                check_owner_in(client, *self.expected)
        except OtherCatalogue as error:
            logger.critical("%s", error)
            raise WorkerShutdown(1) from None
        except redis.ResponseError as error:  # such as an ACL; the worker goes on as before
            logger.warning("which catalogue the broker belongs to is not checked: Redis: %s", bounded(error, 200))
