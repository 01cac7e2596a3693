"""Compute chunk manifests: a SHA-256 for every 16 MiB, so that a range can be verified without the whole.

A manifest is computed in the same pass as the digest of the whole, so that bytes that match every chunk are the
recorded bytes.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, overload

from worker.storage.driver import Digest
from worker.storage.errors import SizeMismatch
from worker.storage.integrity.verifying_reader import OnBytes, Readable

CHUNK_SIZE = 16 * 1024 * 1024
_PIECE = 2 * 1024 * 1024
_AHEAD = 4
"""Calls that wait for the two threads that hash, two for each piece."""
_DIGEST_SIZE = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of an object: its offset and size in bytes, and its SHA-256 in hex."""

    number: int
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The digests of an object's chunks, all of `chunk_size` bytes but the last.

    `digests` are the raw SHA-256 values, one after the other, so that 5 TiB need 10 MiB.
    """

    size: int
    chunk_size: int
    digests: bytes

    def __len__(self) -> int:
        return len(self.digests) // _DIGEST_SIZE

    def chunk(self, number: int) -> Chunk:
        """Return one chunk; numbers start at 0."""
        offset = number * self.chunk_size
        raw = self.digests[number * _DIGEST_SIZE : (number + 1) * _DIGEST_SIZE]
        return Chunk(number, offset, min(self.chunk_size, self.size - offset), raw.hex())

    def sha256_of(self, number: int, /) -> str:
        """Return the SHA-256 of one chunk in hex."""
        return self.chunk(number).sha256

    def covering(self, offset: int, length: int) -> Iterator[Chunk]:
        """Yield the chunks that contain `length` bytes from `offset`, in order."""
        end = min(offset + length, self.size)
        if offset >= end:
            return
        for number in range(offset // self.chunk_size, (end - 1) // self.chunk_size + 1):
            yield self.chunk(number)

    def __iter__(self) -> Iterator[Chunk]:
        return self.covering(0, self.size)

    @classmethod
    def fits(cls, digest: Digest, chunk_size: int, digests: bytes) -> Self | None:
        """Return the manifest if it has as many chunks as an object of this size, else None."""
        expected = -(-digest.size // chunk_size)
        return cls(digest.size, chunk_size, digests) if len(digests) == expected * _DIGEST_SIZE else None


class BadChunks(Sequence[Chunk]):
    """Those chunks of a manifest that are marked, in their order. It needs one byte for each chunk of the manifest."""

    def __init__(self, manifest: Manifest) -> None:
        """Begin with no chunk marked."""
        self._manifest = manifest
        self._marks = bytearray(len(manifest))

    def mark(self, number: int) -> None:
        """Mark a chunk that is not marked yet. Several threads may mark chunks at a time."""
        self._marks[number] = 1

    def __len__(self) -> int:
        return self._marks.count(1)

    def __bool__(self) -> bool:
        return 1 in self._marks

    def __iter__(self) -> Iterator[Chunk]:
        return (self._manifest.chunk(number) for number, marked in enumerate(self._marks) if marked)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        if index == 0 and self:
            return self._manifest.chunk(self._marks.index(1))
        return list(self)[index]


def compute_digests(
    source: Readable, *, size: int, what: str, on_bytes: OnBytes | None = None
) -> tuple[Digest, Manifest]:
    """Read a source to its end, once, and return the digest of the whole and of each chunk.

    The two are computed side by side on two cores, from the same bytes in memory, while the next bytes are read.

    Raises:
        SizeMismatch: the source has not the size that was announced.
    """
    if size <= CHUNK_SIZE:
        digest = _take_one(source, size + 1, on_bytes)  # one byte more than expected shows that it has grown
        chunks = bytes.fromhex(digest.sha256) if digest.size else b""
    else:
        digest, chunks = _take_many(source, on_bytes)
    if digest.size != size:
        raise SizeMismatch(f"{what} has {digest.size} bytes, not the announced {size}")
    return digest, Manifest(size, CHUNK_SIZE, chunks)


def _take_one(source: Readable, most: int, on_bytes: OnBytes | None) -> Digest:
    """Hash an object of one chunk: its digest is that of the whole."""
    whole, count = hashlib.sha256(), 0
    while count < most and (piece := source.read(min(_PIECE, most - count))):
        whole.update(piece)
        count += len(piece)
        if on_bytes:
            on_bytes(len(piece))
    return Digest(count, whole.hexdigest())


def _take_many(source: Readable, on_bytes: OnBytes | None) -> tuple[Digest, bytes]:
    whole, chunk, chunks, count = hashlib.sha256(), hashlib.sha256(), bytearray(), 0
    hashing: deque[Future[None]] = deque()
    # A thread for each of the two, so that neither waits for the other at every piece.
    with ThreadPoolExecutor(1, "hash") as of_whole, ThreadPoolExecutor(1, "hash-chunks") as of_chunks:
        while piece := source.read(min(_PIECE, CHUNK_SIZE - count % CHUNK_SIZE)):
            hashing.extend([of_whole.submit(whole.update, piece), of_chunks.submit(chunk.update, piece)])
            count += len(piece)
            if count % CHUNK_SIZE == 0:
                hashing.append(of_chunks.submit(_append_digest, chunks, chunk))
                chunk = hashlib.sha256()
            while len(hashing) > _AHEAD:
                hashing.popleft().result()
            if on_bytes:
                on_bytes(len(piece))
        for each in hashing:
            each.result()
    if count % CHUNK_SIZE:
        chunks += chunk.digest()
    return Digest(count, whole.hexdigest()), bytes(chunks)


def _append_digest(chunks: bytearray, chunk: "hashlib._Hash") -> None:
    chunks += chunk.digest()
