"""Cut a body into the parts of a multipart upload."""

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from worker.storage.driver import Body, HashedBody, PartData
from worker.storage.errors import SizeMismatch
from worker.storage.spooling import spooling_in

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIB = 1024 * 1024


def plan_parts(size: int, *, min_part: int, max_part: int, max_parts: int, multiple: int = MIB) -> int:
    """Return the size of all parts but the last, so that at most `max_parts` of them hold `size` bytes.

    It is the smallest sufficient size that is not below `min_part`, rounded up to a `multiple` where `max_part` allows.
    The caller guarantees `0 < min_part <= max_part`.

    Raises:
        SizeMismatch: not even parts of `max_part` bytes are enough.
    """
    if size > max_part * max_parts:
        raise SizeMismatch(f"{size} bytes do not fit into {max_parts} parts of at most {max_part} bytes")
    needed = max(min_part, _divided(size, max_parts))
    return min(_divided(needed, multiple) * multiple, max_part)


def next_part(body: Body, size: int, over: bytearray | None = None) -> bytearray:
    """Return the next `size` bytes of a body, or fewer at its end; empty only after the end of a right body was read.

    Only the part itself is in memory. Raises what the body raises.

    Args:
        body: the bytes to cut.
        size: bytes of the part.
        over: a part of the same size that is no longer needed. Its memory is reused, because new memory for every part
            costs time and fragments the heap; it is shortened if the body ends within it.
    """
    if over is not None:
        return _written_over(over, body)
    part = bytearray()
    while len(part) < size and (data := body.read(min(MIB, size - len(part)))):
        part += data
    return part


def whole_body(body: Body, size: int) -> bytes | bytearray:
    """Return all bytes of a body that has `size`, as `next_part` does; bytes that are hashed already are not copied."""
    return body.read(size) if isinstance(body, HashedBody) else next_part(body, size)


class SpooledPart(io.RawIOBase):
    """A part that is too large for memory, in a file without a name, which the system removes when its process ends.

    It can be sent several times. Its bytes are hashed again as they are read: a reader of all of them gets exactly the
    bytes that were appended, or an OSError.
    """

    def __init__(self, directory: Path | None) -> None:
        """Create an empty part.

        Raises:
            OSError: there is no such directory, or no room in it.
        """
        self._file = tempfile.TemporaryFile(dir=directory, prefix="zot-part-", buffering=0)  # noqa: SIM115
        self._size = 0
        self._taken = sha256()
        self._given = sha256()
        self._checked = 0

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the bytes that were appended."""
        return self._taken.hexdigest()

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        """Append all of `data`."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._taken.update(data)
        self._size += len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        position = self._file.seek(offset, whence)
        if position == 0:
            self._given, self._checked = sha256(), 0
        return position

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        begin = self._file.tell()
        count = self._file.readinto(buffer) or 0
        if begin == self._checked and count:
            self._given.update(memoryview(buffer)[:count])
            self._checked += count
            if self._checked == self._size and self._given.digest() != self._taken.digest():
                raise OSError(errno.EIO, "a part that was spooled to the disk came back with other bytes")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def spool_part(body: Body, size: int, directory: Path | None) -> SpooledPart:
    """Return the next `size` bytes of a body in a file, or fewer at its end; see `next_part`.

    Raises:
        OutOfSpace: they do not fit into the directory.
    """
    with spooling_in(directory):
        part = SpooledPart(directory)
        try:
            while len(part) < size and (data := body.read(min(MIB, size - len(part)))):
                part.append(data)
            part.seek(0)
        except BaseException:
            part.close()
            raise
    return part


def pieces_of(part: PartData | memoryview, size: int = MIB) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a part from its beginning, in pieces of `size` bytes; those in memory are not copied."""
    if isinstance(part, bytes | bytearray | memoryview):
        view = memoryview(part)
        yield from (view[start : start + size] for start in range(0, len(part), size))
    else:
        rewound(part)
        yield from iter(partial(part.read, size), b"")


def md5_of(data: PartData) -> bytes:
    """Return the MD5 of the bytes of one request, which many stores compare with what arrives."""
    if isinstance(data, bytes | bytearray):
        return hashlib.md5(data, usedforsecurity=False).digest()
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces_of(data):
        digest.update(piece)
    return digest.digest()


def sha256_of(data: PartData) -> str:
    """Return the SHA-256 of a part as 64 lower-case hex digits."""
    return sha256(data).hexdigest() if isinstance(data, bytes | bytearray) else data.sha256


def rewound(part: PartData) -> PartData:
    """Return a part, rewound if it is a file: libraries send a file from its current position."""
    if not isinstance(part, bytes | bytearray):
        part.seek(0)
    return part


def _written_over(part: bytearray, body: Body) -> bytearray:
    filled = 0
    with memoryview(part) as view:
        while filled < len(view) and (data := body.read(min(MIB, len(view) - filled))):
            view[filled : filled + len(data)] = data
            filled += len(data)
    del part[filled:]  # in place: a copy would be one part more in memory
    return part


def _divided(dividend: int, divisor: int) -> int:
    """Divide and round up, without floats, which are wrong for large objects."""
    return -(-dividend // divisor)
