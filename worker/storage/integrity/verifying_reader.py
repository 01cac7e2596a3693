"""Hash bytes as they are read, and raise at the end unless they are the announced ones."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from worker.storage.driver import BUFFER_SIZE, WRITE_SIZE, Digest, ObjectReader, ObjectStat
from worker.storage.errors import DigestMismatch, SizeMismatch


class Readable(Protocol):
    """Bytes that are read once, in parts."""

    def read(self, size: int, /) -> bytes: ...


OnBytes = Callable[[int], None]
"""Called with the number of bytes after each read. What it raises ends the transfer; nothing becomes visible."""


class _ThreadedSha256:
    """A SHA-256 that is computed in a thread, while the caller reads the next piece or writes the last one."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")  # ends with this object
        self._under_way: Future[None] | None = None

    def update(self, data: bytes) -> None:
        self._wait()
        self._under_way = self._pool.submit(self._hash.update, data)

    def hexdigest(self) -> str:
        self._wait()
        self._pool.shutdown(wait=False)
        return self._hash.hexdigest()

    def _wait(self) -> None:
        if self._under_way:
            self._under_way.result()
            self._under_way = None


class VerifyingReader:
    """Pass bytes on while hashing them; raise at the end unless they have the announced size and SHA-256.

    Every write reads its source through it: a driver that reaches the end has read the right bytes, or gets an error.
    """

    def __init__(
        self,
        source: Readable,
        *,
        size: int | None = None,
        sha256: str | None = None,
        what: str = "the source",
        on_bytes: OnBytes | None = None,
    ) -> None:
        self._source = source
        self._size = size
        self._sha256 = sha256
        self._what = what
        self._on_bytes = on_bytes
        self._hash: hashlib._Hash | _ThreadedSha256 | None = hashlib.sha256()
        self._count = 0
        self._digest: Digest | None = None

    def compare_only_size(self) -> None:
        """Leave the announced digest to the caller; see `ComparedBody`."""
        assert self._sha256 is not None
        self._hash = None

    def read(self, size: int = BUFFER_SIZE, /) -> bytes:
        """Return at most `size` bytes; `b""` only at an end that was right.

        Raises:
            SizeMismatch: there are more bytes, or fewer, than announced.
            DigestMismatch: the bytes have another SHA-256 than announced.
        """
        data = self._source.read(size)
        if not data:
            self._finish()
            return b""
        if self._count == 0 and self._hash is not None and len(data) >= BUFFER_SIZE:
            self._hash = _ThreadedSha256()
        self._count += len(data)
        if self._size is not None and self._count > self._size:
            raise SizeMismatch(f"{self._what} has more than the announced {self._size} bytes")
        if self._hash is not None:
            self._hash.update(data)
        if self._on_bytes:
            self._on_bytes(len(data))
        return data

    @property
    def digest(self) -> Digest:
        """Return size and SHA-256 of the bytes; call it only after the end was read."""
        if self._digest is None:
            msg = f"{self._what} has not been read to its end"
            raise RuntimeError(msg)
        return self._digest

    def _finish(self) -> None:
        if self._digest is not None:
            return
        if self._size is not None and self._count != self._size:
            raise SizeMismatch(f"{self._what} has {self._count} bytes, not the announced {self._size}")
        found = str(self._sha256) if self._hash is None else self._hash.hexdigest()
        if self._sha256 is not None and found != self._sha256:
            raise DigestMismatch(f"{self._what} has SHA-256 {found}, not the announced {self._sha256}")
        self._digest = Digest(self._count, found)


class VerifiedReader(VerifyingReader, ObjectReader):
    """An open object whose bytes are verified; closing it closes the object.

    `verified` tells whether the bytes are compared with a known digest.
    """

    def __init__(
        self,
        reader: ObjectReader,
        *,
        size: int,
        sha256: str | None = None,
        what: str,
        on_bytes: OnBytes | None = None,
        verified: bool,
    ) -> None:
        super().__init__(reader, size=size, sha256=sha256, what=what, on_bytes=on_bytes)
        self._reader = reader
        self.verified = verified

    @property
    def stat(self) -> ObjectStat:
        """Return the stat of the version that is being read."""
        return self._reader.stat

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    def close(self) -> None:
        self._reader.close()


def read_up_to(reader: Readable, limit: int) -> bytes:
    """Return the first `limit` bytes, or all: one read may return fewer than are there."""
    content = b""
    while len(content) < limit and (data := reader.read(limit - len(content))):
        content += data
    return content


def drain(reader: Readable) -> None:
    """Read to the end and discard the bytes."""
    while reader.read(BUFFER_SIZE):
        pass


def save(reader: Readable, file: int, on_bytes: OnBytes | None = None) -> None:
    """Write all bytes to an open and empty file; raise OSError if it cannot be written."""
    offset = 0
    while piece := reader.read(BUFFER_SIZE):
        write_at(file, memoryview(piece), offset)
        offset += len(piece)
        if on_bytes:
            on_bytes(len(piece))


def write_at(file: int, piece: memoryview, offset: int) -> None:
    """Write all of a piece to an open file at an offset; raise OSError if it cannot be written."""
    while piece:
        written = os.pwrite(file, piece[:WRITE_SIZE], offset)
        piece, offset = piece[written:], offset + written
