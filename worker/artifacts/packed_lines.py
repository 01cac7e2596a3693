"""Compressed lines of JSON that the worker keeps in stores: written, read back, and read again."""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from worker.catalogue.export import Sink
from worker.catalogue.load_export import Lines
from worker.storage import Digest, Verdict
from worker.storage.errors import IntegrityError
from worker.storage.integrity.verifying_reader import OnBytes
from worker.storage.keys import BACKUP_BUCKET

if TYPE_CHECKING:
    from worker.limits.limited_store import AnyStore  # it imports the clients of the broker

Written = TypeVar("Written")


def pack(spool: BinaryIO, write: Callable[[Sink], Written], on_bytes: OnBytes | None) -> tuple[Digest, Written]:
    """Compress what a function writes into a file; return the digest of the file, and what the function returns."""
    sink = _HashedSink(spool, on_bytes)
    with gzip.GzipFile(filename="", fileobj=cast("BinaryIO", sink), mode="wb", mtime=0) as packed:
        written = write(packed)
    return Digest(sink.size, sink.sha256), written


def write_and_read_back(store: "AnyStore", key: str, spool: BinaryIO, digest: Digest, on_bytes: OnBytes | None) -> None:
    """Write a file from its beginning to a store, and read all of it back.

    Raises:
        IntegrityError: the store gives other bytes.
        StorageError, Snooze: the store does not take it, or does not give it.
    """
    spool.seek(0)
    store.write_object(BACKUP_BUCKET, key, spool, size=digest.size, sha256=digest.sha256, on_bytes=on_bytes)
    seen = store.verify_object(BACKUP_BUCKET, key, digest, on_bytes=on_bytes)
    if seen.error is not None:
        raise seen.error
    if seen.verdict is not Verdict.VERIFIED:
        raise IntegrityError(f"{store.name}: {BACKUP_BUCKET}/{key} is {seen.verdict}: {seen.detail}")


@contextmanager
def packed_lines(
    store: "AnyStore", key: str, on_bytes: OnBytes | None = None, expected: Digest | None = None
) -> Iterator[Lines]:
    """Open the lines that a store keeps."""
    with (
        store.read_object(BACKUP_BUCKET, key, expected=expected, on_bytes=on_bytes) as reader,
        gzip.GzipFile(fileobj=cast("BinaryIO", reader), mode="rb") as lines,
    ):
        yield lines


class _HashedSink:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes | None) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        if self._on_bytes:
            self._on_bytes(len(data))
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
