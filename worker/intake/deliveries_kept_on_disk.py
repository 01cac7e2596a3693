"""Keep a message on this machine's disk while the broker that gave it cannot record that it was delivered.

Between its pop and that record a message is in the memory of one worker only. A request of our clients is in the outbox
too, a message of another program is nowhere else.
"""

import errno
import fcntl
import json
import logging
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from kombu.transport.redis import Channel

from worker import context
from worker.intake.timer_bootstep import RedisTimerStep
from worker.settings.private_data_directory import sync_directory
from zot_artifact_client.contract import MAX_MESSAGE

logger = logging.getLogger(__name__)

_NAME = "unrecorded-message-"
_SIZE = MAX_MESSAGE + 65_536
"""Bytes that the file has from the start, because the disk may be full when it is needed."""


class UnrecordedMessage:
    """The file of this process for one message, with a lock that no other process has while this one lives."""

    def __init__(self, directory: Path) -> None:
        """Make the file. The lock is of this process and not of its children, which may outlive it."""
        self._directory = directory
        self._path, self._fd = self._make()
        self._has_last = False
        """Whether the file has the message of the last call of `keep`."""

    def _make(self) -> tuple[Path, int]:
        while True:
            # Not the id of the process: in containers that share the directory, several have the same.
            path = self._directory / f"{_NAME}{uuid4().hex}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.lockf(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # another process took it for that of an ended one before it was locked
        with suppress(OSError):  # a disk that is full already: the file grows when there is room
            os.posix_fallocate(fd, 0, _SIZE)
        sync_directory(self._directory)
        return path, fd

    def keep(self, queue: str, message: Any) -> None:
        """Write the message to the disk. One that was not returned yet stays in a file that no process locks."""
        self._has_last = False
        if _kept(self._fd) is not None:
            before = self._fd
            self._path, self._fd = self._make()
            os.close(before)
        text = json.dumps([queue, message], ensure_ascii=False).encode()
        entry = f"{sha256(text).hexdigest()} {len(text):8d} ".encode() + text
        if os.pwrite(self._fd, entry, 0) != len(entry):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._fd)
        self._has_last = True

    def discard(self) -> None:
        """Forget the message of the last `keep`: the broker has recorded it."""
        if self._has_last:
            os.pwrite(self._fd, b"\0", 0)

    def return_kept(self, client: Any) -> int:
        """Return to their queues the messages that this process, and ended ones, have kept; return how many."""
        returned = int(_push(client, self._fd))
        for path in sorted(self._path.parent.glob(f"{_NAME}*")):
            if path == self._path:  # to close another descriptor of it would release the lock
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:  # another process has returned it
                continue
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                returned += _push(client, fd)
                path.unlink(missing_ok=True)
            except BlockingIOError:  # its process lives
                continue
            finally:
                os.close(fd)
        return returned


def _kept(fd: int) -> tuple[str, Any] | None:
    """Return the queue and the message that a file has, or None."""
    digest, length = _read(fd, 64, 0).decode(errors="replace"), _read(fd, 9, 64)
    if not length.strip().isdigit():
        return None
    text = _read(fd, int(length), 74)
    if sha256(text).hexdigest() != digest:  # it was discarded, or its process died while it wrote
        return None
    queue, message = json.loads(text)
    return queue, message


def _read(fd: int, size: int, offset: int) -> bytes:
    """Return so many bytes from an offset, or up to the end: a disk behind a network may return fewer at a time."""
    content = b""
    while piece := os.pread(fd, size - len(content), offset + len(content)):
        content += piece
    return content


def _push(client: Any, fd: int) -> bool:
    found = _kept(fd)
    if found is None:
        return False
    queue, message = found
    client.rpush(queue, json.dumps(message))  # the next one to be delivered
    os.pwrite(fd, b"\0", 0)
    logger.warning("a message that the broker could not record as delivered is returned to %s", queue)
    return True


_own: UnrecordedMessage | None = None


def keep(queue: str, message: Any) -> None:
    """Keep a message; where the disk does not take it, it is in the memory of this process only."""
    if _own is not None:
        try:
            _own.keep(queue, message)
        except OSError as error:
            logger.error("a message cannot be kept on the disk until the broker has room: %s", error.strerror)  # noqa: TRY400


def discard() -> None:
    """Forget the message that `keep` has kept."""
    if _own is not None:
        _own.discard()


class ReturnUnrecorded(RedisTimerStep):
    """Returns kept messages to their queues, at the start of a worker and every few seconds."""

    every = 5.0

    def start(self, consumer: Any) -> None:
        """Make the file of this process, and start to return messages."""
        global _own  # noqa: PLW0603 - there is one consumer in a process
        if not isinstance(consumer.connection.default_channel, Channel):
            return
        try:
            _own = _own or UnrecordedMessage(context.configured().run_dir)
        except OSError as error:
            logger.warning("no file for messages that the broker cannot record: %s", error)
            return
        self.tick(consumer)
        super().start(consumer)

    def tick_in(self, client: Any) -> None:
        """Return those that this process and ended ones have kept."""
        if _own is not None:
            _own.return_kept(client)
