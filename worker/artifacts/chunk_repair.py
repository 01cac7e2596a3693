"""Repair a large copy by chunks: the good ones come from the copy itself, and only the bad ones from another copy."""

import logging
from typing import Self

from worker.artifacts.artifact_copies import ArtifactJob, CopySlot
from worker.catalogue import Copy
from worker.storage.errors import DigestMismatch
from worker.storage.integrity.manifest import Chunk, Manifest

logger = logging.getLogger(__name__)

FEWEST_CHUNKS = 8
"""128 MiB: of a smaller object, to read all of another copy costs no more than to tell the chunks apart."""


class RepairedChunks:
    """The bytes of an artifact, chunk by chunk from the bad copy where they are right, otherwise from a good one.

    Each chunk is compared with the manifest before a byte of it is returned. One chunk is in memory. The source is
    asked for nothing but the chunks that are bad, and its concurrency slot is not held between them.
    """

    def __init__(self, work: ArtifactJob, slot: CopySlot, source: Copy, manifest: Manifest) -> None:
        self._path = work.artifact.bucket, work.artifact.key
        self._bad, self._good = slot.store, work.context.stores[source.store]
        self._chunks = iter(manifest)
        self._data: memoryview = memoryview(b"")

    @classmethod
    def of(cls, work: ArtifactJob, slot: CopySlot, source: Copy) -> Self | None:
        """Return the bytes for a slot; None if all of them have to come from the good copy."""
        if slot.found is None or not slot.quarantine or slot.found.size != work.artifact.digest.size:
            return None
        manifest = work.context.catalogue.artifacts.manifest(work.artifact)
        return cls(work, slot, source, manifest) if manifest and len(manifest) >= FEWEST_CHUNKS else None

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

    def _read(self, chunk: Chunk) -> bytes | bytearray:
        try:
            return self._bad.read_chunk(*self._path, chunk)
        except DigestMismatch as error:
            logger.warning("%s; it is taken from %s", error, self._good.name)
        return self._good.read_chunk(*self._path, chunk)
