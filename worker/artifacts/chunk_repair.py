"""Repair a large copy by chunks: the good ones come from the copy itself, and only the bad ones from another copy."""

import logging
from collections.abc import Sequence

from worker.catalogue import Artifact
from worker.limits.limited_store import LimitedStore
from worker.storage.errors import DigestMismatch
from worker.storage.integrity.manifest import Chunk, Manifest

logger = logging.getLogger(__name__)

FEWEST_CHUNKS = 8
"""128 MiB: of a smaller object, to read all of another copy costs no more than to tell the chunks apart."""


class RepairedChunks:
    """The bytes of an artifact, chunk by chunk from the bad copy where they are right, otherwise from a good one.

    Each chunk is compared with the manifest before a byte of it is returned. One chunk is in memory. The source is
    asked for nothing but the chunks that are bad, and its concurrency slot is not held between them.

    `known_bad`: the chunks of the bad copy that a read found bad, empty where that is not known.
    """

    def __init__(
        self, artifact: Artifact, manifest: Manifest, bad: LimitedStore, good: LimitedStore, known_bad: Sequence[Chunk]
    ) -> None:
        self.manifest, self.known_bad = manifest, known_bad
        self._path = artifact.bucket, artifact.key
        self._bad, self._good = bad, good
        self._chunks = iter(manifest)
        self._data: memoryview = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, `b""` at the end.

        Raises:
            DigestMismatch: a chunk is bad in both copies.
            StorageError, Snooze: its `store` tells which of the two failed.
        """
        if not self._data:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._data = memoryview(self._read(chunk))
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def read_good(self, chunk: Chunk) -> bytes | bytearray:
        """Return the bytes of a chunk from the good copy; raises as `read`."""
        return self._good.read_chunk(*self._path, chunk)

    def _read(self, chunk: Chunk) -> bytes | bytearray:
        try:
            return self._bad.read_chunk(*self._path, chunk)
        except DigestMismatch as error:
            logger.warning("%s; it is taken from %s", error, self._good.name)
        return self.read_good(chunk)
